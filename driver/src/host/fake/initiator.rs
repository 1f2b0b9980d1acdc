//! The fake machine's open-iscsi: iscsiadm, its records, and defaults of `iscsid.conf` that all differ from the driver's
//! settings.

use std::collections::BTreeSet;

use super::exit::{exited, printed};
use super::{DeviceNumber, Exit, Machine, SessionState, disk_of, multipath};
use crate::publication::Portal;

/// The directory of its records.
pub(super) const NODES: &str = "/etc/iscsi/nodes";
/// The target of another product's record, which this release cannot read.
const FOREIGN: &str = "iqn.2001-05.com.example:array-7";
/// The text of a new record.
const NEW_RECORD: &str = "# BEGIN RECORD
node.startup = automatic
node.leading_login = Yes
node.session.nr_sessions = 2
node.session.reopen_max = 5
node.session.scan = auto
node.session.initial_login_retry_max = 8
node.session.timeo.replacement_timeout = 5
node.session.auth.authmethod = None
node.conn[0].startup = automatic
node.conn[0].timeo.login_timeout = 120
# END RECORD
";

impl Machine {
    /// The name and number of a device node, and one of its sessions.
    pub(super) fn block_at(&self, device: &str) -> Option<(String, DeviceNumber, &SessionState)> {
        if let Some(map) = self.map.as_ref().filter(|_| multipath::is_map(device)) {
            let path = map.paths.iter().find_map(|id| self.sessions.get(id))?;
            return Some(("dm-0".to_owned(), multipath::NUMBER, path));
        }
        let (id, session) = self.session_of_node(device)?;
        let (name, number) = disk_of(id);
        Some((name, number, session))
    }

    /// True if the device is a path of the map, and therefore cannot be mounted or opened exclusively.
    pub(super) fn is_path(&self, device: &str) -> bool {
        let below = |map: &multipath::MapState| {
            let node = |id: &u32| format!("/dev/{}", disk_of(*id).0);
            map.paths.iter().any(|id| node(id) == device)
        };
        self.map.as_ref().is_some_and(below)
    }

    pub(super) fn session_of_node(&self, device: &str) -> Option<(u32, &SessionState)> {
        let mut with_disk = self
            .sessions
            .iter()
            .filter(|(_, session)| session.seen.is_some());
        with_disk
            .find(|(id, _)| format!("/dev/{}", disk_of(**id).0) == device)
            .map(|(id, session)| (*id, session))
    }

    /// Rescans every session.
    pub(super) fn rescan_all(&mut self) {
        for session in self.sessions.values_mut() {
            session.seen = self
                .targets
                .get(&session.target)
                .cloned()
                .or(session.seen.take());
        }
    }

    /// Rescans one session. If the target does not answer, this is not reported, and the cached view stays.
    pub(super) fn rescan(&mut self, id: u32) {
        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        let answer = self.targets.get(&session.target);
        let answer = answer.filter(|_| !self.dead.contains(&session.portal));
        session.alive = answer.is_some();
        session.seen = answer.cloned().or(session.seen.take());
    }

    pub(super) fn log_in(&mut self, iqn: &str, portal: &str) -> bool {
        let target = self.targets.get(iqn).filter(|target| !target.lingering);
        let Some(target) = target.cloned() else {
            return false;
        };
        let id = self.free_number();
        self.sessions.insert(
            id,
            SessionState {
                target: iqn.to_owned(),
                alive: true,
                seen: Some(target),
                portal: portal.to_owned(),
                offline: false,
            },
        );
        self.add_new_disk();
        true
    }

    pub(super) fn iscsiadm(&mut self, words: &[&str]) -> Exit {
        let after = |option: &str| {
            words
                .iter()
                .position(|word| *word == option)
                .map(|at| words[at + 1].to_owned())
        };
        let id = after("-r").map(|id| id.parse::<u32>().unwrap());
        let iqn = after("-T").unwrap_or_default();
        let file = after("-p").map(|portal| record_path(&iqn, &portal));
        if words[1] == "node" && self.locked.is_some() {
            // Since 2.1.10 it waits 30 s and then fails, leaving the lock in place.
            return Exit {
                stderr: "iscsiadm: Timeout on acquiring lock on DB: /run/lock/iscsi/lock.write: 17: File exists\n".to_owned(),
                ..exited(6)
            };
        }
        match (words[1], id, words.last().copied().unwrap()) {
            ("session", Some(id), "--rescan") if self.sessions.contains_key(&id) => {
                self.rescan(id);
                exited(0)
            }
            ("session", Some(_), "--rescan") => exited(22),
            ("session", Some(id), "--logout") => exited(if self.log_out(id) { 0 } else { 22 }),
            ("node", None, "new") if self.truncated_records.contains(&iqn) => exited(6),
            ("node", None, "new") => {
                self.files.insert(file.unwrap(), NEW_RECORD.into());
                self.records.insert(iqn);
                exited(0)
            }
            ("node", None, _) if words.contains(&"update") => {
                exited(if self.update(&file.unwrap(), words) {
                    0
                } else {
                    21
                })
            }
            ("node", None, "--login") => self.login(&iqn, &after("-p").unwrap(), &file.unwrap()),
            // As in open-iscsi, a record with a session cannot be deleted.
            ("node", None, "delete") if file.is_some() => {
                let portal = after("-p").unwrap();
                let same = |it: &SessionState| it.target == iqn && it.portal == portal;
                if self.sessions.values().any(same) {
                    return exited(15);
                }
                let path = file.unwrap();
                let gone = self.files.remove(&path).is_some();
                self.forget_record(&path);
                exited(if gone { 0 } else { 21 })
            }
            ("node", None, "delete") if self.sessions.values().any(|it| it.target == iqn) => {
                exited(15)
            }
            // "Could not stat /etc/iscsi/nodes/IQN/,3260,-1/default to delete node" (2.1.8); of an empty file: 21.
            ("node", None, "delete") if self.truncated_records.contains(&iqn) => exited(6),
            ("node", None, "delete") => {
                let folder = format!("{NODES}/{iqn}/");
                self.files.retain(|path, _| !path.starts_with(&folder));
                exited(if self.records.remove(&iqn) { 0 } else { 21 })
            }
            ("node", None, "node") if self.elsewhere.is_none() => Exit {
                stderr: format!(
                    "iSCSI ERROR: config file {NODES}/{FOREIGN}/10.0.0.9,3260 invalid.\n"
                ),
                ..exited(7)
            },
            ("node", None, "node") => match self.elsewhere.clone().unwrap() {
                listed if listed.is_empty() => exited(21),
                listed => printed(listed),
            },
            _ => panic!("the fake iscsiadm does not know {words:?}"),
        }
    }

    fn update(&mut self, file: &str, words: &[&str]) -> bool {
        let Some(text) = self.files.get_mut(file) else {
            return false;
        };
        let mut lines: Vec<String> = String::from_utf8_lossy(text)
            .lines()
            .map(str::to_owned)
            .collect();
        for pair in words.windows(4).filter(|pair| pair[0] == "-n") {
            let key = format!("{} = ", pair[1]);
            let line = lines.iter_mut().find(|line| line.starts_with(&key));
            *line.unwrap_or_else(|| panic!("a record has no {}", pair[1])) = key + pair[3];
        }
        *text = (lines.join("\n") + "\n").into_bytes();
        true
    }

    fn login(&mut self, iqn: &str, portal: &str, file: &str) -> Exit {
        let Some(text) = self.files.get(file) else {
            return exited(21);
        };
        let count = String::from_utf8_lossy(text)
            .lines()
            .find_map(|line| {
                line.strip_prefix("node.session.nr_sessions = ")?
                    .parse()
                    .ok()
            })
            .unwrap_or(1_usize);
        let same = |session: &SessionState| session.target == iqn && session.portal == portal;
        if self.sessions.values().filter(|it| same(it)).count() >= count {
            return exited(15);
        }
        if self.dead.contains(portal) {
            return exited(8);
        }
        if !self.is_authenticated(iqn) {
            return exited(24);
        }
        for _ in 0..count {
            if !self.log_in(iqn, portal) {
                return exited(19);
            }
            // node.session.scan is manual.
            let newest = self.sessions.values_mut().rfind(|session| same(session));
            newest.unwrap().seen = None;
        }
        exited(0)
    }

    /// True if the target requires no CHAP, or the record has its user and password.
    fn is_authenticated(&self, iqn: &str) -> bool {
        let Some((user, password)) = &self.chap else {
            return true;
        };
        let folder = format!("{NODES}/{iqn}/");
        let records = self
            .files
            .iter()
            .filter(|(path, _)| path.starts_with(&folder));
        let wanted = [
            "node.session.auth.authmethod = CHAP".to_owned(),
            format!("node.session.auth.username = {user}"),
            format!("node.session.auth.password = {password}"),
        ];
        records
            .map(|(_, text)| String::from_utf8_lossy(text))
            .any(|text| {
                wanted
                    .iter()
                    .all(|line| text.lines().any(|present| present == line))
            })
    }

    /// The names in the directory of all records.
    pub(super) fn record_names(&self) -> BTreeSet<String> {
        let mut names = self.records.clone();
        names.insert(FOREIGN.to_owned());
        names
    }

    /// Forgets a target if the removed file was its last record.
    pub(super) fn forget_record(&mut self, path: &str) {
        let Some(rest) = path.strip_prefix(NODES) else {
            return;
        };
        let iqn = rest.trim_matches('/').split('/').next().unwrap_or_default();
        let folder = format!("{NODES}/{iqn}/");
        if !self.files.keys().any(|file| file.starts_with(&folder)) {
            self.records.remove(iqn);
            self.truncated_records.remove(iqn);
        }
    }
}

fn record_path(iqn: &str, portal: &str) -> String {
    let portal: Portal = portal.parse().unwrap();
    format!("{NODES}/{iqn}/{},{}", portal.address(), portal.port())
}
