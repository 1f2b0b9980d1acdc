//! NodeExpandVolume: rescan, verify identity, resize the map, grow the file system, read back the size
//! (design.md#identity-before-action, #expansion-is-read-back, #large-enough-already and #node-expansion-is-always-required).
//! Every step checks before it acts, so that the call may be repeated after a crash anywhere.

use std::time::Duration;

use super::Machine;
use super::attach::Attached;
use super::attachment::Attachment;
use super::grow::{COPY_IT, Grown, growth_error};
use super::mounts::MountState;
use super::request::Expand;
use crate::error::{Context as _, Error};
use crate::host::disk::{self, Block, Disk};
use crate::host::dm_multipath::Map;
use crate::host::mount::Mount;
use crate::host::session::Session;
use crate::host::{Host, if_present};
use crate::volume::{Bytes, FsType};

/// How long a grown LUN may take to show its size after a rescan.
const NEW_SIZE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a lost path may take to come back before a map grows without it.
const RECONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long multipathd may take to remove a path from its map.
const PATH_REMOVAL_TIMEOUT: Duration = Duration::from_secs(5);

impl<H: Host> Machine<H> {
    /// Grows disk, map and file system to the LUN's size; returns the device's measured size.
    pub(super) async fn expand(&self, request: &Expand) -> Result<Bytes, Error> {
        let (device, mount) = self.locate(request).await?;
        let attached = self.measure(request, device).await?;
        if let Some(limit) = request.range.limit.filter(|limit| attached.size > *limit) {
            return Err(request.range.out_of_range(&format!(
                "the volume is already {}, above the limit of {limit}: it is never made smaller",
                attached.size
            )));
        }
        if let Some(mount) = mount.filter(|mount| mount.device_node().is_none()) {
            self.grow_mounted(&attached, &mount).await?;
        }
        Ok(attached.size)
    }

    /// The volume's device and its mount at the path (staging or target path); no mount for a staged raw device.
    async fn locate(&self, request: &Expand) -> Result<(Block, Option<Mount>), Error> {
        let not_mounted = |seen: &str| Error::NotMounted {
            volume: request.volume.to_string(),
            path: request.path.clone(),
            seen: seen.to_owned(),
        };
        let path = self
            .resolve(&request.path)
            .await?
            .ok_or_else(|| not_mounted("the path does not exist"))?;
        let attachment = self.attachment(&request.volume.uuid).await?;
        match self.mount_state_at(&path, &attachment.blocks()).await? {
            MountState::Ours(mount) => Ok((
                attachment
                    .device_of(&mount)
                    .ok_or_else(|| not_mounted("the volume has no disk here"))?,
                Some(mount),
            )),
            MountState::Nothing if request.may_be_staged_device => {
                let exists = if_present(self.host.stat(&path).await)
                    .context(format!("checking {path}"))?
                    .is_some();
                let device = attachment.device().cloned().filter(|_| exists);
                Ok((
                    device.ok_or_else(|| not_mounted("the volume is not staged on this node"))?,
                    None,
                ))
            }
            MountState::Nothing => Err(not_mounted("nothing is mounted there")),
            MountState::Gone(mount) => Err(not_mounted(&format!(
                "{} is mounted there, whose device is gone",
                mount.describe()
            ))),
            MountState::Foreign(mount) => Err(not_mounted(&format!(
                "{} is mounted there",
                mount.describe()
            ))),
        }
    }

    /// Rescans, verifies identity, waits for the new size, resizes the map: in this order, because before a rescan the kernel
    /// shows cached values. Every live path must answer: a map that is larger than one of its paths would lose writes through it.
    async fn measure(&self, request: &Expand, device: Block) -> Result<Attached, Error> {
        let attachment = self.attachment(&request.volume.uuid).await?;
        let map = attachment.map.as_ref().filter(|map| map.block == device);
        let (live, lost): (Vec<&Session>, Vec<&Session>) = attachment
            .sessions
            .iter()
            .partition(|session| session.alive);
        let (live, lost) = match map {
            Some(_) if !live.is_empty() => (live, lost),
            // The only path, or all paths are lost: they have to answer.
            _ => (attachment.sessions.iter().collect(), vec![]),
        };
        let mut paths = attachment.paths_of(&device);
        paths.retain(|path| live.iter().any(|session| session.id == path.session));
        for session in live {
            self.must_answer(&device, session, &paths).await?;
        }
        if paths.is_empty() {
            return Err(Error::Unverified {
                what: format!("measuring {}", device.node()),
                seen: "its session has just ended".to_owned(),
            });
        }
        for path in &paths {
            self.verify_identity(path, &request.volume.uuid).await?;
            self.must_have_grown(request, &path.block).await?;
        }
        let doing = format!("measuring {}", device.node());
        let present = device.size(&self.host).await.context(doing)?;
        let size = match map {
            Some(map) if lost.is_empty() => self.resize_map(map, &paths).await?,
            Some(map) if present < request.range.required => {
                self.log_out_lost_paths(&attachment, map, &lost).await?;
                self.resize_map(map, &paths).await?
            }
            Some(_) | None => present,
        };
        Ok(Attached { device, size })
    }

    /// A live session must be a path of the device, and its disk must answer a rescan.
    async fn must_answer(
        &self,
        device: &Block,
        session: &Session,
        paths: &[Disk],
    ) -> Result<(), Error> {
        let answers = self.rescan_answered(session).await?;
        if answers && paths.iter().any(|path| path.session == session.id) {
            return Ok(());
        }
        let seen = if answers {
            "is not a path to it yet"
        } else {
            "has lost its target, or its disk is not running"
        };
        Err(Error::NotReady {
            what: device.node(),
            seen: format!(
                "{session} {seen}. If that stays so and there is another path, end it on the node: iscsiadm -m session -r {} --logout",
                session.id
            ),
        })
    }

    /// Removes lost paths from a map that has to grow. The kernel refuses a map that is larger than one of its paths, and a lost
    /// path cannot be rescanned, so it keeps its old size (if the map could grow, writes beyond that size would fail on that path
    /// after it reconnects). The removed path is added again, with the LUN's new size, by [`super::missing_paths`].
    async fn log_out_lost_paths(
        &self,
        attachment: &Attachment,
        map: &Map,
        lost: &[&Session],
    ) -> Result<(), Error> {
        let is_lost = |id: u32| lost.iter().any(|session| session.id == id);
        let back = disk::poll_until(&self.host, RECONNECT_TIMEOUT, || async {
            for session in lost {
                let now = self.session_now(session.id).await?;
                if let Some(back) = now.filter(|now| now.alive && now.target == session.target) {
                    return Ok(Some(back));
                }
            }
            Ok(None)
        });
        if let Some(session) = back.await.context("looking for lost paths")? {
            return Err(Error::NotReady {
                what: format!("map {}", map.name),
                seen: format!("{session} has just come back"),
            });
        }
        for session in lost {
            tracing::warn!(%session, map = map.name, "logging out a lost path so that the map can grow: it is added again when its portal answers");
            self.log_out(session).await?;
        }
        let disks = attachment.disks.iter().filter(|disk| is_lost(disk.session));
        let names: Vec<&String> = disks.map(|disk| &disk.block.name).collect();
        let left = || async {
            let maps = self.maps_with(vec![map.wwid.clone()]).await?;
            let left = |name: &&String| maps.iter().any(|map| map.paths.contains(name));
            Ok((!names.iter().any(left)).then_some(()))
        };
        let gone = disk::poll_until(&self.host, PATH_REMOVAL_TIMEOUT, left).await;
        gone.context("waiting for a map without lost paths")?
            .ok_or_else(|| Error::Unverified {
                what: format!("map {}", map.name),
                seen: format!(
                    "multipathd keeps paths whose sessions have ended ({}): multipathd del path NAME",
                    names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ")
                ),
            })
    }

    async fn must_have_grown(&self, request: &Expand, block: &Block) -> Result<(), Error> {
        let doing = format!("measuring {}", block.node());
        let check = || async {
            let size = block.size(&self.host).await?;
            Ok((size >= request.range.required).then_some(()))
        };
        if disk::poll_until(&self.host, NEW_SIZE_TIMEOUT, check)
            .await
            .context(&doing)?
            .is_some()
        {
            return Ok(());
        }
        Err(Error::Unverified {
            what: format!(
                "the growth of {} to {}",
                block.node(),
                request.range.required
            ),
            seen: format!(
                "after a rescan the disk is {}: has the LUN been grown on the NAS?",
                block.size(&self.host).await.context(doing)?
            ),
        })
    }

    async fn grow_mounted(&self, attached: &Attached, mount: &Mount) -> Result<(), Error> {
        let fs: FsType = mount.fs.parse().map_err(|_| Error::Refused {
            what: format!("growing what is mounted at {}", mount.point),
            seen: format!("it is {}", mount.fs),
            remedy: "this driver grows ext4, xfs and btrfs".to_owned(),
        })?;
        if let Some(why) = self.why_dead(mount).await? {
            return Err(Error::NotReady {
                what: format!("growing the {fs} at {}", mount.point),
                seen: format!(
                    "it is dead ({why}): delete the pods that use it, and it is mounted again and grows"
                ),
            });
        }
        let point = self.writable_mount(attached, mount).await?;
        match self.grow_to_device(attached, fs, &point).await? {
            Grown::Full => Ok(()),
            Grown::ReadOnly => {
                tracing::warn!(
                    point,
                    disk = attached.device.node(),
                    "mounted read-only: the file system keeps its size until it is mounted writable"
                );
                Ok(())
            }
            Grown::OnlyUnmounted(seen, remedy) => Err(growth_error(fs, &point, seen, remedy)),
            Grown::Never(seen) => Err(growth_error(fs, &point, seen, COPY_IT)),
        }
    }

    /// A mount point to grow the file system at: the requested one, or a writable one if that is read-only (a read-only pod of a
    /// volume that is staged read-write).
    async fn writable_mount(&self, attached: &Attached, mount: &Mount) -> Result<String, Error> {
        if !mount.is_readonly() {
            return Ok(mount.point.clone());
        }
        let device = std::slice::from_ref(&attached.device);
        for point in self.mount_points(device).await? {
            if let MountState::Ours(other) = self.mount_state_at(&point, device).await?
                && !other.is_readonly()
            {
                return Ok(point);
            }
        }
        Ok(mount.point.clone())
    }
}
