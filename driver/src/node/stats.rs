//! NodeGetVolumeStats: how full a volume is.

use proto::csi::VolumeUsage;
use proto::csi::volume_usage::Unit;

use super::place::Standing;
use super::request::Stats;
use super::{Doing, Machine};
use crate::error::Error;
use crate::host::{Host, Space};
use crate::volume::Bytes;

impl<H: Host> Machine<H> {
    /// Bytes and inodes of a file system, or the size of a raw device.
    pub(super) async fn stats(&self, ask: &Stats) -> Result<Vec<VolumeUsage>, Error> {
        let not_there = |seen: String| Error::NotThere {
            volume: ask.volume.to_string(),
            path: ask.path.clone(),
            seen,
        };
        let Some(path) = self.resolve(&ask.path).await? else {
            return Err(not_there("the path does not exist".to_owned()));
        };
        let held = self.held(&ask.volume.uuid).await?;
        let blocks = held.blocks();
        let mount = match self.standing(&path, &blocks).await? {
            Standing::Ours(mount) => mount,
            Standing::Nothing => return Err(not_there("nothing is mounted there".to_owned())),
            Standing::Gone(mount) | Standing::Foreign(mount) => {
                return Err(not_there(format!("{} is mounted there", mount.describe())));
            }
        };
        let doing = format!("measuring {path}");
        if let Some(name) = mount.device_node() {
            let named = blocks.iter().find(|block| block.name == name);
            let device = named
                .or(held.device())
                .ok_or_else(|| not_there("the volume has no disk here".to_owned()))?;
            return Ok(vec![usage(
                Unit::Bytes,
                device.size(&self.host).await.doing(doing)?,
                None,
            )]);
        }
        Ok(of_file_system(&self.host.space(&path).await.doing(doing)?))
    }
}

fn of_file_system(space: &Space) -> Vec<VolumeUsage> {
    let bytes = usage(
        Unit::Bytes,
        space.total,
        Some((space.used, space.available)),
    );
    // btrfs makes inodes as it goes and reports none.
    let used = Bytes(space.inodes.saturating_sub(space.inodes_free));
    let inodes = (space.inodes > 0).then(|| {
        usage(
            Unit::Inodes,
            Bytes(space.inodes),
            Some((used, Bytes(space.inodes_free))),
        )
    });
    std::iter::once(bytes).chain(inodes).collect()
}

fn usage(unit: Unit, total: Bytes, filled: Option<(Bytes, Bytes)>) -> VolumeUsage {
    let (used, available) = filled.unwrap_or_default();
    VolumeUsage {
        unit: unit.into(),
        total: total.as_i64(),
        used: used.as_i64(),
        available: available.as_i64(),
    }
}
