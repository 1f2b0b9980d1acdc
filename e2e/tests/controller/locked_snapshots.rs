//! Locked snapshots of a volume's LUN: design.md#deletevolume. DSM deletes a LUN with all its snapshots, even locked ones,
//! without an error.

use anyhow::{Context as _, Result};
use e2e::GIB;
use e2e::harness::nas::Nas;
use e2e::harness::test_cluster::Plan;
use serde_json::{Value, json};
use tonic::Code;

use super::common::{
    Csi, LUN, NODE_A, call_names, calls, journal_end, lose_reply, lun, refuse, refused, uuid,
};

/// An administrator takes a snapshot in SAN Manager.
async fn snapshot(nas: &Nas, id: &str, name: &str, more: &Value) -> Result<String> {
    let mut body = json!({"uuid": uuid(id), "name": name});
    let fields = body.as_object_mut().context("an object")?;
    fields.extend(more.as_object().context("an object")?.clone());
    let made = nas.change_setting("san/luns/snapshot", &body).await?;
    let uuid = made["snapshot_uuid"].as_str().context("a uuid")?;
    Ok(uuid.to_owned())
}

async fn drop_snapshot(nas: &Nas, id: &str, snapshot: &str) -> Result<()> {
    let body = json!({"uuid": uuid(id), "snapshot_uuid": snapshot});
    nas.change_setting("san/luns/unsnapshot", &body)
        .await
        .map(drop)
}

/// design.md#deletevolume
#[tokio::test]
async fn a_locked_snapshot_keeps_the_lun() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    snapshot(&cluster.nas, &id, "hourly", &json!({})).await?;
    for (how, why) in [
        (json!({"locked": true}), "locked"),
        (json!({"worm_locked": true}), "immutable"),
        (
            json!({"app_key": "SnapshotReplication-synodr-1"}),
            "SnapshotReplication",
        ),
    ] {
        let mut how = how;
        how["description"] = json!("before the upgrade");
        let kept = snapshot(&cluster.nas, &id, "kept", &how).await?;
        let (before, start) = (cluster.nas.state().await?, journal_end(&cluster.nas).await?);
        for _ in 0..2 {
            let answer = csi.delete(&id).await;
            let text = answer
                .as_ref()
                .err()
                .map(tonic::Status::message)
                .unwrap_or_default();
            assert!(
                text.find("unlock or delete").is_some_and(|at| at < 250),
                "{text}"
            );
            assert!(!text.contains("hourly"), "{text}");
            refused(
                answer,
                Code::FailedPrecondition,
                &[
                    "\"kept\"",
                    "before the upgrade",
                    why,
                    "SAN Manager",
                    "Retain",
                ],
            );
        }
        assert_eq!(cluster.nas.state().await?, before);
        let sent = call_names(&calls(&cluster.nas, start).await?);
        assert!(!sent.contains(&"LUN.delete".to_owned()), "{sent:?}");
        drop_snapshot(&cluster.nas, &id, &kept).await?;
    }
    // Unlocked snapshots are deleted with the LUN, and the log lists them.
    let start = journal_end(&cluster.nas).await?;
    csi.delete(&id).await?;
    assert_eq!(lun(&cluster.nas, &id).await?, None);
    assert_eq!(
        call_names(&calls(&cluster.nas, start).await?),
        [
            "LUN.get",
            "Target.list",
            "LUN.list_snapshot",
            "LUN.delete",
            "LUN.get"
        ]
    );
    let log = std::fs::read_to_string(cluster.folder().join("driver.log"))?;
    let log_line = log.lines().find(|line| line.contains("deleted with it"));
    assert!(
        log_line.is_some_and(|line| line.contains("hourly") && line.contains(uuid(&id))),
        "{log_line:?}"
    );
    Ok(())
}

/// design.md#deletevolume
#[tokio::test]
async fn many_locked_snapshots_are_counted() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    for n in 0..5 {
        snapshot(
            &cluster.nas,
            &id,
            &format!("kept-{n}"),
            &json!({"locked": true}),
        )
        .await?;
    }
    refused(
        csi.delete(&id).await,
        Code::FailedPrecondition,
        &["kept-0", "kept-2", "and 2 more"],
    );
    // A publication is reported first, because the user can act on that.
    csi.publish(&id, NODE_A).await?;
    refused(csi.delete(&id).await, Code::FailedPrecondition, &[NODE_A]);
    Ok(())
}

/// design.md#deletevolume
#[tokio::test]
async fn a_lun_is_deleted_only_if_its_snapshots_are_known() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("pvc-1", GIB).await?;
    snapshot(&cluster.nas, &id, "kept", &json!({"locked": true})).await?;
    let before = cluster.nas.state().await?;
    for way in [
        refuse(100),
        refuse(117),
        refuse(18_990_004),
        lose_reply(),
        json!({"kind": "garble"}),
    ] {
        cluster
            .nas
            .fault(LUN, "list_snapshot", 1, 1, way.clone())
            .await?;
        refused(csi.delete(&id).await, Code::Unavailable, &["snapshots"]);
    }
    assert_eq!(cluster.nas.state().await?, before);
    for code in [102, 103, 104, 18_990_500] {
        let name = format!("pvc-{code}");
        let id = csi.create(&name, GIB).await?;
        cluster
            .nas
            .fault(LUN, "list_snapshot", 1, 1, refuse(code))
            .await?;
        csi.delete(&id).await?;
        assert_eq!(lun(&cluster.nas, &id).await?, None, "{code}");
    }
    Ok(())
}
