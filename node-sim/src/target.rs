//! The target side: targets with files as their LUNs, and the [`TargetBackend`]s that export them.
//!
//! It is independent of how an initiator attaches them. [`loopdev`] exports without iSCSI, [`tgt`] is a daemon in user space,
//! [`lio`] is the kernel's target. Capabilities of each, tried on a 6.1 kernel with open-iscsi 2.1.8 and tgt 1.0.85:
//!
//! | | loop | tgt | lio |
//! |---|---|---|---|
//! | mapping index = SCSI LUN | yes | yes; LUN 0 is tgt's own controller | yes |
//! | unit serial (VPD 0x80) | yes | yes, 36 bytes at most | yes; the page ends with a NUL |
//! | NAA (VPD 0x83) chosen by the caller | yes | yes | **no**: `6001405` and the serial's first 25 hex digits |
//! | vendor, product, revision | shown nowhere | yes | yes |
//! | CHAP | yes | yes | yes |
//! | one CHAP name with two passwords | yes | **no**: refused | yes |
//! | mutual CHAP | yes, and checked | yes | yes |
//! | `max_sessions` | yes | **no**: any number | **no**: any number |
//! | disabled: live sessions continue | yes | yes | yes |
//! | disabled: open-iscsi's login ends with | 19 | 19; 24 with CHAP | 8, after two minutes where other targets listen |
//! | UNMAP announced | always | set by the caller, also under a live session | set by the caller when the unit is created |
//! | write cache announced | – | set by the caller when the unit is created | set by the caller, visible after the initiator's next rescan |
//! | implicit ALUA (TPGS) | – | **no**: 0 | yes: 1 |
//! | T10 designator (VPD 0x83) begins with the vendor | – | **no**: it is the SCSI ID | yes |
//! | a unit below 512 bytes | yes | not exported | up to the kernel |
//! | listens without a target | – | no | no |
//! | portals per target | yes | one set for all targets | yes |
//! | sessions: initiator | yes | yes | yes |
//! | sessions: address | yes | yes | as long as all connections to the portals come from one address |
//! | growth under a live session | at a rescan | at a rescan; commands wait for some ms | at a rescan |
//! | unit unmapped under a live session | late writes fail, reads continue | late I/O fails: Logical unit not supported | the same |
//! | another unit at the same index | at a rescan | at once; its identity at a rescan | the same |
//! | removal with live sessions | sessions are dropped | sessions are dropped | sessions are dropped |
//! | late writes of a dropped session | fail, or reach no LUN; reads continue | fail | fail |
//! | a session whose target is back | logs in at a rescan, unless its disk is in use | reconnects by itself | the same |
//! | after `kill -9` of the caller | everything continues | the daemon continues and is found again | the kernel's target continues |
//! | after [`TargetBackend::close`] | everything continues | no daemon | nothing in configfs, no loop device |

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub mod lio;
pub mod loopdev;
pub mod tgt;

/// The desired state of an iSCSI target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The target's name, `iqn.…`.
    pub iqn: String,
    /// A disabled target refuses new logins; live sessions continue.
    pub enabled: bool,
    /// Maximum number of sessions; 0 = unlimited.
    pub max_sessions: u32,
    /// The portals on which it listens.
    pub portals: Vec<SocketAddr>,
    /// Its logical units, by logical unit number.
    pub luns: BTreeMap<u16, LogicalUnit>,
    /// The CHAP credentials that it requires; `None` = no authentication.
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
    /// True if it announces support for UNMAP (VPD page 0xb2).
    #[serde(default)]
    pub unmap: bool,
    /// True if it announces a volatile write cache (WCE of the caching mode page), which makes initiators flush it. Files written
    /// before this field existed have a write cache, as all exports had then.
    #[serde(default = "has_write_cache")]
    pub write_cache: bool,
}

fn has_write_cache() -> bool {
    true
}

/// The CHAP credentials of the initiator and, for mutual CHAP, of the target.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chap {
    /// The initiator's CHAP name.
    pub user: String,
    /// The shared secret.
    pub password: String,
    /// Mutual CHAP: the credentials with which the target authenticates itself.
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

/// A live session, as the target side knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The initiator's name, `iqn.…`.
    pub initiator: String,
    /// The initiator's IP address.
    pub address: IpAddr,
}

/// A way to export targets. It has one caller at a time. Its exports survive a crash of the caller, and the next
/// [`TargetBackend::align`] finds them again.
pub trait TargetBackend: fmt::Debug + Send + Sync {
    /// Exports exactly these targets, and removes those that an earlier caller has left. Sessions of remaining targets continue
    /// if possible. The portals are opened only after all targets are up: an initiator that reconnects would otherwise take a
    /// target that is not up yet for one that was deleted.
    ///
    /// # Errors
    /// A leftover could not be removed, or a target could not be exported. It may be retried.
    fn align(&self, targets: &[Target]) -> io::Result<()>;

    /// Creates or updates the target. Live sessions continue. The target is up when this returns.
    ///
    /// # Errors
    /// The target could not be exported; its previous state may remain.
    fn put(&self, target: &Target) -> io::Result<()>;

    /// Removes the target and drops its sessions. Idempotent.
    ///
    /// # Errors
    /// The target could not be removed.
    fn remove(&self, iqn: &str) -> io::Result<()>;

    /// The live sessions of a target; empty if it does not exist.
    ///
    /// # Errors
    /// They could not be read.
    fn sessions(&self, iqn: &str) -> io::Result<Vec<Session>>;

    /// The live sessions of each of these targets, in the same order.
    ///
    /// # Errors
    /// They could not be read.
    fn sessions_of(&self, iqns: &[String]) -> io::Result<Vec<Vec<Session>>> {
        iqns.iter().map(|iqn| self.sessions(iqn)).collect()
    }

    /// Stops everything that runs outside of this process. State files stay.
    ///
    /// # Errors
    /// Something could not be stopped.
    fn close(&self) -> io::Result<()>;
}

/// The length of a unit's file, which is its capacity.
fn capacity(unit: &LogicalUnit) -> io::Result<u64> {
    let with_path = |error: io::Error| {
        io::Error::new(error.kind(), format!("{}: {error}", unit.file.display()))
    };
    Ok(std::fs::metadata(&unit.file).map_err(with_path)?.len())
}
