//! Files of the kernel.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirEntryExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use rustix::fs::{AtFlags, StatxAttributes, StatxFlags, statx};

use super::blocking;
use crate::host::{Entry, HostError, KernelFiles};

/// No file that the driver reads is larger.
const LIMIT: u64 = 16 << 20;

/// The kernel's files, `/sys` below this root (design.md#host-commands).
#[derive(Clone, Debug)]
pub(super) struct Below(pub(super) PathBuf);

impl Below {
    fn path(&self, path: &str) -> PathBuf {
        if is_of_sysfs(path) {
            self.0.join(path.trim_start_matches('/'))
        } else {
            PathBuf::from(path)
        }
    }
}

impl KernelFiles for Below {
    fn read(&self, path: &str) -> Result<Vec<u8>, HostError> {
        let told = |error| blocking::failed(&format!("reading {path}"), path, error);
        read(&self.path(path), is_of_sysfs(path)).map_err(told)
    }

    fn entries(&self, path: &str) -> Result<Vec<Entry>, HostError> {
        let told = |error| blocking::failed(&format!("listing {path}"), path, error);
        entries(&self.path(path)).map_err(told)
    }
}

/// By its name, wherever the host's root is.
pub(super) fn is_of_sysfs(path: &str) -> bool {
    path.starts_with("/sys/")
}

/// Reads a file.
pub(super) fn read(path: &Path, of_sysfs: bool) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = &mut io::Read::take(File::open(path)?, LIMIT);
    match io::Read::read_to_end(file, &mut bytes) {
        Ok(_) => Ok(bytes),
        // What a file of sysfs says whose object has gone since it was opened.
        Err(gone) if of_sysfs && gone.raw_os_error() == Some(Errno::ENODEV as i32) => {
            Err(io::ErrorKind::NotFound.into())
        }
        Err(error) => Err(error),
    }
}

/// What is in a directory, in order of the names.
pub(super) fn entries(path: &Path) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        entries.push(Entry {
            // A name that is no text is shown as well as can be: a folder that holds it is not empty.
            name: entry.file_name().to_string_lossy().into_owned(),
            inode: entry.ino(),
        });
    }
    entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// Whether something is mounted just there; `None` before Linux 5.8.
pub(super) fn is_mount_point(path: &Path) -> io::Result<Option<bool>> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let seen = match statx(rustix::fs::CWD, path, flags, StatxFlags::TYPE) {
        Err(rustix::io::Errno::NOSYS) => return Ok(None),
        seen => seen?,
    };
    let root = StatxAttributes::MOUNT_ROOT;
    let told = seen.stx_attributes_mask.contains(root);
    Ok(told.then(|| seen.stx_attributes.contains(root)))
}
