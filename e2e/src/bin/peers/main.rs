//! `cargo ci peers`: other drivers, unmodified, against dsm-sim, next to ours: what each operation costs the NAS, whether
//! DSM's release matters to them, and what they do when a NAS does not know its LUNs. Prints tables, and writes them as
//! JSON; fails where dsm-sim is not what they take it for.

#![expect(clippy::print_stdout, reason = "the tables are what it is for")]

mod cost;
mod hazard;
mod peer;
mod releases;

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use serde::Serialize;

use peer::Kind;

#[derive(Parser)]
struct Cli {
    /// The official driver's program
    #[arg(long, value_name = "PROGRAM")]
    official: PathBuf,
    /// Its version, for the report
    #[arg(long, value_name = "VERSION")]
    official_version: String,
    /// The community driver's program; left out where there is none
    #[arg(long, value_name = "PROGRAM")]
    community: Option<PathBuf>,
    /// csi-sanity
    #[arg(long, value_name = "PROGRAM")]
    sanity: PathBuf,
    /// Where the report goes
    #[arg(long, value_name = "FILE")]
    report: PathBuf,
}

#[derive(Serialize)]
struct Report {
    official_version: String,
    costs: Vec<cost::Line>,
    releases: releases::Outcome,
    hazards: Vec<hazard::Line>,
}

#[tokio::main]
async fn main() -> Result<()> {
    let cli = Cli::parse();
    let mut peers = vec![Kind::Ours, Kind::Official(cli.official.clone())];
    match cli.community {
        Some(program) => peers.push(Kind::Community(program)),
        None => println!("The community driver is left out: --community PROGRAM names it."),
    }
    let mut costs = Vec::new();
    for kind in &peers {
        costs.extend(cost::measure(kind).await?);
    }
    println!(
        "\nHTTP requests, and KiB both ways, by LUNs on the NAS (official {})",
        cli.official_version
    );
    println!("{}", cost::table(&costs));
    let releases = releases::compare(&cli.official, &cli.sanity).await?;
    println!("\n{}", releases.words());
    let mut hazards = Vec::new();
    for kind in &peers {
        hazards.extend(hazard::run(kind).await?);
    }
    println!("\nDeleteVolume of a volume that is there");
    println!("{}", hazard::table(&hazards));
    let report = Report {
        official_version: cli.official_version,
        costs,
        releases,
        hazards,
    };
    if let Some(folder) = cli.report.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(&cli.report, serde_json::to_vec_pretty(&report)?)?;
    println!("\nWritten to {}", cli.report.display());
    hazard::check(&report.hazards)
}
