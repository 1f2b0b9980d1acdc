//! A publication: a volume exported to one node (design.md, "Fencing: one publication, one name"). Node ids, IQNs and the publish
//! context. Pure.
//!
//! Its target has a name that is never reused, and is the only record of the publication.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use rand::{Rng, RngExt as _};
use secrecy::ExposeSecret as _;

use crate::chap::{Account, Chap, Method};
use crate::volume::{LunUuid, Malformed, digest};

mod portal;

pub use portal::{MAX_PORTALS, Portal, portals_among};

const IQN_PREFIX: &str = "iqn.2000-01.com.synology:";

/// A node: `<node name>:<first 8 hexadecimal digits of the SHA-256 of its initiator name>`, at most 70 bytes of `[a-z0-9.:-]`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(String);

impl NodeId {
    /// The id of the node `name` whose initiator is `initiator`. A name beyond 61 bytes or outside `[a-z0-9.-]` is shortened,
    /// stripped of other characters and made unique by a hash.
    pub fn derive(name: &str, initiator: &str) -> Self {
        let allowed = |b: &u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-');
        let name = if (1..=61).contains(&name.len()) && name.bytes().all(|b| allowed(&b)) {
            name.to_owned()
        } else {
            let kept: String = name
                .bytes()
                .filter(allowed)
                .take(52)
                .map(char::from)
                .collect();
            format!("{kept}-{}", digest(name, 8))
        };
        Self(format!("{name}:{}", digest(initiator, 8)))
    }

    /// The text of the id.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// It has the same node name, whatever the initiator name.
    pub fn is_same_node(&self, other: &Self) -> bool {
        let name = |id: &Self| id.0.rsplit_once(':').map(|(name, _)| name.to_owned());
        name(self) == name(other)
    }
}

impl FromStr for NodeId {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let malformed = Malformed("a node id of this driver (<node name>:<8 hexadecimal digits>)");
        let Some((name, hash)) = text.rsplit_once(':') else {
            return Err(malformed);
        };
        let well_formed = (1..=61).contains(&name.len())
            && name
                .bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-'))
            && hash.len() == 8
            && hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if well_formed {
            Ok(Self(text.to_owned()))
        } else {
            Err(malformed)
        }
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Distinguishes publications of a LUN to the same node: a letter from `g` on, then 6 base-36 digits.
///
/// The letter distinguishes such names from legacy ones, which have a hexadecimal digit there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nonce(String);

/// Length of a nonce.
const NONCE_LEN: usize = 7;
/// Length of a uuid in base 36: 36^25 > 2^128.
const UUID_LEN: usize = 25;

impl Nonce {
    /// A random nonce, one of 4 × 10¹⁰.
    pub fn draw(random: &mut impl Rng) -> Self {
        let first = random.random_range(16..36);
        let rest = (1..NONCE_LEN).map(|_| random.random_range(0..36));
        let digits: Vec<u32> = std::iter::once(first).chain(rest).collect();
        Self(
            digits
                .into_iter()
                .filter_map(|digit| char::from_digit(digit, 36))
                .collect(),
        )
    }
}

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The uuid of a LUN as 25 base-36 digits.
fn in_base_36(lun: &LunUuid) -> String {
    let digits = in_base(36, lun.number(), UUID_LEN);
    digits.into_iter().map(char::from).collect()
}

/// Parses a uuid in base 36 followed by a nonce.
fn from_base_36(name: &str) -> Option<LunUuid> {
    let (uuid, nonce) = name.split_at_checked(UUID_LEN)?;
    let is_digit = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'z');
    let well_formed = uuid.bytes().chain(nonce.bytes()).all(is_digit)
        && nonce.len() == NONCE_LEN
        && nonce.starts_with(|c: char| c >= 'g');
    let number = well_formed.then(|| u128::from_str_radix(uuid, 36).ok())??;
    Some(LunUuid::from_number(number))
}

/// The last `digits` digits of `number` in `base`, at most 62: digits, then lower-case and upper-case letters.
pub(crate) fn in_base(base: u128, mut number: u128, digits: usize) -> Vec<u8> {
    const DIGITS: &[u8] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    let mut text = vec![b'0'; digits];
    for digit in text.iter_mut().rev() {
        let value = usize::try_from(number % base).unwrap_or_default();
        *digit = DIGITS[value];
        number /= base;
    }
    text
}

/// The DSM name of a publication's target, also unique. Unlike the IQN it contains the uuid in hexadecimal, as DSM shows it.
pub fn target_name(lun: &LunUuid, nonce: &Nonce) -> String {
    format!("csi-{}-{nonce}", lun.digits())
}

/// An iSCSI qualified name (RFC 7143, section 4.2.7).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Iqn(String);

impl Iqn {
    /// The target of a publication of `lun` to `node`: at most 128 bytes.
    pub fn of_publication(lun: &LunUuid, node: &NodeId, nonce: &Nonce) -> Self {
        Self(format!("{IQN_PREFIX}{}{nonce}.{node}", in_base_36(lun)))
    }

    /// The IQN that releases before 0.2 used: without a nonce, so that names were reused.
    pub fn without_nonce(lun: &LunUuid, node: &NodeId) -> Self {
        Self(format!("{IQN_PREFIX}{}.{node}", lun.digits()))
    }

    /// The IQN prefixes of all publications of `lun`, in either form.
    pub fn prefixes(lun: &LunUuid) -> [String; 2] {
        [in_base_36(lun), lun.digits()].map(|name| format!("{IQN_PREFIX}{name}"))
    }

    /// The LUN and node of this publication, in either form; `None` if it is not one of this driver.
    pub fn publication(&self) -> Option<(LunUuid, NodeId)> {
        let (name, node) = self.0.strip_prefix(IQN_PREFIX)?.split_once('.')?;
        let lun = match LunUuid::from_digits(name) {
            Ok(lun) => lun,
            Err(_) => from_base_36(name)?,
        };
        Some((lun, node.parse().ok()?))
    }

    /// The text of the IQN.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Iqn {
    type Err = Malformed;

    /// Lenient about the naming authority, strict about characters that could be mistaken for an option or a path.
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let well_formed = text.starts_with("iqn.")
            && text.len() <= 223
            && text
                .bytes()
                .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b':' | b'-'));
        if well_formed {
            Ok(Self(text.to_owned()))
        } else {
            Err(Malformed("an iSCSI qualified name"))
        }
    }
}

impl fmt::Display for Iqn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The publish context that `ControllerPublishVolume` passes to the node: where the LUN is and how to identify it. Under 4 KiB.
#[derive(Clone, Debug, PartialEq)]
pub struct PublishContext {
    /// At least one.
    pub portals: Vec<Portal>,
    /// The publication's target.
    pub iqn: Iqn,
    /// The SCSI logical unit number (DSM's `mapping_index`).
    pub lun: u16,
    /// The LUN, and the unit serial of the device.
    pub uuid: LunUuid,
    /// The CHAP method of logins. `None`: the publication was created by an earlier release, or by hand.
    pub auth: Option<Method>,
    /// The CHAP credentials of this publication. `None`: no CHAP, or the credentials are in a Secret of the StorageClass.
    pub chap: Option<Chap>,
}

/// Why a publish context cannot be used: the key, the value and what it should be.
#[derive(Debug, PartialEq, Eq)]
pub struct BadContext {
    /// The key.
    pub key: &'static str,
    /// The rejected value; empty if the key is absent.
    pub value: String,
    /// What it should be.
    pub wanted: &'static str,
}

impl PublishContext {
    /// The map that the CO passes to the node.
    pub fn to_map(&self) -> HashMap<String, String> {
        let portals: Vec<String> = self.portals.iter().map(Portal::to_string).collect();
        let mut map = HashMap::from([
            ("portals".to_owned(), portals.join(",")),
            ("iqn".to_owned(), self.iqn.to_string()),
            ("lun".to_owned(), self.lun.to_string()),
            ("uuid".to_owned(), self.uuid.to_string()),
        ]);
        map.extend(self.auth.map(|auth| ("auth".to_owned(), auth.to_string())));
        let initiator = self.chap.as_ref().map(|chap| &chap.initiator);
        let target = self.chap.as_ref().and_then(|chap| chap.target.as_ref());
        for (account, [name, password]) in [(initiator, INITIATOR), (target, TARGET)] {
            if let Some(Account {
                user,
                password: secret,
            }) = account
            {
                map.insert(name.to_owned(), user.clone());
                map.insert(password.to_owned(), secret.expose_secret().to_owned());
            }
        }
        map
    }

    /// Parses the map that the CO passed.
    ///
    /// # Errors
    /// A key is absent (all but `auth` and the CHAP credentials are required) or does not parse.
    pub fn read(map: &HashMap<String, String>) -> Result<Self, BadContext> {
        fn value<T: FromStr>(
            map: &HashMap<String, String>,
            key: &'static str,
            wanted: &'static str,
        ) -> Result<T, BadContext> {
            let value = map.get(key).cloned().unwrap_or_default();
            value.parse().map_err(|_| BadContext { key, value, wanted })
        }
        let listed: String = value(map, "portals", "a comma-separated list of portals")?;
        let portals: Result<Vec<Portal>, _> = listed.split(',').map(str::parse).collect();
        let portals = portals.map_err(|_| BadContext {
            key: "portals",
            value: listed,
            wanted: "a comma-separated list of ADDRESS:PORT",
        })?;
        if let Some(bad) = portals.iter().find(|portal| portal.is_unusable()) {
            return Err(BadContext {
                key: "portals",
                value: bad.to_string(),
                wanted: "addresses that a NAS can listen at: not link-local, multicast or unspecified",
            });
        }
        if portals.len() > MAX_PORTALS {
            return Err(BadContext {
                key: "portals",
                value: format!("{} portals", portals.len()),
                wanted: "at most 16 portals",
            });
        }
        Ok(Self {
            portals,
            iqn: value(map, "iqn", "the IQN of a target of this driver")?,
            lun: value(map, "lun", "a SCSI logical unit number")?,
            uuid: value(map, "uuid", "the uuid of the LUN")?,
            auth: map
                .contains_key("auth")
                .then(|| value(map, "auth", "none, chap or mutual"))
                .transpose()?,
            chap: credentials(map)?,
        })
    }
}

/// The keys of the initiator's credentials, and of the target's.
const INITIATOR: [&str; 2] = ["chap_username", "chap_password"];
const TARGET: [&str; 2] = ["chap_username_in", "chap_password_in"];

fn credentials(map: &HashMap<String, String>) -> Result<Option<Chap>, BadContext> {
    let account = |[name, password]: [&'static str; 2]| {
        match (map.get(name), map.get(password)) {
        (None, None) => Ok(None),
        (user, secret) => Account::read(
            user.map_or("", String::as_str),
            secret.map_or("", String::as_str),
        )
        .map(Some)
        .ok_or(BadContext {
            key: if user.is_some() { password } else { name },
            // It may be a password.
            value: "***".to_owned(),
            wanted: "a CHAP name together with its password, as ControllerPublishVolume returned them",
        }),
    }
    };
    let (initiator, target) = (account(INITIATOR)?, account(TARGET)?);
    Ok(initiator.map(|initiator| Chap { initiator, target }))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;

    fn uuid() -> LunUuid {
        "13a3cd1e-f296-4d4b-b712-a85c139f9dac".parse().unwrap()
    }

    /// design.md#node-id
    #[test]
    fn node_ids_have_a_fixed_format() {
        let id = NodeId::derive("worker-1", "iqn.1993-08.org.debian:01:abc");
        assert!(id.as_str().starts_with("worker-1:"));
        for name in ["", "Worker_1", &"n".repeat(62), &"n".repeat(500), "ü"] {
            let id = NodeId::derive(name, "iqn");
            assert!(id.as_str().len() <= 70, "{id}");
            assert_eq!(id.as_str().parse::<NodeId>().unwrap(), id);
        }
        assert_ne!(
            NodeId::derive("Worker_1", "i"),
            NodeId::derive("worker1", "i")
        );
        assert_ne!(NodeId::derive("w", "i"), NodeId::derive("w", "j"));
        for foreign in [
            "",
            "some-fake-node-id",
            "w:",
            "w:0123456",
            "w:0123456g",
            "W:01234567",
            ":01234567",
            "w/x:01234567",
        ] {
            assert!(foreign.parse::<NodeId>().is_err(), "{foreign}");
        }
    }

    /// design.md#one-target-per-publication
    #[test]
    fn an_iqn_identifies_its_publication() {
        let node = NodeId::derive(&"n".repeat(100), "iqn.x");
        let mut random = StdRng::seed_from_u64(7);
        let nonce = Nonce::draw(&mut random);
        for lun in [
            uuid(),
            LunUuid::from_number(0),
            LunUuid::from_number(u128::MAX),
        ] {
            for iqn in [
                Iqn::of_publication(&lun, &node, &nonce),
                Iqn::without_nonce(&lun, &node),
            ] {
                assert!(iqn.as_str().len() <= 128, "{}", iqn.as_str().len());
                assert_eq!(iqn.publication(), Some((lun.clone(), node.clone())));
                assert_eq!(iqn.as_str().parse::<Iqn>().unwrap(), iqn);
            }
        }
        for _ in 0..1000 {
            let nonce = Nonce::draw(&mut random);
            let name = format!("{}{nonce}", in_base_36(&uuid()));
            assert!(LunUuid::from_digits(&name).is_err(), "{name}");
            assert_eq!(from_base_36(&name), Some(uuid()));
        }
        // Beyond 2^128, without the letter, too short, in capitals.
        for foreign in [
            format!("{}g000000", "z".repeat(25)),
            format!("{}f000000", in_base_36(&uuid())),
            format!("{}g00000", in_base_36(&uuid())),
            format!("{}G000000", in_base_36(&uuid())),
        ] {
            assert_eq!(from_base_36(&foreign), None, "{foreign}");
        }
        let foreign: Iqn = "iqn.2000-01.com.synology:nas.default-target.0123"
            .parse()
            .unwrap();
        assert_eq!(foreign.publication(), None);
    }

    /// design.md#portals
    #[test]
    fn a_publish_context_with_invalid_portals_is_rejected() {
        let with = |portals: &str| {
            let mut map = HashMap::from([
                ("iqn".to_owned(), "iqn.2000-01.com.synology:x".to_owned()),
                ("lun".to_owned(), "1".to_owned()),
                ("uuid".to_owned(), uuid().to_string()),
            ]);
            map.insert("portals".to_owned(), portals.to_owned());
            PublishContext::read(&map)
        };
        assert!(with("10.0.0.5:3260,[fd00::5]:3260").is_ok());
        let many: Vec<String> = (0..17).map(|host| format!("10.0.0.{host}:3260")).collect();
        assert!(with(&many[1..].join(",")).is_ok());
        for bad in [
            &many.join(","),
            "[fe80::1]:3260",
            "169.254.1.1:3260",
            "0.0.0.0:3260",
            "[::]:3260",
            "[::ffff:0.0.0.0]:3260",
            "224.0.0.1:3260",
            "10.0.0.5:0",
        ] {
            assert_eq!(with(bad).unwrap_err().key, "portals", "{bad}");
        }
    }

    /// design.md#portals
    #[test]
    fn a_publish_context_round_trips() {
        let context = PublishContext {
            portals: vec![
                "10.0.0.5".parse().unwrap(),
                "[fd00::5]:3261".parse().unwrap(),
            ],
            iqn: Iqn::of_publication(
                &uuid(),
                &NodeId::derive(&"n".repeat(61), "i"),
                &Nonce::draw(&mut StdRng::seed_from_u64(7)),
            ),
            lun: 1,
            uuid: uuid(),
            auth: Some(Method::Mutual),
            chap: Some(Chap {
                initiator: Account::read("csi", "planted-12345").unwrap(),
                target: Account::read("nas", "planted-67890"),
            }),
        };
        let map = context.to_map();
        assert!(map.iter().map(|(k, v)| k.len() + v.len()).sum::<usize>() < 4096);
        assert_eq!(PublishContext::read(&map).unwrap(), context);
        for key in ["portals", "iqn", "lun", "uuid"] {
            let mut broken = map.clone();
            broken.insert(key.to_owned(), "; rm -rf /".to_owned());
            assert_eq!(PublishContext::read(&broken).unwrap_err().key, key);
            broken.remove(key);
            assert_eq!(PublishContext::read(&broken).unwrap_err().key, key);
        }
        for key in INITIATOR.into_iter().chain(TARGET) {
            let mut broken = map.clone();
            broken.insert(key.to_owned(), "two\nlines".to_owned());
            let bad = PublishContext::read(&broken).unwrap_err();
            assert!(!format!("{bad:?}").contains("lines"), "{bad:?}");
        }
        assert!(!format!("{context:?}").contains("planted"));
        let mut older = map.clone();
        older.remove("auth");
        assert_eq!(PublishContext::read(&older).unwrap().auth, None);
        older.insert("auth".to_owned(), "kerberos".to_owned());
        assert_eq!(PublishContext::read(&older).unwrap_err().key, "auth");
    }
}
