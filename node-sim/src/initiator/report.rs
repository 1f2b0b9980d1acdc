//! `node-sim status` and `node-sim cleanup`: reports the state of a host root, and logs out of everything.

use std::io;

use comfy_table::{Table, presets};
use serde::Serialize;

use super::host::Host;
use super::record::{self, Pattern};
use super::session::{self, Sessions, Stage};
use crate::loop_device;

/// The state of a host root.
#[derive(Debug, Serialize)]
pub struct Status {
    /// Sessions, including half-made ones.
    pub sessions: Vec<SessionStatus>,
    /// Node records.
    pub records: Vec<RecordStatus>,
}

/// One session.
#[derive(Debug, Serialize)]
pub struct SessionStatus {
    /// Its number.
    pub sid: u32,
    /// The target's name.
    pub target: String,
    /// `address:port`.
    pub portal: String,
    /// `logged in`, `target lost`, or `half-made`: left by a killed command; the next command removes it.
    pub state: &'static str,
    /// Its disks.
    pub disks: Vec<DiskStatus>,
}

/// One disk.
#[derive(Debug, Serialize)]
pub struct DiskStatus {
    /// The logical unit's number.
    pub lun: u16,
    /// `/dev/loopN`.
    pub device: String,
    /// The backing file.
    pub file: String,
    /// The unit serial number as of the last rescan.
    pub serial: String,
    /// Size of the device in bytes; `None` = not attached.
    pub bytes: Option<u64>,
    /// Size of the file in bytes; `None` = it is gone. More than `bytes` = grown and not rescanned yet.
    pub file_bytes: Option<u64>,
}

/// One node record.
#[derive(Debug, Serialize)]
pub struct RecordStatus {
    /// The target's name.
    pub target: String,
    /// `address:port`.
    pub portal: String,
    /// Portal group tag.
    pub tpgt: Option<u16>,
}

/// Reads the state without changing anything.
///
/// # Errors
/// `root` is not a host root, or cannot be read.
pub fn status(host: &Host) -> io::Result<Status> {
    let _lock = host.lock()?;
    let records = record::list(host, &Pattern::default()).map_err(io::Error::other)?;
    Ok(Status {
        sessions: session::read(host)?.iter().map(session_status).collect(),
        records: records
            .into_iter()
            .map(|record| RecordStatus {
                portal: record.key.portal(),
                target: record.key.iqn,
                tpgt: record.tpgt,
            })
            .collect(),
    })
}

/// Logs out of all sessions and frees every loop device of this host root, including those of killed commands. Records stay.
/// Returns the number of sessions.
///
/// # Errors
/// `root` is not a host root, or a device cannot be freed.
pub fn cleanup(host: &Host) -> io::Result<usize> {
    let lock = host.lock()?;
    let before = session::read(host)?.len();
    let mut sessions = Sessions::open(host, &lock)?;
    for session in sessions.find(&Pattern::default()) {
        sessions.logout(session)?;
    }
    sessions.sweep()?;
    Ok(before)
}

impl Status {
    /// A table for humans.
    pub fn table(&self) -> String {
        if self.sessions.is_empty() && self.records.is_empty() {
            return "No sessions, no node records.".to_owned();
        }
        let mut sessions = Table::new();
        sessions.load_style(presets::UTF8_HORIZONTAL_ONLY);
        sessions.set_header([
            "SID", "State", "Target", "Portal", "LUN", "Device", "Size", "File", "Serial",
        ]);
        for session in &self.sessions {
            let head = [
                session.sid.to_string(),
                session.state.to_owned(),
                session.target.clone(),
                session.portal.clone(),
            ];
            if session.disks.is_empty() {
                sessions.add_row(head.iter().cloned().chain(["-".to_owned()]));
            }
            for disk in &session.disks {
                let rest = [
                    disk.lun.to_string(),
                    disk.device.clone(),
                    disk.sizes(),
                    disk.file.clone(),
                    disk.serial.clone(),
                ];
                sessions.add_row(head.iter().cloned().chain(rest));
            }
        }
        let mut records = Table::new();
        records
            .load_style(presets::UTF8_HORIZONTAL_ONLY)
            .set_header(["Node record", "Portal"]);
        for record in &self.records {
            records.add_row([&record.target, &record.portal]);
        }
        format!("{sessions}\n\n{records}")
    }
}

impl DiskStatus {
    fn sizes(&self) -> String {
        match (self.bytes, self.file_bytes) {
            (None, _) => "not attached".to_owned(),
            (Some(device), Some(file)) if file == device => bytes(device),
            (Some(device), Some(file)) => {
                format!("{} (file: {}, not rescanned)", bytes(device), bytes(file))
            }
            (Some(device), None) => format!("{} (file is gone)", bytes(device)),
        }
    }
}

fn session_status(session: &session::Session) -> SessionStatus {
    let disk = |(lun, disk): (&u16, &session::Disk)| DiskStatus {
        lun: *lun,
        device: disk.device.clone(),
        file: disk.backing.path.display().to_string(),
        serial: disk.unit.serial.clone(),
        bytes: loop_device::size(&disk.device),
        file_bytes: std::fs::metadata(&disk.backing.path)
            .ok()
            .map(|file| file.len()),
    };
    SessionStatus {
        sid: session.sid,
        target: session.iqn.clone(),
        portal: session.node_key().portal(),
        state: match (session.stage, session.lost) {
            (Stage::Starting | Stage::Ending, _) => "half-made",
            (Stage::Live, true) => "target lost",
            (Stage::Live, false) => "logged in",
        },
        disks: session.disks.iter().map(disk).collect(),
    }
}

/// Formats a size in the largest binary unit that gives a whole number.
fn bytes(count: u64) -> String {
    let units = [
        (1 << 40, "TiB"),
        (1 << 30, "GiB"),
        (1 << 20, "MiB"),
        (1 << 10, "KiB"),
    ];
    let whole = units
        .iter()
        .find(|(unit, _)| count > 0 && count.is_multiple_of(*unit));
    whole.map_or_else(
        || format!("{count} B"),
        |(unit, name)| format!("{} {name}", count / unit),
    )
}
