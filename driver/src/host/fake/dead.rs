//! File systems that fail while they are mounted ([`Death`]), and recover with the last unmount.

use super::{Fake, Machine};

/// How a file system fails, and how that is visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FsFailure {
    /// ext4 since Linux 6.15: `emergency_ro` in the mount table.
    Emergency,
    /// ext4 before Linux 6.15, and btrfs: `ro` among the superblock options, `rw` among the per-mount options.
    ReadOnly,
    /// xfs: not visible in the mount table, but every access fails with `EIO`.
    ShutDown,
}

impl Fake {
    /// The file system at `point` fails in the way of its type. False: there is none.
    pub fn kill_file_system(&self, point: &str) -> bool {
        let mount = |machine: &Machine| {
            let mount = machine.mounts.iter().rfind(|mount| mount.point == point);
            mount
                .filter(|mount| mount.device_node().is_none())
                .map(|mount| mount.fs.clone())
        };
        let death = match mount(&self.machine()).as_deref() {
            None => return false,
            Some("xfs") => FsFailure::ShutDown,
            Some("btrfs") => FsFailure::ReadOnly,
            Some(_) => FsFailure::Emergency,
        };
        self.fail_fs_as(point, death);
        true
    }

    /// The file system at `point` fails in this way.
    pub(crate) fn fail_fs_as(&self, point: &str, death: FsFailure) {
        let mut machine = self.machine();
        let device = machine.device_at(point).unwrap();
        machine.deaths.insert(device, death);
    }
}

impl Machine {
    /// How the file system that is visible at `point` has failed.
    pub(super) fn death_at(&self, point: &str) -> Option<FsFailure> {
        let mount = self.mounts.iter().rfind(|mount| mount.point == point)?;
        if mount.device_node().is_some() {
            return None;
        }
        self.deaths.get(&self.device_at(point)?).copied()
    }
}
