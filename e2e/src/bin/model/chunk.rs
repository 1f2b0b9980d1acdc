//! Sequences that are made from one piece of luck, one after the other, each in a world of its own.

use std::cell::RefCell;

use anyhow::{Result, ensure};
use e2e::model::executor::Tally;
use e2e::model::sequence::Steps;
use e2e::model::step::Step;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use proptest_state_machine::ReferenceStateMachine as _;
use sha2::{Digest as _, Sha256};

use crate::place::Place;

/// Some sequences of a run.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) seed: u64,
    pub(crate) number: u64,
    /// The number of its first sequence.
    pub(crate) first: usize,
    pub(crate) cases: usize,
    pub(crate) steps: usize,
    /// How many seconds to look for a shorter one.
    pub(crate) shrink: u32,
}

/// What came of them.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) hash: [u8; 32],
    pub(crate) cases: usize,
    pub(crate) steps: usize,
    pub(crate) tally: Tally,
    pub(crate) broken: Option<Broken>,
    pub(crate) journal: Vec<String>,
}

/// A property that does not hold, and the shortest sequence that was found to break it.
#[derive(Clone, Debug)]
pub(crate) struct Broken {
    /// The number of the sequence.
    pub(crate) number: usize,
    pub(crate) reason: String,
    pub(crate) steps: Vec<Step>,
    pub(crate) journal: Vec<String>,
}

impl Chunk {
    pub(crate) fn play(&self, place: &Place, progress: impl Fn()) -> Result<Outcome> {
        let mut luck = [0; 32];
        luck[..8].copy_from_slice(&self.seed.to_le_bytes());
        luck[8..16].copy_from_slice(&self.number.to_le_bytes());
        let config = Config {
            cases: u32::try_from(self.cases)?,
            failure_persistence: None,
            // Without a limit of time there would be none.
            max_shrink_time: self.shrink * 1000,
            max_shrink_iters: if self.shrink == 0 { 0 } else { 20_000 },
            ..Config::default()
        };
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &luck);
        let mut runner = TestRunner::new_with_rng(config, rng);
        let strategy = Steps::sequential_strategy(self.steps / 4..=self.steps);
        let (tally, hash) = (
            RefCell::new(Outcome::default()),
            RefCell::new(Sha256::new()),
        );
        let result = runner.run(&strategy, |(_, steps, seen)| {
            // It is counted for the search, which ends badly when there is none.
            let seen = seen.filter(|_| self.shrink > 0);
            let played = place.play(&steps, seen.as_deref(), false);
            let played = played.map_err(|error| TestCaseError::fail(format!("{error:#}")))?;
            let mut tally = tally.borrow_mut();
            let number = tally
                .broken
                .as_ref()
                .map_or(self.first + tally.cases, |it| it.number);
            tally.cases += 1;
            tally.steps += steps.len();
            tally.tally += played.tally;
            hash.borrow_mut().update(played.hash);
            progress();
            let Err(reason) = played.result else {
                return Ok(());
            };
            // The last that fails is the shortest. It is kept as it was: where time is real, no two runs are the same.
            tally.broken = Some(Broken {
                number,
                reason: reason.clone(),
                steps,
                journal: played.journal,
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

/// Plays a sequence that is known.
pub(crate) fn replay(place: &Place, steps: &[Step], journal: bool) -> Result<Outcome> {
    let played = place.play(steps, None, journal)?;
    let broken = played.result.err().map(|reason| Broken {
        number: 0,
        reason,
        steps: steps.to_vec(),
        journal: played.journal.clone(),
    });
    Ok(Outcome {
        cases: 1,
        steps: steps.len(),
        broken,
        journal: played.journal,
        ..Outcome::default()
    })
}
