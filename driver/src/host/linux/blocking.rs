//! What would block, off the runtime's workers: looks at the kernel's own files on its blocking pool, which is bounded (`main.rs`); what
//! may wait for a disk, a target or a file system in a thread of its own. So however many of those hang, the looks go on; and each
//! belongs to a call that waits for it and holds its volume's lock, which bounds them.

use std::io;
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::HostError;
use crate::in_flight;

/// Runs `look`, which does nothing but read files of the kernel.
pub(super) async fn blocking<T: Send + 'static>(
    doing: &str,
    deadline: Duration,
    look: impl FnOnce() -> Result<T, HostError> + Send + 'static,
) -> Result<T, HostError> {
    let held = in_flight::current();
    let task = tokio::task::spawn_blocking(move || {
        let found = look();
        drop(held);
        found
    });
    match timeout(deadline, task).await {
        Ok(Ok(found)) => found,
        Ok(Err(died)) => Err(broken(doing, died)),
        Err(_) => Err(overran(doing, deadline)),
    }
}

/// The same for one file.
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

/// Runs `act` in a thread of its own. When it overruns its deadline it goes on there, with the volume's lock.
pub(super) async fn in_own_thread<T: Send + 'static>(
    doing: &str,
    path: &str,
    deadline: Duration,
    act: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, HostError> {
    in_steps(doing, path, deadline, |_: &mut Step| act()).await
}

/// The same, of which `deadline` is what each step may take.
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

/// What tells that another step has ended.
#[derive(Debug)]
pub(super) struct Step(mpsc::Sender<()>);

impl Step {
    /// A step has ended. False: nobody waits any more.
    pub(super) fn done(&mut self) -> bool {
        !matches!(
            self.0.try_send(()),
            Err(mpsc::error::TrySendError::Closed(()))
        )
    }
}

/// Runs `act` in a thread of its own; `deadline` is what each of its steps may take.
pub(super) async fn in_thread<T: Send + 'static>(
    doing: &str,
    deadline: Duration,
    act: impl FnOnce(&mut Step) -> Result<T, HostError> + Send + 'static,
) -> Result<T, HostError> {
    let lock = in_flight::current();
    let (tell, mut told) = oneshot::channel();
    let (step, mut steps) = mpsc::channel(1);
    let run = move || {
        let done = act(&mut Step(step));
        drop(lock);
        let _nobody_waits = tell.send(done);
    };
    let thread = thread::Builder::new().name("waits".to_owned()).spawn(run);
    thread.map_err(|error| broken(doing, error))?;
    loop {
        let progress = async {
            tokio::select! {
                biased;
                done = &mut told => Some(done),
                Some(()) = steps.recv() => None,
            }
        };
        match timeout(deadline, progress).await {
            Ok(None) => {}
            Ok(Some(Ok(done))) => return done,
            Ok(Some(Err(died))) => return Err(broken(doing, died)),
            Err(_) => return Err(overran(doing, deadline)),
        }
    }
}

/// What the system says of a path, as an error of the machine's.
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

fn broken(doing: &str, why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> HostError {
    HostError::Io {
        doing: doing.to_owned(),
        source: io::Error::other(why),
    }
}

fn overran(doing: &str, limit: Duration) -> HostError {
    HostError::Overran {
        what: doing.to_owned(),
        limit,
    }
}
