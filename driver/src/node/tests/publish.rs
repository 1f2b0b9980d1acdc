//! NodePublishVolume, NodeUnpublishVolume and NodeGetVolumeStats.

use super::*;

#[tokio::test]
async fn a_volume_is_published_and_unpublished() {
    let co = Co::new();
    co.stage().await.unwrap();
    for _ in 0..2 {
        co.publish("/pods/1", false).await.unwrap();
        assert_eq!(co.fake.mounted(), ["/staging", "/pods/1"]);
    }
    for _ in 0..2 {
        co.unpublish("/pods/1").await.unwrap();
        assert_eq!(co.fake.mounted(), ["/staging"]);
        assert!(
            !co.fake.machine().dirs.contains("/pods/1"),
            "the directory that was made is removed"
        );
    }
}

#[tokio::test]
async fn readonly_is_enforced_from_the_first_moment() {
    let co = Co::new();
    co.stage().await.unwrap();
    co.publish("/pods/1", true).await.unwrap();
    co.publish("/pods/1", true).await.unwrap();
    co.publish("/pods/2", false).await.unwrap();
    let readonly: Vec<bool> = co
        .fake
        .machine()
        .mounts
        .iter()
        .map(crate::host::mount::Mount::is_readonly)
        .collect();
    assert_eq!(
        co.fake.mounted(),
        ["/staging", "/pods/1", "/pods/2"],
        "no temporary mount is left"
    );
    assert_eq!(readonly, [false, true, false]);
    fails(
        co.publish("/pods/1", false).await,
        Code::AlreadyExists,
        "read-only",
    );
    fails(
        co.publish("/pods/2", true).await,
        Code::AlreadyExists,
        "read-write",
    );
    let binds = co.fake.ran("mount -o");
    let temp_mount = "/staging.csi.synology.com-readonly";
    assert_eq!(
        binds[..3],
        [
            format!("mount -o bind /staging {temp_mount}"),
            format!("mount -o remount,bind,ro {temp_mount}"),
            format!("mount -o bind {temp_mount} /pods/1")
        ]
    );
}

/// What Kubernetes requests if a pod has `readOnly: true` on a claim of volumeMode Block; another pod may write.
#[tokio::test]
async fn a_raw_device_is_published_to_a_reader_and_a_writer() {
    let co = Co::raw();
    co.stage().await.unwrap();
    for _ in 0..2 {
        co.publish("/pods/1", true).await.unwrap();
        co.publish("/pods/2", false).await.unwrap();
    }
    assert_eq!(co.fake.mounted(), ["/pods/1", "/pods/2"]);
    for target in ["/pods/1", "/pods/2"] {
        co.unpublish(target).await.unwrap();
    }
    co.unstage().await.unwrap();
}

#[tokio::test]
async fn a_crash_in_a_readonly_publication_is_repaired() {
    for broken in [
        "mount -o remount",
        "mount -o bind /staging.",
        "umount /staging.",
    ] {
        let mut co = Co::new();
        co.mode = Mode::SingleNodeWriter;
        co.stage().await.unwrap();
        co.fake.answer(broken, 1, "killed");
        assert!(co.publish("/pods/1", true).await.is_err());
        assert!(
            co.fake
                .machine()
                .mounts
                .iter()
                .all(|mount| mount.point != "/pods/1" || mount.is_readonly())
        );
        co.publish("/pods/1", true).await.unwrap();
        co.unpublish("/pods/1").await.unwrap();
        co.unstage().await.unwrap();
        assert!(co.fake.mounted().is_empty(), "{broken}");
    }
}

#[tokio::test]
async fn single_writers_have_one_path() {
    for mode in [Mode::SingleNodeWriter, Mode::SingleNodeSingleWriter] {
        for mut co in [Co::new(), Co::with_fs("btrfs"), Co::raw()] {
            co.mode = mode;
            co.stage().await.unwrap();
            co.publish("/pods/1", false).await.unwrap();
            co.publish("/pods/1", false).await.unwrap();
            fails(
                co.publish("/pods/2", false).await,
                Code::FailedPrecondition,
                "/pods/1",
            );
            co.unpublish("/pods/1").await.unwrap();
            co.publish("/pods/2", false).await.unwrap();
        }
    }
    let co = Co::new();
    co.stage().await.unwrap();
    co.publish("/pods/1", false).await.unwrap();
    co.publish("/pods/2", false).await.unwrap();
}

#[tokio::test]
async fn a_volume_is_published_as_it_is_staged() {
    let mut co = Co::new();
    // Only NodeStageVolume formats.
    fails(
        co.publish("/pods/1", false).await,
        Code::FailedPrecondition,
        "stage the volume first",
    );
    assert!(co.fake.ran("mkfs").is_empty() && co.fake.machine().sessions.is_empty());
    co.fake.put_file_system(FsType::Ext4, Bytes::GIB);
    // The CO may believe that a volume is staged although the teardown of an ended publication has unmounted it.
    co.publish("/pods/1", false).await.unwrap();
    assert_eq!(co.fake.mounted(), ["/staging", "/pods/1"]);
    co.unpublish("/pods/1").await.unwrap();
    co.fs = "xfs";
    fails(
        co.publish("/pods/1", false).await,
        Code::FailedPrecondition,
        "staged as ext4",
    );
    (co.fs, co.flags) = ("", vec!["noexec".to_owned()]);
    fails(
        co.publish("/pods/1", false).await,
        Code::FailedPrecondition,
        "noexec",
    );
    co.flags.clear();
    fails(
        co.publish("/nowhere/1", false).await,
        Code::FailedPrecondition,
        "/nowhere/1",
    );
    assert_eq!(co.fake.mounted(), ["/staging"]);
}

/// After a final error the CO forgets the target path and never unpublishes it: the volume could never be unstaged.
/// design.md#final-codes
#[tokio::test]
async fn a_final_answer_leaves_no_publication() {
    // Staged read-only, and then requested read-write.
    let mut co = Co::new();
    co.fake.put_file_system(FsType::Ext4, Bytes::GIB);
    co.mode = Mode::SingleNodeReaderOnly;
    co.stage().await.unwrap();
    co.mode = Mode::SingleNodeWriter;
    fails(
        co.publish("/pods/1", false).await,
        Code::FailedPrecondition,
        "staged read-only",
    );
    assert!(co.fake.ran("mount -o bind").is_empty());
    co.unstage().await.unwrap();

    // A foreign file at the target path of a read-only publication, which takes two steps.
    let co = Co::new();
    co.stage().await.unwrap();
    co.fake.machine().files.insert("/pods/1".to_owned(), vec![]);
    fails(
        co.publish("/pods/1", true).await,
        Code::FailedPrecondition,
        "something else",
    );
    assert_eq!(co.fake.mounted(), ["/staging"]);
    assert!(co.fake.ran("mount -o bind").is_empty());

    // The kernel shows another mount than requested.
    for was_there in [false, true] {
        let co = Co::new();
        co.stage().await.unwrap();
        if was_there {
            co.fake.make_dir("/pods/1");
        }
        co.fake.machine().binds_readonly = true;
        fails(
            co.publish("/pods/1", false).await,
            Code::AlreadyExists,
            "read-only",
        );
        assert_eq!(co.fake.mounted(), ["/staging"]);
        assert_eq!(co.fake.machine().dirs.contains("/pods/1"), was_there);
        co.fake.answer("umount /pods/1", 32, "target is busy");
        fails(
            co.publish("/pods/1", false).await,
            Code::Unavailable,
            "rolling back",
        );
        fails(
            co.publish("/pods/1", false).await,
            Code::AlreadyExists,
            "read-only",
        );
        co.unpublish("/pods/1").await.unwrap();
        co.unstage().await.unwrap();
    }
}

/// With a symbolic link in it, a path could lead anywhere on the node.
#[tokio::test]
async fn paths_stay_below_the_kubelets_directory() {
    let fake = Fake::with_lun();
    fake.make_dir("/kubelet/staging");
    fake.make_dir("/kubelet/pods");
    let mut co = Co::on_host(fake);
    co.node = Node::new(
        co.fake.clone(),
        NODE.to_owned(),
        "csi.synology.com".to_owned(),
        Duration::from_secs(120),
        InFlight::default(),
    )
    .with_kubelet_dir(Some("/kubelet".to_owned()));
    fails(
        co.stage().await,
        Code::FailedPrecondition,
        "not below /kubelet",
    );
    assert!(co.fake.machine().log.is_empty());
    co.staging = "/kubelet/staging";
    co.stage().await.unwrap();
    co.publish("/kubelet/pods/1", false).await.unwrap();
    fails(
        co.publish("/pods/1", false).await,
        Code::FailedPrecondition,
        "--kubelet-dir",
    );
    co.fake
        .machine()
        .links
        .extend([("/kubelet/pods".to_owned(), "/etc".to_owned())]);
    for refused in [
        co.publish("/kubelet/pods/2", false).await,
        co.unpublish("/kubelet/pods/2").await,
        co.stats("/kubelet/pods/2").await.map(drop),
    ] {
        let status = refused.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        assert!(status.message().contains("leads to /etc/2"), "{status}");
    }
    co.fake.machine().links.clear();
    co.unpublish("/kubelet/pods/1").await.unwrap();
    co.unstage().await.unwrap();
    assert!(co.fake.mounted().is_empty());
}

#[tokio::test]
async fn foreign_files_at_the_target_are_not_replaced() {
    let co = Co::new();
    co.stage().await.unwrap();
    co.fake
        .machine()
        .files
        .insert("/pods/1".to_owned(), b"data".to_vec());
    fails(
        co.publish("/pods/1", false).await,
        Code::FailedPrecondition,
        "something else",
    );
    fails(
        co.unpublish("/pods/1").await,
        Code::FailedPrecondition,
        "holds data",
    );
    co.fake.machine().dirs.insert("/pods/2".to_owned());
    co.fake
        .machine()
        .files
        .insert("/pods/2/file".to_owned(), vec![]);
    fails(
        co.unpublish("/pods/2").await,
        Code::FailedPrecondition,
        "holds data",
    );
    assert!(co.fake.machine().files.contains_key("/pods/2/file"));
}

#[tokio::test]
async fn a_raw_device_is_published_at_a_file() {
    let co = Co::raw();
    for _ in 0..2 {
        co.publish("/pods/1", false).await.unwrap();
    }
    assert_eq!(co.fake.ran("mount"), ["mount -o bind /dev/sdb /pods/1"]);
    let usage = co.stats("/pods/1").await.unwrap();
    assert_eq!(
        (usage.len(), usage[0].total, usage[0].available),
        (1, Bytes::GIB.as_i64(), 0)
    );
    fails(
        co.stats("/staging").await,
        Code::NotFound,
        "nothing is mounted",
    );
    co.unpublish("/pods/1").await.unwrap();
    assert!(!co.fake.machine().files.contains_key("/pods/1"));
}

/// design.md#identity-before-action
#[tokio::test]
async fn a_raw_device_is_identified_again() {
    let co = Co::raw();
    co.stage().await.unwrap();
    let other = "00000000-f296-4d4b-b712-a85c139f9dac";
    co.fake
        .machine()
        .targets
        .values_mut()
        .for_each(|target| target.serial = other.to_owned());
    fails(
        co.publish("/pods/1", false).await,
        Code::FailedPrecondition,
        other,
    );
}

/// design.md#volume-handle
#[tokio::test]
async fn unpublishing_is_idempotent() {
    let mut co = Co::new();
    co.unpublish("/pods/1").await.unwrap();
    co.unpublish("/nowhere/1").await.unwrap();
    co.volume_id = "never issued".to_owned();
    co.unpublish("/pods/1").await.unwrap();
    fails(co.unstage().await, Code::NotFound, "never issued");
    fails(
        co.publish("/pods/1", false).await,
        Code::NotFound,
        "never issued",
    );
    fails(co.stats("/pods/1").await, Code::NotFound, "never issued");
    fails(
        co.expand("/pods/1", Bytes(1), Bytes(0)).await,
        Code::NotFound,
        "never issued",
    );
}

#[tokio::test]
async fn a_publication_that_lost_its_device_can_be_unpublished() {
    for co in [Co::new(), Co::raw()] {
        co.stage().await.unwrap();
        co.publish("/pods/1", false).await.unwrap();
        co.fake.machine().sessions.clear();
        // The kernel marks a deleted device node.
        for mount in &mut co.fake.machine().mounts {
            if mount.fs == "devtmpfs" {
                mount.root += "//deleted";
            }
        }
        co.unpublish("/pods/1").await.unwrap();
        assert!(!co.fake.mounted().contains(&"/pods/1".to_owned()));
    }
}

#[tokio::test]
async fn stats_count_bytes_and_inodes() {
    let co = Co::new();
    fails(
        co.stats("/staging").await,
        Code::NotFound,
        "nothing is mounted",
    );
    co.stage().await.unwrap();
    co.publish("/pods/1", true).await.unwrap();
    for path in ["/staging", "/pods/1"] {
        let usage = co.stats(path).await.unwrap();
        assert_eq!(
            (usage[0].total, usage[0].used, usage[0].available),
            (1000, 300, 600)
        );
        assert_eq!(
            (usage[1].total, usage[1].used, usage[1].available),
            (10, 3, 7)
        );
    }
    fails(co.stats("some/path").await, Code::NotFound, "not absolute");
    fails(
        co.stats("/pods/2").await,
        Code::NotFound,
        "nothing is mounted",
    );
    fails(
        co.stats("/nowhere/2").await,
        Code::NotFound,
        "does not exist",
    );
}
