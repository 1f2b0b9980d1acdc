//! The fake machine's `/sys` tree, and its mount table.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io;

use super::cache::device_of;
use super::{Fake, FsFailure, MOUNTINFO, Machine, Mount, absent, disk_of, initiator, io_error};
use crate::host::{Entry, HostError, KernelFiles};

impl Machine {
    /// The names in a directory.
    pub(super) fn list(&mut self, path: &str) -> Result<Vec<String>, HostError> {
        let prefix = format!("{path}/");
        self.queries += 1;
        if self.unreadable_paths.contains(path) {
            return Err(io_error(path, io::ErrorKind::PermissionDenied));
        }
        if path == initiator::NODES && self.elsewhere.is_none() {
            return Ok(self.record_names().into_iter().collect());
        }
        let tree = if path.starts_with("/sys/") {
            self.tree(path)
        } else {
            BTreeMap::new()
        };
        let names: BTreeSet<&str> = tree
            .keys()
            .chain(self.files.keys())
            .filter_map(|file| file.strip_prefix(&prefix)?.split('/').next())
            .collect();
        if names.is_empty() {
            absent(path)
        } else {
            Ok(names.into_iter().map(str::to_owned).collect())
        }
    }

    /// `/proc/self/mountinfo`.
    pub(super) fn mount_table(&self) -> Vec<u8> {
        let lines: String = self
            .mounts
            .iter()
            .map(|mount| {
                // Not `death_at`, because another mount may hide this one.
                let device = device_of(mount);
                let death = device.and_then(|device| self.deaths.get(&device));
                mountinfo_line(mount, death.copied())
            })
            .collect();
        lines.into_bytes()
    }

    /// The files of `/sys` below or at `path`, and possibly more.
    pub(super) fn tree(&self, path: &str) -> BTreeMap<String, Vec<u8>> {
        let mut tree = BTreeMap::new();
        let only_id = ["/session", "/connection"].iter().find_map(|kind| {
            let (_, rest) = path.split_once(kind)?;
            let digits = rest.split(|it: char| !it.is_ascii_digit()).next()?;
            digits.parse::<u32>().ok()
        });
        tree.insert("/sys/class/block/sda/dev".to_owned(), b"8:0\n".to_vec());
        let wanted = |id: &u32| only_id.is_none_or(|one| one == *id);
        for (id, session) in self.sessions.iter().filter(|(id, _)| wanted(id)) {
            let base = format!("/sys/class/iscsi_session/session{id}");
            tree.insert(
                format!("{base}/targetname"),
                format!("{}\n", session.target).into_bytes(),
            );
            tree.insert(
                format!("{base}/state"),
                if session.alive {
                    "LOGGED_IN\n"
                } else {
                    "FAILED\n"
                }
                .into(),
            );
            let (address, port) = session.portal.rsplit_once(':').unwrap();
            let connection = format!("/sys/class/iscsi_connection/connection{id}:0");
            tree.insert(
                format!("{connection}/persistent_address"),
                format!("{}\n", address.trim_matches(['[', ']'])).into_bytes(),
            );
            tree.insert(
                format!("{connection}/persistent_port"),
                format!("{port}\n").into_bytes(),
            );
            let Some(seen) = &session.seen else { continue };
            let (name, number) = disk_of(*id);
            let unit = format!("{base}/device/target4:0:0/4:0:0:{}", seen.lun);
            tree.insert(
                format!("{unit}/state"),
                match (session.alive, self.offline || session.offline) {
                    (true, true) => "offline\n",
                    (true, false) => "running\n",
                    (false, _) => "transport-offline\n",
                }
                .into(),
            );
            let page = [
                &[0, 0x80, 0, u8::try_from(seen.serial.len()).unwrap()],
                seen.serial.as_bytes(),
            ]
            .concat();
            tree.insert(
                format!("/sys/class/block/{name}/device/vpd_pg80"),
                page.clone(),
            );
            tree.insert(format!("{unit}/vpd_pg80"), page);
            tree.insert(
                format!("{unit}/block/{name}/size"),
                format!("{}\n", seen.size.0 / 512).into_bytes(),
            );
            tree.insert(
                format!("{unit}/block/{name}/ro"),
                if self.protected { "1\n" } else { "0\n" }.into(),
            );
            for link in [
                format!("{unit}/block/{name}/dev"),
                format!("/sys/class/block/{name}/dev"),
            ] {
                tree.insert(link, format!("{number}\n").into_bytes());
            }
        }
        if path.starts_with("/sys/fs") {
            tree.extend(self.file_systems().into_iter().map(|file| (file, vec![])));
        }
        if let Some(map) = &self.map {
            map.show(self.protected, &mut tree);
        }
        tree
    }
}

impl KernelFiles for Fake {
    fn read(&self, path: &str) -> Result<Vec<u8>, HostError> {
        let mut machine = self.machine();
        machine.queries += 1;
        if machine.unreadable_paths.contains(path) {
            return Err(io_error(path, io::ErrorKind::PermissionDenied));
        }
        let found = match path {
            MOUNTINFO => Some(machine.mount_table()),
            _ => machine.files.get(path).cloned(),
        };
        found
            .or_else(|| machine.tree(path).remove(path))
            .map_or_else(|| absent(path), Ok)
    }

    /// The inode number is a hash of the identifying files, so that a new object with an old name has another number.
    fn entries(&self, path: &str) -> Result<Vec<Entry>, HostError> {
        let mut machine = self.machine();
        let names = machine.list(path)?;
        let tree = machine.tree(path);
        let entry = |name: String| {
            let mut hasher = DefaultHasher::new();
            for file in ["targetname", "dm/uuid", "dev"] {
                tree.get(&format!("{path}/{name}/{file}")).hash(&mut hasher);
            }
            let inode = hasher.finish();
            Entry { name, inode }
        };
        Ok(names.into_iter().map(entry).collect())
    }
}

fn mountinfo_line(mount: &Mount, death: Option<FsFailure>) -> String {
    let death = death.filter(|_| mount.device_node().is_none());
    let Mount {
        device,
        root,
        point,
        options,
        fs,
        source,
        fs_options,
    } = mount;
    let mut fs_options = fs_options.clone();
    match death {
        Some(FsFailure::Emergency) => fs_options.push("emergency_ro".to_owned()),
        Some(FsFailure::ReadOnly) => "ro".clone_into(&mut fs_options[0]),
        Some(FsFailure::ShutDown) | None => {}
    }
    format!(
        "1 1 {device} {root} {point} {} - {fs} {source} {}\n",
        options.join(","),
        fs_options.join(",")
    )
}
