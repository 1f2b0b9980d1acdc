//! `cargo ci peers`: compares other Synology CSI drivers with ours, all against dsm-sim.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{
    context::Context,
    doctor::{self, need::Layer},
    go::{self, Go},
    run::Cmd,
    testing::build_programs,
};

/// Arguments of the comparison.
#[derive(Debug, Default, Args)]
pub(crate) struct Peers {
    /// The community driver (jparklab), built by hand: not every proxy serves its module
    #[arg(long, value_name = "PROGRAM")]
    community: Option<PathBuf>,
}

/// Builds the drivers and simulators, and runs the comparison.
///
/// # Errors
/// When something is missing or cannot be built, or another driver does not work with dsm-sim.
pub(crate) fn run(context: &Context, peers: &Peers) -> Result<()> {
    doctor::ready(context, Layer::Peers)?;
    let go = Go::find(context).context("no Go")?;
    let (official, version) = go.install_official(context)?;
    let sanity = go::installed_sanity(context).context("no csi-sanity")?;
    build_programs(context)?;
    let program = context.target.join("debug/peers");
    let mut cmd = Cmd::new(context, &program.to_string_lossy())
        .arg("--official")
        .arg(official)
        .arg("--official-version")
        .arg(version)
        .arg("--sanity")
        .arg(sanity)
        .arg("--report")
        .arg(context.target.join("bench/peers.json"));
    if let Some(community) = &peers.community {
        cmd = cmd.arg("--community").arg(community);
    }
    cmd.run()
}
