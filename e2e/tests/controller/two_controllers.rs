//! Two controllers at once, because sidecars elect their leaders independently: design.md#one-target-per-publication and
//! #one-operation-per-volume.

use anyhow::Result;
use e2e::GIB;
use e2e::harness::plugin::Plugin;
use e2e::harness::test_cluster::{Plan, TestCluster};
use futures::future::join;
use serde_json::json;
use tonic::Code;

use super::common::{
    Csi, LUN, NODE_A, NODE_B, TARGET, admin_call, exports, hang, iqn, journal_end, lose_reply,
    not_final, old_iqn, publication, publications, refused, until_called, uuid,
};

async fn second_controller(cluster: &TestCluster) -> Result<Plugin> {
    cluster.another_driver("rival", |_| {}).await
}

/// design.md#one-target-per-publication
#[tokio::test]
async fn two_controllers_never_publish_to_two_nodes() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let plugin = second_controller(&cluster).await?;
    let (one, two) = (Csi::of(&cluster.plugin), Csi::of(&plugin));
    let id = one.create("pvc-1", GIB).await?;
    let delay = |ms: u64| json!({"kind": "delay", "ms": ms});
    // Slowing down each call on each of the two interleaves their calls in different orders.
    let slow = [
        (LUN, "get"),
        (TARGET, "create"),
        (LUN, "map_target"),
        (TARGET, "list"),
    ];
    let (mut won, mut neither) = (0, 0);
    for (api, method) in slow {
        for nth in [1, 2] {
            cluster.nas.fault(api, method, nth, 1, delay(60)).await?;
            cluster
                .nas
                .fault(api, method, nth + 1, 1, delay(120))
                .await?;
            let (a, b) = join(one.publish(&id, NODE_A), two.publish(&id, NODE_B)).await;
            cluster.nas.clear_faults().await?;
            let case = format!("{method} {nth}: {a:?} {b:?}");
            assert!(a.is_err() || b.is_err(), "{case}");
            let exports = exports(&cluster.nas, &id).await?;
            for (answer, node) in [(&a, NODE_A), (&b, NODE_B)] {
                assert_eq!(
                    answer.is_ok(),
                    exports.contains(&publication(&id, node)),
                    "{case}, {exports:?}"
                );
            }
            won += usize::from(a.is_ok() || b.is_ok());
            neither += usize::from(a.is_err() && b.is_err());
            one.unpublish(&id, "").await?;
            assert_eq!(publications(&cluster.nas).await?, Vec::<String>::new());
        }
    }
    assert_eq!(won + neither, 8);
    Ok(())
}

/// design.md#one-target-per-publication
#[tokio::test]
async fn two_concurrent_publishes_do_not_both_succeed() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let plugin = second_controller(&cluster).await?;
    let (one, two) = (Csi::of(&cluster.plugin), Csi::of(&plugin));
    let id = one.create("pvc-1", GIB).await?;
    // Both have read before either maps; each maps and reads again in one request.
    for (api, method) in [(TARGET, "create"), (LUN, "map_target"), (TARGET, "get")] {
        cluster
            .nas
            .fault(api, method, 1, 2, json!({"kind": "delay", "ms": 500}))
            .await?;
    }
    let (a, b) = join(one.publish(&id, NODE_A), two.publish(&id, NODE_B)).await;
    let won: Vec<&str> = [(&a, NODE_A), (&b, NODE_B)]
        .into_iter()
        .filter_map(|(answer, node)| answer.is_ok().then_some(node))
        .collect();
    assert!(won.len() <= 1, "{a:?} {b:?}");
    for (answer, other) in [(a, NODE_B), (b, NODE_A)] {
        if answer.is_err() {
            refused(
                answer,
                Code::FailedPrecondition,
                &[other, "published to node"],
            );
        }
    }
    let left: Vec<String> = won.iter().map(|node| publication(&id, node)).collect();
    assert_eq!(publications(&cluster.nas).await?, left);
    one.publish(&id, won.first().copied().unwrap_or(NODE_A))
        .await?;
    Ok(())
}

/// design.md#one-target-per-publication
#[tokio::test]
async fn a_publication_in_use_survives_a_concurrent_controller() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let plugin = second_controller(&cluster).await?;
    let (one, two) = (Csi::of(&cluster.plugin), Csi::of(&plugin));
    let id = one.create("pvc-1", GIB).await?;
    let context = one.publish(&id, NODE_A).await?;
    // What a controller leaves that is killed after the map: another node's target, which was never returned to a caller.
    admin_call(
        &cluster,
        &[
            ("api", TARGET),
            ("version", "1"),
            ("method", "create"),
            ("name", "left-behind"),
            ("iqn", &old_iqn(&id, NODE_B)),
        ],
    )
    .await?;
    let lun = format!("\"{}\"", uuid(&id));
    admin_call(
        &cluster,
        &[
            ("api", LUN),
            ("version", "1"),
            ("method", "map_target"),
            ("uuid", &lun),
            ("target_ids", "[2]"),
        ],
    )
    .await?;
    let before = cluster.nas.state().await?;
    for (csi, node, other) in [(&one, NODE_A, NODE_B), (&two, NODE_B, NODE_A)] {
        // A target that was mapped before the call may be in use: it stays, so the error is not final.
        let status = csi.publish(&id, node).await.expect_err("two nodes");
        not_final(node, &status);
        let iqn = iqn(&cluster.nas, &id, other).await?;
        assert!(
            status.message().contains(&iqn) && status.message().contains(other),
            "{}",
            status.message()
        );
    }
    assert_eq!(cluster.nas.state().await?, before);
    two.unpublish(&id, NODE_B).await?;
    assert_eq!(one.publish(&id, NODE_A).await?, context);
    Ok(())
}

/// design.md#one-target-per-publication
#[tokio::test]
async fn a_second_node_leaves_nothing_behind_whatever_reply_is_lost() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    csi.publish(&id, NODE_A).await?;
    let before = cluster.nas.state().await?;
    for (api, method) in [
        (LUN, "get"),
        (TARGET, "create"),
        (TARGET, "get"),
        (LUN, "map_target"),
        (TARGET, "list"),
        (TARGET, "delete"),
    ] {
        cluster.nas.fault(api, method, 1, 1, lose_reply()).await?;
        let status = csi.publish(&id, NODE_B).await.expect_err("A has it");
        if status.code() == Code::FailedPrecondition {
            assert_eq!(
                cluster.nas.state().await?,
                before,
                "{method}: a final answer, but something is left"
            );
        } else {
            not_final(method, &status);
        }
        cluster.nas.clear_faults().await?;
        refused(
            csi.publish(&id, NODE_B).await,
            Code::FailedPrecondition,
            &[NODE_A],
        );
        assert_eq!(cluster.nas.state().await?, before, "{method}");
    }
    Ok(())
}

/// design.md#one-operation-per-volume
#[tokio::test]
async fn two_controllers_grow_and_delete_the_same_volume() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let plugin = second_controller(&cluster).await?;
    let (one, two) = (Csi::of(&cluster.plugin), Csi::of(&plugin));
    let id = one.create("pvc-1", GIB).await?;
    let start = journal_end(&cluster.nas).await?;
    // One has read 1 GiB and is about to set 2 when the other sets 3: the LUN must not shrink.
    cluster.nas.fault(LUN, "set", 1, 1, hang()).await?;
    let slow = tokio::spawn({
        let (one, id) = (one.clone(), id.clone());
        async move { one.expand(&id, 2 * GIB).await }
    });
    until_called(&cluster.nas, start, "LUN.set").await?;
    assert_eq!(two.expand(&id, 3 * GIB).await?, 3 * GIB);
    cluster.nas.clear_faults().await?;
    assert_eq!(slow.await??, 3 * GIB);
    assert_eq!(one.get(&id).await?.0, 3 * GIB);

    let (a, b) = join(one.delete(&id), two.delete(&id)).await;
    for answer in [a, b] {
        if let Err(status) = answer {
            not_final("delete", &status);
        }
    }
    one.delete(&id).await?;
    two.delete(&id).await?;
    assert_eq!(cluster.leftovers().await?, Vec::<String>::new());
    Ok(())
}

/// design.md#create-first
#[tokio::test]
async fn two_controllers_create_one_volume_for_one_name() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let plugin = second_controller(&cluster).await?;
    let (one, two) = (Csi::of(&cluster.plugin), Csi::of(&plugin));
    for name in ["a", "b", "c", "d"] {
        let (a, b) = join(one.create(name, GIB), two.create(name, GIB)).await;
        assert_eq!(a?, b?);
    }
    assert_eq!(cluster.nas.luns().await?.len(), 4);
    Ok(())
}

/// design.md#one-target-per-publication
#[tokio::test]
async fn two_controllers_publish_and_unpublish_the_same_publication() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let plugin = second_controller(&cluster).await?;
    let (one, two) = (Csi::of(&cluster.plugin), Csi::of(&plugin));
    let id = one.create("pvc-1", GIB).await?;
    for _ in 0..4 {
        let (a, b) = join(one.publish(&id, NODE_A), two.publish(&id, NODE_A)).await;
        let mut contexts = Vec::new();
        for (who, answer) in [(&one, a), (&two, b)] {
            contexts.push(match answer {
                Ok(context) => context,
                Err(status) => {
                    // The other controller has reused its target; a retry returns it.
                    not_final("publish", &status);
                    who.publish(&id, NODE_A).await?
                }
            });
        }
        assert_eq!(contexts[0], contexts[1]);
        assert_eq!(
            publications(&cluster.nas).await?,
            [publication(&id, NODE_A)]
        );
        let (a, b) = join(one.unpublish(&id, NODE_A), two.unpublish(&id, NODE_A)).await;
        for answer in [a, b] {
            if let Err(status) = answer {
                not_final("unpublish", &status);
            }
        }
        one.unpublish(&id, NODE_A).await?;
        assert_eq!(publications(&cluster.nas).await?, Vec::<String>::new());
    }
    Ok(())
}
