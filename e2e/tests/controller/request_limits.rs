//! Hundreds of concurrent calls: how many requests and connections reach a NAS (design.md#limits-per-nas).

use std::time::Duration;

use anyhow::Result;
use e2e::GIB;
use e2e::harness::test_cluster::Plan;
use e2e::harness::until::{until, until_within};
use futures::future::join_all;

use super::common::{Csi, LUN, NODE_A, VOLUME, hang, journal_end};

/// Maximum of concurrent creates on a NAS.
const CREATES: u64 = 4;
const CONNECTIONS: usize = 30;

/// design.md#limits-per-nas
#[tokio::test]
async fn many_creates_queue_in_the_driver_and_block_no_other_call() -> Result<()> {
    let cluster = Plan::controller().start().await?;
    let csi = Csi::of(&cluster.plugin);
    let id = csi.create("first", GIB).await?;
    let before = cluster.plugin.process.sockets()?;
    let since = journal_end(&cluster.nas).await?;
    cluster.nas.fault(LUN, "create", 1, 0, hang()).await?;
    let pending = (0..60).map(|n| {
        let csi = csi.clone();
        tokio::spawn(async move { csi.create_owned(format!("pvc-{n}")).await })
    });
    let pending: Vec<_> = pending.collect();
    let creates_sent = async || {
        let entries = cluster.nas.journal(since).await?.0;
        Ok(entries.iter().filter(|entry| entry.api == VOLUME).count())
    };
    until("all of them are about to create", creates_sent, |count| {
        *count == 60
    })
    .await?;
    let creates = async || Ok(cluster.nas.fault_matches().await?.iter().sum::<u64>());
    until("some do", creates, |count| *count == CREATES).await?;
    // Other calls are not blocked meanwhile.
    csi.publish(&id, NODE_A).await?;
    csi.expand(&id, 2 * GIB).await?;
    csi.unpublish(&id, NODE_A).await?;
    csi.delete(&id).await?;
    assert_eq!(creates().await?, CREATES, "at most this many at a time");
    let sockets = cluster.plugin.process.sockets()?;
    eprintln!("{before} sockets before, {sockets} with sixty creates");
    assert!(sockets <= before + CONNECTIONS, "{before} {sockets}");
    cluster.nas.clear_faults().await?;
    for answer in join_all(pending).await {
        answer??;
    }
    assert_eq!(cluster.nas.luns().await?.len(), 60);
    // Idle connections are closed, including the one that was open before.
    let open = async || cluster.plugin.process.sockets();
    let minute = Duration::from_secs(60);
    until_within(minute, "all closed", open, |open| *open < before).await?;
    Ok(())
}
