//! A volume from the creation of its claim to its deletion.

use anyhow::{Context as _, Result, ensure};
use e2e::GIB;

use crate::co::{Class, Co, Reclaim};
use crate::scene::{Scene, Workload, class};

/// MiB that are written.
const WRITTEN: u32 = 32;

/// The article's StorageClass, verbatim.
pub(super) async fn article<C: Co>(scene: &Scene<C>) -> Result<String> {
    let class = Class::read(include_str!("../../../../k8s/article.yaml"))?;
    scene.co.class(&class).await?;
    let workload = Workload::new("article", &class, GIB);
    scene.begin(&workload).await?;
    let written = scene.fill(&workload, WRITTEN).await?;
    let size = scene.size(&workload).await?;
    ensure!(size > GIB / 10 * 9, "the pod sees {size} bytes");
    let node = scene.wait_until_running(&workload).await?.node;
    scene.stop(&workload).await?;
    scene.start(&workload).await?;
    ensure!(
        scene.digest(&workload, WRITTEN).await? == written,
        "the data have changed after the pod's restart"
    );
    scene.end(&workload).await?;
    Ok(format!(
        "{WRITTEN} MiB written on {node}, read by a second pod"
    ))
}

/// A pod on another node sees the data of the first.
pub(super) async fn moves<C: Co>(scene: &Scene<C>) -> Result<String> {
    let nodes = scene.co.nodes().await?;
    let [first, second, ..] = &nodes[..] else {
        return Ok(format!("left out: {} node", nodes.len()));
    };
    let class = scene.class("xfs").await?;
    let workload = Workload::new("moves", &class, GIB);
    let (here, there) = (workload.clone().on(first), workload.clone().on(second));
    scene.begin(&here).await?;
    let written = scene.fill(&here, WRITTEN).await?;
    scene.stop(&here).await?;
    let seen = scene.start(&there).await?;
    ensure!(seen.node == *second, "it runs on {}", seen.node);
    ensure!(
        scene.digest(&there, WRITTEN).await? == written,
        "the data have changed on {second}"
    );
    let volume = scene
        .wait_until_bound(&there)
        .await?
        .volume
        .context("a volume")?;
    let poll = async || {
        let seen = scene.volume(&volume).await?.context("no volume")?;
        Ok(seen.nodes.into_iter().collect::<Vec<_>>())
    };
    let alone = |nodes: &Vec<String>| nodes == std::slice::from_ref(second);
    scene
        .until("it is attached to the second node alone", poll, alone)
        .await?;
    scene.end(&there).await?;
    Ok(format!("{first} → {second}, data equal"))
}

/// Deleting the claim deletes the volume and its LUN.
pub(super) async fn reclaim_delete<C: Co>(scene: &Scene<C>) -> Result<String> {
    let class = scene.class("ext4").await?;
    let workload = Workload::new("deleted", &class, GIB);
    scene.co.claim(&workload.claim).await?;
    let volume = scene
        .wait_until_bound(&workload)
        .await?
        .volume
        .context("a volume")?;
    let before = scene.luns().await?;
    scene.unclaim(&workload).await?;
    let poll = async || scene.volume(&volume).await;
    scene
        .until("the volume has gone", poll, Option::is_none)
        .await?;
    let luns = scene.luns().await?;
    ensure!(
        luns + 1 == before,
        "{before} LUNs before, {luns} afterwards"
    );
    Ok("claim, volume and LUN have gone".to_owned())
}

/// A retained volume stays until an administrator changes its reclaim policy.
pub(super) async fn reclaim_retain<C: Co>(scene: &Scene<C>) -> Result<String> {
    let parameters = "location: /volume1, type: BLUN, fsType: xfs";
    let class = class("retain", parameters, "Retain")?;
    scene.co.class(&class).await?;
    let workload = Workload::new("retained", &class, GIB);
    scene.begin(&workload).await?;
    let volume = scene
        .wait_until_bound(&workload)
        .await?
        .volume
        .context("a volume")?;
    scene.stop(&workload).await?;
    scene.unclaim(&workload).await?;
    let detached = async || {
        Ok(scene
            .volume(&volume)
            .await?
            .context("the volume has gone, too")?
            .nodes)
    };
    let empty = |nodes: &std::collections::BTreeSet<String>| nodes.is_empty();
    scene.until("it is detached", detached, empty).await?;
    ensure!(scene.luns().await? > 0, "the LUN has gone");
    scene.co.set_reclaim(&volume, Reclaim::Delete).await?;
    let poll = async || scene.volume(&volume).await;
    scene
        .until("the volume has gone", poll, Option::is_none)
        .await?;
    Ok("the LUN stayed without its claim, until its reclaim policy was changed".to_owned())
}
