//! What kind of NAS is simulated: its DSM generation, and how many LUNs and targets its model allows.

use std::str::FromStr;

/// A generation of DSM. Where they differ: dsm-api.md 11.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dsm {
    /// DSM 6.2.
    Six,
    /// DSM 7.
    #[default]
    Seven,
}

impl FromStr for Dsm {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "6" => Ok(Self::Six),
            "7" => Ok(Self::Seven),
            _ => Err("say 6 or 7".to_owned()),
        }
    }
}

impl Dsm {
    /// As `SYNO.Core.System info` spells it.
    pub(crate) fn firmware(self) -> &'static str {
        match self {
            Self::Six => "DSM 6.2.4-25556 Update 7",
            Self::Seven => "DSM 7.2.1-69057 Update 5",
        }
    }
}

/// A model and its ceilings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Model {
    /// As printed on the box, `DS923+`.
    pub name: &'static str,
    /// Most LUNs on the NAS.
    pub max_luns: usize,
    /// Most targets on the NAS.
    pub max_targets: usize,
    /// Most snapshots of one LUN.
    pub max_snapshots: usize,
}

/// Snapshots of one LUN: `max_snapshot_per_lun` of every model that was asked.
// ASSUMED: 256; `max_snapshot_per_lun_v2` says 128, and nobody has found out which of them binds.
const MAX_SNAPSHOTS: usize = 256;

/// LUNs and targets per model, as published by Synology. Source: dsm-api.md 12 (jt docs/LIMITS.md).
const CEILINGS: [(usize, usize, &[&str]); 6] = [
    // No NAS has this name: it is for those who want to know what many LUNs cost.
    (usize::MAX, usize::MAX, &["unlimited"]),
    (512, 256, &["FS6400", "FS3600", "SA6400", "SA3600"]),
    (
        256,
        128,
        &[
            "DS923+",
            "DS918+",
            "DS920+",
            "DS925+",
            "DS723+",
            "DS1821+",
            "DS3622xs+",
            "RS4021xs+",
            "RS3621xs+",
            "FS3410",
            "SA3410",
            "SA3400D",
        ],
    ),
    (
        128,
        64,
        &[
            "FS2500",
            "SA3200D",
            "RS3618xs",
            "DS1825+",
            "RS2825RP+",
            "RS1221+",
        ],
    ),
    (4, 2, &["DS425+", "DS423", "DS223", "DS223j", "DS124"]),
    (10, 10, &["DS218play"]),
];

impl Default for Model {
    fn default() -> Self {
        Self {
            name: "DS923+",
            max_luns: 256,
            max_targets: 128,
            max_snapshots: MAX_SNAPSHOTS,
        }
    }
}

impl FromStr for Model {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        for (max_luns, max_targets, names) in CEILINGS {
            if let Some(name) = names
                .iter()
                .copied()
                .find(|name| name.eq_ignore_ascii_case(text))
            {
                return Ok(Self {
                    name,
                    max_luns,
                    max_targets,
                    max_snapshots: MAX_SNAPSHOTS,
                });
            }
        }
        let known: Vec<&str> = CEILINGS
            .iter()
            .flat_map(|row| row.2.iter().copied())
            .collect();
        Err(format!(
            "the limits of this model are not known; take one of {}",
            known.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ceilings_follow_the_model() {
        assert_eq!("DS923+".parse::<Model>().unwrap(), Model::default());
        let small: Model = "ds423".parse().unwrap();
        assert_eq!(
            (small.name, small.max_luns, small.max_targets),
            ("DS423", 4, 2)
        );
        assert!("DS1".parse::<Model>().unwrap_err().contains("DS923+"));
    }
}
