//! A StorageClass's parameters (design.md#parameters). Pure.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

use super::{Capability, fs_type};
use crate::dsm::Nas;
use crate::error::Error;
use crate::host::filesystem::FormatOptions;
use crate::min_free::Floor;
use crate::volume::{FsType, NasName, digest};

/// A LUN type as the StorageClass asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LunType {
    /// DSM's own word: `BLUN`, `BLUN_THICK`, `ADV`, `FILE`, `THIN`.
    Exactly(&'static str),
    /// `thin` or nothing: what the volume's file system offers.
    Thin,
    /// `thick`: what the volume's file system offers.
    Thick,
}

impl fmt::Display for LunType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exactly(word) => word,
            Self::Thin => "thin",
            Self::Thick => "thick",
        })
    }
}

const DSM_TYPES: [&str; 5] = ["BLUN", "BLUN_THICK", "ADV", "FILE", "THIN"];

impl LunType {
    /// DSM's word for it on a volume with this file system. Source: `SynologyOpenSource/synology-csi`.
    pub fn on(&self, fs_type: &str) -> &'static str {
        match (self, fs_type == "btrfs") {
            (Self::Exactly(word), _) => word,
            (Self::Thin, true) => "BLUN",
            (Self::Thin, false) => "ADV",
            (Self::Thick, true) => "BLUN_THICK",
            (Self::Thick, false) => "FILE",
        }
    }

    /// It can be on a volume with this file system. Source: the reference, section 4.1.
    pub fn fits(&self, fs_type: &str) -> bool {
        match self {
            Self::Exactly("BLUN" | "BLUN_THICK") => fs_type == "btrfs",
            Self::Exactly("ADV") => fs_type == "ext4",
            Self::Exactly(_) | Self::Thin | Self::Thick => true,
        }
    }
}

/// A StorageClass's parameters (design.md#parameters).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// The NAS: by name or alias (`nas`).
    pub nas: Option<NasName>,
    /// The NAS: by the host of its address (`dsm`, the official driver's word).
    pub dsm: Option<String>,
    /// The NAS's volume; `None` lets the driver choose.
    pub location: Option<String>,
    /// The LUN's type.
    pub kind: LunType,
    /// `type` was given.
    pub kind_given: bool,
    /// As asked for in the StorageClass or, failing that, in the capability.
    pub fs_type: Option<FsType>,
    /// Options for mkfs.
    pub format_options: Option<String>,
    /// A node's flushes must reach the NAS's disks (`enableFuaSyncCache`); `None`: where DSM can.
    pub flushes: Option<bool>,
    /// What stays free on the NAS's volume (`minFreeSpace`); `None`: what the NAS's configuration says.
    pub floor: Option<Floor>,
    /// Namespace and name of the claim, if the provisioner tells them (`--extra-create-metadata`); for people.
    pub claim: (Option<String>, Option<String>),
}

const KNOWN: &str =
    "location, type, fsType, formatOptions, nas, dsm, protocol, enableFuaSyncCache, minFreeSpace";

impl Parameters {
    /// This NAS may be meant.
    pub fn means(&self, nas: &Nas) -> bool {
        self.nas.as_ref().is_none_or(|name| nas.is_called(name))
            && self
                .dsm
                .as_ref()
                .is_none_or(|host| same_host(&nas.host, host))
    }

    /// Reads a StorageClass's parameters.
    ///
    /// # Errors
    /// INVALID_ARGUMENT.
    pub fn read(map: &HashMap<String, String>, capabilities: &[Capability]) -> Result<Self, Error> {
        let mut parameters = Self {
            nas: None,
            dsm: None,
            location: None,
            kind: LunType::Thin,
            kind_given: false,
            fs_type: None,
            format_options: None,
            flushes: None,
            floor: None,
            claim: (None, None),
        };
        let mut sorted: Vec<_> = map.iter().collect();
        sorted.sort_unstable();
        for (key, value) in sorted {
            parameters.set(key, value)?;
        }
        for asked in capabilities.iter().filter_map(Capability::fs_type) {
            let told = *parameters.fs_type.get_or_insert(asked);
            if told == asked {
                continue;
            }
            let remedy = format!(
                "it disagrees with the fs_type {asked} of volume_capabilities: make them equal or leave one out"
            );
            let given = ["fsType", "fstype"].into_iter().find_map(|key| {
                let text = map.get(key).filter(|text| !text.is_empty())?;
                Some((key, text))
            });
            return Err(match given {
                Some((key, text)) => invalid(key, text, &remedy),
                None => Error::Invalid {
                    field: "volume_capabilities.mount.fs_type".to_owned(),
                    value: told.to_string(),
                    remedy,
                },
            });
        }
        Ok(parameters)
    }

    /// Refuses `formatOptions` that mkfs will not be given.
    pub(super) fn must_format(&self) -> Result<(), Error> {
        let options = self.format_options.as_deref().unwrap_or_default();
        match FormatOptions::accept(self.fs_type.unwrap_or(FsType::Ext4), options) {
            Ok(_) => Ok(()),
            Err(bad) => Err(invalid(
                "formatOptions",
                options,
                &format!("{:?} stands in the way; {}", bad.word, bad.remedy),
            )),
        }
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), Error> {
        match key {
            "nas" => {
                self.nas = Some(value.parse().map_err(|_| {
                    invalid(
                        key,
                        value,
                        "use the name of a NAS in the driver's configuration",
                    )
                })?);
            }
            "dsm" => self.dsm = Some(value.to_owned()).filter(|host| !host.is_empty()),
            "location" => self.location = Some(location(value)?),
            "type" => {
                self.kind = lun_type(value)?;
                self.kind_given = true;
            }
            // The second is the word of older classes.
            "fsType" | "fstype" => {
                let asked = fs_type(&format!("parameters[{key}]"), value)?;
                if let (Some(told), Some(asked)) = (self.fs_type, asked)
                    && told != asked
                {
                    let remedy =
                        format!("parameters[fsType] says {told}: make them equal or leave one out");
                    return Err(invalid(key, value, &remedy));
                }
                self.fs_type = self.fs_type.or(asked);
            }
            "formatOptions" => {
                self.format_options = Some(value.to_owned()).filter(|options| !options.is_empty());
            }
            "enableFuaSyncCache" => {
                let asked = value.to_ascii_lowercase().parse();
                let remedy = "say true or false, or leave it out: then it is on where the NAS can";
                self.flushes = Some(asked.map_err(|_| invalid(key, value, remedy))?);
            }
            "minFreeSpace" => {
                let asked = value.parse();
                let remedy = |wrong| {
                    format!(
                        "it is {wrong}: what stays free on the NAS's volume when a LUN is made or grown"
                    )
                };
                self.floor = Some(asked.map_err(|wrong| invalid(key, value, &remedy(wrong)))?);
            }
            "protocol" if value.eq_ignore_ascii_case("iscsi") => {}
            "protocol" => return Err(invalid(key, value, "this driver speaks iscsi only")),
            "csi.storage.k8s.io/pvc/namespace" => self.claim.0 = Some(value.to_owned()),
            "csi.storage.k8s.io/pvc/name" => self.claim.1 = Some(value.to_owned()),
            // The provisioner's own.
            _ if key.starts_with("csi.storage.k8s.io/") => {}
            _ => {
                return Err(invalid(
                    key,
                    value,
                    &format!("no such parameter; known are {KNOWN}"),
                ));
            }
        }
        Ok(())
    }

    /// A digest of what DSM does not store of them, so that a second `CreateVolume` with others is told apart: 16 hexadecimal digits.
    pub fn digest(&self) -> String {
        let stored = format!(
            "fsType={:?} formatOptions={:?}",
            self.fs_type.map(FsType::as_str),
            self.format_options
        );
        digest(&stored, 16)
    }

    /// The claim as people name it.
    pub fn claim(&self) -> Option<String> {
        let (Some(namespace), Some(name)) = &self.claim else {
            return None;
        };
        Some(format!("{namespace}/{name}"))
    }

    /// What the node must know.
    pub fn volume_context(&self) -> HashMap<String, String> {
        let fs_type = self
            .fs_type
            .map(|fs_type| ("fsType".to_owned(), fs_type.to_string()));
        let options = self
            .format_options
            .clone()
            .map(|options| ("formatOptions".to_owned(), options));
        fs_type.into_iter().chain(options).collect()
    }
}

/// Two ways to write one host: names in any letters, with or without the dot at their end; IPv6 addresses however they are
/// shortened, in brackets or not.
fn same_host(one: &str, other: &str) -> bool {
    let plain = |host: &str| {
        let host = host.trim().trim_end_matches('.');
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host.to_ascii_lowercase()
    };
    let (one, other) = (plain(one), plain(other));
    match (one.parse::<IpAddr>(), other.parse::<IpAddr>()) {
        (Ok(one), Ok(other)) => one == other,
        _ => one == other,
    }
}

/// A parameter that is not accepted.
fn invalid(key: &str, value: &str, remedy: &str) -> Error {
    Error::Invalid {
        field: format!("parameters[{key}]"),
        value: value.to_owned(),
        remedy: remedy.to_owned(),
    }
}

fn location(value: &str) -> Result<String, Error> {
    let number = value.strip_prefix("/volume").unwrap_or_default();
    if (1..=4).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit()) {
        Ok(value.to_owned())
    } else {
        Err(invalid(
            "location",
            value,
            "name a volume of the NAS, for instance /volume1",
        ))
    }
}

fn lun_type(value: &str) -> Result<LunType, Error> {
    match value {
        "thin" => Ok(LunType::Thin),
        "thick" => Ok(LunType::Thick),
        _ => DSM_TYPES
            .into_iter()
            .find(|word| *word == value)
            .map(LunType::Exactly)
            .ok_or_else(|| {
                invalid(
                    "type",
                    value,
                    "use thin, thick or one of DSM's BLUN, BLUN_THICK, ADV, FILE, THIN",
                )
            }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_the_same_however_it_is_written() {
        for (one, other) in [
            ("[fd00::5]", "fd00::5"),
            ("[fd00::5]", "FD00:0:0::0005"),
            ("nas.example", "NAS.Example."),
            ("10.0.0.5", " 10.0.0.5"),
        ] {
            assert!(
                same_host(one, other) && same_host(other, one),
                "{one} {other}"
            );
        }
        for (one, other) in [
            ("nas.example", "nas"),
            ("[fd00::5]", "fd00::6"),
            ("10.0.0.5", "10.0.0.50"),
        ] {
            assert!(!same_host(one, other), "{one} {other}");
        }
    }
}
