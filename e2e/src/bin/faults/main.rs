//! The fault matrix of volume expansion: every fault, with every kind of volume, online and offline. During a
//! fault a call may fail, but it must not report false success; after the fault one retry must be enough.

#![expect(
    clippy::print_stdout,
    reason = "a program that talks to its user on stdout"
)]

mod case;
mod fault;
mod plan;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail, ensure};
use clap::Parser;
use e2e::model::step::Kind;
use e2e::testbed::pool::{
    Backend, DevicePool, MemoryPool, TestBedPool, kinds_that_grow_online, map_parallel,
};
use indicatif::{ProgressBar, ProgressStyle};

use fault::{ExpandMode, Fault, FaultKind};
use plan::Case;
use report::{LeftOut, Report};

/// How many failures are printed in full; the others are only counted.
const MAX_PRINTED: usize = 3;

/// Injects faults while volumes are expanded, and checks the result
#[derive(Debug, Parser)]
#[command(name = "faults")]
struct Cli {
    /// Test bed to use
    #[arg(long, alias = "plane", value_enum, default_value = "memory")]
    testbed: Backend,
    /// Only faults, kinds or modes with this text in their names
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Folder for the matrix, as Markdown and JSON
    #[arg(long, value_name = "FOLDER", default_value = "target/faults")]
    report: PathBuf,
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
            eprintln!("faults: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli, pool: &impl TestBedPool) -> Result<()> {
    let start = Instant::now();
    let (cells, left_out) = cells(pool, cli.only.as_deref())?;
    ensure!(!cells.is_empty(), "there is no such cell");
    let bar = ProgressBar::new(cells.len() as u64).with_style(ProgressStyle::with_template(
        "{pos}/{len} cells, {elapsed} {bar:20} {wide_msg}",
    )?);
    let results = map_parallel(pool.parallelism(), &cells, |cell| {
        bar.set_message(cell.name());
        let result = case::run(pool, cell)?;
        bar.inc(1);
        Ok(result)
    })?;
    bar.finish_and_clear();
    let mut report = Report {
        plane: pool.name(),
        cells: Vec::new(),
        left_out,
        failures: Vec::new(),
    };
    for result in results {
        match result {
            Ok(line) => report.cells.push(line),
            Err(failure) => report.failures.push(failure),
        }
    }
    report.write(&cli.report)?;
    print_failures(cli, &cells, &report);
    println!("took {:.1} s", start.elapsed().as_secs_f64());
    verdict(&cells, &report)
}

fn print_failures(cli: &Cli, cells: &[Case], report: &Report) {
    println!("{}", report.table(&faults_of(cells)));
    println!("online / offline; in full in {}", cli.report.display());
    for failure in report.failures.iter().take(MAX_PRINTED) {
        println!(
            "{}: {}\n  the end of the journal:",
            failure.cell, failure.reason
        );
        for line in &failure.journal {
            println!("    {line}");
        }
    }
    for cell in &report.left_out {
        let (kind, way) = (cell.kind, cell.way.name());
        println!("left out: {}, {kind}, {way}: {}", cell.fault, cell.reason);
    }
}

fn verdict(cells: &[Case], report: &Report) -> Result<()> {
    if let Some(first) = report.failures.first() {
        let count = report.failures.len();
        bail!(
            "{count} of {} cells fail; the first: {}: {}",
            cells.len(),
            first.cell,
            first.reason
        );
    }
    let leaks = report.cells.iter().find(|line| !line.leftovers.is_empty());
    if let Some(line) = leaks {
        let (kind, way) = (line.kind, line.way.name());
        bail!(
            "{} things are left over; the first: {}, {kind}, {way}: {}",
            report.leftovers(),
            line.fault,
            line.leftovers.join(", ")
        );
    }
    println!(
        "{} cells, {} faults, 0 leftovers",
        cells.len(),
        faults_of(cells).len()
    );
    Ok(())
}

/// The faults of these cells, without duplicates, in order.
fn faults_of(cells: &[Case]) -> Vec<Fault> {
    let mut faults: Vec<Fault> = cells.iter().map(|cell| cell.fault).collect();
    faults.dedup_by_key(|fault| fault.name);
    faults
}

/// The cells to run, and those that this test bed cannot run.
fn cells(pool: &impl TestBedPool, only: Option<&str>) -> Result<(Vec<Case>, Vec<LeftOut>)> {
    let mut cells = Vec::new();
    let mut left_out = Vec::new();
    let grow = kinds_that_grow_online(pool)?;
    for fault in fault::all() {
        for kind in Kind::ALL {
            for way in ExpandMode::ALL {
                let cell = Case { fault, kind, way };
                let selected = only.is_none_or(|text| cell.name().contains(text));
                if !selected || !fault.kinds.contains(&kind) || !fault.ways.contains(&way) {
                    continue;
                }
                match obstacle(pool, &cell, grow.contains(&kind)) {
                    None => cells.push(cell),
                    Some(reason) => left_out.push(LeftOut {
                        fault: fault.name,
                        kind: kind.content().name(),
                        way,
                        reason,
                    }),
                }
            }
        }
    }
    Ok((cells, left_out))
}

/// Why a cell cannot be run.
fn obstacle(pool: &impl TestBedPool, cell: &Case, grows_mounted: bool) -> Option<String> {
    let kind = cell.kind.content().name();
    if cell.way == ExpandMode::Online && !grows_mounted {
        return Some(format!("a mounted {kind} cannot be grown here"));
    }
    if let FaultKind::Host(tool, _) = cell.fault.what
        && tool.text(cell.kind, pool).is_none()
    {
        return Some("no such command is run here".to_owned());
    }
    None
}
