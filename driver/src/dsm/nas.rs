//! A configured NAS and the operations of the controller on it. Each method is one query, or one change with its read-back.

pub mod completeness;
pub mod free_space;

use parking_lot::Mutex;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::call::Call;
use super::client::Client;
use super::compound::Results;
use super::location::{self, Location, LocationAnswer, LocationsAnswer};
use super::log_once::LogOnce;
use super::lun::{self, Lun, LunAnswer};
use super::lun_locations::LunLocations;
use super::reply::{DsmError, NoData};
use super::target::{self, CreatedTarget, Target, TargetAnswer, TargetsAnswer};
use crate::chap::Chap;
use crate::min_free::MinFreeSpace;
use crate::publication::{Iqn, Portal, portals_among};
use crate::volume::{Bytes, LunUuid, NasName};
use completeness::ListHistory;

/// How long a LUN may stay locked, or a deleted one visible, before the call fails with a retryable error.
const LUN_READY_TIMEOUT: Duration = Duration::from_secs(60);
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(250);
const MAX_POLL_INTERVAL: Duration = Duration::from_secs(4);

/// The outcome of a change to a target.
#[derive(Debug)]
pub enum TargetWrite {
    /// Done; all targets afterwards.
    Done(Vec<Target>),
    /// The target no longer exists, and nothing was done; all targets.
    NotFound(Vec<Target>),
    /// DSM has applied the change although the number belongs to another target by now.
    WrongTarget {
        /// The target that had the number just before, if DSM reported it.
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
    /// Its former names.
    pub aliases: Vec<NasName>,
    /// The host of its URL, as `dsm` in StorageClasses of the official driver.
    pub host: String,
    /// Configured portals; empty: the addresses of `host`.
    pub portals: Vec<Portal>,
    /// Minimum free space on its volumes, unless the StorageClass sets another.
    pub floor: MinFreeSpace,
    /// The client of its Web API.
    pub client: Client,
    /// DSM was seen to continue a compound request after a call that failed.
    continues_after_error: AtomicBool,
    /// Messages that were logged about it.
    pub(super) logged: LogOnce,
    /// Earlier lists, for a NAS that does not report its uptime.
    pub(super) history: Mutex<ListHistory>,
    /// The volumes of its LUNs.
    pub(super) lun_locations: LunLocations,
}

impl Nas {
    /// A NAS without aliases, with the default portals.
    pub fn new(name: NasName, host: String, client: Client) -> Self {
        Self {
            name,
            aliases: Vec::new(),
            host,
            portals: Vec::new(),
            floor: MinFreeSpace::default(),
            client,
            continues_after_error: AtomicBool::default(),
            logged: LogOnce::default(),
            history: Mutex::default(),
            lun_locations: LunLocations::default(),
        }
    }

    /// Its current name, then its aliases.
    pub fn names(&self) -> impl Iterator<Item = &NasName> {
        std::iter::once(&self.name).chain(&self.aliases)
    }

    /// This is its name or one of its aliases.
    pub fn has_name(&self, name: &NasName) -> bool {
        self.names().any(|known| known == name)
    }

    /// The portals of its targets (design.md#portals).
    ///
    /// # Errors
    /// No portal is configured, and the NAS's name cannot be resolved to a usable address.
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

    /// The LUN with this key. `None`: DSM reports no such LUN, which alone is no proof (design.md#unknown-is-not-absent).
    ///
    /// # Errors
    /// Any other reply.
    pub async fn lun(&self, uuid: &LunUuid) -> Result<Option<Lun>, DsmError> {
        // `get` takes names too: a LUN whose name is this uuid is another one.
        Ok(self
            .lun_by_name(uuid.as_str())
            .await?
            .filter(|lun| lun.uuid == uuid.as_str()))
    }

    /// The LUN with this name or key. `None`: DSM reports no such LUN, which alone is no proof.
    ///
    /// # Errors
    /// Any other reply.
    pub async fn lun_by_name(&self, name: &str) -> Result<Option<Lun>, DsmError> {
        match self.client.call::<LunAnswer>(&lun::get(name)).await {
            Ok(answer) => Ok(Some(self.note_lun(answer.lun))),
            Err(error) if error.code().is_some_and(super::Code::no_lun) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The LUN with this key, as [`Nas::lun`] returns it, and all targets of the NAS, in one request. All targets, because those
    /// that were never mapped are not in the list for a LUN.
    ///
    /// # Errors
    /// Any other reply.
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
                let found = Some((self.note_lun(found.lun), targets));
                Ok(found.filter(|(lun, _)| lun.uuid == uuid.as_str()))
            }
            Err(error) if error.code().is_some_and(super::Code::no_lun) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Remembers the volume of a LUN, and logs an unknown status once.
    pub(super) fn note_lun(&self, lun: Lun) -> Lun {
        self.lun_locations.remember(&lun);
        if !lun.has_known_status() && self.logged.is_first(&lun.status) {
            tracing::info!(nas = %self.name, lun = lun.uuid, status = lun.status, "unknown status of a LUN: ignored");
        }
        lun
    }

    /// Grows a LUN. The caller must read its size back.
    ///
    /// # Errors
    /// [`DsmError`].
    pub async fn grow_lun(&self, uuid: &LunUuid, size: Bytes) -> Result<(), DsmError> {
        self.client
            .call::<NoData>(&lun::set_size(uuid, size))
            .await
            .map(drop)
    }

    /// Starts the deletion of a LUN, which DSM carries out asynchronously.
    ///
    /// # Errors
    /// [`DsmError`].
    pub async fn delete_lun(&self, uuid: &LunUuid) -> Result<(), DsmError> {
        self.client
            .call::<NoData>(&lun::delete(uuid))
            .await
            .map(drop)
    }

    /// Polls a LUN until `done` accepts it, for at most a minute; returns its last state.
    ///
    /// # Errors
    /// [`DsmError`] of the first poll that fails.
    pub async fn lun_until(
        &self,
        uuid: &LunUuid,
        done: impl Fn(Option<&Lun>) -> bool,
    ) -> Result<Option<Lun>, DsmError> {
        let deadline = Instant::now() + LUN_READY_TIMEOUT;
        let mut pause = MIN_POLL_INTERVAL;
        loop {
            let seen = self.lun(uuid).await?;
            if done(seen.as_ref()) || Instant::now() + pause > deadline {
                return Ok(seen);
            }
            sleep(pause).await;
            pause = (pause * 2).min(MAX_POLL_INTERVAL);
        }
    }

    /// The targets that export `uuid`.
    ///
    /// # Errors
    /// [`DsmError`], also for an unreadable row that may concern the LUN.
    pub async fn targets_of(&self, uuid: &LunUuid) -> Result<Vec<Target>, DsmError> {
        let answer: TargetsAnswer = self.client.call(&target::list_of(uuid)).await?;
        self.targets_about(uuid, answer.targets)
    }

    /// Every readable target of the NAS: the reply grows with their number.
    ///
    /// # Errors
    /// [`DsmError`], also for an unreadable row that may concern `lun`.
    pub async fn targets(&self, lun: &LunUuid) -> Result<Vec<Target>, DsmError> {
        let answer: TargetsAnswer = self.client.call(&target::list()).await?;
        self.targets_about(lun, answer.targets)
    }

    /// Creates a target, and returns all targets.
    ///
    /// # Errors
    /// [`DsmError`]; the target may exist all the same.
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

    /// Sets the CHAP credentials of a target; `None`: no CHAP.
    ///
    /// # Errors
    /// See [`Nas::write_target`].
    pub async fn set_auth(
        &self,
        lun: &LunUuid,
        target: &Target,
        chap: Option<&Chap>,
    ) -> Result<TargetWrite, DsmError> {
        self.write_target(lun, target, target::set_auth(target.target_id, chap))
            .await
    }

    /// Maps a LUN to a target.
    ///
    /// # Errors
    /// See [`Nas::write_target`].
    pub async fn map_target(
        &self,
        uuid: &LunUuid,
        target: &Target,
    ) -> Result<TargetWrite, DsmError> {
        self.write_target(uuid, target, lun::map_target(uuid, target.target_id))
            .await
    }

    /// Unmaps a LUN from a target.
    ///
    /// # Errors
    /// See [`Nas::write_target`].
    pub async fn unmap_target(
        &self,
        uuid: &LunUuid,
        target: &Target,
    ) -> Result<TargetWrite, DsmError> {
        self.write_target(uuid, target, lun::unmap_target(uuid, target.target_id))
            .await
    }

    /// Renames a target.
    ///
    /// # Errors
    /// See [`Nas::write_target`].
    pub async fn rename_target(
        &self,
        lun: &LunUuid,
        target: &Target,
        name: &str,
    ) -> Result<TargetWrite, DsmError> {
        self.write_target(lun, target, target::rename(target.target_id, name))
            .await
    }

    /// Deletes a target. `lun` is unmapped from it first: what `delete` does to a live session is not known, and an unmapped LUN
    /// takes no more writes.
    ///
    /// # Errors
    /// See [`Nas::write_target`].
    pub async fn delete_target(
        &self,
        lun: &LunUuid,
        target: &Target,
    ) -> Result<TargetWrite, DsmError> {
        let delete = target::delete(target.target_id);
        if target.mapping_of(lun).is_none() {
            return self.write_target(lun, target, delete).await;
        }
        let unmap = lun::unmap_target(lun, target.target_id);
        let both = [unmap, delete.clone()];
        match self.write_target_in_order(lun, target, &both).await {
            // It was unmapped meanwhile, or DSM does not unmap a LUN from a target in use.
            Err(DsmError::Refused {
                method: lun::UNMAP, ..
            }) => self.write_target(lun, target, delete).await,
            outcome => outcome,
        }
    }

    /// Changes a target, a publication of `lun`, that was read in an earlier request. DSM reuses the numbers of deleted targets,
    /// so the request looks up the target by its name before the change by number, and stops if it is gone.
    ///
    /// # Errors
    /// [`DsmError`]; unless DSM refused it, the change may have been carried out.
    async fn write_target(
        &self,
        lun: &LunUuid,
        target: &Target,
        write: Call,
    ) -> Result<TargetWrite, DsmError> {
        self.write_target_in_order(lun, target, &[write]).await
    }

    async fn write_target_in_order(
        &self,
        lun: &LunUuid,
        target: &Target,
        writes: &[Call],
    ) -> Result<TargetWrite, DsmError> {
        // On a NAS that continues after a failed call, the guard has to be a separate request before the change.
        if self.continues_after_error.load(Ordering::Relaxed)
            && let Some(all) = self.list_if_absent(lun, target).await?
        {
            return Ok(TargetWrite::NotFound(all));
        }
        let calls = target::guarded(target, true, writes);
        let mut results = self.client.call_sequence(&calls).await?;
        let refusal = match results.take::<TargetAnswer>() {
            Some(Ok(_)) => return self.write_outcome(lun, target, writes, results).await,
            Some(Err(refusal)) if refusal.code().is_some_and(super::Code::no_target) => refusal,
            Some(Err(error)) => return Err(error),
            None => return Err(target::no_result(&calls[0])),
        };
        if !results.is_empty() {
            self.continues_after_error.store(true, Ordering::Relaxed);
            tracing::warn!(nas = %self.name, %refusal, "DSM continues a compound request after a call that fails");
            return self.write_outcome(lun, target, writes, results).await;
        }
        if let Some(all) = self.list_if_absent(lun, target).await? {
            return Ok(TargetWrite::NotFound(all));
        }
        // It exists, but `get` does not find it by its name: that DSM accepts names there is known only from other clients.
        let calls = target::guarded(target, false, writes);
        let results = self.client.call_sequence(&calls).await?;
        self.write_outcome(lun, target, writes, results).await
    }

    /// All targets, if this one is no longer among them under its name.
    async fn list_if_absent(
        &self,
        lun: &LunUuid,
        target: &Target,
    ) -> Result<Option<Vec<Target>>, DsmError> {
        let all = self.targets(lun).await?;
        let is_it = |row: &Target| row.is(target) && row.name == target.name;
        Ok((!all.iter().any(is_it)).then_some(all))
    }

    /// The outcome of the writes, and which target they affected, from the results of `get` by number, the writes, `list`.
    async fn write_outcome(
        &self,
        lun: &LunUuid,
        target: &Target,
        writes: &[Call],
        mut results: Results,
    ) -> Result<TargetWrite, DsmError> {
        let holder = match results.take::<TargetAnswer>() {
            None => return Err(target::no_result(&target::list())),
            Some(holder) => holder.map(|answer| answer.target),
        };
        let mut done = Ok(());
        let mut any_done = false;
        for write in writes {
            match (results.take::<NoData>(), &done) {
                (Some(Ok(NoData)), _) => any_done = true,
                (Some(Err(refusal)), Ok(())) => done = Err(refusal),
                // DSM stopped: there is no target with this number.
                (None, Ok(())) => {
                    let code = holder.as_ref().err().and_then(DsmError::code);
                    let refused = code.map(|code| write.refused(code));
                    done = Err(refused.unwrap_or_else(|| target::no_result(write)));
                }
                (None | Some(Err(_)), Err(_)) => {}
            }
        }
        let is_own = |row: &Target| row.is(target);
        if any_done && !holder.as_ref().is_ok_and(is_own) {
            let all = self.final_list(lun, &mut results).await?;
            return Ok(TargetWrite::WrongTarget {
                holder: holder.ok(),
                all,
            });
        }
        match done {
            Ok(()) => Ok(TargetWrite::Done(self.final_list(lun, &mut results).await?)),
            Err(refusal) if refusal.code().is_some_and(super::Code::no_target) => Ok(
                TargetWrite::NotFound(self.final_list(lun, &mut results).await?),
            ),
            Err(refusal) => Err(refusal),
        }
    }

    /// The list at the end of a sequence; requested separately if it is missing.
    async fn final_list(
        &self,
        lun: &LunUuid,
        results: &mut Results,
    ) -> Result<Vec<Target>, DsmError> {
        match results.take::<TargetsAnswer>() {
            Some(Ok(all)) => self.targets_about(lun, all.targets),
            None | Some(Err(_)) => self.targets(lun).await,
        }
    }

    /// All readable volumes of the NAS.
    ///
    /// # Errors
    /// [`DsmError`].
    pub async fn locations(&self) -> Result<Vec<Location>, DsmError> {
        let answer: LocationsAnswer = self.client.call(&location::list()).await?;
        let volumes = answer.volumes;
        self.report(&volumes);
        for Location { path, status, .. } in volumes
            .readable
            .iter()
            .filter(|volume| !volume.has_known_status())
        {
            if self.logged.is_first(status) {
                tracing::info!(nas = %self.name, volume = path, status, "unknown status of a volume: ignored");
            }
        }
        Ok(volumes.readable)
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
