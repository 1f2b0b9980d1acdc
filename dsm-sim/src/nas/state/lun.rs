//! A LUN, and where it comes from.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::nas::clock::Millis;
use crate::nas::effect::{Environment, Image};
use crate::nas::model::Generation;
use crate::nas::state::lun_type::{DevAttribs, LunType};
use crate::nas::state::table::{IndexKey, Row};

/// A LUN.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::struct_field_names, reason = "lun_id is what DSM calls it")]
pub(crate) struct Lun {
    pub(crate) uuid: String,
    pub(crate) name: String,
    /// NAS-wide; not the SCSI LUN number.
    pub(crate) lun_id: u32,
    /// Bytes.
    pub(crate) size: u64,
    pub(crate) kind: LunType,
    pub(crate) location: String,
    pub(crate) description: String,
    pub(crate) dev_attribs: DevAttribs,
    pub(crate) direct_io_pattern: u64,
    pub(crate) status: String,
    /// Locked by the control port, until it is released there.
    pub(crate) held: bool,
    /// Locked by DSM's own work until then.
    #[serde(skip)]
    pub(crate) locked_until: Millis,
    /// A clone that DSM is still making, until then. A restart before it ends it.
    pub(crate) half_done_until: Option<Millis>,
    /// Deleted, and gone at that moment.
    #[serde(alias = "dying")]
    pub(crate) deleting_until: Option<Millis>,
    /// Where it comes from, when it is a clone.
    pub(crate) family: Family,
    /// Epoch second of the last restore, or 0.
    pub(crate) restored_time: u64,
    /// The number of its newest snapshot, also of one that is gone.
    pub(crate) last_snapshot_id: u32,
}

impl Row for Lun {
    type Key = String;

    fn key(&self) -> String {
        self.uuid.clone()
    }

    fn terms(&self) -> Vec<IndexKey> {
        let parent = &self.family.parent_lun_uuid;
        let parent = (!parent.is_empty()).then(|| IndexKey::Lun(parent.clone()));
        [IndexKey::Name(self.name.clone())]
            .into_iter()
            .chain(parent)
            .collect()
    }

    fn number(&self) -> Option<u32> {
        Some(self.lun_id)
    }

    fn luns(&self) -> Vec<String> {
        vec![self.uuid.clone()]
    }
}

impl Lun {
    /// `allocated_size`. Measured: what a clone shares with its source counts in each of them, but a clone from a snapshot
    /// starts with 0.
    // ASSUMED: a thick LUN reports its whole size as allocated.
    pub(crate) fn allocated(&self, outside: &dyn Environment) -> u64 {
        match (
            self.kind.is_thin(),
            self.family.parent_snapshot_uuid.is_empty(),
        ) {
            (false, _) => self.size,
            (true, true) => self.on_disk(outside),
            (true, false) => self.on_disk(outside).saturating_sub(self.family.shared),
        }
    }

    /// Bytes that it takes from its volume.
    // ASSUMED: a block that was shared at first counts as shared for ever, and a snapshot takes no space of its own.
    pub(crate) fn uses(&self, outside: &dyn Environment) -> u64 {
        match (self.kind.is_thin(), self.kind.is_btrfs()) {
            (false, _) => self.size,
            (true, false) => self.on_disk(outside),
            (true, true) => self.on_disk(outside).saturating_sub(self.family.shared),
        }
    }

    fn on_disk(&self, outside: &dyn Environment) -> u64 {
        outside.allocated(&Image::Lun(self.uuid.clone()))
    }

    /// Whether initiators are told that they may free blocks.
    pub(crate) fn takes_unmap(&self) -> bool {
        self.dev_attribs.can_unmap()
    }

    /// Whether initiators are told of a write cache that they have to flush.
    // ASSUMED: a LUN without `emulate_sync_cache` announces no write cache, so that initiators never flush; nobody has measured it.
    pub(crate) fn has_write_cache(&self) -> bool {
        self.dev_attribs.flushes()
    }

    /// Whether DSM is still cloning it from another.
    pub(crate) fn is_cloning(&self, now: Millis) -> bool {
        self.half_done_until.is_some_and(|until| now < until)
    }

    pub(crate) fn is_action_locked(&self, now: Millis) -> bool {
        self.held || self.deleting_until.is_some() || now < self.locked_until
    }

    /// What persists, for the control port.
    pub(crate) fn dump(&self, now: Millis) -> Value {
        json!({
            "uuid": self.uuid,
            "name": self.name,
            "lun_id": self.lun_id,
            "size": self.size,
            "type": self.kind.name(),
            "location": self.location,
            "description": self.description,
            "dev_attribs": self.dev_attribs.list(Generation::Seven),
            "direct_io_pattern": self.direct_io_pattern,
            "status": self.status,
            "is_action_locked": self.is_action_locked(now),
            // Deleted: it goes by itself, and a restart ends it.
            "is_dying": self.deleting_until.is_some(),
            "family_config": self.family.json(),
            "restored_time": self.restored_time,
        })
    }
}

/// Where a LUN comes from, `family_config` in answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Family {
    pub(crate) parent_lun_name: String,
    pub(crate) parent_lun_uuid: String,
    /// Epoch seconds.
    pub(crate) parent_snapshot_time: u64,
    pub(crate) parent_snapshot_uuid: String,
    /// Bytes that its data took when it was made. A reflink shares them with where they came from.
    pub(crate) shared: u64,
}

impl Family {
    pub(crate) fn json(&self) -> Value {
        json!({
            "parent_lun_name": self.parent_lun_name,
            "parent_lun_uuid": self.parent_lun_uuid,
            "parent_snapshot_time": self.parent_snapshot_time,
            "parent_snapshot_uuid": self.parent_snapshot_uuid,
        })
    }
}
