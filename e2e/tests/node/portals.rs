//! Several portals on a node whose multipathd creates no map, for every reason a daemon can have: one path only
//! (design.md#portals). Two paths and a map are tested in a VM.

use e2e::GIB;
use e2e::harness::skip::needs_root;
use e2e::harness::test_cluster::Plan;
use e2e::harness::test_volume::{Content, TestVolume};
use tonic::Code;

use crate::story::Story;

const PORTALS: [&str; 2] = ["127.0.0.1:3260", "127.0.0.2:3260"];

async fn begin(test: &str, content: Content) -> Option<Story> {
    if needs_root(test) {
        return None;
    }
    let mut plan = Plan::with_node();
    plan.nas.portals = PORTALS.map(str::to_owned).to_vec();
    // As often as possible: no path may be added to the first one.
    plan.driver = ["--path-interval", "1s"].map(str::to_owned).to_vec();
    let cluster = plan.start().await.unwrap();
    let volume = TestVolume::create(&cluster, "pvc-1", GIB, content)
        .await
        .unwrap();
    Some(Story { cluster, volume })
}

/// design.md#portals
#[tokio::test(flavor = "multi_thread")]
async fn without_a_multipathd_that_makes_maps_there_is_one_path() {
    let test = "portals::without_a_multipathd_that_makes_maps_there_is_one_path";
    for (state, content) in [
        ("absent", Content::Fs("ext4")),
        ("stopped-silent", Content::Block),
        ("stopped", Content::Fs("xfs")),
        ("stopped-banner", Content::Fs("btrfs")),
        ("excluding", Content::Block),
    ] {
        let Some(mut story) = begin(test, content).await else {
            return;
        };
        story
            .cluster
            .initiator()
            .unwrap()
            .set_multipathd(state)
            .unwrap();
        story.attach().await;
        let data = story.write("one path");
        // Again, as a restarted kubelet does.
        story.stage().await.unwrap();
        let initiator = story.cluster.initiator().unwrap();
        let sessions = initiator.count("sys/class/iscsi_session").unwrap();
        assert_eq!(sessions, 1, "{state}");
        story.must_hold(&data);
        story.end().await;
    }
}

/// A running multipathd that creates no map is waited for: a second path would be a second disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_multipathd_that_fails_is_an_error_until_it_is_fixed() {
    let test = "portals::a_multipathd_that_fails_is_an_error_until_it_is_fixed";
    let Some(mut story) = begin(test, Content::Fs("xfs")).await else {
        return;
    };
    let multipathd = |story: &Story, state| {
        let initiator = story.cluster.initiator().unwrap();
        initiator.set_multipathd(state).unwrap();
    };
    multipathd(&story, "failing");
    story.publish().await;
    let failed = story.stage().await.unwrap_err();
    assert_eq!(failed.code(), Code::Unavailable, "{failed}");
    multipathd(&story, "stopped");
    story.stage().await.unwrap();
    story.node_publish().await.unwrap();
    story.end().await;
}
