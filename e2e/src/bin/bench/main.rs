//! `cargo ci bench`: what each CSI call costs, and how that scales. Prints tables and writes `target/bench.json`. Measures only;
//! tests assert counts, nothing asserts times.

#![expect(clippy::print_stdout, reason = "the tables are what it is for")]

mod capacity;
mod costs;
mod growth;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use serde::Serialize;

/// What each CSI call costs, and how that scales with volumes, records, callers and time. Prints tables and writes
/// target/bench.json, which contains only what this run measured.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo ci bench")]
struct Cli {
    /// What to measure
    #[arg(value_enum, default_value = "all")]
    part: Part,
    /// Small numbers and short waits, about a minute in total for growth; used by `cargo ci all`
    #[arg(long)]
    sample: bool,
    /// Idle seconds before the driver's memory is sampled again [default: 60, with --sample 5]
    #[arg(long, value_name = "SECONDS")]
    idle: Option<u64>,
    /// For how many seconds volumes are created and deleted in sequence [default: 60, with --sample 5]
    #[arg(long, value_name = "SECONDS")]
    soak: Option<u64>,
    /// For `soak`: this many life cycles instead, on the controller alone, eight at a time
    #[arg(long, value_name = "NUMBER", conflicts_with = "soak")]
    lives: Option<u64>,
}

/// A part of the measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Everything
    All,
    /// Each CSI call alone: DSM calls, times, memory; dsm-sim with many LUNs; the model
    Costs,
    /// All of the following
    Growth,
    /// Node calls with 1, 20, 60 and 120 volumes staged, and twenty at once (root)
    Calls,
    /// The node's startup with 0, 50 and 200 node records (root)
    Start,
    /// Resident memory: after startup, after volume life cycles, and idle (root for the node half)
    Memory,
    /// 10, 50 and 200 concurrent CreateVolume calls on a NAS that is as slow as a DS918+
    Burst,
    /// ListVolumes in one call and in pages, with 100, 1,000 and 5,000 volumes
    List,
    /// Repeated volume life cycles: memory, errors, leftovers (root for the node half)
    Soak,
}

impl Part {
    fn has(self, part: Self) -> bool {
        self == part || self == Self::All || (self == Self::Growth && part != Self::Costs)
    }
}

/// The content of the JSON report; parts that were not measured are omitted.
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
