//! The driver in a container without iSCSI tools: it runs the host's tools in the host's namespaces.

use anyhow::{Result, bail, ensure};
use e2e::GIB;
use e2e::harness::plugin::Csi as _;
use e2e::harness::test_volume::Content;
use proto::csi::NodeGetInfoRequest;
use tonic::Code;

use crate::scene::Scene;
use crate::worker::Worker;

pub(crate) async fn of_the_host(scene: &mut Scene) -> Result<String> {
    let refused = without(scene).await?;
    for (namespaces, content) in [("init", Content::Fs("ext4")), ("iscsid", Content::Block)] {
        within(scene, namespaces, content).await?;
    }
    Ok(format!(
        "own: refused ({refused}); init: ext4, iscsid: block, both grown online, data equal"
    ))
}

/// The container's own namespaces lack everything. Returns the error of NodeGetInfo.
async fn without(scene: &Scene) -> Result<String> {
    let worker = Worker::start_contained(&["--host-namespaces", "own"]).await?;
    let clients = worker.on(&scene.cluster);
    let info = clients.node().node_get_info(NodeGetInfoRequest {}).await;
    let Err(refused) = info else {
        bail!("a node without an initiator name: {info:?}");
    };
    ensure!(
        refused.code() == Code::FailedPrecondition && refused.message().contains("open-iscsi"),
        "{refused}"
    );
    worker.teardown().await?;
    Ok(refused.message().to_owned())
}

async fn within(scene: &Scene, namespaces: &str, content: Content) -> Result<()> {
    let worker = Worker::start_contained(&["--host-namespaces", namespaces]).await?;
    let clients = worker.on(&scene.cluster);
    let volume = worker
        .volume(&scene.cluster, &format!("pvc-{namespaces}"), content)
        .await?;
    let file = volume.file("kept");
    let sum = worker.write(&file).await?;
    ensure!(volume.expand_lun(&clients, 2 * GIB).await? == 2 * GIB);
    ensure!(volume.expand_on_node(&clients, 2 * GIB).await? == 2 * GIB);
    ensure!(
        worker.sha256(&file).await? == sum,
        "{content:?} has changed"
    );
    volume.detach(&clients).await?;
    volume.delete(&clients).await?;
    worker.teardown().await
}
