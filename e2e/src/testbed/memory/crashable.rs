//! A process that can crash at any of its effects, before or after it. Once crashed it has no more effects, and its clients get
//! an error.

use parking_lot::{Mutex, MutexGuard};
use std::future::{Future, pending};
use std::time::Duration;

use tokio::sync::watch;

use crate::testbed::{CrashTiming, HostFault};

/// An operation in progress; `name` is cleared when it completes.
struct InProgress<'a> {
    crashable: &'a CrashableProcess,
    name: Option<String>,
}

impl Drop for InProgress<'_> {
    fn drop(&mut self) {
        if let Some(name) = self.name.take()
            && !self.crashable.is_dead()
        {
            self.crashable.inner().cancelled.push(name);
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
    armed_crash: Option<(usize, CrashTiming)>,
    faults: Vec<HostFault>,
    /// The number of faults that were applied.
    hits: usize,
    /// The names of effects that were cancelled half-way although the process is alive.
    cancelled: Vec<String>,
}

impl CrashableProcess {
    pub(super) fn start() -> Self {
        Self {
            inner: Mutex::default(),
            dead: watch::Sender::new(false),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
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
    pub(super) fn cancelled(&self) -> Vec<String> {
        self.inner().cancelled.clone()
    }

    /// Runs an effect that must not be cancelled, even if the call that it belongs to is.
    pub(super) async fn must_complete<T>(&self, name: &str, effect: impl Future<Output = T>) -> T {
        let mut operation = InProgress {
            crashable: self,
            name: Some(name.to_owned()),
        };
        let done = effect.await;
        operation.name = None;
        done
    }

    /// Makes the process crash at its `nth` effect from now; the first is 1.
    pub(super) fn crash_at(&self, nth: usize, when: CrashTiming) {
        let mut inner = self.inner();
        inner.armed_crash = Some((inner.effects.len() + nth, when));
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
        inner.armed_crash = None;
    }

    /// The fault that applies to this command, if any; counts it down.
    pub(super) fn fault_of(&self, command: &str) -> Option<HostFault> {
        let mut inner = self.inner();
        let matches = |fault: &HostFault| command.contains(&fault.command);
        let index = inner.faults.iter().position(matches)?;
        inner.hits += 1;
        let fault = inner.faults[index].clone();
        if fault.times == 1 {
            inner.faults.remove(index);
        } else {
            inner.faults[index].times = fault.times.saturating_sub(1);
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
        let (timing, number) = {
            let mut inner = self.inner();
            if !self.is_dead() {
                inner.effects.push(name);
            }
            let now = inner.effects.len();
            let timing = inner
                .armed_crash
                .filter(|(at, _)| *at == now)
                .map(|(_, when)| when);
            if timing.is_some() {
                inner.armed_crash = None;
            }
            (timing, now)
        };
        match timing {
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
        let timed = async {
            // Other tasks run in between, before the effect and after it.
            tokio::time::sleep(half_duration(number)).await;
            let done = effect.await;
            tokio::time::sleep(half_duration(number + 1)).await;
            done
        };
        let done = tokio::select! {
            biased;
            () = self.death() => pending().await,
            done = timed => done,
        };
        if timing == Some(CrashTiming::After) {
            self.die();
            return pending().await;
        }
        done
    }

    /// Executes a read access, unless the process is dead.
    pub(super) async fn observe<T>(&self, access: impl Future<Output = T>) -> T {
        if self.is_dead() {
            return pending().await;
        }
        access.await
    }
}

/// Half of the time that the nth effect takes: different from its neighbours', and reproducible.
fn half_duration(number: usize) -> Duration {
    Duration::from_micros((number as u64 * 7_919) % 9_973)
}
