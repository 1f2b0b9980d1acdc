//! Parts a LUN from whoever still has its file open: the LUN goes on with a copy of the file, under the same path.
//!
//! The cut is at one moment for all writes, as when a real target drops its sessions. While the file is copied it is
//! immutable, which makes writes through a loop device fail (`chattr(1)`; setting the flag waits for writes under way),
//! and when the copy has taken its place the old file is made so for good. Only for the rename, which an immutable file
//! does not bear, it is not; a write in that moment goes to the old file and is lost. Where the file system has no such
//! flag (or we have no right to it), all writes after the copy go there.
//!
//! `kill -9` in between leaves a temporary file beside the LUN's, and the LUN's own file immutable: see [`thaw`].

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

use crate::{sparse, store};

/// Replaces the file by a copy of it. A file that is not there is no error.
pub(super) fn divorce(path: &Path) -> io::Result<()> {
    let old = match File::open(path) {
        Ok(old) => old,
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(other) => return Err(other),
    };
    let fresh = beside(path);
    freeze(&old, true);
    let copied = copy(&old, &fresh);
    freeze(&old, false);
    if let Err(wrong) = copied.and_then(|()| fs::rename(&fresh, path)) {
        let _ = store::remove(&fresh);
        let text = format!("{}: {wrong}", path.display());
        return Err(io::Error::new(wrong.kind(), text));
    }
    freeze(&old, true);
    path.parent().map_or(Ok(()), store::sync_folder)
}

/// For who starts again after a kill: makes a LUN's file one that can be written and removed. A file beside it whose name
/// ends in `.fresh` is what was being made; it may be removed.
///
/// # Errors
/// The file is there and cannot be opened, or stays immutable.
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
        // A file system without flags has no immutable files.
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Makes the file immutable or not, where that can be done.
fn freeze(file: &File, frozen: bool) {
    if let Ok(mut flags) = ioctl_getflags(file) {
        flags.set(IFlags::IMMUTABLE, frozen);
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

fn beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".fresh");
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt as _, PermissionsExt as _};

    use super::*;

    #[test]
    fn the_path_has_a_copy_and_the_old_file_goes_its_own_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lun.img");
        fs::write(&path, b"before").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let old = File::options().write(true).open(&path).unwrap();
        divorce(&path).unwrap();
        // It fails, or it goes into a file that has no name any more.
        let _ = old.write_at(b"after!", 0);
        assert_eq!(fs::read(&path).unwrap(), b"before");
        let stat = fs::metadata(&path).unwrap();
        assert_eq!(stat.mode() & 0o777, 0o640);
        assert_ne!(stat.ino(), old.metadata().unwrap().ino());
        fs::write(&path, b"new one").unwrap();
        assert_eq!(store::names(dir.path()).unwrap(), ["lun.img"]);
    }

    #[test]
    fn a_missing_file_is_no_error_and_a_failure_leaves_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lun.img");
        divorce(&path).unwrap();
        thaw(&path).unwrap();
        fs::write(&path, b"before").unwrap();
        // The copy cannot be made.
        fs::create_dir(beside(&path)).unwrap();
        let wrong = divorce(&path).unwrap_err().to_string();
        assert!(wrong.contains("lun.img"), "{wrong}");
        fs::write(&path, b"still ours").unwrap();
    }

    #[test]
    fn what_a_kill_leaves_can_be_thawed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lun.img");
        fs::write(&path, b"before").unwrap();
        freeze(&File::open(&path).unwrap(), true);
        thaw(&path).unwrap();
        fs::write(&path, b"after").unwrap();
    }
}
