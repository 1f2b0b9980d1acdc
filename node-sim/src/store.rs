//! Atomic writes of small files, and the lock that serializes their writers.
//!
//! A file is written to a temporary file, synced and renamed, and the folder is synced: `kill -9` or a power cut at any moment
//! leaves the old content or the new one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// What a file has to survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durability {
    /// A power cut: synced.
    Always,
    /// Only `kill -9`: for files about sessions, which end at a reboot anyway. Not synced.
    Reboot,
}

/// An advisory lock on a file, held until it is dropped; other processes wait. Only its holder may write.
#[derive(Debug)]
pub(crate) struct Lock {
    file: File,
    /// The temporary file of all writes: a single path, so that a killed writer leaves at most one.
    temp: PathBuf,
}

impl Lock {
    /// Waits for the lock on `path`, which is created if missing.
    pub(crate) fn take(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)?;
        file.lock()?;
        Ok(Self {
            file,
            temp: path.with_extension("new"),
        })
    }

    /// The lock as the standard input of a child process: it is then held until the child has ended, too. So a child that
    /// outlives this process cannot interfere with the next holder.
    pub(crate) fn share(&self) -> io::Result<Stdio> {
        Ok(Stdio::from(self.file.try_clone()?))
    }

    /// Replaces the content of `path`, which is on the lock's own file system.
    pub(crate) fn write(
        &self,
        path: &Path,
        content: &[u8],
        durability: Durability,
    ) -> io::Result<()> {
        let mut file = File::create(&self.temp)?;
        file.write_all(content)?;
        if durability == Durability::Always {
            file.sync_all()?;
        }
        fs::rename(&self.temp, path)?;
        match (durability, path.parent()) {
            (Durability::Always, Some(folder)) => sync_folder(folder),
            (Durability::Always | Durability::Reboot, _) => Ok(()),
        }
    }

    /// Replaces `path` by `value` as JSON.
    pub(crate) fn write_json<T: Serialize>(
        &self,
        path: &Path,
        value: &T,
        durability: Durability,
    ) -> io::Result<()> {
        let mut text = serde_json::to_vec_pretty(value)?;
        text.push(b'\n');
        self.write(path, &text, durability)
    }
}

/// Reads JSON from `path`; `None` if the file does not exist.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{}: {error}", path.display()),
            )
        }),
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(other) => Err(other),
    }
}

/// Removes a file. Idempotent.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    ignore_absent(fs::remove_file(path))
}

/// Removes a folder and everything below it, without following symbolic links. Idempotent.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    ignore_absent(fs::remove_dir_all(path))
}

/// Syncs `folder`, so that its entries survive a power cut.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// The names in `folder` that do not start with a dot, sorted; empty if the folder is missing.
pub(crate) fn names(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(other) => return Err(other),
    };
    let mut names = Vec::new();
    for entry in entries {
        // We write no names that are not UTF-8.
        if let Ok(name) = entry?.file_name().into_string()
            && !name.starts_with('.')
        {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn ignore_absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_lock_is_free_when_the_last_holder_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let lock = Lock::take(&path).unwrap();
        let childs = lock.share().unwrap();
        let other = File::open(&path).unwrap();
        assert!(other.try_lock().is_err());
        // As after kill -9: the child still runs and keeps the lock.
        drop(lock);
        assert!(other.try_lock().is_err());
        drop(childs);
        other.try_lock().unwrap();
    }

    #[test]
    fn a_file_is_replaced_atomically_without_leftovers() {
        let dir = tempfile::tempdir().unwrap();
        let lock = Lock::take(&dir.path().join("lock")).unwrap();
        let path = dir.path().join("file");
        for (content, durability) in [("one", Durability::Always), ("two", Durability::Reboot)] {
            lock.write(&path, content.as_bytes(), durability).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        assert_eq!(names(dir.path()).unwrap(), ["file", "lock"]);
        assert_eq!(read_json::<u32>(&dir.path().join("none")).unwrap(), None);
        assert!(
            read_json::<u32>(&path)
                .unwrap_err()
                .to_string()
                .contains("file: ")
        );
        remove(&path).unwrap();
        remove(&path).unwrap();
    }
}
