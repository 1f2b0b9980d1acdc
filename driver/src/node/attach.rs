//! Attaching: records, login, session, disk, identity; and letting go again (design choices 7, 9 and 10).
//!
//! Portals: the node logs in to the first that accepts. Without multipath a second session would be a second disk of the
//! same LUN, so the other portals are only there for when the first does not answer.

use std::time::Duration;

use super::{Doing, Machine};
use crate::chap::{Chap, Method, PASSWORD, PASSWORD_IN, USERNAME, USERNAME_IN, field};
use crate::error::Error;
use crate::host::disk::{self, Disk, Session};
use crate::host::iscsiadm::{self, Login};
use crate::host::{Host, HostError};
use crate::publication::{Iqn, Portal, PublishContext};
use crate::volume::{Bytes, LunUuid};

/// How long a disk may take to appear after a login or rescan.
const DISK_APPEARS: Duration = Duration::from_secs(15);
/// How long a session may take to appear or vanish in sysfs.
const SESSION_CHANGES: Duration = Duration::from_secs(10);

/// A volume's disk, proven to be the volume's.
#[derive(Clone, Debug)]
pub(super) struct Attached {
    /// The disk.
    pub(super) disk: Disk,
    /// The disk's size.
    pub(super) size: Bytes,
}

impl<H: Host> Machine<H> {
    /// The session of this node with the target of `uuid`. None is fine, several are not.
    pub(super) async fn session_of(&self, uuid: &LunUuid) -> Result<Option<Session>, Error> {
        let all = disk::sessions(&self.host)
            .await
            .doing("listing iSCSI sessions")?;
        let ours: Vec<Session> = all
            .into_iter()
            .filter(|session| self.publishes_here(&session.target, Some(uuid)))
            .collect();
        match ours.as_slice() {
            [] => Ok(None),
            [session] => Ok(Some(session.clone())),
            several => {
                let ids: Vec<String> = several
                    .iter()
                    .map(|session| format!("{} ({})", session.id, session.target))
                    .collect();
                Err(Error::Refused {
                    what: format!("choosing the session of LUN {uuid}"),
                    seen: format!("there are {} sessions: {}", several.len(), ids.join(", ")),
                    remedy: "log out those that are not in use with iscsiadm -m session -r NUMBER --logout".to_owned(),
                })
            }
        }
    }

    /// The disks of a session, as far as they are known without asking the target.
    pub(super) async fn disks_of(&self, session: Option<&Session>) -> Result<Vec<Disk>, Error> {
        let Some(session) = session else {
            return Ok(Vec::new());
        };
        disk::disks(&self.host, session.id)
            .await
            .doing(format!("listing the disks of session {}", session.id))
    }

    /// Logs in unless there is a good session, finds the disk and proves that it is the volume's.
    pub(super) async fn attach(
        &self,
        context: &PublishContext,
        chap: Option<&Chap>,
    ) -> Result<Attached, Error> {
        if let Some(session) = self.session_of(&context.uuid).await? {
            if let Some(attached) = self.reuse(&session, context).await? {
                return Ok(attached);
            }
            self.detach(&session).await?;
        }
        let session = self.login(context, chap).await?;
        self.scan(&session, context.lun).await?;
        let disk = disk::wait_for_disk(&self.host, session.id, context.lun, DISK_APPEARS)
            .await
            .doing("waiting for the disk")?;
        let disk = disk.ok_or_else(|| Error::Unproven {
            what: format!("attaching logical unit {} of {}", context.lun, context.iqn),
            seen: format!(
                "session {} has no such disk after {} s",
                session.id,
                DISK_APPEARS.as_secs()
            ),
        })?;
        self.prove(disk, &context.uuid).await
    }

    /// The disk of a session that was there before; `None` when the session is stale and may be ended.
    async fn reuse(
        &self,
        session: &Session,
        context: &PublishContext,
    ) -> Result<Option<Attached>, Error> {
        let in_use = self.uses(&self.disks_of(Some(session)).await?).await?;
        // A session of another time, at another name of this initiator, would be another publication.
        let usable = session.alive && session.target == context.iqn.as_str();
        if usable && self.rescan_answered(session).await? {
            let disk = disk::wait_for_disk(&self.host, session.id, context.lun, DISK_APPEARS)
                .await
                .doing("waiting for the disk")?;
            if let Some(disk) = disk {
                return self.prove(disk, &context.uuid).await.map(Some);
            }
        }
        if in_use.is_empty() {
            return Ok(None);
        }
        Err(Error::Unfinished {
            what: format!("session {} with {}", session.id, session.target),
            seen: format!(
                "it has lost its target or disk, which is still in use at {}",
                in_use.join(", ")
            ),
        })
    }

    /// Asks the target anew for sizes, serials and units: sysfs is a cache. The command succeeds even when nobody answers,
    /// so the session is looked at afterwards.
    pub(super) async fn rescan(&self, session: &Session) -> Result<(), Error> {
        if self.rescan_answered(session).await? {
            return Ok(());
        }
        Err(Error::Unfinished {
            what: format!("session {} with {}", session.id, session.target),
            seen: "it has lost its target, and what is known of its disk may be out of date"
                .to_owned(),
        })
    }

    async fn rescan_answered(&self, session: &Session) -> Result<bool, Error> {
        let doing = format!("rescanning session {}", session.id);
        self.run(&doing, iscsiadm::rescan(session.id)).await?;
        let all = disk::sessions(&self.host).await.doing(&doing)?;
        Ok(all
            .iter()
            .any(|other| other.id == session.id && other.alive))
    }

    /// The disk is the volume's, by its unit serial. To be called after [`Machine::rescan`].
    pub(super) async fn prove(&self, disk: Disk, uuid: &LunUuid) -> Result<Attached, Error> {
        let doing = || format!("identifying {}", disk.node());
        if !disk.is_running(&self.host).await.doing(doing())? {
            return Err(Error::Unfinished {
                what: disk.node(),
                seen: "it is offline, and what is known of it may be out of date".to_owned(),
            });
        }
        let serial = disk.serial(&self.host).await.doing(doing())?;
        if serial
            .as_deref()
            .is_none_or(|serial| !serial.eq_ignore_ascii_case(uuid.as_str()))
        {
            let serial = serial.unwrap_or_else(|| "not given".to_owned());
            return Err(Error::Refused {
                what: format!("using {} for LUN {uuid}", disk.node()),
                seen: format!("its unit serial is {serial}, that of the volume is {uuid}"),
                remedy:
                    "another LUN is mapped at this place: check the target's mappings on the NAS"
                        .to_owned(),
            });
        }
        let size = disk.size(&self.host).await.doing(doing())?;
        Ok(Attached { disk, size })
    }

    async fn login(&self, context: &PublishContext, chap: Option<&Chap>) -> Result<Session, Error> {
        let mut refusals = Vec::new();
        for portal in &context.portals {
            let doing = format!("logging in to {} at {portal}", context.iqn);
            self.write_record(&context.iqn, portal, chap).await?;
            let exit = self
                .host
                .run(iscsiadm::login(&context.iqn, portal))
                .await
                .doing(&doing)?;
            match iscsiadm::read_login(&exit) {
                Login::New | Login::Existing => return self.wait_for_session(context).await,
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
        Err(self.no_session(context, chap, refusals).await)
    }

    async fn wait_for_session(&self, context: &PublishContext) -> Result<Session, Error> {
        let doing = format!("waiting for the session with {}", context.iqn);
        let look = || async {
            let all = disk::sessions(&self.host).await?;
            Ok(all
                .into_iter()
                .find(|session| session.target == context.iqn.as_str()))
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
            && matches!(self.session_of(&context.uuid).await, Ok(None))
    }

    /// Ends a session and removes its records. The caller knows that nobody uses its disk.
    pub(super) async fn detach(&self, session: &Session) -> Result<(), Error> {
        let doing = format!("logging out session {} with {}", session.id, session.target);
        self.host
            .run(iscsiadm::logout(session.id))
            .await
            .and_then(iscsiadm::read_logout)
            .doing(&doing)?;
        let gone = disk::until(&self.host, SESSION_CHANGES, || async {
            let all = disk::sessions(&self.host).await?;
            Ok(all.iter().all(|other| other.id != session.id).then_some(()))
        });
        if gone.await.doing(&doing)?.is_none() {
            return Err(Error::Unproven {
                what: doing,
                seen: "the kernel still has the session".to_owned(),
            });
        }
        match session.target.parse() {
            Ok(iqn) => self.delete_records(&iqn).await,
            Err(_) => Ok(()),
        }
    }

    /// Removes the records of a target.
    pub(super) async fn delete_records(&self, iqn: &Iqn) -> Result<(), Error> {
        self.host
            .run(iscsiadm::delete_records(iqn))
            .await
            .and_then(iscsiadm::read_delete)
            .doing(format!("removing the records of {iqn}"))
    }
}
