//! The journal: every Web API call with its result. Secrets are hidden before they get in.

pub(crate) mod file;
pub(crate) mod filter;

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;
use serde_json::Value;

use crate::nas::clock::Millis;
use crate::nas::params::Params;
use crate::secret_names::is_secret;

use file::JournalFile;

/// Maximum number of entries in memory; older ones are dropped.
const MAX_ENTRIES: usize = 100_000;
/// Replacement for a secret.
const HIDDEN: &str = "***";

/// One call and its result.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// Sequence number, from 1, without gaps.
    pub seq: u64,
    /// Number of the HTTP request. The calls of one compound share it.
    pub request: u64,
    /// Time of arrival by the NAS's clock, in milliseconds since 1970.
    pub at: Millis,
    /// API name: `SYNO.Core.ISCSI.LUN`.
    pub api: String,
    /// Version of the API.
    pub version: u32,
    /// Method name: `create`.
    pub method: String,
    /// Parameters as received, with secrets hidden.
    pub params: BTreeMap<String, String>,
    /// Error code; `None` for a success and for a call that still hangs.
    pub code: Option<u32>,
    /// Name of the fault that hit it.
    pub fault: Option<&'static str>,
    /// Human-readable reason of the refusal.
    pub note: Option<String>,
    /// Duration in the simulator in µs, including simulated latency.
    pub micros: u64,
    /// Address and port of the client.
    pub client: String,
}

/// HTTP traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// HTTP requests.
    pub(crate) requests: u64,
    /// Bytes of their queries and bodies.
    pub(crate) received: u64,
    /// Bytes of the replies' bodies.
    pub(crate) sent: u64,
    /// Maximum number of HTTP requests in flight at a time.
    pub(crate) most_in_flight: u64,
}

/// The journal and the counters.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    entries: VecDeque<Entry>,
    last: u64,
    traffic: Traffic,
    /// HTTP requests in flight.
    in_flight: u64,
    calls: BTreeMap<String, u64>,
    file: Option<JournalFile>,
}

impl Journal {
    /// A journal that is also written to a file, one JSON object per line.
    pub(crate) fn to_file(file: Option<JournalFile>) -> Self {
        Self {
            file,
            ..Self::default()
        }
    }

    /// Counts an HTTP request as in flight. Returns its number.
    pub(crate) fn request(&mut self) -> u64 {
        self.traffic.requests += 1;
        self.in_flight += 1;
        self.traffic.most_in_flight = self.traffic.most_in_flight.max(self.in_flight);
        self.traffic.requests
    }

    /// Ends a request.
    pub(crate) fn request_done(&mut self) {
        self.in_flight -= 1;
    }

    /// Counts the bytes of a request and of its reply.
    pub(crate) fn add_traffic(&mut self, received: usize, sent: usize) {
        self.traffic.received += received as u64;
        self.traffic.sent += sent as u64;
    }

    /// Adds an entry. Returns its sequence number.
    pub(crate) fn push(&mut self, mut entry: Entry) -> u64 {
        self.last += 1;
        entry.seq = self.last;
        *self
            .calls
            .entry(format!("{}.{}", entry.api, entry.method))
            .or_default() += 1;
        if let Some(file) = &mut self.file
            && let Err(error) = serde_json::to_string(&entry)
                .map_err(Into::into)
                .and_then(|line| file.add(line))
        {
            tracing::warn!(%error, "cannot write to the journal file");
        }
        if self.entries.len() == MAX_ENTRIES {
            self.entries.pop_front();
        }
        self.entries.push_back(entry);
        self.last
    }

    /// Changes an entry that was added before its call had ended.
    pub(crate) fn amend(&mut self, seq: u64, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.entries.iter_mut().rev().find(|entry| entry.seq == seq) {
            change(entry);
        }
    }

    /// The entries from `seq` on, and the `seq` to pass next time.
    pub(crate) fn since(&self, seq: u64) -> (u64, Vec<Entry>) {
        let first = self.entries.partition_point(|entry| entry.seq < seq);
        (
            self.last + 1,
            self.entries.range(first..).cloned().collect(),
        )
    }

    /// The entries of `begin..end` that are still in memory.
    fn between(&self, begin: u64, end: u64) -> std::collections::vec_deque::Iter<'_, Entry> {
        let at = |seq| self.entries.partition_point(|entry| entry.seq < seq);
        self.entries.range(at(begin)..at(end))
    }

    /// The newest entry before `seq`.
    fn last_before(&self, seq: u64) -> Option<&Entry> {
        let at = self.entries.partition_point(|entry| entry.seq < seq);
        self.entries.get(at.checked_sub(1)?)
    }

    /// The traffic, and the number of calls by `API.method`.
    pub(crate) fn counters(&self) -> (Traffic, &BTreeMap<String, u64>) {
        (self.traffic, &self.calls)
    }

    /// Clears everything except the sequence number.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.calls.clear();
        self.traffic = Traffic::default();
    }
}

/// The parameters of a call, with secrets hidden.
pub(crate) fn redacted(params: &Params) -> BTreeMap<String, String> {
    let show = |name: &str, value: &str| {
        if is_secret(name) {
            return HIDDEN.to_owned();
        }
        // The calls of a compound are JSON with their own parameters.
        match serde_json::from_str(value) {
            Ok(mut nested @ (Value::Array(_) | Value::Object(_))) => {
                hide(&mut nested);
                nested.to_string()
            }
            Ok(_) | Err(_) => value.to_owned(),
        }
    };
    params
        .iter()
        .map(|(name, value)| (name.to_owned(), show(name, value)))
        .collect()
}

fn hide(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(hide),
        Value::Object(fields) => {
            for (name, value) in fields {
                if is_secret(name) {
                    *value = HIDDEN.into();
                } else {
                    hide(value);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn entry(api: &str) -> Entry {
        Entry {
            seq: 0,
            request: 1,
            at: 0,
            api: api.to_owned(),
            version: 1,
            method: "get".to_owned(),
            params: BTreeMap::new(),
            code: None,
            fault: None,
            note: None,
            micros: 1,
            client: String::new(),
        }
    }

    #[test]
    fn entries_are_numbered_and_bounded() {
        let mut journal = Journal::default();
        for _ in 0..MAX_ENTRIES + 5 {
            journal.push(entry("A"));
        }
        let (next, entries) = journal.since(0);
        assert_eq!(
            (entries.len(), entries[0].seq, next),
            (MAX_ENTRIES, 6, MAX_ENTRIES as u64 + 6)
        );
        assert_eq!(journal.since(next).1.len(), 0);
        assert_eq!(journal.since(next - 2).1.len(), 2);
        assert_eq!(journal.counters().1["A.get"], MAX_ENTRIES as u64 + 5);
    }

    #[test]
    fn secrets_of_any_name_are_hidden_alone_and_in_a_compound() {
        for name in crate::secret_names::tests::NAMES {
            let compound = serde_json::json!([{"method": "set", name: ["planted"]}]).to_string();
            let params = Params::from_iter([(name, "planted"), ("compound", &compound)]);
            let redacted = redacted(&params);
            assert_eq!(redacted[name], HIDDEN, "{name}");
            assert!(!redacted["compound"].contains("planted"), "{redacted:?}");
        }
    }

    #[test]
    fn secrets_are_hidden() {
        let params = Params::from_iter([
            ("passwd", "a"),
            ("_sid", "b"),
            ("SynoToken", "c"),
            ("account", "d"),
            ("mutual_password", "e"),
            ("additional", r#"["mapped_lun"]"#),
            (
                "compound",
                r#"[{"method":"set","user":"u","password":"planted"},{"mutual_password":["planted"]}]"#,
            ),
        ]);
        let redacted = redacted(&params);
        assert_eq!(redacted["account"], "d");
        assert_eq!(redacted["additional"], r#"["mapped_lun"]"#);
        let compound = &redacted["compound"];
        assert!(
            compound.contains("set") && !compound.contains("planted"),
            "{compound}"
        );
        assert!(
            ["passwd", "_sid", "SynoToken", "mutual_password"]
                .iter()
                .all(|name| redacted[*name] == "***")
        );
    }
}
