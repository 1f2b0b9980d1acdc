//! `cargo ci bench`: what each CSI call costs, and how that grows. Prints tables and writes `target/bench.json`. Measures only;
//! counts are asserted by tests, times by nobody.

#![expect(clippy::print_stdout, reason = "the tables are what it is for")]

mod capacity;
mod costs;
mod growth;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use serde::Serialize;

/// What each CSI call costs, and how that grows with volumes, records, callers and time. Prints tables and writes
/// target/bench.json, which holds what was measured this time.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo ci bench")]
struct Cli {
    /// What to measure
    #[arg(value_enum, default_value = "all")]
    part: Part,
    /// Small numbers and short waits, about a minute of growth: what `cargo ci all` has time for
    #[arg(long)]
    sample: bool,
    /// How many seconds the driver is idle before its memory is read again [default: 60, with --sample 5]
    #[arg(long, value_name = "SECONDS")]
    idle: Option<u64>,
    /// How many seconds volumes live one after the other [default: 60, with --sample 5]
    #[arg(long, value_name = "SECONDS")]
    soak: Option<u64>,
    /// So many lives instead, on the controller alone, eight at a time: for `soak`
    #[arg(long, value_name = "NUMBER", conflicts_with = "soak")]
    lives: Option<u64>,
}

/// A part of the measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// All of it
    All,
    /// Each CSI call alone: DSM calls, times, memory; dsm-sim with many LUNs; the model
    Costs,
    /// All that follows
    Growth,
    /// Node calls with 1, 20, 60 and 120 volumes staged, and twenty at once (root)
    Calls,
    /// The node's start with 0, 50 and 200 node records (root)
    Start,
    /// Resident memory: at the start, after lives, and idle (root for the node half)
    Memory,
    /// 10, 50 and 200 CreateVolume at once on a NAS that is as slow as a DS918+
    Burst,
    /// ListVolumes in one call and in pages, with 100, 1,000 and 5,000 volumes
    List,
    /// Lives of volumes for a while: memory, errors, what is left (root for the node half)
    Soak,
}

impl Part {
    fn has(self, part: Self) -> bool {
        self == part || self == Self::All || (self == Self::Growth && part != Self::Costs)
    }
}

/// What is written; parts that were not measured are left out.
#[derive(Default, Serialize)]
struct Report {
    #[serde(flatten)]
    costs: Option<costs::Costs>,
    #[serde(skip_serializing_if = "growth::Growth::is_empty")]
    growth: growth::Growth,
}

#[tokio::main]
async fn main() -> Result<()> {
    let cli = Cli::parse();
    let node = nix::unistd::geteuid().is_root();
    if !node {
        println!("Not root: the node half is left out.");
    }
    let mut report = Report::default();
    if cli.part.has(Part::Costs) {
        report.costs = Some(costs::measure(node).await?);
    }
    report.growth = growth::measure(&cli, node).await?;
    if let Some(costs) = &report.costs {
        costs::print(costs);
    }
    growth::print(&report.growth);
    let file = std::env::current_exe()?.ancestors().nth(2).map_or_else(
        || PathBuf::from("bench.json"),
        |target| target.join("bench.json"),
    );
    std::fs::write(&file, serde_json::to_vec_pretty(&report)?)?;
    println!("\nWritten to {}", file.display());
    Ok(())
}
