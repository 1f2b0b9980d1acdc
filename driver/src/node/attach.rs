//! Attaching: records, login, session, disk, identity (design choices 7, 9 and 10).
//!
//! Portals: where multipathd runs, the node logs in to all of them and uses the map over their disks. Elsewhere it logs in to
//! the first that accepts: a second session would be a second disk of the same LUN with nobody to choose between them, so the
//! other portals are only there for when the first does not answer.

use std::time::Duration;

use super::held::{Held, SESSION_CHANGES};
use super::scan::no_answer;
use super::{Doing, Machine};
use crate::chap::{Chap, Method, PASSWORD, PASSWORD_IN, USERNAME, USERNAME_IN, field};
use crate::error::Error;
use crate::host::disk::{self, Block, Disk, Session};
use crate::host::iscsiadm::{self, Login};
use crate::host::{Host, HostError};
use crate::publication::{Portal, PublishContext};
use crate::volume::{Bytes, LunUuid};

/// How long a disk may take to appear after a login or rescan.
const DISK_APPEARS: Duration = Duration::from_secs(15);

/// A volume's device, proven to be the volume's.
#[derive(Clone, Debug)]
pub(super) struct Attached {
    /// A disk, or the multipath map over several.
    pub(super) device: Block,
    /// The device's size.
    pub(super) size: Bytes,
}

/// Without a map over them, only one of several portals can be used.
fn one_path(context: &PublishContext, why: &str) {
    tracing::warn!(target = %context.iqn, why, "one portal of several is used, and I/O waits when its path is lost");
}

impl<H: Host> Machine<H> {
    /// Logs in where there is no good session, finds the disks, proves that they are the volume's, and sees to the map.
    pub(super) async fn attach(
        &self,
        context: &PublishContext,
        chap: Option<&Chap>,
    ) -> Result<Attached, Error> {
        let several = context.portals.len() > 1;
        let mut every = several && self.multipathd_runs().await?;
        if several && !every {
            one_path(context, "multipathd does not run on this node");
        }
        let (mut disks, lost) = self.reuse(context, every).await?;
        if every && lost.is_empty() {
            let alone: Vec<Disk> = disks.iter().map(|(_, disk)| disk.clone()).collect();
            if self.is_alone(&context.uuid, &alone).await? {
                one_path(
                    context,
                    "its disk is in use without multipathd, or excluded from it",
                );
                every = false;
            }
        }
        let known = |portal: &&Portal| {
            let at = |session: &Session| session.portal == Some(**portal);
            lost.iter().any(at) || disks.iter().any(|(session, _)| at(session))
        };
        let wanted: Vec<Portal> = match (every, disks.is_empty()) {
            (true, _) => context
                .portals
                .iter()
                .filter(|at| !known(at))
                .copied()
                .collect(),
            (false, true) => context.portals.clone(),
            (false, false) => vec![],
        };
        for session in self
            .login(context, chap, &wanted, (every, !disks.is_empty()))
            .await?
        {
            if !self.scan(&session, context.lun).await? {
                return Err(no_answer(&session));
            }
            let disk = self.disk_of(&session, context).await?;
            let disk = disk.ok_or_else(|| Error::Unproven {
                what: format!("attaching logical unit {} of {}", context.lun, context.iqn),
                seen: format!(
                    "session {} has no such disk after {} s",
                    session.id,
                    DISK_APPEARS.as_secs()
                ),
            })?;
            self.prove(&disk, &context.uuid).await?;
            disks.push((session, disk));
        }
        let sessions: Vec<Session> = disks.iter().map(|(session, _)| session.clone()).collect();
        let mut disks: Vec<Disk> = disks.into_iter().map(|(_, disk)| disk).collect();
        if every && lost.is_empty() && self.is_excluded(&context.uuid, &disks).await? {
            one_path(
                context,
                "the configuration of multipathd excludes its disks (multipathd show blacklist)",
            );
            for session in sessions.iter().skip(1) {
                self.log_out(session).await?;
            }
            disks.truncate(1);
            every = false;
        }
        self.device_over(context, &disks, every, lost.is_empty())
            .await
    }

    /// The map over the volume's disks, or its disk.
    async fn device_over(
        &self,
        context: &PublishContext,
        disks: &[Disk],
        every: bool,
        complete: bool,
    ) -> Result<Attached, Error> {
        let map = if every {
            Some(self.map_of_all(&context.uuid, disks).await?)
        } else {
            self.held(&context.uuid).await?.map
        };
        let Some(map) = map else {
            let [disk] = disks else {
                return Err(Error::Unproven {
                    what: format!("the disk of LUN {}", context.uuid),
                    seen: format!("there are {} and no multipath map", disks.len()),
                });
            };
            let (device, doing) = (disk.block.clone(), format!("measuring {}", disk.block.name));
            let size = device.size(&self.host).await.doing(doing)?;
            return Ok(Attached { device, size });
        };
        let size = if complete {
            self.fit(&map, disks).await?
        } else {
            // The kernel lets no map grow beyond a path that cannot be asked for its size.
            let doing = format!("measuring map {}", map.name);
            map.block.size(&self.host).await.doing(doing)?
        };
        Ok(Attached {
            device: map.block,
            size,
        })
    }

    /// The sessions that were there before: those that are good, with their disks, and those that have lost their target and
    /// are left to iscsid, because the map above them is in use. All others are ended.
    async fn reuse(
        &self,
        context: &PublishContext,
        every: bool,
    ) -> Result<(Vec<(Session, Disk)>, Vec<Session>), Error> {
        let held = self.held(&context.uuid).await?;
        let (mut good, mut lost) = (Vec::new(), Vec::new());
        for session in &held.sessions {
            match self.good_disk(session, context).await? {
                Some(disk) => good.push((session.clone(), disk)),
                None => lost.push(session.clone()),
            }
        }
        let superfluous = !every && good.len() > 1 && held.map.is_none();
        if lost.is_empty() && !superfluous {
            self.restore_queueing(&held).await;
            return Ok((good, lost));
        }
        let in_use = self.uses(&held.blocks()).await?;
        if superfluous {
            return self.one_of(&held, good, &in_use).await;
        }
        match (good.is_empty(), in_use.is_empty()) {
            (true, true) => {
                self.release(&held).await?;
                Ok((good, vec![]))
            }
            (true, false) => Err(Error::Unfinished {
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
                    tracing::warn!(%session, "a path is lost; iscsid goes on trying");
                }
                self.restore_queueing(&held).await;
                Ok((good, lost))
            }
        }
    }

    /// Several disks and no map: their multipathd has gone, or a record asked for more than one session. The one in use stays;
    /// where none is, all is begun anew. Nobody may choose while several are in use.
    async fn one_of(
        &self,
        held: &Held,
        good: Vec<(Session, Disk)>,
        in_use: &[String],
    ) -> Result<(Vec<(Session, Disk)>, Vec<Session>), Error> {
        if in_use.is_empty() {
            self.must_be_unused(held).await?;
            self.release(held).await?;
            return Ok((vec![], vec![]));
        }
        let (mut used, mut idle) = (Vec::new(), Vec::new());
        for (session, disk) in good {
            let node = disk.block.node();
            let mounted = !self
                .uses(std::slice::from_ref(&disk.block))
                .await?
                .is_empty();
            let claimed = self.host.is_claimed(&node).await;
            if mounted || claimed.doing(format!("looking who uses {node}"))? {
                used.push((session, disk));
            } else {
                idle.push(session);
            }
        }
        if used.len() != 1 {
            let seen: Vec<String> = held.sessions.iter().map(ToString::to_string).collect();
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
            tracing::warn!(%session, "ending a session that nobody uses: there is another, and no multipath map over both");
            self.log_out(session).await?;
        }
        Ok((used, vec![]))
    }

    /// The disk of a session that answers; `None` when the session is stale.
    async fn good_disk(
        &self,
        session: &Session,
        context: &PublishContext,
    ) -> Result<Option<Disk>, Error> {
        // A session of another time, at another name of this initiator, would be another publication.
        let usable = session.alive && session.target == context.iqn.as_str();
        if !usable || !self.scan(session, context.lun).await? {
            return Ok(None);
        }
        let Some(disk) = self.disk_of(session, context).await? else {
            return Ok(None);
        };
        // A disk that the kernel has taken offline stays so; another login gives another disk.
        let doing = || format!("looking at {}", disk.block.node());
        if !disk.is_running(&self.host).await.doing(doing())? {
            return Ok(None);
        }
        self.prove(&disk, &context.uuid).await?;
        Ok(Some(disk))
    }

    async fn disk_of(
        &self,
        session: &Session,
        context: &PublishContext,
    ) -> Result<Option<Disk>, Error> {
        disk::wait_for_disk(&self.host, session.id, context.lun, DISK_APPEARS)
            .await
            .doing("waiting for the disk")
    }

    /// The disk is the volume's, by its unit serial. To be called after [`Machine::rescan`].
    pub(super) async fn prove(&self, disk: &Disk, uuid: &LunUuid) -> Result<(), Error> {
        let node = disk.block.node();
        let doing = || format!("identifying {node}");
        if !disk.is_running(&self.host).await.doing(doing())? {
            return Err(Error::Unfinished {
                what: node,
                seen: "it is offline, and what is known of it may be out of date".to_owned(),
            });
        }
        // A unit that is no longer mapped keeps its old serial in sysfs, but has lost its size (seen with Linux 6.1).
        if disk.block.size(&self.host).await.doing(doing())? == Bytes(0) {
            return Err(Error::Unfinished {
                what: node,
                seen: format!(
                    "it has no size: logical unit {} is not mapped on the NAS any more",
                    disk.lun
                ),
            });
        }
        let serial = disk.serial(&self.host).await.doing(doing())?;
        if serial
            .as_deref()
            .is_none_or(|serial| !serial.eq_ignore_ascii_case(uuid.as_str()))
        {
            let serial = serial.unwrap_or_else(|| "not given".to_owned());
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

    /// Logs in to the first of `portals` that accepts, or to `every` one that does. When the volume is `reachable` without
    /// them, a portal that does not answer is only worth a warning.
    async fn login(
        &self,
        context: &PublishContext,
        chap: Option<&Chap>,
        portals: &[Portal],
        (every, reachable): (bool, bool),
    ) -> Result<Vec<Session>, Error> {
        let (mut sessions, mut refusals) = (Vec::new(), Vec::new());
        for portal in portals {
            let doing = format!("logging in to {} at {portal}", context.iqn);
            self.write_record(&context.iqn, portal, chap).await?;
            let login = iscsiadm::login(&context.iqn, portal);
            let exit = match self.run_on_records(login).await {
                Err(hung @ HostError::Overran { .. }) if every => {
                    tracing::warn!(%portal, target = %context.iqn, "the portal does not answer in time");
                    refusals.push((format!("{portal}: no answer in time"), false, hung));
                    continue;
                }
                other => other.doing(&doing)?,
            };
            match iscsiadm::read_login(&exit) {
                Login::New | Login::Existing => {
                    sessions.push(self.wait_for_session(context, *portal).await?);
                    if !every {
                        break;
                    }
                }
                // The other portals are the same target: each attempt more is one more failure in the log of the NAS.
                Login::Unproven => return Err(self.unproven(context, portal, chap).await),
                Login::Refused { cause, for_good } => {
                    tracing::warn!(%portal, target = %context.iqn, cause, status = exit.status, "login refused");
                    refusals.push((
                        format!("{portal}: {cause}"),
                        for_good,
                        exit.failed(iscsiadm::PROGRAM),
                    ));
                    if for_good && Method::of(chap) == Method::Mutual {
                        break;
                    }
                }
            }
        }
        if sessions.is_empty() && !reachable {
            return Err(self.no_session(context, chap, refusals).await);
        }
        Ok(sessions)
    }

    async fn wait_for_session(
        &self,
        context: &PublishContext,
        portal: Portal,
    ) -> Result<Session, Error> {
        let doing = format!("waiting for the session with {}", context.iqn);
        let look = || async {
            let all = disk::sessions(&self.host).await?;
            Ok(all.into_iter().find(|session| {
                session.target == context.iqn.as_str()
                    && session.portal.is_none_or(|at| at == portal)
            }))
        };
        disk::until(&self.host, SESSION_CHANGES, look)
            .await
            .doing(&doing)?
            .ok_or_else(|| Error::Unproven {
                what: format!("the login to {}", context.iqn),
                seen: "iscsiadm reports success, but the kernel has no such session".to_owned(),
            })
    }

    /// Nobody let us in. A final answer only when every portal said so for good and nothing is left behind.
    async fn no_session(
        &self,
        context: &PublishContext,
        chap: Option<&Chap>,
        refusals: Vec<(String, bool, HostError)>,
    ) -> Error {
        let for_good =
            self.is_clean(context).await && refusals.iter().all(|(_, for_good, _)| *for_good);
        let seen: Vec<String> = refusals.iter().map(|(cause, ..)| cause.clone()).collect();
        let (what, seen) = (format!("logging in to {}", context.iqn), seen.join("; "));
        if for_good {
            let published = "check that the volume is still published to this node";
            let remedy = match Method::of(chap) {
                Method::None | Method::Chap => published.to_owned(),
                // iscsiadm says 19, as for a target that does not exist, when it is we who are not convinced.
                Method::Mutual => format!(
                    "{published}, and that the target proves itself with {} and {}",
                    field(USERNAME_IN),
                    field(PASSWORD_IN)
                ),
            };
            return Error::Refused { what, seen, remedy };
        }
        match refusals.into_iter().next_back() {
            Some((.., source)) => Error::Host {
                doing: format!("{what}: {seen}"),
                source,
            },
            None => Error::Unproven {
                what,
                seen: "publish_context names no portal".to_owned(),
            },
        }
    }

    /// The target does not take our proofs. A final answer only when nothing is left behind.
    async fn unproven(
        &self,
        context: &PublishContext,
        portal: &Portal,
        chap: Option<&Chap>,
    ) -> Error {
        let what = format!("logging in to {} at {portal}", context.iqn);
        let (seen, remedy) = match chap {
            None => (
                "the target wants CHAP, and this call brings no secrets".to_owned(),
                "name its Secret in the StorageClass as csi.storage.k8s.io/controller-publish-secret-name and csi.storage.k8s.io/node-stage-secret-name".to_owned(),
            ),
            Some(_) => (
                "the target does not accept the CHAP name and password".to_owned(),
                format!(
                    "check {} and {}: ControllerPublishVolume and NodeStageVolume must be given the same Secret, and a changed one takes effect when the volume is published again",
                    field(USERNAME),
                    field(PASSWORD)
                ),
            ),
        };
        if self.is_clean(context).await {
            Error::Unauthenticated { what, seen, remedy }
        } else {
            let seen = format!("{seen} ({remedy}), and a session or record may be left");
            Error::Unproven { what, seen }
        }
    }

    /// No record and no session of this publication is left.
    async fn is_clean(&self, context: &PublishContext) -> bool {
        self.delete_records(&context.iqn).await.is_ok()
            && matches!(self.sessions_of(&context.uuid).await.as_deref(), Ok([]))
    }
}
