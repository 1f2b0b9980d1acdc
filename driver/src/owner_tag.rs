//! The owner tag: text in a LUN's description that marks it as this driver's (design.md#owner-tag). Pure.
//!
//! `csi2 o=5f3a9c01 p=01234567 n=0123456789ab - pvc-1 for default/data`: digests of owner, parameters and CSI name, then a
//! human-readable part. The tag itself has at most 64 characters. Users may add text before and after it. `c=` names the cluster,
//! if one is configured, `f=10G` the minimum free space, if the StorageClass sets it: it is stored nowhere else for when the
//! volume expands. Unknown fields of this form are ignored; `d=` is reserved for volumes that are deleted and still needed (they
//! no longer expand, so it may replace `f=`).
//!
//! Earlier releases wrote `csi.synology.com parameters=… name=pvc-1`. That form is supported for ever, and never rewritten.

use std::fmt;
use std::str::FromStr;

use crate::min_free::MinFreeSpace;
use crate::volume::{Malformed, digest};

/// The first word of a tag.
const PREFIX: &str = "csi2";
/// The longest description that is sent, in characters: the human-readable part is truncated.
const MAX_DESCRIPTION: usize = 200;

/// The name of a cluster that shares a NAS with others: 1 to 12 characters of `[a-z0-9-]`.
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

/// The identity that LUNs are tagged with: driver name and cluster. The driver touches only LUNs with this owner.
#[derive(Clone, Debug)]
pub struct Owner {
    driver: String,
    cluster: Option<Cluster>,
}

/// A parsed owner tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerTag {
    parameters: Option<String>,
    name: Option<Name>,
    /// `minFreeSpace` of the StorageClass.
    pub floor: Option<MinFreeSpace>,
}

/// The CSI name in a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    /// Written by earlier releases.
    Whole(String),
    Digest(String),
}

/// Why a LUN is not this driver's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotOurs {
    /// No tag, or that of another driver.
    Unmarked,
    /// The tag of another cluster, or of any cluster if this driver has none configured.
    OfCluster(String),
}

impl Owner {
    /// An owner with this driver name; `cluster` if several clusters share the NASes.
    pub fn new(driver: String, cluster: Option<Cluster>) -> Self {
        Self { driver, cluster }
    }

    /// The driver's name.
    pub fn driver(&self) -> &str {
        &self.driver
    }

    /// The minimal tag, with owner and cluster only: what a user writes into a description that has lost its tag.
    pub fn minimal_tag(&self) -> String {
        let cluster = self.cluster.as_ref();
        let cluster = cluster.map_or_else(String::new, |cluster| format!(" c={cluster}"));
        format!("{PREFIX} o={}{cluster}", digest(&self.driver, 8))
    }

    /// The description of the LUN of the volume `name`, with a digest of its parameters and the minimum free space of its
    /// StorageClass; `claim` is for humans only.
    pub fn description(
        &self,
        name: &str,
        parameters: &str,
        floor: Option<MinFreeSpace>,
        claim: Option<&str>,
    ) -> String {
        let claim = claim.map_or_else(String::new, |claim| format!(" for {claim}"));
        let floor = floor.map_or_else(String::new, |floor| format!(" f={floor}"));
        let text = format!(
            "{} p={} n={}{floor} - {name}{claim}",
            self.minimal_tag(),
            &parameters[..8.min(parameters.len())],
            digest(name, 12)
        );
        text.chars().take(MAX_DESCRIPTION).collect()
    }

    /// Parses a LUN's description.
    ///
    /// # Errors
    /// [`NotOurs`]: why the LUN is not this driver's.
    pub fn read(&self, description: &str) -> Result<OwnerTag, NotOurs> {
        if let Some(tag) = self.read_legacy(description) {
            return Ok(tag);
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

    fn read_legacy(&self, description: &str) -> Option<OwnerTag> {
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
    /// It may be the tag of the volume `name`. A tag without a name matches any: then the LUN's own name counts.
    pub fn matches_name(&self, name: &str) -> bool {
        match &self.name {
            None => true,
            Some(Name::Whole(whole)) => whole == name,
            Some(Name::Digest(seen)) => *seen == digest(name, 12),
        }
    }

    /// The volume may have been created with parameters of this digest.
    pub fn matches_parameters(&self, parameters: &str) -> bool {
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

    /// design.md#owner-tag
    #[test]
    fn a_tag_survives_any_name_and_text_that_users_add() {
        let owner = owner(Some("home"));
        let longest = "x".repeat(128);
        let floor: MinFreeSpace = "9999Gi".parse().unwrap();
        for name in ["pvc-1", "with blanks n=x", "ünï", "csi2 o=1 f=1G", &longest] {
            let text = owner.description(name, PARAMETERS, Some(floor), Some("default/data"));
            assert!(text.chars().count() <= MAX_DESCRIPTION);
            for text in [
                text.clone(),
                format!("Do not delete! {text}"),
                format!("{text}; asked for by Eve, n=5"),
                text.chars().take(64).collect(),
            ] {
                let tag = owner.read(&text).unwrap();
                assert!(
                    tag.matches_name(name) && !tag.matches_name("other"),
                    "{text}"
                );
                assert_eq!(tag.floor, Some(floor), "{text}");
                assert!(
                    tag.matches_parameters(PARAMETERS)
                        && !tag.matches_parameters("fedcba9876543210"),
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn a_tag_is_short() {
        let longest = Owner::new("d".repeat(63), Some("c".repeat(12).parse().unwrap()));
        let floor = "9999Ti".parse().unwrap();
        let text = longest.description("pvc-1", PARAMETERS, Some(floor), None);
        let tag = text.split(" - ").next().unwrap();
        assert!(tag.len() <= 64, "{tag}: {}", tag.len());
        assert_eq!(longest.read(tag).unwrap().floor, Some(floor));
    }

    #[test]
    fn an_unreadable_minimum_free_space_is_ignored() {
        let owner = owner(None);
        let without = owner.description("f=1G", PARAMETERS, None, None);
        for text in [without.as_str(), &format!("{} f=much", owner.minimal_tag())] {
            assert_eq!(owner.read(text).unwrap().floor, None, "{text}");
        }
    }

    #[test]
    fn tags_of_earlier_releases_are_still_read() {
        let text = "csi.synology.com parameters=0123456789abcdef name=a name=b";
        for cluster in [None, Some("home")] {
            let tag = owner(cluster).read(text).unwrap();
            assert!(tag.matches_name("a name=b") && !tag.matches_name("b"));
            assert!(
                tag.matches_parameters(PARAMETERS) && !tag.matches_parameters("0023456789abcdef")
            );
        }
    }

    #[test]
    fn foreign_descriptions_are_rejected() {
        for foreign in [
            "",
            "my LUN",
            "csi.synology.com",
            "csi2",
            "csi2 n=0123456789ab",
            "other.driver parameters=x name=y",
            &Owner::new("csi.other.com".to_owned(), None).minimal_tag(),
        ] {
            assert_eq!(
                owner(None).read(foreign),
                Err(NotOurs::Unmarked),
                "{foreign}"
            );
        }
        let home = owner(Some("home")).minimal_tag();
        for other in [None, Some("work")] {
            let not = owner(other).read(&home);
            assert_eq!(not, Err(NotOurs::OfCluster("home".to_owned())));
        }
        // Created before a cluster was configured.
        assert!(owner(Some("home")).read(&owner(None).minimal_tag()).is_ok());
    }

    #[test]
    fn the_minimal_tag_is_enough() {
        let owner = owner(Some("home"));
        let tag = owner
            .read(&format!("{} was edited", owner.minimal_tag()))
            .unwrap();
        assert!(tag.matches_name("any") && tag.matches_parameters(PARAMETERS));
    }

    #[test]
    fn a_cluster_has_a_short_name() {
        for bad in ["", "Home", "a b", "x=y", "thirteen-chars"] {
            assert!(bad.parse::<Cluster>().is_err(), "{bad}");
        }
    }
}
