//! A NAS in use: volumes of ours in every state, and things of other people's.

use anyhow::{Context as _, Result, ensure};
use e2e::GIB;
use e2e::harness::test_cluster::TestCluster;
use proto::csi;
use serde_json::json;

use crate::request::{NODE, create, create_with, publish};

/// Handles of what is on the NAS.
pub(crate) struct Scene {
    /// 1 GiB on `/volume1`, used by nobody.
    pub(crate) idle: String,
    /// Published to [`NODE`].
    pub(crate) published: String,
    /// A LUN of somebody else's.
    pub(crate) unmarked: String,
    /// One of ours that DSM is still at work on.
    pub(crate) locked: String,
    /// One of ours that DSM calls crashed.
    pub(crate) crashed: String,
    /// One of ours that somebody has mapped to a target of their own.
    pub(crate) exported: String,
    /// One of ours that takes its space at once.
    pub(crate) thick: String,
}

impl Scene {
    /// Sets it up.
    pub(crate) async fn set(cluster: &TestCluster) -> Result<Self> {
        let scene = Self {
            idle: made(cluster, create("idle")).await?,
            published: made(cluster, create("published")).await?,
            unmarked: format!("nas1/{}", cluster.nas.foreign_lun("somebodys", GIB).await?),
            locked: made(cluster, create("locked")).await?,
            crashed: made(cluster, create("crashed")).await?,
            exported: made(cluster, create("exported")).await?,
            thick: made(
                cluster,
                create_with("thick", [("location", "/volume1"), ("type", "BLUN_THICK")]),
            )
            .await?,
        };
        cluster
            .plugin
            .controller()
            .controller_publish_volume(publish(&scene.published, NODE))
            .await?;
        cluster
            .nas
            .patch_lun(uuid(&scene.locked), &json!({"is_action_locked": true}))
            .await?;
        cluster
            .nas
            .patch_lun(uuid(&scene.crashed), &json!({"status": "crashed"}))
            .await?;
        map_to_own_target(cluster, uuid(&scene.exported)).await?;
        // LUNs that bear the names of volumes of ours: one without our mark, one with that of another volume.
        cluster.nas.foreign_lun("csi-taken", GIB).await?;
        let misnamed = made(cluster, create("misnamed")).await?;
        cluster
            .nas
            .patch_lun(
                uuid(&misnamed),
                &json!({"description": "csi.synology.com parameters=0 name=another"}),
            )
            .await?;
        Ok(scene)
    }
}

/// The uuid in a handle.
pub(crate) fn uuid(id: &str) -> &str {
    id.rsplit('/').next().unwrap_or_default()
}

/// Creates a volume and answers its handle.
pub(crate) async fn made(
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

async fn map_to_own_target(cluster: &TestCluster, uuid: &str) -> Result<()> {
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
