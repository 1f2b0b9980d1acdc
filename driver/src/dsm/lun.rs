//! `SYNO.Core.ISCSI.LUN` v1: calls and answers. Pure. Evidence: `proto/dsm/lun_*.json`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::call::{Call, LUN_API};
use super::rows::{Rows, UnreadableRow, word};
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
    /// Free text: here stands the mark.
    #[serde(default)]
    pub description: String,
    /// The type's integer, or its name (older answers).
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The type's name (DSM 7).
    pub type_str: Option<String>,
    /// One of DSM's words, of which nobody knows all; `normal` when all is well. Always asked for.
    #[serde(default, deserialize_with = "word")]
    pub status: String,
    /// Create, clone, restore or delete is under way. Always asked for.
    pub is_action_locked: Option<bool>,
    /// Something exports it. Always asked for.
    pub is_mapped: Option<bool>,
}

/// `type` in answers.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Kind {
    /// A bit field.
    Number(u32),
    /// The name, as `create` takes it.
    Name(String),
}

impl Lun {
    /// The type's name as `create` takes it, when it can be told.
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

    /// Its size.
    pub fn size(&self) -> Bytes {
        Bytes(self.size)
    }

    /// Why nothing can be done with it at present; `None` when something can. This is DSM's own sign for create, clone, restore and
    /// delete. An answer that leaves it out is no assurance.
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

    /// Why it cannot be used at present; `None` when it can. Only words that are known to be bad count: DSM's are many.
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

    /// Its status is one about which there is nothing to say.
    pub fn has_known_status(&self) -> bool {
        let word = self.status.as_str();
        HARMLESS.contains(&word) || UNUSABLE.contains(&word)
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

/// The others of that list.
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

/// A row that cannot be read could be the LUN of this key.
pub fn may_be(uuid: &LunUuid, row: &UnreadableRow) -> bool {
    match (row.text("uuid"), row.text("name")) {
        (Some(seen), _) => seen == uuid.as_str(),
        (None, Some(name)) => name.starts_with(PREFIX),
        (None, None) => true,
    }
}

/// All names that this driver gives to LUNs begin so.
const PREFIX: &str = "csi";

/// A row that cannot be read could be a LUN of this driver's: it bears the mark, or nobody can tell.
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

/// What `create` is told.
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
    /// The mark.
    pub description: String,
    /// A node's flushes reach the NAS's disks before they are answered: off unless it is asked for, and then nothing can switch it on
    /// but `set`.
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

/// `unmap_target`: takes a target from those that export the LUN.
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
    fn the_type_is_told_from_either_field() {
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
    fn a_lock_decides_and_only_words_known_to_be_bad_count() {
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
                r#","status":"a word of DSM 8","is_action_locked":false"#,
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
    fn whose_an_unfit_row_is() {
        let owner = Owner::new("csi.synology.com".to_owned(), None);
        let mark = owner.short();
        for (row, ours) in [
            (json!({"name": "vm", "description": "my LUN"}), false),
            (json!({"name": "vm"}), false),
            (json!({"name": "csi-pvc-1"}), true),
            (json!({"name": "vm", "description": mark}), true),
            (json!({"uuid": "u"}), true),
            (json!(null), true),
        ] {
            let rows: Rows<Lun> = serde_json::from_value(json!([row])).unwrap();
            assert_eq!(may_be_ours(&owner, &rows.unfit[0]), ours, "{row}");
        }
    }

    /// design.md#mkfs-defaults
    #[test]
    fn thin_luns_ask_for_unmap_and_snapshots() {
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
