//! Where sequences run: each in its own in-memory test bed, or one after the other in a test bed of real processes.

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

/// The kind of test bed that sequences run in.
#[derive(Debug)]
pub(crate) enum Place {
    /// In this process, in simulated time.
    Memory,
    /// On real processes and block devices.
    Real(Box<RefCell<PooledBed>>),
}

/// The result of a sequence.
pub(crate) struct SequenceResult {
    pub(crate) result: Result<(), String>,
    pub(crate) hash: [u8; 32],
    pub(crate) tally: Tally,
    pub(crate) journal: Vec<String>,
}

impl Place {
    pub(crate) fn open(real: bool) -> Result<Self> {
        if !real {
            return Ok(Self::Memory);
        }
        Ok(Self::Real(Box::new(RefCell::new(PooledBed::open()?))))
    }

    /// Runs a sequence, and keeps its journal if it fails or if `keep` is set. `seen` counts the steps taken.
    pub(crate) fn run(
        &self,
        steps: &[Step],
        seen: Option<&AtomicUsize>,
        keep: bool,
    ) -> Result<SequenceResult> {
        match self {
            Self::Memory => memory::run(steps.len() as u64, async |bed| {
                let result = take(bed, steps, seen).await;
                let journal = bed.journal().await?;
                let texts = bed.texts();
                let quiet = no_secrets(texts.iter().chain(&journal));
                let result = result.and_then(|tally| quiet.map(|()| tally));
                Ok(to_result(result, journal, keep))
            }),
            Self::Real(stage) => {
                let PooledBed { bed, runtime } = &mut *stage.borrow_mut();
                runtime.block_on(run_on(bed, steps, seen, keep))
            }
        }
    }
}

async fn run_on(
    bed: &mut Real,
    steps: &[Step],
    seen: Option<&AtomicUsize>,
    keep: bool,
) -> Result<SequenceResult> {
    bed.reset().await.context("resetting the test bed")?;
    let result = tokio::time::timeout(RUN_TIMEOUT, take(bed, steps, seen)).await;
    let result = result.unwrap_or_else(|_| anyhow::bail!("it does not end within {RUN_TIMEOUT:?}"));
    let mut journal = bed.journal().await?;
    let logs = bed.logs()?;
    let quiet = no_secrets(journal.iter().chain(&logs));
    let result = result.and_then(|tally| quiet.map(|()| tally));
    if keep || result.is_err() {
        journal.extend(logs);
    }
    Ok(to_result(result, journal, keep))
}

/// Checks that no command line, file, call or log line contains a secret.
fn no_secrets<'a>(mut texts: impl Iterator<Item = &'a String>) -> Result<()> {
    let exposed = texts.find(|text| text.contains(SECRET_PREFIX));
    ensure!(exposed.is_none(), "a secret is exposed: {exposed:?}");
    Ok(())
}

fn to_result(result: Result<Tally>, journal: Vec<String>, keep: bool) -> SequenceResult {
    let mut hash = Sha256::new();
    for line in &journal {
        hash.update(line);
    }
    let kept = keep || result.is_err();
    SequenceResult {
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
