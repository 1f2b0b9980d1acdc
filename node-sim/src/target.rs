//! The exporting side: which targets exist, and which file is behind each of their logical units.
//!
//! Knows nothing of how an initiator attaches them. [`loopdev`] is the export that needs no iSCSI at all, [`tgt`] is a
//! daemon in user space, [`lio`] is the kernel's own target. What each of them can do, tried on a 6.1 kernel with
//! open-iscsi 2.1.8 and tgt 1.0.85:
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
//! | disabled: live sessions go on | yes | yes | yes |
//! | disabled: open-iscsi's login ends with | 19 | 19; 24 with CHAP | 8, after two minutes where other targets listen |
//! | UNMAP announced | always | by the caller's wish, also under a live session | by the caller's wish, as the unit is made |
//! | write cache announced | – | by the caller's wish, as the unit is made | by the caller's wish, at the initiator's next look |
//! | implicit ALUA (TPGS) | – | **no**: 0 | yes: 1 |
//! | T10 designator (VPD 0x83) begins with the vendor | – | **no**: it is the SCSI ID | yes |
//! | a unit below 512 bytes | yes | not exported | the kernel's affair |
//! | listens without a target | – | no | no |
//! | portals per target | yes | one set for all targets | yes |
//! | sessions: initiator | yes | yes | yes |
//! | sessions: address | yes | yes | as long as all connections to the portals come from one address |
//! | growth under a live session | at a rescan | at a rescan; commands wait for some ms | at a rescan |
//! | unit unmapped under a live session | late writes fail, reads go on | late I/O fails: Logical unit not supported | the same |
//! | another unit at the same index | at a rescan | at once; its identity at a rescan | the same |
//! | removal with live sessions | sessions are dropped | sessions are dropped | sessions are dropped |
//! | late writes of a dropped session | fail, or reach no LUN; reads go on | fail | fail |
//! | a session whose target is back | logs in at a rescan, unless its disk is in use | logs in by itself | the same |
//! | after `kill -9` of the user | all lives on | the daemon lives on, found again | the kernel's target lives on |
//! | after [`TargetSide::close`] | all lives on | no daemon | nothing in configfs, no loop device |

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub mod lio;
pub mod loopdev;
pub mod tgt;

/// One iSCSI target as the exporting side wants it to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The target's name, `iqn.…`.
    pub iqn: String,
    /// A disabled target is not found by an initiator; a session that lives goes on.
    pub enabled: bool,
    /// Most sessions at a time; 0 = any number.
    pub max_sessions: u32,
    /// Where it listens.
    pub portals: Vec<SocketAddr>,
    /// Its logical units, by number.
    pub luns: BTreeMap<u16, LogicalUnit>,
    /// What an initiator must prove; `None` = nothing.
    #[serde(default)]
    pub chap: Option<Chap>,
}

/// One logical unit: a file, and what SCSI INQUIRY says of it.
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
    /// Whether it says that it takes UNMAP (VPD page 0xb2).
    #[serde(default)]
    pub unmap: bool,
    /// Whether it says that it has a volatile write cache (WCE of the caching mode page), which makes initiators flush it. What
    /// is written down before this was known has one, as the exports had then.
    #[serde(default = "has_write_cache")]
    pub write_cache: bool,
}

fn has_write_cache() -> bool {
    true
}

/// What an initiator proves itself with, and what it may ask for in return.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chap {
    /// The initiator's CHAP name.
    pub user: String,
    /// The shared secret.
    pub password: String,
    /// Mutual CHAP: what the target proves itself with to an initiator that asks.
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

/// A live session, as the exporting side knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The initiator's name, `iqn.…`.
    pub initiator: String,
    /// Where it comes from.
    pub address: IpAddr,
}

/// A way to export targets. One user at a time; what it has exported survives that user's sudden death, and the next
/// [`TargetSide::align`] finds it again.
pub trait TargetBackend: fmt::Debug + Send + Sync {
    /// Makes these targets and no others, whatever an earlier life has left. Sessions of targets that stay go on as far as
    /// they can. No initiator finds the portals open before all targets are up: one that comes back would take a target
    /// that is not there yet for one that is gone.
    ///
    /// # Errors
    /// A stray could not be removed, or an export could not be made. Everything may be tried again.
    fn align(&self, targets: &[Target]) -> io::Result<()>;

    /// Makes the target, or makes it what it should be now. Live sessions go on. The target is up when this returns.
    ///
    /// # Errors
    /// The export could not be made; the old one may still be there.
    fn put(&self, target: &Target) -> io::Result<()>;

    /// Removes the target and drops its sessions. A target that is not there is no error.
    ///
    /// # Errors
    /// The export could not be removed.
    fn remove(&self, iqn: &str) -> io::Result<()>;

    /// The sessions that live on a target; none for a target that is not there.
    ///
    /// # Errors
    /// They could not be read.
    fn sessions(&self, iqn: &str) -> io::Result<Vec<Session>>;

    /// The sessions that live on each of these targets, in their order.
    ///
    /// # Errors
    /// They could not be read.
    fn sessions_of(&self, iqns: &[String]) -> io::Result<Vec<Vec<Session>>> {
        iqns.iter().map(|iqn| self.sessions(iqn)).collect()
    }

    /// Ends whatever works outside of this process. What is only noted (files in a folder) stays.
    ///
    /// # Errors
    /// Something could not be ended.
    fn close(&self) -> io::Result<()>;
}

/// The length of a unit's file, which is its capacity.
fn capacity(unit: &LogicalUnit) -> io::Result<u64> {
    let told = |wrong: io::Error| {
        io::Error::new(wrong.kind(), format!("{}: {wrong}", unit.file.display()))
    };
    Ok(std::fs::metadata(&unit.file).map_err(told)?.len())
}
