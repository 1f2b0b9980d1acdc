//! Which deaths are tried: all of them, one after the other, until a call ends without meeting one; or some, by luck.

use anyhow::{Result, ensure};
use e2e::testbed::CrashTiming;
use e2e::testbed::pool::{TestBedPool, map_parallel};
use indicatif::ProgressBar;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::point::{Crash, Played, Then, Wrong, play};
use crate::scenario::Scenario;

/// No call has so many effects.
const ENDLESS: usize = 400;
/// A repetition may log in anew, so it may have more effects than the call had.
const MORE: usize = 4;

/// How much is tried.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    /// Points of each call; all of them when it is left out.
    pub(crate) points: Option<usize>,
    /// Pairs of each call; likewise.
    pub(crate) pairs: Option<usize>,
    /// Where luck begins.
    pub(crate) seed: u64,
}

/// What was tried of a call.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) effects: usize,
    pub(crate) points: usize,
    pub(crate) pairs: usize,
    pub(crate) lives: usize,
    pub(crate) broken: Vec<Broken>,
}

/// A life in which something does not hold.
#[derive(Clone, Debug)]
pub(crate) struct Broken {
    pub(crate) deaths: Vec<Crash>,
    pub(crate) met: Vec<String>,
    pub(crate) then: Then,
    pub(crate) wrong: Wrong,
}

impl Found {
    /// Takes the result of a life; whether all its deaths were met.
    fn take(&mut self, deaths: &[Crash], then: Then, played: Played) -> bool {
        self.lives += 1;
        let met = played.met.len() == deaths.len();
        if let Some(wrong) = played.wrong {
            self.broken.push(Broken {
                deaths: deaths.to_vec(),
                met: played.met,
                then,
                wrong,
            });
        }
        met
    }
}

/// Searches every scene, as many at a time as there are worlds; first the points, then the pairs.
///
/// # Errors
/// There is no world, or a call does not end.
pub(crate) fn all(
    pool: &impl TestBedPool,
    scenes: &[Scenario],
    extent: Extent,
    bar: &ProgressBar,
) -> Result<Vec<Found>> {
    let search = Search { pool, extent, bar };
    let numbered: Vec<(usize, &Scenario)> = scenes.iter().enumerate().collect();
    bar.set_length(numbered.len() as u64);
    bar.set_prefix("calls");
    let mut found = map_parallel(pool.parallelism(), &numbered, |(number, scene)| {
        let found = search.points(scene, *number)?;
        bar.inc(1);
        Ok(found)
    })?;
    let firsts = search.firsts(scenes, &found);
    bar.set_position(0);
    bar.set_length(firsts.len() as u64);
    bar.set_prefix("first deaths of pairs");
    let second = map_parallel(pool.parallelism(), &firsts, |(number, deaths)| {
        let found = search.seconds(&scenes[*number], deaths)?;
        bar.inc(1);
        Ok(found)
    })?;
    for ((number, _), more) in firsts.iter().zip(second) {
        let found = &mut found[*number];
        found.pairs += more.pairs;
        found.lives += more.lives;
        found.broken.extend(more.broken);
    }
    Ok(found)
}

/// The first death of a pair, and the second where luck has chosen it.
type Pair = (Crash, Option<Crash>);

struct Search<'a, G> {
    pool: &'a G,
    extent: Extent,
    bar: &'a ProgressBar,
}

impl<G: TestBedPool> Search<'_, G> {
    fn play(&self, scene: &Scenario, deaths: &[Crash], then: Then) -> Result<Played> {
        let deaths_told: Vec<String> = deaths.iter().map(ToString::to_string).collect();
        self.bar.set_message(format!(
            "{} of {}, {}",
            scene.call,
            scene.variant,
            deaths_told.join(", then ")
        ));
        play(self.pool, scene, deaths, then)
    }

    /// One point, with a CO that tries again and with one that gives up. Whether it was met.
    fn point(&self, scene: &Scenario, death: Crash, found: &mut Found) -> Result<bool> {
        let deaths = [death];
        let played = self.play(scene, &deaths, Then::Retries)?;
        if !found.take(&deaths, Then::Retries, played) {
            return Ok(false);
        }
        found.points += 1;
        found.effects = found.effects.max(death.nth);
        let played = self.play(scene, &deaths, Then::GivesUp)?;
        found.take(&deaths, Then::GivesUp, played);
        Ok(true)
    }

    fn points(&self, scene: &Scenario, number: usize) -> Result<Found> {
        match self.extent.points {
            None => self.every_point(scene),
            Some(wanted) => self.some_points(scene, number, wanted),
        }
    }

    fn every_point(&self, scene: &Scenario) -> Result<Found> {
        let mut found = Found::default();
        for nth in 1.. {
            ensure!(
                nth < ENDLESS,
                "{} of {} has no end",
                scene.call,
                scene.variant
            );
            let mut met = false;
            for when in CrashTiming::ALL {
                met |= self.point(scene, Crash { nth, when }, &mut found)?;
            }
            if !met {
                break;
            }
        }
        Ok(found)
    }

    fn some_points(&self, scene: &Scenario, number: usize, wanted: usize) -> Result<Found> {
        let mut found = Found {
            effects: self.count(scene)?,
            ..Found::default()
        };
        let count = found.effects;
        let mut rng = StdRng::seed_from_u64(self.extent.seed ^ ((number as u64) << 32));
        let mut left: Vec<Crash> = (1..=count).flat_map(every_when).collect();
        while found.points < wanted && !left.is_empty() {
            let death = left.swap_remove(rng.random_range(0..left.len()));
            self.point(scene, death, &mut found)?;
        }
        Ok(found)
    }

    /// The number of effects of a call: doubled until there are none, and halved from there.
    fn count(&self, scene: &Scenario) -> Result<usize> {
        let meets = |nth: usize| -> Result<bool> {
            let death = Crash {
                nth,
                when: CrashTiming::Before,
            };
            Ok(!self.play(scene, &[death], Then::Retries)?.met.is_empty())
        };
        let (mut there, mut beyond) = (0, 1);
        while meets(beyond)? {
            ensure!(
                beyond < ENDLESS,
                "{} of {} has no end",
                scene.call,
                scene.variant
            );
            (there, beyond) = (beyond, beyond * 2);
        }
        while beyond - there > 1 {
            let middle = there.midpoint(beyond);
            if meets(middle)? {
                there = middle;
            } else {
                beyond = middle;
            }
        }
        Ok(there)
    }

    /// The pairs that are to be tried, by the numbers of their scenes.
    fn firsts(&self, scenes: &[Scenario], found: &[Found]) -> Vec<(usize, Pair)> {
        let mut rng = StdRng::seed_from_u64(self.extent.seed);
        let mut firsts = Vec::new();
        let in_pairs = |(_, scene): &(usize, &Scenario)| scene.pairs;
        for (number, _) in scenes.iter().enumerate().filter(in_pairs) {
            let count = found[number].effects;
            let Some(wanted) = self.extent.pairs else {
                let all = (1..=count).flat_map(every_when);
                firsts.extend(all.map(|death| (number, (death, None))));
                continue;
            };
            let mut any = |count: usize| Crash {
                nth: rng.random_range(1..=count.max(1)),
                when: CrashTiming::ALL[rng.random_range(0..CrashTiming::ALL.len())],
            };
            let mut pair = || (any(count), Some(any(count + MORE)));
            firsts.extend((0..wanted).map(|_| (number, pair())));
        }
        firsts
    }

    fn seconds(&self, scene: &Scenario, (first, second): &Pair) -> Result<Found> {
        let mut found = Found::default();
        let mut pair = |second: Crash| -> Result<bool> {
            let deaths = [*first, second];
            let played = self.play(scene, &deaths, Then::Retries)?;
            let met = found.take(&deaths, Then::Retries, played);
            found.pairs += usize::from(met);
            Ok(met)
        };
        if let Some(chosen) = second {
            // Luck may have chosen an effect that this repetition has not: then an earlier one.
            let mut nth = chosen.nth;
            while nth > 0 && !pair(Crash { nth, ..*chosen })? {
                nth /= 2;
            }
            return Ok(found);
        }
        for nth in 1..ENDLESS {
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

fn every_when(nth: usize) -> impl Iterator<Item = Crash> {
    CrashTiming::ALL
        .into_iter()
        .map(move |when| Crash { nth, when })
}
