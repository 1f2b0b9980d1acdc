//! How long expansions take, from editing the claim until the pod sees the new size.

use std::collections::BTreeMap;
use std::time::Duration;

use comfy_table::{Table, presets};

/// The measured times, by what was expanded.
#[derive(Clone, Debug, Default)]
pub(crate) struct Times(BTreeMap<String, Vec<Duration>>);

impl Times {
    pub(crate) fn add(&mut self, what: &str, time: Duration) {
        self.0.entry(what.to_owned()).or_default().push(time);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A table of count, p50, p99 and maximum in seconds.
    pub(crate) fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY).set_header([
            "edit → grown",
            "times",
            "p50 s",
            "p99 s",
            "most s",
        ]);
        for (what, times) in &self.0 {
            let format_quantile = |share| format!("{:.2}", quantile(times, share).as_secs_f64());
            table.add_row([
                what.clone(),
                times.len().to_string(),
                format_quantile(0.5),
                format_quantile(0.99),
                format_quantile(1.0),
            ]);
        }
        table
    }
}

/// The smallest time that is at least as long as this share of all times.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a share of a few numbers"
)]
fn quantile(times: &[Duration], share: f64) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted
        .get(rank.saturating_sub(1))
        .copied()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_times_that_were_measured() {
        let times: Vec<Duration> = (1..=20).rev().map(Duration::from_secs).collect();
        assert_eq!(quantile(&times, 0.5), Duration::from_secs(10));
        assert_eq!(quantile(&times, 0.99), Duration::from_secs(20));
        assert_eq!(quantile(&times[..1], 0.5), Duration::from_secs(20));
        assert_eq!(quantile(&[], 0.5), Duration::ZERO);
    }
}
