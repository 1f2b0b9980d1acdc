//! The minimum free space on a volume of the NAS, `minFreeSpace` (design.md#free-space): a full volume stops every thin LUN on
//! it. Pure.

use std::fmt;
use std::str::FromStr;

use crate::dsm::location::Location;
use crate::volume::{Bytes, Malformed};

/// The minimum free space that must remain on a volume of the NAS when a LUN is created or expanded; 0 disables the check.
///
/// It is part of a LUN's owner tag if the StorageClass sets it, so its text has at most 5 characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MinFreeSpace(Bytes);

/// The largest number before a unit.
const MAX_NUMBER: u64 = 9999;
/// Units as written in an owner tag, with their shifts, the largest first.
const UNITS: [(&str, u32); 3] = [("T", 40), ("G", 30), ("M", 20)];

impl Default for MinFreeSpace {
    /// 1 GiB: below that DSM itself creates no LUN and no snapshot.
    fn default() -> Self {
        Self(Bytes::GIB)
    }
}

impl MinFreeSpace {
    /// How much of the `free` space of a volume may be used.
    pub fn usable(self, free: Bytes) -> Bytes {
        Bytes(free.0.saturating_sub(self.0.0))
    }

    /// Why a LUN may not allocate `at_once` more on a volume; `None` if it may, or if the NAS does not report free space.
    pub fn shortage(self, location: &Location, at_once: Bytes) -> Option<String> {
        let free = location.free.filter(|_| self.0 > Bytes::default())?;
        if free >= self.0 && self.usable(free) >= at_once {
            return None;
        }
        let path = &location.path;
        Some(if free < self.0 {
            format!(
                "{path} has {free} free, less than the {} that stay free",
                self.0
            )
        } else {
            format!(
                "it takes {at_once} at once, and {path} has {free} free, of which {} stay free",
                self.0
            )
        })
    }
}

impl fmt::Display for MinFreeSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0.0;
        let unit = UNITS
            .into_iter()
            .find(|(_, shift)| bytes > 0 && bytes.is_multiple_of(1 << shift));
        match unit {
            Some((unit, shift)) => write!(f, "{}{unit}", bytes >> shift),
            None => write!(f, "{bytes}"),
        }
    }
}

impl FromStr for MinFreeSpace {
    type Err = Malformed;

    /// Parses `0`, Kubernetes quantities (`500Mi`, `10Gi`, `1Ti`), and the form in an owner tag, without `i`.
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let wrong = || Malformed("0 or 1 to 9999 Mi, Gi or Ti, for instance 10Gi");
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        let unit = &text[digits.len()..];
        let unit = unit.strip_suffix('i').unwrap_or(unit);
        let shift = UNITS.into_iter().find(|(name, _)| *name == unit);
        match (number, shift) {
            (0, _) if digits == text || shift.is_some() => Ok(Self(Bytes::default())),
            (1..=MAX_NUMBER, Some((_, shift))) => Ok(Self(Bytes(number << shift))),
            _ => Err(wrong()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn floor(text: &str) -> MinFreeSpace {
        text.parse().unwrap()
    }

    #[test]
    fn min_free_space_is_a_kubernetes_quantity() {
        for (text, bytes, in_tag) in [
            ("0", 0, "0"),
            ("0Gi", 0, "0"),
            ("500Mi", 500 << 20, "500M"),
            ("1024Mi", 1 << 30, "1G"),
            ("1Gi", 1 << 30, "1G"),
            ("10G", 10 << 30, "10G"),
            ("9999Ti", 9999 << 40, "9999T"),
        ] {
            assert_eq!(floor(text), MinFreeSpace(Bytes(bytes)), "{text}");
            assert_eq!(floor(text).to_string(), in_tag);
            assert_eq!(floor(in_tag), floor(text));
        }
        for bad in [
            "",
            "Gi",
            "-1Gi",
            "1.5Gi",
            "1073741824",
            "10000Mi",
            "1Pi",
            "1 Gi",
            "1gi",
            "i",
            "0i",
            "10%",
        ] {
            assert!(bad.parse::<MinFreeSpace>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn the_form_in_an_owner_tag_is_read_back(number in 0_u64..=MAX_NUMBER, unit in 0_usize..3) {
            let floor = floor(&format!("{number}{}i", UNITS[unit].0));
            let text = floor.to_string();
            prop_assert!(text.len() <= 5, "{}", text);
            prop_assert_eq!(text.parse(), Ok(floor));
        }
    }

    /// design.md#free-space
    #[test]
    fn an_allocation_leaves_the_minimum_free() {
        let at = |free: Option<u64>| -> Location {
            let mut row = serde_json::json!({"volume_path": "/volume1"});
            if let Some(free) = free {
                row["size_free_byte"] = serde_json::json!(free.to_string());
            }
            serde_json::from_value(row).unwrap()
        };
        let gib = |n: u64| n << 30;
        for (text, free, at_once, refused) in [
            ("1Gi", Some(gib(1)), 0, false),
            ("1Gi", Some(gib(1) - 1), 0, true),
            ("1Gi", Some(0), 0, true),
            ("1Gi", None, gib(4096), false),
            ("1Gi", Some(gib(11)), gib(10), false),
            ("1Gi", Some(gib(11)), gib(10) + 1, true),
            ("0", Some(0), gib(10), false),
            ("10Gi", Some(gib(10) - 1), 0, true),
        ] {
            let seen = floor(text).shortage(&at(free), Bytes(at_once));
            assert_eq!(
                seen.is_some(),
                refused,
                "{text} {free:?} {at_once}: {seen:?}"
            );
            assert!(seen.is_none_or(|seen| seen.contains("/volume1")));
        }
    }
}
