//! The state on disk: `state.json` is a full snapshot of the state, `state.log` has every change since, one line each.
//!
//! A call costs one line, however large the state is. Only complete lines count, so a kill at any moment leaves the state before
//! a call or after it. The log is not synced: after a power cut the newest lines may be missing, as the last writes of a NAS may.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::nas::state::{Changes, State};

const FORMAT: u32 = 2;
const STATE: &str = "state.json";
const LOG: &str = "state.log";
/// A log shorter than this, in bytes, is not compacted.
const MIN_COMPACT_LENGTH: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
struct Saved<S> {
    format: u32,
    /// The number of the last log line that `state` includes.
    line: u64,
    state: S,
}

#[derive(Serialize, Deserialize)]
struct Line<C> {
    line: u64,
    changes: C,
}

#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// The open state directory.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
    log: File,
    /// The number of the last line.
    line: u64,
    /// The length of the log, in bytes.
    length: u64,
    /// The log length, in bytes, at which it is compacted.
    compact_at: u64,
}

impl Store {
    /// Opens the store in a directory, and loads the last committed state; an empty one if there is none yet.
    ///
    /// # Errors
    /// A file cannot be read or written, or is not a state of this dsm-sim; the message names it.
    pub(crate) fn open(dir: &Path) -> io::Result<(Self, State)> {
        let mut saved = read_state(&dir.join(STATE))?;
        let path = dir.join(LOG);
        let mut log = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)?;
        let mut text = Vec::new();
        log.read_to_end(&mut text)?;
        // An incomplete last line was cut off by a kill, and its call was never answered.
        let complete = text.iter().rposition(|&byte| byte == b'\n').unwrap_or(0);
        for line in text[..complete].split(|&byte| byte == b'\n') {
            if line.is_empty() {
                continue;
            }
            let line: Line<Changes> =
                serde_json::from_slice(line).map_err(|error| invalid_state(&path, &error))?;
            if line.line > saved.line {
                saved.line = line.line;
                saved.state.apply(line.changes);
            }
        }
        let mut store = Self {
            dir: dir.to_owned(),
            log,
            line: saved.line,
            length: 0,
            compact_at: MIN_COMPACT_LENGTH,
        };
        store.compact(&saved.state)?;
        Ok((store, saved.state))
    }

    /// How many lines were ever written, over all runs.
    pub(crate) fn lines(&self) -> u64 {
        self.line
    }

    /// Saves the changes of the state: when this returns, they survive a kill.
    ///
    /// # Errors
    /// They cannot be written; none of them will be read back.
    pub(crate) fn append(&mut self, state: &State) -> io::Result<()> {
        let changes = state.changes();
        if changes.is_empty() {
            return Ok(());
        }
        let mut text = serde_json::to_vec(&Line {
            line: self.line + 1,
            changes,
        })?;
        text.push(b'\n');
        if let Err(error) = self.log.write_all(&text) {
            self.log.set_len(self.length)?;
            self.log.seek(SeekFrom::End(0))?;
            return Err(error);
        }
        self.line += 1;
        self.length += text.len() as u64;
        if self.length >= self.compact_at {
            self.compact(state)?;
        }
        Ok(())
    }

    /// Writes the whole state to `state.json`, and empties the log. A kill in between is harmless: by their numbers, lines left
    /// in the log are recognized as included.
    fn compact(&mut self, state: &State) -> io::Result<()> {
        let text = serde_json::to_vec(&Saved {
            format: FORMAT,
            line: self.line,
            state,
        })?;
        write_atomically(&self.dir, STATE, &text)?;
        self.log.set_len(0)?;
        self.log.seek(SeekFrom::Start(0))?;
        self.length = 0;
        // Amortized, each byte of a change is written a bounded number of times.
        self.compact_at = MIN_COMPACT_LENGTH.max(2 * text.len() as u64);
        Ok(())
    }
}

fn read_state(path: &Path) -> io::Result<Saved<State>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Saved {
                format: FORMAT,
                line: 0,
                state: State::default(),
            });
        }
        Err(error) => return Err(error),
    };
    let Format { format } =
        serde_json::from_slice(&text).map_err(|error| invalid_state(path, &error))?;
    if format != FORMAT {
        return Err(invalid_state(
            path,
            &format!("format {format}, this dsm-sim writes {FORMAT}"),
        ));
    }
    serde_json::from_slice(&text).map_err(|error| invalid_state(path, &error))
}

fn invalid_state(path: &Path, why: &dyn std::fmt::Display) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!(
            "{} is not a state file of this dsm-sim ({why}): use another --state-dir, or remove the file",
            path.display()
        ),
    )
}

/// Writes a file atomically: readers see the old or the new content, never a part. Temporary file, fsync, rename.
///
/// # Errors
/// The file cannot be written; the old content is still there.
pub(crate) fn write_atomically(dir: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let temporary = dir.join(format!(".{name}.new"));
    // The state contains CHAP passwords, so only the owner may read it.
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nas::state::volume::{Volume, VolumeSpec};

    fn volume(spec: &str) -> Volume {
        spec.parse::<VolumeSpec>().unwrap().into()
    }

    /// Creates a store with two lines in its log. Returns the state.
    fn two_lines(dir: &Path) -> State {
        let (mut store, mut state) = Store::open(dir).unwrap();
        assert_eq!(state, State::default());
        for spec in ["/volume1=btrfs:1TiB", "/volume2=ext4:1TiB"] {
            state.volumes.put(volume(spec));
            store.append(&state).unwrap();
            state.commit();
        }
        state
    }

    #[test]
    fn a_state_is_loaded_as_it_was_committed() {
        let dir = tempfile::tempdir().unwrap();
        let state = two_lines(dir.path());
        assert_eq!(Store::open(dir.path()).unwrap().1, state);
        // Opening has moved the log into the state file.
        assert_eq!(fs::read(dir.path().join(LOG)).unwrap(), b"");
        assert_eq!(Store::open(dir.path()).unwrap().1, state);
    }

    #[test]
    fn an_incomplete_line_is_ignored_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let whole = two_lines(dir.path());
        let log = fs::read(dir.path().join(LOG)).unwrap();
        let first = log.iter().position(|&byte| byte == b'\n').unwrap() + 1;
        let mut half = whole.clone();
        half.volumes.remove(&"/volume2".to_owned());
        for length in first..=log.len() {
            fs::write(dir.path().join(LOG), &log[..length]).unwrap();
            let copy = tempfile::tempdir().unwrap();
            for name in [STATE, LOG] {
                fs::copy(dir.path().join(name), copy.path().join(name)).unwrap();
            }
            let (mut store, mut state) = Store::open(copy.path()).unwrap();
            assert_eq!(
                state,
                if length == log.len() {
                    whole.clone()
                } else {
                    half.clone()
                }
            );
            state.volumes.put(volume("/volume3=ext4:1TiB"));
            store.append(&state).unwrap();
            assert_eq!(Store::open(copy.path()).unwrap().1, state);
        }
    }

    #[test]
    fn lines_included_in_the_state_are_not_applied_again() {
        let dir = tempfile::tempdir().unwrap();
        two_lines(dir.path());
        let log = fs::read(dir.path().join(LOG)).unwrap();
        let (mut store, mut state) = Store::open(dir.path()).unwrap();
        state.volumes.remove(&"/volume1".to_owned());
        store.append(&state).unwrap();
        let newest = fs::read(dir.path().join(LOG)).unwrap();
        // As if the process had been killed during compaction, before it emptied the log.
        fs::write(dir.path().join(LOG), [log, newest].concat()).unwrap();
        assert_eq!(Store::open(dir.path()).unwrap().1, state);
    }

    #[test]
    fn the_log_does_not_grow_without_bound() {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, mut state) = Store::open(dir.path()).unwrap();
        for n in 0..20_000 {
            state
                .volumes
                .put(volume(&format!("/volume{}=ext4:1TiB", n % 10)));
            store.append(&state).unwrap();
            state.commit();
            state.volumes.remove(&format!("/volume{}", n % 10));
            store.append(&state).unwrap();
            state.commit();
        }
        assert!(fs::metadata(dir.path().join(LOG)).unwrap().len() <= MIN_COMPACT_LENGTH);
        assert_eq!(Store::open(dir.path()).unwrap().1, state);
    }

    #[test]
    fn an_invalid_file_is_an_error_that_names_it() {
        for (name, bad) in [
            (STATE, ""),
            (STATE, "{\"format\":1,\"state\":{\"luns\":{}}}"),
            (STATE, "[]"),
            (LOG, "garbage\n"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(name), bad).unwrap();
            let error = Store::open(dir.path()).unwrap_err().to_string();
            assert!(error.contains(name), "{bad}: {error}");
        }
    }
}
