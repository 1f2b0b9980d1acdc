//! One volume life cycle with its crashes: the calls to make, and what must hold afterwards.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::model::executor::Executor;
use e2e::model::step::{CsiCall, Step};
use e2e::testbed::pool::TestBedPool;
use e2e::testbed::{CrashTiming, TestBed};

use crate::scenario::{Move, Scenario};

/// How many lines of the journal are printed for a failure.
const TAIL: usize = 40;

/// Where a process crashes in a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Crash {
    /// The number of the effect; the first is 1.
    pub(crate) nth: usize,
    /// Before, during or after the effect.
    pub(crate) when: CrashTiming,
}

/// What the CO does after the last crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CoReaction {
    /// Retries the call and continues until a pod writes, then tears everything down.
    Retries,
    /// Makes other calls, or tears everything down at once.
    GivesUp,
}

/// The result of a life cycle.
#[derive(Debug)]
pub(crate) struct CrashResult {
    /// The effects at which the process crashed, one for each crash that happened.
    pub(crate) met: Vec<String>,
    pub(crate) wrong: Option<Violation>,
}

/// A violated property.
#[derive(Clone, Debug)]
pub(crate) struct Violation {
    /// Which property, and why.
    pub(crate) reason: String,
    /// The end of the journal: what was called on the NAS and the nodes.
    pub(crate) journal: Vec<String>,
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let when = match self.when {
            CrashTiming::Before => "before",
            CrashTiming::During => "during",
            CrashTiming::After => "after",
        };
        write!(f, "{when} effect {}", self.nth)
    }
}

/// Runs a life cycle in a fresh test bed.
///
/// # Errors
/// No test bed could be created.
pub(crate) fn run(
    pool: &impl TestBedPool,
    scenario: &Scenario,
    crashes: &[Crash],
    then: CoReaction,
) -> Result<CrashResult> {
    pool.run(async |bed| {
        let mut met = Vec::new();
        let life_cycle = LifeCycle {
            scenario,
            crashes,
            then,
            backoff: pool.backoff(),
        };
        let result = life_cycle.run_in(bed, &mut met).await;
        let wrong = match result {
            Ok(()) => None,
            Err(error) => {
                let mut journal = bed.journal().await.unwrap_or_default();
                journal.drain(..journal.len().saturating_sub(TAIL));
                let reason = format!("{error:#}");
                Some(Violation { reason, journal })
            }
        };
        Ok(CrashResult { met, wrong })
    })
}

/// A life cycle to run.
struct LifeCycle<'a> {
    scenario: &'a Scenario,
    crashes: &'a [Crash],
    then: CoReaction,
    backoff: Duration,
}

impl LifeCycle<'_> {
    async fn run_in<P: TestBed>(&self, bed: &mut P, met: &mut Vec<String>) -> Result<()> {
        let scenario = self.scenario;
        let mut executor = Executor::start(bed).await?;
        for step in &scenario.before {
            run_move(&mut executor, scenario, *step)
                .await
                .context("before the call")?;
        }
        if self.crash_in_call(&mut executor, met).await? {
            match self.then {
                CoReaction::Retries => executor
                    .call_and_repeat(scenario.volume, scenario.act)
                    .await
                    .context("the call again")?,
                CoReaction::GivesUp => give_up(&mut executor, scenario).await?,
            }
        }
        if self.then == CoReaction::Retries {
            executor
                .check_invariants()
                .await
                .context("after the call")?;
            while let Some(step) = scenario.next_move(executor.model()) {
                run_move(&mut executor, scenario, step)
                    .await
                    .context("after the call")?;
            }
            executor
                .check_invariants()
                .await
                .context("after the call")?;
        }
        let left = executor
            .remove_all_and_list_leftovers()
            .await
            .context("on the way back")?;
        ensure!(left.is_empty(), "left over: {}", left.join(", "));
        Ok(())
    }

    /// Makes the call, and repeats it after each crash. Returns whether all crashes happened; if one did not, the call ended
    /// before it.
    async fn crash_in_call<P: TestBed>(
        &self,
        executor: &mut Executor<'_, P>,
        met: &mut Vec<String>,
    ) -> Result<bool> {
        let scenario = self.scenario;
        let process = scenario.process();
        for crash in self.crashes {
            executor
                .bed()
                .crash_at(process, crash.nth, crash.when)
                .await?;
            let answer = executor
                .call_once(scenario.volume, scenario.act)
                .await
                .with_context(|| format!("a call in which the process dies {crash}"))?;
            let Some(effect) = executor.bed().crashed_at(process).await? else {
                let call = if met.is_empty() {
                    "the call"
                } else {
                    "the call again"
                };
                answer.with_context(|| format!("{call}, in which no process crashed"))?;
                return Ok(false);
            };
            met.push(effect);
            executor.restart_crashed().await?;
            executor.bed().pause(self.backoff).await;
        }
        Ok(true)
    }
}

async fn give_up<P: TestBed>(executor: &mut Executor<'_, P>, scenario: &Scenario) -> Result<()> {
    for act in &scenario.instead {
        executor
            .call_and_repeat(scenario.volume, *act)
            .await
            .context("instead of the call")?;
    }
    if !scenario.instead.is_empty() {
        return executor
            .check_invariants()
            .await
            .context("instead of the call");
    }
    executor
        .tear_down(scenario.volume)
        .await
        .context("instead of the call, back")
}

async fn run_move<P: TestBed>(
    executor: &mut Executor<'_, P>,
    scenario: &Scenario,
    step: Move,
) -> Result<()> {
    let volume = scenario.volume;
    match step {
        // Where the file system cannot grow while mounted, the executor makes other calls instead.
        Move::Call(act @ CsiCall::NodeExpand) => executor.call_and_repeat(volume, act).await,
        Move::Call(act) => executor
            .call_once(volume, act)
            .await?
            .with_context(|| format!("{act:?}")),
        Move::Write => executor.run_event(&Step::Write { volume }).await,
    }
}
