//! Attaching a volume: sessions, disks, identity check, multipath map (design.md#portals, #identity-before-action and
//! #unstage-needs-no-nas).
//!
//! Portals: if multipathd runs, the node logs in to all of them and uses the map over their disks. Otherwise it logs in to the
//! first that accepts: a second session would be a second disk of the same LUN without a map over both, so the other portals
//! are only fallbacks.

use std::time::Duration;

use super::Machine;
use super::attachment::Attachment;
use super::scan::no_answer;
use crate::chap::Chap;
use crate::error::{Context as _, Error};
use crate::host::Host;
use crate::host::disk::{self, Block, Disk};
use crate::host::session::Session;
use crate::publication::{Portal, PublishContext};
use crate::volume::{Bytes, LunUuid};

/// How long a disk may take to appear after a login or rescan.
const DISK_TIMEOUT: Duration = Duration::from_secs(15);

/// A volume's device, whose identity was verified.
#[derive(Clone, Debug)]
pub(super) struct Attached {
    /// A disk, or the multipath map over several.
    pub(super) device: Block,
    /// Its size, read back from the kernel.
    pub(super) size: Bytes,
}

fn warn_single_path(context: &PublishContext, why: &str) {
    tracing::warn!(target = %context.iqn, why, "using only one of several portals: I/O stalls while its path is lost");
}

impl<H: Host> Machine<H> {
    /// Logs in where there is no usable session, finds the disks, verifies that they are the volume's, and ensures the map.
    pub(super) async fn attach(
        &self,
        context: &PublishContext,
        chap: Option<&Chap>,
    ) -> Result<Attached, Error> {
        let several = context.portals.len() > 1;
        let mut all_portals = several && self.multipathd_runs().await?;
        if several && !all_portals {
            warn_single_path(context, "multipathd does not run on this node");
        }
        self.delete_former_portals(&context.iqn, &context.portals)
            .await;
        let (mut disks, lost) = self.reuse(context, all_portals).await?;
        if all_portals && lost.is_empty() {
            let usable: Vec<Disk> = disks.iter().map(|(_, disk)| disk.clone()).collect();
            if self.is_single_path(&context.uuid, &usable).await? {
                warn_single_path(
                    context,
                    "its disk is in use without a map, or excluded by multipathd",
                );
                all_portals = false;
            }
        }
        let has_session = |portal: &&Portal| {
            let at = |session: &Session| session.portal == Some(**portal);
            lost.iter().any(at) || disks.iter().any(|(session, _)| at(session))
        };
        let to_try: Vec<Portal> = match (all_portals, disks.is_empty()) {
            (true, _) => context
                .portals
                .iter()
                .filter(|portal| !has_session(portal))
                .copied()
                .collect(),
            (false, true) => context.portals.clone(),
            (false, false) => vec![],
        };
        let reachable = !disks.is_empty();
        let logins = self.login(context, chap, &to_try, (all_portals, reachable));
        for session in Box::pin(logins).await? {
            let disk = self
                .attach_disk(&session, context.lun, &context.uuid)
                .await?;
            disks.push((session, disk));
        }
        let sessions: Vec<Session> = disks.iter().map(|(session, _)| session.clone()).collect();
        let mut disks: Vec<Disk> = disks.into_iter().map(|(_, disk)| disk).collect();
        if all_portals && lost.is_empty() && self.is_excluded(&context.uuid, &disks).await? {
            warn_single_path(
                context,
                "the configuration of multipathd excludes its disks (multipathd show blacklist)",
            );
            for session in sessions.iter().skip(1) {
                self.log_out(session).await?;
            }
            disks.truncate(1);
            all_portals = false;
        }
        self.device_over(context, &disks, all_portals, lost.is_empty())
            .await
    }

    /// The map over the volume's disks, or its only disk; measured.
    async fn device_over(
        &self,
        context: &PublishContext,
        disks: &[Disk],
        all_portals: bool,
        complete: bool,
    ) -> Result<Attached, Error> {
        let map = if all_portals {
            Some(self.ensure_map(&context.uuid, disks).await?)
        } else {
            self.attachment(&context.uuid).await?.map
        };
        let Some(map) = map else {
            let [disk] = disks else {
                return Err(Error::Unverified {
                    what: format!("the disk of LUN {}", context.uuid),
                    seen: format!("there are {} and no multipath map", disks.len()),
                });
            };
            let (device, doing) = (disk.block.clone(), format!("measuring {}", disk.block.name));
            let size = device.size(&self.host).await.context(doing)?;
            return Ok(Attached { device, size });
        };
        let size = if complete {
            self.resize_map(&map, disks).await?
        } else {
            // A map cannot grow beyond its smallest path, and a lost path cannot be rescanned.
            let doing = format!("measuring map {}", map.name);
            map.block.size(&self.host).await.context(doing)?
        };
        Ok(Attached {
            device: map.block,
            size,
        })
    }

    /// The existing sessions: the usable ones with their disks, and the lost ones that are left to iscsid to reconnect because
    /// the map over them is in use. All others are logged out.
    async fn reuse(
        &self,
        context: &PublishContext,
        all_portals: bool,
    ) -> Result<(Vec<(Session, Disk)>, Vec<Session>), Error> {
        let attachment = self.attachment(&context.uuid).await?;
        let (mut good, mut lost) = (Vec::new(), Vec::new());
        for session in &attachment.sessions {
            match self.usable_disk(session, context).await? {
                Some(disk) => good.push((session.clone(), disk)),
                None => lost.push(session.clone()),
            }
        }
        let too_many = !all_portals && good.len() > 1 && attachment.map.is_none();
        if lost.is_empty() && !too_many {
            self.restore_queueing(&attachment).await;
            return Ok((good, lost));
        }
        let in_use = self.mount_points(&attachment.blocks()).await?;
        if too_many {
            return self.keep_used_disk(&attachment, good, &in_use).await;
        }
        match (good.is_empty(), in_use.is_empty()) {
            (true, true) => {
                self.detach(&attachment).await?;
                Ok((good, vec![]))
            }
            (true, false) => Err(Error::NotReady {
                what: lost
                    .iter()
                    .map(ToString::to_string)
                    .collect::<Vec<_>>()
                    .join(", "),
                seen: format!(
                    "it has lost its target or disk, which is still in use at {}",
                    in_use.join(", ")
                ),
            }),
            (false, true) => {
                for session in &lost {
                    self.log_out(session).await?;
                }
                Ok((good, vec![]))
            }
            (false, false) => {
                for session in &lost {
                    tracing::warn!(%session, "a path is lost; iscsid keeps trying to reconnect");
                }
                self.restore_queueing(&attachment).await;
                Ok((good, lost))
            }
        }
    }

    /// Several disks and no map: multipathd was stopped, or a record asked for more than one session. The disk in use stays; if
    /// none is in use, all sessions are logged out and the caller logs in again; if several are, that is an error.
    async fn keep_used_disk(
        &self,
        attachment: &Attachment,
        good: Vec<(Session, Disk)>,
        in_use: &[String],
    ) -> Result<(Vec<(Session, Disk)>, Vec<Session>), Error> {
        if in_use.is_empty() {
            self.must_be_unused(attachment).await?;
            self.detach(attachment).await?;
            return Ok((vec![], vec![]));
        }
        let (mut used, mut idle) = (Vec::new(), Vec::new());
        for (session, disk) in good {
            let node = disk.block.node();
            let mounted = !self
                .mount_points(std::slice::from_ref(&disk.block))
                .await?
                .is_empty();
            let claimed = self.host.is_claimed(&node).await;
            if mounted || claimed.context(format!("checking what uses {node}"))? {
                used.push((session, disk));
            } else {
                idle.push(session);
            }
        }
        if used.len() != 1 {
            let seen: Vec<String> = attachment
                .sessions
                .iter()
                .map(ToString::to_string)
                .collect();
            return Err(Error::Refused {
                what: "choosing the disk of the volume".to_owned(),
                seen: format!(
                    "there are {} without a multipath map, and several are in use, at {}",
                    seen.join(", "),
                    in_use.join(", ")
                ),
                remedy: "start multipathd, or unpublish and unstage the volume first".to_owned(),
            });
        }
        for session in &idle {
            tracing::warn!(%session, "logging out an unused session: there is another, and no multipath map over both");
            self.log_out(session).await?;
        }
        Ok((used, vec![]))
    }

    /// The verified disk of a usable session; `None` if the session is stale or its disk is offline.
    async fn usable_disk(
        &self,
        session: &Session,
        context: &PublishContext,
    ) -> Result<Option<Disk>, Error> {
        // A session with another target name belongs to another publication.
        let usable = session.alive && session.target == context.iqn.as_str();
        if !usable || !self.scan(session, context.lun).await? {
            return Ok(None);
        }
        let Some(disk) = self.disk_of(session, context.lun).await? else {
            return Ok(None);
        };
        // A disk that the kernel has taken offline stays offline; a new login gives a new disk.
        let doing = || format!("checking {}", disk.block.node());
        if !disk.is_running(&self.host).await.context(doing())? {
            return Ok(None);
        }
        self.verify_identity(&disk, &context.uuid).await?;
        Ok(Some(disk))
    }

    /// Attaches the logical unit `lun` of a new session, and verifies that it is the volume's.
    pub(super) async fn attach_disk(
        &self,
        session: &Session,
        lun: u16,
        uuid: &LunUuid,
    ) -> Result<Disk, Error> {
        if !self.scan(session, lun).await? {
            return Err(no_answer(session));
        }
        let disk = self.disk_of(session, lun).await?;
        let disk = disk.ok_or_else(|| Error::Unverified {
            what: format!("attaching logical unit {lun} of {}", session.target),
            seen: format!(
                "session {} has no such disk after {} s",
                session.id,
                DISK_TIMEOUT.as_secs()
            ),
        })?;
        self.verify_identity(&disk, uuid).await?;
        Ok(disk)
    }

    async fn disk_of(&self, session: &Session, lun: u16) -> Result<Option<Disk>, Error> {
        disk::wait_for_disk(&self.host, session.id, lun, DISK_TIMEOUT)
            .await
            .context("waiting for the disk")
    }

    /// Verifies by the unit serial that the disk is the volume's. Call [`Machine::rescan`] first: sysfs may be out of date.
    ///
    /// # Errors
    /// `Refused` for another serial; `NotReady` if the disk is offline or has no size.
    pub(super) async fn verify_identity(&self, disk: &Disk, uuid: &LunUuid) -> Result<(), Error> {
        let node = disk.block.node();
        let doing = || format!("identifying {node}");
        let seen = disk.condition(&self.host).await.context(doing())?;
        if !seen.running {
            return Err(Error::NotReady {
                what: node,
                seen: "it is offline, so its size and serial may be out of date".to_owned(),
            });
        }
        // A logical unit that is no longer mapped keeps its old serial in sysfs, but its size is 0 (seen with Linux 6.1).
        if seen.size == Bytes(0) {
            return Err(Error::NotReady {
                what: node,
                seen: format!(
                    "it has no size: logical unit {} is not mapped on the NAS any more",
                    disk.lun
                ),
            });
        }
        if seen
            .serial
            .as_deref()
            .is_none_or(|serial| !serial.eq_ignore_ascii_case(uuid.as_str()))
        {
            let serial = seen.serial.unwrap_or_else(|| "not given".to_owned());
            return Err(Error::Refused {
                what: format!("using {node} for LUN {uuid}"),
                seen: format!("its unit serial is {serial}, that of the volume is {uuid}"),
                remedy:
                    "another LUN is mapped at this place: check the target's mappings on the NAS"
                        .to_owned(),
            });
        }
        Ok(())
    }
}
