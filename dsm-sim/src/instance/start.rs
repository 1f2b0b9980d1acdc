//! From what is to be simulated to a NAS that runs.

use crate::instance::embedded::Embedded;
use crate::instance::running::{self, DsmSim, StartError};
use crate::options::Builder;

impl Builder {
    /// Starts the simulator, on threads of its own: any async runtime will do, and it goes on answering while the caller
    /// is busy.
    ///
    /// # Errors
    /// The folder, a volume, a port or a certificate cannot be had; see [`StartError`].
    pub async fn start(self) -> Result<DsmSim, StartError> {
        running::start(self).await
    }

    /// Makes the simulator a value inside of its caller, without ports and threads: see [`Embedded`]. The caller's tokio
    /// runtime carries what has to wait.
    ///
    /// # Errors
    /// As [`Builder::start`], ports apart.
    pub fn embed(&self) -> Result<Embedded, StartError> {
        Embedded::new(self)
    }
}
