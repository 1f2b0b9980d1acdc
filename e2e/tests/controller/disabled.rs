//! A target that an administrator disabled may be a fence: the driver never enables it. It goes away when its publication ends.

use anyhow::{Context as _, Result};
use e2e::GIB;
use e2e::harness::nas::Nas;
use e2e::harness::test_cluster::Plan;
use serde_json::{Value, json};
use tonic::{Code, Status};

use super::common::{
    Csi, NODE_A, NODE_B, call_names, calls, iqn, journal_end, publication, publications, refused,
};

/// An administrator's action on a target in SAN Manager.
async fn admin_target_action(nas: &Nas, action: &str, iqn: &str) -> Result<()> {
    let path = format!("san/targets/{action}");
    nas.change_setting(&path, &json!({"iqn": iqn}))
        .await
        .map(drop)
}

async fn only(nas: &Nas) -> Result<Value> {
    let targets = nas.targets_now().await?;
    assert_eq!(targets.len(), 1, "{targets:?}");
    targets.first().cloned().context("one")
}

/// design.md#one-target-per-publication
#[tokio::test]
async fn a_disabled_target_is_never_enabled_and_ends_with_its_publication() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    let first = csi.publish(&id, NODE_A).await?;
    let fenced = iqn(&cluster.nas, &id, NODE_A).await?;
    admin_target_action(&cluster.nas, "disable", &fenced).await?;
    let before = cluster.nas.state().await?;
    let target = only(&cluster.nas).await?;
    let name = target["name"].as_str().context("a name")?;
    let start = journal_end(&cluster.nas).await?;
    for _ in 0..3 {
        let answer = csi.publish(&id, NODE_A).await;
        let text = answer
            .as_ref()
            .err()
            .map(Status::message)
            .unwrap_or_default();
        assert!(
            text.find("SAN Manager").is_some_and(|at| at < 250),
            "{text}"
        );
        let words = [
            fenced.as_str(),
            name,
            "disabled",
            "enable",
            "kubectl delete pod",
        ];
        refused(answer, Code::Unavailable, &words);
    }
    let calls_made = call_names(&calls(&cluster.nas, start).await?);
    assert_eq!(calls_made, ["LUN.get", "Target.list"].repeat(3));
    // It is still in use: no other node gets the volume, and it is not deleted.
    refused(
        csi.publish(&id, NODE_B).await,
        Code::FailedPrecondition,
        &[&fenced],
    );
    refused(csi.delete(&id).await, Code::FailedPrecondition, &[&fenced]);
    assert_eq!(csi.get(&id).await?.1, [NODE_A]);
    assert_eq!(cluster.nas.state().await?, before);

    // The administrator removes the fence.
    admin_target_action(&cluster.nas, "enable", &fenced).await?;
    assert_eq!(csi.publish(&id, NODE_A).await?, first);
    admin_target_action(&cluster.nas, "disable", &fenced).await?;

    // Alternatively the publication ends, and the next one has a new target.
    csi.unpublish(&id, NODE_A).await?;
    assert_eq!(publications(&cluster.nas).await?, Vec::<String>::new());
    let next = csi.publish(&id, NODE_A).await?;
    assert_ne!(next["iqn"], first["iqn"]);
    assert_eq!(only(&cluster.nas).await?["is_enabled"], true);
    assert_eq!(
        publications(&cluster.nas).await?,
        [publication(&id, NODE_A)]
    );
    csi.unpublish(&id, NODE_A).await?;
    csi.publish(&id, NODE_B).await?;
    Ok(())
}
