//! iSCSI targets, whose logical units are files, and the backends that export them.
//!
//! [`loopdev`] needs no iSCSI at all, [`tgt`] is a daemon in user space, [`lio`] is the kernel's target. Their features, tested
//! on a 6.1 kernel with open-iscsi 2.1.8 and tgt 1.0.85:
//!
//! | | loop | tgt | lio |
//! |---|---|---|---|
//! | mapping index = SCSI LUN | yes | yes; LUN 0 is tgt's own controller | yes |
//! | unit serial (VPD 0x80) | yes | yes, 36 bytes at most | yes; the page ends with a NUL |
//! | NAA (VPD 0x83) by the caller's rule | yes | yes | **no**: `6001405` and the serial's first 25 hex digits |
//! | vendor, product, revision | shown nowhere | yes | yes |
//! | CHAP | yes | yes | yes |
//! | one CHAP name with two passwords | yes | **no**: refused | yes |
//! | mutual CHAP | yes, and checked | yes | yes |
//! | `max_sessions` | yes | **no**: any number | **no**: any number |
//! | disabled: live sessions continue | yes | yes | yes |
//! | disabled: open-iscsi's login ends with | 19 | 19; 24 with CHAP | 8, after two minutes where other targets listen |
//! | UNMAP announced | always | configurable, also under a live session | configurable, when the unit is created |
//! | write cache announced | – | configurable, when the unit is created | configurable, at the initiator's next rescan |
//! | implicit ALUA (TPGS) | – | **no**: 0 | yes: 1 |
//! | T10 designator (VPD 0x83) begins with the vendor | – | **no**: it is the SCSI ID | yes |
//! | a unit below 512 bytes | yes | not exported | up to the kernel |
//! | listens without a target | – | no | no |
//! | portals per target | yes | one set for all targets | yes |
//! | sessions: initiator | yes | yes | yes |
//! | sessions: address | yes | yes | if all connections to the portals come from one address |
//! | growth under a live session | at a rescan | at a rescan; commands wait for some ms | at a rescan |
//! | unit unmapped under a live session | late writes fail, reads continue | late I/O fails: Logical unit not supported | the same |
//! | another unit at the same index | at a rescan | at once; its identity at a rescan | the same |
//! | removal with live sessions | sessions are dropped | sessions are dropped | sessions are dropped |
//! | late writes of a dropped session | fail, or reach no LUN; reads continue | fail | fail |
//! | a session whose target is back | logs in at a rescan, unless its disk is in use | logs in automatically | the same |
//! | after `kill -9` of the user | everything stays | the daemon survives and is found again | the kernel's target stays |
//! | after [`TargetBackend::close`] | everything stays | no daemon | nothing in configfs, no loop device |

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub mod lio;
pub mod loopdev;
pub mod tgt;

/// Desired state of an iSCSI target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The target's name, `iqn.…`.
    pub iqn: String,
    /// A disabled target refuses new logins; live sessions continue.
    pub enabled: bool,
    /// Maximum number of sessions; 0 = unlimited.
    pub max_sessions: u32,
    /// Portals that it listens on.
    pub portals: Vec<SocketAddr>,
    /// Its logical units, by number.
    pub luns: BTreeMap<u16, LogicalUnit>,
    /// CHAP authentication; `None` = none.
    #[serde(default)]
    pub chap: Option<Chap>,
}

/// A logical unit: a file, and its SCSI INQUIRY data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogicalUnit {
    /// The backing file. Its length is the capacity.
    pub file: PathBuf,
    /// The unit serial number (VPD page 0x80).
    pub serial: String,
    /// The 32 hex digits after `naa.` (VPD page 0x83).
    pub naa: String,
    /// At most 8 characters, as in a standard INQUIRY.
    pub vendor: String,
    /// At most 16 characters.
    pub product: String,
    /// At most 4 characters.
    pub revision: String,
    /// Whether it announces support for UNMAP (VPD page 0xb2).
    #[serde(default)]
    pub unmap: bool,
    /// Whether it announces a volatile write cache (WCE of the caching mode page), which makes initiators flush it. Default for
    /// files from before this field: true, as the exports were then.
    #[serde(default = "has_write_cache")]
    pub write_cache: bool,
}

fn has_write_cache() -> bool {
    true
}

/// CHAP credentials of an initiator and, for mutual CHAP, of the target.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chap {
    /// The initiator's CHAP name.
    pub user: String,
    /// The shared secret.
    pub password: String,
    /// Mutual CHAP: credentials of the target.
    #[serde(default)]
    pub mutual: Option<Credential>,
}

/// A CHAP name and its secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credential {
    /// The name.
    pub user: String,
    /// The shared secret.
    pub password: String,
}

impl fmt::Debug for Chap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chap")
            .field("user", &self.user)
            .field("password", &"***")
            .field("mutual", &self.mutual)
            .finish()
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("user", &self.user)
            .field("password", &"***")
            .finish()
    }
}

/// A live session of a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The initiator's name, `iqn.…`.
    pub initiator: String,
    /// The initiator's IP address.
    pub address: IpAddr,
}

/// A backend that exports targets. One process may use it at a time. Exports survive a crash of that process, and the next
/// [`TargetBackend::reconcile`] finds them again.
pub trait TargetBackend: fmt::Debug + Send + Sync {
    /// Exports exactly these targets, whatever an earlier process has left. Sessions of targets that stay continue as far as
    /// possible. The portals open only when all targets are up: a reconnecting initiator would give up on a target that is not
    /// there yet.
    ///
    /// # Errors
    /// A stale target could not be removed, or an export could not be created. It may be retried.
    fn reconcile(&self, targets: &[Target]) -> io::Result<()>;

    /// Creates or updates a target. Live sessions continue. The target is up when this returns.
    ///
    /// # Errors
    /// The export could not be created; the old one may still exist.
    fn put(&self, target: &Target) -> io::Result<()>;

    /// Removes a target and drops its sessions. Idempotent.
    ///
    /// # Errors
    /// The export could not be removed.
    fn remove(&self, iqn: &str) -> io::Result<()>;

    /// The live sessions of a target; empty if it does not exist.
    ///
    /// # Errors
    /// They could not be read.
    fn sessions(&self, iqn: &str) -> io::Result<Vec<Session>>;

    /// The live sessions of each of these targets, in their order.
    ///
    /// # Errors
    /// They could not be read.
    fn sessions_of(&self, iqns: &[String]) -> io::Result<Vec<Vec<Session>>> {
        iqns.iter().map(|iqn| self.sessions(iqn)).collect()
    }

    /// Stops everything outside of this process. Files in a directory stay.
    ///
    /// # Errors
    /// Something could not be stopped.
    fn close(&self) -> io::Result<()>;
}

/// Capacity of a unit in bytes: the length of its file.
fn capacity(unit: &LogicalUnit) -> io::Result<u64> {
    let with_path = |error: io::Error| {
        io::Error::new(error.kind(), format!("{}: {error}", unit.file.display()))
    };
    Ok(std::fs::metadata(&unit.file).map_err(with_path)?.len())
}
