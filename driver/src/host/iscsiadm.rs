//! `iscsiadm`: command builders and the meaning of its exit statuses. Pure.
//!
//! Source: open-iscsi, `man 8 iscsiadm`; the statuses are `include/iscsi_err.h`.

use std::time::Duration;

use super::{Cmd, Exit, HostError};
use crate::publication::{Iqn, Portal};

/// The program.
pub const PROGRAM: &str = "iscsiadm";

/// A record of the target at one portal, written without discovery: DSM's SendTargets would list every target of the NAS.
pub fn new_record(iqn: &Iqn, portal: &Portal) -> Cmd {
    record(iqn, portal).args(["-o", "new"])
}

/// What a record of ours says, apart from CHAP:
/// - a node that boots must not log in on its own: the CO decides where a volume is;
/// - a login attaches nothing: the driver attaches the one logical unit that it wants;
/// - I/O waits `replacement_timeout` for a target that does not answer, then it fails;
/// - one attempt: it takes 15 s (`login_timeout`), and iscsid would go on with eight of them behind our back.
pub fn settings(iqn: &Iqn, portal: &Portal, replacement_timeout: Duration) -> Cmd {
    let seconds = replacement_timeout.as_secs().to_string();
    let settings = [
        ("node.startup", "manual"),
        ("node.session.scan", "manual"),
        ("node.session.timeo.replacement_timeout", &seconds),
        ("node.session.initial_login_retry_max", "1"),
    ];
    let pairs = settings
        .into_iter()
        .flat_map(|(name, value)| ["-n", name, "-v", value]);
    record(iqn, portal).args(["-o", "update"]).args(pairs)
}

/// Logs in to the target at one portal. open-iscsi itself gives up after about 2 minutes when nobody answers; kubelet waits
/// as long for the whole call, so there is a deadline of our own.
pub fn login(iqn: &Iqn, portal: &Portal) -> Cmd {
    Cmd::new(PROGRAM, 40)
        .args(["-m", "node", "-T", iqn.as_str(), "-p"])
        .arg(portal.to_string())
        .arg("--login")
}

/// Makes the kernel ask every logical unit of the session anew: size, serial, and units that were not there before.
pub fn rescan(session: u32) -> Cmd {
    Cmd::new(PROGRAM, 60)
        .args(["-m", "session", "-r"])
        .arg(session.to_string())
        .arg("--rescan")
}

/// Ends one session. It needs no answer from the target: a logout request that is not answered times out after 15 s.
pub fn logout(session: u32) -> Cmd {
    Cmd::new(PROGRAM, 60)
        .args(["-m", "session", "-r"])
        .arg(session.to_string())
        .arg("--logout")
}

/// Removes the records of a target, at whatever portals.
pub fn delete_records(iqn: &Iqn) -> Cmd {
    Cmd::new(PROGRAM, 15).args(["-m", "node", "-T", iqn.as_str(), "-o", "delete"])
}

/// Lists all node records.
pub fn list_records() -> Cmd {
    Cmd::new(PROGRAM, 15).args(["-m", "node"])
}

fn record(iqn: &Iqn, portal: &Portal) -> Cmd {
    Cmd::new(PROGRAM, 15)
        .args(["-m", "node", "-T", iqn.as_str(), "-p"])
        .arg(portal.to_string())
}

/// Exit statuses that the driver tells apart.
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
    /// `ISCSI_ERR_TRANS_TIMEOUT`: nobody answered.
    pub(super) const TRANSPORT_TIMEOUT: i32 = 8;
    /// `ISCSI_ERR_SESS_EXISTS`.
    pub(super) const SESSION_EXISTS: i32 = 15;
    /// `ISCSI_ERR_ISCSID_COMM_ERR`.
    pub(super) const ISCSID_COMMUNICATION: i32 = 18;
    /// `ISCSI_ERR_FATAL_LOGIN`: the target refuses for good.
    pub(super) const FATAL_LOGIN: i32 = 19;
    /// `ISCSI_ERR_ISCSID_NOTCONN`.
    pub(super) const ISCSID_NOT_CONNECTED: i32 = 20;
    /// `ISCSI_ERR_NO_OBJS_FOUND`.
    pub(super) const NO_OBJECTS_FOUND: i32 = 21;
    /// `ISCSI_ERR_LOGIN_AUTH_FAILED`.
    pub(super) const AUTHENTICATION: i32 = 24;
}

/// What came of a login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Login {
    /// There is a session now: a new one.
    New,
    /// There was a session already.
    Existing,
    /// There is none: the target does not take the proofs that were sent, or none were sent and it wants some.
    Unproven,
    /// There is none.
    Refused {
        /// Why, in words that help.
        cause: &'static str,
        /// True when trying again changes nothing: the target itself said no.
        for_good: bool,
    },
}

/// What the exit of [`login`] means.
pub fn read_login(exit: &Exit) -> Login {
    let refused = |cause, for_good| Login::Refused { cause, for_good };
    match exit.status {
        status::SUCCESS => Login::New,
        status::SESSION_EXISTS => Login::Existing,
        status::TRANSPORT => refused(
            "no TCP connection to the portal: check the address and the firewall",
            false,
        ),
        status::LOGIN => refused("the login failed: the log of iscsid says more", false),
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
            "the target refuses the login for good: it does not exist, is disabled or has no room for a session",
            true,
        ),
        status::NO_OBJECTS_FOUND => refused(
            "no record of the target at this portal: something else removed it",
            false,
        ),
        status::AUTHENTICATION => Login::Unproven,
        _ => refused("the login failed", false),
    }
}

/// The exit of [`logout`]; a session that is not there is logged out.
///
/// # Errors
/// Any other failure.
pub fn read_logout(exit: Exit) -> Result<(), HostError> {
    absent_is_fine(exit)
}

/// The exit of [`delete_records`]; records that are not there are deleted.
///
/// # Errors
/// Any other failure.
pub fn read_delete(exit: Exit) -> Result<(), HostError> {
    absent_is_fine(exit)
}

fn absent_is_fine(exit: Exit) -> Result<(), HostError> {
    match exit.status {
        status::SESSION_NOT_FOUND | status::NO_OBJECTS_FOUND => Ok(()),
        _ => exit.ok(PROGRAM).map(|_| ()),
    }
}

/// The targets of the records that [`list_records`] printed: lines of `10.0.0.5:3260,1 iqn.…`. Others are left out.
///
/// # Errors
/// It failed otherwise than by finding none.
pub fn read_records(exit: Exit) -> Result<Vec<Iqn>, HostError> {
    if exit.status == status::NO_OBJECTS_FOUND {
        return Ok(Vec::new());
    }
    let listed = exit.ok(PROGRAM)?.stdout;
    let mut targets: Vec<Iqn> = listed
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1)?.parse().ok())
        .collect();
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
    fn commands_are_what_open_iscsi_wants() {
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
            "iscsiadm -m node -T IQN -p 10.0.0.5:3260 -o update -n node.startup -v manual -n node.session.scan -v manual \
             -n node.session.timeo.replacement_timeout -v 90 -n node.session.initial_login_retry_max -v 1",
        );
        check(
            &login(&iqn(), &v6),
            "iscsiadm -m node -T IQN -p [fd00::5]:3261 --login",
        );
        check(&rescan(3), "iscsiadm -m session -r 3 --rescan");
        check(&logout(3), "iscsiadm -m session -r 3 --logout");
        check(&delete_records(&iqn()), "iscsiadm -m node -T IQN -o delete");
        check(&list_records(), "iscsiadm -m node");
    }

    #[test]
    fn choice_26_every_command_has_a_deadline() {
        let portal = "10.0.0.5:3260".parse().unwrap();
        let (iqn, p) = (iqn(), &portal);
        let all = [
            new_record(&iqn, p),
            settings(&iqn, p, Duration::from_secs(120)),
            login(&iqn, p),
            rescan(1),
            logout(1),
            delete_records(&iqn),
            list_records(),
        ];
        assert!(
            all.iter()
                .all(|cmd| (1..=60).contains(&cmd.deadline.as_secs()))
        );
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
        assert_eq!(of(24), Login::Unproven);
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
            let Login::Refused { cause, for_good } = of(status) else {
                panic!("{status}")
            };
            assert!(
                cause.contains(word) && for_good == final_answer,
                "{status}: {cause}"
            );
        }
    }

    #[test]
    fn absent_sessions_and_records_are_no_error() {
        for status in [0, 2, 21] {
            assert!(
                read_logout(Exit {
                    status,
                    ..Exit::default()
                })
                .is_ok()
            );
            assert!(
                read_delete(Exit {
                    status,
                    ..Exit::default()
                })
                .is_ok()
            );
        }
        assert!(
            read_logout(Exit {
                status: 9,
                ..Exit::default()
            })
            .is_err()
        );
    }

    #[test]
    fn records_are_listed_once_per_target() {
        let stdout = format!(
            "10.0.0.5:3260,1 {IQN}\n[fd00::5]:3260,4294967295 {IQN}\n10.0.0.6:3260,1 iqn.1993-08.org.debian:x\ngarbage\n"
        );
        let read = read_records(Exit {
            stdout,
            ..Exit::default()
        })
        .unwrap();
        assert_eq!(
            read.iter().map(Iqn::as_str).collect::<Vec<_>>(),
            ["iqn.1993-08.org.debian:x", IQN]
        );
        assert!(
            read_records(Exit {
                status: 21,
                ..Exit::default()
            })
            .unwrap()
            .is_empty()
        );
        assert!(
            read_records(Exit {
                status: 1,
                ..Exit::default()
            })
            .is_err()
        );
    }
}
