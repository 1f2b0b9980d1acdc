//! The test beds that the search programs of e2e run on: in memory, or with real processes and block devices.

use anyhow::Result;
use clap::ValueEnum;

use crate::{
    context::Context,
    doctor::{self, need::Layer},
    testing::{STARTED_PROGRAMS, build_optimized},
};

/// A test bed, see `e2e::testbed`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum TestBed {
    /// In one process, with simulated time; needs nothing
    #[default]
    Memory,
    /// Processes, block devices and file systems (root)
    Real,
}

impl TestBed {
    /// The value of the programs' `--testbed`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Real => "real",
        }
    }

    /// Builds a search program, and the programs that it starts on this test bed.
    ///
    /// # Errors
    /// When something is missing or does not compile.
    pub(crate) fn ready(self, context: &Context, program: &str) -> Result<()> {
        match self {
            Self::Memory => build_optimized(context, &[program]),
            Self::Real => {
                doctor::ready(context, Layer::Node)?;
                build_optimized(context, &[STARTED_PROGRAMS.as_slice(), &[program]].concat())
            }
        }
    }
}
