//! open-iscsi's node records as files: their paths, and the CHAP settings, which must not be on a command line. Pure.
//!
//! ```text
//! /etc/iscsi/nodes/<iqn>/<address>,<port>                  created by `--op new`
//! /etc/iscsi/nodes/<iqn>/<address>,<port>,<tpgt>/<iface>   created by a discovery
//! ```
//! Seen with open-iscsi 2.1.8. A last line without a newline is ignored; a record that has lost its portal this way (a power cut:
//! iscsiadm does not sync) is listed as `[]:3260,…`, and can be neither deleted nor re-created: exit status 6. If any record has
//! a setting that this release does not know, `-m node` exits with 7 and lists nothing. A file next to the folders in `nodes`
//! makes every `-m node` fail: so a record is replaced atomically, and its temporary file is in [`DATABASES`] itself.

use std::net::{IpAddr, SocketAddr};

use secrecy::{ExposeSecret as _, SecretString};

use crate::chap::{Account, Chap, PASSWORD, PASSWORD_IN, USERNAME, USERNAME_IN};
use crate::publication::{Iqn, Portal};

/// The directories of the database: of Debian and SUSE, then of Fedora.
pub const DATABASES: [&str; 2] = ["/etc/iscsi", "/var/lib/iscsi"];
/// The lock of the database: a hard link to the file `lock` next to it. A process creates it before it accesses records and
/// removes it afterwards. A killed process leaves it behind; open-iscsi waits 30 s for it, and then ignores it (until 2.1.9) or
/// fails (since).
pub const LOCK: &str = "/run/lock/iscsi/lock.write";
/// Prefix of the temporary files that become records.
pub const TEMP_PREFIX: &str = ".synology-csi-";

/// iscsid must never give up a session: only the driver ends sessions, and a NAS may be unreachable for long. open-iscsi before
/// 2.0.877 does not know the setting, and cannot read a record that has it.
pub const REOPEN: (&str, &str) = ("node.session.reopen_max", "0");

const METHOD: &str = "node.session.auth.authmethod";
const END: &str = "# END RECORD";

/// The directory of all records of a database.
pub fn nodes(database: &str) -> String {
    format!("{database}/nodes")
}

/// The directory of a target's records.
pub fn folder(database: &str, iqn: &Iqn) -> String {
    format!("{database}/nodes/{iqn}")
}

/// The file name of the record that `--op new` creates for a portal.
pub fn name(portal: &Portal) -> String {
    format!("{},{}", portal.address(), portal.port())
}

/// The portal of a record, by its file name; `None` if the record was not created by `--op new`.
pub fn portal(name: &str) -> Option<Portal> {
    let (address, port) = name.rsplit_once(',')?;
    let address: IpAddr = address.parse().ok()?;
    Some(SocketAddr::new(address, port.parse().ok()?).into())
}

/// The path of the temporary file that becomes a record of this target.
pub fn temp_path(database: &str, iqn: &Iqn) -> String {
    format!("{database}/{TEMP_PREFIX}{iqn}")
}

/// The record's text with exactly these CHAP settings, and with [`REOPEN`] if it has that setting; `None` if nothing changes.
pub fn with_auth(text: &str, chap: Option<&Chap>) -> Option<SecretString> {
    let key = |line: &str| line.split('=').next().unwrap_or_default().trim().to_owned();
    let is_managed = |line: &&str| {
        let ours = [
            METHOD,
            USERNAME,
            PASSWORD,
            USERNAME_IN,
            PASSWORD_IN,
            REOPEN.0,
        ];
        ours.contains(&key(line).as_str())
    };
    let present: Vec<&str> = text.lines().filter(is_managed).collect();
    let mut wanted = auth_lines(chap);
    if present.iter().any(|line| key(line) == REOPEN.0) {
        wanted.push(format!("{} = {}", REOPEN.0, REOPEN.1));
    }
    if present == wanted {
        return None;
    }
    let mut lines: Vec<&str> = text.lines().filter(|line| !is_managed(line)).collect();
    let end = lines
        .iter()
        .position(|line| line.trim() == END)
        .unwrap_or(lines.len());
    lines.splice(end..end, wanted.iter().map(String::as_str));
    Some(SecretString::from(lines.join("\n") + "\n"))
}

/// The first line of a record that contradicts one of these settings.
pub fn disagreeing<'a>(text: &'a str, settings: &[(&'static str, String)]) -> Option<&'a str> {
    text.lines().find(|line| {
        line.split_once('=').is_some_and(|(name, value)| {
            let wanted = settings.iter().find(|(key, _)| *key == name.trim());
            wanted.is_some_and(|(_, wanted)| *wanted != value.trim())
        })
    })
}

fn auth_lines(chap: Option<&Chap>) -> Vec<String> {
    let Some(chap) = chap else {
        return vec![format!("{METHOD} = None")];
    };
    let pair = |name: &str, password: &str, account: &Account| {
        [
            format!("{name} = {}", account.user),
            format!("{password} = {}", account.password.expose_secret()),
        ]
    };
    let mut lines = vec![format!("{METHOD} = CHAP")];
    lines.extend(pair(USERNAME, PASSWORD, &chap.initiator));
    if let Some(target) = &chap.target {
        lines.extend(pair(USERNAME_IN, PASSWORD_IN, target));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRESH: &str = "# BEGIN RECORD 2.1.8\nnode.name = iqn.x\nnode.session.auth.authmethod = None\nnode.session.auth.chap_algs = MD5\nnode.session.scan = manual\n# END RECORD\n";

    fn chap(mutual: bool) -> Chap {
        let account = |user: &str, password: &str| Account {
            user: user.to_owned(),
            password: password.into(),
        };
        Chap {
            initiator: account("alice", "planted=12345"),
            target: mutual.then(|| account("nas", "planted-67890")),
        }
    }

    #[test]
    fn a_record_is_compared_with_its_settings() {
        let settings = [("node.session.scan", "manual".to_owned())];
        assert_eq!(disagreeing(FRESH, &settings), None);
        let other = FRESH.replace("scan = manual", "scan = auto");
        assert_eq!(
            disagreeing(&other, &settings),
            Some("node.session.scan = auto")
        );
        assert_eq!(disagreeing("node.session.scanner = x\n", &settings), None);
    }

    #[test]
    fn chap_settings_are_added_and_removed() {
        assert!(with_auth(FRESH, None).is_none(), "nothing to change");
        let both = with_auth(FRESH, Some(&chap(true))).unwrap();
        assert_eq!(
            both.expose_secret(),
            "# BEGIN RECORD 2.1.8\nnode.name = iqn.x\nnode.session.auth.chap_algs = MD5\nnode.session.scan = manual\n\
             node.session.auth.authmethod = CHAP\nnode.session.auth.username = alice\nnode.session.auth.password = planted=12345\n\
             node.session.auth.username_in = nas\nnode.session.auth.password_in = planted-67890\n# END RECORD\n"
        );
        assert!(with_auth(both.expose_secret(), Some(&chap(true))).is_none());
        let one = with_auth(both.expose_secret(), Some(&chap(false))).unwrap();
        assert!(!one.expose_secret().contains("_in"));
        let none = with_auth(one.expose_secret(), None).unwrap();
        assert!(
            !none.expose_secret().contains("planted") && !none.expose_secret().contains("alice")
        );
        assert_eq!(none.expose_secret().lines().last(), Some(END));
        assert!(!format!("{both:?}").contains("planted"));
    }

    #[test]
    fn reopen_max_is_set_if_the_record_has_it() {
        let other = FRESH.replace("# END", "node.session.reopen_max = 5\n# END");
        let text = with_auth(&other, None).unwrap();
        assert!(
            text.expose_secret()
                .ends_with("node.session.reopen_max = 0\n# END RECORD\n")
        );
        assert!(with_auth(text.expose_secret(), None).is_none());
    }

    #[test]
    fn record_paths_are_those_of_open_iscsi() {
        let iqn: Iqn = "iqn.2000-01.com.synology:x".parse().unwrap();
        assert_eq!(
            folder(DATABASES[0], &iqn),
            "/etc/iscsi/nodes/iqn.2000-01.com.synology:x"
        );
        assert_eq!(name(&"10.0.0.5".parse().unwrap()), "10.0.0.5,3260");
        assert_eq!(name(&"[fd00::5]:3261".parse().unwrap()), "fd00::5,3261");
        for at in ["10.0.0.5:3260", "[fd00::5]:3261"] {
            let at: Portal = at.parse().unwrap();
            assert_eq!(portal(&name(&at)), Some(at));
        }
        for others in ["10.0.0.5,3260,1", "nas,3260", "default", "10.0.0.5,x"] {
            assert_eq!(portal(others), None, "{others}");
        }
        assert_eq!(
            temp_path(DATABASES[1], &iqn),
            "/var/lib/iscsi/.synology-csi-iqn.2000-01.com.synology:x"
        );
    }
}
