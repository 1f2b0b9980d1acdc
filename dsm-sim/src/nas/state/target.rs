//! A row of the target table, with the LUNs that it maps.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::nas::state::table::{IndexKey, Row};

#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[expect(clippy::struct_field_names, reason = "target_id is what DSM calls it")]
pub(crate) struct Target {
    pub(crate) target_id: u32,
    pub(crate) name: String,
    pub(crate) iqn: String,
    /// 0 none, 1 CHAP, 2 mutual CHAP.
    pub(crate) auth_type: u64,
    pub(crate) user: String,
    pub(crate) password: String,
    pub(crate) mutual_user: String,
    pub(crate) mutual_password: String,
    /// 0: no limit.
    pub(crate) max_sessions: u64,
    pub(crate) has_header_checksum: bool,
    pub(crate) has_data_checksum: bool,
    pub(crate) max_recv_seg_bytes: u64,
    pub(crate) max_send_seg_bytes: u64,
    pub(crate) enabled: bool,
    /// LUN uuid by mapping index, which is the SCSI LUN number.
    pub(crate) luns: BTreeMap<u16, String>,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Target({} {} {:?})", self.target_id, self.iqn, self.luns)
    }
}

impl Row for Target {
    type Key = u32;

    fn key(&self) -> u32 {
        self.target_id
    }

    fn index_keys(&self) -> Vec<IndexKey> {
        let names = [
            IndexKey::Name(self.name.clone()),
            IndexKey::Iqn(self.iqn.clone()),
        ];
        let luns = self.luns.values().map(|uuid| IndexKey::Lun(uuid.clone()));
        names.into_iter().chain(luns).collect()
    }

    fn number(&self) -> Option<u32> {
        Some(self.target_id)
    }

    fn luns(&self) -> Vec<String> {
        self.luns.values().cloned().collect()
    }
}

impl Target {
    /// A target with DSM's defaults, without name and IQN.
    pub(crate) fn blank() -> Self {
        Self {
            target_id: 0,
            name: String::new(),
            iqn: String::new(),
            auth_type: 0,
            user: String::new(),
            password: String::new(),
            mutual_user: String::new(),
            mutual_password: String::new(),
            // Measured: one initiator, unless the client requests more.
            max_sessions: 1,
            has_header_checksum: false,
            has_data_checksum: false,
            max_recv_seg_bytes: 262_144,
            max_send_seg_bytes: 262_144,
            enabled: true,
            luns: BTreeMap::new(),
        }
    }

    /// Whether the target maps this LUN.
    pub(crate) fn maps(&self, uuid: &str) -> bool {
        self.luns.values().any(|mapped| mapped == uuid)
    }

    pub(crate) fn mapped_luns(&self) -> Value {
        self.luns
            .iter()
            .map(|(index, uuid)| json!({"lun_uuid": uuid, "mapping_index": index}))
            .collect()
    }

    /// The row as JSON, for the control port. Passwords are masked.
    pub(crate) fn dump(&self) -> Value {
        let secret = |text: &str| if text.is_empty() { "" } else { "***" };
        json!({
            "target_id": self.target_id,
            "name": self.name,
            "iqn": self.iqn,
            "auth_type": self.auth_type,
            "user": self.user,
            "password": secret(&self.password),
            "mutual_user": self.mutual_user,
            "mutual_password": secret(&self.mutual_password),
            "max_sessions": self.max_sessions,
            "has_header_checksum": self.has_header_checksum,
            "has_data_checksum": self.has_data_checksum,
            "max_recv_seg_bytes": self.max_recv_seg_bytes,
            "max_send_seg_bytes": self.max_send_seg_bytes,
            "is_enabled": self.enabled,
            "mapped_luns": self.mapped_luns(),
        })
    }
}
