//! Expansion (design.md#expansion-is-read-back, #large-enough-already and #node-expansion-is-always-required): first the LUN,
//! then the device after a rescan, then the file system.

use e2e::harness::skip::{can_grow_mounted_ext4, skip};
use e2e::harness::test_volume::Content;
use e2e::{GIB, MIB};
use proto::csi;
use serde_json::json;
use tonic::Code;

use crate::story::Story;

const EXT4: Content = Content::Fs("ext4");
const XFS: Content = Content::Fs("xfs");
const BTRFS: Content = Content::Fs("btrfs");

#[tokio::test(flavor = "multi_thread")]
async fn xfs_grows_while_mounted() {
    grows_while_in_use("expand::xfs_grows_while_mounted", XFS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn btrfs_grows_while_mounted() {
    grows_while_in_use("expand::btrfs_grows_while_mounted", BTRFS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_device_grows_while_in_use() {
    grows_while_in_use("expand::a_raw_device_grows_while_in_use", Content::Block).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ext4_grows_while_mounted() {
    const TEST: &str = "expand::ext4_grows_while_mounted";
    if can_grow_mounted_ext4() {
        grows_while_in_use(TEST, EXT4).await;
    } else {
        skip(
            TEST,
            "CAP_SYS_RESOURCE is missing: the kernel refuses to grow a mounted ext4",
        );
    }
}

async fn grows_while_in_use(test: &str, content: Content) {
    let Some(mut story) = Story::begin(test, GIB, content).await else {
        return;
    };
    story.attach().await;
    story.must_have(GIB);
    let data = story.write("before");

    story.grow_lun(2 * GIB).await;
    assert_eq!(story.grow_node(2 * GIB).await.unwrap(), 2 * GIB);

    story.must_have(2 * GIB);
    story.must_hold(&data);
    story.write("later");
    story.end().await;
}

/// Without the capability the error says so, nothing is lost, and the remedy that it names works.
/// design.md#node-expansion-is-always-required
#[tokio::test(flavor = "multi_thread")]
async fn a_mounted_ext4_that_may_not_grow_says_why() {
    if can_grow_mounted_ext4() {
        return;
    }
    let test = "expand::a_mounted_ext4_that_may_not_grow_says_why";
    let Some(mut story) = Story::begin(test, GIB, EXT4).await else {
        return;
    };
    story.attach().await;
    let data = story.write("before");
    story.grow_lun(2 * GIB).await;

    for _ in 0..2 {
        let refused = story.grow_node(2 * GIB).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        for word in ["CAP_SYS_RESOURCE", "grant", "staged again"] {
            assert!(
                refused.message().contains(word),
                "no {word} in: {}",
                refused.message()
            );
        }
        assert_eq!(story.claimed(), GIB.unsigned_abs());
        story.must_hold(&data);
    }

    story.detach().await;
    story.attach().await;
    story.must_have(2 * GIB);
    assert_eq!(story.grow_node(2 * GIB).await.unwrap(), 2 * GIB);
    story.must_hold(&data);
    story.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ext4_grows_while_detached() {
    grows_while_detached("expand::ext4_grows_while_detached", EXT4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn xfs_grows_while_detached() {
    grows_while_detached("expand::xfs_grows_while_detached", XFS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn btrfs_grows_while_detached() {
    grows_while_detached("expand::btrfs_grows_while_detached", BTRFS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_device_grows_while_detached() {
    grows_while_detached("expand::a_raw_device_grows_while_detached", Content::Block).await;
}

/// Kubernetes expands the LUN of a volume that no pod uses. The node grows it when the volume is staged,
/// and `NodeExpandVolume` is called once more after that.
async fn grows_while_detached(test: &str, content: Content) {
    let Some(mut story) = Story::begin(test, GIB, content).await else {
        return;
    };
    story.attach().await;
    let data = story.write("before");
    story.detach().await;
    assert_eq!(
        story
            .volume
            .expand_lun(&story.cluster, 2 * GIB)
            .await
            .unwrap(),
        2 * GIB
    );

    story.publish().await;
    story.stage().await.unwrap();
    story.must_have(2 * GIB);
    story.node_publish().await.unwrap();
    assert_eq!(story.grow_node(2 * GIB).await.unwrap(), 2 * GIB);

    story.must_have(2 * GIB);
    story.must_hold(&data);
    story.end().await;
}

/// Whole GiB steps, and sizes that a file system can hardly use.
const LADDER: [i64; 8] = [
    2 * GIB,
    3 * GIB,
    5 * GIB,
    6 * GIB,
    6 * GIB + MIB,
    6 * GIB + 4 * MIB,
    6 * GIB + 300 * MIB,
    7 * GIB,
];

#[tokio::test(flavor = "multi_thread")]
async fn xfs_grows_again_and_again() {
    grows_again_and_again("expand::xfs_grows_again_and_again", XFS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn btrfs_grows_again_and_again() {
    grows_again_and_again("expand::btrfs_grows_again_and_again", BTRFS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ext4_grows_again_and_again() {
    grows_again_and_again("expand::ext4_grows_again_and_again", EXT4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raw_device_grows_again_and_again() {
    grows_again_and_again("expand::a_raw_device_grows_again_and_again", Content::Block).await;
}

async fn grows_again_and_again(test: &str, content: Content) {
    let Some(mut story) = Story::begin(test, GIB, content).await else {
        return;
    };
    story.attach().await;
    let data = story.write("before");
    for size in LADDER {
        story.grow_lun(size).await;
        if content == EXT4 && !can_grow_mounted_ext4() {
            story.node_unpublish().await.unwrap();
            story.unstage().await.unwrap();
            story.stage().await.unwrap();
            story.node_publish().await.unwrap();
        }
        assert_eq!(story.grow_node(size).await.unwrap(), size);
        story.must_have(size);
        story.must_hold(&data);
    }
    story.end().await;
}

/// A size that is not a whole number of MiB is rounded up, and the responses have the actual size.
/// design.md#sizes
#[tokio::test(flavor = "multi_thread")]
async fn responses_have_the_actual_size() {
    let Some(mut story) = Story::begin("expand::responses_have_the_actual_size", GIB, XFS).await
    else {
        return;
    };
    story.attach().await;
    let requested = 2 * GIB + 1;
    assert_eq!(
        story
            .volume
            .expand_lun(&story.cluster, requested)
            .await
            .unwrap(),
        2 * GIB + MIB
    );
    assert_eq!(story.grow_node(requested).await.unwrap(), 2 * GIB + MIB);
    story.must_have(2 * GIB + MIB);
    story.end().await;
}

/// design.md#large-enough-already
#[tokio::test(flavor = "multi_thread")]
async fn an_expansion_that_is_already_done_succeeds() {
    for content in [XFS, Content::Block] {
        let test = "expand::an_expansion_that_is_already_done_succeeds";
        let Some(mut story) = Story::begin(test, 2 * GIB, content).await else {
            return;
        };
        story.attach().await;
        for requested in [1, GIB, 2 * GIB - 1, 2 * GIB] {
            assert_eq!(
                story
                    .volume
                    .expand_lun(&story.cluster, requested)
                    .await
                    .unwrap(),
                2 * GIB,
                "{requested}"
            );
            assert_eq!(
                story.grow_node(requested).await.unwrap(),
                2 * GIB,
                "{requested}"
            );
        }
        // The kubelet may also omit the size.
        assert_eq!(story.grow_node(0).await.unwrap(), 2 * GIB);
        let above = csi::NodeExpandVolumeRequest {
            capacity_range: Some(csi::CapacityRange {
                required_bytes: 0,
                limit_bytes: GIB,
            }),
            volume_capability: Some(story.volume.capability()),
            ..story.bare_expand(&story.volume.target)
        };
        let refused = story
            .node(story.cluster.plugin.node().node_expand_volume(above))
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
        story.must_have(2 * GIB);
        story.end().await;
    }
}

/// The NAS has no space for 100 TiB. The device keeps its size, and a smaller request succeeds.
/// design.md#large-enough-already
#[tokio::test(flavor = "multi_thread")]
async fn a_growth_that_the_nas_refused_is_retried_smaller() {
    let test = "expand::a_growth_that_the_nas_refused_is_retried_smaller";
    let Some(mut story) = Story::begin(test, GIB, BTRFS).await else {
        return;
    };
    story.attach().await;
    let data = story.write("before");

    let full = json!({"kind": "refuse", "code": 18_990_002});
    story
        .cluster
        .nas
        .fault("SYNO.Core.ISCSI.LUN", "set", 1, 1, full)
        .await
        .unwrap();
    let refused = story
        .volume
        .expand_lun(&story.cluster, 100 << 40)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused}");
    story.must_have(GIB);

    story.grow_lun(2 * GIB).await;
    assert_eq!(story.grow_node(2 * GIB).await.unwrap(), 2 * GIB);
    story.must_have(2 * GIB);
    story.must_hold(&data);
    story.end().await;
}

/// The LUN was not expanded: then nothing grows on the node, and the response does not claim that it did.
/// design.md#expansion-is-read-back
#[tokio::test(flavor = "multi_thread")]
async fn a_node_does_not_claim_growth_that_never_was() {
    let test = "expand::a_node_does_not_claim_growth_that_never_was";
    let Some(mut story) = Story::begin(test, GIB, XFS).await else {
        return;
    };
    story.attach().await;
    let refused = story.grow_node(2 * GIB).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(refused.message().contains("grown on the NAS"), "{refused}");
    story.must_have(GIB);
    story.end().await;
}

/// The staging path suffices, and all optional fields can be omitted.
/// design.md#node-expansion-is-always-required
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_grows_through_its_staging_path() {
    for content in [XFS, Content::Block] {
        let test = "expand::a_volume_grows_through_its_staging_path";
        let Some(mut story) = Story::begin(test, GIB, content).await else {
            return;
        };
        story.publish().await;
        story.stage().await.unwrap();
        story.grow_lun(2 * GIB).await;
        let mut bare = story.bare_expand(&story.volume.staging);
        if content == Content::Block {
            // A staged raw device has no mount at its staging path, so the call must set volume_path to it.
            bare.staging_target_path.clone_from(&bare.volume_path);
        }
        let grown = story
            .node(story.cluster.plugin.node().node_expand_volume(bare))
            .await
            .unwrap();
        assert_eq!(grown.into_inner().capacity_bytes, 2 * GIB);
        story.must_have(2 * GIB);

        story.node_publish().await.unwrap();
        story.grow_lun(3 * GIB).await;
        let bare = story.bare_expand(&story.volume.target);
        let grown = story
            .node(story.cluster.plugin.node().node_expand_volume(bare))
            .await
            .unwrap();
        assert_eq!(grown.into_inner().capacity_bytes, 3 * GIB);
        story.must_have(3 * GIB);
        story.end().await;
    }
}
