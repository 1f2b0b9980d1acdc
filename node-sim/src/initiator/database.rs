//! The lock of the database of records, as open-iscsi has it: a hard link that whoever works on records makes and removes. One who
//! is killed in between leaves it.
//!
//! Until 2.1.9 `iscsiadm` waits 30 s for it, and then takes no notice of it and removes it at its end (what lists records fails
//! first); since 2.1.10 it fails and leaves it where it is.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::console::{Exit, Failure};
use super::host::Host;
use crate::exec::until;
use crate::store;

/// Below the host root.
const FOLDER: &str = "run/lock/iscsi";

/// Works on records, until it is dropped.
#[derive(Debug)]
pub(crate) struct Database {
    lock: PathBuf,
}

impl Database {
    /// Waits for the lock. `lists`: for a command that only reads.
    pub(crate) fn open(host: &Host, lists: bool) -> Result<Self, Failure> {
        let folder = host.root().join(FOLDER);
        let (file, lock) = (folder.join("lock"), folder.join("lock.write"));
        let failed = |wrong: &io::Error| {
            Failure::new(
                Exit::Database,
                format!("Could not lock discovery DB: {}: {wrong}", lock.display()),
            )
        };
        fs::create_dir_all(&folder).map_err(|wrong| failed(&wrong))?;
        fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&file)
            .map_err(|wrong| failed(&wrong))?;
        let (wait, stays_locked) = host.patience()?;
        let take = || match fs::hard_link(&file, &lock) {
            Ok(()) => Ok(true),
            Err(taken) if taken.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(wrong) => Err(wrong),
        };
        let taken = until(Duration::from_millis(wait), take).map_err(|wrong| failed(&wrong))?;
        let opened = Self { lock: lock.clone() };
        if taken {
            return Ok(opened);
        }
        let late = Failure::new(
            Exit::Database,
            format!(
                "Timeout on acquiring lock on DB: {}: 17: File exists",
                lock.display()
            ),
        );
        if stays_locked {
            // It is not ours to remove.
            std::mem::forget(opened);
            return Err(late);
        }
        if lists { Err(late) } else { Ok(opened) }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // The next one waits for nobody then.
        let _ = store::remove(&self.lock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_left_is_waited_for_and_then_each_release_has_its_way() {
        let dir = tempfile::tempdir().unwrap();
        let program = std::env::current_exe().unwrap();
        let host = Host::init(dir.path(), &[], Some("iqn.me"), &program).unwrap();
        let lock = host.root().join(FOLDER).join("lock.write");
        drop(Database::open(&host, true).unwrap());
        assert!(!lock.exists());
        for (stays_locked, lists, opens, left) in [
            (false, false, true, false),
            (false, true, false, false),
            (true, false, false, true),
            (true, true, false, true),
        ] {
            host.set_patience(50, stays_locked).unwrap();
            fs::write(&lock, "").unwrap();
            match Database::open(&host, lists) {
                Ok(_) => assert!(opens),
                Err(failure) => {
                    assert!(!opens);
                    assert_eq!(failure.exit, Exit::Database);
                    assert!(failure.text.contains("Timeout on acquiring lock on DB"));
                }
            }
            assert_eq!(lock.exists(), left, "{stays_locked} {lists}");
            store::remove(&lock).unwrap();
        }
    }
}
