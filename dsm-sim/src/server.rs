//! The NAS in motion: takes the core and adds what a NAS on a network has besides: latency, faults, a journal.

pub(crate) mod compound;
pub(crate) mod fault;
pub(crate) mod http;
pub(crate) mod journal;
pub(crate) mod listener;

use crate::nas::call::envelope;
use crate::nas::call::refused;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
use crate::server::journal::{Entry, Journal, shown};
use crate::storage::transaction::DurableNas;

/// A request to the Web API, decoded as far as DSM's front door does.
#[derive(Debug)]
pub(crate) struct Request {
    /// The call, or why the request holds none.
    pub(crate) call: Result<Call, Refusal>,
    pub(crate) client: String,
}

/// What goes back over the wire.
#[derive(Debug)]
pub(crate) enum Outcome {
    Json {
        body: Value,
        cookie: Option<String>,
    },
    /// Half a body.
    Garbled(Value),
    /// An HTML page with this status.
    Page(u16),
    /// Nothing: the connection is closed.
    Cut,
}

/// What has come of one call.
#[derive(Debug)]
pub(crate) enum Step {
    Answered(Reply),
    Garbled(Reply),
    Page(u16),
    Cut,
}

impl Step {
    /// The answer to a request that holds just this call.
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

/// In whose turn a call is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// In its own: it waits while a compound holds others back.
    Own,
    /// In that of the compound it is part of.
    Compound,
}

/// A call that is under way.
#[derive(Debug)]
pub(crate) struct Started {
    at: Instant,
    hit: Option<Hit>,
    entry: Entry,
    /// Its number in the journal, when it got there before its end.
    hung: Option<u64>,
}

impl Started {
    /// A call that begins now.
    pub(crate) fn now(number: u64, now: Millis, call: &Call, hit: Option<Hit>) -> Self {
        Self {
            at: Instant::now(),
            hit,
            entry: entry(number, now, call, hit),
            hung: None,
        }
    }

    /// The fault that hits it.
    pub(crate) fn fault(&self) -> Option<Fault> {
        self.hit.map(|hit| hit.fault)
    }
}

/// The running NAS.
#[derive(Debug)]
pub(crate) struct Server {
    core: Mutex<DurableNas>,
    pub(crate) clock: Clock,
    latency: Mutex<Latency>,
    queue: Mutex<Queue>,
    faults: Mutex<Plan>,
    journal: Mutex<Journal>,
    /// Shared by all calls; a compound that lets nobody in has it alone.
    turns: RwLock<()>,
    /// Tells hanging calls to look whether their fault is still there.
    removed: watch::Sender<()>,
}

impl Server {
    pub(crate) fn new(
        mut core: DurableNas,
        clock: Clock,
        latency: Latency,
        journal: Journal,
    ) -> Self {
        let luck = StdRng::from_rng(&mut core.nas.rng);
        Self {
            core: Mutex::new(core),
            clock,
            latency: Mutex::new(latency),
            queue: Mutex::default(),
            faults: Mutex::new(Plan::new(luck)),
            journal: Mutex::new(journal),
            turns: RwLock::default(),
            removed: watch::Sender::new(()),
        }
    }

    pub(crate) fn nas(&self) -> MutexGuard<'_, DurableNas> {
        lock(&self.core)
    }

    pub(crate) fn faults(&self) -> MutexGuard<'_, Plan> {
        lock(&self.faults)
    }

    pub(crate) fn journal(&self) -> MutexGuard<'_, Journal> {
        lock(&self.journal)
    }

    pub(crate) fn latency(&self) -> Latency {
        *lock(&self.latency)
    }

    /// From now on calls take so long.
    pub(crate) fn set_latency(&self, latency: Latency) {
        *lock(&self.latency) = latency;
        self.nas().nas.config.timing = latency.timing();
    }

    /// Ends all faults; calls that hang because of one go on.
    pub(crate) fn clear_faults(&self) {
        self.faults().clear();
        self.removed.send_replace(());
    }

    /// Ends one fault; whether it was there.
    pub(crate) fn remove_fault(&self, id: u64) -> bool {
        let was_there = self.faults().remove(id);
        self.removed.send_replace(());
        was_there
    }

    /// Waits until this fault is no more.
    async fn removal_of(&self, id: u64) {
        let mut removed = self.removed.subscribe();
        while self.faults().has(id) {
            // The sender lives as long as the server does, so this ends with a removal.
            let _ = removed.changed().await;
        }
    }

    /// Turns switches; they count from the next call on.
    pub(crate) fn change_settings<T>(&self, change: impl FnOnce(&mut Settings) -> T) -> T {
        let nas = &mut self.nas().nas;
        let result = change(&mut nas.settings);
        if !nas.settings.auto_block {
            nas.auth.unblock();
        }
        result
    }

    /// Makes it a fresh NAS, as it was first started.
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

    /// Serves a request. What waits for anything goes on in a task of its own: a client that hangs up does not stop what it
    /// has asked for. What waits for nothing is done at once, and spares two changes of the thread.
    pub(crate) async fn serve(self: Arc<Self>, request: Request) -> Outcome {
        let (mut answer, answered) = oneshot::channel();
        let mut work = Box::pin(async move {
            let outcome = self.handle(request, &mut answer).await;
            // The client may be gone by now, and then nobody wants the answer.
            let _ = answer.send(outcome);
        });
        if futures::poll!(work.as_mut()).is_pending() {
            tokio::spawn(work);
        }
        answered.await.unwrap_or(Outcome::Cut)
    }

    async fn handle(&self, request: Request, client: &mut oneshot::Sender<Outcome>) -> Outcome {
        let number = self.journal().request();
        let _in_work = InFlight(self);
        let call = match request.call {
            Ok(call) => call,
            Err(refusal) => {
                tracing::debug!(
                    client = request.client,
                    code = refusal.code,
                    why = refusal.why,
                    "refused"
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

    /// Holds other calls back, where the settings say that a compound does so.
    pub(crate) async fn compounds_turn(&self) -> Option<RwLockWriteGuard<'_, ()>> {
        let alone = !self.nas().nas.settings.compounds_interleave;
        if alone {
            Some(self.turns.write().await)
        } else {
            None
        }
    }

    /// One call, with the fault that is due and the time that it takes.
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
            self.act(call).await
        };
        self.after(started, reply).await
    }

    /// What a fault does before the call does anything; an answer here is the end of it.
    pub(crate) async fn before(
        &self,
        started: &mut Started,
        client: &mut oneshot::Sender<Outcome>,
    ) -> Option<Step> {
        let hit = started.hit?;
        match hit.fault {
            Fault::Refuse { code, after: false } => {
                let reply = refused(object_of(code));
                self.note(started, &reply);
                Some(Step::Answered(reply))
            }
            Fault::Http {
                status,
                after: false,
            } => {
                self.note(started, &refused(object_of(status.into())));
                Some(Step::Page(status))
            }
            Fault::LoseCall => {
                started.entry.note = Some("the call was lost; nothing was done".to_owned());
                self.record(started);
                Some(Step::Cut)
            }
            Fault::Hang => {
                // A hanging call is in the journal while it hangs.
                started.hung = Some(self.journal().push(started.entry.clone()));
                tokio::select! {
                    () = self.removal_of(hit.id) => None,
                    () = client.closed() => {
                        let why = "the client left while the call was hanging; nothing was done";
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

    /// What a fault does to the answer of a call that was carried out.
    pub(crate) async fn after(&self, mut started: Started, reply: Reply) -> Step {
        if let Some(Fault::Delay { ms }) = started.fault() {
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
        let fault = started.fault();
        let reply = match fault {
            Some(Fault::Refuse { code, after: true }) => refused(object_of(code)),
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

    async fn act(&self, call: &Call) -> Reply {
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
                lock(&self.queue).wait(latency, self.clock.now(), &call.api, &call.method, rows);
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
        let apply = || self.nas().apply(self.clock.now(), call);
        let reads = matches!(
            call.method.as_str(),
            "get" | "list" | "query" | "info" | "getinfo"
        );
        // Changes wait for the disk, a target's sessions are asked of a program, a key takes long to make; the other
        // requests shall not wait.
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

    /// Puts the entry into the journal, or in the place of what it was when the call began to hang.
    fn record(&self, started: &Started) {
        let entry = started.entry.clone();
        let mut journal = self.journal();
        match started.hung {
            None => {
                journal.push(entry);
            }
            Some(seq) => journal.amend(seq, |kept| *kept = Entry { seq, ..entry }),
        }
    }
}

/// A request, until it is answered or given up.
struct InFlight<'a>(&'a Server);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.journal().done();
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
        params: shown(&call.params),
        code: None,
        fault: hit.map(|hit| hit.fault.name()),
        note: None,
        micros: 0,
        client: call.caller.client.to_string(),
    }
}

/// The refusal of a fault.
fn object_of(code: u32) -> Refusal {
    Refusal {
        code,
        why: "a fault that was asked for".to_owned(),
        errors: None,
    }
}

/// Does what takes a while, and lets other tasks go on; on a runtime of one thread there is nobody to go on.
pub(crate) fn run_blocking<T>(work: impl FnOnce() -> T) -> T {
    if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        work()
    } else {
        block_in_place(work)
    }
}

// A panic while a lock is held is a bug, but the lock's content is whole: the state is changed by plain assignments.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
