//! `SYNO.Core.ISCSI.LUN` v1: calls and replies. Pure. Evidence: `proto/dsm/lun_*.json`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::call::{Call, LUN_API};
use super::rows::{Rows, UnreadableRow, any_string};
use crate::owner_tag::Owner;
use crate::volume::{Bytes, LunUuid};

pub(super) const API: &str = LUN_API;
const ADDITIONAL: [&str; 3] = ["status", "is_action_locked", "is_mapped"];

/// A LUN as `get` and `list` report it. Unknown fields are ignored.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Lun {
    /// DSM's key, and the SCSI unit serial.
    pub uuid: String,
    /// Unique on the NAS.
    pub name: String,
    /// Provisioned size, bytes. Space used is `allocated_size`.
    pub size: u64,
    /// For instance `/volume1`.
    pub location: String,
    /// Free text; contains the owner tag.
    #[serde(default)]
    pub description: String,
    /// The type as a number, or its name (older releases).
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The type's name (DSM 7).
    pub type_str: Option<String>,
    /// DSM's status; the full set of values is not known, `normal` if healthy. Always requested.
    #[serde(default, deserialize_with = "any_string")]
    pub status: String,
    /// Create, clone, restore or delete is in progress. Always requested.
    pub is_action_locked: Option<bool>,
    /// It is exported, by a target or otherwise. Always requested.
    pub is_mapped: Option<bool>,
}

/// `type` in replies.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Kind {
    /// A bit field.
    Number(u32),
    /// The name, as `create` takes it.
    Name(String),
}

impl Lun {
    /// The type's name as `create` takes it, if it is known.
    pub fn type_name(&self) -> Option<&str> {
        match (&self.type_str, &self.kind) {
            (Some(name), _) | (None, Kind::Name(name)) => Some(name),
            // Bits: LUN 1, FILE 2, THIN 4, ADV 8, BLUN 256.
            (None, Kind::Number(3)) => Some("FILE"),
            (None, Kind::Number(7)) => Some("THIN"),
            (None, Kind::Number(15)) => Some("ADV"),
            (None, Kind::Number(259)) => Some("BLUN_THICK"),
            (None, Kind::Number(263)) => Some("BLUN"),
            (None, Kind::Number(_)) => None,
        }
    }

    /// The provisioned size.
    pub fn size(&self) -> Bytes {
        Bytes(self.size)
    }

    /// Why it cannot be changed now; `None` if it can. `is_action_locked` is DSM's own flag during create, clone, restore and
    /// delete. If the reply lacks it, the LUN counts as locked.
    pub fn locked(&self) -> Option<String> {
        let seen = match self.is_action_locked {
            Some(false) => return None,
            Some(true) => "true",
            None => "unknown",
        };
        Some(format!(
            "LUN {} has is_action_locked {seen} and status {:?}",
            self.uuid, self.status
        ))
    }

    /// Why it cannot be used now; `None` if it can. Only states that are known to be bad count: DSM has many.
    pub fn not_ready(&self) -> Option<String> {
        if let Some(seen) = self.locked() {
            return Some(seen);
        }
        UNUSABLE.contains(&self.status.as_str()).then(|| {
            format!(
                "LUN {} has status {:?}: look at it and its volume {} in SAN Manager",
                self.uuid, self.status, self.location
            )
        })
    }

    /// The status is a known one, so there is no need to log it.
    pub fn has_known_status(&self) -> bool {
        let status = self.status.as_str();
        HARMLESS.contains(&status) || UNUSABLE.contains(&status)
    }
}

/// States in which a LUN takes no reads or writes. Source: the reference, part 2, section G.1.
const UNUSABLE: [&str; 8] = [
    "crashed",
    "unhealthy",
    "unavailable",
    "unavailabling",
    "volume_offline",
    "broken",
    "creating",
    "deleting",
];

/// The other states of that list.
const HARMLESS: [&str; 8] = [
    "",
    "normal",
    "finished",
    "soft_limit_reach",
    "hard_limit_reach",
    "defragging",
    "expanding",
    "processing",
];

/// An unreadable row could be the LUN with this key.
pub fn may_be(uuid: &LunUuid, row: &UnreadableRow) -> bool {
    match (row.text("uuid"), row.text("name")) {
        (Some(seen), _) => seen == uuid.as_str(),
        (None, Some(name)) => name.starts_with(PREFIX),
        (None, None) => true,
    }
}

/// The prefix of all LUN names of this driver.
const PREFIX: &str = "csi";

/// An unreadable row could be a LUN of this driver: it has the owner tag, or that cannot be determined.
pub fn may_be_ours(owner: &Owner, row: &UnreadableRow) -> bool {
    match (row.text("description"), row.text("name")) {
        (Some(description), _) => owner.read(description).is_ok(),
        (None, Some(name)) => name.starts_with(PREFIX),
        (None, None) => true,
    }
}

/// `data` of `get`.
#[derive(Debug, Deserialize)]
pub struct LunAnswer {
    /// The LUN.
    pub lun: Lun,
}

/// `data` of `list`.
#[derive(Debug, Deserialize)]
pub struct LunsAnswer {
    /// All LUNs of the NAS: `list` has no pages.
    pub luns: Rows<Lun>,
}

/// `data` of `create`.
#[derive(Debug, Deserialize)]
pub struct CreatedLun {
    /// The new LUN's key.
    pub uuid: String,
}

/// `get`: DSM takes a name in `uuid` too.
pub fn get(uuid_or_name: &str) -> Call {
    Call::new(API, 1, "get")
        .with("uuid", uuid_or_name)
        .with("additional", ADDITIONAL)
}

/// `list` without `types`: a filter hides some LUNs.
pub fn list() -> Call {
    Call::new(API, 1, "list").with("additional", ADDITIONAL)
}

/// The parameters of `create`.
#[derive(Clone, Debug, PartialEq)]
pub struct NewLun {
    /// At most 64 characters of DSM's alphabet.
    pub name: String,
    /// Provisioned size.
    pub size: Bytes,
    /// For instance `BLUN`.
    pub kind: String,
    /// For instance `/volume1`.
    pub location: String,
    /// Contains the owner tag.
    pub description: String,
    /// A node's flushes are acknowledged only when they have reached the NAS's disks. Off unless requested; afterwards only `set`
    /// can switch it on.
    pub flushes: bool,
}

/// `create`, with snapshots and UNMAP switched on where the type has them (design.md#mkfs-defaults).
pub fn create(lun: &NewLun) -> Call {
    let call = Call::new(API, 1, "create")
        .with("name", &lun.name)
        .with("size", lun.size.0)
        .with("type", &lun.kind)
        .with("location", &lun.location)
        .with("description", &lun.description);
    let mut on = Vec::new();
    if matches!(lun.kind.as_str(), "BLUN" | "ADV") {
        on.extend(["emulate_tpu", "can_snapshot"]);
    }
    if lun.flushes {
        on.extend(["emulate_fua_write", "emulate_sync_cache"]);
    }
    if on.is_empty() {
        return call;
    }
    let on = on.into_iter();
    let attributes: Vec<Value> = on
        .map(|name| json!({"dev_attrib": name, "enable": 1}))
        .collect();
    call.with("dev_attribs", attributes)
}

/// `set`: grows a LUN to `size`.
pub fn set_size(uuid: &LunUuid, size: Bytes) -> Call {
    Call::new(API, 1, "set")
        .with("uuid", uuid.as_str())
        .with("new_size", size.0)
}

/// `delete`.
pub fn delete(uuid: &LunUuid) -> Call {
    Call::new(API, 1, "delete").with("uuid", uuid.as_str())
}

/// `map_target`: adds a target to those that export the LUN.
pub fn map_target(uuid: &LunUuid, target_id: u64) -> Call {
    Call::new(API, 1, "map_target")
        .with("uuid", uuid.as_str())
        .with("target_ids", [target_id])
}

/// The method of [`unmap_target`].
pub(super) const UNMAP: &str = "unmap_target";

/// `unmap_target`: removes a target from those that export the LUN.
pub fn unmap_target(uuid: &LunUuid, target_id: u64) -> Call {
    Call::new(API, 1, UNMAP)
        .with("uuid", uuid.as_str())
        .with("target_ids", [target_id])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lun(extra: &str) -> Lun {
        serde_json::from_str(&format!(
            r#"{{"uuid":"u","name":"n","size":1073741824,"location":"/volume1","type":263,"unknown":[1]{extra}}}"#
        ))
        .unwrap()
    }

    #[test]
    fn the_type_is_read_from_either_field() {
        assert_eq!(lun("").type_name(), Some("BLUN"));
        assert_eq!(
            lun(r#","type_str":"BLUN_THICK""#).type_name(),
            Some("BLUN_THICK")
        );
        let named: Lun = serde_json::from_str(
            r#"{"uuid":"u","name":"n","size":1,"location":"/v","type":"THIN"}"#,
        )
        .unwrap();
        assert_eq!(named.type_name(), Some("THIN"));
    }

    /// design.md#create-first
    #[test]
    fn locked_luns_and_known_bad_states_are_not_ready() {
        for (extra, locked, ready) in [
            (
                r#","status":"normal","is_action_locked":false"#,
                false,
                true,
            ),
            (r#","is_action_locked":false"#, false, true),
            (r#","status":null,"is_action_locked":false"#, false, true),
            (r#","status":3,"is_action_locked":false"#, false, true),
            (
                r#","status":"soft_limit_reach","is_action_locked":false"#,
                false,
                true,
            ),
            (
                r#","status":"a status of DSM 8","is_action_locked":false"#,
                false,
                true,
            ),
            (
                r#","status":"creating","is_action_locked":false"#,
                false,
                false,
            ),
            (
                r#","status":"crashed","is_action_locked":false"#,
                false,
                false,
            ),
            ("", true, false),
            (r#","status":"normal""#, true, false),
            (r#","status":"normal","is_action_locked":true"#, true, false),
        ] {
            let lun = lun(extra);
            assert_eq!(lun.locked().is_some(), locked, "{extra}");
            assert_eq!(lun.not_ready().is_none(), ready, "{extra}");
        }
    }

    #[test]
    fn an_unreadable_row_may_be_ours() {
        let owner = Owner::new("csi.synology.com".to_owned(), None);
        let tag = owner.minimal_tag();
        for (row, ours) in [
            (json!({"name": "vm", "description": "my LUN"}), false),
            (json!({"name": "vm"}), false),
            (json!({"name": "csi-pvc-1"}), true),
            (json!({"name": "vm", "description": tag}), true),
            (json!({"uuid": "u"}), true),
            (json!(null), true),
        ] {
            let rows: Rows<Lun> = serde_json::from_value(json!([row])).unwrap();
            assert_eq!(may_be_ours(&owner, &rows.unreadable[0]), ours, "{row}");
        }
    }

    /// design.md#mkfs-defaults
    #[test]
    fn thin_luns_are_created_with_unmap_and_snapshots() {
        let new = |kind: &str| NewLun {
            name: "n".to_owned(),
            size: Bytes::GIB,
            kind: kind.to_owned(),
            location: "/volume1".to_owned(),
            description: String::new(),
            flushes: false,
        };
        let attributes = |kind, flushes| {
            let new = NewLun {
                flushes,
                ..new(kind)
            };
            let form = create(&new).form().into_iter();
            form.filter(|(name, _)| *name == "dev_attribs")
                .map(|(_, text)| text)
                .next()
                .unwrap_or_default()
        };
        for (kind, thin) in [("BLUN", true), ("FILE", false)] {
            for flushes in [true, false] {
                let sent = attributes(kind, flushes);
                for (name, on) in [
                    ("can_snapshot", thin),
                    ("emulate_tpu", thin),
                    ("emulate_fua_write", flushes),
                    ("emulate_sync_cache", flushes),
                ] {
                    assert_eq!(sent.contains(name), on, "{kind} {flushes} {name}: {sent}");
                }
            }
        }
        assert_eq!(attributes("FILE", false), "");
    }
}
