//! NodePublishVolume and NodeUnpublishVolume: one path for one pod.

use super::Machine;
use super::attachment::Attachment;
use super::mounts::{MountState, not_ours};
use super::request::{Publish, Use};
use super::stage::{is_readonly, label_differs};
use crate::error::{Context as _, Error};
use crate::host::disk::Block;
use crate::host::mount::{self, Mount};
use crate::host::{Host, HostError, Stat, if_present};
use crate::volume::{FsType, LunUuid, VolumeId};

impl<H: Host> Machine<H> {
    /// Beside the staging path: where a mount is made read-only before it is shown at the target path.
    pub(super) fn temp_mount(&self, staging: &str) -> String {
        format!("{staging}.{}-readonly", self.driver_name)
    }

    /// Those of the mount points that are not the driver's own for a volume staged at `staging`: pods'.
    pub(super) fn of_pods(&self, staging: &str, mut points: Vec<String>) -> Vec<String> {
        let own = [staging, &self.temp_mount(staging)];
        points.retain(|point| !own.contains(&point.as_str()));
        points
    }

    /// Shows a staged volume at one more path.
    pub(super) async fn publish(&self, ask: &Publish) -> Result<(), Error> {
        let not_staged = |seen: &str| refused(&ask.volume, seen, "stage the volume first");
        let staging = self
            .resolve(&ask.staging)
            .await?
            .ok_or_else(|| not_staged("the staging path does not exist"))?;
        let target = self.resolve(&ask.target).await?.ok_or_else(|| {
            refused(
                &ask.volume,
                &format!("the directory that {} is in does not exist", ask.target),
                "make it: the CO owns it",
            )
        })?;
        let (held, seen) = self.staged_now(ask, &staging).await?;
        if held.sessions.is_empty() {
            return Err(not_staged("this node has no session with its target"));
        }
        // A file system's mount says itself which of several disks it is on.
        let mounted = held.disks.first().map(|disk| &disk.block);
        let mounted = mounted.filter(|_| ask.intent.by != Use::Device);
        let device = held.device().or(mounted).ok_or_else(|| {
            not_staged("its session has no disk, or it has several and no multipath map")
        })?;
        let blocks = held.blocks();
        let show = match &ask.intent.by {
            Use::FileSystem { fs, flags } => {
                let seen = match seen {
                    Some(seen) => seen,
                    None => self.mount_state_at(&staging, &blocks).await?,
                };
                let staged = staged(ask, &staging, seen, *fs, flags)?;
                if staged.is_readonly() || !ask.readonly {
                    PublishMode::Staged
                } else {
                    PublishMode::Readonly
                }
            }
            Use::Device => {
                self.verify_device(&ask.volume.uuid, &held, device).await?;
                self.must_be_unclaimed(device).await?;
                PublishMode::Device(device.node())
            }
        };
        if self.is_published(ask, &target, &blocks).await? {
            // An earlier call may have got as far as the target, and no further.
            return self.remove_temp_mount(&staging, &blocks).await;
        }
        if !ask.intent.shared {
            self.must_be_only(ask, &staging, &target, &blocks).await?;
        }
        let was_there = self.must_be_kind(&target, show.kind()).await?;
        // All that can be decided is decided: after a final answer the CO forgets the path (design.md#final-codes).
        let shown = self
            .mount_target(ask, &show, &staging, &target, &blocks)
            .await;
        match shown {
            Err(error) if error.is_final() => Err(self
                .roll_back(&staging, &target, &blocks, was_there, error)
                .await),
            other => other,
        }
    }

    async fn mount_target(
        &self,
        ask: &Publish,
        show: &PublishMode,
        staging: &str,
        target: &str,
        blocks: &[Block],
    ) -> Result<(), Error> {
        match show {
            PublishMode::Device(node) => self.bind_file(node, target).await?,
            PublishMode::Readonly => self.bind_readonly(staging, target, blocks).await?,
            PublishMode::Staged => self.bind_dir(staging, target).await?,
        }
        if self.is_published(ask, target, blocks).await? {
            return Ok(());
        }
        Err(unseen(format!("publishing at {target}")))
    }

    /// Removes what a call has made that ends with a final error.
    async fn roll_back(
        &self,
        staging: &str,
        target: &str,
        blocks: &[Block],
        was_there: bool,
        error: Error,
    ) -> Error {
        let undone = async {
            self.remove_temp_mount(staging, blocks).await?;
            self.clear(target, blocks).await?;
            if was_there {
                return Ok(());
            }
            self.remove_path(target).await
        };
        match undone.await {
            Ok(()) => error,
            Err(left) => Error::Unverified {
                what: format!("taking back what was made at {target}"),
                seen: format!("{}; the failure: {}", left.chain(), error.chain()),
            },
        }
    }

    /// What this node holds of the volume under this publication. It is staged anew where an earlier publication, or a call that was
    /// broken off while it took that down, has left nothing of use: the CO does not stage what it believes to be staged.
    ///
    /// And what was seen at the staging path, if nothing was done since.
    async fn staged_now(
        &self,
        ask: &Publish,
        staging: &str,
    ) -> Result<(Attachment, Option<MountState>), Error> {
        let ended = self
            .tear_down_ended(&ask.volume.uuid, &ask.context.iqn, staging)
            .await?;
        let held = self.attachment(&ask.volume.uuid).await?;
        let (mounted, seen) = match &ask.intent.by {
            // A call that was broken off after its login has not looked for the disk.
            Use::Device => (held.device().is_some(), None),
            Use::FileSystem { .. } => {
                let seen = self.mount_state_at(staging, &held.blocks()).await?;
                if let MountState::Ours(mount) = &seen
                    && let Some(why) = self.death_of(mount).await?
                {
                    let held = self.remount_dead(ask, staging, &held, &why).await?;
                    return Ok((held, None));
                }
                let mounted = matches!(seen, MountState::Ours(_) | MountState::Foreign(_));
                (mounted, Some(seen))
            }
        };
        // Somebody uses the device as something else.
        let used = !mounted && !self.uses(&held.blocks()).await?.is_empty();
        if used || mounted && !held.sessions.is_empty() {
            return Ok((held, seen));
        }
        // Where there is a session with its disk, no login needs a Secret.
        let attached = held.is_alive() && held.device().is_some();
        let again = attached.then(|| ask.staging_again());
        match ask.staging().or(again) {
            Some(stage) => {
                tracing::warn!(volume = %ask.volume, staging, "staging from a publish call what is not staged under this publication");
                Box::pin(self.stage(&stage)).await?;
                Ok((self.attachment(&ask.volume.uuid).await?, None))
            }
            None if ended => Err(Error::NotReady {
                what: format!("publishing volume {}", ask.volume),
                seen: "an earlier publication of it was taken down here, and only NodeStageVolume brings the Secret to log in anew: delete the pod".to_owned(),
            }),
            None => Ok((held, seen)),
        }
    }

    /// Mounts a dead file system anew: the CO does not stage what it believes to be staged. Its session is there, so that no login
    /// needs a Secret.
    async fn remount_dead(
        &self,
        ask: &Publish,
        staging: &str,
        held: &Attachment,
        why: &str,
    ) -> Result<Attachment, Error> {
        self.unmount_dead(staging, held, why).await?;
        Box::pin(self.stage(&ask.staging_again())).await?;
        self.attachment(&ask.volume.uuid).await
    }

    /// A raw device is the volume's: of a map every path that answers, and at least one.
    async fn verify_device(
        &self,
        uuid: &LunUuid,
        held: &Attachment,
        device: &Block,
    ) -> Result<(), Error> {
        let alive = held.is_alive();
        let mut proven = 0;
        for disk in held.paths_of(device) {
            let session = held
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

    /// True when the volume is at the target path as asked for.
    async fn is_published(
        &self,
        ask: &Publish,
        target: &str,
        blocks: &[Block],
    ) -> Result<bool, Error> {
        let there = match self.clear_gone(target, blocks).await? {
            MountState::Ours(mount) => mount,
            MountState::Foreign(mount) => return Err(not_ours(&mount)),
            MountState::Nothing | MountState::Gone(_) => return Ok(false),
        };
        let word = |device: bool, readonly: bool| match (device, readonly) {
            (true, _) => "a device",
            (false, true) => "a file system, read-only",
            (false, false) => "a file system, read-write",
        };
        let seen = word(there.device_node().is_some(), there.is_readonly());
        let asked = word(ask.intent.by == Use::Device, wants_readonly(ask));
        if seen == asked {
            return Ok(true);
        }
        Err(Error::Incompatible {
            what: format!("the publication of volume {} at {target}", ask.volume),
            seen: seen.to_owned(),
            asked: asked.to_owned(),
        })
    }

    /// CSI v1.12, NodePublishVolume: with these access modes a volume has one target path at a time.
    async fn must_be_only(
        &self,
        ask: &Publish,
        staging: &str,
        target: &str,
        blocks: &[Block],
    ) -> Result<(), Error> {
        let own = [staging, target, &self.temp_mount(staging)];
        match self
            .uses(blocks)
            .await?
            .into_iter()
            .find(|point| !own.contains(&point.as_str()))
        {
            None => Ok(()),
            Some(other) => Err(refused(
                &ask.volume,
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

    /// Something of another kind at the target path is not ours to replace. Whether it is there.
    async fn must_be_kind(&self, target: &str, kind: Stat) -> Result<bool, Error> {
        match if_present(self.host.stat(target).await).context(format!("looking at {target}"))? {
            Some(found) if found != kind => Err(Error::Refused {
                what: format!("publishing at {target}"),
                seen: format!("there is something else already: {found:?}"),
                remedy: "remove it if it may go".to_owned(),
            }),
            found => Ok(found.is_some()),
        }
    }

    /// A read-only view of a writable file system. A bind mount starts as writable as its source, so the source is a mount
    /// that was made read-only before: the target is read-only from its first moment, in every mount namespace that it
    /// spreads to, and no crash can leave it writable.
    async fn bind_readonly(
        &self,
        staging: &str,
        target: &str,
        blocks: &[Block],
    ) -> Result<(), Error> {
        let stone = self.temp_mount(staging);
        self.remove_temp_mount(staging, blocks).await?;
        self.bind_dir(staging, &stone).await?;
        self.run(
            &format!("making {stone} read-only"),
            mount::make_readonly(&stone),
        )
        .await?;
        // What mount reports is not believed: the target would be writable, and no later call would change that.
        match self.mount_state_at(&stone, blocks).await? {
            MountState::Ours(mount) if mount.is_readonly() => {}
            MountState::Ours(_)
            | MountState::Nothing
            | MountState::Gone(_)
            | MountState::Foreign(_) => {
                return Err(unseen(format!("making {stone} read-only")));
            }
        }
        self.bind_dir(&stone, target).await?;
        self.remove_temp_mount(staging, blocks).await
    }

    /// Removes the stepping stone, also one that a crash left.
    pub(super) async fn remove_temp_mount(
        &self,
        staging: &str,
        blocks: &[Block],
    ) -> Result<(), Error> {
        let stone = self.temp_mount(staging);
        self.clear(&stone, blocks).await?;
        self.host
            .remove_dir(&stone)
            .await
            .context(format!("removing {stone}"))
    }

    /// Clears one path. Nothing there is fine; what is not ours stays.
    pub(super) async fn unpublish(&self, volume: &VolumeId, target: &str) -> Result<(), Error> {
        let Some(target) = self.resolve(target).await? else {
            return Ok(());
        };
        let blocks = self.attachment(&volume.uuid).await?.blocks();
        self.clear(&target, &blocks).await?;
        // What a publication that came to no end has left beside the staging path.
        for staging in self.uses(&blocks).await? {
            self.remove_temp_mount(&staging, &blocks).await?;
        }
        self.remove_path(&target).await
    }

    /// Removes what the driver makes at a target path: an empty directory or file.
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

/// The staged file system, if it is what the capability says.
fn staged(
    ask: &Publish,
    staging: &str,
    seen: MountState,
    fs: FsType,
    flags: &[String],
) -> Result<Mount, Error> {
    let seen = match seen {
        MountState::Ours(mount) if mount.fs != fs.as_str() => {
            format!("it is staged as {}, not {fs}", mount.fs)
        }
        MountState::Ours(mount) if mount.is_readonly() && !wants_readonly(ask) => {
            "it is staged read-only, and is to be written".to_owned()
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
        &ask.volume,
        &seen,
        "stage the volume first, with the same capability",
    ))
}

/// What is shown at a target path.
enum PublishMode {
    /// The device with this node.
    Device(String),
    /// The file system as it is staged.
    Staged,
    /// The file system, which is staged to be written, read-only.
    Readonly,
}

impl PublishMode {
    /// What it is shown on.
    fn kind(&self) -> Stat {
        match self {
            Self::Device(_) => Stat::File(0),
            Self::Staged | Self::Readonly => Stat::Directory,
        }
    }
}

/// Nothing is to be written through this path.
fn wants_readonly(ask: &Publish) -> bool {
    let flagged = matches!(&ask.intent.by, Use::FileSystem { flags, .. } if is_readonly(flags));
    ask.readonly || flagged
}

fn unseen(what: String) -> Error {
    Error::Unverified {
        what,
        seen: "mount reports success, but the mount table does not show it".to_owned(),
    }
}

fn not_empty(target: &str) -> Error {
    Error::Refused {
        what: format!("removing {target}"),
        seen: "nothing is mounted there, but it holds data or is not what the driver made"
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
