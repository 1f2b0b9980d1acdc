//! A row of the LUN table, and the origin of a clone.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::nas::clock::Millis;
use crate::nas::effect::{Environment, Image};
use crate::nas::model::Generation;
use crate::nas::state::lun_type::{DevAttribs, LunType};
use crate::nas::state::table::{IndexKey, Row};

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
    /// Locked through the control port, until unlocked there.
    pub(crate) held: bool,
    /// Locked by DSM's own work until this time.
    #[serde(skip)]
    pub(crate) locked_until: Millis,
    /// A clone that DSM is still copying, until this time. A restart before then removes it.
    pub(crate) half_done_until: Option<Millis>,
    /// A deleted LUN, and when it is removed for good.
    #[serde(alias = "dying")]
    pub(crate) deleting_until: Option<Millis>,
    /// The origin, if it is a clone.
    pub(crate) family: Family,
    /// Epoch second of the last restore, or 0.
    pub(crate) restored_time: u64,
    /// The number of its newest snapshot, even if that is deleted by now.
    pub(crate) last_snapshot_id: u32,
}

impl Row for Lun {
    type Key = String;

    fn key(&self) -> String {
        self.uuid.clone()
    }

    fn index_keys(&self) -> Vec<IndexKey> {
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
    /// `allocated_size`. Measured: blocks that a clone shares with its source count in both, but a clone from a snapshot starts
    /// with 0.
    // ASSUMED: a thick LUN reports its whole size as allocated.
    pub(crate) fn allocated(&self, env: &dyn Environment) -> u64 {
        match (
            self.kind.is_thin(),
            self.family.parent_snapshot_uuid.is_empty(),
        ) {
            (false, _) => self.size,
            (true, true) => self.on_disk(env),
            (true, false) => self.on_disk(env).saturating_sub(self.family.shared),
        }
    }

    /// Bytes that the LUN uses on its volume.
    // ASSUMED: a block that was shared at first counts as shared forever, and a snapshot itself uses no space.
    pub(crate) fn used_bytes(&self, env: &dyn Environment) -> u64 {
        match (self.kind.is_thin(), self.kind.is_btrfs()) {
            (false, _) => self.size,
            (true, false) => self.on_disk(env),
            (true, true) => self.on_disk(env).saturating_sub(self.family.shared),
        }
    }

    fn on_disk(&self, env: &dyn Environment) -> u64 {
        env.allocated(&Image::Lun(self.uuid.clone()))
    }

    /// Whether the LUN announces UNMAP to initiators.
    pub(crate) fn announces_unmap(&self) -> bool {
        self.dev_attribs.can_unmap()
    }

    /// Whether the LUN announces a write cache, which initiators must flush.
    // ASSUMED: a LUN without `emulate_sync_cache` announces no write cache, so that initiators never flush; not measured.
    pub(crate) fn has_write_cache(&self) -> bool {
        self.dev_attribs.honors_sync_cache()
    }

    /// Whether DSM is still copying data into this clone.
    pub(crate) fn is_cloning(&self, now: Millis) -> bool {
        self.half_done_until.is_some_and(|until| now < until)
    }

    pub(crate) fn is_action_locked(&self, now: Millis) -> bool {
        self.held || self.deleting_until.is_some() || now < self.locked_until
    }

    /// The row as JSON, for the control port.
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
            // Deleted: removed when due, or by a restart.
            "is_dying": self.deleting_until.is_some(),
            "family_config": self.family.json(),
            "restored_time": self.restored_time,
        })
    }
}

/// The origin of a cloned LUN, `family_config` in answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Family {
    pub(crate) parent_lun_name: String,
    pub(crate) parent_lun_uuid: String,
    /// Epoch seconds.
    pub(crate) parent_snapshot_time: u64,
    pub(crate) parent_snapshot_uuid: String,
    /// Bytes of data at creation time. A reflink clone shares them with its source.
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
