//! How fast sequences are played.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The file that holds them as JSON.
pub const STATS_FILE: &str = "figures.json";

/// What a run came to.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Stats {
    /// Sequences.
    pub sequences: usize,
    /// Steps of all sequences.
    pub steps: usize,
    /// CSI calls, repetitions included.
    pub calls: usize,
    /// Time on the clock.
    pub seconds: f64,
    /// Sequences in a second.
    pub sequences_per_second: f64,
    /// Steps of a sequence, on average.
    pub mean_steps: f64,
}

impl Stats {
    /// Of a run that took so many seconds.
    #[expect(clippy::cast_precision_loss, reason = "figures for people")]
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
