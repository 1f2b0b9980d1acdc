//! Pool of test beds for the search binaries, which run on either kind.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use clap::ValueEnum;
use tokio::runtime::{Builder, Runtime};

use crate::harness::test_volume::Content;
use crate::model::step::Kind;
use crate::testbed::TestBed;
use crate::testbed::memory::{self, Memory};
use crate::testbed::real::Real;

/// The kind of test bed to run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// In this process, in virtual time
    Memory,
    /// Processes, block devices and file systems (root)
    Real,
}

/// A source of fresh test beds.
pub trait TestBedPool: Sync {
    /// The type of the test beds.
    type Bed: TestBed;

    /// Name for reports.
    fn name(&self) -> &'static str;

    /// The number of test beds that may run at the same time.
    fn parallelism(&self) -> usize;

    /// The part of a command line that selects a rescan of a disk's size for a fault.
    fn rescan_pattern(&self) -> &'static str;

    /// The same for the scan that makes a session's disk appear; `None` if the login does that.
    fn scan_pattern(&self) -> Option<&'static str>;

    /// From the crash of a process until the CO's retry, in addition to the restart itself: a container is not restarted at once,
    /// and a sidecar backs off.
    fn backoff(&self) -> Duration;

    /// Runs a test on a fresh test bed.
    ///
    /// # Errors
    /// No test bed can be started, or the test's error.
    fn run<T>(&self, test: impl AsyncFnOnce(&mut Self::Bed) -> Result<T>) -> Result<T>;
}

/// In-memory test beds: cheap, so each run starts its own.
#[derive(Clone, Copy, Debug)]
pub struct MemoryPool;

/// An odd seed: the NAS is as slow as a DS918+, so that a process can crash while the NAS is still working.
const SEED: u64 = 1;

impl TestBedPool for MemoryPool {
    type Bed = Memory;

    fn name(&self) -> &'static str {
        "memory"
    }

    fn parallelism(&self) -> usize {
        std::thread::available_parallelism().map_or(1, usize::from)
    }

    fn rescan_pattern(&self) -> &'static str {
        "/rescan"
    }

    fn scan_pattern(&self) -> Option<&'static str> {
        Some("/scan")
    }

    fn backoff(&self) -> Duration {
        // A DS918+ takes 2 s to delete a LUN; an earlier retry is told, rightly, that the LUN is not ready.
        Duration::from_millis(2_500)
    }

    fn run<T>(&self, test: impl AsyncFnOnce(&mut Memory) -> Result<T>) -> Result<T> {
        memory::run(SEED, test)
    }
}

/// Test beds of processes and block devices. Starting one takes seconds, so each is reset and reused.
#[derive(Debug, Default)]
pub struct DevicePool(Mutex<Vec<PooledBed>>);

/// A test bed of processes, and the runtime of its proxies.
#[derive(Debug)]
pub struct PooledBed {
    // Dropped first: its tasks need the runtime.
    /// The test bed.
    pub bed: Real,
    /// Its runtime.
    pub runtime: Runtime,
}

/// The timeout of one run on a test bed of processes.
pub const RUN_TIMEOUT: Duration = Duration::from_secs(300);

impl TestBedPool for DevicePool {
    type Bed = Real;

    fn name(&self) -> &'static str {
        "real"
    }

    fn parallelism(&self) -> usize {
        std::thread::available_parallelism().map_or(1, usize::from)
    }

    fn rescan_pattern(&self) -> &'static str {
        "--rescan"
    }

    fn scan_pattern(&self) -> Option<&'static str> {
        // With node-sim, a session has its disks at login.
        None
    }

    fn backoff(&self) -> Duration {
        // Its NAS deletes LUNs immediately.
        Duration::ZERO
    }

    fn run<T>(&self, test: impl AsyncFnOnce(&mut Real) -> Result<T>) -> Result<T> {
        let idle = self.0.lock().pop();
        let mut pooled = idle.map_or_else(PooledBed::open, Ok)?;
        let PooledBed { bed, runtime } = &mut pooled;
        let result = runtime.block_on(async {
            bed.reset().await?;
            let finished = tokio::time::timeout(RUN_TIMEOUT, test(bed)).await;
            finished.unwrap_or_else(|_| bail!("no end within {RUN_TIMEOUT:?}"))
        });
        self.0.lock().push(pooled);
        result
    }
}

impl PooledBed {
    /// Starts a test bed.
    ///
    /// # Errors
    /// A process does not come up.
    pub fn open() -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let world = runtime.block_on(Real::start())?;
        Ok(Self {
            bed: world,
            runtime,
        })
    }
}

/// The kinds of volumes that this pool's test beds can grow while they are mounted.
///
/// # Errors
/// No test bed can be started.
pub fn kinds_that_grow_online(pool: &impl TestBedPool) -> Result<Vec<Kind>> {
    pool.run(async |bed| {
        let grows = |kind: &Kind| match kind.content() {
            Content::Fs(fs) => bed.grows_online(fs),
            Content::Block => true,
        };
        Ok(Kind::ALL.into_iter().filter(grows).collect())
    })
}

/// Maps items on `width` threads; the results are in the items' order. The first error stops all.
///
/// # Errors
/// The error of an item, or a panic.
pub fn map_parallel<I: Sync, T: Send>(
    width: usize,
    items: &[I],
    map: impl Fn(&I) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, T)>> = Mutex::default();
    let work = || -> Result<()> {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else {
                return Ok(());
            };
            match map(item) {
                Ok(result) => done.lock().push((index, result)),
                Err(error) => {
                    next.store(items.len(), Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
    };
    std::thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..width).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            let ended = worker.join();
            ended.map_err(|_| anyhow::anyhow!("a worker has panicked; see above"))??;
        }
        Ok(())
    })?;
    let mut done = std::mem::take(&mut *done.lock());
    done.sort_by_key(|(index, _)| *index);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_the_order_of_the_items() {
        let items: Vec<usize> = (0..100).collect();
        let doubled = map_parallel(3, &items, |item| Ok(item * 2)).unwrap();
        assert!(doubled.iter().copied().eq((0..100).map(|item| item * 2)));
        let failed = map_parallel(3, &items, |item| {
            anyhow::ensure!(*item != 40, "it is forty");
            Ok(())
        });
        assert_eq!(failed.unwrap_err().to_string(), "it is forty");
    }
}
