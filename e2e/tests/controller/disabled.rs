//! A target that a person has disabled: it may be a fence, so nobody but a person enables it. What ends it is the end of its publication.

use anyhow::{Context as _, Result};
use e2e::GIB;
use e2e::harness::nas::Nas;
use e2e::harness::test_cluster::Plan;
use serde_json::{Value, json};
use tonic::{Code, Status};

use super::common::{
    Csi, NODE_A, NODE_B, calls, iqn, now, publication, publications, refused, shorts,
};

/// A person does this to a target in SAN Manager.
async fn person(nas: &Nas, act: &str, iqn: &str) -> Result<()> {
    let path = format!("san/targets/{act}");
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
    person(&cluster.nas, "disable", &fenced).await?;
    let before = cluster.nas.state().await?;
    let target = only(&cluster.nas).await?;
    let name = target["name"].as_str().context("a name")?;
    let start = now(&cluster.nas).await?;
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
    let asked = shorts(&calls(&cluster.nas, start).await?);
    assert_eq!(asked, ["LUN.get", "Target.list"].repeat(3));
    // It is somebody's still: no other node gets the volume, nor is it deleted.
    refused(
        csi.publish(&id, NODE_B).await,
        Code::FailedPrecondition,
        &[&fenced],
    );
    refused(csi.delete(&id).await, Code::FailedPrecondition, &[&fenced]);
    assert_eq!(csi.get(&id).await?.1, [NODE_A]);
    assert_eq!(cluster.nas.state().await?, before);

    // A person takes the fence away.
    person(&cluster.nas, "enable", &fenced).await?;
    assert_eq!(csi.publish(&id, NODE_A).await?, first);
    person(&cluster.nas, "disable", &fenced).await?;

    // Or the publication ends, and the next one is another.
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
