//! File systems that die under their mounts, and come back when the last of these is gone.

use super::{Fake, Machine};

/// How a file system dies, and what shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// ext4 since Linux 6.15: `emergency_ro` in the table.
    Emergency,
    /// ext4 before, and btrfs: `ro` among the options of the file system, `rw` among those of the mount.
    ReadOnly,
    /// xfs: nothing in the table, and EIO wherever one looks.
    ShutDown,
}

impl Fake {
    /// The file system at `point` dies, as one of its type does. False: there is none.
    pub fn kill_file_system(&self, point: &str) -> bool {
        let mount = |world: &Machine| {
            let mount = world.mounts.iter().rfind(|mount| mount.point == point);
            mount
                .filter(|mount| mount.device_node().is_none())
                .map(|mount| mount.fs.clone())
        };
        let death = match mount(&self.machine()).as_deref() {
            None => return false,
            Some("xfs") => Death::ShutDown,
            Some("btrfs") => Death::ReadOnly,
            Some(_) => Death::Emergency,
        };
        self.kill_as(point, death);
        true
    }

    /// The same in this way.
    pub(crate) fn kill_as(&self, point: &str, death: Death) {
        let mut world = self.machine();
        let device = world.device_at(point).unwrap();
        world.deaths.insert(device, death);
    }
}

impl Machine {
    /// How the file system that is visible at `point` has died.
    pub(super) fn death_at(&self, point: &str) -> Option<Death> {
        let mount = self.mounts.iter().rfind(|mount| mount.point == point)?;
        if mount.device_node().is_some() {
            return None;
        }
        self.deaths.get(&self.device_at(point)?).copied()
    }
}
