//! The state on disk: `state.json` is the state as it once was, `state.log` has every change since, one line each.
//!
//! A call costs one line, however much there is on the NAS. A line counts when it is whole, so a kill at any moment
//! leaves the state before a call or after it. The system's own buffers are trusted: after a power cut the newest lines
//! may be missing, as the last writes of a NAS may.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::nas::state::{Changes, State};

const FORMAT: u32 = 2;
const STATE: &str = "state.json";
const LOG: &str = "state.log";
/// A log that is shorter than this is never folded into the state.
const LEAST: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
struct Saved<S> {
    format: u32,
    /// The last line of the log that is in it.
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

/// Where the state is kept.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
    log: File,
    /// The number of the last line, and the bytes of all lines.
    line: u64,
    length: u64,
    /// The length at which the log is folded into the state.
    fold_at: u64,
}

impl Store {
    /// Opens the store in a folder, with the state as it was last committed; an empty one when there is none yet.
    ///
    /// # Errors
    /// A file cannot be read or written, or is not ours; the message names it.
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
        // What follows the last line's end was cut off by a kill, and its call was never answered.
        let whole = text.iter().rposition(|&byte| byte == b'\n').unwrap_or(0);
        for line in text[..whole].split(|&byte| byte == b'\n') {
            if line.is_empty() {
                continue;
            }
            let line: Line<Changes> =
                serde_json::from_slice(line).map_err(|error| not_ours(&path, &error))?;
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
            fold_at: LEAST,
        };
        store.fold(&saved.state)?;
        Ok((store, saved.state))
    }

    /// How many lines were written in all lives so far.
    pub(crate) fn lines(&self) -> u64 {
        self.line
    }

    /// Keeps what has changed in the state: when this returns, it survives a kill.
    ///
    /// # Errors
    /// It could not be written; nothing of it will be read.
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
        if self.length >= self.fold_at {
            self.fold(state)?;
        }
        Ok(())
    }

    /// Makes the whole state the new beginning, and empties the log. A kill in between is harmless: the lines that are
    /// left in the log are in the state, by their numbers.
    fn fold(&mut self, state: &State) -> io::Result<()> {
        let text = serde_json::to_vec(&Saved {
            format: FORMAT,
            line: self.line,
            state,
        })?;
        write_atomically(&self.dir, STATE, &text)?;
        self.log.set_len(0)?;
        self.log.seek(SeekFrom::Start(0))?;
        self.length = 0;
        // In the long run, each byte of a change is written a bounded number of times.
        self.fold_at = LEAST.max(2 * text.len() as u64);
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
        serde_json::from_slice(&text).map_err(|error| not_ours(path, &error))?;
    if format != FORMAT {
        return Err(not_ours(
            path,
            &format!("format {format}, this dsm-sim writes {FORMAT}"),
        ));
    }
    serde_json::from_slice(&text).map_err(|error| not_ours(path, &error))
}

fn not_ours(path: &Path, why: &dyn std::fmt::Display) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!(
            "{} is not a state of this dsm-sim ({why}): take another --state-dir, or remove it",
            path.display()
        ),
    )
}

/// Writes a file so that readers see the old or the new content, never a part: temporary file, fsync, rename.
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
    fs::rename(&temporary, dir.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nas::state::volume::{Volume, VolumeSpec};

    fn volume(spec: &str) -> Volume {
        spec.parse::<VolumeSpec>().unwrap().into()
    }

    /// A store with two lines in its log.
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
        // By now it is in the other file.
        assert_eq!(fs::read(dir.path().join(LOG)).unwrap(), b"");
        assert_eq!(Store::open(dir.path()).unwrap().1, state);
    }

    #[test]
    fn a_line_that_was_cut_off_does_not_count_and_is_gone() {
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
    fn lines_that_are_in_the_state_already_are_not_applied_again() {
        let dir = tempfile::tempdir().unwrap();
        two_lines(dir.path());
        let log = fs::read(dir.path().join(LOG)).unwrap();
        let (mut store, mut state) = Store::open(dir.path()).unwrap();
        state.volumes.remove(&"/volume1".to_owned());
        store.append(&state).unwrap();
        let newest = fs::read(dir.path().join(LOG)).unwrap();
        // As if the fold had been killed before it emptied the log.
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
        assert!(fs::metadata(dir.path().join(LOG)).unwrap().len() <= LEAST);
        assert_eq!(Store::open(dir.path()).unwrap().1, state);
    }

    #[test]
    fn a_file_that_is_not_ours_is_an_error_that_names_it() {
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
