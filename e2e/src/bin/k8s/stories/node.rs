//! Operations of a Kubernetes administrator: drain a node, uninstall the driver.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::GIB;

use crate::co::Co as _;
use crate::kubernetes::Kubernetes;
use crate::scene::{Scene, Workload};

/// MiB that are written.
const WRITTEN: u32 = 32;
/// Timeout of a drain, which waits for pods to end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(180);

/// A node is drained: what ran there, perhaps including the driver's controller and the NAS, is rescheduled.
pub(super) async fn drained(scene: &Scene<Kubernetes>) -> Result<String> {
    let cluster = &scene.co;
    if cluster.nodes().await?.len() < 2 {
        return Ok("left out: one node".to_owned());
    }
    let class = scene.class("xfs").await?;
    let workload = Workload::new("drained", &class, GIB);
    cluster.claim(&workload.claim).await?;
    cluster.deploy(&workload.pod).await?;
    let poll = async || cluster.deployed(workload.name()).await;
    let runs = scene.until("its pod runs", poll, Option::is_some).await?;
    let (pod, seen) = runs.context("a pod")?;
    let write = format!(
        "dd if=/dev/urandom of=$V/data bs=1M count={WRITTEN} conv=fsync 2>/dev/null; sha256sum < $V/data"
    );
    let written = cluster.run(&pod, &write).await?;
    cluster.drain(&seen.node, DRAIN_TIMEOUT).await?;
    let other = scene
        .other_node(&seen.node)
        .await?
        .context("another node")?;
    let elsewhere = |found: &Option<(String, crate::co::PodSeen)>| {
        found.as_ref().is_some_and(|(_, seen)| seen.node == other)
    };
    let moved = scene
        .until("its pod runs elsewhere", poll, elsewhere)
        .await?;
    let (pod, _) = moved.context("a pod")?;
    let read = cluster.run(&pod, "sha256sum < $V/data").await?;
    ensure!(read == written, "the data have changed on {other}");
    cluster.cordon(&seen.node, false).await?;
    scene.driver_is_up().await?;
    scene.nas_is_up().await?;
    cluster.undeploy(workload.name()).await?;
    scene.unclaim(&workload).await?;
    let poll = async || scene.luns().await;
    scene
        .until("the LUN has gone", poll, |luns| *luns == 0)
        .await?;
    Ok(format!("{} → {other}, data equal", seen.node))
}

/// After the last claim is deleted, the driver is uninstalled and leaves nothing.
pub(super) async fn uninstalled(scene: &Scene<Kubernetes>) -> Result<String> {
    let cluster = &scene.co;
    let nodes = cluster.nodes().await?;
    cluster.forget_classes().await?;
    cluster.uninstall().await?;
    let poll = async || cluster.left_after_uninstall().await;
    scene.until("nothing is left", poll, Vec::is_empty).await?;
    cluster.stop_inspectors(&nodes).await?;
    cluster.delete_namespaces().await?;
    Ok("no object of the release, no mount, session or device on a node".to_owned())
}
