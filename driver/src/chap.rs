//! CHAP credentials, by which initiator and target authenticate each other at a login. Pure. By default each publication has its
//! own credentials ([`keys`]); a Secret named in the StorageClass replaces them.
//!
//! One Secret serves `ControllerPublishVolume`, which sets it on the target, and `NodeStageVolume`, which logs in with it. Its
//! keys are those of Kubernetes Secrets of type `kubernetes.io/iscsi-chap`, which are open-iscsi's names. No error message of
//! this module contains a value of the Secret.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use secrecy::{ExposeSecret as _, SecretString};

use crate::error::Error;
use crate::volume::Malformed;

pub mod keys;

/// The initiator's CHAP name.
pub const USERNAME: &str = "node.session.auth.username";
/// The initiator's CHAP password.
pub const PASSWORD: &str = "node.session.auth.password";
/// The target's CHAP name, for mutual CHAP.
pub const USERNAME_IN: &str = "node.session.auth.username_in";
/// The target's CHAP password, for mutual CHAP.
pub const PASSWORD_IN: &str = "node.session.auth.password_in";
/// A Secret of type `kubernetes.io/iscsi-chap` may also hold discovery credentials; the driver does no discovery.
const DISCOVERY: &str = "discovery.sendtargets.auth.";
const KEYS: [&str; 4] = [USERNAME, PASSWORD, USERNAME_IN, PASSWORD_IN];

/// Characters of a password. RFC 7143, section 9.2.1 requires at least 96 bits, which are 12 characters; that DSM takes no more
/// than 16 is the limit of common initiators and ASSUMED of DSM: democratic-csi reports 18990708 for a wrong length.
const PASSWORD_LENGTH: std::ops::RangeInclusive<usize> = 12..=16;
/// Characters of a name. ASSUMED: the longest that DSM takes is not known; open-iscsi takes 255.
const NAME_LENGTH: std::ops::RangeInclusive<usize> = 1..=128;

/// CHAP name and password of one side.
#[derive(Clone, Debug)]
pub struct Account {
    /// Not secret: DSM shows it to every administrator.
    pub user: String,
    /// 12 to 16 characters.
    pub password: SecretString,
}

impl Account {
    /// `None` unless both fit into an open-iscsi node record.
    pub fn read(user: &str, password: &str) -> Option<Self> {
        let fits = |text: &str, length: &std::ops::RangeInclusive<usize>| {
            length.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
        };
        (fits(user, &NAME_LENGTH) && fits(password, &PASSWORD_LENGTH)).then(|| Self {
            user: user.to_owned(),
            password: password.into(),
        })
    }
}

impl PartialEq for Account {
    fn eq(&self, other: &Self) -> bool {
        self.user == other.user && self.password.expose_secret() == other.password.expose_secret()
    }
}

/// The CHAP credentials of one login.
#[derive(Clone, Debug, PartialEq)]
pub struct Chap {
    /// Authenticates the initiator to the target.
    pub initiator: Account,
    /// Authenticates the target to the initiator: mutual CHAP.
    pub target: Option<Account>,
}

/// The authentication method of a login: `auth` of a publish context, and DSM's `auth_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// No CHAP.
    None,
    /// One-way: the initiator authenticates itself.
    Chap,
    /// Initiator and target authenticate themselves.
    Mutual,
}

impl Method {
    /// The method for which these are the credentials.
    pub fn of(chap: Option<&Chap>) -> Self {
        match chap {
            None => Self::None,
            Some(Chap { target: None, .. }) => Self::Chap,
            Some(Chap {
                target: Some(_), ..
            }) => Self::Mutual,
        }
    }

    /// DSM's number for it: `auth_type` of `SYNO.Core.ISCSI.Target`.
    pub fn auth_type(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Chap => 1,
            Self::Mutual => 2,
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Chap => "chap",
            Self::Mutual => "mutual",
        })
    }
}

impl FromStr for Method {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        [Self::None, Self::Chap, Self::Mutual]
            .into_iter()
            .find(|method| method.to_string() == text)
            .ok_or(Malformed("none, chap or mutual"))
    }
}

impl Chap {
    /// Parses the `secrets` of a CSI call. No secrets: no CHAP.
    ///
    /// # Errors
    /// INVALID_ARGUMENT naming the key, never its value: an unknown key, a name without password or the reverse, a length or a
    /// character that DSM or open-iscsi does not accept.
    pub fn read(secrets: &HashMap<String, String>) -> Result<Option<Self>, Error> {
        if secrets.is_empty() {
            return Ok(None);
        }
        // Sorted, so that the same Secret always yields the same message.
        let mut unknown: Vec<&String> = secrets
            .keys()
            .filter(|key| !KEYS.contains(&key.as_str()) && !key.starts_with(DISCOVERY))
            .collect();
        unknown.sort_unstable();
        if let Some(key) = unknown.first() {
            return Err(bad(
                key,
                &format!(
                    "leave it out; the keys of a Secret for CHAP are {}",
                    KEYS.join(", ")
                ),
            ));
        }
        let target = pair(secrets, USERNAME_IN, PASSWORD_IN)?;
        let Some(initiator) = pair(secrets, USERNAME, PASSWORD)? else {
            return Err(absent(
                USERNAME,
                "mutual CHAP needs the initiator's pair too",
            ));
        };
        // RFC 7143, section 9.2.1: each direction must have a different secret, or an attacker could have the target compute the
        // initiator's response.
        if target
            .as_ref()
            .is_some_and(|target| same(&target.password, &initiator.password))
        {
            return Err(bad(
                PASSWORD_IN,
                &format!("it must be another password than {PASSWORD}"),
            ));
        }
        Ok(Some(Self { initiator, target }))
    }
}

fn same(one: &SecretString, other: &SecretString) -> bool {
    one.expose_secret() == other.expose_secret()
}

/// A name and its password: both or neither.
fn pair(
    secrets: &HashMap<String, String>,
    name_key: &str,
    password_key: &str,
) -> Result<Option<Account>, Error> {
    let (name, password) = match (secrets.get(name_key), secrets.get(password_key)) {
        (None, None) => return Ok(None),
        (Some(name), Some(password)) => (name, password),
        (None, Some(_)) => return Err(absent(name_key, "a name and its password go together")),
        (Some(_), None) => return Err(absent(password_key, "a name and its password go together")),
    };
    check(name_key, name, &NAME_LENGTH)?;
    check(password_key, password, &PASSWORD_LENGTH)?;
    Ok(Some(Account {
        user: name.clone(),
        password: SecretString::from(password.as_str()),
    }))
}

/// Accepts only what an open-iscsi node record can hold on one line. That DSM takes all of these characters is ASSUMED.
fn check(key: &str, value: &str, length: &std::ops::RangeInclusive<usize>) -> Result<(), Error> {
    if !length.contains(&value.chars().count()) {
        return Err(bad(
            key,
            &format!(
                "it must have {} to {} characters",
                length.start(),
                length.end()
            ),
        ));
    }
    if value.bytes().all(|b| b.is_ascii_graphic()) {
        return Ok(());
    }
    Err(bad(
        key,
        "it must consist of ASCII letters, digits and punctuation, without blanks or line ends (does the Secret hold a trailing line end?)",
    ))
}

fn bad(key: &str, remedy: &str) -> Error {
    Error::BadSecret {
        field: field(key),
        remedy: remedy.to_owned(),
    }
}

fn absent(key: &str, why: &str) -> Error {
    bad(key, &format!("it is missing, and {why}"))
}

/// The field name for error messages: `secrets[key]`.
pub fn field(key: &str) -> String {
    format!("secrets[{key}]")
}

#[cfg(test)]
mod tests;
