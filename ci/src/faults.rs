//! What goes wrong while a volume grows, as a matrix.

use anyhow::Result;
use clap::Args;

use crate::{context::Context, plane::Plane, run::Step};

/// Arguments of the fault matrix. What is not named here is the program's own: see `cargo ci faults -- --help`.
#[derive(Debug, Default, Args)]
pub(crate) struct Faults {
    /// Where it is played
    #[arg(long, value_enum, default_value = "memory")]
    plane: Plane,
    /// For the program itself
    #[arg(last = true)]
    more: Vec<String>,
}

/// Plays every cell.
///
/// # Errors
/// When one fails.
pub(crate) fn run(context: &Context, faults: &Faults) -> Result<()> {
    faults.plane.ready(context, "faults")?;
    let program = context.target.join("release/faults");
    Step::new(context, &program.to_string_lossy())
        .arg("--plane")
        .arg(faults.plane.name())
        .arg("--report")
        .arg(context.target.join("faults"))
        .args(&faults.more)
        .show()
}
