//! What a machine looks at again and again lies in its memory. Each opening of a file of the host asks the host, and a program opens
//! a dozen of them before it does anything: half of the time that `iscsiadm` takes without KVM.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::process::{binary, run};

/// Programs of the host, wherever the machine finds them.
const PROGRAMS: [&str; 13] = [
    "blkid",
    "blockdev",
    "iscsiadm",
    "ip",
    "losetup",
    "mkfs.btrfs",
    "mkfs.ext4",
    "mkfs.xfs",
    "mount",
    "pgrep",
    "resize2fs",
    "tgtadm",
    "umount",
];
/// Programs of this workspace, but for the one that copies: a running program cannot be opened for writing.
const OURS: [&str; 2] = ["dsm-sim", "synology-csi"];
/// What else a program or udev looks at each time.
const OTHERS: [&str; 11] = [
    "/etc/ld.so.cache",
    "/etc/udev/rules.d",
    "/usr/lib/locale/C.utf8",
    "/usr/lib/locale/C.utf8/LC_COLLATE",
    "/usr/lib/locale/C.utf8/LC_CTYPE",
    "/usr/lib/locale/C.utf8/LC_MESSAGES",
    "/usr/lib/locale/C.utf8/LC_MESSAGES/SYS_LC_MESSAGES",
    "/usr/lib/systemd/network",
    "/usr/lib/udev/rules.d",
    "/usr/lib/udev/scsi_id",
    "/usr/lib/x86_64-linux-gnu/gconv/gconv-modules.cache",
];

/// On the host: all of that is there, with the libraries of the programs.
///
/// # Errors
/// The workspace is not built, or `ldd` fails.
pub fn paths() -> Result<Vec<PathBuf>> {
    let programs = PROGRAMS.iter().filter_map(|name| {
        let places = ["/usr/sbin", "/usr/bin"].map(|folder| Path::new(folder).join(name));
        places.into_iter().find(|file| file.is_file())
    });
    let mut paths: BTreeSet<PathBuf> = programs.collect();
    for name in OURS {
        paths.insert(binary(name)?);
    }
    // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, `/lib64/ld-linux-x86-64.so.2 (0x…)`, and `/usr/bin/mount:`
    let told = run("ldd", &paths)?;
    let libraries = told
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .filter(|word| !word.ends_with(':'));
    for library in libraries {
        paths.insert(fs::canonicalize(library)?);
    }
    let others = OTHERS.map(PathBuf::from);
    paths.extend(others.into_iter().filter(|path| path.exists()));
    Ok(paths.into_iter().collect())
}

/// In the machine: copies them into the upper folder of its root, which is in memory.
pub(super) fn copy_up(paths: &[PathBuf]) -> Result<()> {
    for path in paths {
        touch(path).with_context(|| format!("copying {}", path.display()))?;
    }
    Ok(())
}

/// An overlay copies what is about to change.
fn touch(path: &Path) -> io::Result<()> {
    let found = fs::metadata(path)?;
    fs::set_permissions(path, found.permissions())?;
    if found.is_file() {
        File::options().append(true).open(path)?;
    }
    Ok(())
}
