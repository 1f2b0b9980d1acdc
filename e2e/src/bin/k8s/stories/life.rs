//! A volume from its claim to its end.

use anyhow::{Context as _, Result, ensure};
use e2e::GIB;

use crate::co::{Class, Co, Reclaim};
use crate::scene::{Scene, Used, class};

/// MiB that are written.
const WRITTEN: u32 = 32;

/// The article's StorageClass, as it is written there.
pub(super) async fn article<C: Co>(scene: &Scene<C>) -> Result<String> {
    let class = Class::read(include_str!("../../../../k8s/article.yaml"))?;
    scene.co.class(&class).await?;
    let used = Used::new("article", &class, GIB);
    scene.begin(&used).await?;
    let written = scene.fill(&used, WRITTEN).await?;
    let size = scene.size(&used).await?;
    ensure!(size > GIB / 10 * 9, "the pod sees {size} bytes");
    let node = scene.runs(&used).await?.node;
    scene.stop(&used).await?;
    scene.start(&used).await?;
    ensure!(
        scene.digest(&used, WRITTEN).await? == written,
        "the data is another after the pod's restart"
    );
    scene.end(&used).await?;
    Ok(format!(
        "{WRITTEN} MiB written on {node}, read by a second pod"
    ))
}

/// A pod on another node has the data of the first.
pub(super) async fn moves<C: Co>(scene: &Scene<C>) -> Result<String> {
    let nodes = scene.co.nodes().await?;
    let [first, second, ..] = &nodes[..] else {
        return Ok(format!("left out: {} node", nodes.len()));
    };
    let class = scene.class("xfs").await?;
    let used = Used::new("moves", &class, GIB);
    let (here, there) = (used.clone().on(first), used.clone().on(second));
    scene.begin(&here).await?;
    let written = scene.fill(&here, WRITTEN).await?;
    scene.stop(&here).await?;
    let seen = scene.start(&there).await?;
    ensure!(seen.node == *second, "it runs on {}", seen.node);
    ensure!(
        scene.digest(&there, WRITTEN).await? == written,
        "the data is another on {second}"
    );
    let volume = scene.bound(&there).await?.volume.context("a volume")?;
    let look = async || {
        let seen = scene.volume(&volume).await?.context("no volume")?;
        Ok(seen.nodes.into_iter().collect::<Vec<_>>())
    };
    let alone = |nodes: &Vec<String>| nodes == std::slice::from_ref(second);
    scene
        .until("it is attached to the second node alone", look, alone)
        .await?;
    scene.end(&there).await?;
    Ok(format!("{first} → {second}, data equal"))
}

/// With its claim goes the volume, and its LUN.
pub(super) async fn reclaim_delete<C: Co>(scene: &Scene<C>) -> Result<String> {
    let class = scene.class("ext4").await?;
    let used = Used::new("deleted", &class, GIB);
    scene.co.claim(&used.claim).await?;
    let volume = scene.bound(&used).await?.volume.context("a volume")?;
    let before = scene.luns().await?;
    scene.unclaim(&used).await?;
    let look = async || scene.volume(&volume).await;
    scene
        .until("the volume has gone", look, Option::is_none)
        .await?;
    let luns = scene.luns().await?;
    ensure!(
        luns + 1 == before,
        "{before} LUNs before, {luns} afterwards"
    );
    Ok("claim, volume and LUN have gone".to_owned())
}

/// A retained volume stays until an administrator says otherwise.
pub(super) async fn reclaim_retain<C: Co>(scene: &Scene<C>) -> Result<String> {
    let parameters = "location: /volume1, type: BLUN, fsType: xfs";
    let class = class("retain", parameters, "Retain")?;
    scene.co.class(&class).await?;
    let used = Used::new("retained", &class, GIB);
    scene.begin(&used).await?;
    let volume = scene.bound(&used).await?.volume.context("a volume")?;
    scene.stop(&used).await?;
    scene.unclaim(&used).await?;
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
    let look = async || scene.volume(&volume).await;
    scene
        .until("the volume has gone", look, Option::is_none)
        .await?;
    Ok("the LUN stayed without its claim, until told to go".to_owned())
}
