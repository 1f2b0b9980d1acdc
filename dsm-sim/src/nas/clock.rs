//! Time as the simulated NAS sees it: the machine's clock, or a moment that stands still, plus what a test has moved it by.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::time::{SystemTime, UNIX_EPOCH};

/// A moment, in milliseconds since 1970; or a span of so many milliseconds.
pub(crate) type Millis = u64;

/// The NAS's clock.
#[derive(Debug)]
pub(crate) struct Clock {
    stands_at: Option<Millis>,
    ahead: AtomicU64,
}

impl Clock {
    /// A clock that stands still at this moment, or goes with the machine's.
    pub(crate) fn new(stands_at: Option<Millis>) -> Self {
        Self {
            stands_at,
            ahead: AtomicU64::new(0),
        }
    }

    /// The present moment.
    pub(crate) fn now(&self) -> Millis {
        let base = self.stands_at.unwrap_or_else(machine);
        base.saturating_add(self.ahead.load(Ordering::Relaxed))
    }

    /// Moves the clock forward, so that tests need not wait.
    pub(crate) fn advance(&self, by: Millis) {
        self.ahead.fetch_add(by, Ordering::Relaxed);
    }
}

fn machine() -> Millis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A span as the clock counts it.
pub(crate) fn millis(span: Duration) -> Millis {
    Millis::try_from(span.as_millis()).unwrap_or(Millis::MAX)
}
