//! Pages of lists, and how long what they are taken of is kept, in paused time.

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

fn ids(answer: &csi::ListVolumesResponse) -> Vec<String> {
    let volumes = answer
        .entries
        .iter()
        .filter_map(|entry| entry.volume.as_ref());
    volumes.map(|volume| volume.volume_id.clone()).collect()
}

/// What a CO asks for.
fn asked(size: usize, token: &str) -> Page {
    let message = csi::ListVolumesRequest {
        max_entries: i32::try_from(size).unwrap(),
        starting_token: token.to_owned(),
    };
    Page::read(&message).unwrap()
}

/// All pages of so many; `lists` says what each is taken of.
fn walked(size: usize, mut lists: impl FnMut() -> Vec<Volumes>) -> Vec<String> {
    let (mut all, mut token) = (Vec::new(), String::new());
    loop {
        let answer = page(&lists(), &asked(size, &token));
        assert!(answer.entries.len() <= size);
        all.extend(ids(&answer));
        token = answer.next_token;
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
        in_order(mine.into_iter().flatten().collect()),
        in_order(others.into_iter().flatten().collect()),
        in_order(Vec::new()),
    ];
    let whole = ids(&page(&lists, &asked(0, "")));
    let of = |number, name: &str| format!("{name}/{}", uuid(number));
    let wanted = [
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
    assert_eq!(whole, wanted);
    for size in 1..12 {
        assert_eq!(walked(size, || lists.clone()), wanted, "pages of {size}");
    }
    // A token of the release before names no name: everything of that uuid was shown.
    let rest = page(&lists, &asked(2, uuid(5).as_str()));
    assert_eq!(ids(&rest), [of(7, "nas2"), of(9, "nas1")]);
    assert_eq!(rest.next_token, format!("{}/nas1", uuid(9)));
    assert_eq!(
        page(&[], &asked(3, "")),
        csi::ListVolumesResponse::default()
    );
}

/// design.md#listvolumes
#[test]
fn what_is_there_all_the_time_is_listed_once_whatever_comes_and_goes() {
    let seed = rand::random();
    eprintln!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..200 {
        let mut there: BTreeMap<u32, bool> = (0..40)
            .filter(|_| random.random())
            .map(|number| (number, true))
            .collect();
        let names: &[&str] = if random.random() {
            &["nas1", "old", "older"]
        } else {
            &["nas1"]
        };
        let size = random.random_range(1..8);
        let all = walked(size, || {
            // Volumes come and go between any two pages.
            for _ in 0..random.random_range(0..5) {
                let number = random.random_range(0..40);
                match there.get(&number) {
                    Some(_) => drop(there.remove(&number)),
                    None => drop(there.insert(number, false)),
                }
            }
            let under = |number: &u32| names.map_to(*number);
            vec![in_order(there.keys().flat_map(under).collect())]
        });
        let count = |id: &str| all.iter().filter(|listed| *listed == id).count();
        for (number, always) in &there {
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

/// Lets so much paused time pass.
async fn pause(time: Duration) {
    // sleep: in paused time it takes none.
    tokio::time::sleep(time).await;
}

fn looked(number: u32) -> Vec<Volumes> {
    vec![in_order(vec![volume(number, "nas1")])]
}

fn seen(look: &Snapshot) -> Option<String> {
    let lists = look.lists()?;
    ids(&page(&lists, &asked(0, ""))).pop()
}

#[tokio::test(start_paused = true)]
async fn a_look_is_freed_when_nobody_asks_for_more_pages() {
    let look = Snapshot::default();
    let lists = looked(1);
    let kept = Arc::downgrade(&lists[0]);
    look.keep(Instant::now(), &lists);
    drop(lists);
    for _ in 0..3 {
        pause(IDLE_LIMIT / 2).await;
        assert!(look.lists().is_some(), "use renews it");
    }
    pause(IDLE_LIMIT + Duration::from_millis(1)).await;
    assert_eq!(kept.strong_count(), 0, "nobody has called");
    assert!(look.lists().is_none());
    // However much it is used.
    look.keep(Instant::now(), &looked(2));
    let started = Instant::now();
    while look.lists().is_some() {
        advance(IDLE_LIMIT / 2).await;
    }
    assert_eq!(started.elapsed(), MAX_AGE);
}

#[tokio::test(start_paused = true)]
async fn of_two_looks_the_one_that_began_later_is_kept() {
    let look = Snapshot::default();
    let earlier = Instant::now();
    advance(Duration::from_secs(1)).await;
    let later = Instant::now();
    look.keep(later, &looked(2));
    let lists = looked(1);
    let older = Arc::downgrade(&lists[0]);
    look.keep(earlier, &lists);
    drop(lists);
    assert_eq!(older.strong_count(), 0, "there is one at the most");
    assert!(seen(&look).is_some_and(|id| id.ends_with('2')));
    // Not even when that is forgotten: a walk that began with it may go on.
    pause(IDLE_LIMIT * 2).await;
    look.keep(earlier, &looked(1));
    assert_eq!(seen(&look), None);
    look.keep(Instant::now(), &looked(3));
    assert!(seen(&look).is_some_and(|id| id.ends_with('3')));
}
