//! Targets as a directory of JSON files, for initiators on the same machine that attach loop devices.
//!
//! ```text
//! <dir>/<iqn>.json              the target, written by the exporting process
//! <dir>/<iqn>.sessions/<key>    a live session, written by the initiator
//! <dir>/.targets.lock           serializes all writers
//! ```
//! Readers take no lock: every file is created and replaced atomically.
//!
//! A session's disk is a loop device on the LUN's own file, so removing a target is not enough to drop its sessions: later writes
//! of an initiator would still reach the LUN. So the LUN's file is replaced by a copy, see [`replace_file`].

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Chap, Session, Target, TargetBackend};
use crate::store::{self, Durability, Lock};

mod replace_file;

pub use replace_file::clear_immutable;

/// The targets in a directory.
#[derive(Clone, Debug)]
pub struct Targets {
    dir: PathBuf,
}

/// Why a login was refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The target does not exist or is disabled.
    #[error("target not found")]
    NoTarget,
    /// CHAP authentication failed.
    #[error("authentication failed")]
    Authentication,
    /// There are already `max_sessions` sessions.
    #[error("too many sessions")]
    SessionLimit,
    /// The directory could not be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Targets {
    /// Opens the directory, which is created if missing.
    ///
    /// # Errors
    /// The directory cannot be created.
    pub fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    /// Path of the directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Creates or updates a target. Live sessions continue, and see changes at their next rescan. Their later writes to a unit
    /// that is removed from the target do not reach its LUN.
    ///
    /// # Errors
    /// The name is invalid, or the file could not be written; then the old one still exists.
    pub fn put(&self, target: &Target) -> io::Result<()> {
        let path = self.file(&target.iqn)?;
        let lock = self.lock()?;
        let keep = |file: &PathBuf| target.luns.values().any(|unit| unit.file == *file);
        for file in self.files_to_replace(&target.iqn, keep)? {
            replace_file::replace_file(&file)?;
        }
        lock.write_json(&path, target, Durability::Always)
    }

    /// Removes a target and drops its sessions. Their later writes do not reach its LUNs, unless a session of another target uses
    /// the LUN, too. Idempotent.
    ///
    /// # Errors
    /// The name is invalid, a LUN's file could not be replaced, or the files could not be removed.
    pub fn remove(&self, iqn: &str) -> io::Result<()> {
        let (path, sessions) = (self.file(iqn)?, self.sessions_dir(iqn)?);
        let _lock = self.lock()?;
        // Do this first: after a kill, the next removal of the target replaces the files again.
        for file in self.files_to_replace(iqn, |_| false)? {
            replace_file::replace_file(&file)?;
        }
        store::remove(&path)?;
        store::remove_tree(&sessions)?;
        store::sync_folder(&self.dir)
    }

    /// The files, except those to `keep`, that only sessions of this target write to.
    fn files_to_replace(
        &self,
        iqn: &str,
        keep: impl Fn(&PathBuf) -> bool,
    ) -> io::Result<Vec<PathBuf>> {
        let Some(target) = self.get(iqn)? else {
            return Ok(Vec::new());
        };
        let mut files: Vec<PathBuf> = target.luns.into_values().map(|unit| unit.file).collect();
        files.retain(|file| !keep(file));
        // Read the other targets only if a target with sessions loses a file.
        if files.is_empty() || self.sessions(iqn)?.is_empty() {
            return Ok(Vec::new());
        }
        let mut others = BTreeSet::new();
        for other in self.list()? {
            if other.iqn != iqn && !self.sessions(&other.iqn)?.is_empty() {
                others.extend(other.luns.into_values().map(|unit| unit.file));
            }
        }
        files.retain(|file| !others.contains(file));
        Ok(files)
    }

    /// A target; `None` if it does not exist.
    ///
    /// # Errors
    /// The file cannot be read or parsed.
    pub fn get(&self, iqn: &str) -> io::Result<Option<Target>> {
        match self.file(iqn) {
            Ok(path) => store::read_json(&path),
            // There is no target with an invalid name.
            Err(_) => Ok(None),
        }
    }

    /// All targets, sorted by name.
    ///
    /// # Errors
    /// The directory or a file in it cannot be read.
    pub fn list(&self) -> io::Result<Vec<Target>> {
        let mut targets: Vec<Target> = Vec::new();
        for name in store::names(&self.dir)? {
            if Path::new(&name)
                .extension()
                .is_some_and(|ext| ext == "json")
            {
                // A target that was removed since the directory was listed is skipped.
                targets.extend(store::read_json(&self.dir.join(name))?);
            }
        }
        targets.sort_by(|a, b| a.iqn.cmp(&b.iqn));
        Ok(targets)
    }

    /// The live sessions of a target; empty if it does not exist.
    ///
    /// # Errors
    /// The name is invalid, or a session's file cannot be read.
    pub fn sessions(&self, iqn: &str) -> io::Result<Vec<Session>> {
        let dir = self.sessions_dir(iqn)?;
        let mut sessions = Vec::new();
        for key in store::names(&dir)? {
            sessions.extend(store::read_json(&dir.join(key))?);
        }
        Ok(sessions)
    }

    /// For initiators: opens a session with this key and returns the target. A login with an existing key is the same session.
    ///
    /// # Errors
    /// The target refuses the login.
    pub fn login(
        &self,
        iqn: &str,
        key: &str,
        session: &Session,
        offered: Option<&Chap>,
    ) -> Result<Target, Refusal> {
        let lock = self.lock()?;
        let target = self
            .get(iqn)?
            .filter(|target| target.enabled)
            .ok_or(Refusal::NoTarget)?;
        if !chap_succeeds(target.chap.as_ref(), offered) {
            return Err(Refusal::Authentication);
        }
        let dir = self.sessions_dir(iqn)?;
        let others = store::names(&dir)?
            .into_iter()
            .filter(|other| other != key)
            .count();
        let limit = usize::try_from(target.max_sessions).unwrap_or(usize::MAX);
        if limit != 0 && others >= limit {
            return Err(Refusal::SessionLimit);
        }
        fs::create_dir_all(&dir)?;
        lock.write_json(&dir.join(key), session, Durability::Always)?;
        store::sync_folder(&self.dir)?;
        Ok(target)
    }

    /// For initiators: closes a session. Idempotent.
    ///
    /// # Errors
    /// The session's file could not be removed.
    pub fn logout(&self, iqn: &str, key: &str) -> io::Result<()> {
        let dir = self.sessions_dir(iqn)?;
        let _lock = self.lock()?;
        store::remove(&dir.join(key))?;
        if store::names(&dir)?.is_empty() {
            store::remove_tree(&dir)?;
        }
        store::sync_folder(&self.dir)
    }

    /// For initiators: the target, if this session is still alive.
    ///
    /// # Errors
    /// The target's file cannot be read.
    pub fn attached(&self, iqn: &str, key: &str) -> io::Result<Option<Target>> {
        let alive = self.sessions_dir(iqn)?.join(key).try_exists()?;
        if alive { self.get(iqn) } else { Ok(None) }
    }

    fn lock(&self) -> io::Result<Lock> {
        Lock::take(&self.dir.join(".targets.lock"))
    }

    fn file(&self, iqn: &str) -> io::Result<PathBuf> {
        Ok(self.dir.join(format!("{}.json", file_name(iqn)?)))
    }

    fn sessions_dir(&self, iqn: &str) -> io::Result<PathBuf> {
        Ok(self.dir.join(format!("{}.sessions", file_name(iqn)?)))
    }
}

impl TargetBackend for Targets {
    fn reconcile(&self, targets: &[Target]) -> io::Result<()> {
        for stray in self.list()? {
            if targets.iter().all(|target| target.iqn != stray.iqn) {
                Targets::remove(self, &stray.iqn)?;
            }
        }
        targets
            .iter()
            .try_for_each(|target| Targets::put(self, target))
    }

    fn put(&self, target: &Target) -> io::Result<()> {
        Targets::put(self, target)
    }

    fn remove(&self, iqn: &str) -> io::Result<()> {
        Targets::remove(self, iqn)
    }

    fn sessions(&self, iqn: &str) -> io::Result<Vec<Session>> {
        Targets::sessions(self, iqn)
    }

    fn close(&self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether CHAP succeeds on both sides. `offered` are the initiator's credentials and, as `mutual`, those that it expects from
/// the target. A target without CHAP requires no authentication and cannot authenticate itself.
fn chap_succeeds(required: Option<&Chap>, offered: Option<&Chap>) -> bool {
    let authenticated = required.is_none_or(|required| {
        offered.is_some_and(|offered| {
            offered.user == required.user && offered.password == required.password
        })
    });
    let expected = offered.and_then(|offered| offered.mutual.as_ref());
    authenticated
        && expected
            .is_none_or(|expected| required.and_then(|chap| chap.mutual.as_ref()) == Some(expected))
}

/// An IQN as a file name: letters, digits, `-`, `.` and `:` are kept, everything else (slashes, spaces, …) is escaped as `%XX`.
/// Names are unique, and none starts with a dot.
fn file_name(iqn: &str) -> io::Result<String> {
    // RFC 7143 section 4.2.7.1: a name has at most 223 bytes.
    if iqn.is_empty() || iqn.len() > 223 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a target's name has 1 to 223 bytes",
        ));
    }
    let mut name = String::with_capacity(iqn.len());
    for (at, byte) in iqn.bytes().enumerate() {
        let plain = byte.is_ascii_alphanumeric()
            || byte == b'-'
            || byte == b':'
            || (byte == b'.' && at > 0);
        if plain {
            name.push(char::from(byte));
        } else {
            let _ = write!(name, "%{byte:02X}");
        }
    }
    if name.len() > 240 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "a target's name is made of letters, digits, '-', '.' and ':'",
        ));
    }
    Ok(name)
}

#[cfg(test)]
mod tests;
