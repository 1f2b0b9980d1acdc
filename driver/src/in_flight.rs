//! One operation per volume (design choice 22).
//!
//! A mutating operation runs in a task of its own, which keeps the volume's lock until its last effect has ended: gRPC drops
//! a handler at the caller's deadline, but an effect under way cannot be recalled. CSI v1.12, *Concurrency*: the CO should
//! not have two calls in flight for one volume, and a plugin may answer ABORTED when it does.

use std::collections::HashSet;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

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
    keys: Mutex<HashSet<String>>,
    released: Notify,
}

/// Keeps a volume's lock. The lock is free when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Guard(#[expect(dead_code, reason = "held for its Drop")] Arc<Held>);

#[derive(Debug)]
struct Held {
    shared: Arc<Shared>,
    key: String,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared
            .keys
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.key);
        metrics::of_process().ended();
        self.shared.released.notify_waiters();
    }
}

impl InFlight {
    /// Runs `operation` to its end, whatever becomes of the caller, with the lock of `volume` held.
    ///
    /// # Errors
    /// [`Error::Busy`] when the volume is being worked upon, [`Error::Died`] when the operation panicked, else the
    /// operation's own.
    pub async fn run<T: Send + 'static>(
        &self,
        volume: &str,
        operation: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let guard = self.begin(volume)?;
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
            Err(Error::Died {
                volume: volume.to_owned(),
            })
        })
    }

    /// Waits until nothing is in flight.
    pub async fn idle(&self) {
        loop {
            let released = self.0.released.notified();
            if self
                .0
                .keys
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .is_empty()
            {
                return;
            }
            released.await;
        }
    }

    fn begin(&self, volume: &str) -> Result<Guard, Error> {
        if !self
            .0
            .keys
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(volume.to_owned())
        {
            return Err(Error::Busy {
                volume: volume.to_owned(),
            });
        }
        metrics::of_process().begun();
        Ok(Guard(Arc::new(Held {
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

    #[tokio::test]
    async fn choice_22_the_second_operation_is_refused_and_the_first_outlives_its_caller() {
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

    #[tokio::test]
    async fn choice_10_an_abandoned_effect_keeps_the_lock() {
        let in_flight = InFlight::default();
        let guard = in_flight.run("v", async { Ok(current()) }).await.unwrap();
        assert!(guard.is_some());
        assert!(is_busy(&in_flight.run("v", async { Ok(()) }).await));
        drop(guard);
        assert!(in_flight.run("v", async { Ok(()) }).await.is_ok());
    }

    #[tokio::test]
    async fn choice_22_a_look_that_is_given_up_keeps_no_lock() {
        let in_flight = InFlight::default();
        let look = unlocked(async { Ok(current()) });
        let none = in_flight.run("v", look).await.unwrap();
        assert!(none.is_none());
    }

    #[tokio::test]
    async fn an_operation_that_panics_frees_the_volume() {
        let in_flight = InFlight::default();
        let died = in_flight
            .run::<()>("v", async { panic!("on purpose") })
            .await;
        assert!(matches!(died, Err(Error::Died { .. })));
        in_flight.idle().await;
        assert!(in_flight.run("v", async { Ok(()) }).await.is_ok());
    }
}
