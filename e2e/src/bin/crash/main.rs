//! Crashes the driver's processes at each of their effects, in every call: before the effect, in the middle of it and after it.
//! The processes are restarted, and the CO either retries the call or gives up; the invariants must hold, and nothing may be
//! left over in the end.

#![expect(
    clippy::print_stdout,
    reason = "a program that talks to its user on stdout"
)]

mod point;
mod scenario;
mod search;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};
use e2e::testbed::pool::{Backend, DevicePool, MemoryPool, TestBedPool, kinds_that_grow_online};
use indicatif::{ProgressBar, ProgressStyle};

use point::CoReaction;
use scenario::Scenario;
use search::{FailedRun, ScenarioResult, SearchLimits};

/// How many failures are printed in full; the others are only counted.
const MAX_PRINTED: usize = 3;

/// Crashes the driver's processes at each of their effects, and checks that this does no harm
#[derive(Debug, Parser)]
#[command(name = "crash")]
struct Cli {
    /// Test bed to use
    #[arg(long, alias = "plane", value_enum, default_value = "memory")]
    testbed: Backend,
    /// Only this many random crash points of each call; default: all of them
    #[arg(long, value_name = "N")]
    sample: Option<usize>,
    /// Only this many random pairs of crash points of each call; default: all of them
    #[arg(long, value_name = "N")]
    pairs: Option<usize>,
    /// Pairs for every call, not only for expansion
    #[arg(long)]
    all_pairs: bool,
    /// Random seed
    #[arg(long, default_value_t = 918)]
    seed: u64,
    /// Only calls with this text in their name or variant
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.testbed {
        Backend::Memory => run(&cli, &MemoryPool),
        Backend::Real => run(&cli, &DevicePool::default()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("crash: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli, pool: &impl TestBedPool) -> Result<()> {
    let start = Instant::now();
    let mut scenarios = scenario::all();
    if let Some(text) = &cli.only {
        scenarios
            .retain(|scenario| scenario.call.contains(text) || scenario.variant.contains(text));
    }
    let grow = kinds_that_grow_online(pool)?;
    for scenario in scenarios.extract_if(.., |scenario| !scenario.is_possible(&grow)) {
        let (call, kind) = (scenario.call, scenario.kind.content().name());
        println!("left out: {call} of {kind}: what is mounted cannot be grown here");
    }
    ensure!(!scenarios.is_empty(), "there is no such call");
    for scenario in &mut scenarios {
        scenario.pairs |= cli.all_pairs;
    }
    let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template(
        "{pos}/{len} {prefix}, {elapsed} {bar:20} {wide_msg}",
    )?);
    let limits = SearchLimits {
        points: cli.sample,
        pairs: cli.pairs,
        seed: cli.seed,
    };
    let found = search::all(pool, &scenarios, limits, &bar)?;
    bar.finish_and_clear();
    println!("{}", table(&scenarios, &found));
    let sum = |figure: fn(&ScenarioResult) -> usize| found.iter().map(figure).sum::<usize>();
    println!(
        "{} life cycles in {:.1} s, in {}",
        sum(|found| found.life_cycles),
        start.elapsed().as_secs_f64(),
        pool.name()
    );
    let all = scenarios.iter().zip(&found);
    let broken: Vec<(&Scenario, &FailedRun)> = all
        .flat_map(|(scenario, found)| found.broken.iter().map(move |broken| (scenario, broken)))
        .collect();
    for (scenario, broken) in broken.iter().take(MAX_PRINTED) {
        print_failure(scenario, broken);
    }
    let (points, pairs) = (sum(|found| found.points), sum(|found| found.pairs));
    if let Some((scenario, first)) = broken.first() {
        bail!(
            "{} of {} life cycles fail; the first: {} of {}: {}: {}",
            broken.len(),
            sum(|found| found.life_cycles),
            scenario.call,
            scenario.variant,
            crash_points(first),
            first.wrong.reason
        );
    }
    ensure!(points > 0, "no process crashed: nothing was tested");
    println!("{points} points and {pairs} pairs tried, nothing left over");
    Ok(())
}

fn table(scenarios: &[Scenario], found: &[ScenarioResult]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["call", "kind", "effects", "points", "pairs", "wrong"]);
    for (scenario, found) in scenarios.iter().zip(found) {
        let pairs = if scenario.pairs {
            found.pairs.to_string()
        } else {
            "-".to_owned()
        };
        table.add_row([
            scenario.call.to_owned(),
            scenario.variant.clone(),
            found.effects.to_string(),
            found.points.to_string(),
            pairs,
            found.broken.len().to_string(),
        ]);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Human-readable description of where the processes crashed.
fn crash_points(broken: &FailedRun) -> String {
    let name = |at: usize| broken.met.get(at).map_or("not met", String::as_str);
    let crashes = broken.crashes.iter().enumerate();
    let crashes: Vec<String> = crashes
        .map(|(at, crash)| format!("{crash} ({})", name(at)))
        .collect();
    let then = match broken.then {
        CoReaction::Retries => "the CO tries again",
        CoReaction::GivesUp => "the CO gives up",
    };
    format!("died {}; {then}", crashes.join(", then "))
}

fn print_failure(scenario: &Scenario, broken: &FailedRun) {
    println!(
        "{} of {}: {}",
        scenario.call,
        scenario.variant,
        crash_points(broken)
    );
    println!("  {}", broken.wrong.reason);
    println!("  the end of the journal:");
    for line in &broken.wrong.journal {
        println!("    {line}");
    }
}
