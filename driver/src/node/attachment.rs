//! What this node holds of a volume, read from the kernel: sessions, their disks, the multipath map over these; and letting
//! all of it go again.

use super::Machine;
use crate::error::{Context as _, Error};
use crate::host::disk::{self, Block, Disk};
use crate::host::dm_multipath::{self, Map};
use crate::host::kernel_names::Names;
use crate::host::mount::Mount;
use crate::host::session::{self, Session};
use crate::host::{Host, HostError, KernelFiles, iscsiadm};
use crate::publication::Iqn;
use crate::volume::LunUuid;

/// How long a session may take to appear or vanish in sysfs.
pub(super) const SESSION_LIST_RETRIES: std::time::Duration = std::time::Duration::from_secs(10);

/// A volume as this node holds it.
#[derive(Clone, Debug, Default)]
pub(super) struct Attachment {
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

impl Attachment {
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
    pub(super) async fn attachment(&self, uuid: &LunUuid) -> Result<Attachment, Error> {
        let mut all = self.attachments(uuid, false).await?;
        Ok(all.pop().unwrap_or_default())
    }

    /// The same for each publication: one, save when a node was not told that the one before has ended.
    pub(super) async fn attachments_by_target(
        &self,
        uuid: &LunUuid,
    ) -> Result<Vec<Attachment>, Error> {
        self.attachments(uuid, true).await
    }

    /// At least one; one look at sysfs.
    async fn attachments(&self, uuid: &LunUuid, apart: bool) -> Result<Vec<Attachment>, Error> {
        let (ours, targets, maps) = (
            self.publications(Some(uuid)),
            self.targets.clone(),
            self.maps.clone(),
        );
        let lun = uuid.clone();
        let look = move |files: &dyn KernelFiles| {
            let mut sessions = session::sessions(files, &targets, |target| ours.include(target))?;
            if apart {
                sessions.sort_by(|a, b| a.target.cmp(&b.target));
            }
            let groups = sessions.chunk_by(|a, b| !apart || a.target == b.target);
            let groups =
                groups.map(|sessions| KernelView::of(files, &maps, &lun, sessions.to_vec()));
            let mut shown = groups.collect::<Result<Vec<KernelView>, _>>()?;
            if shown.is_empty() {
                shown.push(KernelView::of(files, &maps, &lun, vec![])?);
            }
            Ok(shown)
        };
        let doing = format!("looking what this node has of LUN {uuid}");
        let shown = self.host.blocking(&doing, look).await.context(&doing)?;
        shown.into_iter().map(|shown| shown.held(uuid)).collect()
    }

    /// The disks of these sessions.
    pub(super) async fn disks_of(&self, sessions: &[Session]) -> Result<Vec<Disk>, Error> {
        let ids: Vec<u32> = sessions.iter().map(|session| session.id).collect();
        let doing = "listing the disks of sessions";
        let look = move |files: &dyn KernelFiles| disks_of(files, &ids);
        self.host.blocking(doing, look).await.context(doing)
    }

    /// The sessions of this node with the target of `uuid`; or with those of all volumes.
    pub(super) async fn sessions_of(&self, uuid: Option<&LunUuid>) -> Result<Vec<Session>, Error> {
        let (ours, targets) = (self.publications(uuid), self.targets.clone());
        let doing = "listing iSCSI sessions";
        let look = move |files: &dyn KernelFiles| {
            session::sessions(files, &targets, |target| ours.include(target))
        };
        self.host.blocking(doing, look).await.context(doing)
    }

    /// A session as it is now; `None` when it has ended.
    pub(super) async fn session_now(&self, id: u32) -> Result<Option<Session>, HostError> {
        let doing = format!("looking at session {id}");
        let look = move |files: &dyn KernelFiles| session::session(files, id);
        self.host.blocking(&doing, look).await
    }

    /// The multipath map over some of `disks`. A map that nobody can reach any more is known by the volume's WWID.
    pub(super) async fn map_over(
        &self,
        uuid: &LunUuid,
        disks: &[Disk],
    ) -> Result<Option<Map>, Error> {
        let (maps, lun, disks) = (self.maps.clone(), uuid.clone(), disks.to_vec());
        let doing = "listing multipath maps";
        let look = move |files: &dyn KernelFiles| {
            let over = MapsOverDisks::look(files, &maps, &lun, &disks)?;
            Ok((over, disks))
        };
        let (over, disks) = self.host.blocking(doing, look).await.context(doing)?;
        over.only(uuid, &disks)
    }

    /// The multipath maps with one of these WWIDs.
    pub(super) async fn maps_with(&self, wwids: Vec<String>) -> Result<Vec<Map>, HostError> {
        let maps = self.maps.clone();
        let look = move |files: &dyn KernelFiles| dm_multipath::with_wwid(files, &maps, &wwids);
        self.host.blocking("listing multipath maps", look).await
    }

    /// Lets the volume go: map, sessions, records. The caller knows that nobody uses it. What a crash leaves of it is let go
    /// by the next call.
    pub(super) async fn detach(&self, held: &Attachment) -> Result<(), Error> {
        self.disable_queueing(held).await;
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
            .context(&doing)?;
        let gone = disk::until(&self.host, SESSION_LIST_RETRIES, || async {
            let left = self.session_now(session.id).await?;
            Ok(left.is_none().then_some(()))
        });
        if gone.await.context(&doing)?.is_none() {
            return Err(Error::Unverified {
                what: doing,
                seen: "the kernel still has the session".to_owned(),
            });
        }
        Ok(())
    }
}

/// What sysfs shows of a volume.
struct KernelView {
    sessions: Vec<Session>,
    disks: Vec<Disk>,
    strangers: Vec<Disk>,
    over: MapsOverDisks,
}

impl KernelView {
    fn of(
        files: &dyn KernelFiles,
        maps: &Names,
        uuid: &LunUuid,
        sessions: Vec<Session>,
    ) -> Result<Self, HostError> {
        let ids: Vec<u32> = sessions.iter().map(|session| session.id).collect();
        let (disks, strangers) = own(files, uuid, disks_of(files, &ids)?)?;
        let over = MapsOverDisks::look(files, maps, uuid, &disks)?;
        Ok(Self {
            sessions,
            disks,
            strangers,
            over,
        })
    }

    fn held(self, uuid: &LunUuid) -> Result<Attachment, Error> {
        let map = self.over.only(uuid, &self.disks)?;
        Ok(Attachment {
            sessions: self.sessions,
            disks: self.disks,
            strangers: self.strangers,
            map,
        })
    }
}

fn disks_of(files: &dyn KernelFiles, sessions: &[u32]) -> Result<Vec<Disk>, HostError> {
    let mut all = Vec::new();
    for id in sessions {
        all.extend(disk::disks(files, *id)?);
    }
    Ok(all)
}

/// The disks that bear the volume's serial, as far as the kernel knows, and those that bear another. Where none bears it they are
/// all the volume's until the proof of identity says what they are.
fn own(
    files: &dyn KernelFiles,
    uuid: &LunUuid,
    all: Vec<Disk>,
) -> Result<(Vec<Disk>, Vec<Disk>), HostError> {
    let mut units: Vec<u32> = all.iter().map(|disk| disk.session).collect();
    units.dedup();
    if units.len() == all.len() {
        return Ok((all, vec![]));
    }
    let (mut own, mut others) = (Vec::new(), Vec::new());
    for disk in all {
        let serial = disk.serial(files)?;
        let ours = serial.is_some_and(|it| it.eq_ignore_ascii_case(uuid.as_str()));
        if ours { &mut own } else { &mut others }.push(disk);
    }
    if own.is_empty() {
        return Ok((others, vec![]));
    }
    Ok((own, others))
}

/// The maps over a volume's disks: one, if all is well.
struct MapsOverDisks {
    maps: Vec<Map>,
    /// What is below each, in words; looked up when there is a question.
    paths: Vec<String>,
}

impl MapsOverDisks {
    fn look(
        files: &dyn KernelFiles,
        names: &Names,
        uuid: &LunUuid,
        disks: &[Disk],
    ) -> Result<Self, HostError> {
        let maps = dm_multipath::over(files, names, disks, &dm_multipath::wwids(uuid))?;
        let mut over = Self {
            maps,
            paths: Vec::new(),
        };
        if over.is_in_question(disks) {
            for map in &over.maps {
                let mut paths = Vec::new();
                for name in &map.paths {
                    let serial = disk::serial_of(files, name)?;
                    let serial = serial.unwrap_or_else(|| "not given".to_owned());
                    paths.push(format!("{name} (unit serial {serial})"));
                }
                over.paths.push(paths.join(", "));
            }
        }
        Ok(over)
    }

    fn is_in_question(&self, disks: &[Disk]) -> bool {
        let ours = |name: &String| disks.iter().any(|disk| disk.block.name == *name);
        self.maps.len() > 1 || self.maps.iter().any(|map| !map.paths.iter().all(ours))
    }

    /// The only one; nobody may choose between several, nor use one that lies over what is not the volume's.
    fn only(mut self, uuid: &LunUuid, disks: &[Disk]) -> Result<Option<Map>, Error> {
        if !self.is_in_question(disks) {
            return Ok(self.maps.pop());
        }
        let seen = self.maps.iter().zip(&self.paths);
        let seen = seen.map(|(map, paths)| format!("map {} lies over {paths}", map.name));
        let seen: Vec<String> = seen.collect();
        let own: Vec<&str> = disks.iter().map(|disk| disk.block.name.as_str()).collect();
        Err(Error::Refused {
            what: format!("choosing the multipath map of LUN {uuid}"),
            seen: format!("{}; the volume's disks are {}", seen.join("; "), own.join(", ")),
            remedy: "let multipathd make one map of just these disks: check its configuration, and end what is not the volume's".to_owned(),
        })
    }
}
