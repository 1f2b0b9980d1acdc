//! One configured NAS and what the controller asks of it. Each method is one question or one effect with its read-back.

use std::net::IpAddr;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::client::Client;
use super::location::{self, Location, LocationAnswer, LocationsAnswer};
use super::lun::{self, CreatedLun, Lun, LunAnswer, LunsAnswer, NewLun};
use super::reply::{DsmError, Nothing};
use super::target::{self, CreatedTarget, Target, TargetAnswer, TargetsAnswer};
use crate::chap::Chap;
use crate::publication::{Iqn, Portal};
use crate::volume::{Bytes, LunUuid, NasName};

/// How long a LUN may stay locked, or a deleted one visible, before the caller is told to come again.
const PATIENCE: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

/// A NAS of the configuration.
#[derive(Debug)]
pub struct Nas {
    /// Its permanent name.
    pub name: NasName,
    /// Names that it had before.
    pub aliases: Vec<NasName>,
    /// The host of its address, as StorageClasses of the official driver name it (`dsm`).
    pub host: String,
    /// Configured portals; empty: the address of `host`.
    pub portals: Vec<Portal>,
    /// The effect.
    pub client: Client,
}

impl Nas {
    /// It is known under this name.
    pub fn is_called(&self, name: &NasName) -> bool {
        self.name == *name || self.aliases.contains(name)
    }

    /// Where its targets listen (design choice 7).
    ///
    /// # Errors
    /// No portal is configured and the NAS's name cannot be resolved.
    pub async fn portals(&self) -> std::io::Result<Vec<Portal>> {
        if !self.portals.is_empty() {
            return Ok(self.portals.clone());
        }
        let bare = self.host.trim_matches(['[', ']']);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(vec![Portal::at(address)]);
        }
        let mut addresses: Vec<Portal> = tokio::net::lookup_host((bare, Portal::PORT))
            .await?
            .map(Portal::from)
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        Ok(addresses)
    }

    /// The LUN with this key. `None`: DSM says that it does not know it, which alone is no proof (design choice 16).
    ///
    /// # Errors
    /// Anything else than a LUN or that answer.
    pub async fn lun(&self, uuid: &LunUuid) -> Result<Option<Lun>, DsmError> {
        // `get` takes names too: a LUN that is merely called like this uuid is another one.
        Ok(self
            .lun_called(uuid.as_str())
            .await?
            .filter(|lun| lun.uuid == uuid.as_str()))
    }

    /// The LUN with this key or name, under the same terms.
    ///
    /// # Errors
    /// Anything else than a LUN or DSM's word that there is none.
    pub async fn lun_called(&self, name: &str) -> Result<Option<Lun>, DsmError> {
        match self.client.call::<LunAnswer>(&lun::get(name)).await {
            Ok(answer) => Ok(Some(answer.lun)),
            Err(error) if error.code().is_some_and(super::Code::no_lun) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The LUN with this key, under the same terms, and the targets that export it: one request.
    ///
    /// # Errors
    /// Anything else than both or DSM's word that there is no such LUN.
    pub async fn lun_and_targets(
        &self,
        uuid: &LunUuid,
    ) -> Result<Option<(Lun, Vec<Target>)>, DsmError> {
        match self
            .client
            .call_both::<LunAnswer, TargetsAnswer>(&lun::get(uuid.as_str()), &target::list_of(uuid))
            .await
        {
            Ok((found, exports)) => {
                Ok(Some((found.lun, exports.targets)).filter(|(lun, _)| lun.uuid == uuid.as_str()))
            }
            Err(error) if error.code().is_some_and(super::Code::no_lun) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Every LUN of the NAS: the answer grows with their number.
    ///
    /// # Errors
    /// [`DsmError`].
    pub async fn luns(&self) -> Result<Vec<Lun>, DsmError> {
        Ok(self.client.call::<LunsAnswer>(&lun::list()).await?.luns)
    }

    /// Every LUN of the NAS, and what stands against its being every one; see [`Nas::all_targets`].
    ///
    /// # Errors
    /// [`DsmError`]: nothing is known.
    pub async fn all_luns(&self) -> Result<(Vec<Lun>, Option<String>), DsmError> {
        let (volumes, luns) = self
            .client
            .call_both::<LocationsAnswer, LunsAnswer>(&location::list(), &lun::list())
            .await?;
        Ok((luns.luns, location::is_coming_up(&volumes.volumes)))
    }

    /// Proves that no LUN of the NAS is the one that `get` denies: every volume is `normal`, so that the NAS is not still coming
    /// up, and the full list lacks it (design choice 16). In this order: a volume that comes up between the two questions would
    /// be too late for the list and in time for the proof. `Some` says what stands against it.
    ///
    /// # Errors
    /// [`DsmError`]: nothing is proven.
    pub async fn doubt_of_absence(
        &self,
        is_it: impl Fn(&Lun) -> bool,
    ) -> Result<Option<String>, DsmError> {
        if let Some(doubt) = location::hides_luns(&self.locations().await?) {
            return Ok(Some(doubt));
        }
        let listed = self.luns().await?.into_iter().find(is_it);
        Ok(listed.map(|lun| {
            format!(
                "get denies LUN {} ({}), but list shows it",
                lun.name, lun.uuid
            )
        }))
    }

    /// Creates a LUN and answers its key.
    ///
    /// # Errors
    /// [`DsmError`]; whatever it is, the LUN may exist: look it up by name (design choice 18).
    pub async fn create_lun(&self, new: &NewLun) -> Result<String, DsmError> {
        Ok(self
            .client
            .call::<CreatedLun>(&lun::create(new))
            .await?
            .uuid)
    }

    /// Grows a LUN. Read its size back.
    ///
    /// # Errors
    /// [`DsmError`].
    pub async fn grow_lun(&self, uuid: &LunUuid, size: Bytes) -> Result<(), DsmError> {
        self.client
            .call::<Nothing>(&lun::set_size(uuid, size))
            .await
            .map(drop)
    }

    /// Starts the deletion of a LUN, which DSM carries out after it has answered.
    ///
    /// # Errors
    /// [`DsmError`].
    pub async fn delete_lun(&self, uuid: &LunUuid) -> Result<(), DsmError> {
        self.client
            .call::<Nothing>(&lun::delete(uuid))
            .await
            .map(drop)
    }

    /// Reads a LUN until `done` accepts what `get` says, for a bounded time; answers the last that was seen.
    ///
    /// # Errors
    /// [`DsmError`] of the first reading that fails.
    pub async fn lun_until(
        &self,
        uuid: &LunUuid,
        done: impl Fn(Option<&Lun>) -> bool,
    ) -> Result<Option<Lun>, DsmError> {
        let deadline = Instant::now() + PATIENCE;
        let mut pause = FIRST_PAUSE;
        loop {
            let seen = self.lun(uuid).await?;
            if done(seen.as_ref()) || Instant::now() + pause > deadline {
                return Ok(seen);
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// The targets that export `uuid`.
    ///
    /// # Errors
    /// [`DsmError`].
    pub async fn targets_of(&self, uuid: &LunUuid) -> Result<Vec<Target>, DsmError> {
        Ok(self
            .client
            .call::<TargetsAnswer>(&target::list_of(uuid))
            .await?
            .targets)
    }

    /// Every target of the NAS: the answer grows with their number.
    ///
    /// # Errors
    /// [`DsmError`].
    pub async fn targets(&self) -> Result<Vec<Target>, DsmError> {
        Ok(self
            .client
            .call::<TargetsAnswer>(&target::list())
            .await?
            .targets)
    }

    /// The target with this IQN, asked for by `name`. `None` is DSM's word and no proof (design choice 6).
    ///
    /// # Errors
    /// [`DsmError`]: nothing is known.
    pub async fn target(&self, name: &str, iqn: &Iqn) -> Result<Option<Target>, DsmError> {
        match self.client.call::<TargetAnswer>(&target::get(name)).await {
            Ok(answer) => Ok(Some(answer.target).filter(|target| target.iqn == iqn.as_str())),
            Err(error) if error.code().is_some_and(super::Code::no_target) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Every target of the NAS, and what stands against its being every one: a NAS that is still coming up lists a part of
    /// them (design choice 16). One request, in this order: a volume that comes up between the two questions would be too
    /// late for the list and in time for the proof.
    ///
    /// # Errors
    /// [`DsmError`]: nothing is known.
    pub async fn all_targets(&self) -> Result<(Vec<Target>, Option<String>), DsmError> {
        let (volumes, targets) = self
            .client
            .call_both::<LocationsAnswer, TargetsAnswer>(&location::list(), &target::list())
            .await?;
        Ok((targets.targets, location::is_coming_up(&volumes.volumes)))
    }

    /// Creates a target and answers its key.
    ///
    /// # Errors
    /// [`DsmError`]; whatever it is, the target may exist.
    pub async fn create_target(
        &self,
        name: &str,
        iqn: &Iqn,
        chap: Option<&Chap>,
    ) -> Result<u64, DsmError> {
        Ok(self
            .client
            .call::<CreatedTarget>(&target::create(name, iqn, chap))
            .await?
            .target_id)
    }

    /// Sets what a login to a target of a publication of `uuid` must prove, then reads the targets that export it.
    ///
    /// # Errors
    /// [`DsmError`]; what the target asks for may have changed.
    pub async fn set_auth(
        &self,
        uuid: &LunUuid,
        target_id: u64,
        chap: Option<&Chap>,
    ) -> Result<Vec<Target>, DsmError> {
        let (Nothing, answer) = self
            .client
            .call_both::<Nothing, TargetsAnswer>(
                &target::set_auth(target_id, chap),
                &target::list_of(uuid),
            )
            .await?;
        Ok(answer.targets)
    }

    /// Maps a LUN to a target, then reads the targets that export it.
    ///
    /// # Errors
    /// [`DsmError`]; the mapping may exist.
    pub async fn map_target(
        &self,
        uuid: &LunUuid,
        target_id: u64,
    ) -> Result<Vec<Target>, DsmError> {
        let (Nothing, answer) = self
            .client
            .call_both::<Nothing, TargetsAnswer>(
                &lun::map_target(uuid, target_id),
                &target::list_of(uuid),
            )
            .await?;
        Ok(answer.targets)
    }

    /// Deletes a target of a publication of `uuid`, then reads the targets that still export it.
    ///
    /// # Errors
    /// [`DsmError`]; the target may or may not exist.
    pub async fn delete_target(
        &self,
        uuid: &LunUuid,
        target_id: u64,
    ) -> Result<Vec<Target>, DsmError> {
        let (Nothing, answer) = self
            .client
            .call_both::<Nothing, TargetsAnswer>(&target::delete(target_id), &target::list_of(uuid))
            .await?;
        Ok(answer.targets)
    }

    /// All volumes of the NAS.
    ///
    /// # Errors
    /// [`DsmError`].
    pub async fn locations(&self) -> Result<Vec<Location>, DsmError> {
        Ok(self
            .client
            .call::<LocationsAnswer>(&location::list())
            .await?
            .volumes)
    }

    /// One volume of the NAS. `None`: there is no such volume.
    ///
    /// # Errors
    /// [`DsmError`].
    pub async fn location(&self, path: &str) -> Result<Option<Location>, DsmError> {
        match self
            .client
            .call::<LocationAnswer>(&location::get(path))
            .await
        {
            Ok(answer) => Ok(answer.volume),
            // 117 also means "busy": the list decides.
            Err(error) if error.code() == Some(super::Code::NO_SUCH_LOCATION) => Ok(self
                .locations()
                .await?
                .into_iter()
                .find(|location| location.path == path)),
            Err(error) => Err(error),
        }
    }
}
