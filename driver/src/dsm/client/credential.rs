//! Remembers refused logins (design.md#one-login), and decides when a refused credential is tried again.
//!
//! DSM's Auto Block locks out an address after a few wrong passwords, as measured three in five minutes; both numbers are
//! settings of the NAS, and only an administrator can unblock it. Other login errors are not counted by Auto Block. They are
//! fixed on the NAS, and the driver notices only by trying again.

use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use crate::dsm::reply::{Code, LoginRefusal, NextTry};

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
/// How long to send no login after Auto Block has refused this address, in seconds.
const BLOCKED_PAUSE: u64 = 10 * MINUTE;
/// Limits for failures that Auto Block counts, as (seconds, failures): no more than without restarts ([`pause`]).
const FAILURE_LIMITS: [(u64, usize); 2] = [(HOUR, 2), (DAY, 4)];
/// How many refused passwords to remember besides the last one: going back to one of them is no new password.
const MAX_FORMER: usize = 8;

/// Seconds until a credential that was refused `times` times in a row is tried again.
fn pause(kind: LoginRefusal, times: u32) -> u64 {
    match (kind, times) {
        (LoginRefusal::Transient, _) => 0,
        (LoginRefusal::Credential, ..=1) => 15 * MINUTE,
        (LoginRefusal::Credential, 2) => HOUR,
        (LoginRefusal::Credential, 3) => 6 * HOUR,
        (LoginRefusal::Credential, _) => DAY,
        (LoginRefusal::Account, ..=1) => MINUTE,
        (LoginRefusal::Account, 2) => 2 * MINUTE,
        (LoginRefusal::Account, _) => 5 * MINUTE,
        (LoginRefusal::Address, _) => BLOCKED_PAUSE,
    }
}

/// The refused logins of all NASes. Persisted in a file if one is configured, so that a driver in a restart loop does not use an
/// attempt each time.
#[derive(Debug)]
pub struct Refusals {
    file: Option<PathBuf>,
    known: Mutex<BTreeMap<String, Record>>,
    started: (u64, Instant),
}

/// The refused logins of one NAS. Times are Unix seconds; the file is readable by its owner only. The first three fields are the
/// format of the previous version.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Record {
    #[serde(flatten)]
    last: Hash,
    code: u32,
    /// How often it was refused in a row, for the same kind of reason.
    #[serde(default)]
    times: u32,
    /// When it was last refused.
    #[serde(default)]
    at: u64,
    /// The failures of the last day that Auto Block counts.
    #[serde(default)]
    counted: Vec<u64>,
    /// When DSM last reported that it blocks this address.
    #[serde(default)]
    blocked: Option<u64>,
    /// Credentials that were refused before the last one.
    #[serde(default)]
    former: Vec<Hash>,
    /// When a known credential is tried next.
    #[serde(skip)]
    next: u64,
}

/// A salted hash of a refused credential.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Hash {
    salt: String,
    hash: String,
}

/// A credential as one NAS sees it.
#[derive(Clone, Copy, Debug)]
pub struct Credential<'a> {
    /// The URL of the NAS; the same password may be right elsewhere.
    pub url: &'a str,
    /// The account.
    pub account: &'a str,
    /// The password.
    pub password: &'a SecretString,
}

impl Credential<'_> {
    fn hash(&self, salt: &str) -> String {
        let mut hasher = Sha256::new();
        for part in [salt, self.url, self.account, self.password.expose_secret()] {
            hasher.update(part.len().to_le_bytes());
            hasher.update(part);
        }
        hex::encode(hasher.finalize())
    }

    fn salted(&self) -> Hash {
        let salt = hex::encode(rand::random::<[u8; 16]>());
        Hash {
            hash: self.hash(&salt),
            salt,
        }
    }

    fn is(&self, known: &Hash) -> bool {
        known.hash == self.hash(&known.salt)
    }
}

impl Record {
    fn kind(&self) -> LoginRefusal {
        Code(self.code).login()
    }

    fn knows(&self, credential: Credential<'_>) -> bool {
        std::iter::once(&self.last)
            .chain(&self.former)
            .any(|hash| credential.is(hash))
    }

    /// When a process that has just started may try: immediately, unless a wrong password was tried as often as is allowed
    /// without restarts. Then it waits for its regular retry, or until the failure limits allow another attempt, whichever is
    /// first.
    fn after_restart(&self, now: u64) -> u64 {
        if self.kind() != LoginRefusal::Credential {
            return now;
        }
        let room = FAILURE_LIMITS.map(|(span, most)| {
            let newest_first = self.counted.iter().rev();
            newest_first
                .skip(most - 1)
                .map(|at| at + span)
                .next()
                .unwrap_or(now)
        });
        let turn = self.at + pause(self.kind(), self.times);
        room.into_iter().max().unwrap_or(now).min(turn).max(now)
    }

    /// The last refusal and the next attempt, if no login may be sent now.
    fn pending(&self, credential: Credential<'_>, now: u64) -> Option<(Code, NextTry)> {
        if let Some(at) = self.blocked.map(|at| at + BLOCKED_PAUSE)
            && now < at
        {
            let restart = false;
            return Some((Code::ADDRESS_BLOCKED, NextTry { at, restart }));
        }
        (now < self.next && self.knows(credential)).then(|| {
            let restart = self.after_restart(now) == now;
            let at = self.next;
            (Code(self.code), NextTry { at, restart })
        })
    }

    fn refuse(&mut self, credential: Credential<'_>, code: Code, now: u64) {
        let kind = code.login();
        if kind == LoginRefusal::Address {
            self.blocked = Some(now);
            return;
        }
        if kind == LoginRefusal::Credential {
            self.counted.retain(|at| now < at + DAY);
            self.counted.push(now);
        }
        let again = self.knows(credential) && self.kind() == kind;
        self.times = if again { self.times + 1 } else { 1 };
        if !credential.is(&self.last) {
            self.former.retain(|hash| !credential.is(hash));
            let last = std::mem::replace(&mut self.last, credential.salted());
            if !last.hash.is_empty() {
                self.former.push(last);
            }
            let surplus = self.former.len().saturating_sub(MAX_FORMER);
            self.former.drain(..surplus);
        }
        (self.code, self.at) = (code.0, now);
        self.next = now + pause(kind, self.times);
    }

    /// Adjusts a record from the file at startup. If the clock was set back, no pause becomes longer.
    fn restored(mut self, now: u64) -> Self {
        self.at = self.at.min(now);
        self.blocked = self.blocked.map(|at| at.min(now));
        for at in &mut self.counted {
            *at = (*at).min(now);
        }
        self.counted.retain(|at| now < at + DAY);
        self.next = self.after_restart(now);
        self
    }
}

impl Default for Refusals {
    fn default() -> Self {
        Self::with(None, BTreeMap::new())
    }
}

impl Refusals {
    /// Loads `file`; a missing or empty file has no records.
    ///
    /// # Errors
    /// The file exists, and cannot be read or parsed.
    pub fn open(file: Option<PathBuf>) -> io::Result<Self> {
        let known = match file.as_deref().map(std::fs::read) {
            // After a crash of the machine the file may be empty.
            Some(Ok(text)) if text.trim_ascii().is_empty() => BTreeMap::new(),
            Some(Ok(text)) => serde_json::from_slice(&text)?,
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Some(Err(_)) | None => BTreeMap::new(),
        };
        Ok(Self::with(file, known))
    }

    fn with(file: Option<PathBuf>, known: BTreeMap<String, Record>) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |since| since.as_secs());
        let known = known
            .into_iter()
            .map(|(nas, record)| (nas, record.restored(now)))
            .collect();
        Self {
            file,
            known: Mutex::new(known),
            started: (now, Instant::now()),
        }
    }

    /// The code with which `nas` refused this credential and the time of the next attempt, if that is not due yet.
    pub fn pending(&self, nas: &str, credential: Credential<'_>) -> Option<(Code, NextTry)> {
        self.known().get(nas)?.pending(credential, self.now())
    }

    /// Remembers that `nas` refused this credential, and returns when to try it again. `None`: with the next call.
    pub fn remember(&self, nas: &str, credential: Credential<'_>, code: Code) -> Option<NextTry> {
        if code.login() == LoginRefusal::Transient {
            return None;
        }
        let now = self.now();
        self.update(|known| {
            let record = known.entry(nas.to_owned()).or_default();
            record.refuse(credential, code, now);
        });
        self.pending(nas, credential).map(|(_, next)| next)
    }

    /// `nas` has accepted a credential.
    pub fn forget(&self, nas: &str) {
        if self.known().contains_key(nas) {
            self.update(|known| {
                known.remove(nas);
            });
        }
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<String, Record>> {
        self.known.lock()
    }

    /// Unix seconds, by the monotonic clock since startup: setting the clock does not change pauses.
    fn now(&self) -> u64 {
        let (started, since) = self.started;
        started + since.elapsed().as_secs()
    }

    fn update(&self, change: impl FnOnce(&mut BTreeMap<String, Record>)) {
        let mut known = self.known();
        change(&mut known);
        if let Some(file) = &self.file
            && let Err(error) = write(file, &known)
        {
            // The records in memory still protect the account.
            tracing::warn!(file = %file.display(), %error, "refused logins cannot be written to state_file");
        }
    }
}

fn write(file: &Path, known: &BTreeMap<String, Record>) -> io::Result<()> {
    let directory = file
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let mut temporary = tempfile::NamedTempFile::new_in(directory)?;
    temporary.write_all(&serde_json::to_vec_pretty(known)?)?;
    temporary.as_file().sync_all()?;
    temporary.persist(file).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests;
