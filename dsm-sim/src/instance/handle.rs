//! What tests turn most often, without the detour over the control port, which has all knobs.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use crate::nas::settings::Settings;
use crate::options::Builder;
use crate::server::Server;
use crate::server::fault::Rule;
use crate::server::journal::Entry;

/// What tests turn most often at a simulator of either kind, [`DsmSim`](crate::DsmSim) and
/// [`Embedded`](crate::Embedded).
#[derive(Debug)]
pub struct Handle {
    pub(crate) server: Arc<Server>,
    pub(crate) builder: Builder,
}

/// How much was asked of the NAS since the start or the last reset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    /// HTTP requests.
    pub requests: u64,
    /// Bytes of their queries and bodies.
    pub received: u64,
    /// Bytes of the answers' bodies.
    pub sent: u64,
    /// The most HTTP requests that were in work at a time, from their arrival to their answer; one that hangs is in work.
    pub most_in_flight: u64,
    /// Calls by `API.method`; the calls of a compound count one by one.
    pub calls: BTreeMap<String, u64>,
}

impl Handle {
    /// Lets something go wrong with calls to come.
    pub fn add_fault(&self, rule: Rule) {
        self.server.faults().add(rule);
    }

    /// Ends all faults; calls that were left hanging go on.
    pub fn clear_faults(&self) {
        self.server.clear_faults();
    }

    /// Moves the NAS's clock forward: sessions expire, Auto Block ends, deleted LUNs vanish, without waiting for it.
    pub fn advance_clock(&self, by: Duration) {
        let millis = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.server.clock.advance(millis);
    }

    /// Everything that persists, as `GET /state` of the control port answers it.
    ///
    /// # Errors
    /// Something had changed by itself since the last look, and that cannot be saved.
    pub fn state(&self) -> io::Result<Value> {
        let now = self.server.clock.now();
        self.server.nas().change(now, |nas, _| nas.dump(now))
    }

    /// Every call since the start or the last reset, oldest first; of very many, the newest 100,000.
    pub fn journal(&self) -> Vec<Entry> {
        self.server.journal().since(0).1
    }

    /// How many requests came in, and how many calls of each method.
    pub fn counters(&self) -> Counters {
        let journal = self.server.journal();
        let (carried, calls) = journal.counters();
        Counters {
            requests: carried.requests,
            received: carried.received,
            sent: carried.sent,
            most_in_flight: carried.most_in_flight,
            calls: calls.clone(),
        }
    }

    /// The switches as they are.
    pub fn settings(&self) -> Settings {
        self.server.change_settings(|settings| settings.clone())
    }

    /// Turns switches, from the next call on.
    pub fn change_settings(&self, change: impl FnOnce(&mut Settings)) {
        self.server.change_settings(change);
    }

    /// Every session id is unknown from now on, as after a restart of DSM.
    pub fn expire_sessions(&self) {
        self.server.nas().nas.auth.forget_sessions();
    }

    /// Makes it a fresh NAS: no LUN, no target, no session, no fault, an empty journal, the settings of the start.
    ///
    /// # Errors
    /// The change cannot be saved.
    pub fn reset(&self) -> io::Result<()> {
        self.server.reset(&self.builder)
    }
}
