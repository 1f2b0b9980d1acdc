//! The lock of open-iscsi's record database: a hard link that a process creates before it accesses records and removes
//! afterwards. A killed process leaves it behind.
//!
//! Until 2.1.9 `iscsiadm` waits 30 s for it, then ignores it and removes it at exit (commands that list records fail instead);
//! since 2.1.10 it fails and leaves the lock in place.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::console::{Exit, Failure};
use super::host::Host;
use crate::exec::until;
use crate::store;

/// The lock's folder, relative to the host root.
const FOLDER: &str = "run/lock/iscsi";

/// Access to the records; dropping it releases the lock.
#[derive(Debug)]
pub(crate) struct Database {
    lock: PathBuf,
}

impl Database {
    /// Waits for the lock. `lists`: the command only reads records.
    pub(crate) fn open(host: &Host, lists: bool) -> Result<Self, Failure> {
        let folder = host.root().join(FOLDER);
        let (file, lock) = (folder.join("lock"), folder.join("lock.write"));
        let failed = |error: &io::Error| {
            Failure::new(
                Exit::Database,
                format!("Could not lock discovery DB: {}: {error}", lock.display()),
            )
        };
        fs::create_dir_all(&folder).map_err(|error| failed(&error))?;
        fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&file)
            .map_err(|error| failed(&error))?;
        let (wait, stays_locked) = host.lock_wait()?;
        let take = || match fs::hard_link(&file, &lock) {
            Ok(()) => Ok(true),
            Err(taken) if taken.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        };
        let taken = until(Duration::from_millis(wait), take).map_err(|error| failed(&error))?;
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
            // We do not own the lock, so do not remove it.
            std::mem::forget(opened);
            return Err(late);
        }
        if lists { Err(late) } else { Ok(opened) }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // If this fails, the next command waits for the stale lock.
        let _ = store::remove(&self.lock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_lock_is_handled_as_in_each_release() {
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
            host.set_lock_wait(50, stays_locked).unwrap();
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
