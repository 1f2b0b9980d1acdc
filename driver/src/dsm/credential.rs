//! Refused credentials are remembered and not tried again until they change (design choice 23): three failed logins lock
//! the driver's address out of the NAS for a day.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::reply::Code;

/// The memory of refused credentials of all NASes, kept in a file where one is configured, so that a pod that restarts
/// does not spend the next try.
#[derive(Debug, Default)]
pub struct Refusals {
    file: Option<PathBuf>,
    known: Mutex<BTreeMap<String, Refusal>>,
}

/// A salted hash of one refused credential; the file is readable by its owner alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Refusal {
    salt: String,
    hash: String,
    code: u32,
}

/// A credential as one NAS sees it.
#[derive(Clone, Copy, Debug)]
pub struct Credential<'a> {
    /// The NAS's address; the same password may be right elsewhere.
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
}

impl Refusals {
    /// The memory in `file`; one that does not exist is empty.
    ///
    /// # Errors
    /// The file exists and cannot be read or understood.
    pub fn open(file: Option<PathBuf>) -> io::Result<Self> {
        let known = match file.as_deref().map(std::fs::read) {
            Some(Ok(text)) => serde_json::from_slice(&text)?,
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Some(Err(_)) | None => BTreeMap::new(),
        };
        Ok(Self {
            file,
            known: Mutex::new(known),
        })
    }

    /// The code with which `nas` refused this very credential.
    pub fn code(&self, nas: &str, credential: Credential<'_>) -> Option<Code> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known
            .get(nas)
            .filter(|refusal| refusal.hash == credential.hash(&refusal.salt))
            .map(|refusal| Code(refusal.code))
    }

    /// Remembers that `nas` refused this credential.
    pub fn remember(&self, nas: &str, credential: Credential<'_>, code: Code) {
        let salt = hex::encode(rand::random::<[u8; 16]>());
        let refusal = Refusal {
            hash: credential.hash(&salt),
            salt,
            code: code.0,
        };
        self.change(|known| {
            known.insert(nas.to_owned(), refusal);
        });
    }

    /// `nas` has accepted a credential.
    pub fn forget(&self, nas: &str) {
        let known = self
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains_key(nas);
        if known {
            self.change(|known| {
                known.remove(nas);
            });
        }
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, Refusal>)) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut known);
        if let Some(file) = &self.file
            && let Err(error) = write(file, &known)
        {
            // The memory of this process still protects the account.
            tracing::warn!(file = %file.display(), %error, "refused credentials cannot be written to state_file");
        }
    }
}

fn write(file: &Path, known: &BTreeMap<String, Refusal>) -> io::Result<()> {
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
mod tests {
    use super::*;

    #[test]
    fn choice_23_a_refused_credential_is_remembered_until_it_changes() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("refused.json");
        let (wrong, right) = (
            SecretString::from("wrong-password"),
            SecretString::from("right"),
        );
        let with = |password| Credential {
            url: "http://nas",
            account: "csi",
            password,
        };
        let refusals = Refusals::open(Some(file.clone())).unwrap();
        assert_eq!(refusals.code("nas1", with(&wrong)), None);
        refusals.remember("nas1", with(&wrong), Code::WRONG_PASSWORD);

        let after_restart = Refusals::open(Some(file.clone())).unwrap();
        assert_eq!(
            after_restart.code("nas1", with(&wrong)),
            Some(Code::WRONG_PASSWORD)
        );
        assert_eq!(after_restart.code("nas1", with(&right)), None);
        assert_eq!(after_restart.code("nas2", with(&wrong)), None);
        assert!(
            !std::fs::read_to_string(&file)
                .unwrap()
                .contains("wrong-password")
        );

        after_restart.forget("nas1");
        assert_eq!(
            Refusals::open(Some(file))
                .unwrap()
                .code("nas1", with(&wrong)),
            None
        );
    }

    #[test]
    fn a_state_file_that_cannot_be_understood_is_named_not_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("refused.json");
        std::fs::write(&file, "not json").unwrap();
        assert!(Refusals::open(Some(file)).is_err());
    }
}
