//! Many volumes at a time, in memory: nobody waits for another's, nobody who goes away leaves a lock behind.

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
/// Worlds with an odd seed have the reply times of a NAS.
const SEEDS: [(&str, u64); 2] = [("at once", 2), ("as a NAS", 3)];

/// A CO asks again while a NAS that makes one LUN at a time is busy.
async fn patient<T>(mut call: impl AsyncFnMut() -> Result<T, Status>) -> Result<T, Status> {
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

/// From nothing to nothing, with three expansions on the way: mounted, unmounted, and staged again.
async fn live(seat: &CsiClients, number: usize) -> Result<(), Status> {
    let content = Content::ALL[number % 4];
    let size = GIB + i64::try_from(number).unwrap() * MIB;
    let name = format!("pvc-{number}");
    let mut life = patient(async || TestVolume::create(seat, &name, size, content).await).await?;
    life.attach(seat).await?;
    assert_eq!(life.expand_lun(seat, 2 * size).await?, 2 * size);
    assert_eq!(life.expand_on_node(seat, 2 * size).await?, 2 * size);
    life.detach(seat).await?;
    assert_eq!(life.expand_lun(seat, 3 * size).await?, 3 * size);
    life.attach(seat).await?;
    assert_eq!(life.expand_on_node(seat, 3 * size).await?, 3 * size);
    life.detach(seat).await?;
    life.delete(seat).await
}

/// Nothing of ours is left anywhere.
async fn must_be_empty(world: &Memory) {
    let seen = world.observe().await.unwrap();
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

async fn fault(world: &Memory, method: &str, object: &str, fault: Value) {
    let rule = json!({"api": LUN, "method": method, "object": object, "times": 0, "fault": fault});
    world.post_control("/faults", rule).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn sixty_four_lives_at_once() {
    for (speed, seed) in SEEDS {
        let world = Memory::start(seed).await.unwrap();
        let seats: Vec<CsiClients> = (0..VOLUMES)
            .map(|number| world.clients(number % 2, number / 2 % 2))
            .collect();
        let lives = seats
            .iter()
            .enumerate()
            .map(|(number, seat)| live(seat, number));
        for (number, lived) in join_all(lives).await.into_iter().enumerate() {
            lived.unwrap_or_else(|status| panic!("{speed}, volume {number}: {status:?}"));
        }
        must_be_empty(&world).await;
    }
}

/// Two volumes are stuck for ever, one on the NAS and one on its node; sixty-two others live and die beside them.
#[tokio::test(start_paused = true)]
async fn nobody_waits_for_another_volume() {
    for (_, seed) in SEEDS {
        let mut world = Memory::start(seed).await.unwrap();
        let seat = world.clients(0, 0);
        let slow = TestVolume::create(&seat, "pvc-slow", GIB, Content::Block)
            .await
            .unwrap();
        let mut stuck = TestVolume::create(&seat, "pvc-stuck", GIB, Content::Fs("xfs"))
            .await
            .unwrap();
        stuck.publish(&seat).await.unwrap();
        fault(&world, "get", slow.uuid(), json!({"kind": "hang"})).await;
        let hangs = HostFault {
            command: "pvc-stuck/staging".to_owned(),
            fault: CommandFault::Hangs,
            times: 0,
        };
        world.inject_fault(0, hangs).unwrap();
        // Each of them gives up after a while, and is asked again.
        let growing = tokio::spawn({
            let (seat, slow) = (seat.clone(), slow.clone());
            async move { while slow.expand_lun(&seat, 2 * GIB).await.is_err() {} }
        });
        let staging = tokio::spawn({
            let (seat, stuck) = (seat.clone(), stuck.clone());
            async move { while stuck.stage(&seat).await.is_err() {} }
        });
        let others = (2..VOLUMES).map(|number| live(&seat, number));
        for lived in join_all(others).await {
            lived.unwrap();
        }
        assert!(!growing.is_finished() && !staging.is_finished());
        world.clear_faults().await.unwrap();
        growing.await.unwrap();
        staging.await.unwrap();
        stuck.detach(&seat).await.unwrap();
        stuck.delete(&seat).await.unwrap();
        slow.delete(&seat).await.unwrap();
        must_be_empty(&world).await;
    }
}

/// What it has begun runs to its end; until then the volume is busy, and from then on it is not.
#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_leaves_no_lock_behind() {
    let world = Memory::start(2).await.unwrap();
    let seat = world.clients(0, 0);
    let mut life = TestVolume::create(&seat, "pvc-1", GIB, Content::Fs("ext4"))
        .await
        .unwrap();
    life.attach(&seat).await.unwrap();
    fault(
        &world,
        "set",
        life.uuid(),
        json!({"kind": "delay", "ms": 5000}),
    )
    .await;
    let soon = Duration::from_millis(100);
    let gone = tokio::time::timeout(soon, life.expand_lun(&seat, 2 * GIB)).await;
    assert!(gone.is_err(), "{gone:?}");
    let busy = life.expand_lun(&seat, 2 * GIB).await.unwrap_err();
    assert_eq!(busy.code(), Code::Aborted, "{busy:?}");
    // The node's half has a process and a lock of its own.
    assert_eq!(life.expand_on_node(&seat, GIB).await.unwrap(), 2 * GIB);
    // sleep: past the delay that was asked for; time is simulated.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let seen = world.observe().await.unwrap();
    assert_eq!(seen.luns[life.uuid()].size, 2 * GIB.unsigned_abs());
    assert_eq!(life.expand_lun(&seat, 2 * GIB).await.unwrap(), 2 * GIB);
    let journal = world.journal().await.unwrap();
    let sets = journal.iter().filter(|line| line.contains("LUN.set"));
    assert_eq!(sets.count(), 1, "nobody did it a second time");
    life.detach(&seat).await.unwrap();
    life.delete(&seat).await.unwrap();
    must_be_empty(&world).await;
}
