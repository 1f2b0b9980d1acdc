//! Reads of kernel files below `/sys` and `/proc`, which are generated on read and need no disk.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirEntryExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use rustix::fs::{AtFlags, StatxAttributes, StatxFlags, statx};

use super::blocking;
use crate::host::{Entry, HostError, KernelFiles};

/// Maximum size of a file in bytes; the driver reads no larger ones.
const LIMIT: u64 = 16 << 20;

/// The kernel's files, with `/sys` below this root (design.md#host-commands).
#[derive(Clone, Debug)]
pub(super) struct SysRoot(pub(super) PathBuf);

impl SysRoot {
    fn path(&self, path: &str) -> PathBuf {
        if is_sysfs(path) {
            self.0.join(path.trim_start_matches('/'))
        } else {
            PathBuf::from(path)
        }
    }
}

impl KernelFiles for SysRoot {
    fn read(&self, path: &str) -> Result<Vec<u8>, HostError> {
        let host_error = |error| blocking::failed(&format!("reading {path}"), path, error);
        read(&self.path(path), is_sysfs(path)).map_err(host_error)
    }

    fn entries(&self, path: &str) -> Result<Vec<Entry>, HostError> {
        let host_error = |error| blocking::failed(&format!("listing {path}"), path, error);
        entries(&self.path(path)).map_err(host_error)
    }
}

/// True if the path is below `/sys`.
pub(super) fn is_sysfs(path: &str) -> bool {
    path.starts_with("/sys/")
}

/// Reads a file of at most [`LIMIT`] bytes.
pub(super) fn read(path: &Path, is_sysfs: bool) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = &mut io::Read::take(File::open(path)?, LIMIT);
    match io::Read::read_to_end(file, &mut bytes) {
        Ok(_) => Ok(bytes),
        // The object of this sysfs file was removed after the file was opened.
        Err(gone) if is_sysfs && gone.raw_os_error() == Some(Errno::ENODEV as i32) => {
            Err(io::ErrorKind::NotFound.into())
        }
        Err(error) => Err(error),
    }
}

/// The entries of a directory, sorted by name.
pub(super) fn entries(path: &Path) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        entries.push(Entry {
            // A name that is not UTF-8 must still be listed, because the directory is not empty.
            name: entry.file_name().to_string_lossy().into_owned(),
            inode: entry.ino(),
        });
    }
    entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// True if the path is a mount point; `None` before Linux 5.8.
pub(super) fn is_mount_point(path: &Path) -> io::Result<Option<bool>> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let seen = match statx(rustix::fs::CWD, path, flags, StatxFlags::TYPE) {
        Err(rustix::io::Errno::NOSYS) => return Ok(None),
        seen => seen?,
    };
    let root = StatxAttributes::MOUNT_ROOT;
    let is_known = seen.stx_attributes_mask.contains(root);
    Ok(is_known.then(|| seen.stx_attributes.contains(root)))
}
