//! Growing a file system to the size of its disk, verified by reading its size back (design.md#expansion-is-read-back and
//! #node-expansion-is-always-required).

use super::Machine;
use super::attach::Attached;
use super::fsck::damaged;
use super::mounts::MountState;
use crate::error::{Context as _, Error};
use crate::host::filesystem::{self, CheckResult, GrowFailure};
use crate::host::superblock::{self, Geometry, Superblock};
use crate::host::{Exit, Host, ReadMode};
use crate::volume::FsType;

/// The outcome of growing. A failure that a retry may fix is an error instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Grown {
    /// The file system fills its disk.
    Full,
    /// It is mounted read-only; it can grow once it is mounted read-write.
    ReadOnly,
    /// It can grow only while it is not mounted: reason and remedy.
    OnlyUnmounted(String, &'static str),
    /// It can never grow: reason.
    Never(String),
}

const WHEN_STAGED_AGAIN: &str =
    "end the pods that use the volume: it grows, unmounted, when it is staged again";

impl<H: Host> Machine<H> {
    /// Grows the file system mounted at `point` to the size of its disk. Idempotent.
    pub(super) async fn grow_to_device(
        &self,
        attached: &Attached,
        fs: FsType,
        point: &str,
    ) -> Result<Grown, Error> {
        let present = self.mounted_geometry(attached, fs, point).await?;
        if present.fills(attached.size) {
            return Ok(Grown::Full);
        }
        if self.is_readonly(attached, point).await? {
            return Ok(Grown::ReadOnly);
        }
        let cmd = filesystem::grow(fs, &attached.device.node(), point);
        let (program, doing) = (cmd.program, format!("growing the {fs} at {point}"));
        let exit = self.host.run(cmd).await.context(&doing)?;
        if let Some(cannot) = filesystem::cannot_grow(fs, &exit) {
            return Ok(outcome_of_refusal(cannot, &present, &exit));
        }
        exit.ok(program).context(&doing)?;
        ensure_full(
            attached,
            &self.mounted_geometry(attached, fs, point).await?,
            program,
        )?;
        Ok(Grown::Full)
    }

    async fn is_readonly(&self, attached: &Attached, point: &str) -> Result<bool, Error> {
        match self
            .mount_state_at(point, std::slice::from_ref(&attached.device))
            .await?
        {
            MountState::Ours(mount) => Ok(mount.is_readonly()),
            MountState::Nothing | MountState::Gone(_) | MountState::Foreign(_) => Ok(false),
        }
    }

    /// The size of a mounted file system as its tools report it: for xfs and btrfs the superblock on disk may be stale.
    async fn mounted_geometry(
        &self,
        attached: &Attached,
        fs: FsType,
        point: &str,
    ) -> Result<Geometry, Error> {
        let doing = format!("measuring the {fs} at {point}");
        match fs {
            FsType::Ext4 => self.superblock(attached, fs, ReadMode::Cache).await,
            FsType::Xfs => self
                .host
                .run(filesystem::xfs_geometry(point))
                .await
                .and_then(filesystem::read_xfs_geometry)
                .context(doing),
            FsType::Btrfs => self
                .host
                .run(filesystem::btrfs_geometry(point))
                .await
                .and_then(filesystem::read_btrfs_geometry)
                .context(doing),
        }
    }

    pub(super) async fn superblock(
        &self,
        attached: &Attached,
        fs: FsType,
        via: ReadMode,
    ) -> Result<Geometry, Error> {
        let node = attached.device.node();
        let head = self
            .host
            .read_device(&node, superblock::HEAD, via)
            .await
            .context(format!("measuring the {fs} on {node}"))?;
        let found = superblock::read(&head)
            .into_iter()
            .find_map(|found| match found {
                Superblock::Complete(geometry) if geometry.kind() == fs => Some(geometry),
                Superblock::Complete(_) | Superblock::Unfinished(_) => None,
            });
        found.ok_or_else(|| Error::Unverified {
            what: format!("measuring the {fs} on {node}"),
            seen: "its superblock is not readable".to_owned(),
        })
    }

    /// Grows an ext4 that is mounted at `staging` and nowhere else: unmount, check, grow, mount again.
    pub(super) async fn grow_offline(
        &self,
        attached: &Attached,
        staging: &str,
        fs: FsType,
        flags: &[String],
    ) -> Result<Grown, Error> {
        let device = std::slice::from_ref(&attached.device);
        self.clear(staging, device).await?;
        let grown = self.grow_unmounted(attached, fs).await?;
        self.mount(attached, staging, fs, flags).await?;
        Ok(grown)
    }

    async fn grow_unmounted(&self, attached: &Attached, fs: FsType) -> Result<Grown, Error> {
        let node = attached.device.node();
        let checking = format!("checking the {fs} on {node}");
        let checked = self.host.run(filesystem::check_full(&node)).await;
        match checked
            .and_then(|exit| filesystem::read_check(&exit))
            .context(checking)?
        {
            CheckResult::Sound => {}
            CheckResult::Damaged(said) => return Err(damaged(attached, &said)),
            CheckResult::Unchecked(said) => {
                return Ok(Grown::Never(format!("it cannot be checked first ({said})")));
            }
        }
        let (cmd, doing) = (
            filesystem::grow_unmounted(&node),
            format!("growing the {fs} on {node}"),
        );
        let program = cmd.program;
        let exit = self.host.run(cmd).await.context(&doing)?;
        // The other variants are about mounted file systems, so they would only mean that it is mounted after all: an error
        // below.
        if filesystem::cannot_grow(fs, &exit) == Some(GrowFailure::Never) {
            return Ok(Grown::Never(output_of(&exit)));
        }
        exit.ok(program).context(&doing)?;
        ensure_full(
            attached,
            &self.superblock(attached, fs, ReadMode::Disk).await?,
            program,
        )?;
        Ok(Grown::Full)
    }
}

/// The outcome that the tool's refusal means for this file system.
fn outcome_of_refusal(cannot: GrowFailure, geometry: &Geometry, exit: &Exit) -> Grown {
    match cannot {
        GrowFailure::Never => Grown::Never(output_of(exit)),
        GrowFailure::NotPermitted | GrowFailure::OnlyUnmounted if !geometry.grows_unmounted() => {
            let why = "it is made with bigalloc, which resize2fs does not grow";
            Grown::Never(format!("{why} ({})", output_of(exit)))
        }
        GrowFailure::NotPermitted => Grown::OnlyUnmounted(
            "the kernel refuses it (EPERM): the driver's process lacks CAP_SYS_RESOURCE".to_owned(),
            "grant CAP_SYS_RESOURCE to the node plugin's container; or end the pods that use the volume: it grows, unmounted, when it is staged again",
        ),
        GrowFailure::OnlyUnmounted => Grown::OnlyUnmounted(output_of(exit), WHEN_STAGED_AGAIN),
    }
}

/// The output of `resize2fs` on one line, without its banner.
fn output_of(exit: &Exit) -> String {
    let said = format!("{}\n{}", exit.stderr, exit.stdout);
    let lines = said.lines().map(str::trim);
    let lines: Vec<&str> = lines
        .filter(|line| !line.is_empty() && !line.starts_with("resize2fs 1."))
        .collect();
    lines.join(" ")
}

/// Verifies that the file system fills its disk: a tool that reports success and does nothing has failed.
fn ensure_full(attached: &Attached, geometry: &Geometry, program: &str) -> Result<(), Error> {
    if geometry.fills(attached.size) {
        return Ok(());
    }
    Err(Error::Unverified {
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

/// The error for a file system that cannot grow.
pub(super) fn growth_error(fs: FsType, point: &str, seen: String, remedy: &str) -> Error {
    Error::Refused {
        what: format!("growing the {fs} at {point}"),
        seen,
        remedy: remedy.to_owned(),
    }
}

/// The remedy for a file system that can never grow.
pub(super) const COPY_IT: &str = "its data are intact and it can be used as it is; for more room copy them into a new volume, whose StorageClass has no such formatOptions";
