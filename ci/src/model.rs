//! Sequences of calls and mishaps against the shipped driver.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::Args;

use crate::{
    context::Context,
    doctor::{self, need::Layer},
    run::Step,
    testing::{build_optimized, build_programs},
};

/// Arguments of the model. What is not named here is the program's own: see `cargo ci model -- --help`.
#[derive(Debug, Default, Args)]
pub(crate) struct Model {
    /// How many sequences
    #[arg(long)]
    cases: Option<usize>,
    /// Where luck begins: the same seed is the same sequences, and in memory the same run, byte for byte
    #[arg(long)]
    seed: Option<u64>,
    /// One that nobody has tried, taken from the clock
    #[arg(long, conflicts_with = "seed")]
    new_seed: bool,
    /// With processes, block devices and file systems (root)
    #[arg(long)]
    real: bool,
    /// For the program itself
    #[arg(last = true)]
    more: Vec<String>,
}

/// Plays them.
///
/// # Errors
/// When a property is broken, or something is missing.
pub(crate) fn run(context: &Context, model: &Model) -> Result<()> {
    let program = if model.real {
        doctor::ready(context, Layer::Node)?;
        build_programs(context)?;
        "debug/model"
    } else {
        build_optimized(context, &["model"])?;
        "release/model"
    };
    let mut step = Step::new(context, &context.target.join(program).to_string_lossy());
    if let Some(cases) = model.cases {
        step = step.arg("--cases").arg(cases.to_string());
    }
    let new = model.new_seed.then(SystemTime::now);
    let new = new.map(|now| now.duration_since(UNIX_EPOCH)).transpose()?;
    if let Some(seed) = model.seed.or(new.map(|since| since.as_secs())) {
        step = step.arg("--seed").arg(seed.to_string());
    }
    if model.real {
        step = step.arg("--real");
    }
    step.args(&model.more).show()
}
