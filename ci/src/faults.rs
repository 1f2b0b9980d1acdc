//! `cargo ci faults`: the matrix of faults during volume expansion.

use anyhow::Result;
use clap::Args;

use crate::{context::Context, run::Cmd, testbed::TestBed};

/// Arguments of the fault matrix. For the other options of the program itself, see `cargo ci faults -- --help`.
#[derive(Debug, Default, Args)]
pub(crate) struct Faults {
    /// The test bed
    #[arg(
        long = "testbed",
        alias = "plane",
        value_enum,
        default_value = "memory"
    )]
    bed: TestBed,
    /// Passed to the program itself
    #[arg(last = true)]
    more: Vec<String>,
}

/// Runs every case of the matrix.
///
/// # Errors
/// When a case fails.
pub(crate) fn run(context: &Context, faults: &Faults) -> Result<()> {
    faults.bed.ready(context, "faults")?;
    let program = context.target.join("release/faults");
    Cmd::new(context, &program.to_string_lossy())
        .arg("--testbed")
        .arg(faults.bed.name())
        .arg("--report")
        .arg(context.target.join("faults"))
        .args(&faults.more)
        .run()
}
