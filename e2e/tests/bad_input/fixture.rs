//! A NAS in use: volumes of ours in every state, and foreign objects.

use anyhow::{Context as _, Result, ensure};
use e2e::GIB;
use e2e::harness::test_cluster::TestCluster;
use proto::csi;
use serde_json::json;

use crate::request::{NODE, create, create_with, publish};

/// Ids of the volumes on the NAS.
pub(crate) struct Fixture {
    /// 1 GiB on `/volume1`, not published.
    pub(crate) idle: String,
    /// Published to [`NODE`].
    pub(crate) published: String,
    /// A foreign LUN.
    pub(crate) unmarked: String,
    /// One of ours that is locked by a running DSM operation.
    pub(crate) locked: String,
    /// One of ours with status crashed.
    pub(crate) crashed: String,
    /// One of ours that an administrator has mapped to a foreign target.
    pub(crate) exported: String,
    /// One of ours that is thick.
    pub(crate) thick: String,
}

impl Fixture {
    /// Creates the volumes and objects.
    pub(crate) async fn create(cluster: &TestCluster) -> Result<Self> {
        let fixture = Self {
            idle: created(cluster, create("idle")).await?,
            published: created(cluster, create("published")).await?,
            unmarked: format!("nas1/{}", cluster.nas.foreign_lun("somebodys", GIB).await?),
            locked: created(cluster, create("locked")).await?,
            crashed: created(cluster, create("crashed")).await?,
            exported: created(cluster, create("exported")).await?,
            thick: created(
                cluster,
                create_with("thick", [("location", "/volume1"), ("type", "BLUN_THICK")]),
            )
            .await?,
        };
        cluster
            .plugin
            .controller()
            .controller_publish_volume(publish(&fixture.published, NODE))
            .await?;
        cluster
            .nas
            .patch_lun(uuid(&fixture.locked), &json!({"is_action_locked": true}))
            .await?;
        cluster
            .nas
            .patch_lun(uuid(&fixture.crashed), &json!({"status": "crashed"}))
            .await?;
        map_to_foreign_target(cluster, uuid(&fixture.exported)).await?;
        // LUNs with the names of our volumes: one without our mark, one with that of another volume.
        cluster.nas.foreign_lun("csi-taken", GIB).await?;
        let misnamed = created(cluster, create("misnamed")).await?;
        cluster
            .nas
            .patch_lun(
                uuid(&misnamed),
                &json!({"description": "csi.synology.com parameters=0 name=another"}),
            )
            .await?;
        Ok(fixture)
    }
}

/// The uuid in a volume id.
pub(crate) fn uuid(id: &str) -> &str {
    id.rsplit('/').next().unwrap_or_default()
}

/// Creates a volume and returns its id.
pub(crate) async fn created(
    cluster: &TestCluster,
    request: csi::CreateVolumeRequest,
) -> Result<String> {
    let answer = cluster
        .plugin
        .controller()
        .create_volume(request)
        .await?
        .into_inner();
    Ok(answer.volume.context("no volume in the answer")?.volume_id)
}

async fn map_to_foreign_target(cluster: &TestCluster, uuid: &str) -> Result<()> {
    let target = [
        ("api", "SYNO.Core.ISCSI.Target"),
        ("version", "1"),
        ("method", "create"),
        ("name", "theirs"),
        ("iqn", "iqn.2025-01.org.example:theirs"),
        ("auth_type", "0"),
    ];
    let answer = cluster.nas.dsm(&target).await?;
    let ids = format!("[{}]", answer["data"]["target_id"]);
    let uuid = format!("\"{uuid}\"");
    let mapping = [
        ("api", "SYNO.Core.ISCSI.LUN"),
        ("version", "1"),
        ("method", "map_target"),
        ("uuid", &uuid),
        ("target_ids", &ids),
    ];
    let answer = cluster.nas.dsm(&mapping).await?;
    ensure!(answer["success"] == true, "{answer}");
    Ok(())
}
