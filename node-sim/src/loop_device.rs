//! Loop devices, by way of util-linux' `losetup` and `blockdev`.
//!
//! A loop device has no name tag of ours, so it is known by what it shows: the device we said we would use *and* the file
//! we said we would put there, written down before it is done. Whoever finds that note after a crash knows what to look at.
//! (Two host roots that attach the very same file at the same time, one of them killed between note and deed, could
//! mistake the other's device for theirs; a disk in use would even then live on until it is closed.)

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::exec;
use crate::store::Lock;

/// How often another program may snatch a free device from under us.
const TRIES: u32 = 50;

/// A file as the kernel tells files apart: the same path may be another file tomorrow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Backing {
    /// As it was called when it was attached.
    pub(crate) path: PathBuf,
    inode: u64,
    /// `major:minor` of its file system.
    filesystem: String,
}

impl Backing {
    /// The file at `path` now.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let stat = std::fs::metadata(path).map_err(|wrong| {
            io::Error::new(wrong.kind(), format!("{}: {wrong}", path.display()))
        })?;
        let filesystem = format!("{}:{}", major(stat.dev()), minor(stat.dev()));
        Ok(Self {
            path: path.to_owned(),
            inode: stat.ino(),
            filesystem,
        })
    }

    /// Whether both are one file, whatever they are called.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.inode == other.inode && self.filesystem == other.filesystem
    }
}

/// Loop devices, seen at one moment.
#[derive(Debug)]
struct Loops(Vec<(String, u64, String)>);

impl Loops {
    /// Whether `device` shows this file.
    fn shows(&self, device: &str, backing: &Backing) -> bool {
        self.0.iter().any(|(name, inode, filesystem)| {
            name == device && *inode == backing.inode && *filesystem == backing.filesystem
        })
    }
}

/// Starts `losetup` and `blockdev`, on behalf of the holder of a lock.
#[derive(Debug)]
pub(crate) struct Losetup<'a> {
    lock: &'a Lock,
}

impl<'a> Losetup<'a> {
    pub(crate) fn new(lock: &'a Lock) -> Self {
        Self { lock }
    }

    /// Whether `device` shows this file now. Asked of that one device: there may be hundreds of others.
    pub(crate) fn shows(&self, device: &str, backing: &Backing) -> io::Result<bool> {
        if !is_attached(device) {
            return Ok(false);
        }
        let columns = "NAME,BACK-INO,BACK-MAJ:MIN";
        let said = self.losetup(&["--list", "--json", "--output", columns, device])?;
        Ok(parse(&said)?.shows(device, backing))
    }

    /// Attaches the file: in the place of what the `occupied` device shows, so that a disk keeps its name when another unit takes
    /// its index, else to a free device. `note` is told the device first; nothing is attached when it fails.
    pub(crate) fn attach(
        &self,
        backing: &Backing,
        mut occupied: Option<&str>,
        mut note: impl FnMut(&str) -> io::Result<()>,
    ) -> io::Result<String> {
        let control = File::open("/dev/loop-control").map_err(|wrong| {
            io::Error::new(
                wrong.kind(),
                format!("/dev/loop-control: {wrong} (loop devices need root)"),
            )
        })?;
        // Between asking for a free device and taking it, other host roots wait; other programs do not know of this lock.
        control.lock()?;
        if let Some(device) = occupied {
            self.detach(device)?;
        }
        let mut last = io::Error::other("no free loop device");
        for _ in 0..TRIES {
            // Somebody may have it open still: then it is freed later, and another one has to do.
            let device = match occupied.take() {
                Some(device) => device.to_owned(),
                None => self.losetup(&["--find"])?.trim().to_owned(),
            };
            note(&device)?;
            let file = backing.path.display().to_string();
            match self.losetup(&["--sector-size", "512", &device, &file]) {
                Ok(_) => {
                    self.unprotect(&device)?;
                    // As an iSCSI disk would: no second copy of the data in the NAS's page cache. Not every file system can.
                    if is_direct(&backing.path) {
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

    /// Makes the device as large as its file is now.
    pub(crate) fn grow(&self, device: &str) -> io::Result<()> {
        self.losetup(&["--set-capacity", device]).map(drop)
    }

    /// Frees the device, now or, when somebody has it open, at its last close.
    pub(crate) fn detach(&self, device: &str) -> io::Result<()> {
        self.unprotect(device)?;
        self.losetup(&["--detach", device]).map(drop)
    }

    /// A SCSI disk takes its write protection (`BLKROSET`) with it when it goes. A loop device keeps it for whoever has it
    /// next, so it is taken away at both ends: there, as good manners, and here, because a killed command may have had none.
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

/// Whether somebody has the device for themselves: it is mounted, swapped on, or part of another device.
pub(crate) fn is_claimed(device: &str) -> bool {
    // open(2): O_EXCL without O_CREAT fails with EBUSY on a block device that is in use by the system.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_EXCL)
        .open(device);
    opened.is_err_and(|wrong| wrong.raw_os_error() == Some(nix::libc::EBUSY))
}

/// Whether the file's file system lets anyone past its page cache.
fn is_direct(file: &Path) -> bool {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(nix::libc::O_DIRECT);
    options.open(file).is_ok()
}

/// Bytes that the device shows now; `None` when it is not attached.
pub(crate) fn size(device: &str) -> Option<u64> {
    // sysfs counts in units of 512 bytes whatever the sector size.
    number(device, "size")?
        .checked_mul(512)
        .filter(|bytes| *bytes > 0)
}

/// Makes the kernel take the device for one with a volatile write cache, or for one without.
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

/// Whether the device shows any file at all; one that is not there shows none.
fn is_attached(device: &str) -> bool {
    let name = Path::new(device).file_name().unwrap_or_default();
    let shown = Path::new("/sys/class/block").join(name);
    shown.join("loop/backing_file").exists()
}

/// What sysfs says of a device; `None` when it does not.
fn number(device: &str, attribute: &str) -> Option<u64> {
    let name = Path::new(device).file_name()?;
    let file = Path::new("/sys/class/block").join(name).join(attribute);
    let text = std::fs::read_to_string(file).ok()?;
    text.trim().parse().ok()
}

/// `losetup --list --json`. It prints nothing at all when nothing is attached; older versions print numbers as strings.
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
    fn the_list_of_loop_devices_in_all_its_forms() {
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
