//! Waiting: on a condition, with a bound, naming what was seen last.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long anything in the harness may take to come up or go away.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two looks: at first, and after a long wait.
const PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Looks at the world with `probe` until `holds` accepts what is seen.
///
/// # Errors
/// The probe's own, at once; or the last thing seen, after [`PATIENCE`].
pub async fn until<T: Debug>(
    what: &str,
    probe: impl AsyncFnMut() -> Result<T>,
    holds: impl Fn(&T) -> bool,
) -> Result<T> {
    until_within(DEFAULT_TIMEOUT, what, probe, holds).await
}

/// The same with a patience of the caller's own.
///
/// # Errors
/// The probe's own, at once; or the last thing seen, after `patience`.
pub async fn until_within<T: Debug>(
    patience: Duration,
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
        if waited > patience {
            bail!("waited {patience:?} for: {what}; last seen: {seen:?}");
        }
        // Whoever looks all the time takes the processor from those it waits for.
        tokio::time::sleep((waited / 10).clamp(PAUSE, LONGEST_PAUSE)).await;
    }
}
