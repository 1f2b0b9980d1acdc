//! Throughput of a model run.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The JSON file of [`Stats`].
pub const STATS_FILE: &str = "figures.json";

/// Counters and rates of a run.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Stats {
    /// The number of sequences.
    pub sequences: usize,
    /// The number of steps in all sequences.
    pub steps: usize,
    /// CSI calls, retries included.
    pub calls: usize,
    /// Wall-clock time.
    pub seconds: f64,
    /// Sequences per second.
    pub sequences_per_second: f64,
    /// Steps per sequence, on average.
    pub mean_steps: f64,
}

impl Stats {
    /// Computes the rates of a run that took this many seconds.
    #[expect(clippy::cast_precision_loss, reason = "the rates are for display")]
    pub fn new(sequences: usize, steps: usize, calls: usize, seconds: f64) -> Self {
        Self {
            sequences,
            steps,
            calls,
            seconds,
            sequences_per_second: sequences as f64 / seconds,
            mean_steps: steps as f64 / sequences.max(1) as f64,
        }
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            sequences,
            steps,
            calls,
            seconds,
            sequences_per_second,
            mean_steps,
        } = self;
        write!(
            f,
            "{sequences} sequences, {steps} steps ({mean_steps:.1} a sequence), {calls} CSI calls in {seconds:.1} s: {sequences_per_second:.0} sequences/s"
        )
    }
}
