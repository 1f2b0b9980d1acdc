//! The lock of the record database, as in open-iscsi: a hard link that a command creates and removes. A killed command leaves it
//! behind.
//!
//! Until 2.1.9 `iscsiadm` waits 30 s for it, then ignores it and removes it on exit (commands that list records fail instead);
//! since 2.1.10 it fails and leaves it in place.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::console::{Exit, Failure};
use super::host::Host;
use crate::exec::until;
use crate::store;

/// Directory of the lock, below the host root.
const FOLDER: &str = "run/lock/iscsi";

/// Holds the lock until it is dropped.
#[derive(Debug)]
pub(crate) struct Database {
    lock: PathBuf,
}

impl Database {
    /// Waits for the lock. `read_only` is for commands that only list records.
    pub(crate) fn open(host: &Host, read_only: bool) -> Result<Self, Failure> {
        let folder = host.root().join(FOLDER);
        let (file, lock) = (folder.join("lock"), folder.join("lock.write"));
        let failure = |error: &io::Error| {
            Failure::new(
                Exit::Database,
                format!("Could not lock discovery DB: {}: {error}", lock.display()),
            )
        };
        fs::create_dir_all(&folder).map_err(|error| failure(&error))?;
        fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&file)
            .map_err(|error| failure(&error))?;
        let (wait, stays_locked) = host.database_lock()?;
        let take = || match fs::hard_link(&file, &lock) {
            Ok(()) => Ok(true),
            Err(taken) if taken.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        };
        let taken = until(Duration::from_millis(wait), take).map_err(|error| failure(&error))?;
        let opened = Self { lock: lock.clone() };
        if taken {
            return Ok(opened);
        }
        let timeout = Failure::new(
            Exit::Database,
            format!(
                "Timeout on acquiring lock on DB: {}: 17: File exists",
                lock.display()
            ),
        );
        if stays_locked {
            // Do not remove the lock of another command.
            std::mem::forget(opened);
            return Err(timeout);
        }
        if read_only { Err(timeout) } else { Ok(opened) }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // Release the lock for the next command.
        let _ = store::remove(&self.lock);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_lock_times_out_and_is_then_handled_as_in_each_release() {
        let dir = tempfile::tempdir().unwrap();
        let program = std::env::current_exe().unwrap();
        let host = Host::init(dir.path(), &[], Some("iqn.me"), &program).unwrap();
        let lock = host.root().join(FOLDER).join("lock.write");
        drop(Database::open(&host, true).unwrap());
        assert!(!lock.exists());
        for (stays_locked, read_only, opens, left) in [
            (false, false, true, false),
            (false, true, false, false),
            (true, false, false, true),
            (true, true, false, true),
        ] {
            host.set_database_lock(50, stays_locked).unwrap();
            fs::write(&lock, "").unwrap();
            match Database::open(&host, read_only) {
                Ok(_) => assert!(opens),
                Err(failure) => {
                    assert!(!opens);
                    assert_eq!(failure.exit, Exit::Database);
                    assert!(failure.text.contains("Timeout on acquiring lock on DB"));
                }
            }
            assert_eq!(lock.exists(), left, "{stays_locked} {read_only}");
            store::remove(&lock).unwrap();
        }
    }
}
