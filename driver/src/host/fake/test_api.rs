//! The API of the fake machine for tests, also of other crates: NAS exports, the kubelet's directories, reboots, foreign data,
//! and [`FakeState`] for assertions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use super::{BLOCK, Blocks, Fake, Machine, Target};
use crate::host::superblock::{self, Superblock};
use crate::host::{Cmd, Span};
use crate::volume::{Bytes, FsType};

/// Offset of a pod's data: beyond everything that `mkfs` writes here, and within the first GiB.
pub(super) const DATA: u64 = 512 << 20;

/// An offset that the driver samples to decide whether a disk is blank: ext4 may have a backup superblock here.
const BACKUP_SUPERBLOCK: u64 = 128 << 20;
const FOREIGN_DATA: &[u8] = b"a database without a file system";

/// A target that exports one LUN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// The target's name.
    pub iqn: String,
    /// The unit serial number: the LUN's uuid.
    pub serial: String,
    /// The LUN's size.
    pub size: Bytes,
    /// The logical unit number.
    pub lun: u16,
    /// The target was deleted and still serves its sessions, but refuses new logins.
    pub lingering: bool,
}

/// A mount of [`FakeState`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// The serial number of the disk; `None` if the machine no longer has it.
    pub serial: Option<String>,
    /// A block device rather than a file system.
    pub raw: bool,
    /// The mount or its file system is read-only.
    pub readonly: bool,
}

/// A snapshot of the machine's visible state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FakeState {
    /// The target of each session.
    pub sessions: Vec<String>,
    /// The targets with node records.
    pub records: BTreeSet<String>,
    /// Sizes of the disks, by serial number.
    pub disks: BTreeMap<String, Bytes>,
    /// The topmost mount of each mount point.
    pub mounts: BTreeMap<String, Mounted>,
    /// Number of mounts, including hidden ones.
    pub mount_count: usize,
    /// Directories and empty files below the kubelet's directory.
    pub paths: BTreeSet<String>,
}

impl Fake {
    /// A node with this initiator name, and with empty directories `/staging` and `/pods`.
    pub fn node(initiator: &str) -> Self {
        let mut machine = Machine {
            capable: true,
            processes: Some(vec![]),
            ..Machine::default()
        };
        machine.install(initiator);
        Self(Arc::new(Mutex::new(machine)))
    }

    /// Replaces all exports of the NAS. A session whose target is gone is dead; one whose target is back is alive again.
    pub fn set_exports(&self, exports: impl IntoIterator<Item = Export>) {
        let mut machine = self.machine();
        machine.targets = exports
            .into_iter()
            .map(
                |Export {
                     iqn,
                     serial,
                     size,
                     lun,
                     lingering,
                 }| {
                    let target = Target {
                        serial,
                        size,
                        lun,
                        lingering,
                    };
                    (iqn, target)
                },
            )
            .collect();
        machine.sessions_live_or_die();
    }

    /// Sets whether the driver has `CAP_SYS_RESOURCE`, which the kernel requires to grow a mounted ext4.
    pub fn set_capable(&self, capable: bool) {
        self.machine().capable = capable;
    }

    /// Reboots the machine. Records, directories and the LUNs' content persist.
    pub fn reboot(&self) {
        let mut machine = self.machine();
        machine.sessions.clear();
        machine.mounts.clear();
        machine.caches.clear();
        machine.pinned.clear();
        machine.deaths.clear();
        machine.map = None;
        machine.protected = false;
    }

    /// Reinstalls the machine: its own disks are wiped, and its initiator gets this name.
    pub fn reimage(&self, initiator: &str) {
        self.reboot();
        let mut machine = self.machine();
        machine.files.clear();
        machine.dirs.clear();
        machine.records.clear();
        machine.truncated_records.clear();
        machine.locked = None;
        machine.install(initiator);
    }

    /// Creates a directory and its parents, as the kubelet does.
    pub fn make_dir(&self, path: &str) {
        let mut machine = self.machine();
        for (at, _) in path.match_indices('/').skip(1) {
            machine.dirs.insert(path[..at].to_owned());
        }
        machine.dirs.insert(path.to_owned());
    }

    /// Another node with the same NAS, i.e. the same LUN content.
    #[must_use]
    pub fn on_same_nas(&self, initiator: &str) -> Self {
        let other = Self::node(initiator);
        other.machine().content = Arc::clone(&self.machine().content);
        other
    }

    /// Deletes the content of all LUNs except those whose serial number satisfies `keep`.
    pub fn keep_content(&self, keep: impl Fn(&str) -> bool) {
        let content = Arc::clone(&self.machine().content);
        content.lock().unwrap().retain(|serial, _| keep(serial));
    }

    /// Writes data without any signature to a LUN, as a foreign host would.
    pub fn write_foreign_data(&self, serial: &str) {
        self.machine()
            .write(serial, BACKUP_SUPERBLOCK, FOREIGN_DATA);
    }

    /// True if the data of [`Fake::write_foreign_data`] is still there.
    pub fn is_foreign_data_intact(&self, serial: &str) -> bool {
        let span = Span {
            offset: BACKUP_SUPERBLOCK,
            length: BLOCK,
        };
        self.machine().read(serial, span).starts_with(FOREIGN_DATA)
    }

    /// True if nothing was ever written to this LUN.
    pub fn is_blank(&self, serial: &str) -> bool {
        !self.machine().content.lock().unwrap().contains_key(serial)
    }

    /// Type and size of the file system on a LUN, and whether it fills a disk of `size`. `None`: there is none.
    pub fn file_system(&self, serial: &str, size: Bytes) -> Option<(FsType, Bytes, bool)> {
        let head = self.machine().read(serial, superblock::HEAD);
        match superblock::read(&head).as_slice() {
            [Superblock::Complete(geometry)] => {
                Some((geometry.kind(), geometry.size(), geometry.fills(size)))
            }
            _ => None,
        }
    }

    /// Runs a command half-way, as if it were killed: `mkfs.xfs` and `mkfs.btrfs` leave an unfinished superblock, other commands
    /// have no effect.
    pub fn begin(&self, cmd: &Cmd) {
        let mut machine = self.machine();
        let device = cmd.args.last();
        let Some(serial) = device.and_then(|device| machine.serial(device)) else {
            return;
        };
        let (offset, bytes): (u64, &[u8]) = match cmd.program {
            "mkfs.xfs" => (0, b"XFSB"),
            "mkfs.btrfs" => ((64 << 10) + 64, b"!BHRfS_M"),
            _ => return,
        };
        machine.write(&serial, offset, bytes);
    }

    /// All commands so far, in order.
    pub fn commands(&self) -> Vec<String> {
        self.machine().log.clone()
    }

    /// The texts of all files, to search them for secrets. Node records legitimately contain secrets and are left out.
    pub fn texts(&self) -> Vec<String> {
        let machine = self.machine();
        let files = machine
            .files
            .iter()
            .filter(|(path, _)| !path.contains("/iscsi/nodes/"));
        files
            .map(|(_, bytes)| String::from_utf8_lossy(bytes).into_owned())
            .collect()
    }

    /// A snapshot of the visible state.
    pub fn observe(&self) -> FakeState {
        let machine = self.machine();
        let disks = machine.sessions.values().filter_map(|session| {
            let seen = session.seen.as_ref()?;
            Some((seen.serial.clone(), seen.size))
        });
        let mounts = machine.mounts.iter().map(|mount| {
            let raw = mount.device_node().is_some();
            let mounted = Mounted {
                serial: machine.serial_of(&mount.point),
                raw,
                readonly: mount.is_readonly(),
            };
            (mount.point.clone(), mounted)
        });
        let below = |path: &&String| path.contains("/kubelet/");
        let empty = machine.files.iter().filter(|(_, bytes)| bytes.is_empty());
        FakeState {
            sessions: machine
                .sessions
                .values()
                .map(|session| session.target.clone())
                .collect(),
            records: machine.records.clone(),
            disks: disks.collect(),
            mounts: mounts.collect(),
            mount_count: machine.mounts.len(),
            paths: machine
                .dirs
                .iter()
                .chain(empty.map(|(path, _)| path))
                .filter(below)
                .cloned()
                .collect(),
        }
    }
}

impl Fake {
    /// The content of all LUNs, by serial number.
    pub(crate) fn content(&self) -> BTreeMap<String, Blocks> {
        self.machine().content.lock().unwrap().clone()
    }

    /// The commands so far that start with `prefix`.
    pub(crate) fn ran(&self, prefix: &str) -> Vec<String> {
        self.machine()
            .log
            .iter()
            .filter(|line| line.starts_with(prefix))
            .cloned()
            .collect()
    }

    /// All mount points.
    pub(crate) fn mounted(&self) -> Vec<String> {
        self.machine()
            .mounts
            .iter()
            .map(|mount| mount.point.clone())
            .collect()
    }
}

impl Machine {
    /// Creates the files of a fresh installation.
    fn install(&mut self, initiator: &str) {
        self.dirs
            .extend(["/", "/dev", "/staging", "/pods"].map(str::to_owned));
        self.files.insert(
            super::INITIATOR_NAME.to_owned(),
            format!("## comment\nInitiatorName={initiator}\n").into_bytes(),
        );
    }

    /// The serial number of the disk that is visible at a mount point.
    fn serial_of(&self, point: &str) -> Option<String> {
        let mount = self.mounts.iter().rfind(|mount| mount.point == point)?;
        let node = match mount.device_node() {
            Some(name) => format!("/dev/{name}"),
            None => mount.source.clone(),
        };
        let (.., session) = self.block_at(&node)?;
        Some(session.seen.as_ref()?.serial.clone())
    }

    pub(super) fn is_readonly(&self, point: &str) -> bool {
        let mount = self.mounts.iter().rfind(|mount| mount.point == point);
        mount.is_none_or(super::Mount::is_readonly)
    }
}
