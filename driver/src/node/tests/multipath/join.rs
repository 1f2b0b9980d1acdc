//! Missing paths: portals that were down when a volume was staged, which paths are added later, and which must never be.

use super::*;
use crate::chap::{PASSWORD, USERNAME};

/// Two portals, one of them down at stage time and up now.
async fn stage_with_late_portal(co: &Co) {
    co.bring_down(PORTALS[1]);
    co.stage_both().await.unwrap();
    co.bring_up(PORTALS[1]);
    assert_eq!(co.fake.machine().sessions.len(), 1);
}

/// One round of [`Node::join_paths`]; returns the number of paths that are still missing.
async fn run_round(co: &Co) -> usize {
    co.node.add_missing_paths(&mut Backoff::default()).await
}

fn paths(co: &Co) -> usize {
    co.fake.machine().map.as_ref().unwrap().paths.len()
}

fn sessions(co: &Co) -> usize {
    co.fake.machine().sessions.len()
}

/// Asserts that a round does not even try a login.
async fn assert_no_login(co: &Co) {
    let before = co.logins();
    run_round(co).await;
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
        // The record has the CHAP credentials for the login.
        co.fake.machine().chap = Some(("alice".to_owned(), "planted-12345".to_owned()));
        co.auth = Some(Method::Chap);
        for (key, value) in [(USERNAME, "alice"), (PASSWORD, "planted-12345")] {
            co.secrets.insert(key.to_owned(), value.to_owned());
        }
        co.bring_down(PORTALS[1]);
        co.stage_both().await.unwrap();
        co.publish_through(&PORTALS, "/pods/1").await.unwrap();
        assert_eq!((run_round(&co).await, paths(&co)), (1, 1));
        co.bring_up(PORTALS[1]);
        assert_eq!((run_round(&co).await, paths(&co)), (0, 2));
        assert_no_login(&co).await;
        // A lost session is reconnected by iscsid.
        co.bring_down(PORTALS[0]);
        assert_no_login(&co).await;
        assert_eq!(run_round(&co).await, 1);
        co.bring_up(PORTALS[0]);
        co.unpublish("/pods/1").await.unwrap();
        co.unstage().await.unwrap();
        co.assert_nothing_left();
    }
}

#[tokio::test]
async fn no_path_is_added_to_an_unused_volume_or_without_a_map() {
    // Unstaged.
    let co = Co::multipath();
    stage_with_late_portal(&co).await;
    co.unstage().await.unwrap();
    assert_no_login(&co).await;
    co.assert_nothing_left();
    // Unmounted: an unstage is in progress.
    stage_with_late_portal(&co).await;
    co.fake.machine().mounts.clear();
    assert_no_login(&co).await;
    // Its only session is lost.
    let co = Co::multipath();
    stage_with_late_portal(&co).await;
    co.bring_down(PORTALS[0]);
    co.bring_up(PORTALS[1]);
    assert_no_login(&co).await;
    // One path, because multipathd does not run.
    let co = Co::new();
    co.bring_down(PORTALS[0]);
    co.stage_both().await.unwrap();
    co.bring_up(PORTALS[0]);
    assert_no_login(&co).await;
}

#[tokio::test]
async fn an_ended_publication_gets_no_path_back() {
    // Its disks were taken offline, and the process died before the logout.
    let co = Co::multipath();
    stage_with_late_portal(&co).await;
    let offline = |co: &Co| {
        let mut machine = co.fake.machine();
        machine
            .sessions
            .values_mut()
            .for_each(|it| it.offline = true);
    };
    offline(&co);
    assert_no_login(&co).await;
    // The target was deleted, and the NAS keeps its session.
    let co = Co::multipath();
    stage_with_late_portal(&co).await;
    let kept = co.fake.iqn().to_string();
    co.fake.republish();
    co.fake.keep_session_with(&kept);
    let lingers = |it: &mut crate::host::fake::Target| it.lingering = true;
    co.fake
        .machine()
        .targets
        .get_mut(&kept)
        .map(lingers)
        .unwrap();
    assert!(co.fake.machine().sessions.values().all(|it| it.alive));
    let mut backoff = Backoff::default();
    let before = co.logins();
    for _ in 0..3 {
        assert_eq!(co.node.add_missing_paths(&mut backoff).await, 1);
    }
    assert_eq!(co.logins(), before + 1, "not tried again after a refusal");
    assert_eq!((sessions(&co), paths(&co)), (1, 1));
    // The present publication has a session, too: which one is present is not known here.
    co.fake.log_in();
    co.fake.machine().map.as_mut().unwrap().paths.truncate(1);
    assert_no_login(&co).await;
}

#[tokio::test]
async fn a_record_with_other_settings_is_not_used() {
    let co = Co::multipath();
    stage_with_late_portal(&co).await;
    let file = format!("/etc/iscsi/nodes/{}/fd00::5,3261", co.fake.iqn());
    {
        let mut machine = co.fake.machine();
        let text = machine.files.get_mut(&file).unwrap();
        let other = String::from_utf8_lossy(text).replace("nr_sessions = 1", "nr_sessions = 2");
        *text = other.into_bytes();
    }
    assert_no_login(&co).await;
    // The record of a former portal was deleted.
    let co = Co::multipath();
    stage_with_late_portal(&co).await;
    co.stage().await.unwrap();
    let file = format!("/etc/iscsi/nodes/{}/fd00::5,3261", co.fake.iqn());
    assert!(!co.fake.machine().files.contains_key(&file));
    assert_no_login(&co).await;
}

#[tokio::test]
async fn an_unreachable_portal_costs_one_attempt_per_round() {
    let co = Co::multipath();
    co.bring_down(PORTALS[1]);
    co.stage_both().await.unwrap();
    let (before, mut backoff) = (co.logins(), Backoff::default());
    for look in 1..=3 {
        assert_eq!(co.node.add_missing_paths(&mut backoff).await, 1);
        assert_eq!(co.logins(), before + look);
    }
    assert!(co.fake.ran("iscsiadm -m session -r").is_empty());
}

#[tokio::test]
async fn a_path_with_another_size_or_serial_is_not_kept() {
    let other = "00000000-f296-4d4b-b712-a85c139f9dac";
    for grown in [true, false] {
        let co = Co::multipath();
        stage_with_late_portal(&co).await;
        if grown {
            co.fake.grow_lun(GIB2);
        } else {
            let mut machine = co.fake.machine();
            let targets = machine.targets.values_mut();
            targets.for_each(|target| target.serial = other.to_owned());
        }
        run_round(&co).await;
        assert_eq!((sessions(&co), paths(&co)), (1, 1));
        if grown {
            assert_eq!(co.expand("/staging", GIB2, ANY).await.unwrap(), GIB2);
            assert_eq!((run_round(&co).await, paths(&co)), (0, 2));
        }
    }
}

/// The process dies at each of its commands, and a new one continues.
#[tokio::test]
async fn a_round_recovers_from_a_crash_at_any_command() {
    for then_unstage in [false, true] {
        for at in 0.. {
            let co = Co::multipath();
            stage_with_late_portal(&co).await;
            let before = co.fake.machine().log.len();
            co.fake.hang_after("", at);
            run_round(&co).await;
            if co.fake.machine().log.len() <= before + at {
                assert!(at > 1, "there were commands to crash at");
                break;
            }
            if !then_unstage {
                run_round(&co).await;
                assert_eq!(paths(&co), 2, "command {at}");
            }
            co.unstage().await.unwrap();
            co.assert_nothing_left();
        }
    }
}

/// A session that was created, but whose disk was never added to the map.
#[tokio::test]
async fn a_session_without_a_path_becomes_one() {
    let co = Co::multipath();
    stage_with_late_portal(&co).await;
    co.fake.log_in_at(PORTALS[1]);
    co.fake.machine().map.as_mut().unwrap().paths.truncate(1);
    let before = co.logins();
    assert_eq!((run_round(&co).await, paths(&co)), (0, 2));
    assert_eq!(co.logins(), before);
}

/// At whatever moment the unstage starts.
#[tokio::test]
async fn an_unstage_interrupts_a_round_and_leaves_nothing() {
    for later in 0..60 {
        let co = Co::multipath();
        stage_with_late_portal(&co).await;
        let unstage = async {
            for _ in 0..later {
                tokio::task::yield_now().await;
            }
            co.unstage().await
        };
        let (_, unstaged) = tokio::join!(run_round(&co), unstage);
        unstaged.unwrap();
        run_round(&co).await;
        co.assert_nothing_left();
    }
}
