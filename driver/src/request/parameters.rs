//! Parameters of a StorageClass (design.md#parameters): parsing, validation, digest. Pure.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

use super::{Capability, fs_type};
use crate::dsm::Nas;
use crate::error::Error;
use crate::host::filesystem::FormatOptions;
use crate::min_free::MinFreeSpace;
use crate::volume::{FsType, NasName, digest};

/// The LUN type that the StorageClass requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LunType {
    /// A type name of DSM: `BLUN`, `BLUN_THICK`, `ADV`, `FILE`, `THIN`.
    Exactly(&'static str),
    /// `thin` or unspecified: the thin type for the volume's file system.
    Thin,
    /// `thick`: the thick type for the volume's file system.
    Thick,
}

impl fmt::Display for LunType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exactly(name) => name,
            Self::Thin => "thin",
            Self::Thick => "thick",
        })
    }
}

const DSM_TYPES: [&str; 5] = ["BLUN", "BLUN_THICK", "ADV", "FILE", "THIN"];

impl LunType {
    /// DSM's type name on a volume with this file system. Source: `SynologyOpenSource/synology-csi`.
    pub fn on(&self, fs_type: &str) -> &'static str {
        match (self, fs_type == "btrfs") {
            (Self::Exactly(name), _) => name,
            (Self::Thin, true) => "BLUN",
            (Self::Thin, false) => "ADV",
            (Self::Thick, true) => "BLUN_THICK",
            (Self::Thick, false) => "FILE",
        }
    }

    /// Whether a volume with this file system supports it. Source: the reference, section 4.1.
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
    /// The NAS: by the host of its URL (`dsm`, as in the official driver).
    pub dsm: Option<String>,
    /// The volume of the NAS; `None`: the driver chooses one.
    pub location: Option<String>,
    /// The LUN's type.
    pub kind: LunType,
    /// `type` was set explicitly.
    pub kind_given: bool,
    /// From the StorageClass or, failing that, from the capability.
    pub fs_type: Option<FsType>,
    /// Options for mkfs (`formatOptions`).
    pub format_options: Option<String>,
    /// A node's flushes must reach the NAS's disks (`enableFuaSyncCache`); `None`: if DSM supports it.
    pub flushes: Option<bool>,
    /// Minimum free space on the volume of the NAS (`minFreeSpace`); `None`: as configured for the NAS.
    pub floor: Option<MinFreeSpace>,
    /// Namespace and name of the claim, if the provisioner passes them (`--extra-create-metadata`); for humans only.
    pub claim: (Option<String>, Option<String>),
}

const KNOWN: &str =
    "location, type, fsType, formatOptions, nas, dsm, protocol, enableFuaSyncCache, minFreeSpace";

impl Parameters {
    /// The parameters `nas` and `dsm` match this NAS, or are not set.
    pub fn match_nas(&self, nas: &Nas) -> bool {
        self.nas.as_ref().is_none_or(|name| nas.has_name(name))
            && self
                .dsm
                .as_ref()
                .is_none_or(|host| same_host(&nas.host, host))
    }

    /// Parses the parameters of a StorageClass.
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
        for requested in capabilities.iter().filter_map(Capability::fs_type) {
            let fs_type = *parameters.fs_type.get_or_insert(requested);
            if fs_type == requested {
                continue;
            }
            let remedy = format!(
                "it disagrees with the fs_type {requested} of volume_capabilities: make them equal or leave one out"
            );
            let given = ["fsType", "fstype"].into_iter().find_map(|key| {
                let text = map.get(key).filter(|text| !text.is_empty())?;
                Some((key, text))
            });
            return Err(match given {
                Some((key, text)) => invalid(key, text, &remedy),
                None => Error::Invalid {
                    field: "volume_capabilities.mount.fs_type".to_owned(),
                    value: fs_type.to_string(),
                    remedy,
                },
            });
        }
        Ok(parameters)
    }

    /// Rejects `formatOptions` that the driver does not pass to mkfs.
    pub(super) fn check_format_options(&self) -> Result<(), Error> {
        let options = self.format_options.as_deref().unwrap_or_default();
        match FormatOptions::accept(self.fs_type.unwrap_or(FsType::Ext4), options) {
            Ok(_) => Ok(()),
            Err(bad) => Err(invalid(
                "formatOptions",
                options,
                &format!("{:?} is not allowed; {}", bad.word, bad.remedy),
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
            // `fstype` is the key in older classes.
            "fsType" | "fstype" => {
                let parsed = fs_type(&format!("parameters[{key}]"), value)?;
                if let (Some(other), Some(fs_type)) = (self.fs_type, parsed)
                    && other != fs_type
                {
                    let remedy =
                        format!("parameters[fsType] is {other}: make them equal or leave one out");
                    return Err(invalid(key, value, &remedy));
                }
                self.fs_type = self.fs_type.or(parsed);
            }
            "formatOptions" => {
                self.format_options = Some(value.to_owned()).filter(|options| !options.is_empty());
            }
            "enableFuaSyncCache" => {
                let parsed = value.to_ascii_lowercase().parse();
                let remedy =
                    "set true or false, or leave it out: then it is on if the NAS supports it";
                self.flushes = Some(parsed.map_err(|_| invalid(key, value, remedy))?);
            }
            "minFreeSpace" => {
                let parsed = value.parse();
                let remedy = |expected| {
                    format!(
                        "it is {expected}: the minimum free space on the volume of the NAS when a LUN is created or expanded"
                    )
                };
                self.floor =
                    Some(parsed.map_err(|expected| invalid(key, value, &remedy(expected)))?);
            }
            "protocol" if value.eq_ignore_ascii_case("iscsi") => {}
            "protocol" => return Err(invalid(key, value, "this driver supports iscsi only")),
            "csi.storage.k8s.io/pvc/namespace" => self.claim.0 = Some(value.to_owned()),
            "csi.storage.k8s.io/pvc/name" => self.claim.1 = Some(value.to_owned()),
            // Used by the provisioner.
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

    /// A digest of the parameters that DSM does not store, to detect a second `CreateVolume` with other parameters: 16
    /// hexadecimal digits.
    pub fn digest(&self) -> String {
        let stored = format!(
            "fsType={:?} formatOptions={:?}",
            self.fs_type.map(FsType::as_str),
            self.format_options
        );
        digest(&stored, 16)
    }

    /// The claim as `namespace/name`.
    pub fn claim(&self) -> Option<String> {
        let (Some(namespace), Some(name)) = &self.claim else {
            return None;
        };
        Some(format!("{namespace}/{name}"))
    }

    /// The parameters that the node needs.
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

/// Whether two texts denote the same host: names ignore case and a trailing dot; IPv6 addresses may be shortened, and in
/// brackets.
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

/// The error for a rejected parameter.
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
            .find(|name| *name == value)
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
    fn hosts_are_compared_in_normalized_form() {
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
