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
