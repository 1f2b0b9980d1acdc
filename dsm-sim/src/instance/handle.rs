//! [`Handle`]: the endpoints of the control port that tests need most, as Rust methods.

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

/// Controls a simulator of either kind, [`DsmSim`](crate::DsmSim) or [`Embedded`](crate::Embedded). The control port can do
/// more.
#[derive(Debug)]
pub struct Handle {
    pub(crate) server: Arc<Server>,
    pub(crate) builder: Builder,
}

/// Traffic since the start or the last reset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    /// HTTP requests.
    pub requests: u64,
    /// Bytes of their queries and bodies.
    pub received: u64,
    /// Bytes of the replies' bodies.
    pub sent: u64,
    /// Maximum number of HTTP requests in flight at a time, including hanging ones.
    pub most_in_flight: u64,
    /// Calls by `API.method`; the calls of a compound count one by one.
    pub calls: BTreeMap<String, u64>,
}

impl Handle {
    /// Injects a fault into future calls.
    pub fn add_fault(&self, rule: Rule) {
        self.server.faults().add(rule);
    }

    /// Removes all faults. Hanging calls continue.
    pub fn clear_faults(&self) {
        self.server.clear_faults();
    }

    /// Advances the NAS's clock: sessions expire, Auto Block ends and deleted LUNs vanish without waiting.
    pub fn advance_clock(&self, by: Duration) {
        let millis = u64::try_from(by.as_millis()).unwrap_or(u64::MAX);
        self.server.clock.advance(millis);
    }

    /// The persistent state, as `GET /state` of the control port returns it.
    ///
    /// # Errors
    /// Work that DSM has finished since the last call cannot be saved.
    pub fn state(&self) -> io::Result<Value> {
        let now = self.server.clock.now();
        self.server.nas().change(now, |nas, _| nas.dump(now))
    }

    /// The calls since the start or the last reset, oldest first; at most the newest 100,000.
    pub fn journal(&self) -> Vec<Entry> {
        self.server.journal().since(0).1
    }

    /// Number of requests, bytes, and calls of each method.
    pub fn counters(&self) -> Counters {
        let journal = self.server.journal();
        let (traffic, calls) = journal.counters();
        Counters {
            requests: traffic.requests,
            received: traffic.received,
            sent: traffic.sent,
            most_in_flight: traffic.most_in_flight,
            calls: calls.clone(),
        }
    }

    /// The current settings.
    pub fn settings(&self) -> Settings {
        self.server.change_settings(|settings| settings.clone())
    }

    /// Changes settings, from the next call on.
    pub fn change_settings(&self, change: impl FnOnce(&mut Settings)) {
        self.server.change_settings(change);
    }

    /// Invalidates all session ids, as a restart of DSM does.
    pub fn expire_sessions(&self) {
        self.server.nas().nas.auth.forget_sessions();
    }

    /// Resets to a fresh NAS: no LUNs, targets, sessions or faults, an empty journal, and the initial settings.
    ///
    /// # Errors
    /// The change cannot be saved.
    pub fn reset(&self) -> io::Result<()> {
        self.server.reset(&self.builder)
    }
}
