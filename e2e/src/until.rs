//! Waiting: on a condition, with a bound, naming what was seen last.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long anything in the harness may take to come up or go away.
pub const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(20);

/// Looks at the world with `probe` until `holds` accepts what is seen.
///
/// # Errors
/// The probe's own, at once; or the last thing seen, after [`PATIENCE`].
pub async fn until<T: Debug>(
    what: &str,
    mut probe: impl AsyncFnMut() -> Result<T>,
    holds: impl Fn(&T) -> bool,
) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let seen = probe().await?;
        if holds(&seen) {
            return Ok(seen);
        }
        if Instant::now() > deadline {
            bail!("waited {PATIENCE:?} for: {what}; last seen: {seen:?}");
        }
        tokio::time::sleep(PAUSE).await;
    }
}
