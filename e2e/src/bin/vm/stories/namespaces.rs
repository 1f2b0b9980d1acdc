//! The driver in a container that has no iSCSI tools: the host's are run where the host has them.

use anyhow::{Result, bail, ensure};
use e2e::GIB;
use e2e::life::{Content, Life};

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

/// The container's own namespaces lack everything. Answers why it was refused.
async fn without(scene: &Scene) -> Result<String> {
    let worker = Worker::start_contained(&["--host-namespaces", "own"]).await?;
    let there = worker.on(&scene.world);
    let mut volume = Life::create(&there, "pvc-own", GIB, Content::Fs("ext4")).await?;
    worker.adopt(&mut volume).await?;
    volume.publish(&there).await?;
    let Err(refused) = volume.stage(&there).await else {
        bail!("staged without iscsiadm");
    };
    volume.unstage(&there).await?;
    volume.unpublish(&there).await?;
    volume.delete(&there).await?;
    worker.strike().await?;
    Ok(format!("{}: {}", refused.code(), refused.message()))
}

async fn within(scene: &Scene, namespaces: &str, content: Content) -> Result<()> {
    let worker = Worker::start_contained(&["--host-namespaces", namespaces]).await?;
    let there = worker.on(&scene.world);
    let volume = worker
        .volume(scene, &format!("pvc-{namespaces}"), content)
        .await?;
    let file = match content {
        Content::Fs(_) => volume.path().join("kept"),
        Content::Block => volume.path(),
    };
    let sum = worker.write(&file).await?;
    ensure!(volume.expand_lun(&there, 2 * GIB).await? == 2 * GIB);
    ensure!(volume.expand_on_node(&there, 2 * GIB).await? == 2 * GIB);
    ensure!(
        worker.sha256(&file).await? == sum,
        "{content:?} has changed"
    );
    volume.detach(&there).await?;
    volume.delete(&there).await?;
    worker.strike().await
}
