//! A row of the snapshot table.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::nas::state::table::{IndexKey, Row};

/// A snapshot of a LUN.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(
    clippy::struct_field_names,
    reason = "snapshot_id is what DSM calls it"
)]
pub(crate) struct Snapshot {
    pub(crate) uuid: String,
    /// The LUN's uuid.
    pub(crate) parent: String,
    /// Counts up within its LUN.
    pub(crate) snapshot_id: u32,
    pub(crate) name: String,
    pub(crate) description: String,
    pub(crate) taken_by: String,
    pub(crate) is_locked: bool,
    pub(crate) is_app_consistent: bool,
    /// Immutable (WORM) for some days.
    #[serde(default)]
    pub(crate) is_worm_locked: bool,
    /// Packages that need the snapshot, such as Snapshot Replication.
    #[serde(default)]
    pub(crate) locked_app_keys: Vec<String>,
    /// Epoch seconds.
    pub(crate) time: u64,
    /// The LUN's size when the snapshot was taken, in bytes.
    pub(crate) size: u64,
}

impl Row for Snapshot {
    type Key = String;

    fn key(&self) -> String {
        self.uuid.clone()
    }

    fn index_keys(&self) -> Vec<IndexKey> {
        vec![IndexKey::Lun(self.parent.clone())]
    }

    fn number(&self) -> Option<u32> {
        None
    }
}

impl Snapshot {
    /// The row as JSON, for the control port.
    pub(crate) fn dump(&self) -> Value {
        json!(self)
    }
}
