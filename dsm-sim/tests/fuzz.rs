//! Anything over HTTP: random APIs, methods, parameters, sessions and broken requests, mixed with calls that a client would
//! make, so that there is something to break. Whatever comes, dsm-sim answers; its answer is DSM's JSON or a page with a
//! client's error; and a call that is refused has changed nothing.
//!
//! Each case has a seed of its own, which is printed when it fails: `cargo ci fuzz --seed SEED` begins with that case.
//! `FUZZ_SECONDS` and `FUZZ_SEED` are how `cargo ci fuzz` says so; without them a few cases run, always the same.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "fuzz/run.rs"]
mod run;
#[path = "fuzz/step.rs"]
mod step;
#[path = "fuzz/wire.rs"]
mod wire;

use std::time::{Duration, Instant};

use proptest::test_runner::{Config, RngSeed, TestCaseError, TestError, TestRunner};

use common::Sim;
use dsm_sim::DsmSim;
use run::Run;
use step::steps;

/// Cases of a run that nobody asked for.
const CASES: u64 = 25;
const SEED: u64 = 918;

#[test]
fn whatever_comes_is_answered_and_a_refusal_changes_nothing() {
    let seconds = number("FUZZ_SECONDS");
    let first = number("FUZZ_SEED").unwrap_or_else(|| seconds.map_or(SEED, |_| rand::random()));
    eprintln!("seed: {first}");
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let with = |dsm: &str| {
        let builder = DsmSim::builder().dsm(dsm.parse().unwrap());
        runtime.block_on(Sim::with(builder))
    };
    let sims = [with("7.2"), with("6.2")];
    let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(0));
    let mut tally = run::Tally::default();
    let mut cases = 0;
    while cases < CASES || Instant::now() < until {
        let seed = first.wrapping_add(cases);
        let config = Config {
            cases: 1,
            rng_seed: RngSeed::Fixed(seed),
            failure_persistence: None,
            max_shrink_time: 60_000,
            ..Config::default()
        };
        let sim = &sims[usize::from(seed % 3 == 0)];
        let tally = std::cell::RefCell::new(&mut tally);
        let result = TestRunner::new(config).run(&steps(), |steps| {
            let played = runtime.block_on(Run::of(sim, &steps, &mut tally.borrow_mut()));
            played.map_err(TestCaseError::fail)
        });
        if let Err(TestError::Fail(reason, steps)) = result {
            panic!(
                "{reason}\nthe shortest sequence that was found: {steps:#?}\nagain: cargo ci fuzz --seed {seed}"
            );
        }
        cases += 1;
    }
    eprintln!("{cases} cases: {tally:?}");
    // A fuzzer that is refused everything looks at the door only.
    assert!(tally.succeeded * 20 > tally.sent, "{tally:?}");
    assert!(tally.refused * 20 > tally.sent, "{tally:?}");
    let deep = [
        "map_lun",
        "set",
        "take_snapshot",
        "clone",
        "clone_snapshot",
        "restore_snapshot",
        "delete",
    ];
    let missed = deep.iter().find(|method| !tally.reached.contains(**method));
    assert_eq!(missed, None, "{tally:?}");
}

fn number(name: &str) -> Option<u64> {
    std::env::var_os(name)?.to_str()?.parse().ok()
}
