//! iSCSI sessions of this node's initiator, read from sysfs.
//!
//! ```text
//! /sys/class/iscsi_session/session3/{targetname,state}
//! /sys/class/iscsi_connection/connection3:0/{persistent_address,persistent_port}
//! ```

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::disk::{BLOCK, SESSIONS, list, text};
use super::kernel_names::{NameSource, Names};
use super::{HostError, KernelFiles, if_present};
use crate::publication::Portal;

const CONNECTIONS: &str = "/sys/class/iscsi_connection";

/// An iSCSI session of this node's initiator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The kernel's session number, as in `iscsiadm -r`.
    pub id: u32,
    /// The target's IQN; not necessarily one of ours.
    pub target: String,
    /// The session is logged in. A session that is not retries until it is logged out.
    pub alive: bool,
    /// The portal of the login; `None` if the kernel does not show it.
    pub portal: Option<Portal>,
}

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "session {} with {}", self.id, self.target)?;
        match self.portal {
            Some(portal) => write!(f, " at {portal}"),
            None => Ok(()),
        }
    }
}

/// The target names of all sessions. The kernel sets a target's name after it has created the session in sysfs, and never changes
/// it.
pub fn target_names() -> Names {
    Names::new(NameSource {
        dir: SESSIONS,
        prefix: "session",
        file: "targetname",
        is_name: |name| {
            ["iqn.", "eui.", "naa."]
                .iter()
                .any(|kind| name.starts_with(kind))
        },
    })
}

/// The sessions of this node with the wanted targets, in order of their numbers.
///
/// # Errors
/// sysfs cannot be read.
pub fn sessions(
    files: &dyn KernelFiles,
    names: &Names,
    wanted: impl Fn(&str) -> bool,
) -> Result<Vec<Session>, HostError> {
    let found = match if_present(names.find(files, &wanted))? {
        Some(found) => found,
        // Without this directory the iSCSI transport is not loaded, hence there is no session. Listing the block devices proves
        // that sysfs is mounted.
        None => list(files, BLOCK).map(|_| Vec::new())?,
    };
    let mut sessions = Vec::new();
    for name in found {
        let Some(id) = name.strip_prefix("session").and_then(|id| id.parse().ok()) else {
            continue;
        };
        sessions.extend(session(files, id)?.filter(|session| wanted(&session.target)));
    }
    sessions.sort_unstable_by_key(|session| session.id);
    Ok(sessions)
}

/// The session with this number; `None` if it does not exist or has just been removed.
///
/// # Errors
/// sysfs cannot be read.
pub fn session(files: &dyn KernelFiles, id: u32) -> Result<Option<Session>, HostError> {
    let dir = format!("{SESSIONS}/session{id}");
    let target = if_present(text(files, &format!("{dir}/targetname")))?;
    let state = if_present(text(files, &format!("{dir}/state")))?;
    let (Some(target), Some(state)) = (target, state) else {
        return Ok(None);
    };
    Ok(Some(Session {
        id,
        target,
        alive: state == "LOGGED_IN",
        portal: portal(files, id)?,
    }))
}

/// The portal of session `id`: the address of its only connection as configured in open-iscsi.
fn portal(files: &dyn KernelFiles, id: u32) -> Result<Option<Portal>, HostError> {
    let connection = format!("{CONNECTIONS}/connection{id}:0");
    let address = if_present(text(files, &format!("{connection}/persistent_address")))?;
    let port = if_present(text(files, &format!("{connection}/persistent_port")))?;
    let (Some(address), Some(port)) = (address, port) else {
        return Ok(None);
    };
    let address = address.trim_matches(['[', ']']).parse().ok();
    Ok(address
        .zip(port.parse().ok())
        .map(|(address, port): (IpAddr, u16)| SocketAddr::new(address, port).into()))
}
