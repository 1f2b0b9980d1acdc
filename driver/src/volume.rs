//! Basic types of a volume: size, handle, LUN uuid and name, NAS name, file system. Pure.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest, Sha256};

/// A size in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

impl Bytes {
    /// 2^20 bytes: LUN sizes are whole multiples of it (design.md#sizes).
    pub const MIB: Self = Self(1 << 20);
    /// 2^30 bytes: the smallest LUN.
    pub const GIB: Self = Self(1 << 30);
    /// The largest LUN size that is requested: 2^60 bytes, far above any NAS and far from integer overflow.
    pub const MAX: Self = Self(1 << 60);

    /// `n` gibibytes.
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }

    /// `n` mebibytes.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// As CSI's `int64`. Requested sizes never exceed [`Bytes::MAX`]; anything beyond `int64` saturates.
    pub fn as_i64(self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, shift) in [("TiB", 40), ("GiB", 30), ("MiB", 20)] {
            if self.0 >= 1 << shift && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{} {unit}", self.0 >> shift);
            }
        }
        write!(f, "{} bytes", self.0)
    }
}

/// DSM's key of a LUN, which is also its SCSI unit serial number: 8-4-4-4-12 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LunUuid(String);

/// The text does not parse; says what it should be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("not {0}")]
pub struct Malformed(pub &'static str);

impl FromStr for LunUuid {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let groups: Vec<&str> = text.split('-').collect();
        let well_formed = groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12])
            && text
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'-'));
        if well_formed {
            Ok(Self(text.to_owned()))
        } else {
            Err(Malformed("a LUN uuid"))
        }
    }
}

impl LunUuid {
    /// The text of the uuid.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 32 digits without hyphens.
    pub fn digits(&self) -> String {
        self.0.replace('-', "")
    }

    /// As a 128-bit number.
    pub fn number(&self) -> u128 {
        // 32 hexadecimal digits fit exactly.
        u128::from_str_radix(&self.digits(), 16).unwrap_or_default()
    }

    /// From a 128-bit number.
    pub fn from_number(number: u128) -> Self {
        let d = format!("{number:032x}");
        Self(format!(
            "{}-{}-{}-{}-{}",
            &d[..8],
            &d[8..12],
            &d[12..16],
            &d[16..20],
            &d[20..]
        ))
    }

    /// From the 32 digits without hyphens.
    ///
    /// # Errors
    /// The text is not 32 lower-case hexadecimal digits.
    pub fn from_digits(digits: &str) -> Result<Self, Malformed> {
        let well_formed = digits.len() == 32
            && digits
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        well_formed
            .then(|| u128::from_str_radix(digits, 16).ok())
            .flatten()
            .map(Self::from_number)
            .ok_or(Malformed("the 32 digits of a LUN uuid"))
    }
}

impl fmt::Display for LunUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The permanent name of a NAS in the configuration: 1 to 32 characters of `[a-z0-9-]`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NasName(String);

impl FromStr for NasName {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let well_formed = (1..=32).contains(&text.len())
            && text
                .bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
        if well_formed {
            Ok(Self(text.to_owned()))
        } else {
            Err(Malformed("1 to 32 characters of [a-z0-9-]"))
        }
    }
}

impl fmt::Display for NasName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A volume's handle, `<nas>/<lun uuid>` (design.md#volume-handle).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct VolumeId {
    /// The NAS as the handle names it; it may be an alias.
    pub nas: NasName,
    /// The LUN.
    pub uuid: LunUuid,
}

impl FromStr for VolumeId {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let malformed = Malformed("a volume id of this driver (<nas>/<lun uuid>)");
        let Some((nas, uuid)) = text.split_once('/') else {
            return Err(malformed);
        };
        match (nas.parse(), uuid.parse()) {
            (Ok(nas), Ok(uuid)) => Ok(Self { nas, uuid }),
            (Err(_), _) | (_, Err(_)) => Err(malformed),
        }
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.nas, self.uuid)
    }
}

/// The LUN name for the CSI volume `name`: at most 64 characters of DSM's alphabet, unique for each CSI name
/// (design.md#lun-names).
///
/// A short name in lower case stays readable behind `csi-`. Any other becomes `csih-`, its readable part and 128 bits of its
/// SHA-256; the prefixes keep the two kinds apart. Upper case is hashed too, because it has not been measured whether DSM's names
/// are case-sensitive.
pub fn lun_name(name: &str) -> String {
    let readable = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.');
    if !name.is_empty() && name.len() <= 60 && name.bytes().all(readable) {
        return format!("csi-{name}");
    }
    let slug: String = name
        .bytes()
        .filter(|b| readable(*b))
        .take(26)
        .map(char::from)
        .collect();
    format!("csih-{slug}-{}", &hex::encode(Sha256::digest(name))[..32])
}

/// The file system of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FsType {
    /// The default.
    Ext4,
    /// Can be grown only while mounted.
    Xfs,
    /// Can be grown only while mounted.
    Btrfs,
}

impl FsType {
    /// As `mount -t` and `blkid` spell it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }
}

impl fmt::Display for FsType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for FsType {
    type Err = Malformed;

    /// Case-insensitive (design.md#parameters).
    fn from_str(text: &str) -> Result<Self, Malformed> {
        match text.to_ascii_lowercase().as_str() {
            "ext4" => Ok(Self::Ext4),
            "xfs" => Ok(Self::Xfs),
            "btrfs" => Ok(Self::Btrfs),
            _ => Err(Malformed("one of ext4, xfs, btrfs")),
        }
    }
}

/// A short digest: the first `digits` hexadecimal digits of the SHA-256 of `text`.
pub fn digest(text: &str, digits: usize) -> String {
    hex::encode(Sha256::digest(text))[..digits].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "13a3cd1e-f296-4d4b-b712-a85c139f9dac";

    /// design.md#volume-handle
    #[test]
    fn only_our_own_handles_parse() {
        let id: VolumeId = format!("nas1/{UUID}").parse().unwrap();
        assert_eq!(id.to_string(), format!("nas1/{UUID}"));
        for foreign in [
            "",
            "nas1",
            UUID,
            "/",
            &format!("/{UUID}"),
            &format!("NAS/{UUID}"),
            &format!("nas1/{UUID}/x"),
            &format!("nas1/../{UUID}"),
            &format!("nas1/{}", UUID.to_uppercase()),
            "nas1/a-lun-name",
            &format!("nas1/{}", &UUID[1..]),
            &format!("{}/{UUID}", "n".repeat(33)),
        ] {
            assert!(foreign.parse::<VolumeId>().is_err(), "{foreign}");
        }
    }

    #[test]
    fn uuids_survive_losing_their_hyphens() {
        let uuid: LunUuid = UUID.parse().unwrap();
        assert_eq!(LunUuid::from_digits(&uuid.digits()).unwrap(), uuid);
        assert!(LunUuid::from_digits("13a3").is_err());
    }

    /// design.md#lun-names
    #[test]
    fn names_fit_dsm_and_stay_apart() {
        assert_eq!(lun_name("pvc-7f0c"), "csi-pvc-7f0c");
        let odd = [
            "a_b",
            "a b",
            "A",
            "a",
            "ab",
            "a/b",
            "é",
            &"x".repeat(61),
            &"x".repeat(128),
            "-a",
            "ä",
            "csih-x",
        ];
        let names: std::collections::HashSet<String> =
            odd.iter().map(|name| lun_name(name)).collect();
        assert_eq!(names.len(), odd.len());
        for name in names {
            assert!(name.len() <= 64, "{name}");
            assert!(
                name.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b"-.:".contains(&b)),
                "{name}"
            );
        }
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(Bytes::gib(10).to_string(), "10 GiB");
        assert_eq!(Bytes::mib(1536).to_string(), "1536 MiB");
        assert_eq!(Bytes(1_000_000_000).to_string(), "1000000000 bytes");
    }
}
