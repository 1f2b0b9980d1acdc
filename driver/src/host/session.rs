//! Sessions of this node's initiator, as sysfs shows them.
//!
//! ```text
//! /sys/class/iscsi_session/session3/{targetname,state}
//! /sys/class/iscsi_connection/connection3:0/{persistent_address,persistent_port}
//! ```

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::disk::{BLOCK, SESSIONS, list, text};
use super::kernel_names::{Names, Place};
use super::{HostError, KernelFiles, if_present};
use crate::publication::Portal;

const CONNECTIONS: &str = "/sys/class/iscsi_connection";

/// A session of this node's initiator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The kernel's number, which `iscsiadm -r` takes.
    pub id: u32,
    /// The target's name; not necessarily one of ours.
    pub target: String,
    /// The target answered last time. A session that is not alive tries again until somebody logs it out.
    pub alive: bool,
    /// Where the target was asked; `None` when the kernel does not say.
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

/// The names of sessions' targets. A target's name is set after the session is shown, and then stays.
pub fn target_names() -> Names {
    Names::new(Place {
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

/// The sessions of this node with targets that are wanted, in order.
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
        // Without the directory the kernel has no iSCSI, hence no session; if sysfs is what is looked at.
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

/// The session with this number; `None` when there is none, or it goes at this moment.
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

/// Where session `id` was made: its only connection's address as open-iscsi was given it.
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
