//! Repeated node calls, in an odd order, or after the node lost its state (design.md#unstage-needs-no-nas).

use e2e::GIB;
use e2e::harness::process::run;
use e2e::harness::test_volume::{Content, TestVolume};
use tonic::Code;

use crate::story::Story;
use e2e::harness::inspect;

#[tokio::test(flavor = "multi_thread")]
async fn each_node_call_twice() {
    for content in Content::ALL {
        let Some(mut story) = Story::begin("idempotency::each_node_call_twice", GIB, content).await
        else {
            return;
        };
        story.publish().await;
        let published = story.volume.publish_context.clone();
        story.publish().await;
        assert_eq!(story.volume.publish_context, published);
        for _ in 0..2 {
            story.stage().await.unwrap();
        }
        for _ in 0..2 {
            story.node_publish().await.unwrap();
        }
        assert_eq!(mounts(&story).len(), expected_mounts(content));
        let data = story.write("before");
        // The first call again, after the second was made.
        story.stage().await.unwrap();
        assert_eq!(mounts(&story).len(), expected_mounts(content));
        for _ in 0..2 {
            story.grow_node(GIB).await.unwrap();
            story
                .node(story.volume.stats(&story.cluster))
                .await
                .unwrap();
        }
        story.must_hold(&data);
        for _ in 0..2 {
            story.node_unpublish().await.unwrap();
        }
        for _ in 0..2 {
            story.unstage().await.unwrap();
        }
        for _ in 0..2 {
            story.volume.unpublish(&story.cluster).await.unwrap();
        }
        // On a node that never had the volume, or no longer has it.
        story.node_unpublish().await.unwrap();
        story.unstage().await.unwrap();
        story.end().await;
    }
}

/// The number of mounts of a volume: a raw device has none at its staging path.
fn expected_mounts(content: Content) -> usize {
    if content == Content::Block { 1 } else { 2 }
}

fn mounts(story: &Story) -> Vec<std::path::PathBuf> {
    e2e::harness::janitor::mounts_below(story.cluster.folder()).unwrap()
}

/// A volume that a pod still uses is not unstaged.
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_in_use_is_not_unstaged() {
    for content in [Content::Fs("xfs"), Content::Block] {
        let test = "idempotency::a_volume_in_use_is_not_unstaged";
        let Some(mut story) = Story::begin(test, GIB, content).await else {
            return;
        };
        story.attach().await;
        let data = story.write("before");
        let refused = story.unstage().await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        let target = story.volume.target.to_string_lossy().into_owned();
        assert!(refused.message().contains(&target), "{refused}");
        story.must_hold(&data);
        story.end().await;
    }
}

/// The external-attacher was faster than the kubelet: the target is gone while the volume is still mounted.
/// design.md#unstage-needs-no-nas
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_unstaged_after_its_target_is_gone() {
    for content in Content::ALL {
        let test = "idempotency::a_volume_is_unstaged_after_its_target_is_gone";
        let Some(mut story) = Story::begin(test, GIB, content).await else {
            return;
        };
        story.attach().await;
        story.volume.unpublish(&story.cluster).await.unwrap();
        story.node_unpublish().await.unwrap();
        story.unstage().await.unwrap();
        story.end().await;
    }
}

/// The same, and then the pod comes back before the cleanup: the mount without a target is removed, and the
/// volume is mounted again with its data.
/// design.md#unstage-needs-no-nas
#[tokio::test(flavor = "multi_thread")]
async fn a_stage_removes_a_session_that_lost_its_target() {
    for content in Content::ALL {
        let test = "idempotency::a_stage_removes_a_session_that_lost_its_target";
        let Some(mut story) = Story::begin(test, GIB, content).await else {
            return;
        };
        story.attach().await;
        let data = story.write("before");
        story.node_unpublish().await.unwrap();
        story.volume.unpublish(&story.cluster).await.unwrap();
        story.attach().await;
        story.must_hold(&data);
        story.end().await;
    }
}

/// After a power cycle there are no mounts, no sessions and no driver; node records, the NAS and the kubelet's desired state
/// persist.
/// design.md#unstage-needs-no-nas
#[tokio::test(flavor = "multi_thread")]
async fn a_node_reboots() {
    for content in Content::ALL {
        let Some(mut story) = Story::begin("idempotency::a_node_reboots", GIB, content).await
        else {
            return;
        };
        story.attach().await;
        let data = story.write("before");
        story.cluster.plugin.process.kill();
        for point in mounts(&story).iter().rev() {
            run("umount", [point]).unwrap();
        }
        let initiator = story.cluster.initiator().unwrap();
        initiator.cleanup().unwrap();
        assert_eq!(initiator.count("etc/iscsi/nodes").unwrap(), 1);
        story.cluster.restart_driver().await.unwrap();
        // The startup sweep removed the unused record.
        let initiator = story.cluster.initiator().unwrap();
        assert_eq!(initiator.count("etc/iscsi/nodes").unwrap(), 0);

        story.stage().await.unwrap();
        story.node_publish().await.unwrap();
        story.must_hold(&data);
        story.must_have(GIB);
        story.end().await;
    }
}

/// Sessions and devices are gone, and the mounts remain without a device. A live session and its record are kept.
/// design.md#unstage-needs-no-nas
#[tokio::test(flavor = "multi_thread")]
async fn a_stage_removes_a_mount_without_a_device() {
    for content in Content::ALL {
        let test = "idempotency::a_stage_removes_a_mount_without_a_device";
        let Some(mut story) = Story::begin(test, GIB, content).await else {
            return;
        };
        story.attach().await;
        let data = story.write("before");
        story.cluster.initiator().unwrap().cleanup().unwrap();
        story.cluster.restart_driver().await.unwrap();
        story.node_unpublish().await.unwrap();
        story.stage().await.unwrap();
        story.node_publish().await.unwrap();
        story.must_hold(&data);
        story.end().await;
    }
}

/// The driver starts while volumes are in use: its startup sweep does not touch them.
/// design.md#unstage-needs-no-nas
#[tokio::test(flavor = "multi_thread")]
async fn the_sweep_leaves_what_is_in_use() {
    let test = "idempotency::the_sweep_leaves_what_is_in_use";
    let Some(mut story) = Story::begin(test, GIB, Content::Fs("xfs")).await else {
        return;
    };
    story.attach().await;
    let raw = TestVolume::create(&story.cluster, "pvc-raw", GIB, Content::Block)
        .await
        .unwrap();
    let mut raw = raw;
    raw.publish(&story.cluster).await.unwrap();
    raw.stage(&story.cluster).await.unwrap();
    let before = story.cluster.initiator().unwrap().status().unwrap();
    story.cluster.restart_driver().await.unwrap();
    let after = story.cluster.initiator().unwrap().status().unwrap();
    assert_eq!(after, before);
    assert!(inspect::is_mounted(&story.volume.target));
    raw.detach(&story.cluster).await.unwrap();
    raw.delete(&story.cluster).await.unwrap();
    story.end().await;
}
