//! Which crash points are tested: every one in turn, until a call ends before reaching it; or a random sample.

use anyhow::{Result, ensure};
use e2e::testbed::CrashTiming;
use e2e::testbed::pool::{TestBedPool, map_parallel};
use indicatif::ProgressBar;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::point::{CoReaction, Crash, CrashResult, Violation, run};
use crate::scenario::Scenario;

/// No call has this many effects.
const MAX_EFFECTS: usize = 400;
/// A retry may log in again, so it may have this many more effects than the call had.
const EXTRA_EFFECTS: usize = 4;

/// How much to test.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SearchLimits {
    /// Crash points of each call; `None`: all of them.
    pub(crate) points: Option<usize>,
    /// Pairs of each call; `None`: all of them.
    pub(crate) pairs: Option<usize>,
    /// Random seed.
    pub(crate) seed: u64,
}

/// What was tested of a call.
#[derive(Debug, Default)]
pub(crate) struct ScenarioResult {
    pub(crate) effects: usize,
    pub(crate) points: usize,
    pub(crate) pairs: usize,
    pub(crate) life_cycles: usize,
    pub(crate) broken: Vec<FailedRun>,
}

/// A life cycle in which a property was violated.
#[derive(Clone, Debug)]
pub(crate) struct FailedRun {
    pub(crate) crashes: Vec<Crash>,
    pub(crate) met: Vec<String>,
    pub(crate) then: CoReaction,
    pub(crate) wrong: Violation,
}

impl ScenarioResult {
    /// Records the result of a life cycle; returns whether all its crashes happened.
    fn record(&mut self, crashes: &[Crash], then: CoReaction, result: CrashResult) -> bool {
        self.life_cycles += 1;
        let met = result.met.len() == crashes.len();
        if let Some(wrong) = result.wrong {
            self.broken.push(FailedRun {
                crashes: crashes.to_vec(),
                met: result.met,
                then,
                wrong,
            });
        }
        met
    }
}

/// Searches every scenario, as many in parallel as the pool has test beds; first single crashes, then pairs.
///
/// # Errors
/// No test bed could be created, or a call does not end.
pub(crate) fn all(
    pool: &impl TestBedPool,
    scenarios: &[Scenario],
    limits: SearchLimits,
    bar: &ProgressBar,
) -> Result<Vec<ScenarioResult>> {
    let search = Search { pool, limits, bar };
    let numbered: Vec<(usize, &Scenario)> = scenarios.iter().enumerate().collect();
    bar.set_length(numbered.len() as u64);
    bar.set_prefix("calls");
    let mut found = map_parallel(pool.parallelism(), &numbered, |(number, scenario)| {
        let found = search.points(scenario, *number)?;
        bar.inc(1);
        Ok(found)
    })?;
    let first_crashes = search.first_crashes(scenarios, &found);
    bar.set_position(0);
    bar.set_length(first_crashes.len() as u64);
    bar.set_prefix("first deaths of pairs");
    let second = map_parallel(pool.parallelism(), &first_crashes, |(number, crashes)| {
        let found = search.second_crashes(&scenarios[*number], crashes)?;
        bar.inc(1);
        Ok(found)
    })?;
    for ((number, _), more) in first_crashes.iter().zip(second) {
        let found = &mut found[*number];
        found.pairs += more.pairs;
        found.life_cycles += more.life_cycles;
        found.broken.extend(more.broken);
    }
    Ok(found)
}

/// The first crash of a pair, and the second if it was chosen at random.
type Pair = (Crash, Option<Crash>);

struct Search<'a, G> {
    pool: &'a G,
    limits: SearchLimits,
    bar: &'a ProgressBar,
}

impl<G: TestBedPool> Search<'_, G> {
    fn run(&self, scenario: &Scenario, crashes: &[Crash], then: CoReaction) -> Result<CrashResult> {
        let names: Vec<String> = crashes.iter().map(ToString::to_string).collect();
        self.bar.set_message(format!(
            "{} of {}, {}",
            scenario.call,
            scenario.variant,
            names.join(", then ")
        ));
        run(self.pool, scenario, crashes, then)
    }

    /// One crash point, with a CO that retries and with one that gives up. Returns whether the crash happened.
    fn point(&self, scenario: &Scenario, crash: Crash, found: &mut ScenarioResult) -> Result<bool> {
        let crashes = [crash];
        let result = self.run(scenario, &crashes, CoReaction::Retries)?;
        if !found.record(&crashes, CoReaction::Retries, result) {
            return Ok(false);
        }
        found.points += 1;
        found.effects = found.effects.max(crash.nth);
        let result = self.run(scenario, &crashes, CoReaction::GivesUp)?;
        found.record(&crashes, CoReaction::GivesUp, result);
        Ok(true)
    }

    fn points(&self, scenario: &Scenario, number: usize) -> Result<ScenarioResult> {
        match self.limits.points {
            None => self.every_point(scenario),
            Some(limit) => self.some_points(scenario, number, limit),
        }
    }

    fn every_point(&self, scenario: &Scenario) -> Result<ScenarioResult> {
        let mut found = ScenarioResult::default();
        for nth in 1.. {
            ensure!(
                nth < MAX_EFFECTS,
                "{} of {} does not end",
                scenario.call,
                scenario.variant
            );
            let mut met = false;
            for when in CrashTiming::ALL {
                met |= self.point(scenario, Crash { nth, when }, &mut found)?;
            }
            if !met {
                break;
            }
        }
        Ok(found)
    }

    fn some_points(
        &self,
        scenario: &Scenario,
        number: usize,
        limit: usize,
    ) -> Result<ScenarioResult> {
        let mut found = ScenarioResult {
            effects: self.count(scenario)?,
            ..ScenarioResult::default()
        };
        let count = found.effects;
        let mut rng = StdRng::seed_from_u64(self.limits.seed ^ ((number as u64) << 32));
        let mut left: Vec<Crash> = (1..=count).flat_map(every_timing).collect();
        while found.points < limit && !left.is_empty() {
            let crash = left.swap_remove(rng.random_range(0..left.len()));
            self.point(scenario, crash, &mut found)?;
        }
        Ok(found)
    }

    /// The number of effects of a call, by doubling until no crash happens, then by bisection.
    fn count(&self, scenario: &Scenario) -> Result<usize> {
        let meets = |nth: usize| -> Result<bool> {
            let crash = Crash {
                nth,
                when: CrashTiming::Before,
            };
            Ok(!self
                .run(scenario, &[crash], CoReaction::Retries)?
                .met
                .is_empty())
        };
        let (mut reached, mut beyond) = (0, 1);
        while meets(beyond)? {
            ensure!(
                beyond < MAX_EFFECTS,
                "{} of {} does not end",
                scenario.call,
                scenario.variant
            );
            (reached, beyond) = (beyond, beyond * 2);
        }
        while beyond - reached > 1 {
            let middle = reached.midpoint(beyond);
            if meets(middle)? {
                reached = middle;
            } else {
                beyond = middle;
            }
        }
        Ok(reached)
    }

    /// The pairs to test, with the indices of their scenarios.
    fn first_crashes(
        &self,
        scenarios: &[Scenario],
        found: &[ScenarioResult],
    ) -> Vec<(usize, Pair)> {
        let mut rng = StdRng::seed_from_u64(self.limits.seed);
        let mut first_crashes = Vec::new();
        let in_pairs = |(_, scenario): &(usize, &Scenario)| scenario.pairs;
        for (number, _) in scenarios.iter().enumerate().filter(in_pairs) {
            let count = found[number].effects;
            let Some(limit) = self.limits.pairs else {
                let all = (1..=count).flat_map(every_timing);
                first_crashes.extend(all.map(|crash| (number, (crash, None))));
                continue;
            };
            let mut any = |count: usize| Crash {
                nth: rng.random_range(1..=count.max(1)),
                when: CrashTiming::ALL[rng.random_range(0..CrashTiming::ALL.len())],
            };
            let mut pair = || (any(count), Some(any(count + EXTRA_EFFECTS)));
            first_crashes.extend((0..limit).map(|_| (number, pair())));
        }
        first_crashes
    }

    fn second_crashes(
        &self,
        scenario: &Scenario,
        (first, second): &Pair,
    ) -> Result<ScenarioResult> {
        let mut found = ScenarioResult::default();
        let mut pair = |second: Crash| -> Result<bool> {
            let crashes = [*first, second];
            let result = self.run(scenario, &crashes, CoReaction::Retries)?;
            let met = found.record(&crashes, CoReaction::Retries, result);
            found.pairs += usize::from(met);
            Ok(met)
        };
        if let Some(chosen) = second {
            // The random choice may exceed the effects of this retry: then try an earlier one.
            let mut nth = chosen.nth;
            while nth > 0 && !pair(Crash { nth, ..*chosen })? {
                nth /= 2;
            }
            return Ok(found);
        }
        for nth in 1..MAX_EFFECTS {
            let mut met = false;
            for when in CrashTiming::ALL {
                met |= pair(Crash { nth, when })?;
            }
            if !met {
                break;
            }
        }
        Ok(found)
    }
}

fn every_timing(nth: usize) -> impl Iterator<Item = Crash> {
    CrashTiming::ALL
        .into_iter()
        .map(move |when| Crash { nth, when })
}
