//! Cached disk usage of LUNs. With many LUNs, each refresh of the page reads only some of their files, in turn.

use std::collections::HashMap;

use node_sim::target::Session;

use crate::nas::effect::{Environment, Image};
use crate::storage::backstore::Backstore;

/// Number of files that are read in a refresh, in addition to those of the LUNs on the page.
pub(super) const VISITS: usize = 500;

/// Bytes on disk by LUN.
#[derive(Debug, Default)]
pub(super) struct Usage {
    known: HashMap<String, Known>,
    round: u64,
    /// The last LUN that was read in the current round.
    cursor: String,
}

#[derive(Debug)]
struct Known {
    bytes: u64,
    round: u64,
}

impl Usage {
    /// The LUNs to read in the next refresh. `uuids` are those of all LUNs, sorted, since this continues after the cursor.
    pub(super) fn due<'a>(&self, uuids: impl Iterator<Item = &'a String>) -> Vec<String> {
        let later = uuids.filter(|uuid| **uuid > self.cursor);
        later.take(VISITS).cloned().collect()
    }

    /// Reads the disk usage of `due`, as returned by [`Self::due`], and of `others`, which are on the page.
    pub(super) fn visit(&mut self, due: &[String], others: &[String], files: &Backstore) {
        let round = self.round;
        for uuid in due.iter().chain(others) {
            let bytes = files.allocated(&Image::Lun(uuid.clone()));
            self.known.insert(uuid.clone(), Known { bytes, round });
        }
        if due.len() == VISITS {
            self.cursor.clone_from(&due[VISITS - 1]);
        } else {
            // The round is complete: LUNs that were not read in it are gone.
            self.known.retain(|_, known| known.round == round);
            self.cursor.clear();
            self.round += 1;
        }
    }

    /// Number of LUNs that were read and are not known to be gone.
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
    fn a_refresh_reads_some_files_and_all_get_their_turn() {
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
    fn shown_luns_are_fresh_and_deleted_luns_are_forgotten() {
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
