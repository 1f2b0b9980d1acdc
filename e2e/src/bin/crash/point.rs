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
    grounds: &impl TestBedPool,
    scene: &Scenario,
    deaths: &[Crash],
    then: Then,
) -> Result<Played> {
    grounds.run(async |plane| {
        let mut met = Vec::new();
        let life = VolumeLife {
            scene,
            deaths,
            then,
            respite: grounds.backoff(),
        };
        let result = life.live(plane, &mut met).await;
        let wrong = match result {
            Ok(()) => None,
            Err(error) => {
                let mut journal = plane.journal().await.unwrap_or_default();
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
    async fn live<P: TestBed>(&self, plane: &mut P, met: &mut Vec<String>) -> Result<()> {
        let scene = self.scene;
        let mut player = Executor::start(plane).await?;
        for step in &scene.before {
            go(&mut player, scene, *step)
                .await
                .context("before the call")?;
        }
        if self.die(&mut player, met).await? {
            match self.then {
                Then::Retries => player
                    .call_and_repeat(scene.volume, scene.act)
                    .await
                    .context("the call again")?,
                Then::GivesUp => turn_round(&mut player, scene).await?,
            }
        }
        if self.then == Then::Retries {
            player.check_invariants().await.context("after the call")?;
            while let Some(step) = scene.onwards(player.model()) {
                go(&mut player, scene, step)
                    .await
                    .context("after the call")?;
            }
            player.check_invariants().await.context("after the call")?;
        }
        let left = player
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
        player: &mut Executor<'_, P>,
        met: &mut Vec<String>,
    ) -> Result<bool> {
        let scene = self.scene;
        let process = scene.process();
        for death in self.deaths {
            player
                .bed()
                .crash_at(process, death.nth, death.when)
                .await?;
            let answer = player
                .call_once(scene.volume, scene.act)
                .await
                .with_context(|| format!("a call in which the process dies {death}"))?;
            let Some(effect) = player.bed().crashed_at(process).await? else {
                let call = if met.is_empty() {
                    "the call"
                } else {
                    "the call again"
                };
                answer.with_context(|| format!("{call}, in which nobody died"))?;
                return Ok(false);
            };
            met.push(effect);
            player.restart_crashed().await?;
            player.bed().pause(self.respite).await;
        }
        Ok(true)
    }
}

async fn turn_round<P: TestBed>(player: &mut Executor<'_, P>, scene: &Scenario) -> Result<()> {
    for act in &scene.instead {
        player
            .call_and_repeat(scene.volume, *act)
            .await
            .context("instead of the call")?;
    }
    if !scene.instead.is_empty() {
        return player
            .check_invariants()
            .await
            .context("instead of the call");
    }
    player
        .tear_down(scene.volume)
        .await
        .context("instead of the call, back")
}

async fn go<P: TestBed>(player: &mut Executor<'_, P>, scene: &Scenario, step: Move) -> Result<()> {
    let volume = scene.volume;
    match step {
        // Where it cannot be grown in use, something else is done instead.
        Move::Call(act @ CsiCall::NodeExpand) => player.call_and_repeat(volume, act).await,
        Move::Call(act) => player
            .call_once(volume, act)
            .await?
            .with_context(|| format!("{act:?}")),
        Move::Write => player.run_event(&Step::Write { volume }).await,
    }
}
