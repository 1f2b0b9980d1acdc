//! LUN types, and the device attributes of each. Source: dsm-web-api.md 4.1 and 4.2.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::nas::code::{Code, Refusal};
use crate::nas::model::Generation;
use crate::nas::settings::AttribPolicy;
use crate::nas::state::volume::FileSystem;

/// A LUN type, named as in `create` and in the `types` filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub(crate) enum LunType {
    Block,
    File,
    Thin,
    Adv,
    Sink,
    VdiskAdv,
    BkpThin,
    BkpAdv,
    Cinder,
    BlunThick,
    Blun,
    VdiskBlun,
    CinderBlun,
    CinderBlunThick,
    BlunSink,
    BlunThickSink,
}

impl LunType {
    /// The type with this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        serde_json::from_value(Value::String(name.to_owned())).ok()
    }

    /// The name, as in `type_str`.
    pub(crate) fn name(self) -> Value {
        json!(self)
    }

    /// The integer in answers: LUN 1, FILE 2, THIN 4, ADV 8, SINK 16, VDISK 32, BACKUP 64, CINDER 128, BLUN 256.
    // ASSUMED: only 15, 143, 259, 263 and 295 were seen; the other integers are composed of the same bits.
    pub(crate) fn bits(self) -> u32 {
        match self {
            Self::Block => 1,
            Self::File => 3,
            Self::Thin => 7,
            Self::Adv => 15,
            Self::Sink => 31,
            Self::VdiskAdv => 47,
            Self::BkpThin => 71,
            Self::BkpAdv => 79,
            Self::Cinder => 143,
            Self::BlunThick => 259,
            Self::Blun => 263,
            Self::BlunThickSink => 275,
            Self::BlunSink => 279,
            Self::VdiskBlun => 295,
            Self::CinderBlunThick => 387,
            Self::CinderBlun => 391,
        }
    }

    /// Whether blocks are allocated on the volume only when they are written.
    pub(crate) fn is_thin(self) -> bool {
        self.bits() & 4 != 0
    }

    /// The type that `create` makes of it on this file system.
    pub(crate) fn for_file_system(self, fs: FileSystem) -> Self {
        match (self, fs) {
            (Self::Cinder, FileSystem::Btrfs) => Self::CinderBlun,
            _ => self,
        }
    }

    pub(crate) fn is_btrfs(self) -> bool {
        self.bits() & 256 != 0
    }

    /// Refuses types that cannot be created on this file system.
    pub(crate) fn check_fits(self, fs: FileSystem) -> Result<(), Refusal> {
        match self {
            // ASSUMED: replication targets, virtual machine disks and backups are created by other parts of DSM, so `create` does
            // not know these types.
            Self::Sink
            | Self::BlunSink
            | Self::BlunThickSink
            | Self::VdiskAdv
            | Self::VdiskBlun
            | Self::BkpThin
            | Self::BkpAdv => Err(Code::BadLunType.because("this type is not for create")),
            // ASSUMED: on ext4 as on btrfs (measured there): DSM 7 has no raw pools anymore to put a BLOCK LUN on.
            Self::Block => Err(Code::TypeNotHere.because("BLOCK wants a raw pool")),
            // ASSUMED: ADV and (by a setting) CINDER only on ext4, as clients and DSM's pages pair them; the refusal was not
            // recorded.
            Self::Adv | Self::Cinder if fs == FileSystem::Btrfs => {
                Err(Code::TypeNotHere.because("ADV and CINDER want ext4"))
            }
            Self::Blun | Self::BlunThick | Self::CinderBlun | Self::CinderBlunThick
                if fs == FileSystem::Ext4 =>
            {
                Err(Code::NoSubvolume.because("BLUN types want btrfs"))
            }
            Self::File
            | Self::Thin
            | Self::Adv
            | Self::Cinder
            | Self::Blun
            | Self::BlunThick
            | Self::CinderBlun
            | Self::CinderBlunThick => Ok(()),
        }
    }
}

const XCOPY: u8 = 1;
const CAW: u8 = 2;
const WRITE_SAME: u8 = 4;
const UNMAP: u8 = 8;
const SNAPSHOT: u8 = 16;
const FUA: u8 = 32;
const SYNC_CACHE: u8 = 64;

/// Names and bits, in the order of the answers. DSM 6 lists the first four.
// ASSUMED: which of bits 1, 4 and 8 is which, and likewise 32 and 64; the samples fix only caw 2 and can_snapshot 16.
const ATTRIBUTES: [(&str, u8); 7] = [
    ("emulate_3pc", XCOPY),
    ("emulate_tpws", WRITE_SAME),
    ("emulate_caw", CAW),
    ("emulate_tpu", UNMAP),
    ("emulate_fua_write", FUA),
    ("emulate_sync_cache", SYNC_CACHE),
    ("can_snapshot", SNAPSHOT),
];

/// The device attributes of a LUN, as in `dev_attribs_bitmap`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DevAttribs(u8);

impl DevAttribs {
    /// The attributes of a new LUN, unless the client requests others.
    // ASSUMED: reports conflict; thin types start with snapshots on and UNMAP off, thick ones with caw only.
    pub(crate) fn default_for(kind: LunType, adv_can_snapshot: bool) -> Self {
        if kind == LunType::Thin {
            Self(0)
        } else if kind == LunType::Adv && !adv_can_snapshot {
            Self(XCOPY | WRITE_SAME | CAW)
        } else if kind.is_thin() {
            Self(SNAPSHOT | XCOPY | WRITE_SAME | CAW)
        } else {
            Self(CAW)
        }
    }

    /// These attributes, with those of a `dev_attribs` parameter applied on top.
    pub(crate) fn with(
        self,
        kind: LunType,
        requested: &Value,
        thin_can_snapshot: AttribPolicy,
    ) -> Result<Self, Refusal> {
        let wrong = |what: &str| Code::BadDevAttribs.because(format!("dev_attribs: {what}"));
        let mut bits = self.0;
        for item in requested.as_array().ok_or_else(|| wrong("not an array"))? {
            let name = item["dev_attrib"]
                .as_str()
                .ok_or_else(|| wrong("an entry without dev_attrib"))?;
            let (_, bit) = ATTRIBUTES
                .iter()
                .find(|row| row.0 == name)
                .ok_or_else(|| wrong(name))?;
            let enable = match item["enable"].as_u64() {
                Some(0) => false,
                Some(1) => true,
                _ => return Err(wrong("enable is neither 0 nor 1")),
            };
            if kind == LunType::Thin
                && *bit == SNAPSHOT
                && thin_can_snapshot == AttribPolicy::Ignored
            {
                continue;
            }
            let granted = match thin_can_snapshot {
                AttribPolicy::Granted if kind == LunType::Thin => SNAPSHOT,
                AttribPolicy::Granted | AttribPolicy::Ignored | AttribPolicy::Refused => 0,
            };
            if enable != (bits & bit != 0) && (settable(kind) | granted) & bit == 0 {
                return Err(wrong(&format!("{name} cannot be changed on this type")));
            }
            bits = if enable { bits | bit } else { bits & !bit };
        }
        Ok(Self(bits))
    }

    /// Whether snapshots may be taken.
    pub(crate) fn can_snapshot(self) -> bool {
        self.0 & SNAPSHOT != 0
    }

    /// Whether UNMAP is announced.
    pub(crate) fn can_unmap(self) -> bool {
        self.0 & UNMAP != 0
    }

    /// Whether SYNCHRONIZE CACHE is honored.
    pub(crate) fn honors_sync_cache(self) -> bool {
        self.0 & SYNC_CACHE != 0
    }

    /// The value of `dev_attribs_bitmap`.
    pub(crate) fn bitmap(self) -> u8 {
        self.0
    }

    /// The value of `dev_attribs` in answers.
    pub(crate) fn list(self, dsm: Generation) -> Value {
        let shown = match dsm {
            Generation::Six => 4,
            Generation::Seven => ATTRIBUTES.len(),
        };
        let row = |(name, bit): &(&str, u8)| json!({"dev_attrib": name, "enable": u8::from(self.0 & bit != 0)});
        ATTRIBUTES[..shown].iter().map(row).collect()
    }
}

/// The attributes that can be changed on DSM's own page.
// ASSUMED: changing any other attribute is refused with 18990622, and fua and sync_cache may be changed on every type, as the
// official driver's StorageClass offers them for all.
fn settable(kind: LunType) -> u8 {
    let own = match (kind.is_btrfs(), kind.is_thin()) {
        (true, true) => WRITE_SAME | CAW | XCOPY | UNMAP | SNAPSHOT,
        (true, false) => WRITE_SAME | CAW,
        (false, true) if kind == LunType::Thin => 0,
        (false, true) => UNMAP,
        (false, false) => CAW,
    };
    own | FUA | SYNC_CACHE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_integers_are_the_recorded_ones() {
        for (name, bits) in [
            ("ADV", 15),
            ("CINDER", 143),
            ("BLUN_THICK", 259),
            ("BLUN", 263),
            ("VDISK_BLUN", 295),
        ] {
            let kind = LunType::named(name).unwrap();
            assert_eq!((kind.bits(), kind.name()), (bits, json!(name)));
        }
        assert_eq!(LunType::named("blun"), None);
        assert!(
            LunType::named("THIN").unwrap().is_thin()
                && !LunType::named("BLUN_THICK").unwrap().is_thin()
        );
    }

    #[test]
    fn requested_attributes_override_the_defaults() {
        let blun = DevAttribs::default_for(LunType::Blun, true);
        let all = blun
            .with(
                LunType::Blun,
                &json!([{"dev_attrib": "emulate_tpu", "enable": 1}]),
                AttribPolicy::Refused,
            )
            .unwrap();
        assert_eq!(all.bitmap(), 31);
        assert_eq!(
            DevAttribs::default_for(LunType::BlunThick, true).bitmap(),
            2
        );
        assert_eq!(all.list(Generation::Seven).as_array().unwrap().len(), 7);
        assert_eq!(all.list(Generation::Six).as_array().unwrap().len(), 4);
    }

    #[test]
    fn a_setting_decides_about_snapshots_of_thin_luns() {
        let thin = DevAttribs::default_for(LunType::Thin, true);
        let requested = json!([{"dev_attrib": "can_snapshot", "enable": 1}]);
        for (thin_can_snapshot, want) in [
            (AttribPolicy::Ignored, Ok(false)),
            (AttribPolicy::Granted, Ok(true)),
            (AttribPolicy::Refused, Err(18_990_622)),
        ] {
            let made = thin.with(LunType::Thin, &requested, thin_can_snapshot);
            let made = made
                .map(DevAttribs::can_snapshot)
                .map_err(|refusal| refusal.code);
            assert_eq!(made, want, "{thin_can_snapshot:?}");
            let other = json!([{"dev_attrib": "emulate_tpu", "enable": 1}]);
            assert!(thin.with(LunType::Thin, &other, thin_can_snapshot).is_err());
        }
    }

    #[test]
    fn invalid_attributes_are_refused() {
        let thick = DevAttribs::default_for(LunType::BlunThick, true);
        for bad in [
            json!([{"dev_attrib": "can_snapshot", "enable": 1}]),
            json!([{"dev_attrib": "nonsense", "enable": 1}]),
            json!([{"dev_attrib": "emulate_caw", "enable": 2}]),
            json!([{"enable": 1}]),
            json!({"dev_attrib": "emulate_caw", "enable": 1}),
        ] {
            assert_eq!(
                thick
                    .with(LunType::BlunThick, &bad, AttribPolicy::Granted)
                    .unwrap_err()
                    .code,
                18_990_622,
                "{bad}"
            );
        }
    }
}
