//! Bad input gets a clear error and changes nothing: a table over all RPCs. Each row is a call, the expected gRPC code,
//! and what the message must contain (the field, its value, and the remedy); the state of NAS and node must not change.
//! In addition, unusual but legal input that must work.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

#[path = "bad_input/call.rs"]
mod call;
#[path = "bad_input/controller.rs"]
mod controller;
#[path = "bad_input/disk.rs"]
mod disk;
#[path = "bad_input/fixture.rs"]
mod fixture;
#[path = "bad_input/legal.rs"]
mod legal;
#[path = "bad_input/node.rs"]
mod node;
#[path = "bad_input/request.rs"]
mod request;
#[path = "bad_input/staged.rs"]
mod staged;
#[path = "bad_input/table.rs"]
mod table;

use e2e::harness::test_cluster::Plan;
use proto::csi::NodeGetInfoRequest;
use serde_json::json;

use fixture::Fixture;
use node::Node;
use staged::NodeInUse;
use table::Tally;

#[tokio::test]
async fn the_controller_refuses_bad_input() {
    let cluster = Plan::controller().start().await.unwrap();
    let fixture = Fixture::create(&cluster).await.unwrap();
    let mut tally = Tally::default();
    for rows in [
        controller::create_messages(),
        controller::create_state(),
        controller::delete_rows(&fixture),
        controller::publish_rows(&fixture),
        controller::expand_rows(&fixture),
        controller::query_rows(&fixture),
        controller::unsupported_rows(),
    ] {
        tally.refused(&cluster, rows).await;
    }
    tally.finish("bad input, controller", 250);
}

#[tokio::test]
async fn the_controller_refuses_what_a_small_or_broken_nas_cannot_do() {
    let mut tally = Tally::default();
    let mut plan = Plan::controller();
    plan.nas.more = vec!["--model", "DS223"];
    let small = plan.start().await.unwrap();
    tally
        .refused(&small, controller::too_many(&small).await.unwrap())
        .await;
    let broken = Plan::controller().start().await.unwrap();
    for volume in ["volume1", "volume2"] {
        broken
            .nas
            .patch_volume(volume, &json!({"status": "crashed"}))
            .await
            .unwrap();
    }
    tally.refused(&broken, controller::broken()).await;
    tally.finish("bad input, a small and a broken NAS", 5);
}

#[tokio::test]
async fn the_controller_takes_legal_oddities() {
    let cluster = Plan::controller().start().await.unwrap();
    let mut tally = Tally::default();
    legal::life_cycles(&cluster, &mut tally).await;
    legal::calls(&cluster, &mut tally).await;
    legal::smaller_retry(&cluster, &mut tally).await;
    legal::many_nodes(&cluster, &mut tally).await;
    legal::alias(&cluster, &mut tally).await;
    tally.finish("legal oddities, controller", 80);
    assert_eq!(cluster.leftovers().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn the_node_refuses_bad_input() {
    let cluster = Plan::with_node().start().await.unwrap();
    let mut tally = Tally::default();
    let info = cluster
        .plugin
        .node()
        .node_get_info(NodeGetInfoRequest {})
        .await
        .unwrap();
    let node = Node::at(cluster.folder(), info.into_inner().node_id);
    // Without any target the portal would not respond at all.
    Fixture::create(&cluster).await.unwrap();
    for rows in [
        node::stage_rows(&node),
        node::publish_rows(&node),
        node::unpublish_rows(&node),
        node::stats_and_expand_rows(&node),
    ] {
        tally.refused(&cluster, rows).await;
    }
    let name = cluster
        .initiator()
        .unwrap()
        .root()
        .join("etc/iscsi/initiatorname.iscsi");
    std::fs::remove_file(name).unwrap();
    tally.refused(&cluster, node::no_initiator()).await;
    tally.finish("bad input, node", 200);
}

#[tokio::test]
async fn the_node_touches_no_disk_that_is_not_the_volumes() {
    if e2e::harness::skip::needs_root("bad input: disks") {
        return;
    }
    let cluster = Plan::with_node().start().await.unwrap();
    let mut tally = Tally::default();
    disk::corrupted(&cluster, &mut tally).await;
    disk::unreadable(&cluster, &mut tally).await;
    tally.finish("bad input, disks", 19);
    assert_eq!(cluster.leftovers().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn a_node_in_use_refuses_bad_input() {
    if e2e::harness::skip::needs_root("bad input: a node at work") {
        return;
    }
    let cluster = Plan::with_node().start().await.unwrap();
    let mut tally = Tally::default();
    let node_in_use = NodeInUse::create(&cluster).await.unwrap();
    tally.refused(&cluster, node_in_use.rows()).await;
    node_in_use.tear_down(&cluster).await.unwrap();
    tally.finish("bad input, a node at work", 37);
    assert_eq!(cluster.leftovers().await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn the_node_takes_legal_oddities() {
    if e2e::harness::skip::needs_root("legal oddities: node") {
        return;
    }
    let cluster = Plan::with_node().start().await.unwrap();
    let mut tally = Tally::default();
    staged::legal(&cluster, &mut tally).await;
    tally.finish("legal oddities, node", 25);
    assert_eq!(cluster.leftovers().await.unwrap(), Vec::<String>::new());
}
