//! A cache of names in sysfs that never change once set: the target name of a session, the uuid of a device-mapper device.
//!
//! Without it, each search for the objects of one volume would read the names of all objects, of which there may be hundreds. A
//! name is cached as long as the directory shows the same entry with the same inode number, which sysfs does not reuse while the
//! kernel runs. Callers re-read what they find by a cached name before they rely on it.

use parking_lot::{Mutex, MutexGuard};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::disk::text;
use super::{Entry, HostError, KernelFiles, if_present};

/// The cached names of the entries of one sysfs directory. Clones share the cache.
#[derive(Clone, Debug)]
pub struct Names {
    source: NameSource,
    cache: Arc<Mutex<Cache>>,
}

/// Inode number and name, by directory entry.
type Cache = HashMap<String, (u64, Arc<str>)>;

/// A sysfs directory, and the file in each of its entries that holds the name.
#[derive(Clone, Copy, Debug)]
pub(super) struct NameSource {
    pub(super) dir: &'static str,
    /// Prefix of the entries; others are ignored.
    pub(super) prefix: &'static str,
    /// The file with the name, relative to the entry.
    pub(super) file: &'static str,
    /// True if the file's content is a name: the kernel shows an entry before its name is set.
    pub(super) is_name: fn(&str) -> bool,
}

impl Names {
    pub(super) fn new(source: NameSource) -> Self {
        Self {
            source,
            cache: Arc::default(),
        }
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock()
    }

    /// The entries with wanted names, sorted.
    pub(super) fn find(
        &self,
        files: &dyn KernelFiles,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<String>, HostError> {
        let mut entries = files.entries(self.source.dir)?;
        entries.retain(|entry| entry.name.starts_with(self.source.prefix));
        let (mut found, uncached) = self.split(entries, &wanted);
        for entry in uncached {
            let NameSource { dir, file, .. } = self.source;
            // The entry may be removed between two reads.
            let Some(name) = if_present(text(files, &format!("{dir}/{}/{file}", entry.name)))?
            else {
                continue;
            };
            let is_wanted = wanted(&name);
            if (self.source.is_name)(&name) {
                let value = (entry.inode, name.into());
                self.cache().insert(entry.name.clone(), value);
            }
            if is_wanted {
                found.push(entry.name);
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// The entries with wanted names from the cache, and those that are not cached. Forgets cached entries that no longer exist.
    fn split(
        &self,
        entries: Vec<Entry>,
        wanted: impl Fn(&str) -> bool,
    ) -> (Vec<String>, Vec<Entry>) {
        let (mut found, mut uncached, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
        let mut cache = self.cache();
        for entry in entries {
            match cache.get(&entry.name) {
                Some((inode, name)) if *inode == entry.inode => {
                    seen.insert(entry.inode);
                    if wanted(name) {
                        found.push(entry.name);
                    }
                }
                Some(_) | None => uncached.push(entry),
            }
        }
        if cache.len() > seen.len() {
            cache.retain(|_, (inode, _)| seen.contains(inode));
        }
        (found, uncached)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;
    use crate::host::{Entry, HostError};

    const SOURCE: NameSource = NameSource {
        dir: "/sys/class/iscsi_session",
        prefix: "session",
        file: "targetname",
        is_name: |name| name.starts_with("iqn."),
    };

    /// A fake directory: entries with their inode numbers and names.
    #[derive(Default)]
    struct FakeDir {
        entries: RefCell<Vec<(&'static str, u64, &'static str)>>,
        reads: Cell<usize>,
    }

    impl KernelFiles for FakeDir {
        fn read(&self, path: &str) -> Result<Vec<u8>, HostError> {
            self.reads.set(self.reads.get() + 1);
            let entries = self.entries.borrow();
            let of = |entry: &&(&str, u64, &str)| {
                path == format!("{}/{}/targetname", SOURCE.dir, entry.0)
            };
            let name = entries
                .iter()
                .find(of)
                .map(|(.., name)| name.as_bytes().to_vec());
            name.ok_or_else(|| HostError::Absent {
                path: path.to_owned(),
            })
        }

        fn entries(&self, _: &str) -> Result<Vec<Entry>, HostError> {
            let entries = self.entries.borrow();
            let entries = entries.iter().map(|(name, inode, _)| Entry {
                name: (*name).to_owned(),
                inode: *inode,
            });
            Ok(entries.collect())
        }
    }

    impl FakeDir {
        fn set(&self, entries: &[(&'static str, u64, &'static str)]) {
            *self.entries.borrow_mut() = entries.to_vec();
            self.reads.set(0);
        }

        /// The entries that are found for `iqn.b`, and how many names were read.
        fn find(&self, names: &Names) -> (Vec<String>, usize) {
            let found = names.find(self, |name| name == "iqn.b").unwrap();
            (found, self.reads.take())
        }
    }

    #[test]
    fn a_name_is_read_once() {
        let (names, dir) = (Names::new(SOURCE), FakeDir::default());
        dir.set(&[
            ("session1", 1, "iqn.a"),
            ("session2", 2, "iqn.b"),
            ("x", 9, "iqn.b"),
        ]);
        assert_eq!(dir.find(&names), (vec!["session2".to_owned()], 2));
        assert_eq!(dir.find(&names), (vec!["session2".to_owned()], 0));
        dir.set(&[("session2", 2, "iqn.b"), ("session3", 3, "iqn.b")]);
        let both = vec!["session2".to_owned(), "session3".to_owned()];
        assert_eq!(dir.find(&names), (both, 1));
        assert_eq!(names.cache().len(), 2, "a removed entry is forgotten");
    }

    /// scsi_transport_iscsi numbers its sessions from 1 again after a reload of the module.
    #[test]
    fn a_reused_entry_is_read_again() {
        let (names, dir) = (Names::new(SOURCE), FakeDir::default());
        dir.set(&[("session1", 1, "iqn.a")]);
        assert_eq!(dir.find(&names), (vec![], 1));
        dir.set(&[("session1", 2, "iqn.b")]);
        assert_eq!(dir.find(&names), (vec!["session1".to_owned()], 1));
    }

    #[test]
    fn an_entry_without_a_name_is_not_cached() {
        let (names, dir) = (Names::new(SOURCE), FakeDir::default());
        dir.set(&[("session1", 1, "(null)")]);
        assert_eq!(dir.find(&names), (vec![], 1));
        dir.set(&[("session1", 1, "")]);
        assert_eq!(dir.find(&names), (vec![], 1));
        dir.set(&[("session1", 1, "iqn.b")]);
        assert_eq!(dir.find(&names), (vec!["session1".to_owned()], 1));
    }
}
