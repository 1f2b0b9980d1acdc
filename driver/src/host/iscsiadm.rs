//! `iscsiadm`: command builders and the meaning of its exit statuses. Pure.
//!
//! Source: open-iscsi, `man 8 iscsiadm`; the statuses are `include/iscsi_err.h`.

use std::time::Duration;

use super::{Cmd, Exit, HostError};
use crate::publication::{Iqn, Portal};

/// The program's name.
pub const PROGRAM: &str = "iscsiadm";

/// Deadline of a command on records, in seconds: iscsiadm waits 30 s for the lock of its database, and if it is killed while it
/// holds that lock, it leaves it behind (see [`super::record::LOCK`]).
const RECORD_SECONDS: u64 = 45;
const REPLACEMENT_TIMEOUT: &str = "node.session.timeo.replacement_timeout";

/// Creates a record of the target at one portal, without discovery: DSM's SendTargets would list every target of the NAS.
pub fn new_record(iqn: &Iqn, portal: &Portal) -> Cmd {
    record(iqn, portal).args(["-o", "new"])
}

/// Updates a record of ours with all settings other than CHAP, whatever the defaults in `iscsid.conf`:
/// - no login at boot: the CO decides to which node a volume is attached (both `startup`, because either is enough for
///   `--loginall`; and a leading login happens at boot, too);
/// - a login makes one session: a second session at the same portal would be an unwanted second disk;
/// - a login scans no LUNs: the driver adds the one logical unit that it wants;
/// - I/O waits `replacement_timeout` for a target that does not answer, then it fails;
/// - one login attempt of 15 s (`login_timeout`): by default iscsid would go on with eight of them in the background.
///
/// [`super::record::REOPEN`] makes iscsid never give up a session. It is not among these settings, because open-iscsi before
/// 2.0.877 does not know it.
pub fn settings(iqn: &Iqn, portal: &Portal, replacement_timeout: Duration) -> Cmd {
    let mut command = record(iqn, portal).args(["-o", "update"]);
    for (name, value) in required_settings(replacement_timeout) {
        command = command.args(["-n", name, "-v", &value]);
    }
    command
}

/// The settings that a record must have before a login with it: one session, no scan, no automatic login. The replacement timeout
/// is not among them: the driver's option may have had another value when the record was written.
pub fn required() -> impl Iterator<Item = (&'static str, String)> {
    let all = required_settings(Duration::ZERO).into_iter();
    all.filter(|(name, _)| *name != REPLACEMENT_TIMEOUT)
}

/// The names and values that [`settings`] writes.
pub fn required_settings(replacement_timeout: Duration) -> [(&'static str, String); 8] {
    [
        ("node.startup", "manual"),
        ("node.conn[0].startup", "manual"),
        ("node.leading_login", "No"),
        ("node.session.nr_sessions", "1"),
        ("node.session.scan", "manual"),
        (
            REPLACEMENT_TIMEOUT,
            &replacement_timeout.as_secs().to_string(),
        ),
        ("node.session.initial_login_retry_max", "1"),
        ("node.conn[0].timeo.login_timeout", "15"),
    ]
    .map(|(name, value)| (name, value.to_owned()))
}

/// Logs in to the target at one portal. If the portal does not answer, open-iscsi gives up only after about 2 minutes, and the
/// kubelet waits no longer than that for the whole call. So the deadline is shorter: 30 s for the lock of the database, and 40 s
/// for the login.
pub fn login(iqn: &Iqn, portal: &Portal) -> Cmd {
    Cmd::new(PROGRAM, 70)
        .args(["-m", "node", "-T", iqn.as_str(), "-p"])
        .arg(portal.to_string())
        .arg("--login")
}

/// Rescans a session: the kernel re-reads size and serial number of its logical units, and finds new ones.
pub fn rescan(session: u32) -> Cmd {
    Cmd::new(PROGRAM, 60)
        .args(["-m", "session", "-r"])
        .arg(session.to_string())
        .arg("--rescan")
}

/// Logs out one session. It works without the target: an unanswered logout request times out after 15 s.
pub fn logout(session: u32) -> Cmd {
    Cmd::new(PROGRAM, 60)
        .args(["-m", "session", "-r"])
        .arg(session.to_string())
        .arg("--logout")
}

/// Deletes all records of a target, at every portal.
pub fn delete_records(iqn: &Iqn) -> Cmd {
    Cmd::new(PROGRAM, RECORD_SECONDS).args(["-m", "node", "-T", iqn.as_str(), "-o", "delete"])
}

/// Deletes the record of a target at one portal.
pub fn delete_record(iqn: &Iqn, portal: &Portal) -> Cmd {
    record(iqn, portal).args(["-o", "delete"])
}

/// Lists all node records. A single record (say of another product) that this release cannot read makes it fail and list none. So
/// the driver looks for record files itself if it knows the database's path ([`super::record::DATABASES`]).
pub fn list_records() -> Cmd {
    Cmd::new(PROGRAM, RECORD_SECONDS).args(["-m", "node"])
}

fn record(iqn: &Iqn, portal: &Portal) -> Cmd {
    Cmd::new(PROGRAM, RECORD_SECONDS)
        .args(["-m", "node", "-T", iqn.as_str(), "-p"])
        .arg(portal.to_string())
}

/// Exit statuses that the driver distinguishes.
mod status {
    /// `ISCSI_SUCCESS`.
    pub(super) const SUCCESS: i32 = 0;
    /// `ISCSI_ERR_SESS_NOT_FOUND`.
    pub(super) const SESSION_NOT_FOUND: i32 = 2;
    /// `ISCSI_ERR_TRANS`: no TCP connection.
    pub(super) const TRANSPORT: i32 = 4;
    /// `ISCSI_ERR_LOGIN`.
    pub(super) const LOGIN: i32 = 5;
    /// `ISCSI_ERR_IDBM`: a file of the database cannot be read or written.
    pub(super) const DATABASE: i32 = 6;
    /// `ISCSI_ERR_TRANS_TIMEOUT`: the portal did not answer.
    pub(super) const TRANSPORT_TIMEOUT: i32 = 8;
    /// `ISCSI_ERR_SESS_EXISTS`.
    pub(super) const SESSION_EXISTS: i32 = 15;
    /// `ISCSI_ERR_ISCSID_COMM_ERR`.
    pub(super) const ISCSID_COMMUNICATION: i32 = 18;
    /// `ISCSI_ERR_FATAL_LOGIN`: the target refuses permanently.
    pub(super) const FATAL_LOGIN: i32 = 19;
    /// `ISCSI_ERR_ISCSID_NOTCONN`.
    pub(super) const ISCSID_NOT_CONNECTED: i32 = 20;
    /// `ISCSI_ERR_NO_OBJS_FOUND`.
    pub(super) const NO_OBJECTS_FOUND: i32 = 21;
    /// `ISCSI_ERR_SYSFS_LOOKUP`: the status of `-m session -r N` if sysfs has no session N (2.1.8).
    pub(super) const NOT_IN_SYSFS: i32 = 22;
    /// `ISCSI_ERR_LOGIN_AUTH_FAILED`.
    pub(super) const AUTHENTICATION: i32 = 24;
}

/// The result of a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Login {
    /// A new session was made.
    New,
    /// There already was a session.
    Existing,
    /// No session, authentication failed: the target rejects the CHAP credentials, or requires CHAP and none were sent.
    Unconfirmed,
    /// No session, for another reason.
    Refused {
        /// The reason, and what to check.
        cause: &'static str,
        /// True if the target itself refused the login, so that a retry is pointless.
        permanent: bool,
    },
}

/// Interprets the exit status of [`login`].
pub fn read_login(exit: &Exit) -> Login {
    let refused = |cause, for_good| Login::Refused {
        cause,
        permanent: for_good,
    };
    match exit.status {
        status::SUCCESS => Login::New,
        status::SESSION_EXISTS => Login::Existing,
        status::TRANSPORT => refused(
            "no TCP connection to the portal: check the address and the firewall",
            false,
        ),
        status::LOGIN => refused("the login failed: see the log of iscsid", false),
        status::DATABASE => refused(
            "open-iscsi's database cannot be read: is there a damaged or foreign file in /etc/iscsi/nodes?",
            false,
        ),
        status::TRANSPORT_TIMEOUT => refused(
            "the portal does not answer: check the network and that iSCSI runs on the NAS",
            false,
        ),
        status::ISCSID_COMMUNICATION | status::ISCSID_NOT_CONNECTED => {
            refused("iscsid does not answer: is it running on this node?", false)
        }
        status::FATAL_LOGIN => refused(
            "the target refuses the login for good: it does not exist, is disabled or accepts no more sessions",
            true,
        ),
        status::NO_OBJECTS_FOUND => refused(
            "there is no record of the target at this portal: something else removed it",
            false,
        ),
        status::AUTHENTICATION => Login::Unconfirmed,
        _ => refused("the login failed", false),
    }
}

/// Interprets the exit status of [`logout`]. Idempotent: succeeds if there is no such session.
///
/// # Errors
/// Any other failure.
pub fn read_logout(exit: Exit) -> Result<(), HostError> {
    match exit.status {
        status::SESSION_NOT_FOUND | status::NO_OBJECTS_FOUND | status::NOT_IN_SYSFS => Ok(()),
        _ => exit.ok(PROGRAM).map(|_| ()),
    }
}

/// Interprets the exit status of [`delete_records`]. Idempotent: succeeds if there is no record. `Some`: iscsiadm failed, which
/// is not fatal, because the driver can remove its own record files without it.
///
/// # Errors
/// There is a session with the target.
pub fn read_delete(exit: Exit) -> Result<Option<HostError>, HostError> {
    match exit.status {
        status::SESSION_NOT_FOUND | status::NO_OBJECTS_FOUND => Ok(None),
        status::SESSION_EXISTS => Err(exit.failed(PROGRAM)),
        _ => Ok(exit.ok(PROGRAM).err()),
    }
}

/// True if a command failed because it could not access the database, which may be locked.
pub fn is_database_error(exit: &Exit) -> bool {
    exit.status == status::DATABASE
}

/// The targets in the output of [`list_records`], which has lines like `10.0.0.5:3260,1 iqn.…`.
///
/// # Errors
/// It failed with another status than "none found", or a line cannot be parsed: the result is unknown, which is not "no record".
pub fn read_records(exit: Exit) -> Result<Vec<String>, HostError> {
    if exit.status == status::NO_OBJECTS_FOUND {
        return Ok(Vec::new());
    }
    let listed = exit.ok(PROGRAM)?.stdout;
    let target = |line: &str| {
        let (portal, target) = line.split_once(' ')?;
        let (address, group) = portal.rsplit_once(',')?;
        let well_formed = address.rsplit_once(':')?.1.parse::<u16>().is_ok()
            && group.parse::<u32>().is_ok()
            && !target.is_empty()
            && !target.contains(char::is_whitespace);
        well_formed.then(|| target.to_owned())
    };
    let mut targets = Vec::new();
    for line in listed.lines() {
        targets.push(target(line).ok_or_else(|| HostError::Unparsable {
            what: "the output of iscsiadm -m node".to_owned(),
            seen: line.to_owned(),
        })?);
    }
    if targets.is_empty() {
        // If there were no records, the exit status would be 21.
        return Err(HostError::Unparsable {
            what: "the output of iscsiadm -m node".to_owned(),
            seen: listed,
        });
    }
    targets.sort_unstable();
    targets.dedup();
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IQN: &str = "iqn.2000-01.com.synology:13a3cd1ef2964d4bb712a85c139f9dac.w:01234567";

    fn iqn() -> Iqn {
        IQN.parse().unwrap()
    }

    #[track_caller]
    fn check(cmd: &Cmd, want: &str) {
        assert_eq!(cmd.to_string(), want.replace("IQN", IQN));
    }

    #[test]
    fn commands_have_the_arguments_of_iscsiadm() {
        let (v4, v6) = (
            "10.0.0.5:3260".parse().unwrap(),
            "[fd00::5]:3261".parse().unwrap(),
        );
        check(
            &new_record(&iqn(), &v4),
            "iscsiadm -m node -T IQN -p 10.0.0.5:3260 -o new",
        );
        check(
            &settings(&iqn(), &v4, Duration::from_secs(90)),
            "iscsiadm -m node -T IQN -p 10.0.0.5:3260 -o update -n node.startup -v manual -n node.conn[0].startup -v manual \
             -n node.leading_login -v No -n node.session.nr_sessions -v 1 -n node.session.scan -v manual \
             -n node.session.timeo.replacement_timeout -v 90 -n node.session.initial_login_retry_max -v 1 \
             -n node.conn[0].timeo.login_timeout -v 15",
        );
        check(
            &login(&iqn(), &v6),
            "iscsiadm -m node -T IQN -p [fd00::5]:3261 --login",
        );
        check(&rescan(3), "iscsiadm -m session -r 3 --rescan");
        check(&logout(3), "iscsiadm -m session -r 3 --logout");
        check(&delete_records(&iqn()), "iscsiadm -m node -T IQN -o delete");
        check(
            &delete_record(&iqn(), &v4),
            "iscsiadm -m node -T IQN -p 10.0.0.5:3260 -o delete",
        );
        check(&list_records(), "iscsiadm -m node");
    }

    /// design.md#host-commands
    #[test]
    fn every_command_has_a_deadline() {
        let portal = "10.0.0.5:3260".parse().unwrap();
        let (iqn, p) = (iqn(), &portal);
        let all = [
            new_record(&iqn, p),
            settings(&iqn, p, Duration::from_secs(120)),
            login(&iqn, p),
            rescan(1),
            logout(1),
            delete_records(&iqn),
            delete_record(&iqn, p),
            list_records(),
        ];
        assert!(
            all.iter()
                .all(|cmd| (1..=70).contains(&cmd.deadline.as_secs()))
        );
        // Each of these waits 30 s for the lock of the database.
        let of_records = all.iter().filter(|cmd| cmd.args[1] == "node");
        assert!(of_records.map(|cmd| cmd.deadline.as_secs()).min() > Some(35));
    }

    #[test]
    fn a_login_ends_in_one_of_four_ways() {
        let of = |status| {
            read_login(&Exit {
                status,
                ..Exit::default()
            })
        };
        assert_eq!((of(0), of(15)), (Login::New, Login::Existing));
        assert_eq!(of(24), Login::Unconfirmed);
        for (status, final_answer, word) in [
            (4, false, "TCP"),
            (6, false, "/etc/iscsi/nodes"),
            (8, false, "does not answer"),
            (18, false, "iscsid"),
            (19, true, "for good"),
            (20, false, "iscsid"),
            (21, false, "no record"),
            (99, false, "failed"),
        ] {
            let Login::Refused {
                cause,
                permanent: for_good,
            } = of(status)
            else {
                panic!("{status}")
            };
            assert!(
                cause.contains(word) && for_good == final_answer,
                "{status}: {cause}"
            );
        }
    }

    fn ended(status: i32) -> Exit {
        Exit {
            status,
            ..Exit::default()
        }
    }

    #[test]
    fn absent_sessions_and_records_are_not_errors() {
        for status in [0, 2, 21, 22] {
            assert!(read_logout(ended(status)).is_ok(), "{status}");
        }
        assert!(read_logout(ended(9)).is_err());
        for status in [0, 2, 21] {
            assert!(read_delete(ended(status)).unwrap().is_none(), "{status}");
        }
        assert!(read_delete(ended(7)).unwrap().is_some());
        assert!(read_delete(ended(15)).is_err(), "there is a session");
    }

    /// design.md#unknown-is-not-absent
    #[test]
    fn a_list_that_cannot_be_parsed_is_not_empty() {
        let read = |stdout: &str| {
            read_records(Exit {
                stdout: stdout.to_owned(),
                ..Exit::default()
            })
        };
        let listed = read(&format!(
            "10.0.0.5:3260,1 {IQN}\n[fd00::5]:3260,4294967295 {IQN}\n10.0.0.6:3260,1 iqn.1993-08.org.debian:X\n"
        ));
        assert_eq!(listed.unwrap(), ["iqn.1993-08.org.debian:X", IQN]);
        assert!(read_records(ended(21)).unwrap().is_empty());
        assert!(read_records(ended(1)).is_err());
        // The second is the output of 2.1.8 for an empty record.
        for garbage in [
            "garbage\n",
            "[]:3260,4294967295 \n",
            "\n",
            "",
            "a:1,2 b c\n",
        ] {
            assert!(read(garbage).is_err(), "{garbage:?}");
        }
    }
}
