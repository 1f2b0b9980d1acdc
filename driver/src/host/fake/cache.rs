//! The page cache of each disk that pods use, which may be out of date and is written back late; publications and targets of the
//! LUN; and the effects of writes to sysfs.

use std::io;

use super::test_api::DATA;
use super::{
    BLOCK, Fake, HostError, Machine, Mount, Span, Target, UUID, absent, disk_of, io_error,
    multipath,
};
use crate::publication::Iqn;
use crate::volume::Bytes;

/// The cached data of a pod on one disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cache {
    /// As last read or written back.
    clean: Option<u64>,
    /// Written by a pod, not yet on the disk.
    dirty: Option<u64>,
}

impl Fake {
    /// A pod writes through the mount at `point` and syncs. False: this failed.
    pub fn write_data(&self, point: &str, data: u64) -> bool {
        let mut machine = self.machine();
        let Some(device) = machine.writable(point) else {
            return false;
        };
        let written = Cache {
            clean: Some(data),
            dirty: None,
        };
        machine.caches.insert(device.clone(), written);
        machine.put(&device, data)
    }

    /// A pod writes through the mount at `point` without a sync: the data stays in the page cache, whether or not the target
    /// answers.
    pub fn write_unsynced(&self, point: &str, data: u64) -> bool {
        let mut machine = self.machine();
        let Some(device) = machine.writable(point) else {
            return false;
        };
        machine.caches.entry(device).or_default().dirty = Some(data);
        true
    }

    /// A pod reads through the mount at `point`, from the page cache or the disk. `None`: this failed.
    pub fn read_data(&self, point: &str) -> Option<u64> {
        let mut machine = self.machine();
        let device = machine.device_at(point)?;
        let read = machine.get(&device)?;
        let cache = machine.caches.entry(device).or_default();
        if cache.clean.is_none() {
            cache.clean = Some(read);
        }
        cache.dirty.or(cache.clean)
    }

    /// The file system at `point` is also mounted in another mount namespace.
    pub(crate) fn pin(&self, point: &str) {
        let mut machine = self.machine();
        let mount = machine.mounts.iter().rfind(|mount| mount.point == point);
        let (fs, device) = (mount.unwrap().fs.clone(), machine.device_at(point).unwrap());
        machine.pinned.insert((fs, device));
    }

    /// The volume is unpublished without the node's knowledge and published to it again: its target has a new name.
    pub(crate) fn republish(&self) {
        self.machine().targets.clear();
        self.publish_with_new_name();
    }

    /// The LUN is published to this node again, with a new target name.
    pub(crate) fn publish_with_new_name(&self) {
        self.machine().publications += 1;
        let iqn = self.iqn().to_string();
        self.rename_target(&iqn);
    }

    /// The LUN is exported by a single target, which has this name.
    pub(crate) fn rename_target(&self, iqn: &str) {
        let mut machine = self.machine();
        machine.targets.clear();
        machine.targets.insert(iqn.to_owned(), lun());
        machine.sessions_live_or_die();
    }

    /// The NAS has deleted the target but still serves its session.
    pub(crate) fn keep_session_with(&self, iqn: &str) {
        let mut machine = self.machine();
        machine.targets.insert(iqn.to_owned(), lun());
        machine.sessions_live_or_die();
    }

    /// The target name of the previous publication.
    pub(crate) fn previous_iqn(&self) -> Iqn {
        self.machine().publications -= 1;
        let iqn = self.iqn();
        self.machine().publications += 1;
        iqn
    }

    /// The LUN is published again, and the session with the previous target stays alive. Returns the name of the previous target.
    pub(crate) fn republish_keeping_session(&self) -> String {
        let kept = self.iqn().to_string();
        self.publish_with_new_name();
        self.keep_session_with(&kept);
        kept
    }

    /// Another node with the same LUN published to it.
    #[must_use]
    pub(crate) fn second_node_with_lun(&self) -> Self {
        let other = Self::with_lun();
        other.machine().content = std::sync::Arc::clone(&self.machine().content);
        other.machine().multipathd = None;
        other
    }
}

/// The target of [`Fake::with_lun`].
pub(crate) fn lun() -> Target {
    Target {
        serial: UUID.to_owned(),
        size: Bytes::GIB,
        lun: 1,
        lingering: false,
    }
}

impl Machine {
    /// A session number that is free, and whose disk is not mounted any more.
    pub(super) fn free_number(&self) -> u32 {
        let is_held = |id: &u32| {
            let name = disk_of(*id).0;
            let shown = |point: &str| self.device_at(point).as_deref() == Some(&*name);
            self.mounts.iter().any(|mount| shown(&mount.point))
                || self.pinned.iter().any(|(_, device)| *device == name)
        };
        (1..400)
            .find(|id| !self.sessions.contains_key(id) && !is_held(id))
            .unwrap()
    }

    /// Updates the sessions: one without a target is dead; one whose target is back is alive again, and dirty pages are written
    /// back.
    pub(crate) fn sessions_live_or_die(&mut self) {
        let mut back = false;
        for session in self.sessions.values_mut() {
            let alive = self.targets.contains_key(&session.target);
            back |= alive && !session.alive;
            session.alive = alive;
        }
        let waiting: Vec<String> = self.caches.keys().cloned().collect();
        for device in waiting.into_iter().filter(|_| back) {
            self.write_back(&device);
        }
    }

    /// The kernel's name of the device that is mounted at `point`.
    pub(super) fn device_at(&self, point: &str) -> Option<String> {
        device_of(self.mounts.iter().rfind(|mount| mount.point == point)?)
    }

    fn writable(&self, point: &str) -> Option<String> {
        let lives = !self.is_readonly(point) && self.death_at(point).is_none();
        lives.then(|| self.device_at(point))?
    }

    /// The serial number of the LUN behind a device, if it has a working path.
    pub(super) fn answering(&self, device: &str) -> Option<String> {
        let paths: Vec<u32> = match &self.map {
            Some(map) if device == "dm-0" => map.paths.clone(),
            _ => self.sessions.keys().copied().collect(),
        };
        let is_it = |id: &u32| device == "dm-0" || disk_of(*id).0 == device;
        let session = |id: u32| self.sessions.get(&id);
        paths
            .into_iter()
            .filter(is_it)
            .filter_map(session)
            .find(|session| session.alive && !session.offline)
            .and_then(|session| Some(session.seen.as_ref()?.serial.clone()))
    }

    fn put(&mut self, device: &str, data: u64) -> bool {
        let Some(serial) = self.answering(device) else {
            return false;
        };
        self.write(&serial, DATA, &data.to_le_bytes());
        true
    }

    fn get(&self, device: &str) -> Option<u64> {
        let serial = self.answering(device)?;
        let span = Span {
            offset: DATA,
            length: BLOCK,
        };
        let bytes = self.read(&serial, span);
        Some(u64::from_le_bytes(bytes[..8].try_into().unwrap()))
    }

    /// Writes dirty data back, if the disk accepts it.
    pub(super) fn write_back(&mut self, device: &str) {
        let dirty = self.caches.get(device).and_then(|cache| cache.dirty);
        if let Some(data) = dirty
            && self.put(device, data)
            && let Some(cache) = self.caches.get_mut(device)
        {
            *cache = Cache {
                clean: Some(data),
                dirty: None,
            };
        }
    }

    /// Ends the file system if this was the last mount of its device.
    pub(super) fn unmounted(&mut self, device: &str) {
        let shown = |point: &str| self.device_at(point).as_deref() == Some(device);
        if self.mounts.iter().all(|mount| !shown(&mount.point)) {
            let lives = self.pinned.iter().any(|(_, other)| other == device);
            if !self.deaths.contains_key(device) {
                self.write_back(device);
            } else if !lives {
                self.deaths.remove(device);
            }
            self.caches.remove(device);
        }
    }

    /// Removes the topmost mount at `point`.
    pub(super) fn unmount(&mut self, point: &str) -> bool {
        let device = self.device_at(point);
        let Some(at) = self.mounts.iter().rposition(|mount| mount.point == point) else {
            return false;
        };
        self.mounts.remove(at);
        if let Some(device) = device {
            self.unmounted(&device);
        }
        true
    }

    /// Logs out a session. The kernel flushes the disk before it removes it.
    pub(crate) fn log_out(&mut self, id: u32) -> bool {
        let device = disk_of(id).0;
        self.write_back(&device);
        self.lose_path(id);
        self.offline = false;
        self.sessions.remove(&id).is_some()
    }

    /// The kernel's reaction to a write to a sysfs file.
    pub(super) fn apply_sysfs_write(&mut self, path: &str, text: &str) -> Result<(), HostError> {
        let session = path
            .strip_prefix("/sys/class/iscsi_session/session")
            .and_then(|unit| unit.split('/').next()?.parse().ok());
        match (session, path.rsplit('/').next()) {
            (Some(id), Some("state")) => self.change_state(id, path, text),
            (Some(_), Some("rescan")) if self.offline && self.since_6_6 => {
                Err(io_error("writing", io::ErrorKind::WouldBlock))
            }
            (Some(id), Some("rescan")) => {
                self.rescan(id);
                Ok(())
            }
            _ => {
                self.rescan_all();
                Ok(())
            }
        }
    }

    /// Only a running disk can be set offline; one that is blocked or transport-offline cannot.
    fn change_state(&mut self, id: u32, path: &str, text: &str) -> Result<(), HostError> {
        let Some(session) = self.sessions.get_mut(&id).filter(|it| it.seen.is_some()) else {
            return absent(path);
        };
        if !session.alive || text != "offline\n" {
            return Err(io_error("writing", io::ErrorKind::InvalidInput));
        }
        session.offline = true;
        Ok(())
    }

    /// The files below `/sys/fs`.
    pub(super) fn file_systems(&self) -> Vec<String> {
        let mounted = self.mounts.iter().filter_map(|mount| {
            let device = self.device_at(&mount.point)?;
            mount
                .device_node()
                .is_none()
                .then(|| (mount.fs.clone(), device))
        });
        mounted
            .chain(self.pinned.iter().cloned())
            .map(|(fs, device)| match fs.as_str() {
                "btrfs" => format!("/sys/fs/btrfs/f5/devices/{device}/x"),
                _ => format!("/sys/fs/{fs}/{device}/x"),
            })
            .collect()
    }
}

/// The kernel's name of a mount's device.
pub(super) fn device_of(mount: &Mount) -> Option<String> {
    let name = mount.device_node().unwrap_or(&mount.source);
    let name = name.rsplit('/').next()?;
    Some(if multipath::is_map(&mount.source) || name == "dm-0" {
        "dm-0".to_owned()
    } else {
        name.to_owned()
    })
}
