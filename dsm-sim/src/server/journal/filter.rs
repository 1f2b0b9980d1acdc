//! Which entries somebody wants to see, and finding the newest of them without holding the journal for long.

use std::sync::MutexGuard;

use serde::Deserialize;

use super::{Entry, Journal};

/// So many entries are looked at before others get their turn.
const STEP: u64 = 2_000;

/// What an entry must be like. Nothing is asked for what is left out.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Filter {
    /// Words that are somewhere in it, in any case.
    pub(crate) text: String,
    /// A part of its API's or method's name.
    pub(crate) api: String,
    /// It was refused.
    pub(crate) failed: bool,
    /// A fault hit it.
    pub(crate) faulted: bool,
}

impl Filter {
    /// Whether it lets everything through.
    pub(crate) fn is_idle(&self) -> bool {
        self.text.trim().is_empty() && self.api.trim().is_empty() && !self.failed && !self.faulted
    }

    fn takes(&self, entry: &Entry) -> bool {
        let called = || format!("{}.{}", entry.api, entry.method);
        let texts = || {
            let params = entry.params.iter().flat_map(|(name, value)| [name, value]);
            let code = entry.code.map(|code| code.to_string());
            let own = [called(), entry.client.clone()].into_iter().chain(code);
            own.chain(entry.note.clone())
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

/// The newest entries from `since` on that the filter takes, at most so many, oldest first; and the number to ask for
/// next.
pub(crate) fn newest<'a>(
    journal: impl Fn() -> MutexGuard<'a, Journal>,
    filter: &Filter,
    since: u64,
    most: usize,
) -> (u64, Vec<Entry>) {
    let next = journal().last + 1;
    let mut found = Vec::new();
    let mut end = next;
    while end > since && found.len() < most {
        let begin = end.saturating_sub(STEP).max(since);
        let journal = journal();
        if journal.last_before(end).is_none() {
            break;
        }
        let step = journal.between(begin, end).rev();
        let wanted = step.filter(|entry| filter.takes(entry));
        found.extend(wanted.take(most - found.len()).cloned());
        end = begin;
    }
    found.reverse();
    (next, found)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

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
    fn all_that_is_asked_for_must_hold() {
        let (fine, refused) = (entry("SYNO.Core.System"), refused("get"));
        let faulted = Entry {
            fault: Some("lose_reply"),
            ..entry("SYNO.API.Auth")
        };
        for (wanted, takes) in [
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
            let took = [&fine, &refused, &faulted].map(|entry| wanted.takes(entry));
            assert_eq!(took, takes, "{wanted:?}");
        }
    }

    #[test]
    fn the_newest_are_found_however_far_back_and_no_more_than_asked_for() {
        let mut journal = Journal::default();
        for n in 0..3 * STEP {
            journal.push(if n % STEP == 7 {
                refused("get")
            } else {
                entry("A")
            });
        }
        let journal = Mutex::new(journal);
        let seqs = |filter: &Filter, since, most| {
            let (next, found) = newest(|| journal.lock().unwrap(), filter, since, most);
            assert_eq!(next, 3 * STEP + 1);
            found.iter().map(|entry| entry.seq).collect::<Vec<_>>()
        };
        let failed = filter("", "", true, false);
        assert_eq!(seqs(&failed, 0, 9), [8, STEP + 8, 2 * STEP + 8]);
        assert_eq!(seqs(&failed, 0, 2), [STEP + 8, 2 * STEP + 8]);
        assert_eq!(seqs(&failed, STEP + 9, 9), [2 * STEP + 8]);
        assert_eq!(seqs(&Filter::default(), 0, 2), [3 * STEP - 1, 3 * STEP]);
        assert!(seqs(&Filter::default(), 3 * STEP + 1, 2).is_empty());
        journal.lock().unwrap().clear();
        assert!(seqs(&Filter::default(), 0, 2).is_empty());
    }
}
