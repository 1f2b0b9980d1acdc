//! A volume that was detached from this node by force, used on another node and published here again: design.md, "Fencing".

use super::*;

/// Data that a pod here has written; that a pod on the other node writes; that was written here and never synced.
const OURS: u64 = 1;
const THEIRS: u64 = 2;
const LATE: u64 = 3;

fn volume_kinds() -> [Co; 4] {
    [
        Co::new(),
        Co::with_fs("xfs"),
        Co::with_fs("btrfs"),
        Co::raw(),
    ]
}

/// Another node stages the volume, writes, and unstages it.
async fn write_elsewhere(here: &Co) {
    let co = Co::on_host(here.fake.second_node_with_lun());
    let co = Co {
        fs: here.fs,
        raw: here.raw,
        ..co
    };
    co.stage().await.unwrap();
    co.publish("/pods/1", false).await.unwrap();
    assert!(co.fake.write_data("/pods/1", THEIRS));
    co.unpublish("/pods/1").await.unwrap();
    co.unstage().await.unwrap();
}

/// A pod here writes, with and without a sync; then the target is deleted.
async fn write_and_lose_target(co: &Co) {
    co.stage().await.unwrap();
    co.publish("/pods/1", false).await.unwrap();
    assert!(co.fake.write_data("/pods/1", OURS));
    assert!(co.fake.write_unsynced("/pods/1", LATE));
    assert!(co.fake.read_data("/pods/1").is_some());
    co.fake.machine().targets.clear();
    co.fake.machine().sessions_live_or_die();
}

#[tokio::test]
async fn data_written_on_another_node_meanwhile_is_kept_and_visible() {
    for second_stage in [false, true] {
        for co in volume_kinds() {
            let what = format!("{} raw {} stage {second_stage}", co.fs, co.raw);
            write_and_lose_target(&co).await;
            write_elsewhere(&co).await;
            // The pod here is gone, and the CO believes that the volume is still staged.
            co.unpublish("/pods/1").await.unwrap();
            co.fake.publish_with_new_name();
            if second_stage {
                co.stage().await.unwrap();
            }
            co.publish("/pods/2", false).await.unwrap();
            assert_eq!(co.fake.read_data("/pods/2"), Some(THEIRS), "{what}");
            co.unpublish("/pods/2").await.unwrap();
            co.unstage().await.unwrap();
            assert!(co.fake.mounted().is_empty() && co.fake.machine().records.is_empty());
            assert!(co.fake.machine().sessions.is_empty(), "{what}");
        }
    }
}

#[tokio::test]
async fn nothing_is_written_through_a_session_that_the_nas_keeps() {
    for second_stage in [false, true] {
        for co in volume_kinds() {
            let what = format!("{} raw {}", co.fs, co.raw);
            write_and_lose_target(&co).await;
            write_elsewhere(&co).await;
            let kept = co.fake.iqn().to_string();
            // The session reconnects just before the volume comes back, and dirty pages here would be written.
            co.fake.machine().caches.clear();
            co.fake.publish_with_new_name();
            co.fake.keep_session_with(&kept);
            // A raw device's dirty pages are dropped when its last pod closes it, before any call of the driver.
            assert!(co.raw || co.fake.write_unsynced("/pods/1", LATE));
            co.unpublish("/pods/1").await.unwrap();
            if second_stage {
                co.stage().await.unwrap();
            }
            co.publish("/pods/2", false).await.unwrap();
            assert_eq!(co.fake.read_data("/pods/2"), Some(THEIRS), "{what}");
        }
    }
}

#[tokio::test]
async fn a_volume_that_a_pod_still_uses_is_not_touched() {
    for co in volume_kinds() {
        co.stage().await.unwrap();
        co.publish("/pods/1", false).await.unwrap();
        co.fake.republish();
        for answer in [co.stage().await, co.publish("/pods/2", false).await] {
            fails(answer, Code::Aborted, "/pods/1: delete the pods");
        }
        assert!(co.fake.ran("echo offline").is_empty());
        assert!(
            co.fake
                .ran("iscsiadm -m session -r")
                .iter()
                .all(|line| !line.ends_with("--logout"))
        );
        co.unpublish("/pods/1").await.unwrap();
        co.publish("/pods/2", false).await.unwrap();
    }
}

#[tokio::test]
async fn a_subpath_mount_of_a_pod_counts_as_a_use() {
    let co = Co::new();
    co.stage().await.unwrap();
    let mut part = co.fake.machine().mounts[0].clone();
    "/data".clone_into(&mut part.root);
    "/pods/sub".clone_into(&mut part.point);
    co.fake.machine().mounts.push(part);
    co.fake.republish();
    fails(co.stage().await, Code::Aborted, "/pods/sub");
}

#[tokio::test]
async fn a_mount_in_another_mount_namespace_blocks_staging() {
    for co in [Co::new(), Co::with_fs("xfs"), Co::with_fs("btrfs")] {
        co.stage().await.unwrap();
        co.fake.pin("/staging");
        co.fake.republish();
        fails(
            co.stage().await,
            Code::Aborted,
            "is still mounted on this node",
        );
        co.fake.machine().pinned.clear();
        co.stage().await.unwrap();
    }
}

#[tokio::test]
async fn a_disk_that_cannot_be_taken_offline_is_not_unmounted() {
    let co = Co::new();
    co.stage().await.unwrap();
    co.fake.republish();
    co.fake
        .keep_session_with(&co.fake.previous_iqn().to_string());
    co.fake.machine().sysfs_error = Some(std::io::ErrorKind::ReadOnlyFilesystem);
    fails(co.stage().await, Code::Aborted, "offline");
    assert_eq!(co.fake.mounted(), ["/staging"]);
    co.fake.machine().sysfs_error = None;
    co.stage().await.unwrap();
}

#[tokio::test]
async fn teardown_recovers_from_a_crash_at_any_step() {
    for broken in [
        "umount /staging",
        "iscsiadm -m session -r 1 --logout",
        "iscsiadm -m node -T",
    ] {
        for second_stage in [false, true] {
            let co = Co::new();
            write_and_lose_target(&co).await;
            write_elsewhere(&co).await;
            co.unpublish("/pods/1").await.unwrap();
            co.fake.publish_with_new_name();
            co.fake.hang(broken);
            let mut tries = 0;
            loop {
                let done = if second_stage {
                    co.stage().await
                } else {
                    co.publish("/pods/2", false).await
                };
                tries += 1;
                match done {
                    Ok(()) => break,
                    Err(status) => assert!(tries < 5, "{broken}: {status:?}"),
                }
            }
            co.publish("/pods/2", false).await.unwrap();
            assert_eq!(co.fake.read_data("/pods/2"), Some(THEIRS), "{broken}");
            assert_eq!(co.fake.machine().sessions.len(), 1, "{broken}");
            assert_eq!(co.fake.machine().records.len(), 1, "{broken}");
        }
    }
}

#[tokio::test]
async fn old_paths_and_their_map_are_removed_before_new_logins() {
    for second_stage in [false, true] {
        for kept in [false, true] {
            let portals = ["10.0.0.5:3260", "10.0.0.6:3260"];
            let co = Co::new();
            co.fake.start_multipathd();
            co.stage_through(&portals).await.unwrap();
            co.publish_through(&portals, "/pods/1").await.unwrap();
            assert!(co.fake.write_data("/pods/1", OURS));
            assert!(co.fake.write_unsynced("/pods/1", LATE));
            let before = co.fake.iqn().to_string();
            co.fake.machine().targets.clear();
            co.fake.machine().sessions_live_or_die();
            write_elsewhere(&co).await;
            co.unpublish("/pods/1").await.unwrap();
            if kept {
                co.fake.machine().caches.clear();
            }
            co.fake.publish_with_new_name();
            if kept {
                co.fake.keep_session_with(&before);
            }
            if second_stage {
                co.stage_through(&portals).await.unwrap();
            }
            co.publish_through(&portals, "/pods/2").await.unwrap();
            assert_eq!(co.fake.read_data("/pods/2"), Some(THEIRS));
            let machine = co.fake.machine();
            assert_eq!((machine.sessions.len(), machine.records.len()), (2, 1));
            let paths = machine.map.as_ref().map(|map| map.paths.len());
            assert_eq!(paths, Some(2));
        }
    }
}

#[tokio::test]
async fn a_map_without_paths_belongs_to_an_ended_publication() {
    let portals = ["10.0.0.5:3260", "10.0.0.6:3260"];
    let co = Co::new();
    co.fake.start_multipathd();
    co.stage_through(&portals).await.unwrap();
    for session in [1, 2] {
        co.fake.machine().log_out(session);
    }
    co.fake.republish();
    co.stage_through(&portals).await.unwrap();
    let log = co.fake.ran("");
    let at = |word: &str| log.iter().rposition(|line| line.contains(word));
    assert!(at("multipath -f") < at("--login"), "{log:#?}");
}

#[tokio::test]
async fn with_a_secret_of_the_class_only_a_stage_call_can_log_in_again() {
    let mut co = Co::new();
    co.secrets = [
        ("node.session.auth.username", "alice"),
        ("node.session.auth.password", "planted-12345"),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    co.auth = Some(Method::Chap);
    co.fake.machine().chap = Some(("alice".to_owned(), "planted-12345".to_owned()));
    co.stage().await.unwrap();
    co.fake.republish();
    fails(
        co.publish("/pods/1", false).await,
        Code::Aborted,
        "delete the pod",
    );
    assert!(co.fake.mounted().is_empty() && co.fake.machine().sessions.is_empty());
    fails(
        co.publish("/pods/1", false).await,
        Code::FailedPrecondition,
        "stage the volume first",
    );
    co.stage().await.unwrap();
    co.publish("/pods/1", false).await.unwrap();
}

#[tokio::test]
async fn a_target_name_of_the_previous_release_is_used_as_it_is() {
    for co in volume_kinds() {
        let old = crate::publication::Iqn::without_nonce(
            &UUID.parse().unwrap(),
            &co.fake.iqn().publication().unwrap().1,
        );
        co.fake.rename_target(&old.to_string());
        let mut context = co.context(&["10.0.0.5:3260"]);
        context.iqn = old;
        co.stage_by(&context).await.unwrap();
        co.publish_by(&context, "/pods/1").await.unwrap();
        co.fake.write_data("/pods/1", OURS);
        co.stage_by(&context).await.unwrap();
        co.publish_by(&context, "/pods/2").await.unwrap();
        assert_eq!(co.fake.read_data("/pods/2"), Some(OURS));
        for pod in ["/pods/1", "/pods/2"] {
            co.unpublish(pod).await.unwrap();
        }
        co.unstage().await.unwrap();
        assert!(co.fake.machine().sessions.is_empty() && co.fake.machine().records.is_empty());
    }
}

#[tokio::test]
async fn unstage_tears_down_all_publications() {
    let co = Co::new();
    co.stage().await.unwrap();
    let before = co.fake.republish_keeping_session();
    co.fake.log_in();
    assert_eq!(co.fake.machine().sessions.len(), 2);
    co.unstage().await.unwrap();
    let machine = co.fake.machine();
    assert!(
        machine.sessions.is_empty() && machine.records.is_empty(),
        "{before}"
    );
}

#[tokio::test]
async fn a_session_without_a_disk_is_staged_again() {
    let co = Co::raw();
    // The driver died after its login.
    co.fake.log_in();
    for session in co.fake.machine().sessions.values_mut() {
        session.seen = None;
    }
    co.publish("/pods/1", false).await.unwrap();
    assert_eq!(co.fake.mounted(), ["/pods/1"]);
}
