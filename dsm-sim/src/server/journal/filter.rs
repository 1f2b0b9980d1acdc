//! The journal filter, and a search for the newest matching entries that does not hold the journal's lock for long.

use parking_lot::MutexGuard;

use serde::Deserialize;

use super::{Entry, Journal};

/// Number of entries to search before the lock is released.
const BATCH: u64 = 2_000;

/// Conditions on an entry. Fields with their default value match everything.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Filter {
    /// Words that must occur in it, case-insensitive.
    pub(crate) text: String,
    /// Part of `API.method`, case-insensitive.
    pub(crate) api: String,
    /// Only refused calls.
    pub(crate) failed: bool,
    /// Only calls that were hit by a fault.
    pub(crate) faulted: bool,
}

impl Filter {
    /// Whether it matches everything.
    pub(crate) fn matches_all(&self) -> bool {
        self.text.trim().is_empty() && self.api.trim().is_empty() && !self.failed && !self.faulted
    }

    fn matches(&self, entry: &Entry) -> bool {
        let called = || format!("{}.{}", entry.api, entry.method);
        let texts = || {
            let params = entry.params.iter().flat_map(|(name, value)| [name, value]);
            let code = entry.code.map(|code| code.to_string());
            let fields = [called(), entry.client.clone()].into_iter().chain(code);
            fields
                .chain(entry.note.clone())
                .chain(params.cloned())
                .map(|text| text.to_lowercase())
                .collect::<Vec<_>>()
        };
        let has_words = || {
            let texts = texts();
            let wanted = self.text.to_lowercase();
            wanted
                .split_whitespace()
                .all(|word| texts.iter().any(|text| text.contains(word)))
        };
        let of_api = || {
            called()
                .to_lowercase()
                .contains(&self.api.trim().to_lowercase())
        };
        (!self.failed || entry.code.is_some())
            && (!self.faulted || entry.fault.is_some())
            && (self.api.trim().is_empty() || of_api())
            && (self.text.trim().is_empty() || has_words())
    }
}

/// The newest entries from `since` on that match the filter, at most `max`, oldest first; and the `since` to pass next time.
pub(crate) fn newest<'a>(
    journal: impl Fn() -> MutexGuard<'a, Journal>,
    filter: &Filter,
    since: u64,
    max: usize,
) -> (u64, Vec<Entry>) {
    let next = journal().last + 1;
    let mut found = Vec::new();
    let mut end = next;
    while end > since && found.len() < max {
        let begin = end.saturating_sub(BATCH).max(since);
        let journal = journal();
        if journal.last_before(end).is_none() {
            break;
        }
        let batch = journal.between(begin, end).rev();
        let wanted = batch.filter(|entry| filter.matches(entry));
        found.extend(wanted.take(max - found.len()).cloned());
        end = begin;
    }
    found.reverse();
    (next, found)
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::super::tests::entry;
    use super::*;

    fn refused(method: &str) -> Entry {
        Entry {
            method: method.to_owned(),
            code: Some(18_990_531),
            note: Some("no LUN Pvc-9".to_owned()),
            params: [("uuid".to_owned(), "\"Pvc-9\"".to_owned())].into(),
            ..entry("SYNO.Core.ISCSI.LUN")
        }
    }

    fn filter(text: &str, api: &str, failed: bool, faulted: bool) -> Filter {
        Filter {
            text: text.to_owned(),
            api: api.to_owned(),
            failed,
            faulted,
        }
    }

    #[test]
    fn all_conditions_must_hold() {
        let (fine, refused) = (entry("SYNO.Core.System"), refused("get"));
        let faulted = Entry {
            fault: Some("lose_reply"),
            ..entry("SYNO.API.Auth")
        };
        for (wanted, matches) in [
            (Filter::default(), [true, true, true]),
            (filter("", "", true, false), [false, true, false]),
            (filter("", "", false, true), [false, false, true]),
            (filter("", "iscsi.lun", false, false), [false, true, false]),
            (filter("", "lun.GET", false, false), [false, true, false]),
            (filter("pvc-9", "", false, false), [false, true, false]),
            (
                filter(" 18990531 pvc ", "", false, false),
                [false, true, false],
            ),
            (filter("pvc-8", "", false, false), [false, false, false]),
            (filter("pvc", "System", false, false), [false, false, false]),
        ] {
            let took = [&fine, &refused, &faulted].map(|entry| wanted.matches(entry));
            assert_eq!(took, matches, "{wanted:?}");
        }
    }

    #[test]
    fn the_newest_are_found_at_any_distance_up_to_the_maximum() {
        let mut journal = Journal::default();
        for n in 0..3 * BATCH {
            journal.push(if n % BATCH == 7 {
                refused("get")
            } else {
                entry("A")
            });
        }
        let journal = Mutex::new(journal);
        let seqs = |filter: &Filter, since, max| {
            let (next, found) = newest(|| journal.lock(), filter, since, max);
            assert_eq!(next, 3 * BATCH + 1);
            found.iter().map(|entry| entry.seq).collect::<Vec<_>>()
        };
        let failed = filter("", "", true, false);
        assert_eq!(seqs(&failed, 0, 9), [8, BATCH + 8, 2 * BATCH + 8]);
        assert_eq!(seqs(&failed, 0, 2), [BATCH + 8, 2 * BATCH + 8]);
        assert_eq!(seqs(&failed, BATCH + 9, 9), [2 * BATCH + 8]);
        assert_eq!(seqs(&Filter::default(), 0, 2), [3 * BATCH - 1, 3 * BATCH]);
        assert!(seqs(&Filter::default(), 3 * BATCH + 1, 2).is_empty());
        journal.lock().clear();
        assert!(seqs(&Filter::default(), 0, 2).is_empty());
    }
}
