//! Waits for a condition, with a timeout; a failure names the last value that was seen.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long anything in the harness may take to come up or go away.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two probes: at first, and after a long wait.
const PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Calls `probe` until `holds` accepts its value.
///
/// # Errors
/// The probe fails, or [`DEFAULT_TIMEOUT`] is over; names the last value.
pub async fn until<T: Debug>(
    what: &str,
    probe: impl AsyncFnMut() -> Result<T>,
    holds: impl Fn(&T) -> bool,
) -> Result<T> {
    until_within(DEFAULT_TIMEOUT, what, probe, holds).await
}

/// Like [`until`], with another timeout.
///
/// # Errors
/// The probe fails, or the timeout is over; names the last value.
pub async fn until_within<T: Debug>(
    timeout: Duration,
    what: &str,
    mut probe: impl AsyncFnMut() -> Result<T>,
    holds: impl Fn(&T) -> bool,
) -> Result<T> {
    let started = Instant::now();
    loop {
        let seen = probe().await?;
        if holds(&seen) {
            return Ok(seen);
        }
        let waited = started.elapsed();
        if waited > timeout {
            bail!("waited {timeout:?} for: {what}; last seen: {seen:?}");
        }
        // Polling all the time would take the processor from the processes that are waited for.
        tokio::time::sleep((waited / 10).clamp(PAUSE, LONGEST_PAUSE)).await;
    }
}
