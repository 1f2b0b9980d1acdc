//! Many at once.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use e2e::GIB;

use crate::co::Co;
use crate::scene::{Scene, Used};

/// Claims at once.
const CLAIMS: usize = 50;
/// Those of them that a pod uses, and that grow, all at once.
const PODS: usize = 4;

/// Fifty claims are made, a few of them used and grown, and all deleted, each time all at once.
pub(super) async fn fifty_claims<C: Co>(scene: &Scene<C>) -> Result<String> {
    let class = scene.class("xfs").await?;
    let before = scene.luns().await?;
    let crowd: Vec<Used> = (0..CLAIMS)
        .map(|number| Used::new(&format!("crowd-{number:02}"), &class, GIB))
        .collect();
    let began = Instant::now();
    for used in &crowd {
        scene.co.claim(&used.claim).await?;
    }
    for used in &crowd {
        scene.bound(used).await?;
    }
    let bound = began.elapsed();
    let luns = scene.luns().await? - before;
    ensure!(luns == CLAIMS, "{luns} LUNs for {CLAIMS} claims");
    let busy = &crowd[..PODS];
    for used in busy {
        scene.co.start(&used.pod).await?;
    }
    for used in busy {
        scene.runs(used).await?;
        scene.co.resize(used.name(), 2 * GIB).await?;
    }
    for used in busy {
        scene.sees(used, 2 * GIB).await?;
        scene.has(used, 2 * GIB).await?;
    }
    for used in busy {
        scene.co.stop(used.name()).await?;
    }
    let ends = Instant::now();
    for used in &crowd {
        scene.co.unclaim(used.name()).await?;
    }
    let look = async || scene.luns().await.context("the NAS");
    scene
        .until("all LUNs have gone", look, |luns| *luns == before)
        .await?;
    let volumes = async || Ok(scene.co.see_volumes().await?.len());
    scene
        .until("all volumes have gone", volumes, |left| *left == 0)
        .await?;
    Ok(format!(
        "{CLAIMS} bound in {:.0} s, {PODS} of them used and grown, all gone in {:.0} s",
        bound.as_secs_f64(),
        ends.elapsed().as_secs_f64()
    ))
}
