//! The clock of the simulated NAS: the system clock or a fixed time, plus whatever a test has advanced it by.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::time::{SystemTime, UNIX_EPOCH};

/// A time in milliseconds since 1970, or a duration in milliseconds.
pub(crate) type Millis = u64;

#[derive(Debug)]
pub(crate) struct Clock {
    frozen_at: Option<Millis>,
    offset: AtomicU64,
}

impl Clock {
    /// A clock that is frozen at this time; `None`: it follows the system clock.
    pub(crate) fn new(frozen_at: Option<Millis>) -> Self {
        Self {
            frozen_at,
            offset: AtomicU64::new(0),
        }
    }

    pub(crate) fn now(&self) -> Millis {
        let base = self.frozen_at.unwrap_or_else(system_time);
        base.saturating_add(self.offset.load(Ordering::Relaxed))
    }

    /// Moves the clock forward, so that tests need not wait.
    pub(crate) fn advance(&self, by: Millis) {
        self.offset.fetch_add(by, Ordering::Relaxed);
    }
}

fn system_time() -> Millis {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A duration in milliseconds; saturates.
pub(crate) fn millis(span: Duration) -> Millis {
    Millis::try_from(span.as_millis()).unwrap_or(Millis::MAX)
}
