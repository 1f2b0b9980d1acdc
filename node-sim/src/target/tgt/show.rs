//! PURE: parsers of the output of `tgtadm --op show`.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::argv::Account;
use crate::target::Session;

/// The actual state of a target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TgtState {
    pub(super) tid: u32,
    pub(super) iqn: String,
    pub(super) sessions: Vec<Session>,
    /// Without LUN 0, which is the daemon's controller.
    pub(super) units: BTreeMap<u16, Unit>,
    pub(super) accounts: Vec<Account>,
    /// Logins of any initiator are allowed.
    pub(super) admits: bool,
}

/// The actual state of a unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) scsi_id: String,
    pub(super) serial: String,
    pub(super) online: bool,
    pub(super) file: String,
    /// In millions of bytes, rounded.
    pub(super) megabytes: u64,
    /// It announces support for UNMAP.
    pub(super) thin: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Section {
    Other,
    Nexus,
    Units,
    Accounts,
    Acl,
}

/// Parses `--mode target`: indented blocks of `key: value`.
pub(super) fn targets(text: &str) -> io::Result<Vec<TgtState>> {
    let mut targets: Vec<TgtState> = Vec::new();
    let (mut section, mut lun) = (Section::Other, 0);
    for line in text.lines() {
        let words = line.trim();
        let depth = line.len() - line.trim_start().len();
        let (key, value) = words.split_once(": ").unwrap_or((words, ""));
        if depth == 0 && key.starts_with("Target ") {
            let tid = key.trim_start_matches("Target ").parse();
            targets.push(TgtState {
                tid: tid.map_err(|_| unexpected(line))?,
                iqn: value.to_owned(),
                ..TgtState::default()
            });
            continue;
        }
        let Some(target) = targets.last_mut() else {
            return Err(unexpected(line));
        };
        if depth == 4 {
            section = match words {
                "I_T nexus information:" => Section::Nexus,
                "LUN information:" => Section::Units,
                "Account information:" => Section::Accounts,
                "ACL information:" => Section::Acl,
                _ => Section::Other,
            };
            continue;
        }
        match (section, key) {
            (Section::Nexus, "Initiator") => target.sessions.push(Session {
                initiator: value.split(" alias: ").next().unwrap_or(value).to_owned(),
                address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            }),
            (Section::Nexus, "IP Address") => {
                if let (Some(session), Ok(address)) = (
                    target.sessions.last_mut(),
                    value.trim_matches(['[', ']']).parse(),
                ) {
                    session.address = address;
                }
            }
            (Section::Units, "LUN") => {
                lun = value.parse().map_err(|_| unexpected(line))?;
                if lun != 0 {
                    target.units.insert(lun, Unit::default());
                }
            }
            (Section::Units, _) => {
                if let Some(unit) = target.units.get_mut(&lun) {
                    unit.read(key, value).ok_or_else(|| unexpected(line))?;
                }
            }
            (Section::Accounts, _) => target.accounts.push(account(words)),
            (Section::Acl, "ALL") => target.admits = true,
            (Section::Acl | Section::Nexus | Section::Other, _) => {}
        }
    }
    Ok(targets)
}

impl Unit {
    fn read(&mut self, key: &str, value: &str) -> Option<()> {
        match key {
            "SCSI ID" => value.clone_into(&mut self.scsi_id),
            "SCSI SN" => value.clone_into(&mut self.serial),
            "Online" => self.online = value == "Yes",
            "Thin-provisioning" => self.thin = value == "Yes",
            "Backing store path" => value.clone_into(&mut self.file),
            // `Size: 1074 MB, Block size: 512`
            "Size" => self.megabytes = value.split(" MB").next()?.parse().ok()?,
            _ => {}
        }
        Some(())
    }
}

fn account(words: &str) -> Account {
    let incoming = words.strip_suffix(" (outgoing)");
    Account {
        user: incoming.unwrap_or(words).to_owned(),
        outgoing: incoming.is_some(),
    }
}

/// Parses `--mode account`: a header, then one name per line.
pub(super) fn accounts(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.strip_prefix("    "))
        .map(|name| name.trim_end().to_owned())
        .collect()
}

/// Parses `--mode portal`: `Portal: 10.9.0.1:3260,1`, the last number being the portal group tag.
pub(super) fn portals(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| line.strip_prefix("Portal: "))
        .filter_map(|portal| portal.rsplit_once(',')?.0.parse().ok())
        .collect()
}

fn unexpected(line: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("unexpected output of tgtadm: {line:?}"),
    )
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Recorded from tgt 1.0.85.
    pub(in super::super) const RECORDED: &str = "\
Target 1: iqn.2000-01.com.synology:t1
    System information:
        Driver: iscsi
        State: ready
    I_T nexus information:
        I_T nexus: 1
            Initiator: iqn.1993-08.org.debian:01:vm alias: (none)
            Connection: 0
                IP Address: 10.9.0.1
    LUN information:
        LUN: 0
            Type: controller
            SCSI ID: IET     00010000
            SCSI SN: beaf10
            Size: 0 MB, Block size: 1
            Online: Yes
            Removable media: No
            Prevent removal: No
            Readonly: No
            SWP: No
            Thin-provisioning: No
            Backing store type: null
            Backing store path: None
            Backing store flags: 
        LUN: 1
            Type: disk
            SCSI ID: 3600140513a3cd1edf296d4d4bdb712da
            SCSI SN: 13a3cd1e-f296-4d4b-b712-a85c139f9dac
            Size: 1074 MB, Block size: 512
            Online: Yes
            Removable media: No
            Prevent removal: No
            Readonly: No
            SWP: No
            Thin-provisioning: Yes
            Backing store type: rdwr
            Backing store path: /run/f1
            Backing store flags: 
    Account information:
        joe
        nas (outgoing)
    ACL information:
        ALL
Target 7: iqn.2000-01.com.synology:t2
    System information:
        Driver: iscsi
        State: ready
    I_T nexus information:
    LUN information:
        LUN: 0
            Type: controller
    Account information:
    ACL information:
";

    #[test]
    fn recorded_targets_are_parsed() {
        let shown = targets(RECORDED).unwrap();
        let unit = Unit {
            scsi_id: "3600140513a3cd1edf296d4d4bdb712da".into(),
            serial: "13a3cd1e-f296-4d4b-b712-a85c139f9dac".into(),
            online: true,
            file: "/run/f1".into(),
            megabytes: 1074,
            thin: true,
        };
        let account = |user: &str, outgoing| Account {
            user: user.into(),
            outgoing,
        };
        let first = TgtState {
            tid: 1,
            iqn: "iqn.2000-01.com.synology:t1".into(),
            sessions: vec![Session {
                initiator: "iqn.1993-08.org.debian:01:vm".into(),
                address: "10.9.0.1".parse().unwrap(),
            }],
            units: BTreeMap::from([(1, unit)]),
            accounts: vec![account("joe", false), account("nas", true)],
            admits: true,
        };
        let second = TgtState {
            tid: 7,
            iqn: "iqn.2000-01.com.synology:t2".into(),
            ..TgtState::default()
        };
        assert_eq!(shown, [first, second]);
        assert_eq!(targets("").unwrap(), []);
    }

    #[test]
    fn unexpected_output_is_an_error() {
        for text in [
            "Target x: iqn.t\n",
            "    LUN information:\n",
            "Target 1: iqn.t\n    LUN information:\n        LUN: one\n",
            "Target 1: iqn.t\n    LUN information:\n        LUN: 1\n            Size: huge\n",
        ] {
            assert!(targets(text).is_err(), "{text}");
        }
    }

    #[test]
    fn accounts_and_portals() {
        assert_eq!(
            accounts("Account list:\n    nas\n    joe\n"),
            ["nas", "joe"]
        );
        let portal = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert_eq!(
            portals("Portal: 10.9.1.1:3260,1\nPortal: [::1]:3261,1\n"),
            [portal("10.9.1.1:3260"), portal("[::1]:3261")]
        );
    }
}
