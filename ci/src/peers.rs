//! Other drivers against dsm-sim, next to ours.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{
    context::Context,
    doctor::{self, need::Layer},
    go::{self, Go},
    run::Step,
    testing::build_programs,
};

/// Arguments of the comparison.
#[derive(Debug, Default, Args)]
pub(crate) struct Peers {
    /// The community driver (jparklab), built by hand: its module cannot be had from every proxy
    #[arg(long, value_name = "PROGRAM")]
    community: Option<PathBuf>,
}

/// Builds what is needed, and compares.
///
/// # Errors
/// When something is missing or cannot be built, or dsm-sim is not what the others take it for.
pub(crate) fn run(context: &Context, peers: &Peers) -> Result<()> {
    doctor::ready(context, Layer::Peers)?;
    let go = Go::find(context).context("no Go")?;
    let (official, version) = go.install_official(context)?;
    let sanity = go::installed_sanity(context).context("no csi-sanity")?;
    build_programs(context)?;
    let program = context.target.join("debug/peers");
    let mut step = Step::new(context, &program.to_string_lossy())
        .arg("--official")
        .arg(official)
        .arg("--official-version")
        .arg(version)
        .arg("--sanity")
        .arg(sanity)
        .arg("--report")
        .arg(context.target.join("bench/peers.json"));
    if let Some(community) = &peers.community {
        step = step.arg("--community").arg(community);
    }
    step.show()
}
