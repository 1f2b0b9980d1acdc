//! NodeGetVolumeStats: usage and condition of a volume.

use proto::csi::volume_usage::Unit;
use proto::csi::{VolumeCondition, VolumeUsage};

use super::Machine;
use super::attach::Attached;
use super::attachment::Attachment;
use super::mounts::MountState;
use super::request::Stats;
use crate::error::{Context as _, Error};
use crate::host::mount::Mount;
use crate::host::{Host, ReadMode, Space};
use crate::volume::{Bytes, FsType};

impl<H: Host> Machine<H> {
    /// Bytes and inodes of a file system, or the size in bytes of a raw device; and the volume's condition.
    pub(super) async fn stats(
        &self,
        request: &Stats,
    ) -> Result<(Vec<VolumeUsage>, VolumeCondition), Error> {
        let not_mounted = |seen: String| Error::NotMounted {
            volume: request.volume.to_string(),
            path: request.path.clone(),
            seen,
        };
        let Some(path) = self.resolve(&request.path).await? else {
            return Err(not_mounted("the path does not exist".to_owned()));
        };
        let attachment = self.attachment(&request.volume.uuid).await?;
        let blocks = attachment.blocks();
        let mount = match self.mount_state_at(&path, &blocks).await? {
            MountState::Ours(mount) => mount,
            MountState::Nothing => return Err(not_mounted("nothing is mounted there".to_owned())),
            MountState::Gone(mount) | MountState::Foreign(mount) => {
                return Err(not_mounted(format!(
                    "{} is mounted there",
                    mount.describe()
                )));
            }
        };
        let doing = format!("measuring {path}");
        if let Some(name) = mount.device_node() {
            let named = blocks.iter().find(|block| block.name == name);
            let device = named
                .or(attachment.device())
                .ok_or_else(|| not_mounted("the volume has no disk here".to_owned()))?;
            let size = device.size(&self.host).await.context(doing)?;
            return Ok((vec![usage(Unit::Bytes, size, None)], condition(None)));
        }
        if let Some(why) = self.why_dead(&mount).await? {
            let message = format!(
                "the file system is dead ({why}): delete the pods that use it, and it is mounted again"
            );
            // Some dead file systems still report their usage.
            let space = self.host.fs_usage(&path).await.ok();
            let usage = space.as_ref().map(of_file_system).unwrap_or_default();
            return Ok((usage, condition(Some(message))));
        }
        let usage = of_file_system(&self.host.fs_usage(&path).await.context(doing)?);
        Ok((
            usage,
            condition(self.smaller_than_disk(&mount, &attachment).await),
        ))
    }

    /// A message if the disk has grown and its file system has not. Checked for ext4 only, which alone may be unable to grow.
    /// Read errors are ignored: they are no reason to report the volume as abnormal.
    async fn smaller_than_disk(&self, mount: &Mount, attachment: &Attachment) -> Option<String> {
        let fs = FsType::Ext4;
        let device = attachment
            .device_of(mount)
            .filter(|_| mount.fs == fs.as_str())?;
        let size = device.size(&self.host).await.ok()?;
        let attached = Attached { device, size };
        let geometry = self.superblock(&attached, fs, ReadMode::Cache).await.ok()?;
        (!geometry.fills(size)).then(|| {
            format!(
                "the file system is {} on a disk of {size}: it has not grown; NodeExpandVolume says why",
                geometry.size()
            )
        })
    }
}

fn condition(abnormal: Option<String>) -> VolumeCondition {
    VolumeCondition {
        abnormal: abnormal.is_some(),
        message: abnormal.unwrap_or_else(|| "in order".to_owned()),
    }
}

fn of_file_system(space: &Space) -> Vec<VolumeUsage> {
    let bytes = usage(
        Unit::Bytes,
        space.total,
        Some((space.used, space.available)),
    );
    // btrfs allocates inodes on demand and reports none.
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
