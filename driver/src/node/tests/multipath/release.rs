//! Releasing a map: with lost paths, after crashes, and when it is in use.

use super::*;

/// design.md#unstage-needs-no-nas
#[tokio::test]
async fn unstaging_needs_no_nas_and_disables_queueing() {
    let co = Co::multipath();
    co.stage_both().await.unwrap();
    for portal in PORTALS {
        co.bring_down(portal);
    }
    co.fake.machine().targets.clear();
    let before = co.fake.machine().log.len();
    co.unstage().await.unwrap();
    co.assert_nothing_left();
    let log = co.fake.machine().log[before..].to_vec();
    // The unmount waits until the queueing ends.
    assert_eq!(
        log[..4],
        [
            "umount /staging",
            "multipathd disablequeueing map dm-0",
            "multipathd disablequeueing map dm-0",
            "multipath -f mpatha"
        ]
    );
    assert!(log.iter().all(|line| !line.contains("rescan")), "{log:?}");
}

/// design.md#unstage-needs-no-nas
#[tokio::test]
async fn unstaging_recovers_from_a_crash_at_any_step() {
    for step in [
        "umount /staging",
        "multipath -f",
        "iscsiadm -m session -r 1 --logout",
        "iscsiadm -m session -r 2 --logout",
        "iscsiadm -m node -T",
    ] {
        let co = Co::multipath();
        co.stage_both().await.unwrap();
        co.fake.hang(step);
        fails(co.unstage().await, Code::Aborted, "may still run");
        co.unstage().await.unwrap();
        co.assert_nothing_left();
    }
}

/// design.md#unstage-needs-no-nas
#[tokio::test]
async fn staging_recovers_from_a_crash_at_any_step() {
    for (step, count) in [
        ("iscsiadm", 6),
        ("echo", 2),
        ("multipathd", 3),
        ("mkfs", 1),
        ("mount", 1),
    ] {
        for skipped in 0..count {
            let co = Co::multipath();
            // A login that hangs at one portal does not fail the stage.
            let broken = |staged: Result<(), Status>| match (step, skipped) {
                ("iscsiadm", 4 | 5) => staged.unwrap(),
                _ => fails(staged, Code::Aborted, "may still run"),
            };
            co.fake.hang_after(step, skipped);
            broken(co.stage_both().await);
            // Then either unstage, or stage again.
            let unstaged = co.unstage().await;
            unstaged.unwrap_or_else(|status| panic!("{step} {skipped}: {status}"));
            co.assert_nothing_left();
            co.fake.hang_after(step, skipped);
            broken(co.stage_both().await);
            co.stage_both().await.unwrap();
            assert_eq!(co.fake.mounted(), ["/staging"]);
            assert_eq!(co.fake.machine().map.as_ref().unwrap().paths.len(), 2);
        }
    }
}

#[tokio::test]
async fn a_map_that_outlived_its_sessions_is_removed() {
    let co = Co::multipath();
    co.stage_both().await.unwrap();
    {
        let mut machine = co.fake.machine();
        machine.sessions.clear();
        machine.map.as_mut().unwrap().paths.clear();
    }
    co.unstage().await.unwrap();
    co.assert_nothing_left();
}

#[tokio::test]
async fn a_map_in_use_elsewhere_is_not_removed() {
    let co = Co::multipath();
    co.stage_both().await.unwrap();
    co.fake.machine().claimed = true;
    fails(co.unstage().await, Code::Aborted, "still uses it");
    assert_eq!(co.fake.machine().sessions.len(), 2);
    co.fake.machine().claimed = false;
    co.fake.answer("multipath -f", 1, "map in use");
    co.unstage().await.unwrap();
    co.assert_nothing_left();
}

#[tokio::test]
async fn a_map_that_queues_without_a_path_is_released() {
    let co = Co::multipath();
    co.stage_both().await.unwrap();
    // The LUN is unmapped on the NAS: the sessions are alive, and I/O to the map hangs.
    co.fake.machine().map.as_mut().unwrap().paths.clear();
    co.unstage().await.unwrap();
    co.assert_nothing_left();
}

#[tokio::test]
async fn a_busy_volume_without_paths_is_unblocked_by_its_unstaging() {
    let co = Co::multipath();
    co.stage_both().await.unwrap();
    for portal in PORTALS {
        co.bring_down(portal);
    }
    let operation = co.occupy().await;
    let before = co.fake.machine().paused;
    fails(co.unstage().await, Code::Aborted, "in progress");
    // Not at once: the NAS may come back.
    assert!(co.fake.machine().map.as_ref().unwrap().queueing);
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert!(!co.fake.machine().map.as_ref().unwrap().queueing);
    assert_eq!(co.fake.machine().paused, before + REPLACEMENT);
    operation.end().await;
    // Once it is used again, it queues again.
    for portal in PORTALS {
        co.bring_up(portal);
    }
    co.stage_both().await.unwrap();
    assert!(co.fake.machine().map.as_ref().unwrap().queueing);
}

#[tokio::test]
async fn of_two_disks_and_no_multipathd_the_one_in_use_stays() {
    let co = Co::multipath();
    co.stage_both().await.unwrap();
    {
        let mut machine = co.fake.machine();
        (machine.multipathd, machine.map) = (None, None);
        machine.mounts.clear();
    }
    co.stage_both().await.unwrap();
    assert_eq!(co.fake.machine().sessions.len(), 1);
    let staged = co.fake.machine().mounts.clone();
    // Somebody logs in at the other portal, and at the same once more.
    for portal in [PORTALS[1], PORTALS[0]] {
        co.fake.log_in_at(portal);
        assert_eq!(co.fake.machine().sessions.len(), 2);
        co.stage_both().await.unwrap();
        assert_eq!(co.fake.machine().sessions.len(), 1, "{portal}");
        assert_eq!(co.fake.machine().mounts, staged);
    }
    // With two in use, it is an error.
    co.fake.log_in_at(PORTALS[1]);
    co.fake.machine().claimed = true;
    fails(
        co.stage_both().await,
        Code::FailedPrecondition,
        "without a multipath map",
    );
    assert_eq!(co.fake.machine().sessions.len(), 2);
}
