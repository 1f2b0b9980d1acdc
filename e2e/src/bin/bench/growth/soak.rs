//! Repeated volume life cycles: memory at the beginning, in the middle and at the end, errors, and leftovers.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use e2e::GIB;
use e2e::harness::test_cluster::{Plan, TestCluster};
use e2e::harness::test_volume::{Content, TestVolume};
use futures::future::join_all;
use serde::Serialize;
use tonic::Status;

use super::meter::Meter;
use super::{mib, progress, table};

/// Concurrent life cycles on the controller alone.
const CONCURRENCY: u64 = 8;

/// The results.
#[derive(Serialize)]
pub(crate) struct Soak {
    seconds: f64,
    lives: u64,
    /// Resident memory of the driver, KiB.
    beginning_kib: u64,
    middle_kib: u64,
    end_kib: u64,
    threads: usize,
    descriptors: usize,
    /// Failed calls (none is expected), by error message.
    errors: BTreeMap<String, u64>,
    /// Objects that belong to no volume, after all life cycles have ended.
    leftovers: Vec<String>,
}

/// Life cycles one after the other for this many seconds, on a node if there is one.
///
/// # Errors
/// Something does not start.
pub(super) async fn seconds(node: bool, seconds: u64) -> Result<Soak> {
    let run = Run::begin(node).await?;
    let all = Duration::from_secs(seconds);
    for (half, end) in [all / 2, all].into_iter().enumerate() {
        while run.started.elapsed() < end {
            run.one().await;
        }
        run.note(half)?;
    }
    run.end().await
}

/// This many life cycles, eight at a time, on the controller alone.
///
/// # Errors
/// Something does not start.
pub(super) async fn lives(lives: u64) -> Result<Soak> {
    let run = Run::begin(false).await?;
    for (half, end) in [lives / 2, lives].into_iter().enumerate() {
        let caller = async || {
            while run.cycles_started.load(Ordering::Relaxed) < end {
                run.one().await;
            }
        };
        join_all((0..CONCURRENCY).map(|_| caller())).await;
        run.note(half)?;
    }
    run.end().await
}

struct Run {
    cluster: TestCluster,
    node: bool,
    started: Instant,
    cycles_started: AtomicU64,
    beginning_kib: u64,
    halves: [AtomicU64; 2],
    errors: Mutex<BTreeMap<String, u64>>,
}

impl Run {
    async fn begin(node: bool) -> Result<Self> {
        let mut plan = if node {
            Plan::with_node()
        } else {
            Plan::controller()
        };
        "info".clone_into(&mut plan.log_level);
        let cluster = plan.start().await?;
        Ok(Self {
            beginning_kib: cluster.plugin.process.resident_kib()?,
            cluster,
            node,
            started: Instant::now(),
            cycles_started: AtomicU64::new(0),
            halves: Default::default(),
            errors: Mutex::default(),
        })
    }

    async fn one(&self) {
        let number = self.cycles_started.fetch_add(1, Ordering::Relaxed);
        if let Err(status) = self.life_cycle(&format!("soak-{number}")).await {
            let error = format!("{:?}: {}", status.code(), status.message());
            let mut errors = self.errors.lock();
            *errors.entry(error).or_default() += 1;
        }
        if (number + 1).is_multiple_of(5_000) {
            progress(&format!("soak: {} lives", number + 1));
        }
    }

    async fn life_cycle(&self, name: &str) -> Result<(), Status> {
        let cluster = &self.cluster;
        let content = if self.node {
            Content::Fs("xfs")
        } else {
            Content::Block
        };
        let mut volume = TestVolume::create(cluster, name, GIB, content).await?;
        if self.node {
            volume.attach(cluster).await?;
            volume.stats(cluster).await?;
            volume.expand_lun(cluster, 2 * GIB).await?;
            volume.expand_on_node(cluster, 2 * GIB).await?;
            volume.detach(cluster).await?;
        } else {
            "worker-1:01234567".clone_into(&mut volume.node_id);
            volume.publish_context = volume.publish_to(cluster, &volume.node_id).await?;
            volume.expand_lun(cluster, 2 * GIB).await?;
            volume.unpublish(cluster).await?;
        }
        volume.delete(cluster).await
    }

    fn note(&self, half: usize) -> Result<()> {
        let resident = self.cluster.plugin.process.resident_kib()?;
        self.halves[half].store(resident, Ordering::Relaxed);
        Ok(())
    }

    async fn end(self) -> Result<Soak> {
        let seconds = self.started.elapsed().as_secs_f64();
        let (threads, descriptors) = Meter::of(self.cluster.plugin.process.id())?.now()?;
        let [middle_kib, end_kib] = self.halves.map(AtomicU64::into_inner);
        Ok(Soak {
            seconds,
            lives: self.cycles_started.into_inner(),
            beginning_kib: self.beginning_kib,
            middle_kib,
            end_kib,
            threads,
            descriptors,
            errors: self.errors.into_inner(),
            leftovers: self.cluster.leftovers().await?,
        })
    }
}

/// Prints a human-readable table.
pub(super) fn print(soak: &Soak) {
    println!("\nLives for a while");
    let row = [
        soak.lives.to_string(),
        format!("{:.0}", soak.seconds),
        mib(soak.beginning_kib),
        mib(soak.middle_kib),
        mib(soak.end_kib),
        soak.threads.to_string(),
        soak.descriptors.to_string(),
        soak.errors.values().sum::<u64>().to_string(),
        soak.leftovers.len().to_string(),
    ];
    let header = [
        "lives",
        "seconds",
        "MiB at the beginning",
        "in the middle",
        "at the end",
        "threads",
        "descriptors",
        "errors",
        "kinds of leftovers",
    ];
    println!("{}", table(header, [row]));
    for (error, count) in &soak.errors {
        println!("{count} times: {error}");
    }
    for left in &soak.leftovers {
        println!("left: {left}");
    }
}
