//! Attaches, resizes and frees loop devices, with `losetup` and `blockdev` of util-linux.
//!
//! A loop device cannot be tagged with its owner. It is ours if the device *and* its backing file are those of a note that is
//! written before the device is attached. After a crash the note tells which devices to check. (If two host roots attach the same
//! file at the same time and one is killed between note and attach, it could mistake the other's device for its own. Even then, a
//! disk in use stays attached until it is closed.)

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::exec;
use crate::store::Lock;

/// How often to retry if another program takes the free device first.
const TRIES: u32 = 50;

/// The identity of a file. The same path may later be another file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Backing {
    /// The path at the time of the attach.
    pub(crate) path: PathBuf,
    inode: u64,
    /// `major:minor` of its file system's device.
    filesystem: String,
}

impl Backing {
    /// The current file at `path`.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let stat = std::fs::metadata(path).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        })?;
        let filesystem = format!("{}:{}", major(stat.dev()), minor(stat.dev()));
        Ok(Self {
            path: path.to_owned(),
            inode: stat.ino(),
            filesystem,
        })
    }

    /// True if both are the same file, whatever their paths.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.inode == other.inode && self.filesystem == other.filesystem
    }
}

/// A list of loop devices: name, inode and file system of the backing file.
#[derive(Debug)]
struct Loops(Vec<(String, u64, String)>);

impl Loops {
    /// True if `device` is attached to this file.
    fn is_attached_to(&self, device: &str, backing: &Backing) -> bool {
        self.0.iter().any(|(name, inode, filesystem)| {
            name == device && *inode == backing.inode && *filesystem == backing.filesystem
        })
    }
}

/// Runs `losetup` and `blockdev` under a lock.
#[derive(Debug)]
pub(crate) struct Losetup<'a> {
    lock: &'a Lock,
}

impl<'a> Losetup<'a> {
    pub(crate) fn new(lock: &'a Lock) -> Self {
        Self { lock }
    }

    /// True if `device` is attached to this file. Queries only that device, because there may be hundreds of others.
    pub(crate) fn is_attached_to(&self, device: &str, backing: &Backing) -> io::Result<bool> {
        if !is_attached(device) {
            return Ok(false);
        }
        let columns = "NAME,BACK-INO,BACK-MAJ:MIN";
        let list = self.losetup(&["--list", "--json", "--output", columns, device])?;
        Ok(parse(&list)?.is_attached_to(device, backing))
    }

    /// Attaches the file: to the `occupied` device after detaching it, so that a disk keeps its name if another unit takes its
    /// LUN, otherwise to a free device. Calls `note` with the device first, and attaches nothing if that fails.
    pub(crate) fn attach(
        &self,
        backing: &Backing,
        mut occupied: Option<&str>,
        mut note: impl FnMut(&str) -> io::Result<()>,
    ) -> io::Result<String> {
        let control = File::open("/dev/loop-control").map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("/dev/loop-control: {error} (loop devices need root)"),
            )
        })?;
        // Other host roots wait while we find and attach a free device; other programs do not know this lock.
        control.lock()?;
        if let Some(device) = occupied {
            self.detach(device)?;
        }
        let mut last = io::Error::other("no free loop device");
        for _ in 0..TRIES {
            // If the device is still open, it is freed later, and the next attempt takes another one.
            let device = match occupied.take() {
                Some(device) => device.to_owned(),
                None => self.losetup(&["--find"])?.trim().to_owned(),
            };
            note(&device)?;
            let file = backing.path.display().to_string();
            match self.losetup(&["--sector-size", "512", &device, &file]) {
                Ok(_) => {
                    self.unprotect(&device)?;
                    // Like an iSCSI disk: no second copy of the data in the NAS's page cache. Not every file system supports it.
                    if supports_direct_io(&backing.path) {
                        let _ = self.losetup(&["--direct-io=on", &device]);
                    }
                    return Ok(device);
                }
                Err(taken) if taken.to_string().contains("busy") => last = taken,
                Err(other) => return Err(other),
            }
        }
        Err(last)
    }

    /// Resizes the device to the current size of its file.
    pub(crate) fn grow(&self, device: &str) -> io::Result<()> {
        self.losetup(&["--set-capacity", device]).map(drop)
    }

    /// Frees the device now, or at its last close if it is open.
    pub(crate) fn detach(&self, device: &str) -> io::Result<()> {
        self.unprotect(device)?;
        self.losetup(&["--detach", device]).map(drop)
    }

    /// Clears the write protection (`BLKROSET`). It ends with a SCSI disk, but a loop device keeps it for its next user. So it is
    /// cleared on detach, and also on attach, because a killed command may not have cleared it.
    fn unprotect(&self, device: &str) -> io::Result<()> {
        if number(device, "ro") == Some(0) {
            return Ok(());
        }
        self.run("blockdev", &["--setrw", device]).map(drop)
    }

    fn losetup(&self, args: &[&str]) -> io::Result<String> {
        self.run("losetup", args)
    }

    fn run(&self, program: &str, args: &[&str]) -> io::Result<String> {
        exec::run(self.lock, program, args, &[])
    }
}

/// True if the device is in exclusive use: mounted, used as swap, or part of another device.
pub(crate) fn is_claimed(device: &str) -> bool {
    // open(2): O_EXCL without O_CREAT fails with EBUSY on a block device that is in use by the system.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_EXCL)
        .open(device);
    opened.is_err_and(|error| error.raw_os_error() == Some(nix::libc::EBUSY))
}

/// True if the file system supports direct I/O.
fn supports_direct_io(file: &Path) -> bool {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(nix::libc::O_DIRECT);
    options.open(file).is_ok()
}

/// The device's current size in bytes; `None` if it is not attached.
pub(crate) fn size(device: &str) -> Option<u64> {
    // sysfs counts in units of 512 bytes whatever the sector size.
    number(device, "size")?
        .checked_mul(512)
        .filter(|bytes| *bytes > 0)
}

/// Sets whether the kernel treats the device as having a volatile write cache.
pub(crate) fn set_write_cache(device: &str, volatile: bool) -> io::Result<()> {
    let name = Path::new(device).file_name().unwrap_or_default();
    let file = Path::new("/sys/class/block")
        .join(name)
        .join("queue/write_cache");
    std::fs::write(
        file,
        if volatile {
            "write back"
        } else {
            "write through"
        },
    )
}

/// True if the device exists and is attached to a file.
fn is_attached(device: &str) -> bool {
    let name = Path::new(device).file_name().unwrap_or_default();
    let dir = Path::new("/sys/class/block").join(name);
    dir.join("loop/backing_file").exists()
}

/// A numeric attribute of the device in sysfs; `None` if it cannot be read.
fn number(device: &str, attribute: &str) -> Option<u64> {
    let name = Path::new(device).file_name()?;
    let file = Path::new("/sys/class/block").join(name).join(attribute);
    let text = std::fs::read_to_string(file).ok()?;
    text.trim().parse().ok()
}

/// Parses the output of `losetup --list --json`, which is empty if nothing is attached. Older versions print numbers as strings.
fn parse(text: &str) -> io::Result<Loops> {
    if text.trim().is_empty() {
        return Ok(Loops(Vec::new()));
    }
    let json: Value = serde_json::from_str(text)?;
    let rows = json["loopdevices"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let row = |row: &Value| {
        let inode = &row["back-ino"];
        let inode = inode
            .as_u64()
            .or_else(|| inode.as_str()?.trim().parse().ok())?;
        let filesystem = row["back-maj:min"].as_str()?.replace(' ', "");
        Some((row["name"].as_str()?.to_owned(), inode, filesystem))
    };
    Ok(Loops(rows.iter().filter_map(row).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_loop_devices_is_parsed_in_all_formats() {
        let backing = Backing {
            path: "/lun".into(),
            inode: 42,
            filesystem: "0:45".into(),
        };
        assert!(!parse("\n").unwrap().is_attached_to("/dev/loop3", &backing));
        let new = r#"{"loopdevices": [{"name":"/dev/loop3", "back-ino":42, "back-maj:min":"0:45"}, {"name":"/dev/loop4", "back-ino":null, "back-maj:min":null}]}"#;
        assert!(parse(new).unwrap().is_attached_to("/dev/loop3", &backing));
        assert!(!parse(new).unwrap().is_attached_to("/dev/loop4", &backing));
        let old =
            r#"{"loopdevices": [{"name":"/dev/loop3", "back-ino":"42", "back-maj:min":"  0:45"}]}"#;
        assert!(parse(old).unwrap().is_attached_to("/dev/loop3", &backing));
        assert!(
            !parse(&old.replace("42", "43"))
                .unwrap()
                .is_attached_to("/dev/loop3", &backing)
        );
        assert!(parse("no json").is_err());
    }
}
