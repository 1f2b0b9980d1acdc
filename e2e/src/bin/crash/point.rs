//! One life with its deaths: what is played, and what must come of it.

use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::model::executor::Executor;
use e2e::model::step::{CsiCall, Step};
use e2e::testbed::pool::TestBedPool;
use e2e::testbed::{CrashTiming, TestBed};

use crate::scenario::{Move, Scenario};

/// How much of a journal is told of a failure.
const TAIL: usize = 40;

/// Where a process dies in a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Crash {
    /// At this effect; the first is 1.
    pub(crate) nth: usize,
    /// When.
    pub(crate) when: CrashTiming,
}

/// What the CO does after the last death.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    /// The call again, and on to a pod that writes; then all the way back.
    Retries,
    /// Something else, or all the way back at once.
    GivesUp,
}

/// What was found in a life.
#[derive(Debug)]
pub(crate) struct Played {
    /// The effects that the process died at, one for each death that was met.
    pub(crate) met: Vec<String>,
    /// What does not hold.
    pub(crate) wrong: Option<Wrong>,
}

/// A property that does not hold.
#[derive(Clone, Debug)]
pub(crate) struct Wrong {
    /// Which, and why.
    pub(crate) reason: String,
    /// The end of what the NAS and the nodes were asked.
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

/// Plays a life in a fresh world.
///
/// # Errors
/// There is no world.
pub(crate) fn play(
    pool: &impl TestBedPool,
    scene: &Scenario,
    deaths: &[Crash],
    then: Then,
) -> Result<Played> {
    pool.run(async |bed| {
        let mut met = Vec::new();
        let life = VolumeLife {
            scene,
            deaths,
            then,
            respite: pool.backoff(),
        };
        let result = life.live(bed, &mut met).await;
        let wrong = match result {
            Ok(()) => None,
            Err(error) => {
                let mut journal = bed.journal().await.unwrap_or_default();
                journal.drain(..journal.len().saturating_sub(TAIL));
                let reason = format!("{error:#}");
                Some(Wrong { reason, journal })
            }
        };
        Ok(Played { met, wrong })
    })
}

/// A life that is to be played.
struct VolumeLife<'a> {
    scene: &'a Scenario,
    deaths: &'a [Crash],
    then: Then,
    respite: Duration,
}

impl VolumeLife<'_> {
    async fn live<P: TestBed>(&self, bed: &mut P, met: &mut Vec<String>) -> Result<()> {
        let scene = self.scene;
        let mut executor = Executor::start(bed).await?;
        for step in &scene.before {
            go(&mut executor, scene, *step)
                .await
                .context("before the call")?;
        }
        if self.die(&mut executor, met).await? {
            match self.then {
                Then::Retries => executor
                    .call_and_repeat(scene.volume, scene.act)
                    .await
                    .context("the call again")?,
                Then::GivesUp => turn_round(&mut executor, scene).await?,
            }
        }
        if self.then == Then::Retries {
            executor
                .check_invariants()
                .await
                .context("after the call")?;
            while let Some(step) = scene.onwards(executor.model()) {
                go(&mut executor, scene, step)
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

    /// Makes the call, and makes it again after each death; whether all deaths were met. Where one is not, the call was
    /// ended.
    async fn die<P: TestBed>(
        &self,
        executor: &mut Executor<'_, P>,
        met: &mut Vec<String>,
    ) -> Result<bool> {
        let scene = self.scene;
        let process = scene.process();
        for death in self.deaths {
            executor
                .bed()
                .crash_at(process, death.nth, death.when)
                .await?;
            let answer = executor
                .call_once(scene.volume, scene.act)
                .await
                .with_context(|| format!("a call in which the process dies {death}"))?;
            let Some(effect) = executor.bed().crashed_at(process).await? else {
                let call = if met.is_empty() {
                    "the call"
                } else {
                    "the call again"
                };
                answer.with_context(|| format!("{call}, in which nobody died"))?;
                return Ok(false);
            };
            met.push(effect);
            executor.restart_crashed().await?;
            executor.bed().pause(self.respite).await;
        }
        Ok(true)
    }
}

async fn turn_round<P: TestBed>(executor: &mut Executor<'_, P>, scene: &Scenario) -> Result<()> {
    for act in &scene.instead {
        executor
            .call_and_repeat(scene.volume, *act)
            .await
            .context("instead of the call")?;
    }
    if !scene.instead.is_empty() {
        return executor
            .check_invariants()
            .await
            .context("instead of the call");
    }
    executor
        .tear_down(scene.volume)
        .await
        .context("instead of the call, back")
}

async fn go<P: TestBed>(
    executor: &mut Executor<'_, P>,
    scene: &Scenario,
    step: Move,
) -> Result<()> {
    let volume = scene.volume;
    match step {
        // Where it cannot be grown in use, something else is done instead.
        Move::Call(act @ CsiCall::NodeExpand) => executor.call_and_repeat(volume, act).await,
        Move::Call(act) => executor
            .call_once(volume, act)
            .await?
            .with_context(|| format!("{act:?}")),
        Move::Write => executor.run_event(&Step::Write { volume }).await,
    }
}
