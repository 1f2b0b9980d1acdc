//! NodeExpandVolume: rescan, identity, size, file system, measure (design choices 9 and 12 to 14). Every step looks before it
//! acts, so that the call may be repeated after a crash anywhere.

use std::time::Duration;

use super::attach::Attached;
use super::grow::{COPY_IT, Grown, kept};
use super::place::Standing;
use super::request::Expand;
use super::{Doing, Machine};
use crate::error::Error;
use crate::host::disk::{self, Block};
use crate::host::mount::Mount;
use crate::host::{Host, if_present};
use crate::volume::{Bytes, FsType};

/// How long a grown LUN may take to show its size after a rescan.
const SIZE_APPEARS: Duration = Duration::from_secs(10);

impl<H: Host> Machine<H> {
    /// Lets disk and file system follow the LUN; answers the disk's measured size.
    pub(super) async fn expand(&self, ask: &Expand) -> Result<Bytes, Error> {
        let (device, mount) = self.locate(ask).await?;
        let attached = self.measure(ask, device).await?;
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

    /// The volume's device, and what of it is mounted at the path: staged or published, a file system or the device.
    async fn locate(&self, ask: &Expand) -> Result<(Block, Option<Mount>), Error> {
        let not_there = |seen: &str| Error::NotThere {
            volume: ask.volume.to_string(),
            path: ask.path.clone(),
            seen: seen.to_owned(),
        };
        let path = self
            .resolve(&ask.path)
            .await?
            .ok_or_else(|| not_there("the path does not exist"))?;
        let held = self.held(&ask.volume.uuid).await?;
        match self.standing(&path, &held.blocks()).await? {
            Standing::Ours(mount) => Ok((
                held.device_of(&mount)
                    .ok_or_else(|| not_there("the volume has no disk here"))?,
                Some(mount),
            )),
            Standing::Nothing if ask.may_be_staged_device => {
                let exists = if_present(self.host.stat(&path).await)
                    .doing(format!("looking at {path}"))?
                    .is_some();
                let device = held.device().cloned().filter(|_| exists);
                Ok((
                    device.ok_or_else(|| not_there("the volume is not staged on this node"))?,
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

    /// Rescan, identity, size, map: in this order, because before a rescan the kernel only repeats what it once heard. Every
    /// path must answer: a map that is larger than one of its paths would lose what is written through that path.
    async fn measure(&self, ask: &Expand, device: Block) -> Result<Attached, Error> {
        let held = self.held(&ask.volume.uuid).await?;
        let paths = held.paths_of(&device);
        for session in &held.sessions {
            self.rescan(session).await?;
            if !paths.iter().any(|path| path.session == session.id) {
                return Err(Error::Unfinished {
                    what: device.node(),
                    seen: format!("{session} is no path to it yet"),
                });
            }
        }
        if paths.is_empty() {
            return Err(Error::Unproven {
                what: format!("measuring {}", device.node()),
                seen: "its session has just ended".to_owned(),
            });
        }
        for path in &paths {
            self.prove(path, &ask.volume.uuid).await?;
            self.must_have_grown(ask, &path.block).await?;
        }
        let size = match &held.map {
            Some(map) if map.block == device => self.fit(map, &paths).await?,
            _ => {
                let doing = format!("measuring {}", device.node());
                device.size(&self.host).await.doing(doing)?
            }
        };
        Ok(Attached { device, size })
    }

    async fn must_have_grown(&self, ask: &Expand, block: &Block) -> Result<(), Error> {
        let doing = format!("measuring {}", block.node());
        let look = || async {
            let size = block.size(&self.host).await?;
            Ok((size >= ask.range.required).then_some(()))
        };
        if disk::until(&self.host, SIZE_APPEARS, look)
            .await
            .doing(&doing)?
            .is_some()
        {
            return Ok(());
        }
        Err(Error::Unproven {
            what: format!("the growth of {} to {}", block.node(), ask.range.required),
            seen: format!(
                "after a rescan the disk is {}: has the LUN been grown on the NAS?",
                block.size(&self.host).await.doing(doing)?
            ),
        })
    }

    async fn grow_mounted(&self, attached: &Attached, mount: &Mount) -> Result<(), Error> {
        let fs: FsType = mount.fs.parse().map_err(|_| Error::Refused {
            what: format!("growing what is mounted at {}", mount.point),
            seen: format!("it is {}", mount.fs),
            remedy: "this driver grows ext4, xfs and btrfs".to_owned(),
        })?;
        if let Some(why) = self.death_of(mount).await? {
            return Err(Error::Unfinished {
                what: format!("growing the {fs} at {}", mount.point),
                seen: format!(
                    "it is dead ({why}): delete the pods that use it, and it is mounted anew and grows"
                ),
            });
        }
        let point = self.writable_mount(attached, mount).await?;
        match self.fill(attached, fs, &point).await? {
            Grown::Full => Ok(()),
            Grown::ReadOnly => {
                tracing::warn!(
                    point,
                    disk = attached.device.node(),
                    "mounted read-only: the file system keeps its size until it is mounted writable"
                );
                Ok(())
            }
            Grown::OnlyUnmounted(seen, remedy) => Err(kept(fs, &point, seen, remedy)),
            Grown::Never(seen) => Err(kept(fs, &point, seen, COPY_IT)),
        }
    }

    /// A path to grow the file system through: the path asked about, or another writable mount of it when that one is
    /// read-only (a pod that may only read, of a volume that is staged writable).
    async fn writable_mount(&self, attached: &Attached, mount: &Mount) -> Result<String, Error> {
        if !mount.is_readonly() {
            return Ok(mount.point.clone());
        }
        let device = std::slice::from_ref(&attached.device);
        for point in self.uses(device).await? {
            if let Standing::Ours(other) = self.standing(&point, device).await?
                && !other.is_readonly()
            {
                return Ok(point);
            }
        }
        Ok(mount.point.clone())
    }
}
