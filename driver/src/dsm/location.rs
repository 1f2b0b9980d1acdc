//! `SYNO.Core.Storage.Volume` v1: the NAS's own volumes (`/volume1`), where LUNs live. Pure. Evidence: `proto/dsm/volume_*.json`.

use serde::{Deserialize, Deserializer};

use super::call::Call;
use crate::volume::Bytes;

const API: &str = "SYNO.Core.Storage.Volume";

/// A volume of the NAS.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Location {
    /// For instance `/volume1`.
    #[serde(rename = "volume_path")]
    pub path: String,
    /// `btrfs` or `ext4`.
    pub fs_type: String,
    /// `normal` when all is well.
    pub status: String,
    /// No writes.
    #[serde(default)]
    pub readonly: bool,
    /// DSM writes a string of bytes.
    #[serde(rename = "size_free_byte", deserialize_with = "bytes")]
    pub free: Bytes,
}

impl Location {
    /// A new LUN may be put here.
    pub fn takes_luns(&self) -> bool {
        !self.readonly
            && matches!(
                self.status.as_str(),
                "normal" | "has_acceptable_disk" | "degrade"
            )
    }
}

/// What stands against the NAS's showing all of its LUNs: a volume that is not `normal` may hold some that are not loaded
/// (design choice 16).
pub fn hides_luns(volumes: &[Location]) -> Option<String> {
    doubt(volumes, "LUNs", |status| status == "normal")
}

/// What stands against the NAS's having come up, which its volumes tell by a status of their own. Until then it shows a part of
/// its LUNs and targets; afterwards only LUNs of a volume that has crashed can be missing, and no target: they stand in the
/// NAS's own configuration.
pub fn is_coming_up(volumes: &[Location]) -> Option<String> {
    let settled = [
        "normal",
        "has_acceptable_disk",
        "degrade",
        "crashed",
        "read_only",
        "deleting",
    ];
    doubt(volumes, "LUNs and targets", |status| {
        settled.contains(&status)
    })
}

fn doubt(volumes: &[Location], what: &str, settled: impl Fn(&str) -> bool) -> Option<String> {
    if volumes.is_empty() {
        return Some("the NAS shows no volumes: it may still be starting".to_owned());
    }
    let doubtful = volumes.iter().find(|volume| !settled(&volume.status))?;
    Some(format!(
        "volume {} of the NAS is {:?}, so {what} may be missing from its list",
        doubtful.path, doubtful.status
    ))
}

fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Text(String),
        Number(u64),
    }
    match Written::deserialize(deserializer)? {
        Written::Number(number) => Ok(Bytes(number)),
        Written::Text(text) => text.parse().map(Bytes).map_err(serde::de::Error::custom),
    }
}

/// `data` of `list`.
#[derive(Debug, Deserialize)]
pub struct LocationsAnswer {
    /// All volumes.
    pub volumes: Vec<Location>,
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
    use super::*;

    #[test]
    fn choice_16_a_nas_that_is_coming_up_proves_nothing() {
        let volume = |status: &str| Location {
            path: "/volume1".to_owned(),
            fs_type: "btrfs".to_owned(),
            status: status.to_owned(),
            readonly: false,
            free: Bytes(0),
        };
        for (status, luns, targets) in [
            ("normal", true, true),
            ("degrade", false, true),
            ("crashed", false, true),
            ("background", false, false),
            ("", false, false),
        ] {
            let volumes = [volume("normal"), volume(status)];
            assert_eq!(hides_luns(&volumes).is_none(), luns, "{status}");
            assert_eq!(is_coming_up(&volumes).is_none(), targets, "{status}");
        }
        assert!(hides_luns(&[]).is_some() && is_coming_up(&[]).is_some());
    }

    #[test]
    fn sizes_come_as_strings() {
        for free in [r#""486521139200""#, "486521139200"] {
            let text = format!(
                r#"{{"volume_path":"/volume1","fs_type":"btrfs","status":"normal","size_free_byte":{free}}}"#
            );
            assert_eq!(
                serde_json::from_str::<Location>(&text).unwrap().free,
                Bytes(486_521_139_200)
            );
        }
    }
}
