//! Where a search gets its worlds from: it says what is to be played, and need not know on what.

use std::sync::Mutex;
use std::sync::PoisonError;
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

/// Which plane a program plays on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// In this process, with a time of its own
    Memory,
    /// Processes, block devices and file systems (root)
    Real,
}

/// A supply of worlds in which nothing has happened yet.
pub trait TestBedPool: Sync {
    /// Each of them.
    type Bed: TestBed;

    /// Its name, for a report.
    fn name(&self) -> &'static str;

    /// How many may be played on at a time.
    fn parallelism(&self) -> usize;

    /// The part of a command line by which a fault finds what asks a disk anew for its size.
    fn rescan(&self) -> &'static str;

    /// The same for what lets a session see its disk; `None` where nothing but a login does it.
    fn scan(&self) -> Option<&'static str>;

    /// From the death of a process until the CO calls again, beyond what a restart takes here: a container is not started
    /// again at once, and a sidecar waits before it repeats a call.
    fn backoff(&self) -> Duration;

    /// Plays on one that is fresh.
    ///
    /// # Errors
    /// There is none, or the play's.
    fn run<T>(&self, play: impl AsyncFnOnce(&mut Self::Bed) -> Result<T>) -> Result<T>;
}

/// Worlds in memory: so cheap that each play has one of its own.
#[derive(Clone, Copy, Debug)]
pub struct MemoryPool;

/// Its worlds' NAS is as slow as a DS918+, so that a process can die while the NAS is still at work.
const SEED: u64 = 1;

impl TestBedPool for MemoryPool {
    type Bed = Memory;

    fn name(&self) -> &'static str {
        "memory"
    }

    fn parallelism(&self) -> usize {
        std::thread::available_parallelism().map_or(1, usize::from)
    }

    fn rescan(&self) -> &'static str {
        "/rescan"
    }

    fn scan(&self) -> Option<&'static str> {
        Some("/scan")
    }

    fn backoff(&self) -> Duration {
        // A DS918+ is at a deletion for 2 s; whoever asks again before is told, rightly, that the LUN is not ready.
        Duration::from_millis(2_500)
    }

    fn run<T>(&self, play: impl AsyncFnOnce(&mut Memory) -> Result<T>) -> Result<T> {
        memory::run(SEED, play)
    }
}

/// Worlds of processes and block devices. To start one takes seconds, so each is made fresh again for the next play.
#[derive(Debug, Default)]
pub struct DevicePool(Mutex<Vec<PooledBed>>);

/// A world of processes, and what drives its wires.
#[derive(Debug)]
pub struct PooledBed {
    // Dropped first: its tasks need the runtime.
    /// The world.
    pub world: Real,
    /// Its runtime.
    pub runtime: Runtime,
}

/// The longest that one play may take in a world of processes.
pub const RUN_TIMEOUT: Duration = Duration::from_secs(300);

impl TestBedPool for DevicePool {
    type Bed = Real;

    fn name(&self) -> &'static str {
        "real"
    }

    fn parallelism(&self) -> usize {
        std::thread::available_parallelism().map_or(1, usize::from)
    }

    fn rescan(&self) -> &'static str {
        "--rescan"
    }

    fn scan(&self) -> Option<&'static str> {
        // node-sim's sessions come with their disks.
        None
    }

    fn backoff(&self) -> Duration {
        // Its NAS deletes at once.
        Duration::ZERO
    }

    fn run<T>(&self, play: impl AsyncFnOnce(&mut Real) -> Result<T>) -> Result<T> {
        let idle = lock(&self.0).pop();
        let mut stage = idle.map_or_else(PooledBed::open, Ok)?;
        let PooledBed { world, runtime } = &mut stage;
        let result = runtime.block_on(async {
            world.reset().await?;
            let played = tokio::time::timeout(RUN_TIMEOUT, play(world)).await;
            played.unwrap_or_else(|_| bail!("it has no end in {RUN_TIMEOUT:?}"))
        });
        lock(&self.0).push(stage);
        result
    }
}

impl PooledBed {
    /// Starts one.
    ///
    /// # Errors
    /// A process does not come up.
    pub fn open() -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let world = runtime.block_on(Real::start())?;
        Ok(Self { world, runtime })
    }
}

/// The kinds of volumes that can be grown on these grounds while they are in use.
///
/// # Errors
/// There is no world.
pub fn kinds_that_grow_online(grounds: &impl TestBedPool) -> Result<Vec<Kind>> {
    grounds.run(async |plane| {
        let grows = |kind: &Kind| match kind.content() {
            Content::Fs(fs) => plane.grows_online(fs),
            Content::Block => true,
        };
        Ok(Kind::ALL.into_iter().filter(grows).collect())
    })
}

/// Does something to each item, so many at a time; the results are in the items' order. The first error ends it all.
///
/// # Errors
/// That of the first item that has one, or a panic.
pub fn map_parallel<I: Sync, T: Send>(
    width: usize,
    items: &[I],
    act: impl Fn(&I) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, T)>> = Mutex::default();
    let work = || -> Result<()> {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(at) else {
                return Ok(());
            };
            match act(item) {
                Ok(result) => lock(&done).push((at, result)),
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
    let mut done = std::mem::take(&mut *lock(&done));
    done.sort_by_key(|(at, _)| *at);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
