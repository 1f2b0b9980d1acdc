//! The fake machine's multipathd, and its only map.

use std::collections::BTreeMap;

use super::exit::{exited, printed};
use super::{Bytes, Cmd, DeviceNumber, Exit, Fake, Machine, UUID, disk_of};
use crate::host::dm_multipath::wwids;

pub(super) const NODE: &str = "/dev/dm-0";
/// The map's name in the mount table.
pub(super) const ALIAS: &str = "/dev/mapper/mpatha";
pub(super) const NUMBER: DeviceNumber = DeviceNumber {
    major: 253,
    minor: 0,
};

/// The configuration of multipathd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Daemon {
    /// It creates a map only on request.
    Strict,
    /// It creates a map over every new disk.
    Greedy,
    /// Its configuration excludes the disks.
    Excluding,
}

/// A multipath map.
#[derive(Clone, Debug)]
pub(crate) struct MapState {
    /// The numbers of the sessions of its paths.
    pub(crate) paths: Vec<u32>,
    pub(crate) size: Bytes,
    pub(crate) queueing: bool,
    /// The kernel name of a path to another LUN.
    pub(crate) foreign: Option<String>,
}

impl MapState {
    pub(super) fn show(&self, protected: bool, tree: &mut BTreeMap<String, Vec<u8>>) {
        let [wwid, _] = wwids(&UUID.parse().unwrap());
        let mut put = |name: &str, text: String| {
            tree.insert(
                format!("/sys/class/block/dm-0/{name}"),
                format!("{text}\n").into_bytes(),
            );
        };
        put("dev", NUMBER.to_string());
        put("size", (self.size.0 / 512).to_string());
        put("ro", u8::from(protected).to_string());
        put("dm/name", "mpatha".to_owned());
        put("dm/uuid", format!("mpath-{wwid}"));
        for name in self.names() {
            put(&format!("slaves/{name}/dev"), String::new());
        }
        let dirs = tree.keys().filter_map(|file| file.strip_suffix("/size"));
        let below = |dir: &&str| {
            let name = dir.rsplit_once("/block/").map(|(_, name)| name);
            name.is_some_and(|name| self.names().iter().any(|path| path == name))
        };
        let holders: Vec<String> = dirs
            .filter(below)
            .map(|dir| format!("{dir}/holders/dm-0"))
            .collect();
        tree.extend(holders.into_iter().map(|holder| (holder, vec![])));
    }

    fn names(&self) -> Vec<String> {
        let own = self.paths.iter().map(|id| disk_of(*id).0);
        own.chain(self.foreign.clone()).collect()
    }
}

pub(super) fn is_map(device: &str) -> bool {
    device == NODE || device == ALIAS
}

impl Fake {
    /// Starts multipathd with Debian's configuration.
    pub(crate) fn start_multipathd(&self) {
        self.machine().multipathd = Some(Daemon::Strict);
    }

    /// Creates a map over all disks.
    pub(crate) fn make_map(&self) {
        self.machine().make_map();
    }
}

impl Machine {
    pub(crate) fn make_map(&mut self) {
        let paths: Vec<u32> = self.sessions.keys().copied().collect();
        let seen = paths.first().and_then(|id| self.sessions[id].seen.as_ref());
        let Some(size) = seen.map(|seen| seen.size) else {
            return;
        };
        self.map = Some(MapState {
            paths,
            size,
            queueing: true,
            foreign: None,
        });
    }

    /// multipathd's reaction to a new disk: it adds the disk to an existing map at once.
    pub(super) fn add_new_disk(&mut self) {
        match (self.multipathd, &mut self.map) {
            (Some(Daemon::Strict | Daemon::Greedy), Some(map)) => {
                map.paths = self.sessions.keys().copied().collect();
            }
            (Some(Daemon::Greedy), None) => self.make_map(),
            _ => {}
        }
    }

    /// multipathd reloads the map with its configuration: it queues again, even after `disablequeueing` (multipath-tools 0.9.4:
    /// `reload [0 2097152 multipath 1 queue_if_no_path 0 0 0]` after `disablequeueing`).
    pub(super) fn lose_path(&mut self, id: u32) {
        if let Some(map) = self.map.as_mut().filter(|_| !self.keeps_paths) {
            map.paths.retain(|path| *path != id);
            map.queueing |= self.multipathd.is_some();
        }
    }

    /// True if a command blocks, because it waits for other logins or for a path.
    pub(super) fn blocks(&self, cmd: &Cmd) -> bool {
        let is_login = |line: &&String| line.ends_with("--login");
        let started = || self.log.iter().filter(is_login).count();
        let alone = is_login(&&cmd.to_string()) && started() < self.concurrent_logins;
        alone || self.waits_for_a_path(cmd)
    }

    /// The last unmount flushes the file system, and a map that queues blocks the writes as long as no path works.
    fn waits_for_a_path(&self, cmd: &Cmd) -> bool {
        let words: Vec<String> = cmd.to_string().split(' ').map(str::to_owned).collect();
        let [program, point] = words.as_slice() else {
            return false;
        };
        let of_map = |mount: &&super::Mount| mount.device_node().is_none() && is_map(&mount.source);
        let mut mounts = self.mounts.iter().filter(of_map);
        let last = mounts.next().filter(|_| mounts.next().is_none());
        program == "umount"
            && last.is_some_and(|mount| mount.point == *point)
            && self.map.as_ref().is_some_and(|map| map.queueing)
            && self.answering("dm-0").is_none()
    }

    pub(super) fn multipathd(&mut self, words: &[&str]) -> Exit {
        let Some(daemon) = self.multipathd else {
            return Exit {
                stderr: self.client_says.clone(),
                ..exited(1)
            };
        };
        let known = daemon != Daemon::Excluding;
        match (words, &mut self.map) {
            (["show", "daemon"], _) => printed("pid 375 idle\n".to_owned()),
            (["show", "paths", ..], _) => {
                let [wwid, _] = wwids(&UUID.parse().unwrap());
                let ids = self.sessions.keys().filter(|_| known);
                {
                    let lines: Vec<String> =
                        ids.map(|id| format!("{} {wwid}", disk_of(*id).0)).collect();
                    printed(lines.join(
                        "
",
                    ))
                }
            }
            (["add", "path", _], _) if !known => Exit {
                status: 1,
                ..printed("blacklisted\n".to_owned())
            },
            (["add", "map", _], None) if known => {
                self.make_map();
                printed("ok\n".to_owned())
            }
            (["add", "path", _], Some(map)) if known => {
                map.paths = self.sessions.keys().copied().collect();
                printed("ok\n".to_owned())
            }
            (["resize", "map", "dm-0"], Some(map)) => {
                let sizes = map
                    .paths
                    .iter()
                    .filter_map(|id| Some(self.sessions[id].seen.as_ref()?.size));
                map.size = sizes.min().unwrap_or(map.size);
                printed("ok\n".to_owned())
            }
            ([change, "map", "dm-0"], Some(map)) if change.ends_with("queueing") => {
                map.queueing = *change == "restorequeueing";
                printed("ok\n".to_owned())
            }
            _ => Exit {
                status: 1,
                ..printed("fail\n".to_owned())
            },
        }
    }

    pub(super) fn multipath(&mut self, words: &[&str]) -> Exit {
        let ["-f", "mpatha"] = words else {
            panic!("the fake multipath does not know {words:?}");
        };
        let used = self
            .mounts
            .iter()
            .any(|mount| mount.source == ALIAS || mount.device_node() == Some("dm-0"));
        // udev probes the map, and blocks as long as the map queues.
        let stuck = |map: &MapState| map.queueing && map.paths.is_empty();
        if self.claimed || used || self.map.as_ref().is_none_or(stuck) {
            return Exit {
                stderr: "mpatha: map in use".to_owned(),
                ..exited(1)
            };
        }
        self.map = None;
        exited(0)
    }
}
