//! One operation per volume (design.md#one-operation-per-volume).
//!
//! A mutating operation runs in a task of its own, which keeps the volume's lock until its last effect has ended: gRPC drops
//! a handler at the caller's deadline, but an effect under way cannot be recalled. CSI v1.12, *Concurrency*: the CO should
//! not have two calls in flight for one volume, and a plugin may answer ABORTED when it does. What the driver does on its own
//! is no call of the CO's: it stops when one comes, which waits for that instead of being refused.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};
use tracing::Instrument as _;

use crate::error::Error;
use crate::{metrics, telemetry};

tokio::task_local! {
    static CURRENT: Option<Guard>;
}

/// The volumes that are being worked upon.
#[derive(Clone, Debug, Default)]
pub struct InFlight(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Those that the driver works upon on its own have a sign that a call waits.
    keys: Mutex<HashMap<String, Option<Wanted>>>,
    released: Notify,
}

impl Shared {
    fn keys(&self) -> MutexGuard<'_, HashMap<String, Option<Wanted>>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A sign to what the driver does on its own: a call of the CO's waits for the volume.
#[derive(Clone, Debug, Default)]
pub struct Wanted(Arc<AtomicBool>);

impl Wanted {
    /// A call waits: nothing new is begun.
    pub fn is_wanted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Keeps a volume's lock. The lock is free when the last clone is dropped.
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
        metrics::of_process().ended();
        self.shared.released.notify_waiters();
    }
}

type Operation<T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send>>;

impl InFlight {
    /// Runs `operation` to its end, whatever becomes of the caller, with the lock of `volume` held.
    ///
    /// # Errors
    /// [`Error::Busy`] when the volume is being worked upon, [`Error::Died`] when the operation panicked, else the
    /// operation's own.
    pub fn run<T: Send + 'static>(
        &self,
        volume: &str,
        operation: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> impl Future<Output = Result<T, Error>> + Send {
        // Operations are large, and are not kept in the handlers' futures.
        let operation: Operation<T> = Box::pin(operation);
        async move {
            let guard = self.begin_in_turn(volume).await?;
            self.spawn(volume, guard, operation).await
        }
    }

    /// Runs what no call has asked for, with the lock of `volume` held. A call that comes meanwhile says so through
    /// [`Wanted`] and waits.
    ///
    /// # Errors
    /// Those of [`InFlight::run`].
    pub async fn run_aside<T: Send + 'static, F>(
        &self,
        volume: &str,
        operation: impl FnOnce(Wanted) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let wanted = Wanted::default();
        let guard = self.begin(volume, Some(wanted.clone()))?;
        let (shared, key) = (self.0.clone(), volume.to_owned());
        let operation = operation(wanted);
        let operation: Operation<T> = Box::pin(async move {
            let done = operation.await;
            // An effect that cannot be stopped may keep the lock: nobody waits for that.
            if let Some(aside) = shared.keys().get_mut(&key) {
                *aside = None;
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
        let (tell, told) = oneshot::channel();
        let operation = async move {
            let outcome = CURRENT.scope(Some(guard), operation).await;
            // Only now, when the lock is free: whoever is told may come back at once.
            if let Err(outcome) = tell.send(outcome) {
                telemetry::late(outcome.as_ref().err());
            }
        };
        tokio::spawn(operation.in_current_span());
        told.await.unwrap_or_else(|_| {
            Err(Error::Panicked {
                volume: volume.to_owned(),
            })
        })
    }

    /// Waits until nothing is in flight.
    pub async fn idle(&self) {
        loop {
            let released = self.0.released.notified();
            if self.0.keys().is_empty() {
                return;
            }
            released.await;
        }
    }

    /// The lock for a call: what the driver does on its own is asked to stop, and waited for.
    async fn begin_in_turn(&self, volume: &str) -> Result<Guard, Error> {
        loop {
            let released = self.0.released.notified();
            let begun = self.begin(volume, None);
            if begun.is_ok() || !self.wants(volume) {
                return begun;
            }
            released.await;
        }
    }

    /// Tells what the driver does on its own that a call waits; false: it does nothing there.
    fn wants(&self, volume: &str) -> bool {
        let keys = self.0.keys();
        // One that has just ended leaves the lock free: then a call may try once more.
        let Some(held) = keys.get(volume) else {
            return true;
        };
        if let Some(wanted) = held {
            wanted.0.store(true, Ordering::Relaxed);
        }
        held.is_some()
    }

    fn begin(&self, volume: &str, aside: Option<Wanted>) -> Result<Guard, Error> {
        let mut keys = self.0.keys();
        if keys.contains_key(volume) {
            return Err(Error::Busy {
                volume: volume.to_owned(),
            });
        }
        keys.insert(volume.to_owned(), aside);
        drop(keys);
        metrics::of_process().begun();
        Ok(Guard(Arc::new(Entry {
            shared: self.0.clone(),
            key: volume.to_owned(),
        })))
    }
}

/// The lock that the current operation holds. Whoever leaves an effect behind that cannot be stopped (a host command in
/// uninterruptible sleep) keeps a clone until that effect has ended.
pub fn current() -> Option<Guard> {
    CURRENT.try_with(Clone::clone).ok().flatten()
}

/// Runs a look that is given up as soon as its operation has ended. It changes nothing, so what is left of it then keeps no
/// lock: else the next call would be refused for a moment, after this one was answered.
pub async fn unlocked<T>(look: impl Future<Output = T>) -> T {
    CURRENT.scope(None, look).await
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
            "the lock lives as long as the effect"
        );
        release.send(()).unwrap();
        in_flight.idle().await;
        assert!(in_flight.run("v", async { Ok(()) }).await.is_ok());
    }

    #[tokio::test]
    async fn how_an_operation_ended_whose_caller_gave_up_is_counted() {
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
        // The lock is free, and the task about to tell.
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
    async fn a_look_that_is_given_up_keeps_no_lock() {
        let in_flight = InFlight::default();
        let look = unlocked(async { Ok(current()) });
        let none = in_flight.run("v", look).await.unwrap();
        assert!(none.is_none());
    }

    #[tokio::test]
    async fn what_the_driver_does_on_its_own_stops_for_a_call_which_waits() {
        let in_flight = InFlight::default();
        let (started, has_started) = oneshot::channel();
        let own = in_flight.clone();
        let own = tokio::spawn(async move {
            let work = |wanted: Wanted| async move {
                started.send(()).unwrap();
                while !wanted.is_wanted() {
                    tokio::task::yield_now().await;
                }
                Ok("stopped")
            };
            own.run_aside("v", work).await
        });
        has_started.await.unwrap();
        let another = in_flight.run_aside("v", |_| async { Ok(()) }).await;
        assert!(is_busy(&another), "it waits for nobody");
        assert!(in_flight.run("v", async { Ok(()) }).await.is_ok());
        assert_eq!(own.await.unwrap().unwrap(), "stopped");
        // What it leaves behind that cannot be stopped is not waited for.
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
