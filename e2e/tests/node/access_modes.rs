//! Access modes and mount options on a node: read-only volumes and pods, mount flags, one pod or several.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;

use e2e::GIB;
use e2e::harness::test_volume::{Content, TestVolume};
use e2e::harness::tools::{fill, fs_bytes, sha256};
use proto::csi::volume_capability::access_mode::Mode;
use tonic::Code;

use crate::story::Story;
use e2e::harness::inspect;

const XFS: Content = Content::Fs("xfs");

#[track_caller]
fn must_be_readonly(point: &Path) {
    let refused = File::create(point.join("written")).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ReadOnlyFilesystem);
    assert!(inspect::options(point).unwrap().contains(&"ro".to_owned()));
}

/// A reader sees the data and cannot change them. If the volume was expanded meanwhile, its file system keeps its size until it
/// is staged writable, and the driver logs that.
/// design.md#node-expansion-is-always-required
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_reads_and_does_not_grow() {
    for fs in ["ext4", "xfs", "btrfs"] {
        let test = "access_modes::a_reader_reads_and_does_not_grow";
        let Some(mut story) = Story::begin(test, GIB, Content::Fs(fs)).await else {
            return;
        };
        story.attach().await;
        let data = story.write("before");
        story.detach().await;

        story.volume.mode = Mode::SingleNodeReaderOnly;
        story.attach().await;
        must_be_readonly(&story.volume.target);
        must_be_readonly(&story.volume.staging);
        story.must_hold(&data);
        story.grow_lun(2 * GIB).await;
        assert_eq!(story.grow_node(2 * GIB).await.unwrap(), 2 * GIB);
        assert_eq!(story.claimed(), GIB.unsigned_abs(), "{fs} grew");
        assert!(
            story.log().contains("mounted read-only"),
            "the driver does not say why {fs} did not grow"
        );
        story.must_hold(&data);
        story.detach().await;

        story.volume.mode = Mode::SingleNodeWriter;
        story.attach().await;
        story.must_have(2 * GIB);
        story.must_hold(&data);
        story.end().await;
    }
}

/// A raw device for readers: the device's write protection stops even root.
#[tokio::test(flavor = "multi_thread")]
async fn a_reader_of_a_raw_device_cannot_write() {
    let test = "access_modes::a_reader_of_a_raw_device_cannot_write";
    let Some(mut story) = Story::begin(test, GIB, Content::Block).await else {
        return;
    };
    story.attach().await;
    let data = story.write("before");
    story.detach().await;
    story.volume.mode = Mode::SingleNodeReaderOnly;
    story.attach().await;
    assert!(fill(&story.volume.target, 4096, 1).is_err());
    story.must_hold(&data);
    story.grow_lun(2 * GIB).await;
    assert_eq!(story.grow_node(2 * GIB).await.unwrap(), 2 * GIB);
    story.must_have(2 * GIB);
    story.detach().await;
    story.volume.mode = Mode::SingleNodeWriter;
    story.attach().await;
    story.write("again");
    story.end().await;
}

/// `readonly` concerns a single pod. It cannot write through its path; expansion uses the staging path.
#[tokio::test(flavor = "multi_thread")]
async fn a_readonly_pod_of_a_writable_volume() {
    let test = "access_modes::a_readonly_pod_of_a_writable_volume";
    let Some(mut story) = Story::begin(test, GIB, XFS).await else {
        return;
    };
    story.attach().await;
    let data = story.write("before");
    story.node_unpublish().await.unwrap();
    story.volume.readonly = true;
    for _ in 0..2 {
        story.node_publish().await.unwrap();
        must_be_readonly(&story.volume.target);
    }
    File::create(story.volume.staging.join("through-staging")).unwrap();
    assert_eq!(
        crate::story::names(story.volume.staging.parent().unwrap()),
        ["staging", "target"]
    );
    story.grow_lun(2 * GIB).await;
    assert_eq!(story.grow_node(2 * GIB).await.unwrap(), 2 * GIB);
    story.must_have(2 * GIB);
    story.must_hold(&data);

    story.volume.readonly = false;
    let refused = story.node_publish().await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists, "{refused}");
    must_be_readonly(&story.volume.target);
    story.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mount_flags_are_kept() {
    for fs in ["ext4", "xfs", "btrfs"] {
        let Some(mut story) =
            Story::begin("access_modes::mount_flags_are_kept", GIB, Content::Fs(fs)).await
        else {
            return;
        };
        story.volume.mount_flags = vec!["noatime".to_owned(), "nosuid,nodev".to_owned()];
        story.attach().await;
        for point in [&story.volume.staging, &story.volume.target] {
            let seen = inspect::options(point).unwrap();
            for flag in ["noatime", "nosuid", "nodev", "rw"] {
                assert!(
                    seen.contains(&flag.to_owned()),
                    "{fs}: no {flag} in {seen:?}"
                );
            }
        }
        // Staging the same volume with other mount flags is not idempotent.
        story.volume.mount_flags.push("noexec".to_owned());
        let refused = story.stage().await.unwrap_err();
        assert_eq!(refused.code(), Code::AlreadyExists, "{refused}");
        story.end().await;
    }
}

/// A mount flag that the file system does not support: the error contains the kernel's message, and nothing is left on the node.
/// Without the flag it works.
#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_mount_flag_leaves_nothing() {
    for fs in ["ext4", "xfs", "btrfs"] {
        let test = "access_modes::an_unknown_mount_flag_leaves_nothing";
        let Some(mut story) = Story::begin(test, GIB, Content::Fs(fs)).await else {
            return;
        };
        story.publish().await;
        story.volume.mount_flags = vec!["frobnicate".to_owned()];
        for _ in 0..2 {
            let refused = story.stage().await.unwrap_err();
            assert!(refused.message().contains("mount"), "{refused}");
            assert!(!inspect::is_mounted(&story.volume.staging));
        }
        story.unstage().await.unwrap();
        let initiator = story.cluster.initiator().unwrap();
        for what in ["sys/class/iscsi_session", "etc/iscsi/nodes"] {
            assert_eq!(initiator.count(what).unwrap(), 0, "{what}");
        }
        story.volume.mount_flags.clear();
        story.stage().await.unwrap();
        story.end().await;
    }
}

/// The same volume with another pod's target path.
fn another_pod(volume: &TestVolume) -> TestVolume {
    let target = volume.target.with_file_name("target-2");
    TestVolume {
        target,
        ..volume.clone()
    }
}

/// ReadWriteOncePod: publishing to a second pod fails until the first is unpublished.
#[tokio::test(flavor = "multi_thread")]
async fn a_single_writer_has_one_pod() {
    for content in [XFS, Content::Block] {
        let Some(mut story) =
            Story::begin("access_modes::a_single_writer_has_one_pod", GIB, content).await
        else {
            return;
        };
        story.volume.mode = Mode::SingleNodeSingleWriter;
        story.attach().await;
        let second = another_pod(&story.volume);
        let refused = story
            .node(second.node_publish(&story.cluster))
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        let first = story.volume.target.to_string_lossy().into_owned();
        assert!(refused.message().contains(&first), "{refused}");
        assert!(!inspect::is_mounted(&second.target));

        story.node_unpublish().await.unwrap();
        story
            .node(second.node_publish(&story.cluster))
            .await
            .unwrap();
        story
            .node(second.node_unpublish(&story.cluster))
            .await
            .unwrap();
        story.end().await;
    }
}

/// ReadWriteOnce: two pods share the volume, and each sees what the other writes. Unpublishing one does not affect the other.
#[tokio::test(flavor = "multi_thread")]
async fn two_pods_share_a_volume() {
    for content in [XFS, Content::Block] {
        let Some(mut story) =
            Story::begin("access_modes::two_pods_share_a_volume", GIB, content).await
        else {
            return;
        };
        story.volume.mode = Mode::SingleNodeMultiWriter;
        story.attach().await;
        let second = another_pod(&story.volume);
        for _ in 0..2 {
            story
                .node(second.node_publish(&story.cluster))
                .await
                .unwrap();
        }
        let data = story.write("before");
        let theirs = data
            .file
            .map_or_else(|| second.path(), |file| second.path().join(file));
        assert_eq!(sha256(&theirs, data.bytes).unwrap(), data.sha256);

        story.grow_lun(2 * GIB).await;
        let grown = story
            .node(second.expand_on_node(&story.cluster, 2 * GIB))
            .await;
        assert_eq!(grown.unwrap(), 2 * GIB);
        story.must_have(2 * GIB);
        if content == XFS {
            assert_eq!(
                fs_bytes(&story.volume.target).unwrap(),
                fs_bytes(&second.target).unwrap()
            );
        }
        story.node_unpublish().await.unwrap();
        assert_eq!(sha256(&theirs, data.bytes).unwrap(), data.sha256);
        assert_eq!(
            story.unstage().await.unwrap_err().code(),
            Code::FailedPrecondition
        );
        story
            .node(second.node_unpublish(&story.cluster))
            .await
            .unwrap();
        assert!(fs::symlink_metadata(&second.target).is_err());
        story.end().await;
    }
}
