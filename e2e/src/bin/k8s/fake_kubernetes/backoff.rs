//! Exponential backoff: when a failed call is retried.

use std::time::{Duration, Instant};

/// Pause after the first failure. The sidecars of a real CO wait ten times as long.
const FIRST: Duration = Duration::from_millis(100);
/// Maximum pause.
const LONGEST: Duration = Duration::from_secs(5);

/// How often a call has failed, and when it may be retried.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    failures: u32,
    /// The earliest time of the retry.
    pub(super) at: Instant,
}

impl Backoff {
    /// The backoff after one more failure; `infeasible` if the driver's code says that this call can never succeed.
    pub(super) fn after(before: Option<Self>, infeasible: bool, now: Instant) -> Self {
        let failures = before.map_or(0, |before| before.failures) + 1;
        let pause = if infeasible { LONGEST } else { pause(failures) };
        Self {
            failures,
            at: now + pause,
        }
    }
}

/// Doubled with each failure.
fn pause(failures: u32) -> Duration {
    let doubled = 2_u32.checked_pow(failures.saturating_sub(1));
    doubled
        .and_then(|times| FIRST.checked_mul(times))
        .map_or(LONGEST, |pause| pause.min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_a_bound() {
        let millis = |failures| pause(failures).as_millis();
        assert_eq!([1, 2, 3, 6].map(millis), [100, 200, 400, 3200]);
        assert_eq!([7, 40].map(millis), [5000, 5000]);
    }

    #[test]
    fn an_infeasible_call_is_retried_rarely() {
        let now = Instant::now();
        assert_eq!(Backoff::after(None, true, now).at, now + LONGEST);
        assert_eq!(Backoff::after(None, false, now).at, now + FIRST);
    }
}
