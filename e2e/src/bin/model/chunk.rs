//! A run of generated sequences from one random seed, each in its own test bed, with shrinking of failures.

use std::cell::RefCell;

use anyhow::{Result, ensure};
use e2e::model::executor::Tally;
use e2e::model::sequence::Steps;
use e2e::model::step::Step;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use proptest_state_machine::ReferenceStateMachine as _;
use sha2::{Digest as _, Sha256};

use crate::place::Place;

/// A number of consecutive sequences of a run.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) seed: u64,
    pub(crate) number: u64,
    /// The index of its first sequence.
    pub(crate) first: usize,
    pub(crate) cases: usize,
    pub(crate) steps: usize,
    /// How many seconds to spend on shrinking a failure.
    pub(crate) shrink: u32,
}

/// The result of a chunk.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) hash: [u8; 32],
    pub(crate) cases: usize,
    pub(crate) steps: usize,
    pub(crate) tally: Tally,
    pub(crate) broken: Option<Failure>,
    pub(crate) journal: Vec<String>,
}

/// A violated property, with the shortest sequence found that violates it.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// The index of the sequence.
    pub(crate) number: usize,
    pub(crate) reason: String,
    pub(crate) steps: Vec<Step>,
    pub(crate) journal: Vec<String>,
}

impl Chunk {
    pub(crate) fn run(&self, place: &Place, progress: impl Fn()) -> Result<Outcome> {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&self.seed.to_le_bytes());
        seed[8..16].copy_from_slice(&self.number.to_le_bytes());
        let config = Config {
            cases: u32::try_from(self.cases)?,
            failure_persistence: None,
            // Without a time limit there would be no shrinking at all.
            max_shrink_time: self.shrink * 1000,
            max_shrink_iters: if self.shrink == 0 { 0 } else { 20_000 },
            ..Config::default()
        };
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
        let mut runner = TestRunner::new_with_rng(config, rng);
        let strategy = Steps::sequential_strategy(self.steps / 4..=self.steps);
        let (tally, hash) = (
            RefCell::new(Outcome::default()),
            RefCell::new(Sha256::new()),
        );
        let result = runner.run(&strategy, |(_, steps, counter)| {
            // Steps are counted for the shrinking, which is only wanted if it has a time limit.
            let counter = counter.filter(|_| self.shrink > 0);
            let result = place.run(&steps, counter.as_deref(), false);
            let result = result.map_err(|error| TestCaseError::fail(format!("{error:#}")))?;
            let mut tally = tally.borrow_mut();
            let number = tally
                .broken
                .as_ref()
                .map_or(self.first + tally.cases, |it| it.number);
            tally.cases += 1;
            tally.steps += steps.len();
            tally.tally += result.tally;
            hash.borrow_mut().update(result.hash);
            progress();
            let Err(reason) = result.result else {
                return Ok(());
            };
            // The last failure is the shortest. It is kept as recorded: in real time no two runs are the same.
            tally.broken = Some(Failure {
                number,
                reason: reason.clone(),
                steps,
                journal: result.journal,
            });
            Err(TestCaseError::fail(reason))
        });
        let mut outcome = tally.into_inner();
        outcome.hash = hash.into_inner().finalize().into();
        match result {
            Ok(()) => {}
            Err(TestError::Fail(reason, _)) => {
                ensure!(outcome.broken.is_some(), "the harness has failed: {reason}");
            }
            Err(TestError::Abort(reason)) => anyhow::bail!("proptest gave up: {reason}"),
        }
        Ok(outcome)
    }
}

/// Replays a recorded sequence.
pub(crate) fn replay(place: &Place, steps: &[Step], journal: bool) -> Result<Outcome> {
    let result = place.run(steps, None, journal)?;
    let broken = result.result.err().map(|reason| Failure {
        number: 0,
        reason,
        steps: steps.to_vec(),
        journal: result.journal.clone(),
    });
    Ok(Outcome {
        cases: 1,
        steps: steps.len(),
        broken,
        journal: result.journal,
        ..Outcome::default()
    })
}
