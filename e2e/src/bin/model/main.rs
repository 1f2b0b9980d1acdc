//! Runs random sequences of CSI calls and faults against the shipped driver, in memory or on block devices, and checks
//! invariants.

#![expect(
    clippy::print_stdout,
    reason = "a program that talks to its user on stdout"
)]

mod chunk;
mod place;

use parking_lot::Mutex;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::Parser;
use e2e::model::executor::Tally;
use e2e::model::stats::{STATS_FILE, Stats};
use e2e::model::step::Step;
use e2e::testbed::pool::map_parallel;
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest as _, Sha256};

use chunk::{Chunk, Failure, Outcome};
use place::Place;

/// Runs sequences of calls and faults against the shipped driver, and checks the invariants after each step
#[derive(Debug, Parser)]
#[command(name = "model")]
struct Cli {
    /// Number of sequences; 2000, or 500 with --real
    #[arg(long)]
    cases: Option<usize>,
    /// Random seed: the same seed gives the same run, byte for byte
    #[arg(long, default_value_t = 918)]
    seed: u64,
    /// Maximum number of steps in a sequence (the minimum is a quarter of it); 40, or 24 with --real
    #[arg(long)]
    steps: Option<usize>,
    /// Run everything twice, and compare the journals
    #[arg(long, conflicts_with = "real")]
    twice: bool,
    /// On real processes and block devices, as root, instead of in memory
    #[arg(long)]
    real: bool,
    /// How many seconds to spend on shrinking a failing sequence
    #[arg(long, default_value_t = 60)]
    shrink: u32,
    /// Run one recorded sequence, and print its journal
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// Sequences that once found a bug; they run first
    #[arg(long, value_name = "FOLDER", default_value = "e2e/regressions")]
    regressions: PathBuf,
    /// Where statistics and a failing sequence are written
    #[arg(long, value_name = "FOLDER", default_value = "target/model")]
    report: PathBuf,
}

/// Sequences that are generated from one seed.
const CHUNK: usize = 50;
/// The same for real time, where a sequence takes half a second: smaller, so that the threads end at about the same time.
const REAL_CHUNK: usize = 5;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("model: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(cli: &Cli) -> Result<bool> {
    if let Some(file) = &cli.replay {
        let outcome = chunk::replay(&Place::open(cli.real)?, &read(file)?, true)?;
        println!("{}", outcome.journal.join("\n"));
        return Ok(report(cli, outcome.broken.as_ref()));
    }
    let (place, files) = (Place::open(cli.real)?, kept(cli)?);
    for file in files {
        if let Some(broken) = chunk::replay(&place, &read(&file)?, false)?.broken {
            println!("{}: it is back", file.display());
            return Ok(report(cli, Some(&broken)));
        }
    }
    drop(place);
    let (first, broken) = all(cli)?;
    if broken.is_some() {
        return Ok(report(cli, broken.as_ref()));
    }
    if cli.twice {
        let (second, _) = all(cli)?;
        if first != second {
            eprintln!("the same seed has been two runs: journals {first} and {second}");
            return Ok(false);
        }
        println!("the same seed is the same run: journal {first} twice");
    }
    Ok(true)
}

fn read(file: &std::path::Path) -> Result<Vec<Step>> {
    let text = std::fs::read(file).with_context(|| file.display().to_string())?;
    serde_json::from_slice(&text).with_context(|| file.display().to_string())
}

fn kept(cli: &Cli) -> Result<Vec<PathBuf>> {
    let Ok(entries) = std::fs::read_dir(&cli.regressions) else {
        return Ok(Vec::new());
    };
    let mut files = Vec::new();
    for entry in entries {
        files.push(entry?.path());
    }
    files.retain(|file| file.extension().is_some_and(|end| end == "json"));
    files.sort();
    Ok(files)
}

/// Runs all sequences, on as many threads as there are CPUs. The hash of all journals does not depend on their number.
fn all(cli: &Cli) -> Result<(String, Option<Failure>)> {
    let (size, cases, steps) = if cli.real {
        (
            REAL_CHUNK,
            cli.cases.unwrap_or(500),
            cli.steps.unwrap_or(24),
        )
    } else {
        (CHUNK, cli.cases.unwrap_or(2000), cli.steps.unwrap_or(40))
    };
    let chunks: Vec<Chunk> = (0..cases.div_ceil(size))
        .map(|number| Chunk {
            seed: cli.seed,
            number: number as u64,
            first: number * size,
            cases: size.min(cases - number * size),
            steps,
            shrink: cli.shrink,
        })
        .collect();
    let bar = ProgressBar::new(cases as u64).with_style(ProgressStyle::with_template(
        "{pos}/{len} sequences, {elapsed} {bar:30}",
    )?);
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    // In real time, a test bed spends half of the time waiting.
    let threads = if cli.real { 2 * processors } else { processors };
    let (start, idle, found) = (
        Instant::now(),
        Mutex::<Vec<Place>>::default(),
        AtomicBool::new(false),
    );
    let done = map_parallel(threads, &chunks, |chunk| {
        if found.load(Ordering::Relaxed) {
            return Ok(Outcome::default());
        }
        let place = idle.lock().pop();
        let place = place.map_or_else(|| Place::open(cli.real), Ok)?;
        let outcome = chunk.run(&place, || bar.inc(1))?;
        found.fetch_or(outcome.broken.is_some(), Ordering::Relaxed);
        idle.lock().push(place);
        Ok(outcome)
    })?;
    bar.finish_and_clear();
    let mut hash = Sha256::new();
    let (mut cases, mut steps, mut tally) = (0, 0, Tally::default());
    for outcome in &done {
        hash.update(outcome.hash);
        cases += outcome.cases;
        steps += outcome.steps;
        tally += outcome.tally;
    }
    let hash = hex::encode(hash.finalize());
    let stats = Stats::new(cases, steps, tally.calls, start.elapsed().as_secs_f64());
    println!("seed {}: {stats}; journal {}", cli.seed, &hash[..16]);
    println!(
        "{} deaths, {} faults of commands",
        tally.crashes, tally.hits
    );
    let broken = done.into_iter().find_map(|outcome| outcome.broken);
    if cli.real {
        return Ok((hash, broken));
    }
    std::fs::create_dir_all(&cli.report)?;
    let text = serde_json::to_vec_pretty(&stats)?;
    std::fs::write(cli.report.join(STATS_FILE), text)?;
    Ok((hash, broken))
}

/// Prints the result; true if no property was violated.
fn report(cli: &Cli, broken: Option<&Failure>) -> bool {
    let Some(broken) = broken else {
        return true;
    };
    let file = cli.report.join("failed.json");
    let kept = std::fs::create_dir_all(&cli.report).and_then(|()| {
        let text = serde_json::to_vec_pretty(&broken.steps).map_err(std::io::Error::other)?;
        std::fs::write(&file, text)
    });
    println!("the journal of the shortest sequence that was found, its end:");
    let tail = broken.journal.len().saturating_sub(60);
    for line in &broken.journal[tail..] {
        println!("  {line}");
    }
    println!("the sequence:\n{:#?}", broken.steps);
    println!(
        "seed {}, sequence {}; the shortest is in {}: play it with --replay, and keep it in {} when its bug is mended",
        cli.seed,
        broken.number,
        kept.map_or_else(|error| error.to_string(), |()| file.display().to_string()),
        cli.regressions.display()
    );
    eprintln!("{}", broken.reason);
    false
}
