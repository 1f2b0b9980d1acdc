//! Adds paths through portals that were down when a volume was staged (design.md#portals). Runs periodically in the background.
//!
//! **Fencing.** A path is only added to a publication that already has one: there must be a live session with the same target, a
//! mounted map, and a record of the portal from the last stage. So an ended publication never gets a path back: NodeUnstage
//! unmounts first, [`super::ended_publication`] takes the disks offline first, and a deleted target refuses logins. It holds the
//! volume's lock, and yields to an RPC that waits for it: a session being added is logged out, and no further one is started.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::attachment::Attachment;
use super::{Machine, Node};
use crate::error::{Context as _, Error};
use crate::host::disk::Disk;
use crate::host::dm_multipath::Map;
use crate::host::iscsiadm::{self, Login};
use crate::host::session::Session;
use crate::host::{Host, HostError};
use crate::in_flight::Preemption;
use crate::metrics;
use crate::publication::{Iqn, Portal};
use crate::volume::LunUuid;

/// For how many rounds a portal is skipped after it has refused the login: each attempt is a line in the log of the NAS.
const REFUSED_ROUNDS: u32 = 15;

/// Portals that are skipped after a refusal, and for how many more rounds. Only saves attempts.
#[derive(Debug, Default)]
pub struct Backoff(BTreeMap<(Iqn, Portal), u32>);

impl Backoff {
    fn next_round(&mut self) {
        self.0.retain(|_, looks| {
            *looks -= 1;
            *looks > 0
        });
    }
}

/// A publication on this node, and its missing paths.
#[derive(Debug)]
struct MissingPaths {
    uuid: LunUuid,
    iqn: Iqn,
    /// Number of sessions that have lost their target: iscsid keeps trying to reconnect them.
    lost: usize,
    /// Portals without a session, or whose session is not a path of the map (after a crash between login and adding it).
    portals: Vec<Portal>,
}

/// The outcome for a portal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum JoinOutcome {
    /// It is a path of the map now.
    Added,
    /// Nothing to do, or an RPC has precedence.
    Skipped,
    /// It does not answer; it is not tried for other volumes in this round.
    NoAnswer,
    /// The target refuses the login there.
    Refused,
}

impl<H: Host> Node<H> {
    /// Runs [`Self::add_missing_paths`] every `every`, forever.
    pub async fn add_missing_paths_forever(&self, every: Duration) {
        let mut backoff = Backoff::default();
        loop {
            self.machine.host.pause(every).await;
            self.add_missing_paths(&mut backoff).await;
        }
    }

    /// One round: finds missing paths of this node's volumes and adds those whose portals answer. Returns the number of paths
    /// that are still missing.
    pub async fn add_missing_paths(&self, backoff: &mut Backoff) -> usize {
        backoff.next_round();
        let all = match self.machine.missing_paths().await {
            Ok(all) => all,
            Err(error) => {
                tracing::warn!(
                    error = error.chain(),
                    "cannot determine which paths are missing"
                );
                return 0;
            }
        };
        let mut missing = 0;
        let mut unreachable = BTreeSet::new();
        for publication in all {
            missing += publication.lost;
            for portal in &publication.portals {
                let key = (publication.iqn.clone(), *portal);
                let skip = unreachable.contains(portal) || backoff.0.contains_key(&key);
                let outcome = if skip {
                    JoinOutcome::Skipped
                } else {
                    self.join_one(&publication, *portal).await
                };
                match outcome {
                    JoinOutcome::Added => continue,
                    JoinOutcome::Skipped => {}
                    JoinOutcome::NoAnswer => drop(unreachable.insert(*portal)),
                    JoinOutcome::Refused => drop(backoff.0.insert(key, REFUSED_ROUNDS)),
                }
                missing += 1;
            }
        }
        metrics::of_process().missing_paths(missing);
        missing
    }

    async fn join_one(&self, publication: &MissingPaths, portal: Portal) -> JoinOutcome {
        let (uuid, iqn) = (publication.uuid.clone(), publication.iqn.clone());
        let machine = self.machine.clone();
        let work = |wanted| async move { machine.join(&uuid, &iqn, portal, &wanted).await };
        let key = publication.uuid.to_string();
        match self.in_flight.run_aside(&key, work).await {
            Ok(joined) => joined,
            // An RPC holds the lock.
            Err(Error::Busy { .. }) => JoinOutcome::Skipped,
            Err(error) => {
                let target = &publication.iqn;
                tracing::warn!(%target, %portal, error = error.chain(), "adding a path failed");
                JoinOutcome::Skipped
            }
        }
    }
}

impl<H: Host> Machine<H> {
    /// The publications on this node with missing paths, according to sessions and records.
    async fn missing_paths(&self) -> Result<Vec<MissingPaths>, Error> {
        let mut sessions: BTreeMap<Iqn, Vec<Session>> = BTreeMap::new();
        for session in self.sessions_of(None).await? {
            if let Ok(iqn) = session.target.parse() {
                sessions.entry(iqn).or_default().push(session);
            }
        }
        let mut found = Vec::new();
        for (iqn, sessions) in sessions {
            match self.missing_paths_of(&iqn, &sessions).await {
                Ok(missing) => found.extend(missing),
                // A problem with one volume must not affect the others.
                Err(error) => {
                    tracing::warn!(target = %iqn, error = error.chain(), "cannot determine which paths are missing");
                }
            }
        }
        Ok(found)
    }

    async fn missing_paths_of(
        &self,
        iqn: &Iqn,
        sessions: &[Session],
    ) -> Result<Option<MissingPaths>, Error> {
        let Some((uuid, _)) = iqn.publication() else {
            return Ok(None);
        };
        let recorded = self.recorded_portals(iqn).await?;
        let lost = sessions.iter().filter(|session| !session.alive).count();
        let portals = if recorded.len() > 1 {
            self.portals_without_path(&uuid, sessions, recorded).await?
        } else {
            vec![]
        };
        let missing = MissingPaths {
            uuid,
            iqn: iqn.clone(),
            lost,
            portals,
        };
        Ok((lost > 0 || !missing.portals.is_empty()).then_some(missing))
    }

    /// Those of `portals` that have no path (a lost session counts as a path). Empty without a map: then the other portals are
    /// only fallbacks.
    async fn portals_without_path(
        &self,
        uuid: &LunUuid,
        sessions: &[Session],
        mut portals: Vec<Portal>,
    ) -> Result<Vec<Portal>, Error> {
        let disks = self.disks_of(sessions).await?;
        let Some(map) = self.map_over(uuid, &disks).await? else {
            return Ok(vec![]);
        };
        portals.retain(|portal| match path_state(sessions, &disks, &map, portal) {
            PathState::Absent | PathState::Stray(_) => true,
            PathState::Path | PathState::Unknown => false,
        });
        Ok(portals)
    }

    /// Adds a path through `portal` to a volume in use. If that fails, no session without a path is left behind.
    async fn join(
        &self,
        uuid: &LunUuid,
        iqn: &Iqn,
        portal: Portal,
        wanted: &Preemption,
    ) -> Result<JoinOutcome, Error> {
        let Some((attachment, map, lun)) = self.joinable(uuid, iqn).await? else {
            return Ok(JoinOutcome::Skipped);
        };
        let (session, existed) =
            match path_state(&attachment.sessions, &attachment.disks, &map, &portal) {
                PathState::Path | PathState::Unknown => return Ok(JoinOutcome::Skipped),
                PathState::Stray(session) => (session.clone(), true),
                PathState::Absent => {
                    if !self.has_required_settings(iqn, &portal).await? || wanted.is_requested() {
                        return Ok(JoinOutcome::Skipped);
                    }
                    match self.log_in_at_portal(iqn, portal).await? {
                        Ok(session) => (session, false),
                        Err(refused) => return Ok(refused),
                    }
                }
            };
        let added = if wanted.is_requested() {
            None
        } else {
            Some(self.add_to_map(uuid, &map, &session, lun).await)
        };
        if let Some(Ok(())) = added {
            tracing::info!(%session, "added a path");
            return Ok(JoinOutcome::Added);
        }
        // A session that was created here is logged out even if multipathd has already added its disk: its identity is not
        // verified.
        if !existed || !self.is_disk_in_use(&session).await? {
            self.log_out(&session).await?;
        }
        added.map_or(Ok(JoinOutcome::Skipped), |failed| {
            failed.map(|()| JoinOutcome::Added)
        })
    }

    /// Logs in at one more portal; the inner error is the reason why there is no session.
    async fn log_in_at_portal(
        &self,
        iqn: &Iqn,
        portal: Portal,
    ) -> Result<Result<Session, JoinOutcome>, Error> {
        let doing = format!("logging in to {iqn} at {portal}");
        let exit = match self.run_on_records(iscsiadm::login(iqn, &portal)).await {
            Err(HostError::DeadlineExceeded { .. }) => return Ok(Err(JoinOutcome::NoAnswer)),
            other => other.context(doing)?,
        };
        let (status, said) = (exit.status, exit.output_line());
        match iscsiadm::read_login(&exit) {
            Login::New | Login::Existing => self.wait_for_session(iqn, portal).await.map(Ok),
            Login::Refused {
                permanent: false,
                cause,
            } => {
                tracing::info!(target = %iqn, %portal, status, cause, "a path is still missing");
                Ok(Err(JoinOutcome::NoAnswer))
            }
            Login::Unconfirmed | Login::Refused { .. } => {
                tracing::warn!(target = %iqn, %portal, status, said, "the target refuses the login at this portal");
                Ok(Err(JoinOutcome::Refused))
            }
        }
    }

    /// True if the disk of a session is in use.
    async fn is_disk_in_use(&self, session: &Session) -> Result<bool, Error> {
        for disk in self.disks_of(std::slice::from_ref(session)).await? {
            // On an error it cannot even be opened, so it is not in use.
            if matches!(self.host.is_claimed(&disk.block.node()).await, Ok(true)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The attachment, map and LUN number of a publication that a path may be added to; `None` if none may (see "Fencing").
    async fn joinable(
        &self,
        uuid: &LunUuid,
        iqn: &Iqn,
    ) -> Result<Option<(Attachment, Map, u16)>, Error> {
        let attachment = self.attachment(uuid).await?;
        // With sessions of several publications, the present one is not known here.
        if attachment.targets() != [iqn.clone()] {
            return Ok(None);
        }
        let Some(map) = attachment.map.clone() else {
            return Ok(None);
        };
        let mut lun = None;
        for disk in attachment
            .disks
            .iter()
            .filter(|disk| is_alive(&attachment, disk))
        {
            // It was taken offline, perhaps because its publication has ended.
            let doing = format!("checking {}", disk.block.node());
            if !disk.is_running(&self.host).await.context(doing)? {
                return Ok(None);
            }
            lun = Some(disk.lun);
        }
        if self.mount_points(&attachment.blocks()).await?.is_empty() {
            return Ok(None);
        }
        Ok(lun.map(|lun| (attachment, map, lun)))
    }

    /// Verifies the disk of a session and adds it to the volume's map.
    async fn add_to_map(
        &self,
        uuid: &LunUuid,
        map: &Map,
        session: &Session,
        lun: u16,
    ) -> Result<(), Error> {
        let disk = self.attach_disk(session, lun, uuid).await?;
        let doing = || format!("measuring {}", disk.block.node());
        let size = disk.block.size(&self.host).await.context(doing())?;
        let present = map.block.size(&self.host).await.context(doing())?;
        if size != present {
            return Err(Error::NotReady {
                what: format!("map {}", map.name),
                seen: format!(
                    "it is {present}, and the LUN {size}: a path is added after NodeExpandVolume has resized the others"
                ),
            });
        }
        self.ensure_map(uuid, &[disk]).await.map(drop)
    }
}

/// The state of a portal as a path of a volume.
enum PathState<'a> {
    /// Its disk is a path of the map, or its session is lost and left to iscsid.
    Path,
    /// Its session is alive, but its disk is not a path of the map.
    Stray(&'a Session),
    /// There is no session.
    Absent,
    /// The kernel does not show the portal of some session.
    Unknown,
}

fn path_state<'a>(
    sessions: &'a [Session],
    disks: &[Disk],
    map: &Map,
    portal: &Portal,
) -> PathState<'a> {
    let Some(session) = sessions.iter().find(|it| it.portal == Some(*portal)) else {
        let unknown = sessions.iter().any(|it| it.portal.is_none());
        return if unknown {
            PathState::Unknown
        } else {
            PathState::Absent
        };
    };
    let below = |disk: &Disk| disk.session == session.id && map.paths.contains(&disk.block.name);
    if !session.alive || disks.iter().any(below) {
        PathState::Path
    } else {
        PathState::Stray(session)
    }
}

fn is_alive(attachment: &Attachment, disk: &Disk) -> bool {
    let of = |session: &Session| session.id == disk.session && session.alive;
    attachment.sessions.iter().any(of)
}
