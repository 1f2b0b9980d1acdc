//! `cargo ci crash`: crashes the driver's processes at each of their side effects, and interleaves two controllers at each of
//! their requests.

use anyhow::Result;
use clap::Args;

use crate::{context::Context, run::Cmd, testbed::TestBed};

/// Arguments of the crash search. For the other options of the program itself, see `cargo ci crash -- --help`.
#[derive(Debug, Default, Args)]
pub(crate) struct Crash {
    /// The test bed
    #[arg(
        long = "testbed",
        alias = "plane",
        value_enum,
        default_value = "memory"
    )]
    bed: TestBed,
    /// Only N crash points of each call, chosen at random
    #[arg(long, value_name = "N")]
    sample: Option<usize>,
    /// Only N pairs of crash points of each call, chosen at random
    #[arg(long, value_name = "N")]
    pairs: Option<usize>,
    /// Passed to the program itself
    #[arg(last = true)]
    more: Vec<String>,
}

/// Runs the search.
///
/// # Errors
/// When a crash violates a property.
pub(crate) fn run(context: &Context, crash: &Crash) -> Result<()> {
    crash.bed.ready(context, "crash")?;
    let program = context.target.join("release/crash");
    let mut cmd = Cmd::new(context, &program.to_string_lossy())
        .arg("--testbed")
        .arg(crash.bed.name());
    for (option, number) in [("--sample", crash.sample), ("--pairs", crash.pairs)] {
        if let Some(number) = number {
            cmd = cmd.arg(option).arg(number.to_string());
        }
    }
    cmd.args(&crash.more).run()?;
    match crash.bed {
        TestBed::Memory => interleaved(context),
        // With real processes, the harness cannot choose whose request is next.
        TestBed::Real => Ok(()),
    }
}

/// Number of schedules of two controllers. For more, run `target/release/interleaved --cases N --seed N`.
const SCHEDULES: &str = "1000";

fn interleaved(context: &Context) -> Result<()> {
    TestBed::Memory.ready(context, "interleaved")?;
    let program = context.target.join("release/interleaved");
    Cmd::new(context, &program.to_string_lossy())
        .args(&["--cases", SCHEDULES])
        .run()
}
