//! The journal: every call that came in, with what became of it. Secrets never get in.

pub(crate) mod file;
pub(crate) mod filter;

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;
use serde_json::Value;

use crate::nas::clock::Millis;
use crate::nas::params::Params;
use crate::secret_names::is_secret;

use file::JournalFile;

/// Entries kept in memory; older ones are dropped.
const KEPT: usize = 100_000;
/// What stands in the place of a secret.
const HIDDEN: &str = "***";

/// One call, and what became of it.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// From 1, without gaps.
    pub seq: u64,
    /// The HTTP request that it came in; the calls of one compound share it.
    pub request: u64,
    /// When it came in, by the NAS's clock: milliseconds since 1970.
    pub at: Millis,
    /// `SYNO.Core.ISCSI.LUN`.
    pub api: String,
    /// The API's version.
    pub version: u32,
    /// `create`.
    pub method: String,
    /// As they came, secrets hidden.
    pub params: BTreeMap<String, String>,
    /// The error code; null for a success, and for a call that is still hanging.
    pub code: Option<u32>,
    /// The fault that hit it.
    pub fault: Option<&'static str>,
    /// Why it was refused, for people.
    pub note: Option<String>,
    /// How long it took in the simulator, latency included.
    pub micros: u64,
    /// Address and port of who called.
    pub client: String,
}

/// What went over the wire.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// HTTP requests.
    pub(crate) requests: u64,
    /// Bytes of their queries and bodies.
    pub(crate) received: u64,
    /// Bytes of the answers' bodies.
    pub(crate) sent: u64,
    /// The most HTTP requests that were in work at a time.
    pub(crate) most_in_flight: u64,
}

/// What came in.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    entries: VecDeque<Entry>,
    last: u64,
    carried: Traffic,
    /// HTTP requests in work.
    in_flight: u64,
    calls: BTreeMap<String, u64>,
    file: Option<JournalFile>,
}

impl Journal {
    /// A journal that is also written to a file, one JSON object a line.
    pub(crate) fn to_file(file: Option<JournalFile>) -> Self {
        Self {
            file,
            ..Self::default()
        }
    }

    /// Numbers an HTTP request, which is in work from now on.
    pub(crate) fn request(&mut self) -> u64 {
        self.carried.requests += 1;
        self.in_flight += 1;
        self.carried.most_in_flight = self.carried.most_in_flight.max(self.in_flight);
        self.carried.requests
    }

    /// A request is in work no more.
    pub(crate) fn done(&mut self) {
        self.in_flight -= 1;
    }

    /// Counts the bytes of a request and of its answer.
    pub(crate) fn add_traffic(&mut self, received: usize, sent: usize) {
        self.carried.received += received as u64;
        self.carried.sent += sent as u64;
    }

    /// Adds an entry, and numbers it.
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
            tracing::warn!(%error, "the journal file cannot be written");
        }
        if self.entries.len() == KEPT {
            self.entries.pop_front();
        }
        self.entries.push_back(entry);
        self.last
    }

    /// Completes an entry that was added before its call had ended.
    pub(crate) fn amend(&mut self, seq: u64, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.entries.iter_mut().rev().find(|entry| entry.seq == seq) {
            change(entry);
        }
    }

    /// The entries from `seq` on, and the number to ask for next.
    pub(crate) fn since(&self, seq: u64) -> (u64, Vec<Entry>) {
        let first = self.entries.partition_point(|entry| entry.seq < seq);
        (
            self.last + 1,
            self.entries.range(first..).cloned().collect(),
        )
    }

    /// The entries of these numbers that are still there: from the first, up to and without the second.
    fn between(&self, begin: u64, end: u64) -> std::collections::vec_deque::Iter<'_, Entry> {
        let at = |seq| self.entries.partition_point(|entry| entry.seq < seq);
        self.entries.range(at(begin)..at(end))
    }

    /// The newest entry with a smaller number.
    fn last_before(&self, seq: u64) -> Option<&Entry> {
        let at = self.entries.partition_point(|entry| entry.seq < seq);
        self.entries.get(at.checked_sub(1)?)
    }

    /// What was carried, and how many calls of each method.
    pub(crate) fn counters(&self) -> (Traffic, &BTreeMap<String, u64>) {
        (self.carried, &self.calls)
    }

    /// Forgets everything but the numbering.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.calls.clear();
        self.carried = Traffic::default();
    }
}

/// The parameters of a call, fit to be shown.
pub(crate) fn shown(params: &Params) -> BTreeMap<String, String> {
    let show = |name: &str, value: &str| {
        if is_secret(name) {
            return HIDDEN.to_owned();
        }
        // The calls of a compound are JSON, and have parameters of their own.
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
        for _ in 0..KEPT + 5 {
            journal.push(entry("A"));
        }
        let (next, entries) = journal.since(0);
        assert_eq!(
            (entries.len(), entries[0].seq, next),
            (KEPT, 6, KEPT as u64 + 6)
        );
        assert_eq!(journal.since(next).1.len(), 0);
        assert_eq!(journal.since(next - 2).1.len(), 2);
        assert_eq!(journal.counters().1["A.get"], KEPT as u64 + 5);
    }

    #[test]
    fn whatever_a_secret_is_called_it_is_hidden_alone_and_in_a_compound() {
        for name in crate::secret_names::tests::NAMES {
            let compound = serde_json::json!([{"method": "set", name: ["planted"]}]).to_string();
            let params = Params::from_iter([(name, "planted"), ("compound", &compound)]);
            let shown = shown(&params);
            assert_eq!(shown[name], HIDDEN, "{name}");
            assert!(!shown["compound"].contains("planted"), "{shown:?}");
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
        let shown = shown(&params);
        assert_eq!(shown["account"], "d");
        assert_eq!(shown["additional"], r#"["mapped_lun"]"#);
        let compound = &shown["compound"];
        assert!(
            compound.contains("set") && !compound.contains("planted"),
            "{compound}"
        );
        assert!(
            ["passwd", "_sid", "SynoToken", "mutual_password"]
                .iter()
                .all(|name| shown[*name] == "***")
        );
    }
}
