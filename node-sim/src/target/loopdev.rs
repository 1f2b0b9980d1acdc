//! Targets as a folder of JSON files: the export for initiators on this same machine, who attach loop devices.
//!
//! ```text
//! <dir>/<iqn>.json              what the target is, written by the exporting side
//! <dir>/<iqn>.sessions/<key>    one live session, written by the initiator side
//! <dir>/.targets.lock             orders all writers
//! ```
//! Readers take no lock: every file appears and changes in one step.
//!
//! A disk of a session is a loop device over the LUN's own file, so a target that is removed cannot simply drop its
//! sessions: what an initiator writes afterwards would still reach the LUN. So the LUN gets another file, see [`divorce`].

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Chap, Session, Target, TargetBackend};
use crate::store::{self, Durability, Lock};

mod divorce;

pub use divorce::thaw;

/// The targets in one folder.
#[derive(Clone, Debug)]
pub struct Targets {
    dir: PathBuf,
}

/// Why a login was turned down.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// No such target here, or it is disabled.
    #[error("target not found")]
    NoTarget,
    /// The initiator did not prove itself.
    #[error("authentication failed")]
    Authentication,
    /// `max_sessions` sessions live already.
    #[error("too many sessions")]
    SessionLimit,
    /// The folder could not be read or written.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Targets {
    /// Opens the folder, making it when it is missing.
    ///
    /// # Errors
    /// The folder can be neither found nor made.
    pub fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the target, or makes it what it should be now; live sessions go on and notice at their next rescan. What they write to a
    /// unit that is taken out of the target does not reach its LUN from now on.
    ///
    /// # Errors
    /// The name is none a target can have, or the file could not be written; then the old one is still there.
    pub fn put(&self, target: &Target) -> io::Result<()> {
        let path = self.file(&target.iqn)?;
        let lock = self.lock()?;
        let kept = |file: &PathBuf| target.luns.values().any(|unit| unit.file == *file);
        for file in self.files_cut_off(&target.iqn, kept)? {
            divorce::divorce(&file)?;
        }
        lock.write_json(&path, target, Durability::Always)
    }

    /// Removes the target and drops its sessions. What these write from now on does not reach its LUNs, unless a session of
    /// another target has the LUN, too. A target that is not there is no error.
    ///
    /// # Errors
    /// The name is none a target can have, a LUN's file could not be replaced, or the files could not be removed.
    pub fn remove(&self, iqn: &str) -> io::Result<()> {
        let (path, sessions) = (self.file(iqn)?, self.sessions_dir(iqn)?);
        let _lock = self.lock()?;
        // First of all: who is killed afterwards removes the target next time, and these files again.
        for file in self.files_cut_off(iqn, |_| false)? {
            divorce::divorce(&file)?;
        }
        store::remove(&path)?;
        store::remove_tree(&sessions)?;
        store::sync_folder(&self.dir)
    }

    /// The files that sessions of this target write to, and those of no other, but for what they keep.
    fn files_cut_off(
        &self,
        iqn: &str,
        kept: impl Fn(&PathBuf) -> bool,
    ) -> io::Result<Vec<PathBuf>> {
        let Some(target) = self.get(iqn)? else {
            return Ok(Vec::new());
        };
        let mut files: Vec<PathBuf> = target.luns.into_values().map(|unit| unit.file).collect();
        files.retain(|file| !kept(file));
        // All targets are looked at only when one loses something under a session.
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

    /// One target; `None` when there is none of this name.
    ///
    /// # Errors
    /// The file cannot be read or is not ours.
    pub fn get(&self, iqn: &str) -> io::Result<Option<Target>> {
        match self.file(iqn) {
            Ok(path) => store::read_json(&path),
            // Whatever cannot be a target's name is the name of no target.
            Err(_) => Ok(None),
        }
    }

    /// All targets, by name.
    ///
    /// # Errors
    /// The folder or a file in it cannot be read.
    pub fn list(&self) -> io::Result<Vec<Target>> {
        let mut targets: Vec<Target> = Vec::new();
        for name in store::names(&self.dir)? {
            if Path::new(&name)
                .extension()
                .is_some_and(|ext| ext == "json")
            {
                // A target that was removed since the folder was listed is simply not there any more.
                targets.extend(store::read_json(&self.dir.join(name))?);
            }
        }
        targets.sort_by(|a, b| a.iqn.cmp(&b.iqn));
        Ok(targets)
    }

    /// The sessions that live on a target; none for a target that is not there.
    ///
    /// # Errors
    /// The name is none a target can have, or a session's file cannot be read.
    pub fn sessions(&self, iqn: &str) -> io::Result<Vec<Session>> {
        let dir = self.sessions_dir(iqn)?;
        let mut sessions = Vec::new();
        for key in store::names(&dir)? {
            sessions.extend(store::read_json(&dir.join(key))?);
        }
        Ok(sessions)
    }

    /// For the initiator side: opens a session, known by `key` from now on, and answers what the target exports.
    /// A key that is known already is the same session again.
    ///
    /// # Errors
    /// The reasons a target has to turn an initiator down.
    pub fn login(
        &self,
        iqn: &str,
        key: &str,
        session: &Session,
        proof: Option<&Chap>,
    ) -> Result<Target, Refusal> {
        let lock = self.lock()?;
        let target = self
            .get(iqn)?
            .filter(|target| target.enabled)
            .ok_or(Refusal::NoTarget)?;
        if !agree(target.chap.as_ref(), proof) {
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

    /// For the initiator side: closes a session. One that is not there is no error.
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

    /// For the initiator side: the target, as long as this session lives on it.
    ///
    /// # Errors
    /// The target's file cannot be read.
    pub fn attached(&self, iqn: &str, key: &str) -> io::Result<Option<Target>> {
        let lives = self.sessions_dir(iqn)?.join(key).try_exists()?;
        if lives { self.get(iqn) } else { Ok(None) }
    }

    fn lock(&self) -> io::Result<Lock> {
        Lock::take(&self.dir.join(".targets.lock"))
    }

    fn file(&self, iqn: &str) -> io::Result<PathBuf> {
        Ok(self.dir.join(format!("{}.json", safe(iqn)?)))
    }

    fn sessions_dir(&self, iqn: &str) -> io::Result<PathBuf> {
        Ok(self.dir.join(format!("{}.sessions", safe(iqn)?)))
    }
}

impl TargetBackend for Targets {
    fn align(&self, targets: &[Target]) -> io::Result<()> {
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

/// Whether both sides of a login are content. `proof` is what the initiator proves itself with and, as `mutual`, what it
/// wants to be proven in return; a target without CHAP asks nobody and can prove nothing.
fn agree(wanted: Option<&Chap>, proof: Option<&Chap>) -> bool {
    let known = wanted.is_none_or(|wanted| {
        proof.is_some_and(|proof| proof.user == wanted.user && proof.password == wanted.password)
    });
    let asked = proof.and_then(|proof| proof.mutual.as_ref());
    known && asked.is_none_or(|asked| wanted.and_then(|chap| chap.mutual.as_ref()) == Some(asked))
}

/// An IQN as a file name: letters, digits, `-`, `.` and `:` stay, all else (slashes, blanks, …) is
/// written as `%XX`. Two names never share a file, and none begins with a dot.
fn safe(iqn: &str) -> io::Result<String> {
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
