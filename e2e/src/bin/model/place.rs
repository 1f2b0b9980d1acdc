//! Where sequences are played: each in a world of its own in memory, or one after the other in a world of processes.

use std::cell::RefCell;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result, ensure};
use e2e::model::executor::{Executor, Tally};
use e2e::model::step::Step;
use e2e::testbed::memory;
use e2e::testbed::pool::{PooledBed, RUN_TIMEOUT};
use e2e::testbed::real::Real;
use e2e::testbed::{SECRET_PREFIX, TestBed};
use sha2::{Digest as _, Sha256};

/// Where sequences are played.
#[derive(Debug)]
pub(crate) enum Place {
    /// In this process, with a time of its own.
    Memory,
    /// On processes and block devices.
    Real(Box<RefCell<PooledBed>>),
}

/// What came of a sequence.
pub(crate) struct Played {
    pub(crate) result: Result<(), String>,
    pub(crate) hash: [u8; 32],
    pub(crate) tally: Tally,
    pub(crate) journal: Vec<String>,
}

impl Place {
    /// Makes one.
    pub(crate) fn open(real: bool) -> Result<Self> {
        if !real {
            return Ok(Self::Memory);
        }
        Ok(Self::Real(Box::new(RefCell::new(PooledBed::open()?))))
    }

    /// Plays a sequence, and keeps its journal if it fails, or if it shall be kept. `seen` counts the steps that are taken.
    pub(crate) fn play(
        &self,
        steps: &[Step],
        seen: Option<&AtomicUsize>,
        keep: bool,
    ) -> Result<Played> {
        match self {
            Self::Memory => memory::run(steps.len() as u64, async |bed| {
                let result = take(bed, steps, seen).await;
                let journal = bed.journal().await?;
                let texts = bed.texts();
                let quiet = silent(texts.iter().chain(&journal));
                let result = result.and_then(|tally| quiet.map(|()| tally));
                Ok(played(result, journal, keep))
            }),
            Self::Real(stage) => {
                let PooledBed {
                    world: bed,
                    runtime,
                } = &mut *stage.borrow_mut();
                runtime.block_on(play_on(bed, steps, seen, keep))
            }
        }
    }
}

async fn play_on(
    bed: &mut Real,
    steps: &[Step],
    seen: Option<&AtomicUsize>,
    keep: bool,
) -> Result<Played> {
    bed.reset().await.context("making the world fresh")?;
    let result = tokio::time::timeout(RUN_TIMEOUT, take(bed, steps, seen)).await;
    let result = result.unwrap_or_else(|_| anyhow::bail!("it has no end in {RUN_TIMEOUT:?}"));
    let mut journal = bed.journal().await?;
    let logs = bed.logs()?;
    let quiet = silent(journal.iter().chain(&logs));
    let result = result.and_then(|tally| quiet.map(|()| tally));
    if keep || result.is_err() {
        journal.extend(logs);
    }
    Ok(played(result, journal, keep))
}

/// No command, file, call or line of a log tells a secret.
fn silent<'a>(mut told: impl Iterator<Item = &'a String>) -> Result<()> {
    let loud = told.find(|text| text.contains(SECRET_PREFIX));
    ensure!(loud.is_none(), "a secret is told: {loud:?}");
    Ok(())
}

fn played(result: Result<Tally>, journal: Vec<String>, keep: bool) -> Played {
    let mut hash = Sha256::new();
    for line in &journal {
        hash.update(line);
    }
    let kept = keep || result.is_err();
    Played {
        tally: result.as_ref().copied().unwrap_or_default(),
        result: result.map(drop).map_err(|error| format!("{error:#}")),
        hash: hash.finalize().into(),
        journal: if kept { journal } else { Vec::new() },
    }
}

async fn take(bed: &mut impl TestBed, steps: &[Step], seen: Option<&AtomicUsize>) -> Result<Tally> {
    let mut executor = Executor::start(bed).await?;
    for (number, step) in steps.iter().enumerate() {
        if let Some(seen) = seen {
            seen.fetch_add(1, Ordering::SeqCst);
        }
        executor
            .run_step(step)
            .await
            .with_context(|| format!("step {number}, {step:?}"))?;
    }
    executor.finish().await
}
