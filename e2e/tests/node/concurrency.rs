//! Twenty volumes, five at a time, on one node.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use e2e::GIB;
use e2e::harness::skip::needs_root;
use e2e::harness::test_cluster::{Plan, TestCluster};
use e2e::harness::test_volume::{Content, TestVolume};
use e2e::harness::tools::{device_bytes, fill, sha256};
use e2e::harness::until::until;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tonic::Code;

const VOLUMES: usize = 20;
const AT_A_TIME: usize = 5;

#[tokio::test(flavor = "multi_thread")]
async fn twenty_volumes_come_and_go() {
    if needs_root("concurrency::twenty_volumes_come_and_go") {
        return;
    }
    let cluster = Plan::with_node().start().await.unwrap();
    let one = {
        let from = journal_end(&cluster).await;
        life_cycle(&cluster, 0).await.unwrap();
        calls_since(&cluster, from).await
    };
    let from = journal_end(&cluster).await;
    let life_cycles = stream::iter(1..=VOLUMES).map(|number| {
        let cluster = &cluster;
        async move {
            life_cycle(cluster, number)
                .await
                .with_context(|| format!("volume {number}"))
        }
    });
    life_cycles
        .buffer_unordered(AT_A_TIME)
        .try_collect::<()>()
        .await
        .unwrap();

    assert_eq!(cluster.leftovers().await.unwrap(), Vec::<String>::new());
    // Each cost what a single one costs, so no node call of any volume made a NAS call (design.md#the-node-never-calls-dsm).
    let expected: BTreeMap<String, usize> = one
        .into_iter()
        .map(|(call, times)| (call, times * VOLUMES))
        .collect();
    assert_eq!(calls_since(&cluster, from).await, expected);
}

/// Attaches a volume as a kubelet does, retrying on Unavailable. All test clusters on this machine share the loop device
/// numbers, and a device was once found busy that another cluster had just released.
async fn attach(cluster: &TestCluster, volume: &mut TestVolume) -> Result<()> {
    volume.publish(cluster).await?;
    let stage = async || match volume.stage(cluster).await {
        Ok(()) => Ok(None),
        Err(status) if status.code() == Code::Unavailable => Ok(Some(status)),
        Err(status) => Err(status.into()),
    };
    until("the volume is staged", stage, Option::is_none).await?;
    Ok(volume.node_publish(cluster).await?)
}

/// The life cycle of one volume.
async fn life_cycle(cluster: &TestCluster, number: usize) -> Result<()> {
    let content = Content::ALL[number % Content::ALL.len()];
    let mut volume = TestVolume::create(cluster, &format!("pvc-{number}"), GIB, content).await?;
    attach(cluster, &mut volume).await?;
    let device = volume.device(cluster)?;
    let file = volume.file("data");
    let written = fill(&file, 1 << 20, number as u64)?;
    volume.expand_lun(cluster, 2 * GIB).await?;
    // A mounted ext4 cannot grow on every machine; `expand` tests that.
    if content != Content::Fs("ext4") {
        let grown = volume.expand_on_node(cluster, 2 * GIB).await?;
        ensure!(grown == 2 * GIB, "grown to {grown}");
        ensure!(
            device_bytes(&device)? == (2 * GIB).unsigned_abs(),
            "{} is stale",
            device.display()
        );
    }
    ensure!(sha256(&file, 1 << 20)? == written, "the data have changed");
    volume.detach(cluster).await?;
    volume.delete(cluster).await?;
    Ok(())
}

async fn journal_end(cluster: &TestCluster) -> u64 {
    cluster.nas.journal(u64::MAX).await.unwrap().1
}

async fn calls_since(cluster: &TestCluster, seq: u64) -> BTreeMap<String, usize> {
    let (entries, _) = cluster.nas.journal(seq).await.unwrap();
    let mut calls = BTreeMap::new();
    for entry in entries.iter().filter(|entry| !entry.is_session()) {
        *calls.entry(entry.short()).or_default() += 1;
    }
    calls
}
