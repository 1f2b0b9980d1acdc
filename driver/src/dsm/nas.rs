//! One configured NAS and what the controller asks of it. Each method is one question or one effect with its read-back.

pub mod completeness;
pub mod free_space;

use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::call::Call;
use super::client::Client;
use super::compound::Results;
use super::location::{self, Location, LocationAnswer, LocationsAnswer};
use super::log_once::LogOnce;
use super::lun::{self, Lun, LunAnswer};
use super::lun_locations::Places;
use super::reply::{DsmError, NoData};
use super::target::{self, CreatedTarget, Target, TargetAnswer, TargetsAnswer};
use crate::chap::Chap;
use crate::min_free::Floor;
use crate::publication::{Iqn, Portal, portals_among};
use crate::volume::{Bytes, LunUuid, NasName};
use completeness::ListHistory;

/// How long a LUN may stay locked, or a deleted one visible, before the caller is told to come again.
const LUN_READY_TIMEOUT: Duration = Duration::from_secs(60);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

/// What came of an act upon a target.
#[derive(Debug)]
pub enum TargetWrite {
    /// It is done; all targets afterwards.
    Done(Vec<Target>),
    /// The target is not there any more, and nothing was done; all targets.
    NotThere(Vec<Target>),
    /// DSM has carried it out although the number is another target's by now.
    UponAnother {
        /// Whose the number was just before, if anybody said so.
        holder: Option<Target>,
        /// All targets afterwards.
        all: Vec<Target>,
    },
}

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
    /// What stays free on its volumes, where a class says nothing of it.
    pub floor: Floor,
    /// The effect.
    pub client: Client,
    /// It was seen to go on with a compound request after a call that failed.
    goes_on: AtomicBool,
    /// What was said of it already.
    pub(super) told: LogOnce,
    /// What was seen of it, if it does not tell how long it has been up.
    pub(super) memory: Mutex<ListHistory>,
    /// Where its LUNs lie.
    pub(super) places: Places,
}

impl Nas {
    /// A NAS without aliases and configured portals.
    pub fn new(name: NasName, host: String, client: Client) -> Self {
        Self {
            name,
            aliases: Vec::new(),
            host,
            portals: Vec::new(),
            floor: Floor::default(),
            client,
            goes_on: AtomicBool::default(),
            told: LogOnce::default(),
            memory: Mutex::default(),
            places: Places::default(),
        }
    }

    /// All names under which it is known, the present one first.
    pub fn names(&self) -> impl Iterator<Item = &NasName> {
        std::iter::once(&self.name).chain(&self.aliases)
    }

    /// It is known under this name.
    pub fn is_called(&self, name: &NasName) -> bool {
        self.names().any(|known| known == name)
    }

    /// Where its targets listen (design.md#portals).
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
        let resolved = tokio::net::lookup_host((bare, Portal::PORT)).await?;
        let portals = portals_among(resolved.map(Portal::from).collect());
        if portals.is_empty() {
            return Err(std::io::Error::other(
                "it has only addresses that other machines cannot use",
            ));
        }
        Ok(portals)
    }

    /// The LUN with this key. `None`: DSM says that it does not know it, which alone is no proof (design.md#unknown-is-not-absent).
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
            Ok(answer) => Ok(Some(self.seen(answer.lun))),
            Err(error) if error.code().is_some_and(super::Code::no_lun) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The LUN with this key, under the same terms, and all targets of the NAS: one request. Those that were never mapped are not
    /// among the targets of a LUN.
    ///
    /// # Errors
    /// Anything else than both or DSM's word that there is no such LUN.
    pub async fn lun_and_targets(
        &self,
        uuid: &LunUuid,
    ) -> Result<Option<(Lun, Vec<Target>)>, DsmError> {
        match self
            .client
            .call_both::<LunAnswer, TargetsAnswer>(&lun::get(uuid.as_str()), &target::list())
            .await
        {
            Ok((found, all)) => {
                let targets = self.targets_about(uuid, all.targets)?;
                let found = Some((self.seen(found.lun), targets));
                Ok(found.filter(|(lun, _)| lun.uuid == uuid.as_str()))
            }
            Err(error) if error.code().is_some_and(super::Code::no_lun) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A word for a LUN's state that nobody knows is worth a line in the log, and nothing else.
    pub(super) fn seen(&self, lun: Lun) -> Lun {
        self.places.remember(&lun);
        if !lun.has_known_status() && self.told.first(&lun.status) {
            tracing::info!(nas = %self.name, lun = lun.uuid, status = lun.status, "DSM has a word for a LUN that this driver does not know; it goes on");
        }
        lun
    }

    /// Grows a LUN. Read its size back.
    ///
    /// # Errors
    /// [`DsmError`].
    pub async fn grow_lun(&self, uuid: &LunUuid, size: Bytes) -> Result<(), DsmError> {
        self.client
            .call::<NoData>(&lun::set_size(uuid, size))
            .await
            .map(drop)
    }

    /// Starts the deletion of a LUN, which DSM carries out after it has answered.
    ///
    /// # Errors
    /// [`DsmError`].
    pub async fn delete_lun(&self, uuid: &LunUuid) -> Result<(), DsmError> {
        self.client
            .call::<NoData>(&lun::delete(uuid))
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
        let deadline = Instant::now() + LUN_READY_TIMEOUT;
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
    /// [`DsmError`]; a row that cannot be read and may concern the LUN is one.
    pub async fn targets_of(&self, uuid: &LunUuid) -> Result<Vec<Target>, DsmError> {
        let answer: TargetsAnswer = self.client.call(&target::list_of(uuid)).await?;
        self.targets_about(uuid, answer.targets)
    }

    /// Every target of the NAS that can be read: the answer grows with their number.
    ///
    /// # Errors
    /// [`DsmError`]; a row that cannot be read and may concern `lun` is one.
    pub async fn targets(&self, lun: &LunUuid) -> Result<Vec<Target>, DsmError> {
        let answer: TargetsAnswer = self.client.call(&target::list()).await?;
        self.targets_about(lun, answer.targets)
    }

    /// Creates a target, then reads all targets.
    ///
    /// # Errors
    /// [`DsmError`]; whatever it is, the target may exist.
    pub async fn create_target(
        &self,
        lun: &LunUuid,
        name: &str,
        iqn: &Iqn,
        chap: Option<&Chap>,
    ) -> Result<Vec<Target>, DsmError> {
        let (CreatedTarget { .. }, all) = self
            .client
            .call_both::<CreatedTarget, TargetsAnswer>(
                &target::create(name, iqn, chap),
                &target::list(),
            )
            .await?;
        self.targets_about(lun, all.targets)
    }

    /// Sets what a login to a target must prove.
    ///
    /// # Errors
    /// See [`Nas::act`].
    pub async fn set_auth(
        &self,
        lun: &LunUuid,
        target: &Target,
        chap: Option<&Chap>,
    ) -> Result<TargetWrite, DsmError> {
        self.act(lun, target, target::set_auth(target.target_id, chap))
            .await
    }

    /// Maps a LUN to a target.
    ///
    /// # Errors
    /// See [`Nas::act`].
    pub async fn map_target(
        &self,
        uuid: &LunUuid,
        target: &Target,
    ) -> Result<TargetWrite, DsmError> {
        self.act(uuid, target, lun::map_target(uuid, target.target_id))
            .await
    }

    /// Takes a LUN from a target.
    ///
    /// # Errors
    /// See [`Nas::act`].
    pub async fn unmap_target(
        &self,
        uuid: &LunUuid,
        target: &Target,
    ) -> Result<TargetWrite, DsmError> {
        self.act(uuid, target, lun::unmap_target(uuid, target.target_id))
            .await
    }

    /// Gives a target another name.
    ///
    /// # Errors
    /// See [`Nas::act`].
    pub async fn rename_target(
        &self,
        lun: &LunUuid,
        target: &Target,
        name: &str,
    ) -> Result<TargetWrite, DsmError> {
        self.act(lun, target, target::rename(target.target_id, name))
            .await
    }

    /// Deletes a target. `lun` is taken out of it first: what `delete` does to a live session is not known, and a unit that is not
    /// mapped takes no more writes.
    ///
    /// # Errors
    /// See [`Nas::act`].
    pub async fn delete_target(
        &self,
        lun: &LunUuid,
        target: &Target,
    ) -> Result<TargetWrite, DsmError> {
        let delete = target::delete(target.target_id);
        if target.mapping_of(lun).is_none() {
            return self.act(lun, target, delete).await;
        }
        let unmap = lun::unmap_target(lun, target.target_id);
        let both = [unmap, delete.clone()];
        match self.act_in_order(lun, target, &both).await {
            // Somebody was faster, or DSM does not take a LUN from a target in use.
            Err(DsmError::Refused {
                method: lun::UNMAP, ..
            }) => self.act(lun, target, delete).await,
            acted => acted,
        }
    }

    /// Acts upon a target, a publication of `lun`, that was seen in an earlier request. DSM gives the numbers of deleted targets away again, so the request
    /// that acts by the number finds the target by its name first, and stops if it is gone.
    ///
    /// # Errors
    /// [`DsmError`]; unless DSM refused, the act may have been carried out.
    async fn act(
        &self,
        lun: &LunUuid,
        target: &Target,
        act: Call,
    ) -> Result<TargetWrite, DsmError> {
        self.act_in_order(lun, target, &[act]).await
    }

    async fn act_in_order(
        &self,
        lun: &LunUuid,
        target: &Target,
        acts: &[Call],
    ) -> Result<TargetWrite, DsmError> {
        // On a NAS that goes on after a call that fails, the guard only guards when it is asked before.
        if self.goes_on.load(Ordering::Relaxed)
            && let Some(all) = self.absent(lun, target).await?
        {
            return Ok(TargetWrite::NotThere(all));
        }
        let calls = target::guarded(target, true, acts);
        let mut results = self.client.call_sequence(&calls).await?;
        let refusal = match results.take::<TargetAnswer>() {
            Some(Ok(_)) => return self.acted(lun, target, acts, results).await,
            Some(Err(refusal)) if refusal.code().is_some_and(super::Code::no_target) => refusal,
            Some(Err(error)) => return Err(error),
            None => return Err(target::no_result(&calls[0])),
        };
        if !results.is_empty() {
            self.goes_on.store(true, Ordering::Relaxed);
            tracing::warn!(nas = %self.name, %refusal, "DSM goes on with a compound request after a call that fails");
            return self.acted(lun, target, acts, results).await;
        }
        if let Some(all) = self.absent(lun, target).await? {
            return Ok(TargetWrite::NotThere(all));
        }
        // It is there, and `get` does not find it by its name: that DSM takes names there was only ever seen by others.
        let calls = target::guarded(target, false, acts);
        let results = self.client.call_sequence(&calls).await?;
        self.acted(lun, target, acts, results).await
    }

    /// All targets, if this one is not among them any more under its name.
    async fn absent(
        &self,
        lun: &LunUuid,
        target: &Target,
    ) -> Result<Option<Vec<Target>>, DsmError> {
        let all = self.targets(lun).await?;
        let there = |row: &Target| row.is(target) && row.name == target.name;
        Ok((!all.iter().any(there)).then_some(all))
    }

    /// What came of the acts, and upon whom: the results of `get` by number, the acts, `list`.
    async fn acted(
        &self,
        lun: &LunUuid,
        target: &Target,
        acts: &[Call],
        mut results: Results,
    ) -> Result<TargetWrite, DsmError> {
        let holder = match results.take::<TargetAnswer>() {
            None => return Err(target::no_result(&target::list())),
            Some(holder) => holder.map(|answer| answer.target),
        };
        let mut done = Ok(());
        let mut any = false;
        for act in acts {
            match (results.take::<NoData>(), &done) {
                (Some(Ok(NoData)), _) => any = true,
                (Some(Err(refusal)), Ok(())) => done = Err(refusal),
                // Stopped: the number is nobody's.
                (None, Ok(())) => {
                    let code = holder.as_ref().err().and_then(DsmError::code);
                    let refused = code.map(|code| act.refused(code));
                    done = Err(refused.unwrap_or_else(|| target::no_result(act)));
                }
                (None | Some(Err(_)), Err(_)) => {}
            }
        }
        let mine = |row: &Target| row.is(target);
        if any && !holder.as_ref().is_ok_and(mine) {
            let all = self.listed(lun, &mut results).await?;
            return Ok(TargetWrite::UponAnother {
                holder: holder.ok(),
                all,
            });
        }
        match done {
            Ok(()) => Ok(TargetWrite::Done(self.listed(lun, &mut results).await?)),
            Err(refusal) if refusal.code().is_some_and(super::Code::no_target) => {
                Ok(TargetWrite::NotThere(self.listed(lun, &mut results).await?))
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// The list that a sequence ends with; asked for by itself where it is missing.
    async fn listed(&self, lun: &LunUuid, results: &mut Results) -> Result<Vec<Target>, DsmError> {
        match results.take::<TargetsAnswer>() {
            Some(Ok(all)) => self.targets_about(lun, all.targets),
            None | Some(Err(_)) => self.targets(lun).await,
        }
    }

    /// All volumes of the NAS that can be read.
    ///
    /// # Errors
    /// [`DsmError`].
    pub async fn locations(&self) -> Result<Vec<Location>, DsmError> {
        let answer: LocationsAnswer = self.client.call(&location::list()).await?;
        let volumes = answer.volumes;
        self.report(&volumes);
        for Location { path, status, .. } in volumes
            .fit
            .iter()
            .filter(|volume| !volume.has_known_status())
        {
            if self.told.first(status) {
                tracing::info!(nas = %self.name, volume = path, status, "DSM has a word for a volume that this driver does not know; it goes on");
            }
        }
        Ok(volumes.fit)
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
