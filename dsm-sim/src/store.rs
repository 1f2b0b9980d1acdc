//! The state on disk: `state.json` is the truth, and is whole at any moment.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::nas::State;

const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Saved<S> {
    format: u32,
    state: S,
}

/// Where the state is kept.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
}

impl Store {
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    /// The state as it was last saved; an empty one when there is none yet.
    ///
    /// # Errors
    /// The file cannot be read, or is not ours.
    pub(crate) fn load(&self) -> io::Result<State> {
        let path = self.dir.join("state.json");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(State::default()),
            Err(error) => return Err(error),
        };
        let wrong = |what: String| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{}: {what}", path.display()),
            )
        };
        let saved: Saved<State> =
            serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        if saved.format != FORMAT {
            return Err(wrong(format!(
                "format {} was written by another version of dsm-sim; take a new --state-dir",
                saved.format
            )));
        }
        Ok(saved.state)
    }

    /// Saves the state: when this returns it survives a power cut, and before that the old one does.
    ///
    /// # Errors
    /// It could not be written; the old state is still there.
    pub(crate) fn save(&self, state: &State) -> io::Result<()> {
        write_atomically(
            &self.dir,
            "state.json",
            &serde_json::to_vec(&Saved {
                format: FORMAT,
                state,
            })?,
        )
    }
}

/// Writes a file so that readers see the old or the new content, never a part: temporary file, fsync, rename, fsync of
/// the folder.
///
/// # Errors
/// It could not be written; what was there is still there.
pub(crate) fn write_atomically(dir: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!(".{name}.new"));
    // CHAP passwords are in the state, so nobody else may read it.
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(name))?;
    sync_dir(dir)
}

/// Makes the names in a folder survive a power cut.
///
/// # Errors
/// The folder cannot be opened or synced.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_loaded_as_it_was_saved() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        assert_eq!(store.load().unwrap(), State::default());
        let mut state = State::default();
        let spec: crate::volume::VolumeSpec = "/volume1=btrfs:1TiB".parse().unwrap();
        state.volumes.insert(spec.path.clone(), spec.into());
        store.save(&state).unwrap();
        assert_eq!(store.load().unwrap(), state);
    }

    #[test]
    fn a_file_that_is_not_ours_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        for bad in [
            "",
            "{\"format\":99,\"state\":{\"luns\":{},\"targets\":{},\"volumes\":{}}}",
            "[]",
        ] {
            fs::write(dir.path().join("state.json"), bad).unwrap();
            assert!(
                Store::new(dir.path())
                    .load()
                    .unwrap_err()
                    .to_string()
                    .contains("state.json"),
                "{bad}"
            );
        }
    }
}
