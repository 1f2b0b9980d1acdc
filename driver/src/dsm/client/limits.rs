//! Limits the concurrent requests to a NAS (design.md#limits-per-nas). Beyond its capacity requests would queue up inside the
//! NAS, where the wait counts against the request timeout; here it does not, and is measured.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::Client;
use crate::dsm::call::RequestClass;
use crate::dsm::reply::DsmError;
use crate::dsm::transport;
use crate::metrics;

/// Concurrent requests, except creates. A NAS has two to eight processors, and a request keeps a CGI process busy for 0.2 to 1 s:
/// so the NAS is never idle, and a CSI call behind 200 others waits for the time of some 12 requests instead of 200.
const COMMON: usize = 16;
/// Concurrent creates. The NAS carries them out one at a time, so more would gain nothing: four, at 10 s each (the longest that
/// was seen under load), end within the request timeout; with two the NAS would be idle while a reply is in transit.
const CREATES: usize = 4;

/// Maximum number of connections, including idle ones.
const CONNECTIONS: usize = 30;
/// Requests without a permit, one of each at a time: login, logout and liveness probe.
const EXEMPT: usize = 3;

/// A permit for a request in progress, which is released when the last clone is dropped.
#[derive(Clone, Debug)]
pub(super) struct Permit(
    #[expect(dead_code, reason = "held for its Drop")] Arc<OwnedSemaphorePermit>,
);

/// The request limits of one NAS.
#[derive(Debug)]
pub(super) struct RequestLimits {
    common: Arc<Semaphore>,
    creates: Arc<Semaphore>,
}

impl RequestLimits {
    /// The maximum number of concurrent requests of both classes.
    pub(super) const MAX_REQUESTS: usize = COMMON + CREATES;

    /// Waits for a permit, first come, first served.
    async fn acquire(&self, class: RequestClass) -> Permit {
        let semaphore = match class {
            RequestClass::Common => &self.common,
            RequestClass::Creates => &self.creates,
        };
        let permit = Arc::clone(semaphore).acquire_owned().await;
        Permit(Arc::new(permit.expect("the semaphore is never closed")))
    }
}

const _: () =
    assert!(transport::MAX_IDLE_CONNECTIONS + EXEMPT + RequestLimits::MAX_REQUESTS == CONNECTIONS);

impl Default for RequestLimits {
    fn default() -> Self {
        Self {
            common: Arc::new(Semaphore::new(COMMON)),
            creates: Arc::new(Semaphore::new(CREATES)),
        }
    }
}

impl Client {
    /// Waits for a permit, as long as the NAS answers others.
    ///
    /// # Errors
    /// [`DsmError::Silent`]: the NAS does not answer.
    pub(super) async fn permit(&self, class: RequestClass) -> Result<Permit, DsmError> {
        self.check_alive().await?;
        let started = Instant::now();
        let permit = tokio::select! {
            biased;
            // Silence first: requests that are given up release their permits, and nothing more must be sent to a NAS that hangs.
            silence = self.liveness.silence() => Err(DsmError::Silent(silence)),
            permit = self.limits.acquire(class) => Ok(permit),
        };
        metrics::of_process().dsm_queue(&self.account.nas.to_string(), started.elapsed());
        permit
    }
}

#[cfg(test)]
mod tests;
