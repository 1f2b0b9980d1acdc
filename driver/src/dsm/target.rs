//! `SYNO.Core.ISCSI.Target` v1: calls and answers. Pure. Evidence: `proto/dsm/target_*.json`.
//!
//! `target_id` is a JSON *string* holding the number; a bare number is refused (measured).

use serde::Deserialize;

use super::call::Call;
use crate::publication::Iqn;
use crate::volume::LunUuid;

const API: &str = "SYNO.Core.ISCSI.Target";
const ADDITIONAL: [&str; 2] = ["mapped_lun", "connected_sessions"];

/// A target as `get` and `list` report it. Unknown fields are ignored.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Target {
    /// DSM's key.
    pub target_id: u64,
    /// Unique on the NAS.
    pub name: String,
    /// Unique on the NAS.
    pub iqn: String,
    /// A disabled target takes no logins.
    pub is_enabled: Option<bool>,
    /// Always asked for.
    pub mapped_luns: Vec<Mapping>,
    /// Always asked for.
    #[serde(default)]
    pub connected_sessions: Vec<ConnectedSession>,
}

/// A LUN that a target exports.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Mapping {
    /// The LUN's key.
    pub lun_uuid: String,
    /// The SCSI logical unit number.
    pub mapping_index: u16,
}

/// An initiator that is logged in.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct ConnectedSession {
    /// Its name.
    pub iqn: String,
    /// Its address.
    #[serde(default)]
    pub ip: String,
}

impl Target {
    /// The logical unit number under which it exports `lun`.
    pub fn mapping_of(&self, lun: &LunUuid) -> Option<u16> {
        self.mapped_luns
            .iter()
            .find(|mapping| mapping.lun_uuid == lun.as_str())
            .map(|mapping| mapping.mapping_index)
    }

    /// Its IQN, when it has the form of one.
    pub fn iqn(&self) -> Option<Iqn> {
        self.iqn.parse().ok()
    }
}

/// `data` of `get`.
#[derive(Debug, Deserialize)]
pub struct TargetAnswer {
    /// The target.
    pub target: Target,
}

/// `data` of `list`.
#[derive(Debug, Deserialize)]
pub struct TargetsAnswer {
    /// The targets.
    pub targets: Vec<Target>,
}

/// `data` of `create`.
#[derive(Debug, Deserialize)]
pub struct CreatedTarget {
    /// The new target's key.
    pub target_id: u64,
}

/// `list` of all targets.
pub fn list() -> Call {
    Call::new(API, 1, "list").with("additional", ADDITIONAL)
}

/// `list` of the targets that export `lun`. The filter is not proven: check every row.
pub fn list_of(lun: &LunUuid) -> Call {
    list().with("lun_uuid", lun.as_str())
}

/// `get` by name.
pub fn get(name: &str) -> Call {
    Call::new(API, 1, "get")
        .with("target_id", name)
        .with("additional", ADDITIONAL)
}

/// `create`, for any number of sessions (`max_sessions` 0): the publication is fenced by its own target.
pub fn create(name: &str, iqn: &Iqn) -> Call {
    Call::new(API, 1, "create")
        .with("name", name)
        .with("iqn", iqn.as_str())
        .with("auth_type", 0)
        .with("max_sessions", 0)
}

/// `delete`, by numeric id only (design choice 6).
pub fn delete(target_id: u64) -> Call {
    Call::new(API, 1, "delete").with("target_id", target_id.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choice_6_targets_are_deleted_by_a_number_in_quotes() {
        assert_eq!(delete(3).form()[3], ("target_id", "\"3\"".to_owned()));
    }

    #[test]
    fn a_target_without_mapped_luns_is_not_an_answer() {
        let text = r#"{"target_id":1,"name":"n","iqn":"iqn.x","is_enabled":true}"#;
        assert!(
            serde_json::from_str::<Target>(text).is_err(),
            "unknown is not absent"
        );
    }
}
