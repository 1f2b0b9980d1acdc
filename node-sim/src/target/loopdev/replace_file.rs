//! Detaches a LUN from processes that still have its file open: replaces the file by a copy under the same path.
//!
//! All writes are cut off at the same moment, as when a real target drops its sessions. While the file is copied it is immutable,
//! which makes writes through a loop device fail (`chattr(1)`; setting the flag waits for writes in progress). After the copy has
//! replaced it, the old file stays immutable. Only during the rename, which fails on an immutable file, it is not; a write at
//! that moment goes to the old file and is lost. If the file system has no such flag (or permission is missing), all writes after
//! the copy go to the old file.
//!
//! `kill -9` in between leaves a temporary file next to the LUN's file, and the LUN's file immutable: see [`thaw`].

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

use crate::{sparse, store};

/// Replaces a file by a copy of it. A missing file is ignored.
pub(super) fn replace_file(path: &Path) -> io::Result<()> {
    let old = match File::open(path) {
        Ok(old) => old,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(other) => return Err(other),
    };
    let fresh = temp_path(path);
    set_immutable(&old, true);
    let copied = copy(&old, &fresh);
    set_immutable(&old, false);
    if let Err(error) = copied.and_then(|()| fs::rename(&fresh, path)) {
        let _ = store::remove(&fresh);
        let text = format!("{}: {error}", path.display());
        return Err(io::Error::new(error.kind(), text));
    }
    set_immutable(&old, true);
    path.parent().map_or(Ok(()), store::sync_folder)
}

/// Recovery after a kill: clears the immutable flag of a LUN's file. A file next to it with the suffix `.fresh` is an incomplete
/// copy and may be removed.
///
/// # Errors
/// The file exists but cannot be opened, or stays immutable.
pub fn clear_immutable(path: &Path) -> io::Result<()> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(other) => return Err(other),
    };
    match ioctl_getflags(&file) {
        Ok(flags) if flags.contains(IFlags::IMMUTABLE) => {
            Ok(ioctl_setflags(&file, flags - IFlags::IMMUTABLE)?)
        }
        // A file system without flags has no immutable files.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Sets or clears the immutable flag, if possible.
fn set_immutable(file: &File, immutable: bool) {
    if let Ok(mut flags) = ioctl_getflags(file) {
        flags.set(IFlags::IMMUTABLE, immutable);
        let _ = ioctl_setflags(file, flags);
    }
}

/// A copy that survives a power cut, with the same mode and owner.
fn copy(old: &File, fresh: &Path) -> io::Result<()> {
    let to = File::create(fresh)?;
    sparse::copy(old, &to)?;
    let stat = old.metadata()?;
    to.set_permissions(stat.permissions())?;
    fchown(&to, Some(stat.uid()), Some(stat.gid()))?;
    to.sync_all()
}

fn temp_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".fresh");
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt as _, PermissionsExt as _};

    use super::*;

    #[test]
    fn the_path_has_a_copy_that_is_independent_of_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lun.img");
        fs::write(&path, b"before").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let old = File::options().write(true).open(&path).unwrap();
        replace_file(&path).unwrap();
        // The write fails, or goes to the old file, which has no name any more.
        let _ = old.write_at(b"after!", 0);
        assert_eq!(fs::read(&path).unwrap(), b"before");
        let stat = fs::metadata(&path).unwrap();
        assert_eq!(stat.mode() & 0o777, 0o640);
        assert_ne!(stat.ino(), old.metadata().unwrap().ino());
        fs::write(&path, b"new one").unwrap();
        assert_eq!(store::names(dir.path()).unwrap(), ["lun.img"]);
    }

    #[test]
    fn a_missing_file_is_ignored_and_a_failure_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lun.img");
        replace_file(&path).unwrap();
        clear_immutable(&path).unwrap();
        fs::write(&path, b"before").unwrap();
        // The copy fails.
        fs::create_dir(temp_path(&path)).unwrap();
        let error = replace_file(&path).unwrap_err().to_string();
        assert!(error.contains("lun.img"), "{error}");
        fs::write(&path, b"still ours").unwrap();
    }

    #[test]
    fn thaw_recovers_the_file_after_a_kill() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lun.img");
        fs::write(&path, b"before").unwrap();
        set_immutable(&File::open(&path).unwrap(), true);
        clear_immutable(&path).unwrap();
        fs::write(&path, b"after").unwrap();
    }
}
