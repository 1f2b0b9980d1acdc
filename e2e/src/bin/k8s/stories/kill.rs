//! Processes are killed in the middle of operations.

use anyhow::{Result, ensure};
use e2e::GIB;

use crate::co::{Co, Half};
use crate::scene::{Scene, Workload};

/// MiB that are written.
const WRITTEN: u32 = 32;
/// A workload that ends when a write fails.
const WRITE_LOOP: &str =
    "set -e; i=0; while :; do i=$((i + 1)); echo $i >> $V/log; sync; sleep 0.1; done";

/// The NAS restarts while volumes are created, expanded and deleted.
pub(super) async fn nas<C: Co>(scene: &Scene<C>) -> Result<String> {
    let class = scene.class("xfs").await?;
    let grows = Workload::new("nas-grows", &class, GIB);
    scene.begin(&grows).await?;
    let written = scene.fill(&grows, WRITTEN).await?;
    let goes = Workload::new("nas-goes", &class, GIB);
    scene.co.claim(&goes.claim).await?;
    scene.wait_until_bound(&goes).await?;
    let comes = Workload::new("nas-comes", &class, GIB);
    scene.co.restart_nas().await?;
    scene.co.claim(&comes.claim).await?;
    scene.co.resize(grows.name(), 2 * GIB).await?;
    scene.co.unclaim(goes.name()).await?;
    scene.nas_is_up().await?;
    scene.wait_for_size(&grows, 2 * GIB).await?;
    scene.wait_for_capacity(&grows, 2 * GIB).await?;
    ensure!(
        scene.digest(&grows, WRITTEN).await? == written,
        "the data have changed"
    );
    scene.start(&comes).await?;
    scene.end(&comes).await?;
    scene.end(&grows).await?;
    let poll = async || scene.luns().await;
    scene
        .until("the LUN has gone", poll, |luns| *luns == 0)
        .await?;
    Ok("made, grown and deleted across its restart, data equal".to_owned())
}

/// All parts of the driver are killed repeatedly while volumes are created, expanded, moved and deleted.
pub(super) async fn driver<C: Co>(scene: &Scene<C>) -> Result<String> {
    let class = scene.class("xfs").await?;
    let mut halves = vec![Half::Controller];
    halves.extend(scene.co.nodes().await?.into_iter().map(Half::Node));
    let workload = Workload::new("killed", &class, GIB);
    scene.co.claim(&workload.claim).await?;
    scene.kill(&halves).await?;
    scene.co.start(&workload.pod).await?;
    scene.kill(&halves).await?;
    scene.wait_until_running(&workload).await?;
    let written = scene.fill(&workload, WRITTEN).await?;
    scene.co.resize(workload.name(), 2 * GIB).await?;
    scene.kill(&halves).await?;
    scene.wait_for_size(&workload, 2 * GIB).await?;
    scene.wait_for_capacity(&workload, 2 * GIB).await?;
    ensure!(
        scene.digest(&workload, WRITTEN).await? == written,
        "the data have changed"
    );
    scene.co.stop(workload.name()).await?;
    scene.kill(&halves).await?;
    scene.stop(&workload).await?;
    scene.co.unclaim(workload.name()).await?;
    scene.kill(&halves).await?;
    let poll = async || scene.luns().await;
    scene
        .until("the LUN has gone", poll, |luns| *luns == 0)
        .await?;
    Ok(
        "claim, pod, growth, end of pod, end of claim: killed in each, nothing lost, nothing left"
            .to_owned(),
    )
}

/// The node plugin is down for a while: I/O continues, and afterwards the volume is expanded and deleted.
pub(super) async fn node_while_mounted<C: Co>(scene: &Scene<C>) -> Result<String> {
    let class = scene.class("xfs").await?;
    let workload = Workload::new("mounted", &class, GIB).script(WRITE_LOOP);
    scene.begin(&workload).await?;
    let written = scene.fill(&workload, WRITTEN).await?;
    let node = scene.wait_until_running(&workload).await?.node;
    scene.co.kill(&Half::Node(node)).await?;
    let before = lines(scene, &workload).await?;
    scene
        .until(
            "the pod writes on",
            async || lines(scene, &workload).await,
            |lines| *lines > before + 5,
        )
        .await?;
    scene.driver_is_up().await?;
    scene.grow(&workload, 2 * GIB).await?;
    scene.wait_for_capacity(&workload, 2 * GIB).await?;
    ensure!(
        scene.digest(&workload, WRITTEN).await? == written,
        "the data have changed"
    );
    let seen = scene.wait_until_running(&workload).await?;
    ensure!(
        seen.restarts == 0,
        "the pod's writing failed: it was started {} times again",
        seen.restarts
    );
    scene.end(&workload).await?;
    Ok("I/O went on, then grown and unpublished by the next one".to_owned())
}

/// The number of lines that a pod has written.
async fn lines<C: Co>(scene: &Scene<C>, workload: &Workload) -> Result<u64> {
    let printed = scene.co.run(workload.name(), "wc -l < $V/log").await?;
    Ok(printed.parse()?)
}
