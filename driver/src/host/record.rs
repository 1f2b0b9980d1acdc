//! open-iscsi's node records as files: where they lie, and the part of their text that no command line may carry. Pure.
//!
//! ```text
//! /etc/iscsi/nodes/<iqn>/<address>,<port>                  what `--op new` makes
//! /etc/iscsi/nodes/<iqn>/<address>,<port>,<tpgt>/<iface>   what a discovery makes
//! ```
//! Seen with open-iscsi 2.1.8. A last line without end is left out; a record that has lost its portal by that (a power cut: iscsiadm does
//! not sync) is listed as `[]:3260,…`, and can neither be deleted nor made anew: 6. A setting that this release does not know
//! makes `-m node` end with 7 and list nothing, whosever record has it. A file beside the folders of `nodes` stops every
//! `-m node`: so a record is replaced as a whole, by way of a file in [`DATABASES`] itself.

use std::net::{IpAddr, SocketAddr};

use secrecy::{ExposeSecret as _, SecretString};

use crate::chap::{Account, Chap, PASSWORD, PASSWORD_IN, USERNAME, USERNAME_IN};
use crate::publication::{Iqn, Portal};

/// Where distributions put the database: Debian and SUSE, then Fedora.
pub const DATABASES: [&str; 2] = ["/etc/iscsi", "/var/lib/iscsi"];
/// The lock of the database: a hard link to the file `lock` beside it, made by whoever works on records and removed afterwards.
/// One who is killed leaves it; open-iscsi waits 30 s for it, and then takes no notice of it (until 2.1.9) or fails (since).
pub const LOCK: &str = "/run/lock/iscsi/lock.write";
/// How the names of files begin that become records.
pub const TEMP_PREFIX: &str = ".synology-csi-";

/// iscsid never gives a session up: the driver ends sessions, and a NAS may be away for long. open-iscsi before 2.0.877 does not
/// know the setting, and would not read a record that has it.
pub const REOPEN: (&str, &str) = ("node.session.reopen_max", "0");

const METHOD: &str = "node.session.auth.authmethod";
const END: &str = "# END RECORD";

/// The folder of all records of a database.
pub fn nodes(database: &str) -> String {
    format!("{database}/nodes")
}

/// The folder of a target's records.
pub fn folder(database: &str, iqn: &Iqn) -> String {
    format!("{database}/nodes/{iqn}")
}

/// The name of the record that `--op new` makes for a portal.
pub fn name(portal: &Portal) -> String {
    format!("{},{}", portal.address(), portal.port())
}

/// The portal of a record that `--op new` has made, by the record's name; `None` for what somebody else has made.
pub fn portal(name: &str) -> Option<Portal> {
    let (address, port) = name.rsplit_once(',')?;
    let address: IpAddr = address.parse().ok()?;
    Some(SocketAddr::new(address, port.parse().ok()?).into())
}

/// The file that becomes a record of this target.
pub fn temp_path(database: &str, iqn: &Iqn) -> String {
    format!("{database}/{TEMP_PREFIX}{iqn}")
}

/// A record's text with [`REOPEN`] where it has that setting, and with these proofs and no others; `None` when that is what it
/// says already.
pub fn with_auth(text: &str, chap: Option<&Chap>) -> Option<SecretString> {
    let key = |line: &str| line.split('=').next().unwrap_or_default().trim().to_owned();
    let own = |line: &&str| {
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
    let had: Vec<&str> = text.lines().filter(own).collect();
    let mut wanted = auth_lines(chap);
    if had.iter().any(|line| key(line) == REOPEN.0) {
        wanted.push(format!("{} = {}", REOPEN.0, REOPEN.1));
    }
    if had == wanted {
        return None;
    }
    let mut lines: Vec<&str> = text.lines().filter(|line| !own(line)).collect();
    let end = lines
        .iter()
        .position(|line| line.trim() == END)
        .unwrap_or(lines.len());
    lines.splice(end..end, wanted.iter().map(String::as_str));
    Some(SecretString::from(lines.join("\n") + "\n"))
}

/// A line of a record that says otherwise than these settings.
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
    fn a_record_is_held_against_what_was_written_into_it() {
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
    fn a_record_gets_the_proofs_and_loses_them() {
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
    fn a_session_is_never_given_up_where_that_can_be_said() {
        let other = FRESH.replace("# END", "node.session.reopen_max = 5\n# END");
        let text = with_auth(&other, None).unwrap();
        assert!(
            text.expose_secret()
                .ends_with("node.session.reopen_max = 0\n# END RECORD\n")
        );
        assert!(with_auth(text.expose_secret(), None).is_none());
    }

    #[test]
    fn records_lie_where_open_iscsi_puts_them() {
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
