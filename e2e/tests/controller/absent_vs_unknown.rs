//! design.md#unknown-is-not-absent: whichever way a query to the NAS fails, no RPC reports success or "not found".

use anyhow::Result;
use e2e::GIB;
use e2e::harness::test_cluster::Plan;
use serde_json::{Value, json};
use tonic::{Code, Status};

use super::common::{
    Csi, LUN, NODE_A, NODE_B, TARGET, calls, exports, hang, journal_end, lose_reply, publication,
    refuse, refused, until_called,
};

/// The ways in which a query can fail permanently, without a side effect.
fn failures() -> [Value; 9] {
    [
        refuse(100),
        refuse(105),
        refuse(117),
        refuse(119),
        refuse(18_990_505 - 1),
        lose_reply(),
        json!({"kind": "garble"}),
        json!({"kind": "http", "status": 502}),
        json!({"kind": "http", "status": 302}),
    ]
}

/// design.md#unknown-is-not-absent
#[tokio::test]
async fn no_failed_query_is_taken_for_absence() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let [idle, used] = [
        csi.create("idle", GIB).await?,
        csi.create("used", GIB).await?,
    ];
    csi.publish(&used, NODE_B).await?;
    let before = cluster.nas.luns().await?;
    // Every read-only call.
    for (api, method) in [(LUN, "get"), (TARGET, "get"), (TARGET, "list"), ("*", "*")] {
        for failure in failures() {
            cluster
                .nas
                .fault(api, method, 1, 0, failure.clone())
                .await?;
            let mut answers = Vec::new();
            if api != "*" {
                // Publishing to a second node would create a target before it fails; the tests of design.md#final-codes cover
                // that.
                answers.push(("publish", csi.publish(&used, NODE_A).await.map(drop)));
            }
            answers.push(("delete", csi.delete(&used).await));
            answers.push(("unpublish", csi.unpublish(&used, NODE_B).await));
            answers.push(("get", csi.get(&idle).await.map(drop)));
            answers.push(("list", csi.list(0, "").await.map(drop)));
            let concerned: &[&str] = match (api, method) {
                (LUN, _) => &["publish", "delete", "get"],
                (_, "get") => &["unpublish"],
                (TARGET, _) => &["publish", "delete", "get", "list"],
                _ => &["delete", "unpublish", "get", "list"],
            };
            cluster.nas.clear_faults().await?;
            for (call, answer) in answers
                .into_iter()
                .filter(|(call, _)| concerned.contains(call))
            {
                let status: Status =
                    answer.expect_err(&format!("{call} with {failure} on {method}"));
                assert_eq!(
                    status.code(),
                    Code::Unavailable,
                    "{call} with {failure} on {method}: {}",
                    status.message()
                );
            }
            // Unpublish is the one change that may have succeeded: it does not need the failing call.
            csi.publish(&used, NODE_B).await?;
            assert_eq!(
                exports(&cluster.nas, &used).await?,
                [publication(&used, NODE_B)]
            );
            assert_eq!(cluster.nas.luns().await?, before);
        }
    }
    Ok(())
}

/// design.md#unknown-is-not-absent
#[tokio::test]
async fn a_slow_reply_is_waited_for() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    cluster.nas.fault(LUN, "get", 1, 1, hang()).await?;
    let start = journal_end(&cluster.nas).await?;
    let answer = tokio::spawn({
        let (csi, id) = (csi.clone(), id.clone());
        async move { csi.get(&id).await }
    });
    until_called(&cluster.nas, start, "LUN.get").await?;
    assert!(!answer.is_finished());
    cluster.nas.clear_faults().await?;
    assert_eq!(answer.await??.0, GIB);
    Ok(())
}

/// design.md#unknown-is-not-absent
#[tokio::test]
async fn a_nas_that_is_gone_is_unavailable_for_everything() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    csi.publish(&id, NODE_A).await?;
    let down = cluster
        .another_driver("down", |settings| {
            settings.config = settings
                .config
                .replace(&cluster.nas.api, "http://127.0.0.1:9");
        })
        .await?;
    let start = journal_end(&cluster.nas).await?;
    let elsewhere = Csi::of(&down);
    for (_, answer) in elsewhere.every(&id).await {
        refused(
            answer,
            Code::Unavailable,
            &["127.0.0.1:9", "cannot be reached"],
        );
    }
    refused(elsewhere.list(0, "").await, Code::Unavailable, &["nas1"]);
    refused(
        elsewhere.create("pvc-1", GIB).await,
        Code::Unavailable,
        &["nas1"],
    );
    assert_eq!(calls(&cluster.nas, start).await?.len(), 0);
    Ok(())
}

/// design.md#unknown-is-not-absent
#[tokio::test]
async fn a_nas_that_was_restarted_is_found_again() -> Result<()> {
    let mut cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    let context = csi.publish(&id, NODE_A).await?;
    for _ in 0..3 {
        cluster.nas.restart().await?;
        // Session and connection are lost: the next call works like any other.
        assert_eq!(csi.publish(&id, NODE_A).await?, context);
        assert_eq!(csi.get(&id).await?, (GIB, vec![NODE_A.to_owned()]));
    }
    Ok(())
}

/// A booting NAS reports targets that it has as missing. A driver that believed it would leak them.
/// design.md#unknown-is-not-absent
#[tokio::test]
async fn a_target_that_is_not_loaded_is_not_gone() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    csi.publish(&id, NODE_A).await?;
    cluster.nas.boot(60_000).await?;
    for node in [NODE_A, ""] {
        let answer = csi.unpublish(&id, node).await;
        refused(
            answer,
            Code::Unavailable,
            &["has been up for", "15 minutes"],
        );
    }
    // Everything is loaded again, but the driver cannot know that yet.
    cluster.nas.advance(60_000).await?;
    let answer = csi.unpublish(&id, NODE_B).await;
    refused(
        answer,
        Code::Unavailable,
        &["has been up for", "15 minutes"],
    );
    csi.unpublish(&id, NODE_A).await?;
    assert!(cluster.nas.targets_now().await?.is_empty());
    cluster.nas.advance(15 * 60_000).await?;
    csi.unpublish(&id, NODE_B).await?;
    csi.delete(&id).await.map_err(Into::into)
}
