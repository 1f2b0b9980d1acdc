//! The driver's processes die at each of their effects; two controllers overlap at each of their requests.

use anyhow::Result;
use clap::Args;

use crate::{context::Context, plane::Plane, run::Step};

/// Arguments of the crash search. What is not named here is the program's own: see `cargo ci crash -- --help`.
#[derive(Debug, Default, Args)]
pub(crate) struct Crash {
    /// Where it is played
    #[arg(long, value_enum, default_value = "memory")]
    plane: Plane,
    /// Only so many points of each call, by luck
    #[arg(long, value_name = "N")]
    sample: Option<usize>,
    /// Only so many pairs of each call, by luck
    #[arg(long, value_name = "N")]
    pairs: Option<usize>,
    /// For the program itself
    #[arg(last = true)]
    more: Vec<String>,
}

/// Searches.
///
/// # Errors
/// When a death does harm.
pub(crate) fn run(context: &Context, crash: &Crash) -> Result<()> {
    crash.plane.ready(context, "crash")?;
    let program = context.target.join("release/crash");
    let mut step = Step::new(context, &program.to_string_lossy())
        .arg("--plane")
        .arg(crash.plane.name());
    for (option, number) in [("--sample", crash.sample), ("--pairs", crash.pairs)] {
        if let Some(number) = number {
            step = step.arg(option).arg(number.to_string());
        }
    }
    step.args(&crash.more).show()?;
    match crash.plane {
        Plane::Memory => interleaved(context),
        // There the harness does not decide whose request is next.
        Plane::Real => Ok(()),
    }
}

/// Schedules of two controllers in the pipeline. More of them: `target/release/interleaved --cases N --seed N`.
const SCHEDULES: &str = "1000";

fn interleaved(context: &Context) -> Result<()> {
    Plane::Memory.ready(context, "interleaved")?;
    let program = context.target.join("release/interleaved");
    Step::new(context, &program.to_string_lossy())
        .args(&["--cases", SCHEDULES])
        .show()
}
