//! Fuzz test of the Web API: random APIs, methods, parameters, sessions and malformed requests, mixed with valid calls that
//! create objects. dsm-sim must always reply, with DSM's JSON or a page with a 4xx status, and a refused call must have changed
//! nothing.
//!
//! Each case has its own seed, which is printed on failure: `cargo ci fuzz --seed SEED` starts with that case. `cargo ci fuzz`
//! sets `FUZZ_SECONDS` and `FUZZ_SEED`; without them a few fixed cases run.

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

/// Number of cases without `FUZZ_SECONDS`; a minimum with it.
const CASES: u64 = 25;
const SEED: u64 = 918;

#[test]
fn every_request_gets_a_reply_and_a_refusal_changes_nothing() {
    let seconds = env_number("FUZZ_SECONDS");
    let first = env_number("FUZZ_SEED").unwrap_or_else(|| seconds.map_or(SEED, |_| rand::random()));
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
            let result = runtime.block_on(Run::of(sim, &steps, &mut tally.borrow_mut()));
            result.map_err(TestCaseError::fail)
        });
        if let Err(TestError::Fail(reason, steps)) = result {
            panic!(
                "{reason}\nshortest failing sequence: {steps:#?}\nreproduce: cargo ci fuzz --seed {seed}"
            );
        }
        cases += 1;
    }
    eprintln!("{cases} cases: {tally:?}");
    // Enough calls must be accepted, or the fuzzer tests only the decoding.
    assert!(tally.succeeded * 20 > tally.sent, "{tally:?}");
    assert!(tally.refused * 20 > tally.sent, "{tally:?}");
    let stateful = [
        "map_lun",
        "set",
        "take_snapshot",
        "clone",
        "clone_snapshot",
        "restore_snapshot",
        "delete",
    ];
    let missed = stateful
        .iter()
        .find(|method| !tally.reached.contains(**method));
    assert_eq!(missed, None, "{tally:?}");
}

fn env_number(name: &str) -> Option<u64> {
    std::env::var_os(name)?.to_str()?.parse().ok()
}
