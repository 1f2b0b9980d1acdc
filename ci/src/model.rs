//! `cargo ci model`: random sequences of CSI calls and faults, checked against the reference model.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::Args;

use crate::{
    context::Context,
    doctor::{self, need::Layer},
    run::Cmd,
    testing::{build_optimized, build_programs},
};

/// Arguments of `cargo ci model`. For the other options of the program itself, see `cargo ci model -- --help`.
#[derive(Debug, Default, Args)]
pub(crate) struct Model {
    /// Number of sequences
    #[arg(long)]
    cases: Option<usize>,
    /// Random seed: the same seed gives the same sequences, and in memory the same run, byte for byte
    #[arg(long)]
    seed: Option<u64>,
    /// Take a new seed from the clock
    #[arg(long, conflicts_with = "seed")]
    new_seed: bool,
    /// Use processes, block devices and file systems instead of the in-memory test bed (root)
    #[arg(long)]
    real: bool,
    /// Passed to the program itself
    #[arg(last = true)]
    more: Vec<String>,
}

/// Runs the sequences.
///
/// # Errors
/// When a property is violated, or something is missing.
pub(crate) fn run(context: &Context, model: &Model) -> Result<()> {
    let program = if model.real {
        doctor::ready(context, Layer::Node)?;
        build_programs(context)?;
        "debug/model"
    } else {
        build_optimized(context, &["model"])?;
        "release/model"
    };
    let mut cmd = Cmd::new(context, &context.target.join(program).to_string_lossy());
    if let Some(cases) = model.cases {
        cmd = cmd.arg("--cases").arg(cases.to_string());
    }
    let new = model.new_seed.then(SystemTime::now);
    let new = new.map(|now| now.duration_since(UNIX_EPOCH)).transpose()?;
    if let Some(seed) = model.seed.or(new.map(|since| since.as_secs())) {
        cmd = cmd.arg("--seed").arg(seed.to_string());
    }
    if model.real {
        cmd = cmd.arg("--real");
    }
    cmd.args(&model.more).run()
}
