//! Names that the kernel gives a thing once, when it makes it: the target of a session, the uuid of a device of device-mapper.
//!
//! To find what belongs to one volume among hundreds, each would have to be asked for its name at each look. So names are remembered
//! for as long as the directory shows the same thing: the same entry with the same inode number, which sysfs gives to nothing else
//! while the kernel runs. What is found by them is read anew before it is believed.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::disk::text;
use super::{Entry, HostError, KernelFiles, if_present};

/// The names of the things in one directory of sysfs. Clones remember together.
#[derive(Clone, Debug)]
pub struct Names {
    place: Place,
    known: Arc<Mutex<Known>>,
}

/// By entry: its inode number, and the name of what it is.
type Known = HashMap<String, (u64, Arc<str>)>;

/// Where things are, and what tells their names.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// The directory.
    pub(super) dir: &'static str,
    /// What the entries begin with; others are left out.
    pub(super) prefix: &'static str,
    /// The file with the name.
    pub(super) file: &'static str,
    /// Whether this is a name: the kernel shows a thing before it has been told what it is called.
    pub(super) is_name: fn(&str) -> bool,
}

impl Names {
    pub(super) fn new(place: Place) -> Self {
        Self {
            place,
            known: Arc::default(),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The entries whose names are wanted, in order.
    pub(super) fn find(
        &self,
        files: &dyn KernelFiles,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<String>, HostError> {
        let mut entries = files.entries(self.place.dir)?;
        entries.retain(|entry| entry.name.starts_with(self.place.prefix));
        let (mut found, unknown) = self.split(entries, &wanted);
        for entry in unknown {
            let Place { dir, file, .. } = self.place;
            // It may go between two readings.
            let Some(name) = if_present(text(files, &format!("{dir}/{}/{file}", entry.name)))?
            else {
                continue;
            };
            let is_wanted = wanted(&name);
            if (self.place.is_name)(&name) {
                let value = (entry.inode, name.into());
                self.known().insert(entry.name.clone(), value);
            }
            if is_wanted {
                found.push(entry.name);
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Those whose names are known and wanted, and those that have to be asked. What is not there any more is forgotten.
    fn split(
        &self,
        entries: Vec<Entry>,
        wanted: impl Fn(&str) -> bool,
    ) -> (Vec<String>, Vec<Entry>) {
        let (mut found, mut unknown, mut there) = (Vec::new(), Vec::new(), HashSet::new());
        let mut known = self.known();
        for entry in entries {
            match known.get(&entry.name) {
                Some((inode, name)) if *inode == entry.inode => {
                    there.insert(entry.inode);
                    if wanted(name) {
                        found.push(entry.name);
                    }
                }
                Some(_) | None => unknown.push(entry),
            }
        }
        if known.len() > there.len() {
            known.retain(|_, (inode, _)| there.contains(inode));
        }
        (found, unknown)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;
    use crate::host::{Entry, HostError};

    const PLACE: Place = Place {
        dir: "/sys/class/iscsi_session",
        prefix: "session",
        file: "targetname",
        is_name: |name| name.starts_with("iqn."),
    };

    /// A directory: entries, their inode numbers and names.
    #[derive(Default)]
    struct Shown {
        entries: RefCell<Vec<(&'static str, u64, &'static str)>>,
        reads: Cell<usize>,
    }

    impl KernelFiles for Shown {
        fn read(&self, path: &str) -> Result<Vec<u8>, HostError> {
            self.reads.set(self.reads.get() + 1);
            let entries = self.entries.borrow();
            let of = |entry: &&(&str, u64, &str)| {
                path == format!("{}/{}/targetname", PLACE.dir, entry.0)
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

    impl Shown {
        fn show(&self, entries: &[(&'static str, u64, &'static str)]) {
            *self.entries.borrow_mut() = entries.to_vec();
            self.reads.set(0);
        }

        /// What is found of `iqn.b`, and how many names were read for it.
        fn find(&self, names: &Names) -> (Vec<String>, usize) {
            let found = names.find(self, |name| name == "iqn.b").unwrap();
            (found, self.reads.take())
        }
    }

    #[test]
    fn a_name_is_read_once() {
        let (names, shown) = (Names::new(PLACE), Shown::default());
        shown.show(&[
            ("session1", 1, "iqn.a"),
            ("session2", 2, "iqn.b"),
            ("x", 9, "iqn.b"),
        ]);
        assert_eq!(shown.find(&names), (vec!["session2".to_owned()], 2));
        assert_eq!(shown.find(&names), (vec!["session2".to_owned()], 0));
        shown.show(&[("session2", 2, "iqn.b"), ("session3", 3, "iqn.b")]);
        let both = vec!["session2".to_owned(), "session3".to_owned()];
        assert_eq!(shown.find(&names), (both, 1));
        assert_eq!(names.known().len(), 2, "what is gone is forgotten");
    }

    /// scsi_transport_iscsi counts its sessions from 1 again when it is loaded anew.
    #[test]
    fn another_thing_with_the_same_entry_is_asked_for_its_name() {
        let (names, shown) = (Names::new(PLACE), Shown::default());
        shown.show(&[("session1", 1, "iqn.a")]);
        assert_eq!(shown.find(&names), (vec![], 1));
        shown.show(&[("session1", 2, "iqn.b")]);
        assert_eq!(shown.find(&names), (vec!["session1".to_owned()], 1));
    }

    #[test]
    fn a_thing_without_a_name_is_asked_again() {
        let (names, shown) = (Names::new(PLACE), Shown::default());
        shown.show(&[("session1", 1, "(null)")]);
        assert_eq!(shown.find(&names), (vec![], 1));
        shown.show(&[("session1", 1, "")]);
        assert_eq!(shown.find(&names), (vec![], 1));
        shown.show(&[("session1", 1, "iqn.b")]);
        assert_eq!(shown.find(&names), (vec!["session1".to_owned()], 1));
    }
}
