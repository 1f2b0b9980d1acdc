//! Pagination, and the lifetime of snapshots, with paused time.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::time::advance;

use super::*;

fn uuid(number: u32) -> LunUuid {
    format!("00000000-0000-4000-8000-{number:012}")
        .parse()
        .unwrap()
}

fn volume(number: u32, name: &str) -> Listed {
    let volume = csi::Volume {
        volume_id: format!("{name}/{}", uuid(number)),
        ..csi::Volume::default()
    };
    let entry = Entry {
        volume: Some(volume),
        status: None,
    };
    (uuid(number), name.parse().unwrap(), entry)
}

fn ids(reply: &csi::ListVolumesResponse) -> Vec<String> {
    let volumes = reply
        .entries
        .iter()
        .filter_map(|entry| entry.volume.as_ref());
    volumes.map(|volume| volume.volume_id.clone()).collect()
}

fn request(size: usize, token: &str) -> Page {
    let message = csi::ListVolumesRequest {
        max_entries: i32::try_from(size).unwrap(),
        starting_token: token.to_owned(),
    };
    Page::read(&message).unwrap()
}

/// The ids of a whole listing in pages of `size`; `lists` supplies the volumes for each page.
fn list_all(size: usize, mut lists: impl FnMut() -> Vec<Volumes>) -> Vec<String> {
    let (mut all, mut token) = (Vec::new(), String::new());
    loop {
        let reply = page(&lists(), &request(size, &token));
        assert!(reply.entries.len() <= size);
        all.extend(ids(&reply));
        token = reply.next_token;
        if token.is_empty() {
            return all;
        }
    }
}

/// design.md#listvolumes
#[test]
fn pages_of_several_nases_with_aliases_are_one_list() {
    let mine = [9, 1, 5].map(|number| [volume(number, "nas1"), volume(number, "old")]);
    let others = [4, 7, 2].map(|number| vec![volume(number, "nas2")]);
    let lists = vec![
        sorted(mine.into_iter().flatten().collect()),
        sorted(others.into_iter().flatten().collect()),
        sorted(Vec::new()),
    ];
    let whole = ids(&page(&lists, &request(0, "")));
    let of = |number, name: &str| format!("{name}/{}", uuid(number));
    let expected = [
        of(1, "nas1"),
        of(1, "old"),
        of(2, "nas2"),
        of(4, "nas2"),
        of(5, "nas1"),
        of(5, "old"),
        of(7, "nas2"),
        of(9, "nas1"),
        of(9, "old"),
    ];
    assert_eq!(whole, expected);
    for size in 1..12 {
        assert_eq!(
            list_all(size, || lists.clone()),
            expected,
            "pages of {size}"
        );
    }
    // A token of an earlier release has no NAS name: all names of that uuid were listed.
    let rest = page(&lists, &request(2, uuid(5).as_str()));
    assert_eq!(ids(&rest), [of(7, "nas2"), of(9, "nas1")]);
    assert_eq!(rest.next_token, format!("{}/nas1", uuid(9)));
    assert_eq!(
        page(&[], &request(3, "")),
        csi::ListVolumesResponse::default()
    );
}

/// design.md#listvolumes
#[test]
fn a_volume_that_exists_all_the_time_is_listed_exactly_once() {
    let seed = rand::random();
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..200 {
        let mut existing: BTreeMap<u32, bool> = (0..40)
            .filter(|_| random.random())
            .map(|number| (number, true))
            .collect();
        let names: &[&str] = if random.random() {
            &["nas1", "old", "older"]
        } else {
            &["nas1"]
        };
        let size = random.random_range(1..8);
        let all = list_all(size, || {
            // Volumes are created and deleted between any two pages.
            for _ in 0..random.random_range(0..5) {
                let number = random.random_range(0..40);
                match existing.get(&number) {
                    Some(_) => drop(existing.remove(&number)),
                    None => drop(existing.insert(number, false)),
                }
            }
            let under = |number: &u32| names.map_to(*number);
            vec![sorted(existing.keys().flat_map(under).collect())]
        });
        let count = |id: &str| all.iter().filter(|listed| *listed == id).count();
        for (number, always) in &existing {
            for (_, _, entry) in names.map_to(*number) {
                let id = entry.volume.unwrap().volume_id;
                assert!(
                    count(&id) == 1 || !always && count(&id) == 0,
                    "{id}: {all:?}"
                );
            }
        }
        assert!(all.iter().all(|id| count(id) == 1), "{all:?}");
    }
}

trait UnderNames {
    fn map_to(&self, number: u32) -> Vec<Listed>;
}

impl UnderNames for &[&str] {
    fn map_to(&self, number: u32) -> Vec<Listed> {
        self.iter().map(|name| volume(number, name)).collect()
    }
}

/// Advances the paused time, and runs other tasks.
async fn pause(time: Duration) {
    // sleep: returns at once in paused time.
    tokio::time::sleep(time).await;
}

fn one_volume(number: u32) -> Vec<Volumes> {
    vec![sorted(vec![volume(number, "nas1")])]
}

fn cached(snapshot: &Snapshot) -> Option<String> {
    let lists = snapshot.lists()?;
    ids(&page(&lists, &request(0, ""))).pop()
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_is_freed_if_no_more_pages_are_requested() {
    let snapshot = Snapshot::default();
    let lists = one_volume(1);
    let volumes = Arc::downgrade(&lists[0]);
    snapshot.store(Instant::now(), &lists);
    drop(lists);
    for _ in 0..3 {
        pause(IDLE_LIMIT / 2).await;
        assert!(snapshot.lists().is_some(), "each use extends its life");
    }
    pause(IDLE_LIMIT + Duration::from_millis(1)).await;
    assert_eq!(volumes.strong_count(), 0, "evicted without a call");
    assert!(snapshot.lists().is_none());
    // Its maximum age counts, even if it is used.
    snapshot.store(Instant::now(), &one_volume(2));
    let started = Instant::now();
    while snapshot.lists().is_some() {
        advance(IDLE_LIMIT / 2).await;
    }
    assert_eq!(started.elapsed(), MAX_AGE);
}

#[tokio::test(start_paused = true)]
async fn of_two_snapshots_the_one_that_was_queried_later_is_kept() {
    let snapshot = Snapshot::default();
    let earlier = Instant::now();
    advance(Duration::from_secs(1)).await;
    let later = Instant::now();
    snapshot.store(later, &one_volume(2));
    let lists = one_volume(1);
    let older = Arc::downgrade(&lists[0]);
    snapshot.store(earlier, &lists);
    drop(lists);
    assert_eq!(older.strong_count(), 0, "at most one is cached");
    assert!(cached(&snapshot).is_some_and(|id| id.ends_with('2')));
    // Not even if the later one has expired: a listing that began with it may still be in progress.
    pause(IDLE_LIMIT * 2).await;
    snapshot.store(earlier, &one_volume(1));
    assert_eq!(cached(&snapshot), None);
    snapshot.store(Instant::now(), &one_volume(3));
    assert!(cached(&snapshot).is_some_and(|id| id.ends_with('3')));
}
