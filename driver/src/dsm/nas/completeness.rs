//! Whether a list of LUNs or targets is complete (design.md#unknown-is-not-absent). A NAS that has just started answers before it
//! has loaded its LUNs and targets, and LUNs of a volume that has crashed or is locked are not listed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::Nas;
use crate::dsm::location::{self, LocationsAnswer};
use crate::dsm::lun::{self, Lun, LunsAnswer};
use crate::dsm::reply::DsmError;
use crate::dsm::rows::{Rows, UnreadableRow};
use crate::dsm::system::{self, SystemAnswer};
use crate::dsm::target::{self, Target};
use crate::volume::LunUuid;

/// How long a NAS may take to load its LUNs and targets after it has started.
const LOAD_TIME: Duration = Duration::from_secs(15 * 60);
/// If the NAS does not report its uptime, two lists are compared that are at least [`MIN_INTERVAL`] and at most [`MAX_INTERVAL`]
/// apart.
const MIN_INTERVAL: Duration = Duration::from_secs(60);
const MAX_INTERVAL: Duration = Duration::from_secs(15 * 60);

/// What this process has seen of a NAS that does not report its uptime.
#[derive(Debug, Default)]
pub struct ListHistory {
    /// Paths of volumes, and since when they are missing.
    volumes: BTreeMap<String, Option<Instant>>,
    /// The last list of each kind, and its time.
    lists: BTreeMap<&'static str, (Instant, BTreeSet<String>)>,
    /// How many sessions the NAS had lost when the lists were read.
    lost: u64,
}

impl ListHistory {
    /// Discards lists from before the NAS lost a session: a restart loses sessions, and an incomplete list after it may equal an
    /// incomplete list after the previous restart.
    fn sessions_lost(&mut self, lost: u64) {
        if std::mem::replace(&mut self.lost, lost) != lost {
            self.lists.clear();
        }
    }

    /// Why `list` of `what` may be incomplete. It is complete if it was the same a minute ago and no known volume is missing. A
    /// volume that is missing for longer than any NAS takes to load was unplugged or removed, and no longer counts.
    fn why_incomplete(
        &mut self,
        what: &'static str,
        now: Instant,
        list: BTreeSet<String>,
        volumes: BTreeSet<String>,
    ) -> Option<String> {
        if let Some((volume, left)) = self.missing(now, volumes) {
            self.lists.remove(what);
            return Some(format!(
                "volume {volume}, which was there before, is missing: if it was removed, that counts no more in {} s",
                left.as_secs().max(1)
            ));
        }
        let wait = |left: Duration| {
            Some(format!(
                "its list of {what} is compared with another one in {} s",
                left.as_secs().max(1)
            ))
        };
        match self.lists.get(what) {
            Some((at, before)) if *before == list && now - *at <= MAX_INTERVAL => MIN_INTERVAL
                .checked_sub(now - *at)
                .filter(|left| !left.is_zero())
                .and_then(wait),
            Some(_) | None => {
                self.lists.insert(what, (now, list));
                wait(MIN_INTERVAL)
            }
        }
    }

    /// A known volume that is not among `volumes`, and how long that still counts.
    fn missing(&mut self, now: Instant, volumes: BTreeSet<String>) -> Option<(String, Duration)> {
        for (volume, since) in &mut self.volumes {
            if !volumes.contains(volume) {
                since.get_or_insert(now);
            }
        }
        let present = volumes.into_iter().map(|volume| (volume, None));
        self.volumes.extend(present);
        let left = |since: Instant| LOAD_TIME.saturating_sub(now - since);
        self.volumes
            .retain(|_, since| since.is_none_or(|since| !left(since).is_zero()));
        let missing =
            |(volume, since): (&String, &Option<Instant>)| Some((volume.clone(), left((*since)?)));
        self.volumes.iter().find_map(missing)
    }
}

/// What a NAS lists.
#[derive(Debug)]
pub struct Listing {
    /// The LUNs whose rows can be read.
    pub luns: Vec<Lun>,
    /// All targets.
    pub targets: Vec<Target>,
    /// Why LUNs may be missing from it. `None`: it is complete.
    pub incomplete: Option<String>,
}

impl Nas {
    /// Confirms that a LUN that `get` does not find does not exist: the full list lacks it, no volume is in a state that hides
    /// LUNs, and the NAS has been up for long enough to have loaded all of them (design.md#unknown-is-not-absent). `Some`: why it
    /// may exist all the same. If this process has seen the LUN `uuid` before, only the state of its own volume counts.
    ///
    /// # Errors
    /// [`DsmError`]: nothing is confirmed. An unreadable row that `could_be` the LUN is such an error.
    pub async fn why_maybe_present(
        &self,
        uuid: Option<&LunUuid>,
        is_it: impl Fn(&Lun) -> bool,
        could_be: impl Fn(&UnreadableRow) -> bool,
    ) -> Result<Option<String>, DsmError> {
        let location = uuid.and_then(|uuid| self.lun_locations.of(uuid));
        let queried = Instant::now();
        // In this order: a volume that comes up in between would be too late for the list of LUNs, but not for the check of
        // volumes.
        let (volumes, luns) = self
            .client
            .call_both::<LocationsAnswer, LunsAnswer>(&location::list(), &lun::list())
            .await?;
        if let Some(doubt) = location::hides_luns(&volumes.volumes, location.as_deref()) {
            return Ok(Some(doubt));
        }
        let luns = self.complete_luns(luns.luns, could_be)?;
        if let Some(lun) = luns.iter().find(|lun| is_it(lun)) {
            return Ok(Some(format!(
                "get denies LUN {} ({}), but list shows it",
                lun.name, lun.uuid
            )));
        }
        let uuids = luns.into_iter().map(|lun| lun.uuid).collect();
        self.why_list_incomplete("LUNs", queried, uuids).await
    }

    /// Every readable LUN of the NAS, and every target.
    ///
    /// # Errors
    /// [`DsmError`]: nothing is known. An unreadable LUN row that `could_be` of interest is such an error, and an unreadable
    /// target row that could be a publication of this driver.
    pub async fn all_luns(
        &self,
        could_be: impl Fn(&UnreadableRow) -> bool,
    ) -> Result<Listing, DsmError> {
        let queried = Instant::now();
        let (luns, targets) = self
            .client
            .call_both::<LunsAnswer, target::TargetsAnswer>(&lun::list(), &target::list())
            .await?;
        let luns = self.complete_luns(luns.luns, could_be)?;
        let targets = self.complete_targets(targets.targets, target::may_be_ours)?;
        let uuids = luns.iter().map(|lun| lun.uuid.clone()).collect();
        let incomplete = self.why_list_incomplete("LUNs", queried, uuids).await?;
        Ok(Listing {
            luns,
            targets,
            incomplete,
        })
    }

    /// Why `targets`, which were queried at `queried`, may be incomplete. The states of volumes do not matter: targets are stored
    /// in the NAS's own configuration.
    ///
    /// # Errors
    /// [`DsmError`]: nothing is known.
    pub async fn why_targets_incomplete(
        &self,
        queried: Instant,
        targets: &[Target],
    ) -> Result<Option<String>, DsmError> {
        let names = targets.iter().map(|target| target.iqn.clone()).collect();
        self.why_list_incomplete("targets", queried, names).await
    }

    /// The uptime of the NAS. `None`: it does not report it.
    ///
    /// # Errors
    /// [`DsmError`], except [`DsmError::Refused`].
    pub async fn up_time(&self) -> Result<Option<Duration>, DsmError> {
        match self.client.call::<SystemAnswer>(&system::info()).await {
            Ok(answer) => Ok(answer.up_time()),
            Err(DsmError::Refused { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Why a list that was queried at `queried` may be incomplete.
    async fn why_list_incomplete(
        &self,
        what: &'static str,
        queried: Instant,
        list: BTreeSet<String>,
    ) -> Result<Option<String>, DsmError> {
        let sessions_lost = self.client.lost_sessions().await;
        if let Some(up) = self.up_time().await? {
            return Ok(why_still_loading(up.saturating_sub(queried.elapsed())));
        }
        let volumes = self.locations().await?.into_iter();
        let volumes = volumes.map(|volume| volume.path).collect();
        let mut history = self.history.lock();
        history.sessions_lost(sessions_lost);
        let doubt = history.why_incomplete(what, Instant::now(), list, volumes);
        Ok(doubt.map(|doubt| {
            format!(
                "the NAS may just have started, and SYNO.Core.System info does not report its uptime, so {doubt}"
            )
        }))
    }

    /// The LUNs of a list, if no unreadable row `could_be` of interest.
    pub(super) fn complete_luns(
        &self,
        luns: Rows<Lun>,
        could_be: impl Fn(&UnreadableRow) -> bool,
    ) -> Result<Vec<Lun>, DsmError> {
        self.report(&luns);
        luns.complete(&lun::list(), could_be)
    }

    /// The targets of a list, if no unreadable row concerns this LUN.
    pub(in crate::dsm) fn targets_about(
        &self,
        lun: &LunUuid,
        targets: Rows<Target>,
    ) -> Result<Vec<Target>, DsmError> {
        self.complete_targets(targets, |row| target::may_concern(row, lun))
    }

    fn complete_targets(
        &self,
        targets: Rows<Target>,
        could_be: impl Fn(&UnreadableRow) -> bool,
    ) -> Result<Vec<Target>, DsmError> {
        self.report(&targets);
        targets.complete(&target::list(), could_be)
    }

    /// Logs each unreadable row, once.
    pub(super) fn report<T>(&self, rows: &Rows<T>) {
        for row in &rows.unreadable {
            let seen = row.seen();
            if self.logged.is_first(&seen) {
                tracing::warn!(nas = %self.name, seen, "unreadable row in a list of DSM: it is ignored unless it could be ours");
            }
        }
    }
}

/// Why a NAS that has been `up` for this time may not have loaded all LUNs and targets.
fn why_still_loading(up: Duration) -> Option<String> {
    (up < LOAD_TIME).then(|| {
        format!(
            "the NAS has been up for only {} s and may still be loading: wait until it has been up for {} minutes",
            up.as_secs(),
            LOAD_TIME.as_secs() / 60
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nas_that_has_just_started_proves_nothing() {
        for (up, whole) in [(0, false), (899, false), (900, true), (360_000, true)] {
            assert_eq!(
                why_still_loading(Duration::from_secs(up)).is_none(),
                whole,
                "{up}"
            );
        }
    }

    fn set(words: &[&str]) -> BTreeSet<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn two_equal_lists_a_minute_apart_are_complete() {
        let mut history = ListHistory::default();
        let start = Instant::now();
        let mut check = |seconds: u64, list: &[&str], volumes: &[&str]| {
            let now = start + Duration::from_secs(seconds);
            history
                .why_incomplete("LUNs", now, set(list), set(volumes))
                .is_none()
        };
        let volumes = &["/volume1", "/volume2"];
        assert!(!check(0, &["a"], volumes), "one list proves nothing");
        assert!(!check(59, &["a"], volumes));
        assert!(check(60, &["a"], volumes));
        assert!(!check(70, &["a", "b"], volumes), "it is still growing");
        assert!(check(130, &["a", "b"], volumes));
        assert!(
            !check(140, &["a", "b"], &["/volume1"]),
            "a volume is missing"
        );
        assert!(
            !check(150, &["a", "b"], volumes),
            "and the interval restarts"
        );
        assert!(check(210, &["a", "b"], volumes));
        assert!(!check(2000, &["a", "b"], volumes), "too long ago");
    }

    #[test]
    fn an_unplugged_volume_counts_as_missing_for_the_load_time() {
        let mut history = ListHistory::default();
        let start = Instant::now();
        let mut check = |seconds: u64, volumes: &[&str]| {
            let now = start + Duration::from_secs(seconds);
            let doubt = history.why_incomplete("LUNs", now, set(&["a"]), set(volumes));
            doubt.unwrap_or_default()
        };
        let (both, one): (&[&str], &[&str]) = (&["/volume1", "/volumeUSB1"], &["/volume1"]);
        assert!(check(0, both).contains("compared"));
        assert!(check(60, both).is_empty());
        for at in [70, 500, 969] {
            let doubt = check(at, one);
            let named = doubt.contains("/volumeUSB1") && doubt.contains("removed");
            assert!(named, "{at}: {doubt}");
        }
        assert!(
            check(970, one).contains("compared"),
            "and the interval restarts"
        );
        assert!(check(1030, one).is_empty());
        // It is plugged in again, and unplugged again.
        assert!(check(1040, both).is_empty());
        assert!(check(1050, one).contains("/volumeUSB1"));
    }

    #[test]
    fn a_list_from_before_a_lost_session_is_not_compared() {
        let start = Instant::now();
        let mut history = ListHistory::default();
        let mut complete = |lost: u64, seconds: u64| {
            history.sessions_lost(lost);
            let now = start + Duration::from_secs(seconds);
            let list = BTreeSet::from(["a".to_owned()]);
            let volumes = BTreeSet::from(["/volume1".to_owned()]);
            history.why_incomplete("LUNs", now, list, volumes).is_none()
        };
        assert_eq!(
            [(0, 0), (0, 60), (1, 61), (1, 120), (1, 121)].map(|(of, at)| complete(of, at)),
            [false, true, false, false, true]
        );
    }
}
