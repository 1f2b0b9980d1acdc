//! Many concurrent volumes, in memory: no volume blocks another, and a caller that goes away leaves no lock behind.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::time::Duration;

use e2e::harness::test_volume::{Content, TestVolume};
use e2e::testbed::memory::{CsiClients, Memory};
use e2e::testbed::{CommandFault, HostFault, TestBed as _};
use e2e::{GIB, MIB};
use futures::future::join_all;
use serde_json::{Value, json};
use tonic::{Code, Status};

const VOLUMES: usize = 64;
const LUN: &str = "SYNO.Core.ISCSI.LUN";
/// Test beds with an odd seed have the response times of a real NAS.
const SEEDS: [(&str, u64); 2] = [("at once", 2), ("as a NAS", 3)];

/// Retries like a CO while a NAS that creates one LUN at a time is busy.
async fn with_retries<T>(mut call: impl AsyncFnMut() -> Result<T, Status>) -> Result<T, Status> {
    loop {
        match call().await {
            Err(status) if matches!(status.code(), Code::Aborted | Code::Unavailable) => {
                // sleep: a CO waits before it asks again; time is simulated.
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
            answer => return answer,
        }
    }
}

/// A volume's life cycle with three expansions: mounted, unmounted, and staged again.
async fn life_cycle(clients: &CsiClients, number: usize) -> Result<(), Status> {
    let content = Content::ALL[number % 4];
    let size = GIB + i64::try_from(number).unwrap() * MIB;
    let name = format!("pvc-{number}");
    let mut volume =
        with_retries(async || TestVolume::create(clients, &name, size, content).await).await?;
    volume.attach(clients).await?;
    assert_eq!(volume.expand_lun(clients, 2 * size).await?, 2 * size);
    assert_eq!(volume.expand_on_node(clients, 2 * size).await?, 2 * size);
    volume.detach(clients).await?;
    assert_eq!(volume.expand_lun(clients, 3 * size).await?, 3 * size);
    volume.attach(clients).await?;
    assert_eq!(volume.expand_on_node(clients, 3 * size).await?, 3 * size);
    volume.detach(clients).await?;
    volume.delete(clients).await
}

/// Checks that no object of ours is left anywhere.
async fn must_leave_nothing(bed: &Memory) {
    let seen = bed.observe().await.unwrap();
    assert!(seen.luns.is_empty(), "{:?}", seen.luns);
    assert!(seen.targets.is_empty(), "{:?}", seen.targets);
    for node in &seen.nodes {
        let left = (&node.sessions, &node.records, &node.mounts, &node.paths);
        assert!(
            node.sessions.is_empty()
                && node.records.is_empty()
                && node.mount_count == 0
                && node.paths.is_empty(),
            "{left:?}"
        );
    }
}

async fn fault(bed: &Memory, method: &str, object: &str, fault: Value) {
    let rule = json!({"api": LUN, "method": method, "object": object, "times": 0, "fault": fault});
    bed.post_control("/faults", rule).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn sixty_four_life_cycles_at_once() {
    for (speed, seed) in SEEDS {
        let bed = Memory::start(seed).await.unwrap();
        let clients: Vec<CsiClients> = (0..VOLUMES)
            .map(|number| bed.clients(number % 2, number / 2 % 2))
            .collect();
        let life_cycles = clients
            .iter()
            .enumerate()
            .map(|(number, clients)| life_cycle(clients, number));
        for (number, result) in join_all(life_cycles).await.into_iter().enumerate() {
            result.unwrap_or_else(|status| panic!("{speed}, volume {number}: {status:?}"));
        }
        must_leave_nothing(&bed).await;
    }
}

/// Two volumes hang, one on the NAS and one on its node; sixty-two others complete their life cycles meanwhile.
#[tokio::test(start_paused = true)]
async fn no_volume_waits_for_another() {
    for (_, seed) in SEEDS {
        let mut bed = Memory::start(seed).await.unwrap();
        let clients = bed.clients(0, 0);
        let slow = TestVolume::create(&clients, "pvc-slow", GIB, Content::Block)
            .await
            .unwrap();
        let mut stuck = TestVolume::create(&clients, "pvc-stuck", GIB, Content::Fs("xfs"))
            .await
            .unwrap();
        stuck.publish(&clients).await.unwrap();
        fault(&bed, "get", slow.uuid(), json!({"kind": "hang"})).await;
        let hangs = HostFault {
            command: "pvc-stuck/staging".to_owned(),
            fault: CommandFault::Hangs,
            times: 0,
        };
        bed.inject_fault(0, hangs).unwrap();
        // Each call times out, and is retried.
        let growing = tokio::spawn({
            let (clients, slow) = (clients.clone(), slow.clone());
            async move { while slow.expand_lun(&clients, 2 * GIB).await.is_err() {} }
        });
        let staging = tokio::spawn({
            let (clients, stuck) = (clients.clone(), stuck.clone());
            async move { while stuck.stage(&clients).await.is_err() {} }
        });
        let others = (2..VOLUMES).map(|number| life_cycle(&clients, number));
        for result in join_all(others).await {
            result.unwrap();
        }
        assert!(!growing.is_finished() && !staging.is_finished());
        bed.clear_faults().await.unwrap();
        growing.await.unwrap();
        staging.await.unwrap();
        stuck.detach(&clients).await.unwrap();
        stuck.delete(&clients).await.unwrap();
        slow.delete(&clients).await.unwrap();
        must_leave_nothing(&bed).await;
    }
}

/// An operation that has started completes without its caller; until then the volume is busy, and after that it is not.
#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_leaves_no_lock_behind() {
    let bed = Memory::start(2).await.unwrap();
    let clients = bed.clients(0, 0);
    let mut volume = TestVolume::create(&clients, "pvc-1", GIB, Content::Fs("ext4"))
        .await
        .unwrap();
    volume.attach(&clients).await.unwrap();
    fault(
        &bed,
        "set",
        volume.uuid(),
        json!({"kind": "delay", "ms": 5000}),
    )
    .await;
    let short_timeout = Duration::from_millis(100);
    let timed_out = tokio::time::timeout(short_timeout, volume.expand_lun(&clients, 2 * GIB)).await;
    assert!(timed_out.is_err(), "{timed_out:?}");
    let busy = volume.expand_lun(&clients, 2 * GIB).await.unwrap_err();
    assert_eq!(busy.code(), Code::Aborted, "{busy:?}");
    // The node half has its own process and its own lock.
    assert_eq!(volume.expand_on_node(&clients, GIB).await.unwrap(), 2 * GIB);
    // sleep: longer than the injected delay; time is simulated.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let seen = bed.observe().await.unwrap();
    assert_eq!(seen.luns[volume.uuid()].size, 2 * GIB.unsigned_abs());
    assert_eq!(volume.expand_lun(&clients, 2 * GIB).await.unwrap(), 2 * GIB);
    let journal = bed.journal().await.unwrap();
    let sets = journal.iter().filter(|line| line.contains("LUN.set"));
    assert_eq!(sets.count(), 1, "the LUN was set only once");
    volume.detach(&clients).await.unwrap();
    volume.delete(&clients).await.unwrap();
    must_leave_nothing(&bed).await;
}
