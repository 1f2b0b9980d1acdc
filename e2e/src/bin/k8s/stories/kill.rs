//! Somebody dies in the middle.

use anyhow::{Result, ensure};
use e2e::GIB;

use crate::co::{Co, Half};
use crate::scene::{Scene, Used};

/// MiB that are written.
const WRITTEN: u32 = 32;
/// A pod at work, which ends when a write fails.
const WORKS: &str =
    "set -e; i=0; while :; do i=$((i + 1)); echo $i >> $V/log; sync; sleep 0.1; done";

/// The NAS goes while volumes are made, grown and deleted.
pub(super) async fn nas<C: Co>(scene: &Scene<C>) -> Result<String> {
    let class = scene.class("xfs").await?;
    let grows = Used::new("nas-grows", &class, GIB);
    scene.begin(&grows).await?;
    let written = scene.fill(&grows, WRITTEN).await?;
    let goes = Used::new("nas-goes", &class, GIB);
    scene.co.claim(&goes.claim).await?;
    scene.bound(&goes).await?;
    let comes = Used::new("nas-comes", &class, GIB);
    scene.co.restart_nas().await?;
    scene.co.claim(&comes.claim).await?;
    scene.co.resize(grows.name(), 2 * GIB).await?;
    scene.co.unclaim(goes.name()).await?;
    scene.nas_is_up().await?;
    scene.sees(&grows, 2 * GIB).await?;
    scene.has(&grows, 2 * GIB).await?;
    ensure!(
        scene.digest(&grows, WRITTEN).await? == written,
        "the data is another"
    );
    scene.start(&comes).await?;
    scene.end(&comes).await?;
    scene.end(&grows).await?;
    let look = async || scene.luns().await;
    scene
        .until("the LUN has gone", look, |luns| *luns == 0)
        .await?;
    Ok("made, grown and deleted across its restart, data equal".to_owned())
}

/// All parts of the driver are killed, again and again, while volumes are made, grown, moved and deleted.
pub(super) async fn driver<C: Co>(scene: &Scene<C>) -> Result<String> {
    let class = scene.class("xfs").await?;
    let mut halves = vec![Half::Controller];
    halves.extend(scene.co.nodes().await?.into_iter().map(Half::Node));
    let used = Used::new("killed", &class, GIB);
    scene.co.claim(&used.claim).await?;
    scene.kill(&halves).await?;
    scene.co.start(&used.pod).await?;
    scene.kill(&halves).await?;
    scene.runs(&used).await?;
    let written = scene.fill(&used, WRITTEN).await?;
    scene.co.resize(used.name(), 2 * GIB).await?;
    scene.kill(&halves).await?;
    scene.sees(&used, 2 * GIB).await?;
    scene.has(&used, 2 * GIB).await?;
    ensure!(
        scene.digest(&used, WRITTEN).await? == written,
        "the data is another"
    );
    scene.co.stop(used.name()).await?;
    scene.kill(&halves).await?;
    scene.stop(&used).await?;
    scene.co.unclaim(used.name()).await?;
    scene.kill(&halves).await?;
    let look = async || scene.luns().await;
    scene
        .until("the LUN has gone", look, |luns| *luns == 0)
        .await?;
    Ok(
        "claim, pod, growth, end of pod, end of claim: killed in each, nothing lost, nothing left"
            .to_owned(),
    )
}

/// The driver's pod of a node is away for a while: I/O goes on, and afterwards the volume grows and goes.
pub(super) async fn node_while_mounted<C: Co>(scene: &Scene<C>) -> Result<String> {
    let class = scene.class("xfs").await?;
    let used = Used::new("mounted", &class, GIB).works(WORKS);
    scene.begin(&used).await?;
    let written = scene.fill(&used, WRITTEN).await?;
    let node = scene.runs(&used).await?.node;
    scene.co.kill(&Half::Node(node)).await?;
    let before = lines(scene, &used).await?;
    scene
        .until(
            "the pod writes on",
            async || lines(scene, &used).await,
            |lines| *lines > before + 5,
        )
        .await?;
    scene.driver_is_up().await?;
    scene.grow(&used, 2 * GIB).await?;
    scene.has(&used, 2 * GIB).await?;
    ensure!(
        scene.digest(&used, WRITTEN).await? == written,
        "the data is another"
    );
    let seen = scene.runs(&used).await?;
    ensure!(
        seen.restarts == 0,
        "the pod's writing failed: it was started {} times again",
        seen.restarts
    );
    scene.end(&used).await?;
    Ok("I/O went on, then grown and unpublished by the next one".to_owned())
}

/// How many lines a pod has written.
async fn lines<C: Co>(scene: &Scene<C>, used: &Used) -> Result<u64> {
    let printed = scene.co.run(used.name(), "wc -l < $V/log").await?;
    Ok(printed.parse()?)
}
