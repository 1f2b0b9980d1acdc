//! Pagination of `ListVolumes` (design.md#listvolumes): a snapshot of the volumes of all NASes serves the pages that are
//! requested soon afterwards.
//!
//! A token is a position in the order, so it never becomes invalid: if the snapshot has expired, a new one is taken. Whichever
//! snapshots the pages of a listing come from, none is older than its first page, and every volume has one place in the order: a
//! volume that existed all the time is listed exactly once under each of its names.

use parking_lot::{Mutex, MutexGuard};
use std::cmp::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use proto::csi;
use proto::csi::list_volumes_response::Entry;
use tokio::time::{Instant, sleep_until};

use crate::request::Page;
use crate::volume::{LunUuid, NasName};

/// How long a snapshot is cached after its last use: a CO requests the next page immediately.
const IDLE_LIMIT: Duration = Duration::from_secs(10);
/// The maximum age of a snapshot: no reply is based on older data.
const MAX_AGE: Duration = Duration::from_secs(60);

/// A volume in a listing: its uuid, the name of its NAS, and the CSI entry.
pub(super) type Listed = (LunUuid, NasName, Entry);

/// The volumes of a NAS, sorted by uuid, then by the name of the NAS.
pub(super) type Volumes = Arc<[Listed]>;

/// Sorts volumes.
pub(super) fn sorted(mut volumes: Vec<Listed>) -> Volumes {
    volumes.sort_unstable_by(|a, b| position(a).cmp(&position(b)));
    volumes.into()
}

fn position((uuid, name, _): &Listed) -> (&LunUuid, &NasName) {
    (uuid, name)
}

/// The volume comes after this token: a uuid, with all NAS names or up to one of them.
fn is_after(volume: &Listed, (after, under): &(LunUuid, Option<NasName>)) -> bool {
    let (uuid, name, _) = volume;
    match uuid.cmp(after) {
        Ordering::Less => false,
        Ordering::Equal => under.as_ref().is_some_and(|under| name > under),
        Ordering::Greater => true,
    }
}

/// One page of the merged, sorted lists of several NASes. Only the entries of the page are copied.
pub(super) fn page(lists: &[Volumes], page: &Page) -> csi::ListVolumesResponse {
    let mut rest: Vec<&[Listed]> = lists
        .iter()
        .map(|list| {
            let start = page.after.as_ref().map_or(0, |token| {
                list.partition_point(|volume| !is_after(volume, token))
            });
            &list[start..]
        })
        .collect();
    let mut entries = Vec::new();
    let (mut last, mut following) = (None, pop_first(&mut rest));
    while let Some(volume) = following
        && page.size.is_none_or(|size| entries.len() < size)
    {
        entries.push(volume.2.clone());
        last = Some(volume);
        following = pop_first(&mut rest);
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

/// Removes the smallest volume of the remaining lists.
fn pop_first<'a>(rest: &mut [&'a [Listed]]) -> Option<&'a Listed> {
    let heads = rest.iter_mut().filter(|list| !list.is_empty());
    let list = heads.min_by(|a, b| position(&a[0]).cmp(&position(&b[0])))?;
    let (first, others) = list.split_first()?;
    *list = others;
    Some(first)
}

/// The latest listing of all NASes, for further pages: at most one, shared by all callers.
#[derive(Debug, Default)]
pub(super) struct Snapshot(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    cached: Option<Cached>,
    /// When the newest snapshot that was ever cached was queried.
    newest: Option<Instant>,
}

#[derive(Debug)]
struct Cached {
    /// When the NASes were queried.
    queried: Instant,
    used: Instant,
    lists: Vec<Volumes>,
}

impl Cached {
    fn expires(&self) -> Instant {
        (self.used + IDLE_LIMIT).min(self.queried + MAX_AGE)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock()
}

impl Snapshot {
    /// The lists of the cached snapshot, if it has not expired.
    pub(super) fn lists(&self) -> Option<Vec<Volumes>> {
        let mut state = lock(&self.0);
        let cached = state.cached.as_mut()?;
        let now = Instant::now();
        (now < cached.expires()).then(|| {
            cached.used = now;
            cached.lists.clone()
        })
    }

    /// Caches the lists of NASes, which were queried at `queried`. Never replaces a later snapshot with an earlier one, even if
    /// the later one has expired: the earlier one may lack volumes that were created before the later listing began.
    pub(super) fn store(&self, queried: Instant, lists: &[Volumes]) {
        let mut state = lock(&self.0);
        if state.newest.is_some_and(|newest| newest > queried) {
            return;
        }
        state.newest = Some(queried);
        let fresh = Cached {
            queried,
            used: Instant::now(),
            lists: lists.to_vec(),
        };
        if state.cached.replace(fresh).is_none() {
            tokio::spawn(evict_expired(Arc::downgrade(&self.0)));
        }
    }
}

/// Frees a snapshot when it expires, even without further calls.
async fn evict_expired(state: Weak<Mutex<State>>) {
    while let Some(expiry) = state.upgrade().and_then(|state| evict_or_expiry(&state)) {
        sleep_until(expiry).await;
    }
}

/// When the snapshot expires. `None`: it has expired, and was evicted.
fn evict_or_expiry(state: &Mutex<State>) -> Option<Instant> {
    let mut state = lock(state);
    let until = state.cached.as_ref().map(Cached::expires);
    let until = until.filter(|until| *until > Instant::now());
    if until.is_none() {
        state.cached = None;
    }
    until
}

#[cfg(test)]
mod tests;
