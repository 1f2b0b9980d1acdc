//! Portals that were down when a volume was staged: what is joined, and what must never be.

use super::*;
use crate::chap::{PASSWORD, USERNAME};

/// Two portals, one of them down at stage and up since.
async fn up_again(co: &Co) {
    co.lose(PORTALS[1]);
    co.stage_both().await.unwrap();
    co.find(PORTALS[1]);
    assert_eq!(co.fake.machine().sessions.len(), 1);
}

/// One look.
async fn look(co: &Co) -> usize {
    co.node.join_paths(&mut Backoff::default()).await
}

fn paths(co: &Co) -> usize {
    co.fake.machine().map.as_ref().unwrap().paths.len()
}

fn sessions(co: &Co) -> usize {
    co.fake.machine().sessions.len()
}

/// Nothing is joined, nor even tried.
async fn is_left_alone(co: &Co) {
    let before = co.logins();
    look(co).await;
    assert_eq!(co.logins(), before);
}

/// design.md#portals
#[tokio::test]
async fn a_portal_that_was_down_is_joined_once_it_answers() {
    for raw in [false, true] {
        let mut co = Co {
            raw,
            ..Co::multipath()
        };
        // The record has what the login takes.
        co.fake.machine().chap = Some(("alice".to_owned(), "planted-12345".to_owned()));
        co.auth = Some(Method::Chap);
        for (key, value) in [(USERNAME, "alice"), (PASSWORD, "planted-12345")] {
            co.secrets.insert(key.to_owned(), value.to_owned());
        }
        co.lose(PORTALS[1]);
        co.stage_both().await.unwrap();
        co.publish_through(&PORTALS, "/pods/1").await.unwrap();
        assert_eq!((look(&co).await, paths(&co)), (1, 1));
        co.find(PORTALS[1]);
        assert_eq!((look(&co).await, paths(&co)), (0, 2));
        is_left_alone(&co).await;
        // A session that is lost is iscsid's to bring back.
        co.lose(PORTALS[0]);
        is_left_alone(&co).await;
        assert_eq!(look(&co).await, 1);
        co.find(PORTALS[0]);
        co.unpublish("/pods/1").await.unwrap();
        co.unstage().await.unwrap();
        co.nothing_is_left();
    }
}

#[tokio::test]
async fn nothing_is_joined_to_what_nobody_uses_or_what_has_no_map() {
    // Unstaged.
    let co = Co::multipath();
    up_again(&co).await;
    co.unstage().await.unwrap();
    is_left_alone(&co).await;
    co.nothing_is_left();
    // Unmounted: an unstage has begun.
    up_again(&co).await;
    co.fake.machine().mounts.clear();
    is_left_alone(&co).await;
    // Its only session is lost.
    let co = Co::multipath();
    up_again(&co).await;
    co.lose(PORTALS[0]);
    co.find(PORTALS[1]);
    is_left_alone(&co).await;
    // One path, for there is no multipathd.
    let co = Co::new();
    co.lose(PORTALS[0]);
    co.stage_both().await.unwrap();
    co.find(PORTALS[0]);
    is_left_alone(&co).await;
}

#[tokio::test]
async fn an_ended_publication_gets_no_path_back() {
    // Its disks were taken offline, and the process has died before it logged out.
    let co = Co::multipath();
    up_again(&co).await;
    let offline = |co: &Co| {
        let mut machine = co.fake.machine();
        machine
            .sessions
            .values_mut()
            .for_each(|it| it.offline = true);
    };
    offline(&co);
    is_left_alone(&co).await;
    // The target was deleted, and the NAS keeps its session.
    let co = Co::multipath();
    up_again(&co).await;
    let kept = co.fake.iqn().to_string();
    co.fake.publish_anew();
    co.fake.keep_session_with(&kept);
    let lingers = |it: &mut crate::host::fake::Target| it.lingering = true;
    co.fake
        .machine()
        .targets
        .get_mut(&kept)
        .map(lingers)
        .unwrap();
    assert!(co.fake.machine().sessions.values().all(|it| it.alive));
    let mut patience = Backoff::default();
    let before = co.logins();
    for _ in 0..3 {
        assert_eq!(co.node.join_paths(&mut patience).await, 1);
    }
    assert_eq!(co.logins(), before + 1, "it has said no for good");
    assert_eq!((sessions(&co), paths(&co)), (1, 1));
    // The present publication has a session, too: nobody here knows which is which.
    co.fake.log_in();
    co.fake.machine().map.as_mut().unwrap().paths.truncate(1);
    is_left_alone(&co).await;
}

#[tokio::test]
async fn a_record_that_is_not_as_a_stage_leaves_it_is_not_used() {
    let co = Co::multipath();
    up_again(&co).await;
    let file = format!("/etc/iscsi/nodes/{}/fd00::5,3261", co.fake.iqn());
    {
        let mut machine = co.fake.machine();
        let text = machine.files.get_mut(&file).unwrap();
        let other = String::from_utf8_lossy(text).replace("nr_sessions = 1", "nr_sessions = 2");
        *text = other.into_bytes();
    }
    is_left_alone(&co).await;
    // A portal that is no portal of the volume any more has no record.
    let co = Co::multipath();
    up_again(&co).await;
    co.stage().await.unwrap();
    let file = format!("/etc/iscsi/nodes/{}/fd00::5,3261", co.fake.iqn());
    assert!(!co.fake.machine().files.contains_key(&file));
    is_left_alone(&co).await;
}

#[tokio::test]
async fn one_portal_that_does_not_answer_costs_one_attempt_a_look() {
    let co = Co::multipath();
    co.lose(PORTALS[1]);
    co.stage_both().await.unwrap();
    let (before, mut patience) = (co.logins(), Backoff::default());
    for look in 1..=3 {
        assert_eq!(co.node.join_paths(&mut patience).await, 1);
        assert_eq!(co.logins(), before + look);
    }
    assert!(co.fake.ran("iscsiadm -m session -r").is_empty());
}

#[tokio::test]
async fn a_path_that_has_another_size_or_another_unit_is_not_kept() {
    let other = "00000000-f296-4d4b-b712-a85c139f9dac";
    for grown in [true, false] {
        let co = Co::multipath();
        up_again(&co).await;
        if grown {
            co.fake.grow_lun(GIB2);
        } else {
            let mut machine = co.fake.machine();
            let targets = machine.targets.values_mut();
            targets.for_each(|target| target.serial = other.to_owned());
        }
        look(&co).await;
        assert_eq!((sessions(&co), paths(&co)), (1, 1));
        if grown {
            assert_eq!(co.expand("/staging", GIB2, ANY).await.unwrap(), GIB2);
            assert_eq!((look(&co).await, paths(&co)), (0, 2));
        }
    }
}

/// The process dies at each of its commands, and another one takes over.
#[tokio::test]
async fn a_look_that_is_broken_off_anywhere_leaves_nothing_in_the_way() {
    for then_unstage in [false, true] {
        for at in 0.. {
            let co = Co::multipath();
            up_again(&co).await;
            let before = co.fake.machine().log.len();
            co.fake.hang_after("", at);
            look(&co).await;
            if co.fake.machine().log.len() <= before + at {
                assert!(at > 1, "there were commands to break off at");
                break;
            }
            if !then_unstage {
                look(&co).await;
                assert_eq!(paths(&co), 2, "command {at}");
            }
            co.unstage().await.unwrap();
            co.nothing_is_left();
        }
    }
}

/// A session that was made, and never became a path.
#[tokio::test]
async fn a_session_that_is_no_path_becomes_one() {
    let co = Co::multipath();
    up_again(&co).await;
    co.fake.log_in_at(PORTALS[1]);
    co.fake.machine().map.as_mut().unwrap().paths.truncate(1);
    let before = co.logins();
    assert_eq!((look(&co).await, paths(&co)), (0, 2));
    assert_eq!(co.logins(), before);
}

/// Whenever it begins.
#[tokio::test]
async fn an_unstage_stops_a_look_waits_for_it_and_leaves_nothing() {
    for later in 0..60 {
        let co = Co::multipath();
        up_again(&co).await;
        let unstage = async {
            for _ in 0..later {
                tokio::task::yield_now().await;
            }
            co.unstage().await
        };
        let (_, unstaged) = tokio::join!(look(&co), unstage);
        unstaged.unwrap();
        look(&co).await;
        co.nothing_is_left();
    }
}
