//! What is around the machine: the NAS that exports to it, the kubelet that makes directories, pods that write; and what a
//! person would see of it all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use super::{BLOCK, Blocks, Fake, Machine, Target};
use crate::host::superblock::{self, Superblock};
use crate::host::{Cmd, Span};
use crate::volume::{Bytes, FsType};

/// Where a pod's data stand, well behind everything that a `mkfs` writes here and within the first GiB.
pub(super) const DATA: u64 = 512 << 20;

/// Where a driver looks that makes sure that a disk is blank: a copy of ext4's superblock may be here.
const COPY: u64 = 128 << 20;
const SCRIBBLE: &[u8] = b"a database without a file system";

/// A target that exports one logical unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// The target's name.
    pub iqn: String,
    /// The unit's serial: the LUN's uuid.
    pub serial: String,
    /// The unit's size.
    pub size: Bytes,
    /// The unit's number.
    pub lun: u16,
    /// The target was deleted, and its sessions go on.
    pub lingering: bool,
}

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// The serial of the disk; `None` when the machine no longer has it.
    pub serial: Option<String>,
    /// A block device, not a file system.
    pub raw: bool,
    /// Nothing can be written through it.
    pub readonly: bool,
}

/// The machine, as a person sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FakeState {
    /// The targets that there are sessions with, one entry a session.
    pub sessions: Vec<String>,
    /// The targets that there are node records of.
    pub records: BTreeSet<String>,
    /// Disks and their sizes, by serial.
    pub disks: BTreeMap<String, Bytes>,
    /// Mounts, by mount point; the uppermost where there are several.
    pub mounts: BTreeMap<String, Mounted>,
    /// How many mounts there are.
    pub mount_count: usize,
    /// Directories and empty files below the kubelet's.
    pub paths: BTreeSet<String>,
}

impl Fake {
    /// A node whose initiator has this name, with an empty `/staging` and `/pods`.
    pub fn node(initiator: &str) -> Self {
        let mut world = Machine {
            capable: true,
            processes: Some(vec![]),
            ..Machine::default()
        };
        world.install(initiator);
        Self(Arc::new(Mutex::new(world)))
    }

    /// From now on the NAS exports just this. A session whose target is gone is dead; one whose target is back lives again.
    pub fn set_exports(&self, exports: impl IntoIterator<Item = Export>) {
        let mut world = self.machine();
        world.targets = exports
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
        world.sessions_live_or_die();
    }

    /// Whether a mounted ext4 may be grown here (`CAP_SYS_RESOURCE`).
    pub fn set_capable(&self, capable: bool) {
        self.machine().capable = capable;
    }

    /// The machine restarts: what is on disk stays, which is records, directories and the LUNs' content.
    pub fn reboot(&self) {
        let mut world = self.machine();
        world.sessions.clear();
        world.mounts.clear();
        world.caches.clear();
        world.pinned.clear();
        world.deaths.clear();
        world.map = None;
        world.protected = false;
    }

    /// The machine is installed anew: nothing is left of what was on its own disks, and its initiator has this name.
    pub fn reimage(&self, initiator: &str) {
        self.reboot();
        let mut world = self.machine();
        world.files.clear();
        world.dirs.clear();
        world.records.clear();
        world.cut_short.clear();
        world.locked = None;
        world.install(initiator);
    }

    /// Makes a directory, as the kubelet does.
    pub fn make_dir(&self, path: &str) {
        let mut world = self.machine();
        for (at, _) in path.match_indices('/').skip(1) {
            world.dirs.insert(path[..at].to_owned());
        }
        world.dirs.insert(path.to_owned());
    }

    /// Another node at the same NAS.
    #[must_use]
    pub fn on_same_nas(&self, initiator: &str) -> Self {
        let other = Self::node(initiator);
        other.machine().content = Arc::clone(&self.machine().content);
        other
    }

    /// LUNs are gone from the NAS, with all that was on them.
    pub fn keep_content(&self, of: impl Fn(&str) -> bool) {
        let content = Arc::clone(&self.machine().content);
        content.lock().unwrap().retain(|serial, _| of(serial));
    }

    /// Somebody writes to a LUN, behind everybody's back, what no probe knows.
    pub fn write_foreign_data(&self, serial: &str) {
        self.machine().write(serial, COPY, SCRIBBLE);
    }

    /// Whether that is there.
    pub fn is_foreign_data_intact(&self, serial: &str) -> bool {
        let span = Span {
            offset: COPY,
            length: BLOCK,
        };
        self.machine().read(serial, span).starts_with(SCRIBBLE)
    }

    /// Nothing was ever written to this LUN.
    pub fn is_blank(&self, serial: &str) -> bool {
        !self.machine().content.lock().unwrap().contains_key(serial)
    }

    /// How large the file system on a LUN says that it is, and whether it fills a disk of `size`. `None`: there is none.
    pub fn file_system(&self, serial: &str, size: Bytes) -> Option<(FsType, Bytes, bool)> {
        let head = self.machine().read(serial, superblock::HEAD);
        match superblock::read(&head).as_slice() {
            [Superblock::Complete(geometry)] => {
                Some((geometry.kind(), geometry.size(), geometry.fills(size)))
            }
            _ => None,
        }
    }

    /// Runs the first half of a command: a `mkfs` that is killed leaves an unfinished superblock, others have done nothing.
    pub fn begin(&self, cmd: &Cmd) {
        let mut world = self.machine();
        let device = cmd.args.last();
        let Some(serial) = device.and_then(|device| world.serial(device)) else {
            return;
        };
        let (offset, bytes): (u64, &[u8]) = match cmd.program {
            "mkfs.xfs" => (0, b"XFSB"),
            "mkfs.btrfs" => ((64 << 10) + 64, b"!BHRfS_M"),
            _ => return,
        };
        world.write(&serial, offset, bytes);
    }

    /// The commands that ran so far, in order.
    pub fn commands(&self) -> Vec<String> {
        self.machine().log.clone()
    }

    /// The texts of all files, for those who look for secrets; node records are theirs to hold and are left out.
    pub fn texts(&self) -> Vec<String> {
        let world = self.machine();
        let files = world
            .files
            .iter()
            .filter(|(path, _)| !path.contains("/iscsi/nodes/"));
        files
            .map(|(_, bytes)| String::from_utf8_lossy(bytes).into_owned())
            .collect()
    }

    /// What a person would see.
    pub fn observe(&self) -> FakeState {
        let world = self.machine();
        let disks = world.sessions.values().filter_map(|session| {
            let seen = session.seen.as_ref()?;
            Some((seen.serial.clone(), seen.size))
        });
        let mounts = world.mounts.iter().map(|mount| {
            let raw = mount.device_node().is_some();
            let mounted = Mounted {
                serial: world.serial_of(&mount.point),
                raw,
                readonly: mount.is_readonly(),
            };
            (mount.point.clone(), mounted)
        });
        let below = |path: &&String| path.contains("/kubelet/");
        let empty = world.files.iter().filter(|(_, bytes)| bytes.is_empty());
        FakeState {
            sessions: world
                .sessions
                .values()
                .map(|session| session.target.clone())
                .collect(),
            records: world.records.clone(),
            disks: disks.collect(),
            mounts: mounts.collect(),
            mount_count: world.mounts.len(),
            paths: world
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
    /// What is on all LUNs.
    pub(crate) fn content(&self) -> BTreeMap<String, Blocks> {
        self.machine().content.lock().unwrap().clone()
    }

    /// The commands so far that begin with `prefix`.
    pub(crate) fn ran(&self, prefix: &str) -> Vec<String> {
        self.machine()
            .log
            .iter()
            .filter(|line| line.starts_with(prefix))
            .cloned()
            .collect()
    }

    /// Where things are mounted.
    pub(crate) fn mounted(&self) -> Vec<String> {
        self.machine()
            .mounts
            .iter()
            .map(|mount| mount.point.clone())
            .collect()
    }
}

impl Machine {
    /// What is on a machine that was never used.
    fn install(&mut self, initiator: &str) {
        self.dirs
            .extend(["/", "/dev", "/staging", "/pods"].map(str::to_owned));
        self.files.insert(
            super::INITIATOR_NAME.to_owned(),
            format!("## comment\nInitiatorName={initiator}\n").into_bytes(),
        );
    }

    /// The serial of the disk that is visible at a mount point.
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
