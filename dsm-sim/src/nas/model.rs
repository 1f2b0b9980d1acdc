//! Simulated DSM releases, and the LUN and target limits of each model.

use std::str::FromStr;

/// A generation of DSM. Most differences depend on it; dsm-web-api.md 11.1 lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Generation {
    Six,
    Seven,
}

/// A release of DSM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dsm {
    /// Version, such as `7.2`.
    pub version: &'static str,
    /// Firmware version as in `SYNO.Core.System info`.
    pub firmware: &'static str,
    pub(crate) generation: Generation,
}

const fn release(version: &'static str, firmware: &'static str, generation: Generation) -> Dsm {
    Dsm {
        version,
        firmware,
        generation,
    }
}

/// A bare generation number selects the first release of that generation here.
const RELEASES: [Dsm; 6] = [
    release("6.2", "DSM 6.2.4-25556 Update 7", Generation::Six),
    release("7.2", "DSM 7.2.1-69057 Update 5", Generation::Seven),
    release("7.0", "DSM 7.0.1-42218 Update 6", Generation::Seven),
    release("7.1", "DSM 7.1.1-42962 Update 9", Generation::Seven),
    release("7.3", "DSM 7.3.2-86009 Update 4", Generation::Seven),
    release("7.4", "DSM 7.4.1-90080", Generation::Seven),
];

impl Dsm {
    /// Every release that can be simulated.
    pub(crate) fn all() -> [Self; 6] {
        RELEASES
    }
}

impl Default for Dsm {
    /// DSM 7.2.
    fn default() -> Self {
        RELEASES[1]
    }
}

impl FromStr for Dsm {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let matches =
            |dsm: &&Dsm| dsm.version == text || dsm.version.split('.').next() == Some(text);
        RELEASES.iter().find(matches).copied().ok_or_else(|| {
            let mut known = RELEASES.map(|dsm| dsm.version);
            known.sort_unstable();
            format!("say 6, 7 or one of {}", known.join(", "))
        })
    }
}

/// A NAS model and its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Model {
    /// Product name, such as `DS923+`.
    pub name: &'static str,
    /// Maximum number of LUNs on the NAS.
    pub max_luns: usize,
    /// Maximum number of targets on the NAS.
    pub max_targets: usize,
}

/// Maximum LUNs and targets per model, as published by Synology. Source: dsm-web-api.md 12 (jt docs/LIMITS.md).
const LIMITS: [(usize, usize, &[&str]); 6] = [
    // Not a real model: for measuring the cost of many LUNs.
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
        }
    }
}

impl FromStr for Model {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        for (max_luns, max_targets, names) in LIMITS {
            if let Some(name) = names
                .iter()
                .copied()
                .find(|name| name.eq_ignore_ascii_case(text))
            {
                return Ok(Self {
                    name,
                    max_luns,
                    max_targets,
                });
            }
        }
        let known: Vec<&str> = LIMITS
            .iter()
            .flat_map(|row| row.2.iter().copied())
            .collect();
        Err(format!(
            "the limits of this model are not known; use one of {}",
            known.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_named_in_full_or_by_its_generation() {
        let named = |text: &str| text.parse::<Dsm>().map(|dsm| dsm.version);
        assert_eq!(named("7"), Ok("7.2"));
        assert_eq!(named("7.0"), Ok("7.0"));
        assert_eq!(named("6"), Ok("6.2"));
        assert!(named("7.9").unwrap_err().contains("7.0, 7.1, 7.2"));
    }

    #[test]
    fn limits_follow_the_model() {
        assert_eq!("DS923+".parse::<Model>().unwrap(), Model::default());
        let small: Model = "ds423".parse().unwrap();
        assert_eq!(
            (small.name, small.max_luns, small.max_targets),
            ("DS423", 4, 2)
        );
        assert!("DS1".parse::<Model>().unwrap_err().contains("DS923+"));
    }
}
