//! `ListVolumes` page by page (design.md#listvolumes): what one look at the NASes has shown serves all pages that are asked for soon afterwards.
//!
//! A token stays a position, so it never becomes invalid: a page whose look has been forgotten takes another one. Whichever looks the pages
//! of a walk come from, none is older than the walk's first page, and every volume has one place in the order: one that was there all the
//! time is listed once under each of its names.

use std::cmp::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use proto::csi;
use proto::csi::list_volumes_response::Entry;
use tokio::time::{Instant, sleep_until};

use crate::request::Page;
use crate::volume::{LunUuid, NasName};

/// How long a look is kept after it was last used: a CO asks for the next page at once.
const IDLE_LIMIT: Duration = Duration::from_secs(10);
/// And how long at most: what is told of a volume is not older.
const MAX_AGE: Duration = Duration::from_secs(60);

/// A volume as it is listed: its uuid, the name of its NAS, and what is said of it.
pub(super) type Listed = (LunUuid, NasName, Entry);

/// The volumes of a NAS in the order of all lists.
pub(super) type Volumes = Arc<[Listed]>;

/// Puts volumes in order.
pub(super) fn in_order(mut volumes: Vec<Listed>) -> Volumes {
    volumes.sort_unstable_by(|a, b| position(a).cmp(&position(b)));
    volumes.into()
}

fn position((uuid, name, _): &Listed) -> (&LunUuid, &NasName) {
    (uuid, name)
}

/// A volume stands after this token: a uuid, with all its names or up to one of them.
fn is_after(volume: &Listed, (after, under): &(LunUuid, Option<NasName>)) -> bool {
    let (uuid, name, _) = volume;
    match uuid.cmp(after) {
        Ordering::Less => false,
        Ordering::Equal => under.as_ref().is_some_and(|under| name > under),
        Ordering::Greater => true,
    }
}

/// One page of the lists of several NASes, each of which is in order. Nothing but the page is copied.
pub(super) fn page(lists: &[Volumes], page: &Page) -> csi::ListVolumesResponse {
    let mut rest: Vec<&[Listed]> = lists
        .iter()
        .map(|list| {
            let shown = page.after.as_ref().map_or(0, |token| {
                list.partition_point(|volume| !is_after(volume, token))
            });
            &list[shown..]
        })
        .collect();
    let mut entries = Vec::new();
    let (mut last, mut following) = (None, first_of(&mut rest));
    while let Some(volume) = following
        && page.size.is_none_or(|size| entries.len() < size)
    {
        entries.push(volume.2.clone());
        last = Some(volume);
        following = first_of(&mut rest);
    }
    let next_token = match (last, following) {
        (Some((uuid, name, _)), Some((next, _, _))) if uuid == next => format!("{uuid}/{name}"),
        (Some((uuid, _, _)), Some(_)) => uuid.to_string(),
        (None, _) | (_, None) => String::new(),
    };
    csi::ListVolumesResponse {
        entries,
        next_token,
    }
}

/// Takes the first of what is left.
fn first_of<'a>(rest: &mut [&'a [Listed]]) -> Option<&'a Listed> {
    let heads = rest.iter_mut().filter(|list| !list.is_empty());
    let list = heads.min_by(|a, b| position(&a[0]).cmp(&position(&b[0])))?;
    let (first, others) = list.split_first()?;
    *list = others;
    Some(first)
}

/// The newest look at the NASes that more pages may be asked of: one at the most, whoever lists.
#[derive(Debug, Default)]
pub(super) struct Snapshot(Arc<Mutex<Snapshots>>);

#[derive(Debug, Default)]
struct Snapshots {
    kept: Option<Kept>,
    /// When the NASes were asked for the newest that was ever kept.
    newest: Option<Instant>,
}

#[derive(Debug)]
struct Kept {
    /// When the NASes were asked.
    asked: Instant,
    used: Instant,
    lists: Vec<Volumes>,
}

impl Kept {
    fn until(&self) -> Instant {
        (self.used + IDLE_LIMIT).min(self.asked + MAX_AGE)
    }
}

fn lock(looks: &Mutex<Snapshots>) -> MutexGuard<'_, Snapshots> {
    looks.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Snapshot {
    /// The lists of the last look, if it is not too old.
    pub(super) fn lists(&self) -> Option<Vec<Volumes>> {
        let mut looks = lock(&self.0);
        let kept = looks.kept.as_mut()?;
        let now = Instant::now();
        (now < kept.until()).then(|| {
            kept.used = now;
            kept.lists.clone()
        })
    }

    /// Keeps what the NASes, asked at `asked`, have shown. Of two looks the one that began later is kept, even when it is forgotten by now:
    /// the other may lack what was made before the walk of the later one began.
    pub(super) fn keep(&self, asked: Instant, lists: &[Volumes]) {
        let mut looks = lock(&self.0);
        if looks.newest.is_some_and(|newest| newest > asked) {
            return;
        }
        looks.newest = Some(asked);
        let fresh = Kept {
            asked,
            used: Instant::now(),
            lists: lists.to_vec(),
        };
        if looks.kept.replace(fresh).is_none() {
            tokio::spawn(forget(Arc::downgrade(&self.0)));
        }
    }
}

/// Frees a look when its time is over, whether anybody calls or not.
async fn forget(looks: Weak<Mutex<Snapshots>>) {
    while let Some(until) = looks.upgrade().and_then(|looks| until_forgotten(&looks)) {
        sleep_until(until).await;
    }
}

/// When the look is to be forgotten. `None`: now, and that is done.
fn until_forgotten(looks: &Mutex<Snapshots>) -> Option<Instant> {
    let mut looks = lock(looks);
    let until = looks.kept.as_ref().map(Kept::until);
    let until = until.filter(|until| *until > Instant::now());
    if until.is_none() {
        looks.kept = None;
    }
    until
}

#[cfg(test)]
mod tests;
