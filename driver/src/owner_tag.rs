//! The mark of a LUN of this driver's, which stands in its description (design.md#the-owners-mark). Pure.
//!
//! `csi2 o=5f3a9c01 p=01234567 n=0123456789ab - pvc-1 for default/data`: owner, parameters and CSI name as digests, then words for people. The
//! mark itself is 64 characters at most, whatever it is about. People may write before and behind it. `c=` names the cluster, where
//! one is configured, `f=10G` the floor of free space, where the class gives one: nothing else tells it when the volume grows. Words of
//! this form that a release does not know are passed over; `d=` is kept free for volumes that are deleted and still needed (they grow no
//! more, so it may take the place of `f=`).
//!
//! Releases before this one wrote `csi.synology.com parameters=… name=pvc-1`. That is read for ever, and never rewritten unasked.

use std::fmt;
use std::str::FromStr;

use crate::min_free::Floor;
use crate::volume::{Malformed, digest};

/// The first word of a mark.
const PREFIX: &str = "csi2";
/// The longest description that is sent: what people are told is cut there.
const LONGEST: usize = 200;

/// A cluster's name among those that share a NAS: 1 to 12 characters of `[a-z0-9-]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster(String);

impl FromStr for Cluster {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let allowed = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-');
        if (1..=12).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.to_owned()))
        } else {
            Err(Malformed("1 to 12 characters of [a-z0-9-]"))
        }
    }
}

impl fmt::Display for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whose LUNs this driver touches: those that were made under its name and in its cluster.
#[derive(Clone, Debug)]
pub struct Owner {
    driver: String,
    cluster: Option<Cluster>,
}

/// What a mark says of its volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerTag {
    parameters: Option<String>,
    name: Option<Name>,
    /// What the class says of free space.
    pub floor: Option<Floor>,
}

/// The CSI name in a mark.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    /// In those of earlier releases.
    Whole(String),
    Digest(String),
}

/// Why a LUN is not this driver's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotOurs {
    /// No mark, or that of another driver.
    Unmarked,
    /// Another cluster's, or that of one where this driver has none configured.
    OfCluster(String),
}

impl Owner {
    /// The driver of this name, perhaps in a cluster that shares its NASes with others.
    pub fn new(driver: String, cluster: Option<Cluster>) -> Self {
        Self { driver, cluster }
    }

    /// The driver's name.
    pub fn driver(&self) -> &str {
        &self.driver
    }

    /// What makes a LUN this driver's, and no more: what a person writes back into a description that lost it.
    pub fn short(&self) -> String {
        let cluster = self.cluster.as_ref();
        let cluster = cluster.map_or_else(String::new, |cluster| format!(" c={cluster}"));
        format!("{PREFIX} o={}{cluster}", digest(&self.driver, 8))
    }

    /// The description of the LUN of the volume `name` with these parameters (a digest of them) and the floor of its class; `claim` is
    /// told to people.
    pub fn description(
        &self,
        name: &str,
        parameters: &str,
        floor: Option<Floor>,
        claim: Option<&str>,
    ) -> String {
        let claim = claim.map_or_else(String::new, |claim| format!(" for {claim}"));
        let floor = floor.map_or_else(String::new, |floor| format!(" f={floor}"));
        let text = format!(
            "{} p={} n={}{floor} - {name}{claim}",
            self.short(),
            &parameters[..8.min(parameters.len())],
            digest(name, 12)
        );
        text.chars().take(LONGEST).collect()
    }

    /// Reads a description.
    ///
    /// # Errors
    /// Why the LUN is not this driver's.
    pub fn read(&self, description: &str) -> Result<OwnerTag, NotOurs> {
        if let Some(mark) = self.read_old(description) {
            return Ok(mark);
        }
        let owner = format!("o={}", digest(&self.driver, 8));
        let mut words = description.split_whitespace();
        while let Some(word) = words.next() {
            let mut rest = words.clone();
            if word != PREFIX || rest.next() != Some(owner.as_str()) {
                continue;
            }
            let fields: Vec<(&str, &str)> = rest.map_while(|word| word.split_once('=')).collect();
            let field = |key: &str| {
                let found = fields.iter().find(|(name, _)| *name == key);
                found.map(|(_, value)| (*value).to_owned())
            };
            let cluster = field("c");
            let ours = self.cluster.as_ref().map(ToString::to_string);
            if let Some(other) = cluster.filter(|cluster| ours.as_ref() != Some(cluster)) {
                return Err(NotOurs::OfCluster(other));
            }
            return Ok(OwnerTag {
                parameters: field("p"),
                name: field("n").map(Name::Digest),
                floor: field("f").and_then(|text| text.parse().ok()),
            });
        }
        Err(NotOurs::Unmarked)
    }

    fn read_old(&self, description: &str) -> Option<OwnerTag> {
        let rest = description
            .strip_prefix(&self.driver)?
            .strip_prefix(" parameters=")?;
        let (parameters, name) = rest.split_once(" name=")?;
        Some(OwnerTag {
            parameters: Some(parameters.to_owned()),
            name: Some(Name::Whole(name.to_owned())),
            floor: None,
        })
    }
}

impl OwnerTag {
    /// It may be the mark of the volume `name`. One without a name is: the LUN's own name stands for it.
    pub fn is_of(&self, name: &str) -> bool {
        match &self.name {
            None => true,
            Some(Name::Whole(whole)) => whole == name,
            Some(Name::Digest(seen)) => *seen == digest(name, 12),
        }
    }

    /// The volume may have been made with the parameters of this digest.
    pub fn has(&self, parameters: &str) -> bool {
        self.parameters
            .as_ref()
            .is_none_or(|seen| seen.len() >= 8 && parameters.starts_with(seen.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARAMETERS: &str = "0123456789abcdef";

    fn owner(cluster: Option<&str>) -> Owner {
        let cluster = cluster.map(|name| name.parse().unwrap());
        Owner::new("csi.synology.com".to_owned(), cluster)
    }

    /// design.md#the-owners-mark
    #[test]
    fn a_mark_survives_any_name_and_what_people_add() {
        let owner = owner(Some("home"));
        let longest = "x".repeat(128);
        let floor: Floor = "9999Gi".parse().unwrap();
        for name in ["pvc-1", "with blanks n=x", "ünï", "csi2 o=1 f=1G", &longest] {
            let text = owner.description(name, PARAMETERS, Some(floor), Some("default/data"));
            assert!(text.chars().count() <= LONGEST);
            for text in [
                text.clone(),
                format!("Do not delete! {text}"),
                format!("{text}; asked for by Eve, n=5"),
                text.chars().take(64).collect(),
            ] {
                let mark = owner.read(&text).unwrap();
                assert!(mark.is_of(name) && !mark.is_of("other"), "{text}");
                assert_eq!(mark.floor, Some(floor), "{text}");
                assert!(
                    mark.has(PARAMETERS) && !mark.has("fedcba9876543210"),
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn a_mark_is_short() {
        let longest = Owner::new("d".repeat(63), Some("c".repeat(12).parse().unwrap()));
        let floor = "9999Ti".parse().unwrap();
        let text = longest.description("pvc-1", PARAMETERS, Some(floor), None);
        let mark = text.split(" - ").next().unwrap();
        assert!(mark.len() <= 64, "{mark}: {}", mark.len());
        assert_eq!(longest.read(mark).unwrap().floor, Some(floor));
    }

    #[test]
    fn a_mark_without_a_floor_that_can_be_read_has_none() {
        let owner = owner(None);
        let without = owner.description("f=1G", PARAMETERS, None, None);
        for text in [without.as_str(), &format!("{} f=much", owner.short())] {
            assert_eq!(owner.read(text).unwrap().floor, None, "{text}");
        }
    }

    #[test]
    fn marks_of_earlier_releases_are_read_for_ever() {
        let text = "csi.synology.com parameters=0123456789abcdef name=a name=b";
        for cluster in [None, Some("home")] {
            let mark = owner(cluster).read(text).unwrap();
            assert!(mark.is_of("a name=b") && !mark.is_of("b"));
            assert!(mark.has(PARAMETERS) && !mark.has("0023456789abcdef"));
        }
    }

    #[test]
    fn what_is_not_ours_is_told_apart() {
        for foreign in [
            "",
            "my LUN",
            "csi.synology.com",
            "csi2",
            "csi2 n=0123456789ab",
            "other.driver parameters=x name=y",
            &Owner::new("csi.other.com".to_owned(), None).short(),
        ] {
            assert_eq!(
                owner(None).read(foreign),
                Err(NotOurs::Unmarked),
                "{foreign}"
            );
        }
        let there = owner(Some("home")).short();
        for other in [None, Some("work")] {
            let not = owner(other).read(&there);
            assert_eq!(not, Err(NotOurs::OfCluster("home".to_owned())));
        }
        // Made before a cluster was named.
        assert!(owner(Some("home")).read(&owner(None).short()).is_ok());
    }

    #[test]
    fn what_a_person_writes_back_is_enough() {
        let owner = owner(Some("home"));
        let mark = owner
            .read(&format!("{} was edited", owner.short()))
            .unwrap();
        assert!(mark.is_of("any") && mark.has(PARAMETERS));
    }

    #[test]
    fn a_cluster_has_a_short_name() {
        for bad in ["", "Home", "a b", "x=y", "thirteen-chars"] {
            assert!(bad.parse::<Cluster>().is_err(), "{bad}");
        }
    }
}
