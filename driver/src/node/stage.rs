//! NodeStageVolume: attaches the LUN and, for a file system volume, formats it if blank, checks, mounts and grows it.

use super::Machine;
use super::attach::Attached;
use super::grow::Grown;
use super::mounts::{MountState, not_ours};
use super::request::{Stage, VolumeMode};
use crate::error::{Context as _, Error};
use crate::host::mount::{self, Mount};
use crate::host::{Host, Stat, if_present, selinux};
use crate::volume::FsType;

impl<H: Host> Machine<H> {
    /// Stages a volume. Idempotent; may be repeated after a crash at any point.
    pub(super) async fn stage(&self, request: &Stage) -> Result<(), Error> {
        request.must_be_for(&self.node_id().await?)?;
        // This comes first: the file system of an ended publication may fail even a stat of its mount point.
        if let Some(staging) = self.resolve(&request.staging).await? {
            self.tear_down_ended(&request.volume.uuid, &request.context.iqn, &staging)
                .await?;
        }
        let staging = self.staging_directory(&request.staging).await?;
        match self.bring_up(request, &staging).await {
            Err(error) => Err(self.undo_if_final(request, error).await),
            Ok(()) => Ok(()),
        }
    }

    async fn bring_up(&self, request: &Stage, staging: &str) -> Result<(), Error> {
        self.delete_ended_records(&request.volume.uuid, &request.context.iqn)
            .await?;
        self.drop_stale_state(request, staging).await?;
        let attached = Box::pin(self.attach(&request.context, request.chap_credentials())).await?;
        match &request.intent.mode {
            VolumeMode::Device => self.stage_device(&attached, request.intent.readonly).await,
            VolumeMode::FileSystem { fs, flags } => {
                self.stage_file_system(request, &attached, staging, *fs, flags)
                    .await
            }
        }
    }

    /// The staging path as spelled in the mount table. The CO creates the directory.
    async fn staging_directory(&self, path: &str) -> Result<String, Error> {
        let resolved = self.resolve(path).await?;
        let found = match &resolved {
            Some(resolved) => match if_present(self.host.stat(resolved).await) {
                // The root of a dead file system, which is handled later.
                Err(error) if error.is_io() => Some(Stat::Directory),
                other => other.context(format!("checking {path}"))?,
            },
            None => None,
        };
        match (resolved, found) {
            (Some(resolved), Some(Stat::Directory)) => Ok(resolved),
            (_, found) => Err(Error::Refused {
                what: format!("staging at {path}"),
                seen: if found.is_some() {
                    "it is not a directory"
                } else {
                    "it does not exist"
                }
                .to_owned(),
                remedy: "staging_target_path must be an existing directory".to_owned(),
            }),
        }
    }

    /// Removes what a crash left behind: a mount without a device, or a mount and session whose target is lost. A healthy mount
    /// at the staging path must match the request.
    async fn drop_stale_state(&self, request: &Stage, staging: &str) -> Result<(), Error> {
        let attachment = self.attachment(&request.volume.uuid).await?;
        let blocks = attachment.blocks();
        let mounted = match self.clear_gone(staging, &blocks).await? {
            MountState::Ours(mount) => mount,
            MountState::Foreign(mount) => return Err(not_ours(&mount)),
            MountState::Nothing | MountState::Gone(_) => return Ok(()),
        };
        if let Some(why) = self.why_dead(&mounted).await? {
            return self.unmount_dead(staging, &attachment, &why).await;
        }
        let others: Vec<String> = self
            .mount_points(&blocks)
            .await?
            .into_iter()
            .filter(|point| point != staging)
            .collect();
        if attachment.is_alive() || attachment.sessions.is_empty() || !others.is_empty() {
            return compatible(request, &mounted);
        }
        tracing::warn!(
            staging,
            sessions = attachment.sessions.len(),
            "removing a mount whose sessions have lost their target"
        );
        let action = Box::pin(self.clear(staging, &blocks));
        self.with_queueing_timeout(&request.volume.uuid, action)
            .await?;
        self.detach(&attachment).await
    }

    /// For a raw device, only the write protection has to be set.
    async fn stage_device(&self, attached: &Attached, readonly: bool) -> Result<(), Error> {
        let node = attached.device.node();
        let doing = format!("setting the write protection of {node}");
        let is_protected = attached.device.is_protected(&self.host).await;
        if is_protected.context(&doing)? == readonly {
            return Ok(());
        }
        let device = std::slice::from_ref(&attached.device);
        if let Some(point) = self.mount_points(device).await?.first() {
            // Its present users would lose write access, or a reader's device would become writable.
            let describe = |readonly| {
                if readonly { "read-only" } else { "read-write" }
            };
            return Err(Error::Incompatible {
                what: format!("the staging of {node}, which is in use at {point},"),
                seen: describe(!readonly).to_owned(),
                asked: describe(readonly).to_owned(),
            });
        }
        self.run(&doing, mount::protect(&node, readonly)).await?;
        let is_protected = attached.device.is_protected(&self.host).await;
        if is_protected.context(&doing)? == readonly {
            return Ok(());
        }
        Err(Error::Unverified {
            what: doing,
            seen: "blockdev reports success, but the kernel does not show it".to_owned(),
        })
    }

    async fn stage_file_system(
        &self,
        request: &Stage,
        attached: &Attached,
        staging: &str,
        fs: FsType,
        flags: &[String],
    ) -> Result<(), Error> {
        let device = std::slice::from_ref(&attached.device);
        let mounted = matches!(
            self.mount_state_at(staging, device).await?,
            MountState::Ours(_)
        );
        if !mounted {
            let (uuid, readonly) = (&request.volume.uuid, is_readonly(flags));
            let made = self
                .ensure_file_system(attached, uuid, fs, request.format.as_ref(), readonly)
                .await?;
            if !made {
                self.check(attached, fs, readonly).await?;
            }
            self.mount(attached, staging, fs, flags).await?;
            if made {
                return Ok(());
            }
        }
        match self.grow_staged(attached, staging, fs, flags).await {
            Err(error) if error.is_final() && !mounted => {
                // After a final error nothing that this call mounted may remain; the session is ended as well.
                match self.clear(staging, device).await {
                    Ok(()) => Err(error),
                    Err(left) => Err(left_behind(&left, &error)),
                }
            }
            other => other,
        }
    }

    /// Grows the file system if its disk is larger. Where a retry cannot help, the volume is staged at its present size; where a
    /// retry may help, this is an error, because after a restore to a larger size the CO never calls NodeExpandVolume.
    async fn grow_staged(
        &self,
        attached: &Attached,
        staging: &str,
        fs: FsType,
        flags: &[String],
    ) -> Result<(), Error> {
        let device = std::slice::from_ref(&attached.device);
        let mut grown = self.grow_to_device(attached, fs, staging).await?;
        if let Grown::OnlyUnmounted(why, _) = &grown
            && self
                .mount_points(device)
                .await?
                .iter()
                .all(|point| point == staging)
        {
            tracing::info!(staging, why, "growing the {fs} unmounted");
            grown = self.grow_offline(attached, staging, fs, flags).await?;
        }
        match grown {
            Grown::Full => {}
            Grown::ReadOnly => {
                tracing::info!(
                    staging,
                    "the file system is mounted read-only and is not grown"
                );
            }
            Grown::OnlyUnmounted(why, _) | Grown::Never(why) => {
                tracing::warn!(
                    staging,
                    disk = attached.device.node(),
                    size = %attached.size,
                    why,
                    "the file system keeps its size"
                );
            }
        }
        Ok(())
    }

    pub(super) async fn mount(
        &self,
        attached: &Attached,
        staging: &str,
        fs: FsType,
        flags: &[String],
    ) -> Result<(), Error> {
        let node = attached.device.node();
        let mounted = self
            .run(
                &format!("mounting {node} at {staging}"),
                mount::mount(fs, &node, staging, flags),
            )
            .await;
        if let Err(failure) = mounted {
            return Err(self.with_advice(attached, fs, failure).await);
        }
        match self
            .mount_state_at(staging, std::slice::from_ref(&attached.device))
            .await?
        {
            MountState::Ours(mount) => {
                self.must_be_writable(attached, &mount, flags).await?;
                self.must_be_labelled(&mount, flags).await
            }
            MountState::Nothing | MountState::Gone(_) | MountState::Foreign(_) => {
                Err(Error::Unverified {
                    what: format!("mounting {node} at {staging}"),
                    seen: "mount reports success, but the mount table does not show it".to_owned(),
                })
            }
        }
    }

    /// mount(8) mounts a write-protected disk read-only, with a warning, even if read-write was requested.
    async fn must_be_writable(
        &self,
        attached: &Attached,
        mount: &Mount,
        flags: &[String],
    ) -> Result<(), Error> {
        let (node, device) = (
            attached.device.node(),
            std::slice::from_ref(&attached.device),
        );
        let what = format!("mounting {node} read-write");
        if let Some(seen) = self.why_dead(mount).await? {
            // The dead instance was still mounted elsewhere, or it has died again.
            self.clear(&mount.point, device).await?;
            self.wait_until_unused(&attached.device).await?;
            return Err(Error::Unverified { what, seen });
        }
        if is_readonly(flags) || !mount.is_readonly() {
            return Ok(());
        }
        let is_protected = attached.device.is_protected(&self.host).await;
        let is_protected = is_protected.context(format!("checking {node}"))?;
        self.clear(&mount.point, device).await?;
        if is_protected {
            return Err(Error::Refused {
                what,
                seen: "the disk is write-protected".to_owned(),
                remedy: "check in SAN Manager why the LUN is read-only (a volume that is full or has crashed), or use a read-only access mode".to_owned(),
            });
        }
        Err(Error::Unverified {
            what,
            seen: "mount reports success, but the kernel has mounted it read-only".to_owned(),
        })
    }

    /// mount(8) silently drops the label where it believes that SELinux is off: a pod would then find files that it may not
    /// open. Such a mount is undone.
    async fn must_be_labelled(&self, mount: &Mount, flags: &[String]) -> Result<(), Error> {
        let Some((seen, asked)) = label_differs(mount, flags) else {
            return Ok(());
        };
        self.unmount(&mount.point).await?;
        Err(Error::Refused {
            what: format!("mounting {} with {asked}", mount.source),
            seen: format!("mount reports success, and the kernel shows {seen}"),
            remedy: "let the driver's container see the host's /sys/fs/selinux and /etc/selinux (the chart's node.seLinuxType: spc_t), or set CSIDriver.seLinuxMount to false".to_owned(),
        })
    }

    /// After a final error the CO may forget the volume on this node, so no session may be left (design.md#final-codes). A
    /// session whose disk is in use belongs to an earlier, successful call and stays.
    async fn undo_if_final(&self, request: &Stage, error: Error) -> Error {
        if !error.is_final() {
            return error;
        }
        let rollback = async {
            let attachment = self.attachment(&request.volume.uuid).await?;
            if !attachment.sessions.is_empty()
                && self.mount_points(&attachment.blocks()).await?.is_empty()
            {
                self.foreign_luns_must_be_unused(&attachment).await?;
                self.detach(&attachment).await
            } else {
                Ok(())
            }
        };
        match rollback.await {
            Ok(()) => error,
            Err(left) if left.chain() == error.chain() => Error::Unverified {
                what: "the state of this node".to_owned(),
                seen: error.chain(),
            },
            Err(left) => left_behind(&left, &error),
        }
    }
}

/// Turns a final error into a retryable one, because what the call had made could not be undone.
fn left_behind(left: &Error, failure: &Error) -> Error {
    Error::Unverified {
        what: "undoing what was done before a failure".to_owned(),
        seen: format!("{}; the failure: {}", left.chain(), failure.chain()),
    }
}

/// The SELinux labels of the mount and of the requested flags, as text, if they differ.
pub(super) fn label_differs(mount: &Mount, flags: &[String]) -> Option<(String, String)> {
    let (seen, asked) = (mount.context(), selinux::context(flags.iter()));
    let describe = |label: Option<&str>| {
        label.map_or_else(
            || "no SELinux label of the mount".to_owned(),
            |label| format!("the SELinux label {label}"),
        )
    };
    (!selinux::labels_equal(seen, asked)).then(|| (describe(seen), describe(asked)))
}

pub(super) fn is_readonly(flags: &[String]) -> bool {
    flags.iter().any(|flag| flag == "ro")
}

/// Checks that an already staged volume matches the request.
fn compatible(request: &Stage, mounted: &Mount) -> Result<(), Error> {
    let differs = |seen: String, asked: String| {
        Err(Error::Incompatible {
            what: format!(
                "the staging of volume {} at {}",
                request.volume, mounted.point
            ),
            seen,
            asked,
        })
    };
    match &request.intent.mode {
        VolumeMode::Device => differs(
            format!("it is mounted as {}", mounted.fs),
            "a raw block device".to_owned(),
        ),
        VolumeMode::FileSystem { fs, .. } if fs.as_str() != mounted.fs => {
            differs(mounted.fs.clone(), fs.to_string())
        }
        VolumeMode::FileSystem { flags, .. } => {
            let readonly = is_readonly(flags);
            let describe = |readonly| if readonly { "read-only" } else { "read-write" }.to_owned();
            if readonly != mounted.is_readonly() {
                return differs(describe(mounted.is_readonly()), describe(readonly));
            }
            if let Some((seen, asked)) = label_differs(mounted, flags) {
                return differs(seen, asked);
            }
            match mount::lacks(mounted, flags) {
                Some(flag) => differs(mounted.options.join(","), flag.to_owned()),
                None => Ok(()),
            }
        }
    }
}
