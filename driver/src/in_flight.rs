//! One operation per volume (design.md#one-operation-per-volume).
//!
//! A mutating operation runs in its own task, which holds the volume's lock until its last effect has ended: gRPC drops a handler
//! at the caller's deadline, but an effect in progress cannot be cancelled. CSI v1.12, *Concurrency*: the CO should not have two
//! calls in flight for one volume, and a plugin may answer ABORTED if it does. The driver's background tasks are not CO calls: a
//! background task yields to a CO call, which waits for it instead of being refused.

use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Notify, oneshot};
use tracing::Instrument as _;

use crate::error::Error;
use crate::{metrics, telemetry};

tokio::task_local! {
    static CURRENT: Option<Guard>;
}

/// The locks of the volumes that have an operation in progress.
#[derive(Clone, Debug, Default)]
pub struct InFlight(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// By volume. `Some` for background tasks: set when a call waits for the lock.
    keys: Mutex<HashMap<String, Option<Preemption>>>,
    released: Notify,
}

impl Shared {
    fn keys(&self) -> MutexGuard<'_, HashMap<String, Option<Preemption>>> {
        self.keys.lock()
    }
}

/// Tells a background task that a CO call waits for its volume.
#[derive(Clone, Debug, Default)]
pub struct Preemption(Arc<AtomicBool>);

impl Preemption {
    /// A call is waiting: the background task must not start anything new.
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Holds a volume's lock, which is released when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Guard(#[expect(dead_code, reason = "held for its Drop")] Arc<Entry>);

#[derive(Debug)]
struct Entry {
    shared: Arc<Shared>,
    key: String,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.shared.keys().remove(&self.key);
        metrics::of_process().operation_ended();
        self.shared.released.notify_waiters();
    }
}

type Operation<T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send>>;

impl InFlight {
    /// Runs `operation` to completion with the lock of `volume` held, even if the caller gives up.
    ///
    /// # Errors
    /// [`Error::Busy`] if another operation holds the lock, [`Error::Panicked`] if the operation panicked, else the operation's
    /// own error.
    pub fn run<T: Send + 'static>(
        &self,
        volume: &str,
        operation: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> impl Future<Output = Result<T, Error>> + Send {
        // Boxed: operations are large, and would bloat the handlers' futures.
        let operation: Operation<T> = Box::pin(operation);
        async move {
            let guard = self.acquire_preempting(volume).await?;
            self.spawn(volume, guard, operation).await
        }
    }

    /// Runs a background task with the lock of `volume` held. A call that arrives meanwhile signals this through [`Preemption`] and
    /// waits.
    ///
    /// # Errors
    /// See [`InFlight::run`].
    pub async fn run_aside<T: Send + 'static, F>(
        &self,
        volume: &str,
        operation: impl FnOnce(Preemption) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let wanted = Preemption::default();
        let guard = self.acquire(volume, Some(wanted.clone()))?;
        let (shared, key) = (self.0.clone(), volume.to_owned());
        let operation = operation(wanted);
        let operation: Operation<T> = Box::pin(async move {
            let done = operation.await;
            // An effect that cannot be stopped may still hold the lock. Calls do not wait for that; they get `Busy`.
            if let Some(wanted) = shared.keys().get_mut(&key) {
                *wanted = None;
            }
            shared.released.notify_waiters();
            done
        });
        self.spawn(volume, guard, operation).await
    }

    async fn spawn<T: Send + 'static>(
        &self,
        volume: &str,
        guard: Guard,
        operation: Operation<T>,
    ) -> Result<T, Error> {
        let (sender, receiver) = oneshot::channel();
        let operation = async move {
            let outcome = CURRENT.scope(Some(guard), operation).await;
            // Only now that the lock is free: the caller may retry at once.
            if let Err(outcome) = sender.send(outcome) {
                telemetry::log_late_completion(outcome.as_ref().err());
            }
        };
        tokio::spawn(operation.in_current_span());
        receiver.await.unwrap_or_else(|_| {
            Err(Error::Panicked {
                volume: volume.to_owned(),
            })
        })
    }

    /// Waits until no operation is in flight.
    pub async fn idle(&self) {
        loop {
            let released = self.0.released.notified();
            if self.0.keys().is_empty() {
                return;
            }
            released.await;
        }
    }

    /// Takes the lock for a call. A background task that holds it is asked to stop, and waited for.
    async fn acquire_preempting(&self, volume: &str) -> Result<Guard, Error> {
        loop {
            let released = self.0.released.notified();
            let acquired = self.acquire(volume, None);
            if acquired.is_ok() || !self.preempt(volume) {
                return acquired;
            }
            released.await;
        }
    }

    /// Signals a background task that a call waits for this volume. False: the lock is not held by a background task.
    fn preempt(&self, volume: &str) -> bool {
        let keys = self.0.keys();
        // The lock was released just now: try to take it again.
        let Some(background) = keys.get(volume) else {
            return true;
        };
        if let Some(wanted) = background {
            wanted.0.store(true, Ordering::Relaxed);
        }
        background.is_some()
    }

    fn acquire(&self, volume: &str, background: Option<Preemption>) -> Result<Guard, Error> {
        let mut keys = self.0.keys();
        if keys.contains_key(volume) {
            return Err(Error::Busy {
                volume: volume.to_owned(),
            });
        }
        keys.insert(volume.to_owned(), background);
        drop(keys);
        metrics::of_process().operation_started();
        Ok(Guard(Arc::new(Entry {
            shared: self.0.clone(),
            key: volume.to_owned(),
        })))
    }
}

/// The lock that the current operation holds. Code that leaves an effect running that cannot be stopped (a host command in
/// uninterruptible sleep) keeps a clone until that effect has ended.
pub fn current() -> Option<Guard> {
    CURRENT.try_with(Clone::clone).ok().flatten()
}

/// Runs a read-only check that is abandoned as soon as its operation has ended. It changes nothing, so it must not hold the lock
/// after that: else the next call would briefly be refused although this one was answered.
pub async fn unlocked<T>(check: impl Future<Output = T>) -> T {
    CURRENT.scope(None, check).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_busy(result: &Result<(), Error>) -> bool {
        matches!(result, Err(Error::Busy { .. }))
    }

    /// design.md#one-operation-per-volume
    #[tokio::test]
    async fn the_second_operation_is_refused_and_the_first_outlives_its_caller() {
        let in_flight = InFlight::default();
        let (release, released) = oneshot::channel::<()>();
        let (started, has_started) = oneshot::channel::<()>();
        let first = in_flight.clone();
        let caller = tokio::spawn(async move {
            first
                .run("v", async move {
                    let _ = started.send(());
                    let _ = released.await;
                    Ok(())
                })
                .await
        });
        has_started.await.unwrap();
        assert!(is_busy(&in_flight.run("v", async { Ok(()) }).await));
        assert!(in_flight.run("w", async { Ok(()) }).await.is_ok());
        caller.abort();
        let _ = caller.await;
        assert!(
            is_busy(&in_flight.run("v", async { Ok(()) }).await),
            "the lock is held as long as the effect lasts"
        );
        release.send(()).unwrap();
        in_flight.idle().await;
        assert!(in_flight.run("v", async { Ok(()) }).await.is_ok());
    }

    #[tokio::test]
    async fn an_operation_whose_caller_gave_up_is_counted_by_its_outcome() {
        let in_flight = InFlight::default();
        let late = |code| metrics::of_process().late_operations(code);
        let before = late("NotFound");
        let (release, released) = oneshot::channel::<()>();
        let (started, has_started) = oneshot::channel::<()>();
        let given_up = in_flight.clone();
        let caller = tokio::spawn(async move {
            let operation = async move {
                let _ = started.send(());
                let _ = released.await;
                Err::<(), _>(Error::NoSuchVolume {
                    volume: "v".to_owned(),
                    seen: "nothing".to_owned(),
                })
            };
            given_up.run("v", operation).await
        });
        has_started.await.unwrap();
        caller.abort();
        let _ = caller.await;
        release.send(()).unwrap();
        in_flight.idle().await;
        // The lock is free, and the task is about to record the outcome.
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(late("NotFound"), before + 1);
    }

    /// design.md#unstage-needs-no-nas
    #[tokio::test]
    async fn an_abandoned_effect_keeps_the_lock() {
        let in_flight = InFlight::default();
        let guard = in_flight.run("v", async { Ok(current()) }).await.unwrap();
        assert!(guard.is_some());
        assert!(is_busy(&in_flight.run("v", async { Ok(()) }).await));
        drop(guard);
        assert!(in_flight.run("v", async { Ok(()) }).await.is_ok());
    }

    /// design.md#one-operation-per-volume
    #[tokio::test]
    async fn an_abandoned_read_only_check_holds_no_lock() {
        let in_flight = InFlight::default();
        let check = unlocked(async { Ok(current()) });
        let none = in_flight.run("v", check).await.unwrap();
        assert!(none.is_none());
    }

    #[tokio::test]
    async fn a_background_task_stops_for_a_call_which_waits_for_it() {
        let in_flight = InFlight::default();
        let (started, has_started) = oneshot::channel();
        let background = in_flight.clone();
        let background = tokio::spawn(async move {
            let work = |wanted: Preemption| async move {
                started.send(()).unwrap();
                while !wanted.is_requested() {
                    tokio::task::yield_now().await;
                }
                Ok("stopped")
            };
            background.run_aside("v", work).await
        });
        has_started.await.unwrap();
        let another = in_flight.run_aside("v", |_| async { Ok(()) }).await;
        assert!(
            is_busy(&another),
            "background tasks do not wait for the lock"
        );
        assert!(in_flight.run("v", async { Ok(()) }).await.is_ok());
        assert_eq!(background.await.unwrap().unwrap(), "stopped");
        // Calls do not wait for an effect that it leaves running.
        let left = in_flight.run_aside("v", |_| async { Ok(current()) });
        let left = left.await.unwrap();
        assert!(is_busy(&in_flight.run("v", async { Ok(()) }).await));
        drop(left);
        assert!(in_flight.run("v", async { Ok(()) }).await.is_ok());
    }

    #[tokio::test]
    async fn an_operation_that_panics_frees_the_volume() {
        let in_flight = InFlight::default();
        let died = in_flight
            .run::<()>("v", async { panic!("on purpose") })
            .await;
        assert!(matches!(died, Err(Error::Panicked { .. })));
        in_flight.idle().await;
        assert!(in_flight.run("v", async { Ok(()) }).await.is_ok());
    }
}
