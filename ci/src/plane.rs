//! Where the harness's searches are played: in memory, or on what this machine has.

use anyhow::Result;
use clap::ValueEnum;

use crate::{
    context::Context,
    doctor::{self, need::Layer},
    testing::{STARTED, build_optimized},
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
            Self::Memory => build_optimized(context, &[program]),
            Self::Real => {
                doctor::ready(context, Layer::Node)?;
                build_optimized(context, &[STARTED.as_slice(), &[program]].concat())
            }
        }
    }
}
