//! `cargo ci fuzz`: random requests against dsm-sim.

use anyhow::Result;
use clap::Args;

use crate::{context::Context, run::Cmd};

/// Arguments of the fuzzer.
#[derive(Debug, Args)]
pub(crate) struct Fuzz {
    /// Duration in seconds; a running case is finished
    #[arg(long, default_value_t = Fuzz::SECONDS)]
    seconds: u64,
    /// Random seed: a failure prints it, to reproduce the run
    #[arg(long)]
    seed: Option<u64>,
}

impl Fuzz {
    const SECONDS: u64 = 60;
}

impl Default for Fuzz {
    fn default() -> Self {
        Self {
            seconds: Self::SECONDS,
            seed: None,
        }
    }
}

/// Runs the fuzzer.
///
/// # Errors
/// When dsm-sim panicked, gave a reply that a NAS would not give, or changed its state on a request that it refused.
pub(crate) fn run(context: &Context, fuzz: &Fuzz) -> Result<()> {
    // --workspace, for the same features as everywhere: with -p, a third of all crates would be built again.
    let command = "cargo test --locked --workspace --test fuzz -- --nocapture";
    let mut cmd = Cmd::new(context, command).env("FUZZ_SECONDS", fuzz.seconds.to_string());
    if let Some(seed) = fuzz.seed {
        cmd = cmd.env("FUZZ_SEED", seed.to_string());
    }
    cmd.run()
}
