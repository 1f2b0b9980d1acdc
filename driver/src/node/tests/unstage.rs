//! NodeUnstageVolume.

use std::time::Duration;

use super::*;
use crate::host::linux::Linux;

#[tokio::test]
async fn unstaging_leaves_nothing() {
    for co in [
        Co::with_fs("ext4"),
        Co::with_fs("xfs"),
        Co::with_fs("btrfs"),
        Co::raw(),
    ] {
        co.stage().await.unwrap();
        for _ in 0..2 {
            co.unstage().await.unwrap();
            let machine = co.fake.machine();
            assert!(
                machine.mounts.is_empty()
                    && machine.sessions.is_empty()
                    && machine.records.is_empty()
            );
        }
    }
}

/// design.md#unstage-needs-no-nas
#[tokio::test]
async fn unstaging_needs_neither_nas_nor_disk() {
    let co = Co::new();
    co.stage().await.unwrap();
    {
        let mut machine = co.fake.machine();
        machine.targets.clear();
        machine.unreadable = true;
        machine.sessions.get_mut(&1).unwrap().alive = false;
    }
    let before = co.fake.machine().log.len();
    co.unstage().await.unwrap();
    let log = co.fake.machine().log[before..].to_vec();
    assert!(
        log.iter()
            .all(|line| !line.contains("rescan") && !line.contains("blkid")),
        "{log:?}"
    );
    assert!(co.fake.machine().sessions.is_empty() && co.fake.mounted().is_empty());
}

/// design.md#unstage-needs-no-nas
#[tokio::test]
async fn the_session_is_found_without_the_initiator_name() {
    let co = Co::new();
    co.stage().await.unwrap();
    co.fake.machine().files.clear();
    co.unstage().await.unwrap();
    assert!(co.fake.machine().sessions.is_empty());
}

#[tokio::test]
async fn a_published_volume_is_not_unstaged() {
    let co = Co::new();
    co.stage().await.unwrap();
    co.publish("/pods/1", false).await.unwrap();
    fails(co.unstage().await, Code::FailedPrecondition, "/pods/1");
    assert_eq!(co.fake.mounted(), ["/staging", "/pods/1"]);
    co.unpublish("/pods/1").await.unwrap();
    co.unstage().await.unwrap();
}

/// As after a killed umount: the mount is gone, and the kernel releases the file system a moment later.
#[tokio::test]
async fn unstaging_waits_until_the_kernel_has_released_the_file_system() {
    let co = Co::new();
    co.stage().await.unwrap();
    co.fake.machine().claimed = true;
    let until = co.fake.machine().paused + Duration::from_secs(1);
    let taken_down = async {
        for _ in 0..10_000 {
            if co.fake.machine().paused >= until {
                break;
            }
            tokio::task::yield_now().await;
        }
        co.fake.machine().claimed = false;
    };
    let (unstaged, ()) = tokio::join!(co.unstage(), taken_down);
    unstaged.unwrap();
    assert!(co.fake.machine().sessions.is_empty());
}

#[tokio::test]
async fn a_disk_in_use_elsewhere_is_not_logged_out() {
    let co = Co::new();
    co.stage().await.unwrap();
    co.fake.machine().claimed = true;
    fails(co.unstage().await, Code::Aborted, "still uses it");
    assert_eq!(co.fake.machine().sessions.len(), 1);
    co.fake.machine().claimed = false;
    co.unstage().await.unwrap();
}

/// design.md#final-codes
#[tokio::test]
async fn an_unmount_that_hangs_is_not_final() {
    let co = Co::new();
    co.stage().await.unwrap();
    co.fake.hang("umount /staging");
    fails(co.unstage().await, Code::Aborted, "umount /staging");
    assert_eq!(
        co.fake.machine().sessions.len(),
        1,
        "a session under a mount stays"
    );
    co.unstage().await.unwrap();
}

#[tokio::test]
async fn records_without_a_session_go_too() {
    let co = Co::new();
    let (ours, other) = (
        co.fake.iqn().to_string(),
        "iqn.1993-08.org.debian:other".to_owned(),
    );
    co.fake.machine().records = [ours, other.clone()].into();
    co.unstage().await.unwrap();
    assert_eq!(co.fake.machine().records, [other].into());
}

/// design.md#unknown-is-not-absent
#[tokio::test]
async fn a_list_that_cannot_be_read_is_not_empty() {
    for unseen in ["/etc/iscsi/nodes", "/sys/class/block"] {
        let co = Co::new();
        let ours = co.fake.iqn().to_string();
        co.fake.machine().records = [ours.clone()].into();
        co.fake.machine().unreadable_paths.insert(unseen.to_owned());
        fails(co.unstage().await, Code::Unavailable, unseen);
        assert!(co.fake.machine().records.contains(&ours));
        co.fake.machine().unreadable_paths.clear();
        co.unstage().await.unwrap();
        assert!(co.fake.machine().records.is_empty());
    }
}

/// A record database at a path that the driver does not know.
/// design.md#unknown-is-not-absent
#[tokio::test]
async fn a_partly_garbled_list_of_iscsiadm_is_an_error() {
    let co = Co::new();
    let ours = co.fake.iqn().to_string();
    let lists = |listed: String| {
        co.fake.machine().records = [ours.clone()].into();
        co.fake.machine().elsewhere = Some(listed);
    };
    for garbage in ["blocks= TYPE 0x00\n\n=\n", "[]:3260,4294967295 \n"] {
        lists(garbage.to_owned());
        fails(co.unstage().await, Code::Unavailable, "cannot parse");
        assert!(co.fake.machine().records.contains(&ours), "{garbage}");
    }
    lists(format!("10.0.0.5:3260,1 {ours}\n10.0.0.9:3260,1 Foreign\n"));
    co.unstage().await.unwrap();
    assert!(co.fake.machine().records.is_empty());
    lists(String::new());
    co.unstage().await.unwrap();
}

#[tokio::test]
async fn a_record_damaged_by_a_power_cut_is_removed() {
    let co = Co::new();
    co.stage().await.unwrap();
    let iqn = co.fake.iqn().to_string();
    let cut_short = || {
        co.fake.machine().truncated_records.insert(iqn.clone());
    };
    cut_short();
    co.unstage().await.unwrap();
    {
        let machine = co.fake.machine();
        assert!(machine.records.is_empty());
        assert!(!machine.files.keys().any(|path| path.contains(&iqn)));
    }
    // The same at stage time.
    let file = format!("/etc/iscsi/nodes/{iqn}/10.0.0.5,3260");
    co.fake.machine().files.insert(file, vec![]);
    co.fake.machine().records.insert(iqn.clone());
    cut_short();
    co.stage().await.unwrap();
}

#[tokio::test]
async fn any_number_of_sessions_is_logged_out() {
    let co = Co::new();
    co.stage().await.unwrap();
    for _ in 0..2 {
        co.fake.log_in();
    }
    co.publish("/pods/1", false).await.unwrap();
    co.unpublish("/pods/1").await.unwrap();
    co.unstage().await.unwrap();
    let machine = co.fake.machine();
    assert!(machine.sessions.is_empty() && machine.records.is_empty());
}

/// The lock is free as soon as the RPC has returned, although [`Machine::with_queueing_timeout`] reads sysfs in the background.
/// design.md#one-operation-per-volume
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_unlocked_when_its_unstage_returns() {
    let root = tempfile::tempdir().unwrap();
    let in_flight = InFlight::default();
    let node = Node::new(
        Linux::new(root.path().to_owned()),
        NODE.to_owned(),
        "csi.synology.com".to_owned(),
        Duration::from_secs(120),
        in_flight.clone(),
    );
    for round in 0..300 {
        let request = csi::NodeUnstageVolumeRequest {
            volume_id: format!("nas1/{UUID}"),
            staging_target_path: "/none".to_owned(),
        };
        // It fails without iscsiadm; only the lock matters here.
        let _ = node.node_unstage_volume(Request::new(request)).await;
        let free = in_flight.run(UUID, async { Ok(()) }).await;
        assert!(free.is_ok(), "round {round}: {free:?}");
    }
}
