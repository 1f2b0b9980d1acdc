//! What this node holds of a volume, read from the kernel: sessions, their disks, the multipath map over these; and letting
//! all of it go again.

use super::{Doing, Machine};
use crate::error::Error;
use crate::host::disk::{self, Block, Disk, Session};
use crate::host::map::{self, Map};
use crate::host::mount::Mount;
use crate::host::{Host, iscsiadm};
use crate::publication::Iqn;
use crate::volume::LunUuid;

/// How long a session may take to appear or vanish in sysfs.
pub(super) const SESSION_CHANGES: std::time::Duration = std::time::Duration::from_secs(10);

/// A volume as this node holds it.
#[derive(Clone, Debug, Default)]
pub(super) struct Held {
    /// The sessions with its target: one, or one at each of several portals. More were made by somebody else, or from a record
    /// that said so; they are ended with the others, and nobody is kept from that by their number.
    pub(super) sessions: Vec<Session>,
    /// Their disks that are the volume's.
    pub(super) disks: Vec<Disk>,
    /// Other logical units that somebody has mapped to the volume's target. They go with its session.
    pub(super) strangers: Vec<Disk>,
    /// The map over these disks, or one that has outlived them.
    pub(super) map: Option<Map>,
}

impl Held {
    /// Everything that a mount of the volume may show.
    pub(super) fn blocks(&self) -> Vec<Block> {
        let disks = self.disks.iter().map(|disk| disk.block.clone());
        disks
            .chain(self.map.iter().map(|map| map.block.clone()))
            .collect()
    }

    /// What the volume is used through: the map, or else its only disk. A path below a map is never used by itself, and of
    /// several disks without a map none is.
    pub(super) fn device(&self) -> Option<&Block> {
        match (&self.map, self.sessions.as_slice()) {
            (Some(map), _) => Some(&map.block),
            (None, [_]) => self.disks.first().map(|disk| &disk.block),
            (None, _) => None,
        }
    }

    /// The device that a mount shows. btrfs and device nodes have no number of their own; then it is the volume's.
    pub(super) fn device_of(&self, mount: &Mount) -> Option<Block> {
        let shown = self
            .blocks()
            .into_iter()
            .find(|block| block.number == mount.device);
        shown.or_else(|| self.device().cloned())
    }

    /// The disks below a device: itself, or a map's paths.
    pub(super) fn paths_of(&self, device: &Block) -> Vec<Disk> {
        let below = |disk: &&Disk| match &self.map {
            Some(map) if map.block == *device => map.paths.contains(&disk.block.name),
            _ => disk.block == *device,
        };
        self.disks.iter().filter(below).cloned().collect()
    }

    /// The targets that there are sessions with.
    pub(super) fn targets(&self) -> Vec<Iqn> {
        let targets = self.sessions.iter().map(|session| session.target.parse());
        let mut targets: Vec<Iqn> = targets.flatten().collect();
        targets.sort_unstable();
        targets.dedup();
        targets
    }

    /// Some session has its target. Without one there is nobody left to write to.
    pub(super) fn is_alive(&self) -> bool {
        self.sessions.iter().any(|session| session.alive)
    }
}

impl<H: Host> Machine<H> {
    /// What this node holds of the volume, however many sessions that are.
    pub(super) async fn held(&self, uuid: &LunUuid) -> Result<Held, Error> {
        let sessions = self.sessions_of(uuid).await?;
        self.held_by(uuid, sessions).await
    }

    /// The same for each publication: one, save when a node was not told that the one before has ended.
    pub(super) async fn held_by_publication(&self, uuid: &LunUuid) -> Result<Vec<Held>, Error> {
        let mut sessions = self.sessions_of(uuid).await?;
        sessions.sort_by(|a, b| a.target.cmp(&b.target));
        let mut held = Vec::new();
        for of_one in sessions.chunk_by(|a, b| a.target == b.target) {
            held.push(self.held_by(uuid, of_one.to_vec()).await?);
        }
        if held.is_empty() {
            held.push(self.held_by(uuid, vec![]).await?);
        }
        Ok(held)
    }

    async fn held_by(&self, uuid: &LunUuid, sessions: Vec<Session>) -> Result<Held, Error> {
        let all = self.disks_of(&sessions).await?;
        let (disks, strangers) = self.own(uuid, all).await?;
        let map = self.map_over(uuid, &disks).await?;
        Ok(Held {
            sessions,
            disks,
            strangers,
            map,
        })
    }

    /// The disks that bear the volume's serial, as far as the kernel knows, and those that bear another. Where none bears it they are
    /// all the volume's until the proof of identity says what they are.
    async fn own(&self, uuid: &LunUuid, all: Vec<Disk>) -> Result<(Vec<Disk>, Vec<Disk>), Error> {
        let mut units: Vec<u32> = all.iter().map(|disk| disk.session).collect();
        units.dedup();
        if units.len() == all.len() {
            return Ok((all, vec![]));
        }
        let (mut own, mut others) = (Vec::new(), Vec::new());
        for disk in all {
            let doing = format!("identifying {}", disk.block.node());
            let serial = disk.serial(&self.host).await.doing(doing)?;
            let ours = serial.is_some_and(|it| it.eq_ignore_ascii_case(uuid.as_str()));
            if ours { &mut own } else { &mut others }.push(disk);
        }
        if own.is_empty() {
            return Ok((others, vec![]));
        }
        Ok((own, others))
    }

    /// The disks of these sessions.
    pub(super) async fn disks_of(&self, sessions: &[Session]) -> Result<Vec<Disk>, Error> {
        let mut disks = Vec::new();
        for session in sessions {
            let of_session = disk::disks(&self.host, session.id)
                .await
                .doing(format!("listing the disks of session {}", session.id))?;
            disks.extend(of_session);
        }
        Ok(disks)
    }

    /// The sessions of this node with the target of `uuid`.
    pub(super) async fn sessions_of(&self, uuid: &LunUuid) -> Result<Vec<Session>, Error> {
        let all = disk::sessions(&self.host)
            .await
            .doing("listing iSCSI sessions")?;
        let ours = |session: &Session| self.publishes_here(&session.target, Some(uuid));
        Ok(all.into_iter().filter(ours).collect())
    }

    /// The multipath map over some of `disks`. A map that nobody can reach any more is known by the volume's WWID.
    pub(super) async fn map_over(
        &self,
        uuid: &LunUuid,
        disks: &[Disk],
    ) -> Result<Option<Map>, Error> {
        let ours = |name: &String| disks.iter().any(|disk| disk.block.name == *name);
        let wwids = map::wwids(uuid);
        let mut over = map::maps(&self.host)
            .await
            .doing("listing multipath maps")?;
        over.retain(|map| {
            map.paths.iter().any(ours) || map.paths.is_empty() && wwids.contains(&map.wwid)
        });
        let foreign = over.iter().any(|map| !map.paths.iter().all(ours));
        if over.len() < 2 && !foreign {
            return Ok(over.pop());
        }
        let mut seen = Vec::new();
        for map in &over {
            let mut paths = Vec::new();
            for name in &map.paths {
                let serial = disk::serial_of(&self.host, name)
                    .await
                    .doing(format!("identifying {name}"))?;
                let serial = serial.unwrap_or_else(|| "not given".to_owned());
                paths.push(format!("{name} (unit serial {serial})"));
            }
            seen.push(format!("map {} lies over {}", map.name, paths.join(", ")));
        }
        let own: Vec<&str> = disks.iter().map(|disk| disk.block.name.as_str()).collect();
        Err(Error::Refused {
            what: format!("choosing the multipath map of LUN {uuid}"),
            seen: format!("{}; the volume's disks are {}", seen.join("; "), own.join(", ")),
            remedy: "let multipathd make one map of just these disks: check its configuration, and end what is not the volume's".to_owned(),
        })
    }

    /// Lets the volume go: map, sessions, records. The caller knows that nobody uses it. What a crash leaves of it is let go
    /// by the next call.
    pub(super) async fn release(&self, held: &Held) -> Result<(), Error> {
        self.give_up_queueing(held).await;
        if let Some(map) = &held.map {
            self.flush(map).await?;
        }
        for session in &held.sessions {
            self.log_out(session).await?;
        }
        if let Some(map) = &held.map {
            // A daemon that grabs every disk may have made it anew in between.
            self.must_be_flushed(map).await?;
        }
        for iqn in held.targets() {
            self.delete_records(&iqn).await?;
        }
        Ok(())
    }

    /// Ends one session. Its records stay.
    pub(super) async fn log_out(&self, session: &Session) -> Result<(), Error> {
        let doing = format!("logging out {session}");
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
        Ok(())
    }
}
