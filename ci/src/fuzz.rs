//! Random requests against dsm-sim, for as long as one likes.

use anyhow::Result;
use clap::Args;

use crate::{context::Context, run::Step};

/// Arguments of the fuzzer.
#[derive(Debug, Args)]
pub(crate) struct Fuzz {
    /// For how long; a case that has begun is ended
    #[arg(long, default_value_t = Fuzz::SECONDS)]
    seconds: u64,
    /// Where to begin: what a failure prints, to see it again
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

/// Runs it.
///
/// # Errors
/// When dsm-sim panicked, did not answer as a NAS does, or was changed by a call that it refused.
pub(crate) fn run(context: &Context, fuzz: &Fuzz) -> Result<()> {
    // The whole workspace's features: of one package alone, a third of all crates would be built once more.
    let command = "cargo test --locked --workspace --test fuzz -- --nocapture";
    let mut step = Step::new(context, command).env("FUZZ_SECONDS", fuzz.seconds.to_string());
    if let Some(seed) = fuzz.seed {
        step = step.env("FUZZ_SEED", seed.to_string());
    }
    step.show()
}
