//! Attaches, grows and detaches loop devices with util-linux' `losetup` and `blockdev`.
//!
//! A loop device carries no owner tag. It is identified by its name *and* its backing file, both recorded before the device is
//! attached, so that the record is enough to recover after a crash. (If two host roots attach the same file at the same time and
//! one of them is killed between record and attach, it could mistake the other's device for its own; even then a disk in use
//! would survive until it is closed.)

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::exec;
use crate::store::Lock;

/// Number of attempts, since another program may take the free device first.
const TRIES: u32 = 50;

/// A file, identified by inode and file system as in the kernel: another file may have the same path later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Backing {
    /// The path when it was attached.
    pub(crate) path: PathBuf,
    inode: u64,
    /// `major:minor` of its file system.
    filesystem: String,
}

impl Backing {
    /// The file that is at `path` now.
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

    /// Whether both are the same file, regardless of their paths.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.inode == other.inode && self.filesystem == other.filesystem
    }
}

/// A list of loop devices: name, inode and file system of the backing file.
#[derive(Debug)]
struct Loops(Vec<(String, u64, String)>);

impl Loops {
    /// Whether this file is attached to `device`.
    fn shows(&self, device: &str, backing: &Backing) -> bool {
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

    /// Whether this file is attached to `device` now. Lists only this device: there may be hundreds.
    pub(crate) fn shows(&self, device: &str, backing: &Backing) -> io::Result<bool> {
        if !is_attached(device) {
            return Ok(false);
        }
        let columns = "NAME,BACK-INO,BACK-MAJ:MIN";
        let list = self.losetup(&["--list", "--json", "--output", columns, device])?;
        Ok(parse(&list)?.shows(device, backing))
    }

    /// Attaches the file to `reuse_device`, so that a disk keeps its name when another unit gets its LUN number, or else to a
    /// free device. `record` is called with the device first; if it fails, nothing is attached.
    pub(crate) fn attach(
        &self,
        backing: &Backing,
        mut reuse_device: Option<&str>,
        mut record: impl FnMut(&str) -> io::Result<()>,
    ) -> io::Result<String> {
        let control = File::open("/dev/loop-control").map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("/dev/loop-control: {error} (loop devices need root)"),
            )
        })?;
        // Other host roots wait from the search for a free device until it is attached. Other programs do not use this lock.
        control.lock()?;
        if let Some(device) = reuse_device {
            self.detach(device)?;
        }
        let mut last = io::Error::other("no free loop device");
        for _ in 0..TRIES {
            // A device that is still open is freed later, so fall back to a free one.
            let device = match reuse_device.take() {
                Some(device) => device.to_owned(),
                None => self.losetup(&["--find"])?.trim().to_owned(),
            };
            record(&device)?;
            let file = backing.path.display().to_string();
            match self.losetup(&["--sector-size", "512", &device, &file]) {
                Ok(_) => {
                    self.unprotect(&device)?;
                    // Like an iSCSI disk, avoid a second copy of the data in the page cache. Not every file system supports this.
                    if supports_direct_io(&backing.path) {
                        let _ = self.losetup(&["--direct-io=on", &device]);
                    }
                    return Ok(device);
                }
                Err(busy) if busy.to_string().contains("busy") => last = busy,
                Err(other) => return Err(other),
            }
        }
        Err(last)
    }

    /// Grows the device to the current size of its file.
    pub(crate) fn grow(&self, device: &str) -> io::Result<()> {
        self.losetup(&["--set-capacity", device]).map(drop)
    }

    /// Detaches the device, at once or, if it is open, at its last close.
    pub(crate) fn detach(&self, device: &str) -> io::Result<()> {
        self.unprotect(device)?;
        self.losetup(&["--detach", device]).map(drop)
    }

    /// Clears the write protection (`BLKROSET`), which ends with a SCSI disk but stays on a loop device. This is done on detach,
    /// and again on attach because a killed command may not have done it.
    fn unprotect(&self, device: &str) -> io::Result<()> {
        if sysfs_number(device, "ro") == Some(0) {
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

/// Whether the device is opened exclusively: mounted, used as swap, or part of another device.
pub(crate) fn is_claimed(device: &str) -> bool {
    // open(2): O_EXCL without O_CREAT fails with EBUSY on a block device that is in use by the system.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_EXCL)
        .open(device);
    opened.is_err_and(|error| error.raw_os_error() == Some(nix::libc::EBUSY))
}

/// Whether the file system supports O_DIRECT.
fn supports_direct_io(file: &Path) -> bool {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(nix::libc::O_DIRECT);
    options.open(file).is_ok()
}

/// Current size of the device in bytes; `None` if it is not attached.
pub(crate) fn size(device: &str) -> Option<u64> {
    // sysfs counts in units of 512 bytes whatever the sector size.
    sysfs_number(device, "size")?
        .checked_mul(512)
        .filter(|bytes| *bytes > 0)
}

/// Makes the kernel treat the device as one with or without a volatile write cache.
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

/// Whether any file is attached to the device; false if it does not exist.
fn is_attached(device: &str) -> bool {
    let name = Path::new(device).file_name().unwrap_or_default();
    let dir = Path::new("/sys/class/block").join(name);
    dir.join("loop/backing_file").exists()
}

/// A numeric sysfs attribute of a device; `None` if it is missing.
fn sysfs_number(device: &str, attribute: &str) -> Option<u64> {
    let name = Path::new(device).file_name()?;
    let file = Path::new("/sys/class/block").join(name).join(attribute);
    let text = std::fs::read_to_string(file).ok()?;
    text.trim().parse().ok()
}

/// Parses `losetup --list --json`. It prints nothing if nothing is attached; older versions print numbers as strings.
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
    fn lists_of_old_and_new_versions_are_parsed() {
        let backing = Backing {
            path: "/lun".into(),
            inode: 42,
            filesystem: "0:45".into(),
        };
        assert!(!parse("\n").unwrap().shows("/dev/loop3", &backing));
        let new = r#"{"loopdevices": [{"name":"/dev/loop3", "back-ino":42, "back-maj:min":"0:45"}, {"name":"/dev/loop4", "back-ino":null, "back-maj:min":null}]}"#;
        assert!(parse(new).unwrap().shows("/dev/loop3", &backing));
        assert!(!parse(new).unwrap().shows("/dev/loop4", &backing));
        let old =
            r#"{"loopdevices": [{"name":"/dev/loop3", "back-ino":"42", "back-maj:min":"  0:45"}]}"#;
        assert!(parse(old).unwrap().shows("/dev/loop3", &backing));
        assert!(
            !parse(&old.replace("42", "43"))
                .unwrap()
                .shows("/dev/loop3", &backing)
        );
        assert!(parse("no json").is_err());
    }
}
