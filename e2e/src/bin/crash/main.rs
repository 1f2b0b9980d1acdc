//! Lets the driver's processes die at each of their effects, in every call: before it, in the middle of it and after it.
//! The processes are started again, and the call is repeated once, or the CO gives up; everything must be as it should be,
//! and in the end nothing may be left.

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

use point::Then;
use scenario::Scenario;
use search::{Broken, Extent, Found};

/// Failures that are told in full; of the others there is a number.
const TOLD: usize = 3;

/// Lets the driver's processes die at each of their effects, and looks whether that does any harm
#[derive(Debug, Parser)]
#[command(name = "crash")]
struct Cli {
    /// Where it is played
    #[arg(long, value_enum, default_value = "memory")]
    plane: Backend,
    /// Only so many points of each call, by luck; all of them without it
    #[arg(long, value_name = "N")]
    sample: Option<usize>,
    /// Only so many pairs of each call, by luck; all of them without it
    #[arg(long, value_name = "N")]
    pairs: Option<usize>,
    /// Pairs of every call, and not of expansion alone
    #[arg(long)]
    all_pairs: bool,
    /// Where luck begins
    #[arg(long, default_value_t = 918)]
    seed: u64,
    /// Only calls with this in their name or variant
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.plane {
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
    let mut scenes = scenario::all();
    if let Some(text) = &cli.only {
        scenes.retain(|scene| scene.call.contains(text) || scene.variant.contains(text));
    }
    let grow = kinds_that_grow_online(pool)?;
    for scene in scenes.extract_if(.., |scene| !scene.is_possible(&grow)) {
        let (call, kind) = (scene.call, scene.kind.content().name());
        println!("left out: {call} of {kind}: what is mounted cannot be grown here");
    }
    ensure!(!scenes.is_empty(), "there is no such call");
    for scene in &mut scenes {
        scene.pairs |= cli.all_pairs;
    }
    let bar = ProgressBar::new(0).with_style(ProgressStyle::with_template(
        "{pos}/{len} {prefix}, {elapsed} {bar:20} {wide_msg}",
    )?);
    let extent = Extent {
        points: cli.sample,
        pairs: cli.pairs,
        seed: cli.seed,
    };
    let found = search::all(pool, &scenes, extent, &bar)?;
    bar.finish_and_clear();
    println!("{}", table(&scenes, &found));
    let sum = |figure: fn(&Found) -> usize| found.iter().map(figure).sum::<usize>();
    println!(
        "{} lives in {:.1} s, in {}",
        sum(|found| found.lives),
        start.elapsed().as_secs_f64(),
        pool.name()
    );
    let all = scenes.iter().zip(&found);
    let broken: Vec<(&Scenario, &Broken)> = all
        .flat_map(|(scene, found)| found.broken.iter().map(move |broken| (scene, broken)))
        .collect();
    for (scene, broken) in broken.iter().take(TOLD) {
        tell(scene, broken);
    }
    let (points, pairs) = (sum(|found| found.points), sum(|found| found.pairs));
    if let Some((scene, first)) = broken.first() {
        bail!(
            "{} of {} lives go wrong; the first: {} of {}: {}: {}",
            broken.len(),
            sum(|found| found.lives),
            scene.call,
            scene.variant,
            place(first),
            first.wrong.reason
        );
    }
    ensure!(points > 0, "nobody has died: nothing was tried");
    println!("{points} points and {pairs} pairs tried, nothing left over");
    Ok(())
}

fn table(scenes: &[Scenario], found: &[Found]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["call", "kind", "effects", "points", "pairs", "wrong"]);
    for (scene, found) in scenes.iter().zip(found) {
        let pairs = if scene.pairs {
            found.pairs.to_string()
        } else {
            "-".to_owned()
        };
        table.add_row([
            scene.call.to_owned(),
            scene.variant.clone(),
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

/// Where the processes died, in words.
fn place(broken: &Broken) -> String {
    let name = |at: usize| broken.met.get(at).map_or("not met", String::as_str);
    let deaths = broken.deaths.iter().enumerate();
    let deaths: Vec<String> = deaths
        .map(|(at, death)| format!("{death} ({})", name(at)))
        .collect();
    let then = match broken.then {
        Then::Retries => "the CO tries again",
        Then::GivesUp => "the CO gives up",
    };
    format!("died {}; {then}", deaths.join(", then "))
}

fn tell(scene: &Scenario, broken: &Broken) {
    println!("{} of {}: {}", scene.call, scene.variant, place(broken));
    println!("  {}", broken.wrong.reason);
    println!("  the end of the journal:");
    for line in &broken.wrong.journal {
        println!("    {line}");
    }
}
