//! The exporting side: which targets exist, and which file is behind each of their logical units.
//!
//! Knows nothing of how an initiator attaches them. [`loopdev`] is the export that needs no iSCSI at all; exports with a
//! real iSCSI target (tgt, LIO) are further implementations of [`TargetSide`].

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub mod loopdev;

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
}

/// The name and password that an initiator proves itself with.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chap {
    /// The initiator's CHAP name.
    pub user: String,
    /// The shared secret.
    pub password: String,
}

impl fmt::Debug for Chap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chap")
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

/// A way to export targets.
pub trait TargetSide: fmt::Debug + Send + Sync {
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
}
