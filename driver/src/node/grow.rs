//! Growing a file system until it fills its disk, proven by asking it (design choices 12 and 14).

use super::attach::Attached;
use super::place::Standing;
use super::{Doing, Machine};
use crate::error::Error;
use crate::host::filesystem;
use crate::host::superblock::{self, Geometry, Superblock};
use crate::host::{Host, Via, mount};
use crate::volume::FsType;

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grown {
    /// The file system fills its disk.
    Full,
    /// It could grow, but is mounted read-only.
    ReadOnly,
    /// It could grow, but the kernel does not let this process do it while it is mounted.
    NotPermitted,
}

impl<H: Host> Machine<H> {
    /// Grows the file system mounted at `point` to the end of its disk. Does nothing when it is there already.
    pub(super) async fn fill(
        &self,
        attached: &Attached,
        fs: FsType,
        point: &str,
    ) -> Result<Grown, Error> {
        if self
            .mounted_geometry(attached, fs, point)
            .await?
            .fills(attached.size)
        {
            return Ok(Grown::Full);
        }
        if self.is_readonly(attached, point).await? {
            return Ok(Grown::ReadOnly);
        }
        let cmd = filesystem::grow(fs, &attached.device.node(), point);
        let (program, doing) = (cmd.program, format!("growing the {fs} at {point}"));
        let exit = self.host.run(cmd).await.doing(&doing)?;
        if fs == FsType::Ext4 && filesystem::lacks_capability(&exit) {
            return Ok(Grown::NotPermitted);
        }
        exit.ok(program).doing(&doing)?;
        must_fill(
            attached,
            &self.mounted_geometry(attached, fs, point).await?,
            program,
        )?;
        Ok(Grown::Full)
    }

    async fn is_readonly(&self, attached: &Attached, point: &str) -> Result<bool, Error> {
        match self
            .standing(point, std::slice::from_ref(&attached.device))
            .await?
        {
            Standing::Ours(mount) => Ok(mount.is_readonly()),
            Standing::Nothing | Standing::Gone(_) | Standing::Foreign(_) => Ok(false),
        }
    }

    /// How large a mounted file system is, by its own account: what is on the disk may be stale.
    async fn mounted_geometry(
        &self,
        attached: &Attached,
        fs: FsType,
        point: &str,
    ) -> Result<Geometry, Error> {
        let doing = format!("measuring the {fs} at {point}");
        match fs {
            FsType::Ext4 => self.superblock(attached, fs, Via::Cache).await,
            FsType::Xfs => self
                .host
                .run(filesystem::xfs_geometry(point))
                .await
                .and_then(filesystem::read_xfs_geometry)
                .doing(doing),
            FsType::Btrfs => self
                .host
                .run(filesystem::btrfs_geometry(point))
                .await
                .and_then(filesystem::read_btrfs_geometry)
                .doing(doing),
        }
    }

    async fn superblock(
        &self,
        attached: &Attached,
        fs: FsType,
        via: Via,
    ) -> Result<Geometry, Error> {
        let node = attached.device.node();
        let head = self
            .host
            .read_device(&node, superblock::HEAD, via)
            .await
            .doing(format!("measuring the {fs} on {node}"))?;
        let found = superblock::read(&head)
            .into_iter()
            .find_map(|found| match found {
                Superblock::Complete(geometry) if geometry.kind() == fs => Some(geometry),
                Superblock::Complete(_) | Superblock::Begun(_) => None,
            });
        found.ok_or_else(|| Error::Unproven {
            what: format!("measuring the {fs} on {node}"),
            seen: "its superblock is not readable".to_owned(),
        })
    }

    /// Grows an ext4 that was just mounted at `staging` and that nobody uses yet: unmount, check, grow, mount again.
    pub(super) async fn grow_offline(
        &self,
        attached: &Attached,
        staging: &str,
        fs: FsType,
        flags: &[String],
    ) -> Result<(), Error> {
        let device = std::slice::from_ref(&attached.device);
        if self
            .uses(device)
            .await?
            .iter()
            .any(|point| point != staging)
        {
            return Err(not_permitted(staging));
        }
        let node = attached.device.node();
        tracing::info!(
            staging,
            disk = node,
            "CAP_SYS_RESOURCE is missing: growing the ext4 unmounted"
        );
        self.unmount(staging).await?;
        self.host
            .run(filesystem::check(&node))
            .await
            .and_then(filesystem::read_check)
            .doing(format!("checking the {fs} on {node}"))?;
        self.run(
            &format!("growing the {fs} on {node}"),
            filesystem::grow(fs, &node, staging),
        )
        .await?;
        must_fill(
            attached,
            &self.superblock(attached, fs, Via::Disk).await?,
            "resize2fs",
        )?;
        self.run(
            &format!("mounting {node} at {staging}"),
            mount::mount(fs, &node, staging, flags),
        )
        .await
        .map(|_| ())
    }
}

/// A tool that says yes and does nothing has failed.
fn must_fill(attached: &Attached, geometry: &Geometry, program: &str) -> Result<(), Error> {
    if geometry.fills(attached.size) {
        return Ok(());
    }
    Err(Error::Unproven {
        what: format!(
            "growing the {} on {}",
            geometry.kind(),
            attached.device.node()
        ),
        seen: format!(
            "{program} reports success, but the file system is {} on a disk of {}",
            geometry.size(),
            attached.size
        ),
    })
}

/// The kernel refuses to grow a mounted ext4.
pub(super) fn not_permitted(point: &str) -> Error {
    Error::Refused {
        what: format!("growing the mounted ext4 at {point}"),
        seen: "the kernel refuses it (EPERM): the driver's process lacks CAP_SYS_RESOURCE".to_owned(),
        remedy: "grant CAP_SYS_RESOURCE to the node plugin's container; or end the pods that use the volume: it grows, unmounted, when it is staged again".to_owned(),
    }
}
