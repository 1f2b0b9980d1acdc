//! What LUNs take on disk, as it was when each was last looked at. With many LUNs a look visits only some of their files,
//! and the others' turn comes later.

use std::collections::HashMap;

use node_sim::target::Session;

use crate::nas::effect::{Environment, Image};
use crate::storage::backstore::Backstore;

/// Files that are visited in a look, besides those that are shown.
pub(super) const VISITS: usize = 500;

/// Bytes on disk by LUN.
#[derive(Debug, Default)]
pub(super) struct Usage {
    known: HashMap<String, Known>,
    round: u64,
    /// The last LUN of the present round that was visited.
    cursor: String,
}

#[derive(Debug)]
struct Known {
    bytes: u64,
    round: u64,
}

impl Usage {
    /// Of all LUNs, in the order of their uuids: those to be visited in the next look. The order matters, since the turn
    /// goes around.
    pub(super) fn due<'a>(&self, uuids: impl Iterator<Item = &'a String>) -> Vec<String> {
        let later = uuids.filter(|uuid| **uuid > self.cursor);
        later.take(VISITS).cloned().collect()
    }

    /// Looks at the files of LUNs: `due` ones, and others that are to be fresh.
    pub(super) fn visit(&mut self, due: &[String], others: &[String], files: &Backstore) {
        let round = self.round;
        for uuid in due.iter().chain(others) {
            let bytes = files.allocated(&Image::Lun(uuid.clone()));
            self.known.insert(uuid.clone(), Known { bytes, round });
        }
        if due.len() == VISITS {
            self.cursor.clone_from(&due[VISITS - 1]);
        } else {
            // All the way round: what was not met is gone.
            self.known.retain(|_, known| known.round == round);
            self.cursor.clear();
            self.round += 1;
        }
    }

    /// How many LUNs were ever visited and are not known to be gone.
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }
}

impl Environment for Usage {
    fn allocated(&self, image: &Image) -> u64 {
        match image {
            Image::Lun(uuid) => self.known.get(uuid).map_or(0, |known| known.bytes),
            Image::Snapshot(_) => 0,
        }
    }

    fn sessions(&self, _: &str) -> Vec<Session> {
        Vec::new()
    }

    fn may_be_in_use(&self, _: &str) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_visits_some_and_all_get_their_turn() {
        let dir = tempfile::tempdir().unwrap();
        let files = Backstore::open(dir.path()).unwrap();
        let all: Vec<String> = (0..VISITS * 2 + 10).map(|n| format!("{n:05}")).collect();
        let (last, first) = (all[VISITS * 2 + 9].clone(), all[0].clone());
        for uuid in [&first, &last] {
            std::fs::write(files.path(&Image::Lun(uuid.clone())), [1; 4096]).unwrap();
        }
        let mut usage = Usage::default();
        let bytes = |usage: &Usage, uuid: &String| usage.allocated(&Image::Lun(uuid.clone()));
        let mut visits = Vec::new();
        for _ in 0..3 {
            assert_eq!(bytes(&usage, &last), 0);
            let due = usage.due(all.iter());
            visits.push(due.len());
            usage.visit(&due, &[], &files);
        }
        assert_eq!(visits, [VISITS, VISITS, 10]);
        assert_eq!((bytes(&usage, &first), bytes(&usage, &last)), (4096, 4096));
        assert_eq!(usage.len(), all.len());
    }

    #[test]
    fn who_is_shown_is_fresh_and_who_is_gone_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let files = Backstore::open(dir.path()).unwrap();
        let names = |names: &[&str]| -> Vec<String> {
            names.iter().map(|name| (*name).to_owned()).collect()
        };
        let mut usage = Usage::default();
        usage.visit(&names(&["a", "b"]), &names(&["z"]), &files);
        assert_eq!(usage.len(), 3);
        usage.visit(&names(&["b"]), &[], &files);
        assert_eq!(usage.len(), 1);
    }
}
