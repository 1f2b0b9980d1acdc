//! The output formats of `iscsiadm` for records, sessions, hosts and interfaces, which callers parse.

use std::fmt::Write as _;

use super::record::{IFACE, Record, portal};
use super::session::Session;
use super::tree::LinkState;

const EMPTY: &str = "<empty>";

/// `10.0.0.5:3260,1 iqn.…`
pub(crate) fn node(record: &Record) -> String {
    // Like the real one, print the tag as unsigned, even an unknown one (-1).
    let tpgt = record.tpgt.map_or(u32::MAX, u32::from);
    format!("{},{tpgt} {}", record.key.portal(), record.key.iqn)
}

/// The line of a truncated record, which has lost its portal and perhaps its name.
pub(crate) fn truncated(name: Option<&str>) -> String {
    format!("[]:3260,{} {}", u32::MAX, name.unwrap_or_default())
}

/// Print level 1 of node mode: targets, their portals, their interfaces.
pub(crate) fn nodes(records: &[Record]) -> String {
    let mut text = String::new();
    let mut last = None;
    for record in records {
        if last != Some(&record.key.iqn) {
            let _ = writeln!(text, "Target: {}", record.key.iqn);
        }
        let _ = writeln!(
            text,
            "\tPortal: {},{}\n\t\tIface Name: {IFACE}",
            record.key.portal(),
            record.get("node.tpgt")
        );
        last = Some(&record.key.iqn);
    }
    text.trim_end().to_owned()
}

/// `tcp: [1] 10.0.0.5:3260,1 iqn.… (non-flash)`
pub(crate) fn session(session: &Session) -> String {
    format!(
        "tcp: [{}] {},{} {} (non-flash)",
        session.sid,
        portal(&session.address, session.port),
        session.tpgt,
        session.iqn
    )
}

/// Print levels 1 to 3 of session mode.
pub(crate) fn sessions(sessions: &[Session], level: u32, initiator: &str) -> String {
    let mut text = String::new();
    if level >= 3 {
        let _ = writeln!(
            text,
            "iSCSI Transport Class version 2.0-870\nversion {}",
            super::record::VERSION
        );
    }
    let mut last = None;
    for session in sessions {
        if last != Some(&session.iqn) {
            let _ = writeln!(text, "Target: {} (non-flash)", session.iqn);
        }
        last = Some(&session.iqn);
        session_details(&mut text, session, level, initiator);
    }
    text.trim_end().to_owned()
}

fn session_details(text: &mut String, session: &Session, level: u32, initiator: &str) {
    let portal = format!(
        "{},{}",
        portal(&session.address, session.port),
        session.tpgt
    );
    let _ = writeln!(
        text,
        "\tCurrent Portal: {portal}\n\tPersistent Portal: {portal}"
    );
    heading(text, "Interface:");
    let link = if session.lost {
        LinkState::Lost
    } else {
        LinkState::Up
    };
    let (connection, state, inner) = match link {
        LinkState::Up => ("LOGGED IN", "LOGGED_IN", "NO CHANGE"),
        LinkState::Lost => ("TRANSPORT WAIT", "FAILED", "REOPEN"),
    };
    let device = match link {
        LinkState::Up => "running",
        LinkState::Lost => "transport-offline",
    };
    for (name, value) in [
        ("Iface Name", IFACE),
        ("Iface Transport", "tcp"),
        ("Iface Initiatorname", initiator),
        ("Iface IPaddress", &session.address),
        ("Iface HWaddress", "default"),
        ("Iface Netdev", "default"),
        ("SID", &session.sid.to_string()),
        ("iSCSI Connection State", connection),
        ("iSCSI Session State", state),
        ("Internal iscsid Session State", inner),
    ] {
        let _ = writeln!(text, "\t\t{name}: {value}");
    }
    if level >= 2 {
        heading(text, "CHAP:");
        let user = session.chap_user.as_deref().unwrap_or(EMPTY);
        let _ = writeln!(text, "\t\tusername: {user}\n\t\tpassword: ********");
    }
    if level >= 3 {
        heading(text, "Attached SCSI devices:");
        let _ = writeln!(text, "\t\tHost Number: {}\tState: running", session.host);
        for (lun, disk) in &session.disks {
            let name = disk.device.trim_start_matches("/dev/");
            let _ = writeln!(text, "\t\tscsi{} Channel 00 Id 0 Lun: {lun}", session.host);
            let _ = writeln!(text, "\t\t\tAttached scsi disk {name}\t\tState: {device}");
        }
    }
}

fn heading(text: &mut String, title: &str) {
    let stars = "*".repeat(title.len());
    let _ = writeln!(text, "\t\t{stars}\n\t\t{title}\n\t\t{stars}");
}

/// `tcp: [11] 10.0.0.5,[<empty>],<empty> <empty>`
pub(crate) fn host(session: &Session) -> String {
    format!(
        "tcp: [{}] {},[{EMPTY}],{EMPTY} {EMPTY}",
        session.host, session.address
    )
}

/// The built-in interface records.
pub(crate) fn ifaces() -> String {
    let rest = [EMPTY; 4].join(",");
    format!("{IFACE} tcp,{rest}\niser iser,{rest}")
}
