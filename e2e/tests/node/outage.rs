//! A NAS that is down. The node half never calls it (design.md#the-node-never-calls-dsm and #unstage-needs-no-nas), so node calls
//! that need no NAS still succeed.

use e2e::GIB;
use e2e::harness::test_volume::Content;

use crate::story::Story;
use e2e::harness::writer::Writer;

/// design.md#unstage-needs-no-nas
#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_unstaged_while_the_nas_is_down() {
    for content in Content::ALL {
        let test = "outage::a_volume_is_unstaged_while_the_nas_is_down";
        let Some(mut story) = Story::begin(test, GIB, content).await else {
            return;
        };
        story.attach().await;
        let data = story.write("before");
        story.cluster.nas.kill();
        // The NAS's journal is down with it, so these calls do not check that the NAS received nothing.
        story.volume.node_unpublish(&story.cluster).await.unwrap();
        story.volume.unstage(&story.cluster).await.unwrap();
        story.volume.unstage(&story.cluster).await.unwrap();
        story.cluster.nas.restart().await.unwrap();

        story.stage().await.unwrap();
        story.node_publish().await.unwrap();
        story.must_hold(&data);
        story.end().await;
    }
}

/// The driver starts, stages and responds about its volumes without a reachable Web API.
/// design.md#the-node-never-calls-dsm
#[tokio::test(flavor = "multi_thread")]
async fn a_node_works_while_the_web_api_is_down() {
    let test = "outage::a_node_works_while_the_web_api_is_down";
    let Some(mut story) = Story::begin(test, GIB, Content::Fs("xfs")).await else {
        return;
    };
    story.publish().await;
    story.cluster.nas.kill();
    story.cluster.restart_driver().await.unwrap();
    let (volume, cluster) = (&story.volume, &story.cluster);
    volume.stage(cluster).await.unwrap();
    volume.node_publish(cluster).await.unwrap();
    volume.stats(cluster).await.unwrap();
    assert_eq!(volume.expand_on_node(cluster, GIB).await.unwrap(), GIB);
    volume.node_unpublish(cluster).await.unwrap();
    story.cluster.nas.restart().await.unwrap();
    story.end().await;
}

/// A power cut of the NAS while a pod writes: writing continues afterwards, and expansion works once the NAS is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_outlives_a_restart_of_the_nas() {
    for content in [Content::Fs("xfs"), Content::Fs("btrfs"), Content::Block] {
        let test = "outage::a_pod_outlives_a_restart_of_the_nas";
        let Some(mut story) = Story::begin(test, GIB, content).await else {
            return;
        };
        story.attach().await;
        let file = story.volume.file("log");
        let writer = Writer::start(&file).unwrap();
        writer.must_keep_writing().await.unwrap();
        story.cluster.nas.kill();
        writer.must_keep_writing().await.unwrap();
        let refused = story.volume.expand_lun(&story.cluster, 2 * GIB).await;
        assert_eq!(refused.unwrap_err().code(), tonic::Code::Unavailable);
        story.cluster.nas.restart().await.unwrap();
        writer.must_keep_writing().await.unwrap();

        story.grow_lun(2 * GIB).await;
        assert_eq!(story.grow_node(2 * GIB).await.unwrap(), 2 * GIB);
        writer.must_keep_writing().await.unwrap();
        story.must_have(2 * GIB);
        writer.stop().unwrap();
        story.end().await;
    }
}
