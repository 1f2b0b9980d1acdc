//! Many concurrent claims.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use e2e::GIB;

use crate::co::Co;
use crate::scene::{Scene, Workload};

/// Number of concurrent claims.
const CLAIMS: usize = 50;
/// How many of them are used by a pod, and expanded concurrently.
const PODS: usize = 4;

/// Creates fifty claims, uses and expands a few of them, and deletes all, each step concurrently.
pub(super) async fn fifty_claims<C: Co>(scene: &Scene<C>) -> Result<String> {
    let class = scene.class("xfs").await?;
    let before = scene.luns().await?;
    let workloads: Vec<Workload> = (0..CLAIMS)
        .map(|number| Workload::new(&format!("crowd-{number:02}"), &class, GIB))
        .collect();
    let began = Instant::now();
    for workload in &workloads {
        scene.co.claim(&workload.claim).await?;
    }
    for workload in &workloads {
        scene.wait_until_bound(workload).await?;
    }
    let bound = began.elapsed();
    let luns = scene.luns().await? - before;
    ensure!(luns == CLAIMS, "{luns} LUNs for {CLAIMS} claims");
    let busy = &workloads[..PODS];
    for workload in busy {
        scene.co.start(&workload.pod).await?;
    }
    for workload in busy {
        scene.wait_until_running(workload).await?;
        scene.co.resize(workload.name(), 2 * GIB).await?;
    }
    for workload in busy {
        scene.wait_for_size(workload, 2 * GIB).await?;
        scene.wait_for_capacity(workload, 2 * GIB).await?;
    }
    for workload in busy {
        scene.co.stop(workload.name()).await?;
    }
    let ends = Instant::now();
    for workload in &workloads {
        scene.co.unclaim(workload.name()).await?;
    }
    let poll = async || scene.luns().await.context("the NAS");
    scene
        .until("all LUNs have gone", poll, |luns| *luns == before)
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
