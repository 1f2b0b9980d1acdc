//! Cuts initiators off from a LUN: replaces its file by a copy under the same path, so that writes through the open old file no
//! longer reach the LUN.
//!
//! All writes are cut off at the same moment, as when a real target drops its sessions. The file is immutable while it is copied,
//! which makes writes through a loop device fail (`chattr(1)`; setting the flag waits for writes in progress), and the old file
//! stays immutable after the copy has replaced it. Only during the rename it is not, because an immutable file cannot be renamed
//! over; a write at that moment goes to the old file and is lost. If the file system does not support the flag (or we lack the
//! privilege), all writes after the copy go to the old file.
//!
//! `kill -9` in between leaves a temporary file next to the LUN's, and the LUN's own file immutable: see [`thaw`].

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

use crate::{sparse, store};

/// Replaces the file by a copy of it. Does nothing if the file does not exist.
pub(super) fn replace_file(path: &Path) -> io::Result<()> {
    let old = match File::open(path) {
        Ok(old) => old,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(other) => return Err(other),
    };
    let fresh = fresh_path(path);
    freeze(&old, true);
    let copied = copy(&old, &fresh);
    freeze(&old, false);
    if let Err(error) = copied.and_then(|()| fs::rename(&fresh, path)) {
        let _ = store::remove(&fresh);
        let text = format!("{}: {error}", path.display());
        return Err(io::Error::new(error.kind(), text));
    }
    freeze(&old, true);
    path.parent().map_or(Ok(()), store::sync_folder)
}

/// Recovery after a kill: makes a LUN's file writable and removable again. A file next to it with the suffix `.fresh` is an
/// unfinished copy and may be removed.
///
/// # Errors
/// The file exists and cannot be opened, or stays immutable.
pub fn thaw(path: &Path) -> io::Result<()> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(other) => return Err(other),
    };
    match ioctl_getflags(&file) {
        Ok(flags) if flags.contains(IFlags::IMMUTABLE) => {
            Ok(ioctl_setflags(&file, flags - IFlags::IMMUTABLE)?)
        }
        // A file system without these flags has no immutable files.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Sets or clears the immutable flag, if that is possible.
fn freeze(file: &File, frozen: bool) {
    if let Ok(mut flags) = ioctl_getflags(file) {
        flags.set(IFlags::IMMUTABLE, frozen);
        let _ = ioctl_setflags(file, flags);
    }
}

/// Makes a synced copy with the same mode and owner.
fn copy(old: &File, fresh: &Path) -> io::Result<()> {
    let to = File::create(fresh)?;
    sparse::copy(old, &to)?;
    let stat = old.metadata()?;
    to.set_permissions(stat.permissions())?;
    fchown(&to, Some(stat.uid()), Some(stat.gid()))?;
    to.sync_all()
}

fn fresh_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".fresh");
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt as _, PermissionsExt as _};

    use super::*;

    #[test]
    fn writes_to_the_old_file_do_not_reach_the_copy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lun.img");
        fs::write(&path, b"before").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let old = File::options().write(true).open(&path).unwrap();
        replace_file(&path).unwrap();
        // The write fails, or goes to a file that no longer has a name.
        let _ = old.write_at(b"after!", 0);
        assert_eq!(fs::read(&path).unwrap(), b"before");
        let stat = fs::metadata(&path).unwrap();
        assert_eq!(stat.mode() & 0o777, 0o640);
        assert_ne!(stat.ino(), old.metadata().unwrap().ino());
        fs::write(&path, b"new one").unwrap();
        assert_eq!(store::names(dir.path()).unwrap(), ["lun.img"]);
    }

    #[test]
    fn a_missing_file_is_not_an_error_and_a_failure_keeps_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lun.img");
        replace_file(&path).unwrap();
        thaw(&path).unwrap();
        fs::write(&path, b"before").unwrap();
        // This makes the copy fail.
        fs::create_dir(fresh_path(&path)).unwrap();
        let error = replace_file(&path).unwrap_err().to_string();
        assert!(error.contains("lun.img"), "{error}");
        fs::write(&path, b"still ours").unwrap();
    }

    #[test]
    fn a_file_left_immutable_by_a_kill_can_be_thawed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lun.img");
        fs::write(&path, b"before").unwrap();
        freeze(&File::open(&path).unwrap(), true);
        thaw(&path).unwrap();
        fs::write(&path, b"after").unwrap();
    }
}
