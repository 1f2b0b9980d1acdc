//! Wrong disks (design.md#identity-before-action): the driver re-reads the disk's identity before every action on it,
//! and it formats only a disk that is ours *and* blank.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use e2e::GIB;
use e2e::harness::test_volume::{Content, TestVolume};
use serde_json::Value;
use tonic::{Code, Status};

use crate::story::Story;
use e2e::harness::inspect::ImageSnapshot;

/// Another volume of the same driver, whose LUN is mapped in place of the story's.
struct SwappedLun {
    volume: TestVolume,
    unit: Value,
    file: PathBuf,
}

impl Story {
    async fn swapped(&self) -> SwappedLun {
        let mut volume = TestVolume::create(&self.cluster, "pvc-2", 2 * GIB, self.volume.content)
            .await
            .unwrap();
        volume.publish(&self.cluster).await.unwrap();
        let other_unit = Story::unit_of(&self.target_of(&volume)).clone();
        let file = PathBuf::from(other_unit["file"].as_str().unwrap());
        SwappedLun {
            volume,
            unit: other_unit,
            file,
        }
    }

    fn unit_of(target: &Value) -> &Value {
        target["luns"].as_object().unwrap().values().next().unwrap()
    }

    /// Maps the other LUN at the volume's mapping index, while the session is live.
    fn swap_mapping(&self, unit: &Value) -> Value {
        let real = self.target();
        let mut changed = real.clone();
        for place in changed["luns"].as_object_mut().unwrap().values_mut() {
            place.clone_from(unit);
        }
        self.put_target(&changed);
        real
    }

    #[track_caller]
    fn must_name_both(&self, refused: &Status, swapped: &SwappedLun) {
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        for serial in [self.volume.uuid(), swapped.volume.uuid()] {
            assert!(
                refused.message().contains(serial),
                "no {serial} in: {refused}"
            );
        }
    }

    /// Opens a raw device exclusively, as a database does.
    fn database(&self) -> File {
        let alone = nix::libc::O_EXCL;
        OpenOptions::new()
            .read(true)
            .custom_flags(alone)
            .open(&self.volume.target)
            .unwrap()
    }

    async fn end_without(self, swapped: SwappedLun) {
        swapped.volume.unpublish(&self.cluster).await.unwrap();
        swapped.volume.delete(&self.cluster).await.unwrap();
        self.end().await;
    }
}

/// The serial cached in sysfs would still match: only a rescan shows the difference.
/// design.md#identity-before-action
#[tokio::test(flavor = "multi_thread")]
async fn a_mapping_index_that_another_lun_took_is_not_grown() {
    for content in [Content::Fs("xfs"), Content::Fs("btrfs"), Content::Block] {
        let test = "identity::a_mapping_index_that_another_lun_took_is_not_grown";
        let Some(mut story) = Story::begin(test, GIB, content).await else {
            return;
        };
        story.attach().await;
        let data = story.write("before");
        let swapped = story.swapped().await;
        let snapshot = ImageSnapshot::take(&swapped.file).unwrap();
        // An unused loop device would be replaced as a whole; a disk keeps its device name, and so does a loop device in use.
        let database = (content == Content::Block).then(|| story.database());
        let real = story.swap_mapping(&swapped.unit);

        for size in [GIB, 2 * GIB] {
            let refused = story.grow_node(size).await.unwrap_err();
            story.must_name_both(&refused, &swapped);
        }
        let refused = story.stage().await.unwrap_err();
        story.must_name_both(&refused, &swapped);
        if content == Content::Block {
            let refused = story.node_publish().await.unwrap_err();
            story.must_name_both(&refused, &swapped);
        }
        snapshot.ensure_unchanged().unwrap();

        // The swap is undone, and nothing was lost.
        story.put_target(&real);
        story.grow_node(GIB).await.unwrap();
        drop(database);
        story.must_hold(&data);
        story.detach().await;
        story.attach().await;
        story.must_hold(&data);
        story.end_without(swapped).await;
    }
}

/// A blank LUN in place of the volume's is the worst case, because the driver would format it. Its serial shows whose it is.
/// design.md#identity-before-action
#[tokio::test(flavor = "multi_thread")]
async fn a_blank_lun_of_another_volume_is_not_formatted() {
    for fs in ["ext4", "xfs", "btrfs"] {
        let test = "identity::a_blank_lun_of_another_volume_is_not_formatted";
        let Some(mut story) = Story::begin(test, GIB, Content::Fs(fs)).await else {
            return;
        };
        story.publish().await;
        let swapped = story.swapped().await;
        let snapshot = ImageSnapshot::take(&swapped.file).unwrap();
        let real = story.swap_mapping(&swapped.unit);

        for _ in 0..2 {
            let refused = story.stage().await.unwrap_err();
            story.must_name_both(&refused, &swapped);
            // The error is final: no session may be left behind.
            let sessions = story.cluster.initiator().unwrap();
            assert_eq!(sessions.count("sys/class/iscsi_session").unwrap(), 0);
        }
        snapshot.ensure_unchanged().unwrap();

        story.put_target(&real);
        story.stage().await.unwrap();
        story.must_have(GIB);
        story.end_without(swapped).await;
    }
}

/// A staged raw device that is not in use may change under the session: the new disk is not published to a pod.
/// design.md#identity-before-action
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_not_shown_the_device_of_another_volume() {
    let test = "identity::a_pod_is_not_shown_the_device_of_another_volume";
    let Some(mut story) = Story::begin(test, GIB, Content::Block).await else {
        return;
    };
    story.publish().await;
    story.stage().await.unwrap();
    let swapped = story.swapped().await;
    let real = story.swap_mapping(&swapped.unit);
    let refused = story.node_publish().await.unwrap_err();
    story.must_name_both(&refused, &swapped);
    assert!(std::fs::symlink_metadata(&story.volume.target).is_err());
    story.put_target(&real);
    story.stage().await.unwrap();
    story.node_publish().await.unwrap();
    story.end_without(swapped).await;
}

/// A device that holds one file system is not reformatted with another, whatever the request says.
/// design.md#identity-before-action
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_with_another_file_system_is_left_alone() {
    for (has, asked) in [("ext4", "xfs"), ("xfs", "btrfs"), ("btrfs", "ext4")] {
        let test = "identity::a_volume_with_another_file_system_is_left_alone";
        let Some(mut story) = Story::begin(test, GIB, Content::Fs(has)).await else {
            return;
        };
        story.attach().await;
        let data = story.write("before");
        let file = story.lun_file();
        story.node_unpublish().await.unwrap();
        story.unstage().await.unwrap();
        let snapshot = ImageSnapshot::take(&file).unwrap();
        let context = std::mem::take(&mut story.volume.volume_context);
        story.volume.content = Content::Fs(asked);

        let refused = story.stage().await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(
            refused.message().contains(&format!("holds {has}")),
            "{refused}"
        );
        snapshot.ensure_unchanged().unwrap();

        (story.volume.content, story.volume.volume_context) = (Content::Fs(has), context);
        story.stage().await.unwrap();
        story.node_publish().await.unwrap();
        story.must_hold(&data);
        story.end().await;
    }
}
