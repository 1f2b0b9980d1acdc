//! NodePublishVolume and NodeUnpublishVolume: bind mounts of the staged file system, or of the device node, at a target path.

use super::Machine;
use super::attachment::Attachment;
use super::mounts::{MountState, not_ours};
use super::request::{Publish, VolumeMode};
use super::stage::{is_readonly, label_differs};
use crate::error::{Context as _, Error};
use crate::host::disk::Block;
use crate::host::mount::{self, Mount};
use crate::host::{Host, HostError, Stat, if_present};
use crate::volume::{FsType, LunUuid, VolumeId};

impl<H: Host> Machine<H> {
    /// The temporary mount next to the staging path: [`Self::bind_readonly`] makes it read-only before it binds it to the target.
    pub(super) fn temp_mount(&self, staging: &str) -> String {
        format!("{staging}.{}-readonly", self.driver_name)
    }

    /// Keeps only pods' mount points: removes the staging path and the temporary mount next to it.
    pub(super) fn pod_mount_points(&self, staging: &str, mut points: Vec<String>) -> Vec<String> {
        let own = [staging, &self.temp_mount(staging)];
        points.retain(|point| !own.contains(&point.as_str()));
        points
    }

    /// Publishes a staged volume at a target path. Idempotent.
    pub(super) async fn publish(&self, request: &Publish) -> Result<(), Error> {
        let not_staged = |seen: &str| refused(&request.volume, seen, "stage the volume first");
        let staging = self
            .resolve(&request.staging)
            .await?
            .ok_or_else(|| not_staged("the staging path does not exist"))?;
        let target = self.resolve(&request.target).await?.ok_or_else(|| {
            refused(
                &request.volume,
                &format!("the directory that {} is in does not exist", request.target),
                "create it: that is the CO's task",
            )
        })?;
        let (attachment, seen) = self.ensure_staged(request, &staging).await?;
        if attachment.sessions.is_empty() {
            return Err(not_staged("this node has no session with its target"));
        }
        // Of several disks without a map, the staged file system is on one: the mount table has it.
        let mounted = attachment.disks.first().map(|disk| &disk.block);
        let mounted = mounted.filter(|_| request.intent.mode != VolumeMode::Device);
        let device = attachment.device().or(mounted).ok_or_else(|| {
            not_staged("its session has no disk, or it has several and no multipath map")
        })?;
        let blocks = attachment.blocks();
        let mode = match &request.intent.mode {
            VolumeMode::FileSystem { fs, flags } => {
                let seen = match seen {
                    Some(seen) => seen,
                    None => self.mount_state_at(&staging, &blocks).await?,
                };
                let staged = check_staged(request, &staging, seen, *fs, flags)?;
                if staged.is_readonly() || !request.readonly {
                    PublishMode::Staged
                } else {
                    PublishMode::Readonly
                }
            }
            VolumeMode::Device => {
                self.verify_device(&request.volume.uuid, &attachment, device)
                    .await?;
                self.must_be_unclaimed(device).await?;
                PublishMode::Device(device.node())
            }
        };
        if self.is_published(request, &target, &blocks).await? {
            // An earlier call may have died after it mounted the target, before this cleanup.
            return self.remove_temp_mount(&staging, &blocks).await;
        }
        if !request.intent.shared {
            self.must_be_only_target(request, &staging, &target, &blocks)
                .await?;
        }
        let existed = self.must_be_kind(&target, mode.kind()).await?;
        // All checks come before the first mount: after a final error the CO forgets the path (design.md#final-codes).
        let shown = self
            .mount_target(request, &mode, &staging, &target, &blocks)
            .await;
        match shown {
            Err(error) if error.is_final() => Err(self
                .roll_back(&staging, &target, &blocks, existed, error)
                .await),
            other => other,
        }
    }

    async fn mount_target(
        &self,
        request: &Publish,
        mode: &PublishMode,
        staging: &str,
        target: &str,
        blocks: &[Block],
    ) -> Result<(), Error> {
        match mode {
            PublishMode::Device(node) => self.bind_file(node, target).await?,
            PublishMode::Readonly => self.bind_readonly(staging, target, blocks).await?,
            PublishMode::Staged => self.bind_dir(staging, target).await?,
        }
        if self.is_published(request, target, blocks).await? {
            return Ok(());
        }
        Err(not_in_mount_table(format!("publishing at {target}")))
    }

    /// Undoes what the call has done before its final error; retryable if that fails.
    async fn roll_back(
        &self,
        staging: &str,
        target: &str,
        blocks: &[Block],
        existed: bool,
        error: Error,
    ) -> Error {
        let rollback = async {
            self.remove_temp_mount(staging, blocks).await?;
            self.clear(target, blocks).await?;
            if existed {
                return Ok(());
            }
            self.remove_path(target).await
        };
        match rollback.await {
            Ok(()) => error,
            Err(left) => Error::Unverified {
                what: format!("rolling back the publication at {target}"),
                seen: format!("{}; the failure: {}", left.chain(), error.chain()),
            },
        }
    }

    /// The volume's attachment under this publication, staged again if necessary: the teardown of an earlier publication may have
    /// removed the staged mount, and the CO does not stage a volume that it believes to be staged.
    ///
    /// Also returns the mount state of the staging path, unless it may have changed since.
    async fn ensure_staged(
        &self,
        request: &Publish,
        staging: &str,
    ) -> Result<(Attachment, Option<MountState>), Error> {
        let ended = self
            .tear_down_ended(&request.volume.uuid, &request.context.iqn, staging)
            .await?;
        let attachment = self.attachment(&request.volume.uuid).await?;
        let (mounted, seen) = match &request.intent.mode {
            // A call that was interrupted after its login has not attached the disk yet.
            VolumeMode::Device => (attachment.device().is_some(), None),
            VolumeMode::FileSystem { .. } => {
                let seen = self.mount_state_at(staging, &attachment.blocks()).await?;
                if let MountState::Ours(mount) = &seen
                    && let Some(why) = self.why_dead(mount).await?
                {
                    let attachment = self
                        .remount_dead(request, staging, &attachment, &why)
                        .await?;
                    return Ok((attachment, None));
                }
                let mounted = matches!(seen, MountState::Ours(_) | MountState::Foreign(_));
                (mounted, Some(seen))
            }
        };
        // The device is in use elsewhere than at the staging path.
        let used = !mounted && !self.mount_points(&attachment.blocks()).await?.is_empty();
        if used || mounted && !attachment.sessions.is_empty() {
            return Ok((attachment, seen));
        }
        // With a live session and its disk no login is necessary, and so no Secret.
        let attached = attachment.is_alive() && attachment.device().is_some();
        let again = attached.then(|| request.stage_request_without_login());
        match request.stage_request().or(again) {
            Some(stage) => {
                tracing::warn!(volume = %request.volume, staging, "the volume is not staged under this publication: NodePublishVolume stages it again");
                Box::pin(self.stage(&stage)).await?;
                Ok((self.attachment(&request.volume.uuid).await?, None))
            }
            None if ended => Err(Error::NotReady {
                what: format!("publishing volume {}", request.volume),
                seen: "an earlier publication of it was torn down here, and only NodeStageVolume brings the Secret to log in again: delete the pod".to_owned(),
            }),
            None => Ok((attachment, seen)),
        }
    }

    /// Remounts a dead file system: the CO does not stage a volume that it believes to be staged. The session exists, so no login
    /// and no Secret is necessary.
    async fn remount_dead(
        &self,
        request: &Publish,
        staging: &str,
        attachment: &Attachment,
        why: &str,
    ) -> Result<Attachment, Error> {
        self.unmount_dead(staging, attachment, why).await?;
        Box::pin(self.stage(&request.stage_request_without_login())).await?;
        self.attachment(&request.volume.uuid).await
    }

    /// Verifies a raw device's identity: of a map every path that answers, and at least one.
    async fn verify_device(
        &self,
        uuid: &LunUuid,
        attachment: &Attachment,
        device: &Block,
    ) -> Result<(), Error> {
        let alive = attachment.is_alive();
        let mut proven = 0;
        for disk in attachment.paths_of(device) {
            let session = attachment
                .sessions
                .iter()
                .find(|session| session.id == disk.session);
            match session {
                Some(session) if session.alive || !alive => {
                    self.rescan(session).await?;
                    self.verify_identity(&disk, uuid).await?;
                    proven += 1;
                }
                _ => tracing::warn!(path = disk.block.name, "a path is lost"),
            }
        }
        if proven > 0 {
            return Ok(());
        }
        Err(Error::NotReady {
            what: device.node(),
            seen: "no path of it answers".to_owned(),
        })
    }

    /// True if the volume is mounted at the target path as requested.
    ///
    /// # Errors
    /// If it is mounted there in another way, or if something else is.
    async fn is_published(
        &self,
        request: &Publish,
        target: &str,
        blocks: &[Block],
    ) -> Result<bool, Error> {
        let mount = match self.clear_gone(target, blocks).await? {
            MountState::Ours(mount) => mount,
            MountState::Foreign(mount) => return Err(not_ours(&mount)),
            MountState::Nothing | MountState::Gone(_) => return Ok(false),
        };
        let describe = |device: bool, readonly: bool| match (device, readonly) {
            (true, _) => "a device",
            (false, true) => "a file system, read-only",
            (false, false) => "a file system, read-write",
        };
        let seen = describe(mount.device_node().is_some(), mount.is_readonly());
        let asked = describe(
            request.intent.mode == VolumeMode::Device,
            wants_readonly(request),
        );
        if seen == asked {
            return Ok(true);
        }
        Err(Error::Incompatible {
            what: format!("the publication of volume {} at {target}", request.volume),
            seen: seen.to_owned(),
            asked: asked.to_owned(),
        })
    }

    /// CSI v1.12, NodePublishVolume: the single-writer access modes allow one target path at a time.
    async fn must_be_only_target(
        &self,
        request: &Publish,
        staging: &str,
        target: &str,
        blocks: &[Block],
    ) -> Result<(), Error> {
        let own = [staging, target, &self.temp_mount(staging)];
        match self
            .mount_points(blocks)
            .await?
            .into_iter()
            .find(|point| !own.contains(&point.as_str()))
        {
            None => Ok(()),
            Some(other) => Err(refused(
                &request.volume,
                &format!("it is already published at {other}, and its access mode allows one path"),
                "unpublish it there, or use SINGLE_NODE_MULTI_WRITER (ReadWriteOnce instead of ReadWriteOncePod)",
            )),
        }
    }

    async fn bind_dir(&self, from: &str, target: &str) -> Result<(), Error> {
        self.must_be_kind(target, Stat::Directory).await?;
        self.host
            .create_dir(target)
            .await
            .context(format!("publishing at {target}"))?;
        self.run(
            &format!("publishing at {target}"),
            mount::bind(from, target),
        )
        .await
        .map(|_| ())
    }

    async fn bind_file(&self, device: &str, target: &str) -> Result<(), Error> {
        self.must_be_kind(target, Stat::File(0)).await?;
        self.host
            .create_file(target)
            .await
            .context(format!("publishing at {target}"))?;
        self.run(
            &format!("publishing at {target}"),
            mount::bind(device, target),
        )
        .await
        .map(|_| ())
    }

    /// Refuses to replace something of another kind at the target path. Returns whether the path exists.
    async fn must_be_kind(&self, target: &str, kind: Stat) -> Result<bool, Error> {
        match if_present(self.host.stat(target).await).context(format!("checking {target}"))? {
            Some(found) if found != kind => Err(Error::Refused {
                what: format!("publishing at {target}"),
                seen: format!("something else exists there: {found:?}"),
                remedy: "remove it if it is not needed".to_owned(),
            }),
            found => Ok(found.is_some()),
        }
    }

    /// Binds a writable file system read-only. A bind mount starts as writable as its source, so it is bound from a temporary
    /// mount that was made read-only before: the target is read-only from its first moment, in every mount namespace that it
    /// propagates to, and no crash can leave it writable.
    async fn bind_readonly(
        &self,
        staging: &str,
        target: &str,
        blocks: &[Block],
    ) -> Result<(), Error> {
        let temp = self.temp_mount(staging);
        self.remove_temp_mount(staging, blocks).await?;
        self.bind_dir(staging, &temp).await?;
        self.run(
            &format!("making {temp} read-only"),
            mount::make_readonly(&temp),
        )
        .await?;
        // Do not trust mount's exit status: the target would be writable, and no later call would change that.
        match self.mount_state_at(&temp, blocks).await? {
            MountState::Ours(mount) if mount.is_readonly() => {}
            MountState::Ours(_)
            | MountState::Nothing
            | MountState::Gone(_)
            | MountState::Foreign(_) => {
                return Err(not_in_mount_table(format!("making {temp} read-only")));
            }
        }
        self.bind_dir(&temp, target).await?;
        self.remove_temp_mount(staging, blocks).await
    }

    /// Removes the temporary mount and its directory. Idempotent: a crash may have left it.
    pub(super) async fn remove_temp_mount(
        &self,
        staging: &str,
        blocks: &[Block],
    ) -> Result<(), Error> {
        let temp = self.temp_mount(staging);
        self.clear(&temp, blocks).await?;
        self.host
            .remove_dir(&temp)
            .await
            .context(format!("removing {temp}"))
    }

    /// Unmounts and removes one target path. Idempotent; refuses to touch a foreign mount.
    pub(super) async fn unpublish(&self, volume: &VolumeId, target: &str) -> Result<(), Error> {
        let Some(target) = self.resolve(target).await? else {
            return Ok(());
        };
        let blocks = self.attachment(&volume.uuid).await?.blocks();
        self.clear(&target, &blocks).await?;
        // An interrupted publication may have left its temporary mount.
        for staging in self.mount_points(&blocks).await? {
            self.remove_temp_mount(&staging, &blocks).await?;
        }
        self.remove_path(&target).await
    }

    /// Removes what the driver creates at a target path: an empty directory or file.
    async fn remove_path(&self, target: &str) -> Result<(), Error> {
        let doing = format!("removing {target}");
        match if_present(self.host.stat(target).await).context(&doing)? {
            None => Ok(()),
            Some(Stat::File(0)) => self.host.remove_file(target).await.context(doing),
            Some(Stat::Directory) => match self.host.remove_dir(target).await {
                Err(HostError::Io { source, .. })
                    if source.kind() == std::io::ErrorKind::DirectoryNotEmpty =>
                {
                    Err(not_empty(target))
                }
                other => other.context(doing),
            },
            Some(Stat::File(_) | Stat::BlockDevice(_) | Stat::Other) => Err(not_empty(target)),
        }
    }
}

/// The mount of the staged file system, if it matches the capability.
fn check_staged(
    request: &Publish,
    staging: &str,
    seen: MountState,
    fs: FsType,
    flags: &[String],
) -> Result<Mount, Error> {
    let seen = match seen {
        MountState::Ours(mount) if mount.fs != fs.as_str() => {
            format!("it is staged as {}, not {fs}", mount.fs)
        }
        MountState::Ours(mount) if mount.is_readonly() && !wants_readonly(request) => {
            "it is staged read-only, and read-write is requested".to_owned()
        }
        MountState::Ours(mount) => {
            match (mount::lacks(&mount, flags), label_differs(&mount, flags)) {
                (Some(flag), _) => format!("it is staged without the mount flag {flag}"),
                (None, Some((seen, asked))) => {
                    format!("it is staged with {seen}, not with {asked}")
                }
                (None, None) => return Ok(mount),
            }
        }
        MountState::Nothing => format!("nothing is mounted at {staging}"),
        MountState::Gone(mount) | MountState::Foreign(mount) => {
            format!("{} is mounted at {staging}", mount.describe())
        }
    };
    Err(refused(
        &request.volume,
        &seen,
        "stage the volume first, with the same capability",
    ))
}

/// What is mounted at a target path.
enum PublishMode {
    /// This device node.
    Device(String),
    /// The file system, as it is staged.
    Staged,
    /// The file system, read-only although it is staged read-write.
    Readonly,
}

impl PublishMode {
    /// What the target path must be: a bind mount of a device node needs a file.
    fn kind(&self) -> Stat {
        match self {
            Self::Device(_) => Stat::File(0),
            Self::Staged | Self::Readonly => Stat::Directory,
        }
    }
}

fn wants_readonly(request: &Publish) -> bool {
    let flagged =
        matches!(&request.intent.mode, VolumeMode::FileSystem { flags, .. } if is_readonly(flags));
    request.readonly || flagged
}

fn not_in_mount_table(what: String) -> Error {
    Error::Unverified {
        what,
        seen: "mount reports success, but the mount table does not show it".to_owned(),
    }
}

fn not_empty(target: &str) -> Error {
    Error::Refused {
        what: format!("removing {target}"),
        seen: "nothing is mounted there, but it holds data or was not created by the driver"
            .to_owned(),
        remedy: "save what is there, remove it and try again".to_owned(),
    }
}

fn refused(volume: &VolumeId, seen: &str, remedy: &str) -> Error {
    Error::Refused {
        what: format!("publishing volume {volume}"),
        seen: seen.to_owned(),
        remedy: remedy.to_owned(),
    }
}
