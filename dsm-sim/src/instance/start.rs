//! Starts a configured simulator: [`Builder::start`] and [`Builder::embed`].

use crate::instance::embedded::Embedded;
use crate::instance::running::{self, DsmSim, StartError};
use crate::options::Builder;

impl Builder {
    /// Starts the simulator on its own threads. It works with any async runtime, and keeps serving while the caller is busy.
    ///
    /// # Errors
    /// The state directory, a volume, a port or a certificate cannot be used; see [`StartError`].
    pub async fn start(self) -> Result<DsmSim, StartError> {
        running::start(self).await
    }

    /// Starts the simulator without ports and threads: see [`Embedded`]. It uses the caller's tokio runtime.
    ///
    /// # Errors
    /// As [`Builder::start`], except for ports.
    pub fn embed(&self) -> Result<Embedded, StartError> {
        Embedded::new(self)
    }
}
