//! Files of the host that a guest copies to its own memory. Opening a file of the host is a round trip over 9p, and a program
//! opens a dozen files before it does anything: half of the run time of `iscsiadm` without KVM.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt as _, lchown};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::harness::process::{binary, run};

/// Host programs, in `/usr/sbin` or `/usr/bin`.
const PROGRAMS: [&str; 24] = [
    "blkid",
    "blockdev",
    "btrfs",
    "dash",
    "dumpe2fs",
    "e2fsck",
    "findmnt",
    "ip",
    "iscsiadm",
    "losetup",
    "mkfs.btrfs",
    "mkfs.ext4",
    "mkfs.xfs",
    "mount",
    "pgrep",
    "resize2fs",
    "setsid",
    "tail",
    "tgtadm",
    "udevadm",
    "umount",
    "xfs_growfs",
    "xfs_repair",
    "xfs_spaceman",
];
/// Programs of this workspace, without the one that copies: a running program cannot be opened for writing.
const OURS: [&str; 3] = ["dsm-sim", "janitor", "synology-csi"];
/// Other files and folders that programs or udev read each time.
const OTHERS: [&str; 12] = [
    "/bin/sh",
    "/etc/ld.so.cache",
    "/etc/locale.alias",
    "/etc/modprobe.d",
    "/etc/passwd",
    "/etc/udev",
    "/usr/lib/locale/C.utf8",
    "/usr/lib/modprobe.d",
    "/usr/lib/udev/scsi_id",
    "/usr/lib/x86_64-linux-gnu/gconv/gconv-modules.cache",
    "/usr/sbin/xfs_info",
    "/usr/share/locale/locale.alias",
];

/// Half of all paths start with one of these, where it is a link.
const LINKS: [&str; 4] = ["/bin", "/lib", "/lib64", "/sbin"];

/// On the host: all these files that exist, and the shared libraries of the programs.
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
    let output = run("ldd", &paths)?;
    let libraries = output
        .lines()
        .filter_map(|line| line.split_whitespace().find(|path| path.starts_with('/')))
        .filter(|path| !path.ends_with(':'));
    for library in libraries {
        paths.extend([PathBuf::from(library), fs::canonicalize(library)?]);
    }
    let others = OTHERS.map(PathBuf::from);
    paths.extend(others.into_iter().filter(|path| path.exists()));
    let links = LINKS.map(PathBuf::from);
    paths.extend(links.into_iter().filter(|path| path.is_symlink()));
    Ok(paths.into_iter().collect())
}

/// In the guest: copies the files to the upper folder of its overlay, which is in memory.
pub(super) fn copy_up(paths: &[PathBuf]) -> Result<()> {
    for path in paths {
        copy_up_path(path).with_context(|| format!("copying {}", path.display()))?;
    }
    Ok(())
}

/// Overlayfs copies a file up when it is about to change.
fn copy_up_path(path: &Path) -> io::Result<()> {
    let found = fs::symlink_metadata(path)?;
    lchown(path, Some(found.uid()), Some(found.gid()))?;
    if found.is_file() {
        File::options().append(true).open(path)?;
    }
    if found.is_dir() {
        for entry in fs::read_dir(path)? {
            copy_up_path(&entry?.path())?;
        }
    }
    Ok(())
}
