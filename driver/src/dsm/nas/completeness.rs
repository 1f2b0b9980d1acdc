//! Whether a list of a NAS is all that the NAS has (design.md#unknown-is-not-absent). A NAS that has just started answers before it has loaded its
//! LUNs and targets, and LUNs of a volume that has crashed or is locked are on no list.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;
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

/// How long after its start a NAS may still be loading its LUNs and targets.
const LOADING: Duration = Duration::from_secs(15 * 60);
/// How far apart two lists have to be that are compared where the NAS does not tell how long it has been up; and how far at most.
const MIN_INTERVAL: Duration = Duration::from_secs(60);
const MAX_INTERVAL: Duration = Duration::from_secs(15 * 60);

/// What this process has seen of a NAS that does not tell how long it has been up.
#[derive(Debug, Default)]
pub struct ListHistory {
    /// And since when they are missing.
    volumes: BTreeMap<String, Option<Instant>>,
    lists: BTreeMap<&'static str, (Instant, BTreeSet<String>)>,
    /// How many sessions the NAS had lost when the lists were told.
    lost: u64,
}

impl ListHistory {
    /// Lists from before the NAS lost a session are forgotten: it loses them when it starts anew, and what it has not loaded yet may be
    /// the same as after the start before.
    fn sessions_lost(&mut self, lost: u64) {
        if std::mem::replace(&mut self.lost, lost) != lost {
            self.lists.clear();
        }
    }

    /// What stands against `list` of `what` being whole: it is, when it was the same a minute ago and no volume is missing that was
    /// there before. One that stays away for longer than any NAS loads was unplugged or removed: it says nothing of a start any more.
    fn doubt(
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

    /// A volume that is not among `volumes` and was before, and how long that still counts.
    fn missing(&mut self, now: Instant, volumes: BTreeSet<String>) -> Option<(String, Duration)> {
        for (volume, since) in &mut self.volumes {
            if !volumes.contains(volume) {
                since.get_or_insert(now);
            }
        }
        let there = volumes.into_iter().map(|volume| (volume, None));
        self.volumes.extend(there);
        let left = |since: Instant| LOADING.saturating_sub(now - since);
        self.volumes
            .retain(|_, since| since.is_none_or(|since| !left(since).is_zero()));
        let missing =
            |(volume, since): (&String, &Option<Instant>)| Some((volume.clone(), left((*since)?)));
        self.volumes.iter().find_map(missing)
    }
}

impl Nas {
    /// Proves that no LUN of the NAS is the one that `get` denies: the full list lacks it, no volume is in a state that hides LUNs, and
    /// the NAS has been up for long enough to have loaded all of them (design.md#unknown-is-not-absent). `Some` says what stands against it. Of the LUN
    /// of this `uuid` it is known where it lay, if this process has seen it: then no other volume hides it.
    ///
    /// # Errors
    /// [`DsmError`]: nothing is proven. A row that cannot be read and `could_be` the LUN is such an error.
    pub async fn why_maybe_present(
        &self,
        uuid: Option<&LunUuid>,
        is_it: impl Fn(&Lun) -> bool,
        could_be: impl Fn(&UnreadableRow) -> bool,
    ) -> Result<Option<String>, DsmError> {
        let place = uuid.and_then(|uuid| self.places.of(uuid));
        let asked = Instant::now();
        // In this order: a volume that comes up between the two would be too late for the list and in time for the proof.
        let (volumes, luns) = self
            .client
            .call_both::<LocationsAnswer, LunsAnswer>(&location::list(), &lun::list())
            .await?;
        if let Some(doubt) = location::hides_luns(&volumes.volumes, place.as_deref()) {
            return Ok(Some(doubt));
        }
        let luns = self.luns_unless(luns.luns, could_be)?;
        if let Some(lun) = luns.iter().find(|lun| is_it(lun)) {
            return Ok(Some(format!(
                "get denies LUN {} ({}), but list shows it",
                lun.name, lun.uuid
            )));
        }
        let uuids = luns.into_iter().map(|lun| lun.uuid).collect();
        self.why_list_incomplete("LUNs", asked, uuids).await
    }

    /// Every LUN of the NAS that can be read, and what stands against there being others; every target.
    ///
    /// # Errors
    /// [`DsmError`]: nothing is known. A LUN's row that cannot be read and `could_be` one that is asked for is such an error, and a
    /// target's that could be a publication of this driver's.
    pub async fn all_luns(
        &self,
        could_be: impl Fn(&UnreadableRow) -> bool,
    ) -> Result<(Vec<Lun>, Vec<Target>, Option<String>), DsmError> {
        let asked = Instant::now();
        let (luns, targets) = self
            .client
            .call_both::<LunsAnswer, target::TargetsAnswer>(&lun::list(), &target::list())
            .await?;
        let luns = self.luns_unless(luns.luns, could_be)?;
        let targets = self.targets_unless(targets.targets, target::may_be_ours)?;
        let uuids = luns.iter().map(|lun| lun.uuid.clone()).collect();
        let doubt = self.why_list_incomplete("LUNs", asked, uuids).await?;
        Ok((luns, targets, doubt))
    }

    /// What stands against `targets`, which were asked for at `asked`, being all that the NAS has. No volume's state is a doubt: targets
    /// stand in the NAS's own configuration.
    ///
    /// # Errors
    /// [`DsmError`]: nothing is known.
    pub async fn why_targets_incomplete(
        &self,
        asked: Instant,
        targets: &[Target],
    ) -> Result<Option<String>, DsmError> {
        let names = targets.iter().map(|target| target.iqn.clone()).collect();
        self.why_list_incomplete("targets", asked, names).await
    }

    /// How long the NAS has been up. `None`: it does not tell.
    ///
    /// # Errors
    /// [`DsmError`] of another kind than a refusal.
    pub async fn up_time(&self) -> Result<Option<Duration>, DsmError> {
        match self.client.call::<SystemAnswer>(&system::info()).await {
            Ok(answer) => Ok(answer.up_time()),
            Err(DsmError::Refused { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What stands against a list that was asked for at `asked` being whole.
    async fn why_list_incomplete(
        &self,
        what: &'static str,
        asked: Instant,
        list: BTreeSet<String>,
    ) -> Result<Option<String>, DsmError> {
        let sessions_lost = self.client.lost_sessions().await;
        if let Some(up) = self.up_time().await? {
            return Ok(starting(up.saturating_sub(asked.elapsed())));
        }
        let volumes = self.locations().await?.into_iter();
        let volumes = volumes.map(|volume| volume.path).collect();
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.sessions_lost(sessions_lost);
        let doubt = memory.doubt(what, Instant::now(), list, volumes);
        Ok(doubt.map(|doubt| {
            format!(
                "the NAS may just have started, and SYNO.Core.System info does not tell, so {doubt}"
            )
        }))
    }

    /// The LUNs of a list, if no row that cannot be read `could_be` what is looked for.
    pub(super) fn luns_unless(
        &self,
        luns: Rows<Lun>,
        could_be: impl Fn(&UnreadableRow) -> bool,
    ) -> Result<Vec<Lun>, DsmError> {
        self.report(&luns);
        luns.unless(&lun::list(), could_be)
    }

    /// The targets of a list, if no row that cannot be read concerns this LUN.
    pub(in crate::dsm) fn targets_about(
        &self,
        lun: &LunUuid,
        targets: Rows<Target>,
    ) -> Result<Vec<Target>, DsmError> {
        self.targets_unless(targets, |row| target::may_concern(row, lun))
    }

    fn targets_unless(
        &self,
        targets: Rows<Target>,
        could_be: impl Fn(&UnreadableRow) -> bool,
    ) -> Result<Vec<Target>, DsmError> {
        self.report(&targets);
        targets.unless(&target::list(), could_be)
    }

    /// Says once of each row that it is passed over.
    pub(super) fn report<T>(&self, rows: &Rows<T>) {
        for row in &rows.unfit {
            let seen = row.seen();
            if self.told.first(&seen) {
                tracing::warn!(nas = %self.name, seen, "a row of a list is not as expected; it is passed over where it cannot be ours");
            }
        }
    }
}

/// What stands against a NAS's having loaded everything that has been `up` for so long.
fn starting(up: Duration) -> Option<String> {
    (up < LOADING).then(|| {
        format!(
            "the NAS has been up for {} s only and may still be loading: wait until it has been up for {} minutes",
            up.as_secs(),
            LOADING.as_secs() / 60
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nas_that_has_just_started_proves_nothing() {
        for (up, whole) in [(0, false), (899, false), (900, true), (360_000, true)] {
            assert_eq!(starting(Duration::from_secs(up)).is_none(), whole, "{up}");
        }
    }

    fn set(words: &[&str]) -> BTreeSet<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn two_equal_lists_a_minute_apart_are_whole() {
        let mut memory = ListHistory::default();
        let start = Instant::now();
        let mut look = |seconds: u64, list: &[&str], volumes: &[&str]| {
            let now = start + Duration::from_secs(seconds);
            memory.doubt("LUNs", now, set(list), set(volumes)).is_none()
        };
        let volumes = &["/volume1", "/volume2"];
        assert!(!look(0, &["a"], volumes), "one look proves nothing");
        assert!(!look(59, &["a"], volumes));
        assert!(look(60, &["a"], volumes));
        assert!(!look(70, &["a", "b"], volumes), "it is still growing");
        assert!(look(130, &["a", "b"], volumes));
        assert!(
            !look(140, &["a", "b"], &["/volume1"]),
            "a volume is missing"
        );
        assert!(
            !look(150, &["a", "b"], volumes),
            "and counts anew afterwards"
        );
        assert!(look(210, &["a", "b"], volumes));
        assert!(!look(2000, &["a", "b"], volumes), "too long ago");
    }

    #[test]
    fn a_volume_that_was_unplugged_is_missed_for_as_long_as_a_nas_loads() {
        let mut memory = ListHistory::default();
        let start = Instant::now();
        let mut look = |seconds: u64, volumes: &[&str]| {
            let now = start + Duration::from_secs(seconds);
            let doubt = memory.doubt("LUNs", now, set(&["a"]), set(volumes));
            doubt.unwrap_or_default()
        };
        let (both, one): (&[&str], &[&str]) = (&["/volume1", "/volumeUSB1"], &["/volume1"]);
        assert!(look(0, both).contains("compared"));
        assert!(look(60, both).is_empty());
        for at in [70, 500, 969] {
            let doubt = look(at, one);
            let told = doubt.contains("/volumeUSB1") && doubt.contains("removed");
            assert!(told, "{at}: {doubt}");
        }
        assert!(look(970, one).contains("compared"), "and counts anew");
        assert!(look(1030, one).is_empty());
        // It is plugged in again, and missed again.
        assert!(look(1040, both).is_empty());
        assert!(look(1050, one).contains("/volumeUSB1"));
    }

    #[test]
    fn a_list_from_before_a_lost_session_is_not_compared() {
        let start = Instant::now();
        let mut memory = ListHistory::default();
        let mut whole = |lost: u64, seconds: u64| {
            memory.sessions_lost(lost);
            let now = start + Duration::from_secs(seconds);
            let list = BTreeSet::from(["a".to_owned()]);
            let volumes = BTreeSet::from(["/volume1".to_owned()]);
            memory.doubt("LUNs", now, list, volumes).is_none()
        };
        assert_eq!(
            [(0, 0), (0, 60), (1, 61), (1, 120), (1, 121)].map(|(of, at)| whole(of, at)),
            [false, true, false, false, true]
        );
    }
}
