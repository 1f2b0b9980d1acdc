//! NodeExpandVolume: rescan, identity, size, file system, measure (design choices 9 and 12 to 14). Every step looks before it
//! acts, so that the call may be repeated after a crash anywhere.

use std::time::Duration;

use super::attach::Attached;
use super::grow::{Grown, not_permitted};
use super::place::Standing;
use super::request::Expand;
use super::{Doing, Machine};
use crate::error::Error;
use crate::host::disk::{self, Disk};
use crate::host::mount::Mount;
use crate::host::{Host, if_present};
use crate::volume::{Bytes, FsType};

/// How long a grown LUN may take to show its size after a rescan.
const SIZE_APPEARS: Duration = Duration::from_secs(10);

impl<H: Host> Machine<H> {
    /// Lets disk and file system follow the LUN; answers the disk's measured size.
    pub(super) async fn expand(&self, ask: &Expand) -> Result<Bytes, Error> {
        let (disk, mount) = self.locate(ask).await?;
        let attached = self.measure(ask, &disk).await?;
        if let Some(limit) = ask.range.limit.filter(|limit| attached.size > *limit) {
            return Err(ask.range.unmet(&format!(
                "the volume is already {}, above the limit of {limit}: it is never made smaller",
                attached.size
            )));
        }
        if let Some(mount) = mount.filter(|mount| mount.device_node().is_none()) {
            self.grow_mounted(&attached, &mount).await?;
        }
        Ok(attached.size)
    }

    /// The volume's disk, and what of it is mounted at the path: staged or published, a file system or the device.
    async fn locate(&self, ask: &Expand) -> Result<(Disk, Option<Mount>), Error> {
        let not_there = |seen: &str| Error::NotThere {
            volume: ask.volume.to_string(),
            path: ask.path.clone(),
            seen: seen.to_owned(),
        };
        let path = self
            .resolve(&ask.path)
            .await?
            .ok_or_else(|| not_there("the path does not exist"))?;
        let session = self.session_of(&ask.volume.uuid).await?;
        let disks = self.disks_of(session.as_ref()).await?;
        match self.standing(&path, &disks).await? {
            Standing::Ours(mount) => {
                // btrfs has a number of its own; then, as for a device node, there is one disk to choose from.
                let disk = disks
                    .iter()
                    .find(|disk| disk.number == mount.device)
                    .or(disks.first())
                    .cloned();
                Ok((
                    disk.ok_or_else(|| not_there("the volume has no disk here"))?,
                    Some(mount),
                ))
            }
            Standing::Nothing if ask.may_be_staged_device => {
                let exists = if_present(self.host.stat(&path).await)
                    .doing(format!("looking at {path}"))?
                    .is_some();
                let disk = disks.into_iter().next().filter(|_| exists);
                Ok((
                    disk.ok_or_else(|| not_there("the volume is not staged on this node"))?,
                    None,
                ))
            }
            Standing::Nothing => Err(not_there("nothing is mounted there")),
            Standing::Gone(mount) => Err(not_there(&format!(
                "{} is mounted there, whose device is gone",
                mount.describe()
            ))),
            Standing::Foreign(mount) => {
                Err(not_there(&format!("{} is mounted there", mount.describe())))
            }
        }
    }

    /// Rescan, identity, size: in this order, because before a rescan the kernel only repeats what it once heard.
    async fn measure(&self, ask: &Expand, disk: &Disk) -> Result<Attached, Error> {
        let session = self
            .session_of(&ask.volume.uuid)
            .await?
            .ok_or_else(|| Error::Unproven {
                what: format!("measuring {}", disk.node()),
                seen: "its session has just ended".to_owned(),
            })?;
        self.rescan(&session).await?;
        let mut attached = self.prove(disk.clone(), &ask.volume.uuid).await?;
        let look = || async {
            let size = disk.size(&self.host).await?;
            Ok((size >= ask.range.required).then_some(size))
        };
        match disk::until(&self.host, SIZE_APPEARS, look)
            .await
            .doing(format!("measuring {}", disk.node()))?
        {
            Some(size) => {
                attached.size = size;
                Ok(attached)
            }
            None => Err(Error::Unproven {
                what: format!("the growth of {} to {}", disk.node(), ask.range.required),
                seen: format!(
                    "after a rescan the disk is {}: has the LUN been grown on the NAS?",
                    attached.size
                ),
            }),
        }
    }

    async fn grow_mounted(&self, attached: &Attached, mount: &Mount) -> Result<(), Error> {
        let fs: FsType = mount.fs.parse().map_err(|_| Error::Refused {
            what: format!("growing what is mounted at {}", mount.point),
            seen: format!("it is {}", mount.fs),
            remedy: "this driver grows ext4, xfs and btrfs".to_owned(),
        })?;
        let point = self.writable_mount(attached, mount).await?;
        match self.fill(attached, fs, &point).await? {
            Grown::Full => Ok(()),
            Grown::ReadOnly => {
                tracing::warn!(
                    point,
                    disk = attached.disk.node(),
                    "mounted read-only: the file system keeps its size until it is mounted writable"
                );
                Ok(())
            }
            Grown::NotPermitted => Err(not_permitted(&point)),
        }
    }

    /// A path to grow the file system through: the path asked about, or another writable mount of it when that one is
    /// read-only (a pod that may only read, of a volume that is staged writable).
    async fn writable_mount(&self, attached: &Attached, mount: &Mount) -> Result<String, Error> {
        if !mount.is_readonly() {
            return Ok(mount.point.clone());
        }
        let disks = std::slice::from_ref(&attached.disk);
        for point in self.uses(disks).await? {
            if let Standing::Ours(other) = self.standing(&point, disks).await?
                && !other.is_readonly()
            {
                return Ok(point);
            }
        }
        Ok(mount.point.clone())
    }
}
