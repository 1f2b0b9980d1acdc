//! `SYNO.Core.Storage.Volume` v1: the volumes of the NAS (`/volume1`), on which LUNs are stored. Pure. Evidence:
//! `proto/dsm/volume_*.json`.

use serde::{Deserialize, Deserializer};

use super::call::Call;
use super::rows::{self, Rows};
use crate::volume::Bytes;

const API: &str = "SYNO.Core.Storage.Volume";

/// A volume of the NAS.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Location {
    /// For instance `/volume1`.
    #[serde(rename = "volume_path")]
    pub path: String,
    /// `btrfs` or `ext4`.
    #[serde(default, deserialize_with = "rows::any_string")]
    pub fs_type: String,
    /// DSM's status; the full set of values is not known: `normal`, `attention`, `background`, `degrade`, `crashed`, …
    #[serde(default, deserialize_with = "rows::any_string")]
    pub status: String,
    /// The volume is read-only.
    #[serde(default)]
    pub readonly: bool,
    /// Free space. DSM sends the number of bytes as a string, and nothing for a crashed volume.
    #[serde(rename = "size_free_byte", default, deserialize_with = "bytes")]
    pub free: Option<Bytes>,
    /// `internal`, or `external` for a volume in an expansion unit or on an external disk.
    #[serde(default, deserialize_with = "rows::any_string")]
    pub location: String,
    /// The same information again; the two have never been seen to differ.
    #[serde(default, deserialize_with = "rows::any_string")]
    pub container: String,
}

/// DSM's value for a volume in the NAS itself.
const INTERNAL: &str = "internal";

/// States in which the LUNs of a volume are not listed. Source: the reference's lists of status values (part 2, section G.1).
/// ASSUMED: the values for a volume that is encrypted and locked.
const HIDES_LUNS: [&str; 8] = [
    "crashed",
    "locked",
    "unmounted",
    "offline",
    "missing",
    "broken",
    "failed",
    "failure",
];

/// Further states in which a volume takes no new LUN.
const TAKES_NO_LUNS: [&str; 3] = ["read_only", "deleting", "creating"];

impl Location {
    /// A new LUN may be created here. Only states that are known to be bad count: DSM has many, and a volume that is merely full,
    /// being checked or on an unverified disk has its own status.
    pub fn takes_luns(&self) -> bool {
        let is_in = |states: &[&str]| states.contains(&self.status.as_str());
        !self.readonly && !is_in(&HIDES_LUNS) && !is_in(&TAKES_NO_LUNS)
    }

    /// The status is a known one, so there is no need to log it.
    pub fn has_known_status(&self) -> bool {
        let harmless = [
            "normal",
            "attention",
            "background",
            "background_optimizing",
            "data_scrubbing",
            "degrade",
            "expanding",
            "has_acceptable_disk",
            "has_unverified_disk",
            "migrate_to_shr2",
            "raid_syncing",
            "syncing",
        ];
        let status = self.status.as_str();
        harmless.contains(&status)
            || HIDES_LUNS.contains(&status)
            || TAKES_NO_LUNS.contains(&status)
    }

    /// It is in a unit that can be unplugged, so it is used only if the StorageClass names it. Either of two fields may say so;
    /// an empty field means nothing.
    pub fn is_external(&self) -> bool {
        self.external_unit().is_some()
    }

    /// DSM's value for the external unit, if it is in one.
    fn external_unit(&self) -> Option<&str> {
        let values = [self.location.as_str(), self.container.as_str()];
        values
            .into_iter()
            .find(|value| !value.is_empty() && *value != INTERNAL)
    }
}

impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            path,
            fs_type,
            status,
            ..
        } = self;
        write!(f, "{path} ({fs_type}, {status:?}")?;
        if self.readonly {
            write!(f, ", read-only")?;
        }
        if let Some(unit) = self.external_unit() {
            write!(f, ", {unit}")?;
        }
        write!(f, ")")
    }
}

/// Why LUNs may be missing from the list: those of a volume that has crashed or is locked are not listed
/// (design.md#unknown-is-not-absent). Unknown states do not count. For a LUN that is known to be on the volume `place` only that
/// volume's state counts: LUNs do not move.
pub fn hides_luns(volumes: &Rows<Location>, place: Option<&str>) -> Option<String> {
    let hides = |volume: &&Location| HIDES_LUNS.contains(&volume.status.as_str());
    let is_own = |volume: &&Location| Some(volume.path.as_str()) == place;
    if volumes
        .readable
        .iter()
        .find(is_own)
        .is_some_and(|own| !hides(&own))
    {
        return None;
    }
    if let Some(row) = volumes.unreadable.first() {
        return Some(format!(
            "of the volumes of the NAS, {}, so LUNs may be missing from its list",
            row.seen()
        ));
    }
    if volumes.readable.is_empty() {
        return Some("the NAS shows no volumes: look in Storage Manager".to_owned());
    }
    volumes.readable.iter().find(hides).map(|volume| {
        format!(
            "volume {} of the NAS is {:?}, and its LUNs may be missing from the list: repair or unlock it in Storage Manager, or remove it there if it is lost",
            volume.path, volume.status
        )
    })
}

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Bytes>, D::Error> {
    let text = rows::any_string(deserializer)?;
    Ok(text.parse().ok().map(Bytes))
}

/// `data` of `list`.
#[derive(Debug, Deserialize)]
pub struct LocationsAnswer {
    /// All volumes.
    pub volumes: Rows<Location>,
}

/// `data` of `get`: without `volume` when the path is not one of a volume (measured).
#[derive(Debug, Deserialize)]
pub struct LocationAnswer {
    /// The volume.
    pub volume: Option<Location>,
}

/// `list` of all volumes.
pub fn list() -> Call {
    Call::new(API, 1, "list")
        .with("offset", 0)
        .with("limit", -1)
        .with("location", "all")
}

/// `get`.
pub fn get(path: &str) -> Call {
    Call::new(API, 1, "get").with("volume_path", path)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn volumes(rows: &serde_json::Value) -> Rows<Location> {
        serde_json::from_value(rows.clone()).unwrap()
    }

    /// design.md#unknown-is-not-absent
    #[test]
    fn only_states_that_are_known_to_hide_luns_count() {
        for (status, takes, hides) in [
            (json!("normal"), true, false),
            (json!("degrade"), true, false),
            (json!("attention"), true, false),
            (json!("has_unverified_disk"), true, false),
            (json!("background"), true, false),
            (json!("a status of DSM 8"), true, false),
            (json!(""), true, false),
            (json!(7), true, false),
            (json!(null), true, false),
            (json!("read_only"), false, false),
            (json!("deleting"), false, false),
            (json!("crashed"), false, true),
            (json!("locked"), false, true),
        ] {
            let rows = volumes(&json!([
                {"volume_path": "/volume1", "fs_type": "btrfs", "status": "normal", "size_free_byte": "1"},
                {"volume_path": "/volume2", "status": status},
            ]));
            assert_eq!(rows.readable[1].takes_luns(), takes, "{status}");
            let doubt = hides_luns(&rows, None);
            assert_eq!(doubt.is_some(), hides, "{status}");
            // Only the volume of the LUN counts.
            for (place, hides) in [
                ("/volume1", false),
                ("/volume2", hides),
                ("/volume3", hides),
            ] {
                let doubt = hides_luns(&rows, Some(place));
                assert_eq!(doubt.is_some(), hides, "{status} {place}");
            }
            assert!(
                doubt.is_none_or(|doubt| doubt.contains("/volume2")),
                "{status}"
            );
        }
        for nothing in [json!([]), json!([{"volume_path": 1}])] {
            let doubt = hides_luns(&volumes(&nothing), Some("/volume1"));
            assert!(doubt.is_some(), "{nothing}");
        }
    }

    #[test]
    fn either_field_shows_an_external_unit() {
        for (fields, external) in [
            (json!({}), false),
            (json!({"location": null, "container": ""}), false),
            (
                json!({"location": "internal", "container": "internal"}),
                false,
            ),
            (json!({"location": "internal"}), false),
            (
                json!({"location": "external", "container": "external"}),
                true,
            ),
            (json!({"location": "external"}), true),
            (
                json!({"location": "internal", "container": "external"}),
                true,
            ),
            (
                json!({"location": "external", "container": "internal"}),
                true,
            ),
            (json!({"location": "internal", "container": "esata"}), true),
        ] {
            let mut row = json!({"volume_path": "/volume1"});
            row.as_object_mut()
                .unwrap()
                .extend(fields.as_object().unwrap().clone());
            let location = &volumes(&json!([row])).readable[0];
            assert_eq!(location.is_external(), external, "{fields}");
            assert_eq!(location.to_string().contains(", e"), external, "{location}");
        }
    }

    #[test]
    fn sizes_come_as_strings() {
        for (free, read) in [
            (json!("486521139200"), Some(486_521_139_200)),
            (json!(486_521_139_200_u64), Some(486_521_139_200)),
            (json!(""), None),
            (json!(null), None),
            (json!(-1), None),
        ] {
            let rows = volumes(&json!([{"volume_path": "/volume1", "size_free_byte": free}]));
            assert_eq!(rows.readable[0].free, read.map(Bytes), "{free}");
        }
    }
}
