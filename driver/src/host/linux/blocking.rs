//! Runs blocking work off the runtime's workers. Reads of kernel files use the runtime's blocking pool, which is bounded
//! (`main.rs`). Work that may wait for a disk, a target or a file system gets its own thread: however many of these hang, the
//! pool stays free. Each thread belongs to a call that waits for it and holds its volume's lock, which bounds their number.

use std::io;
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::HostError;
use crate::in_flight;

/// Runs `read`, which only reads kernel files, on the blocking pool.
pub(super) async fn blocking<T: Send + 'static>(
    doing: &str,
    deadline: Duration,
    read: impl FnOnce() -> Result<T, HostError> + Send + 'static,
) -> Result<T, HostError> {
    let lock = in_flight::current();
    let task = tokio::task::spawn_blocking(move || {
        let found = read();
        drop(lock);
        found
    });
    match timeout(deadline, task).await {
        Ok(Ok(found)) => found,
        Ok(Err(panicked)) => Err(lost(doing, panicked)),
        Err(_) => Err(overran(doing, deadline)),
    }
}

/// The same for an operation on one file.
pub(super) async fn pooled<T: Send + 'static>(
    doing: &str,
    path: &str,
    deadline: Duration,
    act: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, HostError> {
    let (what, file) = (doing.to_owned(), path.to_owned());
    let act = move || act().map_err(|error| failed(&what, &file, error));
    blocking(doing, deadline, act).await
}

/// Runs `act` in its own thread. If it overruns its deadline, it continues there and keeps the volume's lock.
pub(super) async fn in_own_thread<T: Send + 'static>(
    doing: &str,
    path: &str,
    deadline: Duration,
    act: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, HostError> {
    in_steps(doing, path, deadline, |_: &mut Step| act()).await
}

/// The same, with `deadline` for each step.
pub(super) async fn in_steps<T: Send + 'static>(
    doing: &str,
    path: &str,
    deadline: Duration,
    act: impl FnOnce(&mut Step) -> io::Result<T> + Send + 'static,
) -> Result<T, HostError> {
    let (what, file) = (doing.to_owned(), path.to_owned());
    let act = move |step: &mut Step| act(step).map_err(|error| failed(&what, &file, error));
    in_thread(doing, deadline, act).await
}

/// Reports progress: each finished step restarts the deadline.
#[derive(Debug)]
pub(super) struct Step(mpsc::Sender<()>);

impl Step {
    /// Reports that a step is done. False: the caller no longer waits.
    pub(super) fn done(&mut self) -> bool {
        !matches!(
            self.0.try_send(()),
            Err(mpsc::error::TrySendError::Closed(()))
        )
    }
}

/// Runs `act` in its own thread, with `deadline` for each of its steps.
pub(super) async fn in_thread<T: Send + 'static>(
    doing: &str,
    deadline: Duration,
    act: impl FnOnce(&mut Step) -> Result<T, HostError> + Send + 'static,
) -> Result<T, HostError> {
    let lock = in_flight::current();
    let (sender, mut receiver) = oneshot::channel();
    let (step, mut steps) = mpsc::channel(1);
    let run = move || {
        let result = act(&mut Step(step));
        drop(lock);
        let _caller_gave_up = sender.send(result);
    };
    let thread = thread::Builder::new().name("waits".to_owned()).spawn(run);
    thread.map_err(|error| lost(doing, error))?;
    loop {
        let progress = async {
            tokio::select! {
                biased;
                result = &mut receiver => Some(result),
                Some(()) = steps.recv() => None,
            }
        };
        match timeout(deadline, progress).await {
            Ok(None) => {}
            Ok(Some(Ok(result))) => return result,
            Ok(Some(Err(panicked))) => return Err(lost(doing, panicked)),
            Err(_) => return Err(overran(doing, deadline)),
        }
    }
}

/// Turns an error of the system into a [`HostError`]: [`HostError::Absent`] if the path does not exist.
pub(super) fn failed(doing: &str, path: &str, source: io::Error) -> HostError {
    use io::ErrorKind::{NotADirectory, NotFound};
    if matches!(source.kind(), NotFound | NotADirectory) {
        return HostError::Absent {
            path: path.to_owned(),
        };
    }
    HostError::Io {
        doing: doing.to_owned(),
        source,
    }
}

fn lost(doing: &str, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> HostError {
    HostError::Io {
        doing: doing.to_owned(),
        source: io::Error::other(why),
    }
}

fn overran(doing: &str, limit: Duration) -> HostError {
    HostError::DeadlineExceeded {
        what: doing.to_owned(),
        limit,
    }
}
