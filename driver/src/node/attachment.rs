//! A volume's attachment to this node as the kernel shows it: sessions, their disks, the multipath map; and its teardown
//! (logout).

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
pub(super) const SESSION_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// What is attached of a volume; nothing at all if it is empty.
#[derive(Clone, Debug, Default)]
pub(super) struct Attachment {
    /// The sessions with its target: one, or one per portal. More than that were made by hand or by a record with
    /// `nr_sessions` above 1; any number is torn down alike.
    pub(super) sessions: Vec<Session>,
    /// The volume's disks of these sessions.
    pub(super) disks: Vec<Disk>,
    /// Disks of other LUNs that somebody has mapped to the volume's target. A logout removes them, too.
    pub(super) foreign_disks: Vec<Disk>,
    /// The multipath map over these disks, or one that has outlived them.
    pub(super) map: Option<Map>,
}

impl Attachment {
    /// All block devices that a mount of the volume may be on.
    pub(super) fn blocks(&self) -> Vec<Block> {
        let disks = self.disks.iter().map(|disk| disk.block.clone());
        disks
            .chain(self.map.iter().map(|map| map.block.clone()))
            .collect()
    }

    /// The device to use: the map, or else the only disk. `None` for several disks without a map. A path of a map is never used
    /// directly.
    pub(super) fn device(&self) -> Option<&Block> {
        match (&self.map, self.sessions.as_slice()) {
            (Some(map), _) => Some(&map.block),
            (None, [_]) => self.disks.first().map(|disk| &disk.block),
            (None, _) => None,
        }
    }

    /// The device that a mount is on. Mounts of btrfs and of device nodes do not show its number; for these it is
    /// [`Self::device`].
    pub(super) fn device_of(&self, mount: &Mount) -> Option<Block> {
        let by_number = self
            .blocks()
            .into_iter()
            .find(|block| block.number == mount.device);
        by_number.or_else(|| self.device().cloned())
    }

    /// The disks below a device: a map's paths, or the disk itself.
    pub(super) fn paths_of(&self, device: &Block) -> Vec<Disk> {
        let below = |disk: &&Disk| match &self.map {
            Some(map) if map.block == *device => map.paths.contains(&disk.block.name),
            _ => disk.block == *device,
        };
        self.disks.iter().filter(below).cloned().collect()
    }

    /// The targets of the sessions, sorted, without duplicates.
    pub(super) fn targets(&self) -> Vec<Iqn> {
        let targets = self.sessions.iter().map(|session| session.target.parse());
        let mut targets: Vec<Iqn> = targets.flatten().collect();
        targets.sort_unstable();
        targets.dedup();
        targets
    }

    /// True if at least one session has its target. Without one, nothing can be written any more.
    pub(super) fn is_alive(&self) -> bool {
        self.sessions.iter().any(|session| session.alive)
    }
}

impl<H: Host> Machine<H> {
    /// What is attached of the volume, by the sessions of all its publications together.
    pub(super) async fn attachment(&self, uuid: &LunUuid) -> Result<Attachment, Error> {
        let mut all = self.attachments(uuid, false).await?;
        Ok(all.pop().unwrap_or_default())
    }

    /// The same, per publication: more than one only if this node missed the end of an earlier one.
    pub(super) async fn attachments_by_target(
        &self,
        uuid: &LunUuid,
    ) -> Result<Vec<Attachment>, Error> {
        self.attachments(uuid, true).await
    }

    /// Returns at least one, maybe empty. Reads sysfs once.
    async fn attachments(&self, uuid: &LunUuid, apart: bool) -> Result<Vec<Attachment>, Error> {
        let (ours, targets, maps) = (
            self.publications(Some(uuid)),
            self.target_names.clone(),
            self.map_names.clone(),
        );
        let lun = uuid.clone();
        let read = move |files: &dyn KernelFiles| {
            let mut sessions = session::sessions(files, &targets, |target| ours.include(target))?;
            if apart {
                sessions.sort_by(|a, b| a.target.cmp(&b.target));
            }
            let groups = sessions.chunk_by(|a, b| !apart || a.target == b.target);
            let groups =
                groups.map(|sessions| KernelView::of(files, &maps, &lun, sessions.to_vec()));
            let mut views = groups.collect::<Result<Vec<KernelView>, _>>()?;
            if views.is_empty() {
                views.push(KernelView::of(files, &maps, &lun, vec![])?);
            }
            Ok(views)
        };
        let doing = format!("reading the attachment of LUN {uuid}");
        let views = self.host.blocking(&doing, read).await.context(&doing)?;
        views
            .into_iter()
            .map(|view| view.into_attachment(uuid))
            .collect()
    }

    pub(super) async fn disks_of(&self, sessions: &[Session]) -> Result<Vec<Disk>, Error> {
        let ids: Vec<u32> = sessions.iter().map(|session| session.id).collect();
        let doing = "listing the disks of sessions";
        let read = move |files: &dyn KernelFiles| disks_of(files, &ids);
        self.host.blocking(doing, read).await.context(doing)
    }

    /// This node's sessions with targets of the LUN `uuid`, or of all volumes.
    pub(super) async fn sessions_of(&self, uuid: Option<&LunUuid>) -> Result<Vec<Session>, Error> {
        let (ours, targets) = (self.publications(uuid), self.target_names.clone());
        let doing = "listing iSCSI sessions";
        let read = move |files: &dyn KernelFiles| {
            session::sessions(files, &targets, |target| ours.include(target))
        };
        self.host.blocking(doing, read).await.context(doing)
    }

    /// Re-reads a session; `None` if it has ended.
    pub(super) async fn session_now(&self, id: u32) -> Result<Option<Session>, HostError> {
        let doing = format!("reading session {id}");
        let read = move |files: &dyn KernelFiles| session::session(files, id);
        self.host.blocking(&doing, read).await
    }

    /// The multipath map over some of `disks`. A map without paths is found by the volume's WWID.
    pub(super) async fn map_over(
        &self,
        uuid: &LunUuid,
        disks: &[Disk],
    ) -> Result<Option<Map>, Error> {
        let (maps, lun, disks) = (self.map_names.clone(), uuid.clone(), disks.to_vec());
        let doing = "listing multipath maps";
        let read = move |files: &dyn KernelFiles| {
            let over = MapsOverDisks::read(files, &maps, &lun, &disks)?;
            Ok((over, disks))
        };
        let (over, disks) = self.host.blocking(doing, read).await.context(doing)?;
        over.only(uuid, &disks)
    }

    /// The multipath maps with one of these WWIDs.
    pub(super) async fn maps_with(&self, wwids: Vec<String>) -> Result<Vec<Map>, HostError> {
        let maps = self.map_names.clone();
        let read = move |files: &dyn KernelFiles| dm_multipath::with_wwid(files, &maps, &wwids);
        self.host.blocking("listing multipath maps", read).await
    }

    /// Tears the attachment down: map, sessions, records. The caller has checked that it is unused. After a crash the next call
    /// continues.
    pub(super) async fn detach(&self, attachment: &Attachment) -> Result<(), Error> {
        self.disable_queueing(attachment).await;
        if let Some(map) = &attachment.map {
            self.flush(map).await?;
        }
        for session in &attachment.sessions {
            self.log_out(session).await?;
        }
        if let Some(map) = &attachment.map {
            // A multipathd that makes maps over all disks may have recreated it in between.
            self.must_be_flushed(map).await?;
        }
        for iqn in attachment.targets() {
            self.delete_records(&iqn).await?;
        }
        Ok(())
    }

    /// Logs out one session and waits until the kernel has removed it. Its records stay.
    pub(super) async fn log_out(&self, session: &Session) -> Result<(), Error> {
        let doing = format!("logging out {session}");
        self.host
            .run(iscsiadm::logout(session.id))
            .await
            .and_then(iscsiadm::read_logout)
            .context(&doing)?;
        let gone = disk::poll_until(&self.host, SESSION_TIMEOUT, || async {
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

/// A volume's sessions, disks and maps, read from sysfs in one go.
struct KernelView {
    sessions: Vec<Session>,
    disks: Vec<Disk>,
    foreign_disks: Vec<Disk>,
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
        let (disks, foreign_disks) = own(files, uuid, disks_of(files, &ids)?)?;
        let over = MapsOverDisks::read(files, maps, uuid, &disks)?;
        Ok(Self {
            sessions,
            disks,
            foreign_disks,
            over,
        })
    }

    fn into_attachment(self, uuid: &LunUuid) -> Result<Attachment, Error> {
        let map = self.over.only(uuid, &self.disks)?;
        Ok(Attachment {
            sessions: self.sessions,
            disks: self.disks,
            foreign_disks: self.foreign_disks,
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

/// Splits disks into those with the volume's serial, as far as the kernel knows it, and others. If none has it, all count as the
/// volume's until [`Machine::verify_identity`] decides.
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

/// The maps over a volume's disks: at most one, unless something is wrong.
struct MapsOverDisks {
    maps: Vec<Map>,
    /// The paths of each map with their serials, for an error message; empty unless the maps are ambiguous.
    paths: Vec<String>,
}

impl MapsOverDisks {
    fn read(
        files: &dyn KernelFiles,
        names: &Names,
        uuid: &LunUuid,
        disks: &[Disk],
    ) -> Result<Self, HostError> {
        let maps = dm_multipath::maps_over(files, names, disks, &dm_multipath::wwids(uuid))?;
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

    /// The only map.
    ///
    /// # Errors
    /// If there are several, or if one has paths that are not the volume's.
    fn only(mut self, uuid: &LunUuid, disks: &[Disk]) -> Result<Option<Map>, Error> {
        if !self.is_in_question(disks) {
            return Ok(self.maps.pop());
        }
        let seen = self.maps.iter().zip(&self.paths);
        let seen = seen.map(|(map, paths)| format!("map {} is over {paths}", map.name));
        let seen: Vec<String> = seen.collect();
        let own: Vec<&str> = disks.iter().map(|disk| disk.block.name.as_str()).collect();
        Err(Error::Refused {
            what: format!("choosing the multipath map of LUN {uuid}"),
            seen: format!("{}; the volume's disks are {}", seen.join("; "), own.join(", ")),
            remedy: "let multipathd make one map of just these disks: check its configuration, and log out what is not the volume's".to_owned(),
        })
    }
}
