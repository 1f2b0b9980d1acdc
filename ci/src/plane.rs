//! Where the harness's searches are played: in memory, or on what this machine has.

use anyhow::Result;
use clap::ValueEnum;

use crate::{
    context::Context,
    doctor::{self, need::Layer},
    run::Step,
    testing::build_programs,
};

/// See `e2e::grounds`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Plane {
    /// In one process, with a time of its own; needs nothing
    #[default]
    Memory,
    /// Processes, block devices and file systems (root)
    Real,
}

impl Plane {
    /// As the programs call it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Real => "real",
        }
    }

    /// Builds a program that plays there, and what it plays with.
    ///
    /// # Errors
    /// When something is missing or does not compile.
    pub(crate) fn ready(self, context: &Context, program: &str) -> Result<()> {
        match self {
            Self::Memory => Step::optimized(context, "cargo build --locked --release -p e2e --bin")
                .arg(program)
                .quiet(&format!("Building {program}")),
            Self::Real => {
                doctor::ready(context, Layer::Node)?;
                build_programs(context, &["--release"])
            }
        }
    }
}
