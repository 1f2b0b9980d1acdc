//! A row of the volume table, and the syntax of a volume on the command line.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::nas::clock::Millis;
use crate::nas::code::{Code, Refusal};
use crate::nas::state::table::{IndexKey, Row};

/// The file system of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileSystem {
    /// btrfs: BLUN types.
    Btrfs,
    /// ext4: ADV, FILE and THIN types.
    Ext4,
}

/// A volume as configured: `/volume1=btrfs:2TiB`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeSpec {
    /// Path, such as `/volume1`.
    pub path: String,
    /// File system: which LUN types it can hold.
    pub fs: FileSystem,
    /// Size in bytes.
    pub size: u64,
    /// DSM's status; `None`: the status before the restart, or `normal`.
    pub status: Option<String>,
}

impl FromStr for VolumeSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hint = "write it like /volume1=btrfs:2TiB, /volume2=ext4:500GiB or /volume3=btrfs:1TiB:attention";
        let (path, rest) = text.split_once('=').ok_or(hint)?;
        let (fs, size) = rest.split_once(':').ok_or(hint)?;
        let (size, status) = size
            .split_once(':')
            .map_or((size, None), |(size, status)| (size, Some(status)));
        volume_number(path).ok_or_else(|| format!("{path} is not a volume path; {hint}"))?;
        let fs = match fs {
            "btrfs" => FileSystem::Btrfs,
            "ext4" => FileSystem::Ext4,
            other => {
                return Err(format!(
                    "{other} is not a file system of a Synology volume (btrfs, ext4); {hint}"
                ));
            }
        };
        let size = bytes(size).ok_or_else(|| {
            format!("{size} is not a size (KiB, MiB, GiB, TiB, PiB or plain bytes); {hint}")
        })?;
        Ok(Self {
            path: path.to_owned(),
            fs,
            size,
            status: status.map(str::to_owned),
        })
    }
}

fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        "TiB" => 40,
        "PiB" => 50,
        _ => return None,
    };
    digits
        .parse::<u64>()
        .ok()
        .filter(|&n| n > 0)?
        .checked_mul(1 << shift)
}

/// The number in `/volume1`.
pub(crate) fn volume_number(path: &str) -> Option<u32> {
    path.strip_prefix("/volume")?.parse().ok()
}

/// A volume of the NAS.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Volume {
    pub(crate) path: String,
    pub(crate) fs: FileSystem,
    pub(crate) size: u64,
    /// `normal`, `attention`, `crashed`, `background`, … or any other text.
    pub(crate) status: String,
    /// Bytes used by files other than LUNs.
    pub(crate) used_elsewhere: u64,
    /// `internal`, or `external` for a unit that is plugged in.
    #[serde(default = "internal")]
    pub(crate) container: String,
    /// The field `location`, if it differs from `container`.
    #[serde(default)]
    pub(crate) location: Option<String>,
    /// Fields that are missing from its rows, as unreadable ones are from those of a crashed volume.
    #[serde(default)]
    pub(crate) without: Vec<String>,
    /// Whether its LUNs are hidden because they cannot be read.
    #[serde(default)]
    pub(crate) hides_luns: bool,
}

fn internal() -> String {
    "internal".to_owned()
}

/// Space of a deleted LUN that becomes free only later.
#[derive(Debug)]
pub(crate) struct SpaceReturn {
    pub(crate) at: Millis,
    pub(crate) volume: String,
    pub(crate) bytes: u64,
}

impl Row for Volume {
    type Key = String;

    fn key(&self) -> String {
        self.path.clone()
    }

    fn index_keys(&self) -> Vec<IndexKey> {
        Vec::new()
    }

    fn number(&self) -> Option<u32> {
        None
    }
}

impl From<VolumeSpec> for Volume {
    fn from(spec: VolumeSpec) -> Self {
        Self {
            path: spec.path,
            fs: spec.fs,
            size: spec.size,
            status: spec.status.unwrap_or_else(|| "normal".to_owned()),
            used_elsewhere: 0,
            container: internal(),
            location: None,
            without: Vec::new(),
            hides_luns: false,
        }
    }
}

impl Volume {
    /// Refuses changes on a volume that is not writable.
    // ASSUMED: 18990327, "space cannot be read", on a crashed or read-only volume or one that is being deleted; the answer was
    // not recorded.
    pub(crate) fn writable(&self) -> Result<(), Refusal> {
        match self.status.as_str() {
            "crashed" | "read_only" | "deleting" => {
                Err(Code::SpaceUnreadable.because(format!("{} is {}", self.path, self.status)))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volume_specs_are_parsed() {
        let spec: VolumeSpec = "/volume1=btrfs:2TiB".parse().unwrap();
        assert_eq!(
            spec,
            VolumeSpec {
                path: "/volume1".into(),
                fs: FileSystem::Btrfs,
                size: 2 << 40,
                status: None,
            }
        );
        let with_status: VolumeSpec = "/volume2=ext4:1GiB:attention".parse().unwrap();
        assert_eq!(
            (with_status.size, with_status.status.as_deref()),
            (1 << 30, Some("attention"))
        );
        assert_eq!(
            "/volume12=ext4:1048576".parse::<VolumeSpec>().unwrap().size,
            1 << 20
        );
        for bad in [
            "",
            "/volume1",
            "/volume1=btrfs",
            "/vol=btrfs:1GiB",
            "/volume1=xfs:1GiB",
            "/volume1=ext4:1GB",
            "/volume1=ext4:0",
            "/volume1=ext4:GiB",
        ] {
            assert!(
                bad.parse::<VolumeSpec>()
                    .unwrap_err()
                    .contains("/volume1=btrfs:2TiB"),
                "{bad}"
            );
        }
    }
}
