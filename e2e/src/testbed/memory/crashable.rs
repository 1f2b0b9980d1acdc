//! A process that can crash at any of its effects, before or after it. Once crashed it has no more effects, and its clients get
//! an error.

use std::future::{Future, pending};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::testbed::{CrashTiming, HostFault};

/// An operation in progress; `name` is cleared when it completes.
struct Half<'a> {
    mortal: &'a CrashableProcess,
    name: Option<String>,
}

impl Drop for Half<'_> {
    fn drop(&mut self) {
        if let Some(name) = self.name.take()
            && !self.mortal.is_dead()
        {
            self.mortal.inner().broken_off.push(name);
        }
    }
}

/// A process of the driver, from its start to its end.
#[derive(Debug)]
pub(super) struct CrashableProcess {
    inner: Mutex<Inner>,
    dead: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The names of the effects so far.
    effects: Vec<String>,
    /// The process crashes at this effect, counted like `effects`.
    trip: Option<(usize, CrashTiming)>,
    faults: Vec<HostFault>,
    /// The number of faults that were applied.
    hits: usize,
    /// The names of effects that were cancelled half-way although the process is alive.
    broken_off: Vec<String>,
}

impl CrashableProcess {
    pub(super) fn start() -> Self {
        Self {
            inner: Mutex::default(),
            dead: watch::Sender::new(false),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn die(&self) {
        self.dead.send_replace(true);
    }

    pub(super) fn is_dead(&self) -> bool {
        *self.dead.borrow()
    }

    /// Waits until the process dies.
    pub(super) async fn death(&self) {
        // The sender lives in `self`, so this ends only when the process dies.
        let _ = self.dead.subscribe().wait_for(|dead| *dead).await;
    }

    /// The names of effects that were cancelled half-way although the process is alive.
    pub(super) fn broken_off(&self) -> Vec<String> {
        self.inner().broken_off.clone()
    }

    /// Runs an effect that must not be cancelled, even if the call that it belongs to is.
    pub(super) async fn whole<T>(&self, name: &str, act: impl Future<Output = T>) -> T {
        let mut half = Half {
            mortal: self,
            name: Some(name.to_owned()),
        };
        let done = act.await;
        half.name = None;
        done
    }

    /// Makes the process crash at its `nth` effect from now; the first is 1.
    pub(super) fn crash_at(&self, nth: usize, when: CrashTiming) {
        let mut inner = self.inner();
        inner.trip = Some((inner.effects.len() + nth, when));
    }

    pub(super) fn effects(&self) -> Vec<String> {
        self.inner().effects.clone()
    }

    pub(super) fn hits(&self) -> usize {
        self.inner().hits
    }

    pub(super) fn inject_fault(&self, fault: HostFault) {
        self.inner().faults.push(fault);
    }

    pub(super) fn clear(&self) {
        let mut inner = self.inner();
        inner.faults.clear();
        inner.trip = None;
    }

    /// The fault that applies to this command, if any; counts it down.
    pub(super) fn fault_of(&self, command: &str) -> Option<HostFault> {
        let mut inner = self.inner();
        let meant = |fault: &HostFault| command.contains(&fault.command);
        let at = inner.faults.iter().position(meant)?;
        inner.hits += 1;
        let fault = inner.faults[at].clone();
        if fault.times == 1 {
            inner.faults.remove(at);
        } else {
            inner.faults[at].times = fault.times.saturating_sub(1);
        }
        Some(fault)
    }

    /// Executes an effect, unless the process is dead or crashes at it.
    pub(super) async fn effect<T>(
        &self,
        name: String,
        effect: impl Future<Output = T>,
        begin: impl FnOnce(),
    ) -> T {
        let (due, number) = {
            let mut inner = self.inner();
            if !self.is_dead() {
                inner.effects.push(name);
            }
            let now = inner.effects.len();
            let due = inner
                .trip
                .filter(|(at, _)| *at == now)
                .map(|(_, when)| when);
            if due.is_some() {
                inner.trip = None;
            }
            (due, now)
        };
        match due {
            Some(CrashTiming::Before) => self.die(),
            Some(CrashTiming::During) => {
                begin();
                self.die();
            }
            Some(CrashTiming::After) | None => {}
        }
        if self.is_dead() {
            return pending().await;
        }
        let lasting = async {
            // Other tasks run in between, before the effect and after it.
            tokio::time::sleep(span(number)).await;
            let done = effect.await;
            tokio::time::sleep(span(number + 1)).await;
            done
        };
        let done = tokio::select! {
            biased;
            () = self.death() => pending().await,
            done = lasting => done,
        };
        if due == Some(CrashTiming::After) {
            self.die();
            return pending().await;
        }
        done
    }

    /// Executes a read access, unless the process is dead.
    pub(super) async fn observe<T>(&self, look: impl Future<Output = T>) -> T {
        if self.is_dead() {
            return pending().await;
        }
        look.await
    }
}

/// Half of the time that the nth effect takes: different from its neighbours', and reproducible.
fn span(number: usize) -> Duration {
    Duration::from_micros((number as u64 * 7_919) % 9_973)
}
