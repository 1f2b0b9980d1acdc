//! The running NAS: passes calls to the state machine and adds latency, injected faults and the journal.

pub(crate) mod compound;
pub(crate) mod fault;
pub(crate) mod http;
pub(crate) mod journal;
pub(crate) mod listener;

use crate::nas::call::envelope;
use crate::nas::call::refused;
use parking_lot::{Mutex, MutexGuard};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::Value;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::{RwLock, RwLockWriteGuard, oneshot, watch};
use tokio::task::block_in_place;

use crate::nas::call::{Call, Reply};
use crate::nas::clock::millis;
use crate::nas::clock::{Clock, Millis};
use crate::nas::code::Refusal;
use crate::nas::settings::Settings;
use crate::nas::timing::{Latency, Queue};
use crate::options::Builder;
use crate::server::fault::{Fault, Hit, Plan};
use crate::server::journal::{Entry, Journal, redacted};
use crate::storage::transaction::DurableNas;

/// A decoded request to the Web API.
#[derive(Debug)]
pub(crate) struct Request {
    /// The call, or why the request contains none.
    pub(crate) call: Result<Call, Refusal>,
    pub(crate) client: String,
}

/// The reply to an HTTP request.
#[derive(Debug)]
pub(crate) enum Outcome {
    Json {
        body: Value,
        cookie: Option<String>,
    },
    /// The first half of this body.
    Garbled(Value),
    /// An HTML error page with this status.
    Page(u16),
    /// No reply: the connection is closed.
    Cut,
}

/// The result of one call, which may be part of a compound.
#[derive(Debug)]
pub(crate) enum Step {
    Answered(Reply),
    Garbled(Reply),
    Page(u16),
    Cut,
}

impl Step {
    /// The reply to a request with just this call.
    pub(crate) fn outcome(self) -> Outcome {
        match self {
            Self::Answered(reply) => Outcome::Json {
                body: envelope(&reply.answer),
                cookie: reply.cookie,
            },
            Self::Garbled(reply) => Outcome::Garbled(envelope(&reply.answer)),
            Self::Page(status) => Outcome::Page(status),
            Self::Cut => Outcome::Cut,
        }
    }
}

/// Whether a call waits for a running compound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// A call on its own: waits while a compound has exclusive access.
    Own,
    /// A call of a compound, which already has its turn.
    Compound,
}

/// A call in progress.
#[derive(Debug)]
pub(crate) struct Started {
    at: Instant,
    hit: Option<Hit>,
    entry: Entry,
    /// Number of its journal entry, if a hang recorded it before its end.
    hang_entry: Option<u64>,
}

impl Started {
    /// A call that starts now.
    pub(crate) fn now(number: u64, now: Millis, call: &Call, hit: Option<Hit>) -> Self {
        Self {
            at: Instant::now(),
            hit,
            entry: entry(number, now, call, hit),
            hang_entry: None,
        }
    }

    /// The fault injected into it.
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.hit.map(|hit| hit.fault)
    }
}

/// The running NAS.
#[derive(Debug)]
pub(crate) struct Server {
    nas: Mutex<DurableNas>,
    pub(crate) clock: Clock,
    latency: Mutex<Latency>,
    queue: Mutex<Queue>,
    faults: Mutex<Plan>,
    journal: Mutex<Journal>,
    /// Calls hold it for reading. A compound that must not be interleaved holds it for writing.
    turns: RwLock<()>,
    /// Wakes hanging calls, so that they check whether their fault still exists.
    removed: watch::Sender<()>,
}

impl Server {
    pub(crate) fn new(
        mut nas: DurableNas,
        clock: Clock,
        latency: Latency,
        journal: Journal,
    ) -> Self {
        let fault_rng = StdRng::from_rng(&mut nas.nas.rng);
        Self {
            nas: Mutex::new(nas),
            clock,
            latency: Mutex::new(latency),
            queue: Mutex::default(),
            faults: Mutex::new(Plan::new(fault_rng)),
            journal: Mutex::new(journal),
            turns: RwLock::default(),
            removed: watch::Sender::new(()),
        }
    }

    pub(crate) fn nas(&self) -> MutexGuard<'_, DurableNas> {
        self.nas.lock()
    }

    pub(crate) fn faults(&self) -> MutexGuard<'_, Plan> {
        self.faults.lock()
    }

    pub(crate) fn journal(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock()
    }

    pub(crate) fn latency(&self) -> Latency {
        *self.latency.lock()
    }

    /// Sets the latency profile of future calls.
    pub(crate) fn set_latency(&self, latency: Latency) {
        *self.latency.lock() = latency;
        self.nas().nas.config.timing = latency.timing();
    }

    /// Removes all faults. Hanging calls continue.
    pub(crate) fn clear_faults(&self) {
        self.faults().clear();
        self.removed.send_replace(());
    }

    /// Removes one fault. Returns whether it existed.
    pub(crate) fn remove_fault(&self, id: u64) -> bool {
        let existed = self.faults().remove(id);
        self.removed.send_replace(());
        existed
    }

    /// Waits until this fault is removed.
    async fn removal_of(&self, id: u64) {
        let mut removed = self.removed.subscribe();
        while self.faults().has(id) {
            // The sender lives as long as the server, so this returns only on a removal.
            let _ = removed.changed().await;
        }
    }

    /// Changes settings, from the next call on.
    pub(crate) fn change_settings<T>(&self, change: impl FnOnce(&mut Settings) -> T) -> T {
        let nas = &mut self.nas().nas;
        let result = change(&mut nas.settings);
        if !nas.settings.auto_block {
            nas.auth.clear_auto_block();
        }
        result
    }

    /// Resets to a fresh NAS with the initial configuration.
    pub(crate) fn reset(&self, builder: &Builder) -> io::Result<()> {
        self.clear_faults();
        self.set_latency(builder.latency);
        let now = self.clock.now();
        self.nas().change(now, |nas, _| {
            nas.reset(builder.volumes.iter().cloned());
            nas.set_uptime(now, millis(builder.uptime));
            nas.settings = builder.settings.clone();
            nas.auth.set_accounts(builder.all_accounts());
        })?;
        self.journal().clear();
        Ok(())
    }

    /// Serves a request. A request that has to wait runs in its own task, so that a client that disconnects does not cancel it.
    /// One that does not wait runs inline, which saves two thread switches.
    pub(crate) async fn serve(self: Arc<Self>, request: Request) -> Outcome {
        let (mut client, reply) = oneshot::channel();
        let mut work = Box::pin(async move {
            let outcome = self.handle(request, &mut client).await;
            // An error means that the client has disconnected.
            let _ = client.send(outcome);
        });
        if futures::poll!(work.as_mut()).is_pending() {
            tokio::spawn(work);
        }
        reply.await.unwrap_or(Outcome::Cut)
    }

    async fn handle(&self, request: Request, client: &mut oneshot::Sender<Outcome>) -> Outcome {
        let number = self.journal().request();
        let _in_flight = InFlight(self);
        let call = match request.call {
            Ok(call) => call,
            Err(refusal) => {
                tracing::debug!(
                    client = request.client,
                    code = refusal.code,
                    why = refusal.why,
                    "request refused"
                );
                return Outcome::Json {
                    body: envelope(&Err(refusal)),
                    cookie: None,
                };
            }
        };
        if call.api == compound::API {
            return compound::serve(self, number, &call, client).await;
        }
        self.step(number, &call, Turn::Own, client).await.outcome()
    }

    /// Blocks other calls while a compound runs, unless the setting `compounds_interleave` is on.
    pub(crate) async fn exclusive_turn(&self) -> Option<RwLockWriteGuard<'_, ()>> {
        let exclusive = !self.nas().nas.settings.compounds_interleave;
        if exclusive {
            Some(self.turns.write().await)
        } else {
            None
        }
    }

    /// Runs one call, with latency and its fault, if any.
    pub(crate) async fn step(
        &self,
        number: u64,
        call: &Call,
        turn: Turn,
        client: &mut oneshot::Sender<Outcome>,
    ) -> Step {
        let hit = self.faults().hit(call);
        let mut started = Started::now(number, self.clock.now(), call, hit);
        if let Some(step) = self.before(&mut started, client).await {
            return step;
        }
        let reply = {
            let _turn = match turn {
                Turn::Own => Some(self.turns.read().await),
                Turn::Compound => None,
            };
            self.apply(call).await
        };
        self.after(started, reply).await
    }

    /// Applies faults that act before the call. If this returns a step, the call is not made.
    pub(crate) async fn before(
        &self,
        started: &mut Started,
        client: &mut oneshot::Sender<Outcome>,
    ) -> Option<Step> {
        let hit = started.hit?;
        match hit.fault {
            Fault::Refuse { code, after: false } => {
                let reply = refused(injected(code));
                self.note(started, &reply);
                Some(Step::Answered(reply))
            }
            Fault::Http {
                status,
                after: false,
            } => {
                self.note(started, &refused(injected(status.into())));
                Some(Step::Page(status))
            }
            Fault::LoseCall => {
                started.entry.note = Some("the call was lost; nothing was changed".to_owned());
                self.record(started);
                Some(Step::Cut)
            }
            Fault::Hang => {
                // Record a hanging call in the journal while it hangs.
                started.hang_entry = Some(self.journal().push(started.entry.clone()));
                tokio::select! {
                    () = self.removal_of(hit.id) => None,
                    () = client.closed() => {
                        let why = "the client disconnected while the call was hanging; nothing was changed";
                        started.entry.note = Some(why.to_owned());
                        self.record(started);
                        Some(Step::Cut)
                    }
                }
            }
            Fault::Refuse { after: true, .. }
            | Fault::Http { after: true, .. }
            | Fault::LoseReply
            | Fault::Delay { .. }
            | Fault::Garble => None,
        }
    }

    /// Applies faults that act after the call was made.
    pub(crate) async fn after(&self, mut started: Started, reply: Reply) -> Step {
        if let Some(Fault::Delay { ms }) = started.fault() {
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
        let fault = started.fault();
        let reply = match fault {
            Some(Fault::Refuse { code, after: true }) => refused(injected(code)),
            Some(_) | None => reply,
        };
        self.note(&mut started, &reply);
        match fault {
            Some(Fault::LoseReply) => Step::Cut,
            Some(Fault::Garble) => Step::Garbled(reply),
            Some(Fault::Http { status, .. }) => Step::Page(status),
            Some(Fault::Refuse { .. } | Fault::Delay { .. } | Fault::Hang | Fault::LoseCall)
            | None => Step::Answered(reply),
        }
    }

    async fn apply(&self, call: &Call) -> Reply {
        let latency = self.latency();
        if latency != Latency::Instant {
            let rows = {
                let state = &self.nas().nas.state;
                if call.api.ends_with("Target") {
                    state.targets.len()
                } else {
                    state.luns.len()
                }
            };
            let wait =
                self.queue
                    .lock()
                    .wait(latency, self.clock.now(), &call.api, &call.method, rows);
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
        let apply = || self.nas().apply(self.clock.now(), call);
        let reads = matches!(
            call.method.as_str(),
            "get" | "list" | "query" | "info" | "getinfo"
        );
        // Changes wait for the disk, a program lists a target's sessions, and a key takes long to generate: do not block other
        // requests.
        let slow = ["SYNO.Core.ISCSI.Target", "SYNO.API.Encryption"];
        if reads && !slow.contains(&call.api.as_str()) {
            apply()
        } else {
            run_blocking(apply)
        }
    }

    fn note(&self, started: &mut Started, reply: &Reply) {
        let entry = &mut started.entry;
        if let Err(refusal) = &reply.answer {
            entry.code = Some(refusal.code);
            entry.note = Some(refusal.why.clone());
        }
        entry.micros = u64::try_from(started.at.elapsed().as_micros()).unwrap_or(u64::MAX);
        tracing::debug!(
            api = entry.api,
            method = entry.method,
            code = entry.code,
            why = entry.note,
            "call"
        );
        self.record(started);
    }

    /// Adds the entry to the journal, or replaces the one that was added when the call began to hang.
    fn record(&self, started: &Started) {
        let entry = started.entry.clone();
        let mut journal = self.journal();
        match started.hang_entry {
            None => {
                journal.push(entry);
            }
            Some(seq) => journal.amend(seq, |kept| *kept = Entry { seq, ..entry }),
        }
    }
}

/// Counts a request as in flight until it is dropped.
struct InFlight<'a>(&'a Server);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.journal().request_done();
    }
}

fn entry(request: u64, at: Millis, call: &Call, hit: Option<Hit>) -> Entry {
    Entry {
        seq: 0,
        request,
        at,
        api: call.api.clone(),
        version: call.version,
        method: call.method.clone(),
        params: redacted(&call.params),
        code: None,
        fault: hit.map(|hit| hit.fault.name()),
        note: None,
        micros: 0,
        client: call.caller.client.to_string(),
    }
}

/// The refusal of an injected fault.
fn injected(code: u32) -> Refusal {
    Refusal {
        code,
        why: "injected fault".to_owned(),
        errors: None,
    }
}

/// Runs blocking work without blocking other tasks. On a single-threaded runtime it just runs the work.
pub(crate) fn run_blocking<T>(work: impl FnOnce() -> T) -> T {
    if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        work()
    } else {
        block_in_place(work)
    }
}

// Ignores poisoning: a panic under a lock is a bug, but the content is consistent, since it is changed by plain assignments.
