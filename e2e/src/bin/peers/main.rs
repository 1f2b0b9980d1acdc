//! `cargo ci peers`: runs other, unmodified drivers against dsm-sim next to ours: what each operation costs the NAS, whether
//! DSM's release matters to them, and what they do while a NAS does not list its LUNs. Prints tables and writes them as
//! JSON; fails if dsm-sim does not behave as they expect of a NAS.

#![expect(clippy::print_stdout, reason = "the tables are what it is for")]

mod absent_after_boot;
mod cost;
mod peer;
mod releases;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use serde::Serialize;

use peer::Kind;

/// Tried on 26 November 2026: the list of its versions, `@latest` and `@5990be4`; the module proxy refused each.
const NO_COMMUNITY: &str = "The community driver (jparklab/synology-csi) is left out: the Go module proxy refuses every version \
     of it that was asked for (403), so nothing could be built from there; --community PROGRAM names one built by hand.";

#[derive(Parser)]
struct Cli {
    /// Path of the official driver's binary
    #[arg(long, value_name = "PROGRAM")]
    official: PathBuf,
    /// Its version, for the report
    #[arg(long, value_name = "VERSION")]
    official_version: String,
    /// Path of the community driver's binary; left out if not given
    #[arg(long, value_name = "PROGRAM")]
    community: Option<PathBuf>,
    /// Path of csi-sanity
    #[arg(long, value_name = "PROGRAM")]
    sanity: PathBuf,
    /// Path of the report
    #[arg(long, value_name = "FILE")]
    report: PathBuf,
}

#[derive(Serialize)]
struct Report {
    official_version: String,
    /// Why the community driver is missing, if it is.
    community_left_out: Option<&'static str>,
    costs: Vec<cost::Line>,
    releases: Vec<releases::Outcome>,
    hazards: Vec<absent_after_boot::Line>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let (cli, started) = (Cli::parse(), Instant::now());
    let mut peers = vec![Kind::Ours, Kind::Official(cli.official.clone())];
    let community_left_out = cli.community.is_none().then_some(NO_COMMUNITY);
    match cli.community {
        Some(program) => peers.push(Kind::Community(program)),
        None => println!("{NO_COMMUNITY}"),
    }
    let mut costs = Vec::new();
    for kind in &peers {
        costs.extend(cost::measure(kind).await?);
    }
    println!(
        "\nHTTP requests, the calls in them, and KiB both ways, by LUNs on the NAS (official {})",
        cli.official_version
    );
    println!("{}", cost::table(&costs));
    let releases = releases::compare(&cli.official, &cli.sanity).await?;
    for outcome in &releases {
        println!("\n{}", outcome.summary());
    }
    let mut hazards = Vec::new();
    for kind in &peers {
        hazards.extend(absent_after_boot::run(kind).await?);
    }
    println!("\nDeleteVolume of a volume that is there");
    println!("{}", absent_after_boot::table(&hazards));
    let report = Report {
        official_version: cli.official_version,
        community_left_out,
        costs,
        releases,
        hazards,
    };
    if let Some(folder) = cli.report.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&cli.report, serde_json::to_vec_pretty(&report)?)?;
    println!("\nWritten to {}", cli.report.display());
    println!("Took {:.1} s", started.elapsed().as_secs_f64());
    cost::check(&report.costs)?;
    releases::check(&report.releases)?;
    absent_after_boot::check(&report.hazards)
}
