//! How many requests a NAS has to deal with at a time (design.md#limits-per-nas). More than it can work upon only queue up inside of it,
//! where the wait counts as its own; here it does not, and who waits knows why.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::Client;
use crate::dsm::call::RequestClass;
use crate::dsm::reply::DsmError;
use crate::dsm::transport;
use crate::metrics;

/// Requests at a time, creates left out. A NAS has two to eight processors, and a request keeps one of its CGI processes busy for 0.2 to
/// 1 s: so it is never idle, and a call of the CO that comes behind 200 others waits for some 12 requests' time and not for 200.
const COMMON: usize = 16;
/// Creates at a time. The NAS carries them out one after the other, so more gain nothing and only wait there: four, at 10 s each (the
/// longest that was seen under load), end within a request's deadline; with two the NAS would be idle while an answer is on its way.
const CREATES: usize = 4;

/// Connections at a time, those among them that nobody uses at present.
const CONNECTIONS: usize = 30;
/// Requests that take no place, one of each at a time: a login, a logout, and the question whether the NAS answers.
const BESIDE: usize = 3;

/// A place among the requests under way: free when the last clone is dropped.
#[derive(Clone, Debug)]
pub(super) struct Permit(
    #[expect(dead_code, reason = "held for its Drop")] Arc<OwnedSemaphorePermit>,
);

/// The places of one NAS.
#[derive(Debug)]
pub(super) struct RequestLimits {
    common: Arc<Semaphore>,
    creates: Arc<Semaphore>,
}

impl RequestLimits {
    /// How many requests there are at a time, both lanes taken together.
    pub(super) const MOST: usize = COMMON + CREATES;

    /// The next free place: who came first has it first.
    async fn place(&self, lane: RequestClass) -> Permit {
        let places = match lane {
            RequestClass::Common => &self.common,
            RequestClass::Creates => &self.creates,
        };
        let permit = Arc::clone(places).acquire_owned().await;
        Permit(Arc::new(permit.expect("it is never closed")))
    }
}

const _: () = assert!(transport::IDLE_CONNECTIONS + BESIDE + RequestLimits::MOST == CONNECTIONS);

impl Default for RequestLimits {
    fn default() -> Self {
        Self {
            common: Arc::new(Semaphore::new(COMMON)),
            creates: Arc::new(Semaphore::new(CREATES)),
        }
    }
}

impl Client {
    /// Waits for a place, for as long as the NAS answers others.
    ///
    /// # Errors
    /// [`DsmError::Silent`]: it answers nobody.
    pub(super) async fn place(&self, lane: RequestClass) -> Result<Permit, DsmError> {
        self.listen().await?;
        let came = Instant::now();
        let place = tokio::select! {
            biased;
            // First: those that are given up leave their places, and nothing more is sent to a NAS that hangs.
            silence = self.pulse.silence() => Err(DsmError::Silent(silence)),
            place = self.lanes.place(lane) => Ok(place),
        };
        metrics::of_process().dsm_queue(&self.account.nas.to_string(), came.elapsed());
        place
    }
}

#[cfg(test)]
mod tests;
