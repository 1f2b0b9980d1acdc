//! What pods see of disks: a page cache for each disk that is in use, which may be out of date, and is written back when the kernel
//! gets round to it. And what the kernel does when it is told to by way of sysfs.

use std::io;

use super::test_api::DATA;
use super::{
    BLOCK, Fake, HostError, Machine, Mount, Span, Target, UUID, absent, disk_of, io_error,
    multipath,
};
use crate::publication::Iqn;
use crate::volume::Bytes;

/// The pages of one disk that hold a pod's data.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cache {
    /// As read or written last.
    clean: Option<u64>,
    /// Written by a pod and not yet on the disk.
    dirty: Option<u64>,
}

impl Fake {
    /// A pod writes through the mount at `point` and syncs. False: it could not.
    pub fn write_data(&self, point: &str, data: u64) -> bool {
        let mut world = self.machine();
        let Some(device) = world.writable(point) else {
            return false;
        };
        let written = Cache {
            clean: Some(data),
            dirty: None,
        };
        world.caches.insert(device.clone(), written);
        world.put(&device, data)
    }

    /// A pod writes through the mount at `point` and does not sync: it waits in the page cache, whether or not the target answers.
    pub fn write_unsynced(&self, point: &str, data: u64) -> bool {
        let mut world = self.machine();
        let Some(device) = world.writable(point) else {
            return false;
        };
        world.caches.entry(device).or_default().dirty = Some(data);
        true
    }

    /// A pod reads through the mount at `point`: what is cached, else what is on the disk. `None`: it could not.
    pub fn read_data(&self, point: &str) -> Option<u64> {
        let mut world = self.machine();
        let device = world.device_at(point)?;
        let read = world.get(&device)?;
        let cache = world.caches.entry(device).or_default();
        if cache.clean.is_none() {
            cache.clean = Some(read);
        }
        cache.dirty.or(cache.clean)
    }

    /// Somebody else in a mount namespace of his own has what is mounted at `point`.
    pub(crate) fn pin(&self, point: &str) {
        let mut world = self.machine();
        let mount = world.mounts.iter().rfind(|mount| mount.point == point);
        let (fs, device) = (mount.unwrap().fs.clone(), world.device_at(point).unwrap());
        world.pinned.insert((fs, device));
    }

    /// The volume is taken from this node without its knowing, and given back to it: its target bears another name.
    pub(crate) fn publish_anew(&self) {
        self.machine().targets.clear();
        self.come_back();
    }

    /// The LUN is published to this node under a name that it never had.
    pub(crate) fn come_back(&self) {
        self.machine().publications += 1;
        let iqn = self.iqn().to_string();
        self.call_target(&iqn);
    }

    /// The LUN is exported by one target of this name.
    pub(crate) fn call_target(&self, iqn: &str) {
        let mut world = self.machine();
        world.targets.clear();
        world.targets.insert(iqn.to_owned(), lun());
        world.sessions_live_or_die();
    }

    /// The target side has deleted the target and goes on serving its session.
    pub(crate) fn keep_session_with(&self, iqn: &str) {
        let mut world = self.machine();
        world.targets.insert(iqn.to_owned(), lun());
        world.sessions_live_or_die();
    }

    /// The name of the publication before.
    pub(crate) fn iqn_before(&self) -> Iqn {
        self.machine().publications -= 1;
        let iqn = self.iqn();
        self.machine().publications += 1;
        iqn
    }

    /// The LUN is published anew, and the session with the target before goes on; the name of that.
    pub(crate) fn iqn_now_and_kept(&self) -> String {
        let kept = self.iqn().to_string();
        self.come_back();
        self.keep_session_with(&kept);
        kept
    }

    /// Another node with the same LUN published to it.
    #[must_use]
    pub(crate) fn beside_with_lun(&self) -> Self {
        let other = Self::with_lun();
        other.machine().content = std::sync::Arc::clone(&self.machine().content);
        other.machine().multipathd = None;
        other
    }
}

/// What stands behind the target of [`Fake::with_lun`].
pub(crate) fn lun() -> Target {
    Target {
        serial: UUID.to_owned(),
        size: Bytes::GIB,
        lun: 1,
        lingering: false,
    }
}

impl Machine {
    /// A number that no session has, nor a disk that somebody still holds.
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

    /// A session whose target is gone is dead. One whose target is back lives, and what has waited for it is written.
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

    /// The unit behind a device, if it answers.
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

    /// Writes what waits, if the disk takes it.
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

    /// The last mount of a device goes, and its file system with it.
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

    /// Removes the uppermost mount at `point`.
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

    /// The kernel flushes a disk before it removes it.
    pub(crate) fn log_out(&mut self, id: u32) -> bool {
        let device = disk_of(id).0;
        self.write_back(&device);
        self.lose_path(id);
        self.offline = false;
        self.sessions.remove(&id).is_some()
    }

    /// Writing to a file of sysfs makes the kernel do something.
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
                self.see_units();
                Ok(())
            }
        }
    }

    /// Only a disk that runs may be taken offline; one that waits for its target, or has given it up, may not.
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

    /// What `/sys/fs` shows.
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

/// The kernel's name of the device of a mount.
pub(super) fn device_of(mount: &Mount) -> Option<String> {
    let name = mount.device_node().unwrap_or(&mount.source);
    let name = name.rsplit('/').next()?;
    Some(if multipath::is_map(&mount.source) || name == "dm-0" {
        "dm-0".to_owned()
    } else {
        name.to_owned()
    })
}
