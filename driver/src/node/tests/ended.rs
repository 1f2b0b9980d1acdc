//! A volume that was taken from this node without its knowing, used elsewhere and given back: design.md, "Fencing".

use super::*;

/// What a pod here has written, what one elsewhere writes, and what was never synced here.
const OURS: u64 = 1;
const THEIRS: u64 = 2;
const LATE: u64 = 3;

fn contents() -> [Co; 4] {
    [
        Co::new(),
        Co::with_fs("xfs"),
        Co::with_fs("btrfs"),
        Co::raw(),
    ]
}

/// Another node has the volume, writes, and lets it go.
async fn write_elsewhere(here: &Co) {
    let co = Co::on(here.fake.beside_with_lun());
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

/// A pod here writes, and writes without a sync; then the volume is cut off.
async fn cut_off(co: &Co) {
    co.stage().await.unwrap();
    co.publish("/pods/1", false).await.unwrap();
    assert!(co.fake.write_data("/pods/1", OURS));
    assert!(co.fake.write_unsynced("/pods/1", LATE));
    assert!(co.fake.read_data("/pods/1").is_some());
    co.fake.machine().targets.clear();
    co.fake.machine().sessions_live_or_die();
}

#[tokio::test]
async fn what_others_have_written_meanwhile_is_kept_and_seen() {
    for second_stage in [false, true] {
        for co in contents() {
            let what = format!("{} raw {} stage {second_stage}", co.fs, co.raw);
            cut_off(&co).await;
            write_elsewhere(&co).await;
            // The pod here is gone, and the CO believes the volume to be staged.
            co.unpublish("/pods/1").await.unwrap();
            co.fake.come_back();
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
async fn a_target_side_that_keeps_the_session_is_no_way_to_write() {
    for second_stage in [false, true] {
        for co in contents() {
            let what = format!("{} raw {}", co.fs, co.raw);
            cut_off(&co).await;
            write_elsewhere(&co).await;
            let kept = co.fake.iqn().to_string();
            // The session lives again just before the volume comes back, and what waited here would be written.
            co.fake.machine().caches.clear();
            co.fake.come_back();
            co.fake.keep_session_with(&kept);
            // The pages of a raw device go with its last pod, before the driver is asked anything.
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
async fn what_a_pod_still_has_is_not_touched() {
    for co in contents() {
        co.stage().await.unwrap();
        co.publish("/pods/1", false).await.unwrap();
        co.fake.publish_anew();
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
async fn a_part_that_a_pod_has_counts() {
    let co = Co::new();
    co.stage().await.unwrap();
    let mut part = co.fake.machine().mounts[0].clone();
    "/data".clone_into(&mut part.root);
    "/pods/sub".clone_into(&mut part.point);
    co.fake.machine().mounts.push(part);
    co.fake.publish_anew();
    fails(co.stage().await, Code::Aborted, "/pods/sub");
}

#[tokio::test]
async fn another_mount_namespace_keeps_the_file_system() {
    for co in [Co::new(), Co::with_fs("xfs"), Co::with_fs("btrfs")] {
        co.stage().await.unwrap();
        co.fake.pin("/staging");
        co.fake.publish_anew();
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
    co.fake.publish_anew();
    co.fake.keep_session_with(&co.fake.iqn_before().to_string());
    co.fake.machine().sealed = Some(std::io::ErrorKind::ReadOnlyFilesystem);
    fails(co.stage().await, Code::Aborted, "offline");
    assert_eq!(co.fake.mounted(), ["/staging"]);
    co.fake.machine().sealed = None;
    co.stage().await.unwrap();
}

#[tokio::test]
async fn every_step_may_be_the_last_one() {
    for broken in [
        "umount /staging",
        "iscsiadm -m session -r 1 --logout",
        "iscsiadm -m node -T",
    ] {
        for second_stage in [false, true] {
            let co = Co::new();
            cut_off(&co).await;
            write_elsewhere(&co).await;
            co.unpublish("/pods/1").await.unwrap();
            co.fake.come_back();
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
async fn several_paths_and_their_map_go_before_the_new_ones_come() {
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
            co.fake.come_back();
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
async fn a_map_without_paths_is_of_an_ended_publication() {
    let portals = ["10.0.0.5:3260", "10.0.0.6:3260"];
    let co = Co::new();
    co.fake.start_multipathd();
    co.stage_through(&portals).await.unwrap();
    for session in [1, 2] {
        co.fake.machine().log_out(session);
    }
    co.fake.publish_anew();
    co.stage_through(&portals).await.unwrap();
    let log = co.fake.ran("");
    let at = |word: &str| log.iter().rposition(|line| line.contains(word));
    assert!(at("multipath -f") < at("--login"), "{log:#?}");
}

#[tokio::test]
async fn a_secret_of_the_class_comes_with_the_next_stage_only() {
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
    co.fake.publish_anew();
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
async fn a_volume_of_the_release_before_is_used_as_it_is() {
    for co in contents() {
        let old = crate::publication::Iqn::without_nonce(
            &UUID.parse().unwrap(),
            &co.fake.iqn().publication().unwrap().1,
        );
        co.fake.call_target(&old.to_string());
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
async fn unstage_lets_all_publications_go() {
    let co = Co::new();
    co.stage().await.unwrap();
    let before = co.fake.iqn_now_and_kept();
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
async fn a_session_without_a_disk_is_not_staged() {
    let co = Co::raw();
    // The driver died after its login.
    co.fake.log_in();
    for session in co.fake.machine().sessions.values_mut() {
        session.seen = None;
    }
    co.publish("/pods/1", false).await.unwrap();
    assert_eq!(co.fake.mounted(), ["/pods/1"]);
}
