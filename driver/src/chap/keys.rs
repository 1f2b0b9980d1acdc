//! The CHAP credentials of each publication, derived from a key that only controllers have (design.md, "CHAP for each
//! publication"). Pure.
//!
//! DSM never returns a password and the driver keeps no state, so a password is computed from the target's IQN, which is never
//! reused. The names are computed too: the name that DSM reports for a target shows which key it was created with.

use hmac::{Hmac, KeyInit as _, Mac as _};
use secrecy::{ExposeSecret as _, SecretSlice};
use sha2::Sha256;

use super::{Account, Chap, Method};
use crate::publication::{Iqn, in_base};

/// The minimum length of a key, in bytes.
pub const MIN_LEN: usize = 32;

/// The CHAP method for new targets, and the keys.
#[derive(Clone, Debug)]
pub struct Keys {
    method: Method,
    current: Option<Key>,
    former: Vec<Key>,
}

/// A secret of at least [`MIN_LEN`] bytes.
#[derive(Clone, Debug)]
pub struct Key(SecretSlice<u8>);

impl Key {
    /// `None` if it is shorter than [`MIN_LEN`].
    pub fn read(bytes: &[u8]) -> Option<Self> {
        (bytes.len() >= MIN_LEN).then(|| Self(bytes.to_vec().into()))
    }

    fn credentials(&self, method: Method, iqn: &Iqn) -> Option<Chap> {
        let account = |role: &str| Account {
            user: format!("{role}{}", self.text(36, 9, &["name", role, iqn.as_str()])),
            password: self.text(62, 16, &["password", role, iqn.as_str()]).into(),
        };
        match method {
            Method::None => None,
            Method::Chap => Some(Chap {
                initiator: account("csi"),
                target: None,
            }),
            Method::Mutual => Some(Chap {
                initiator: account("csi"),
                target: Some(account("nas")),
            }),
        }
    }

    /// A text of `digits` digits in `base`, from 128 bits of the HMAC of `words`: the modulo bias is negligible.
    fn text(&self, base: u128, digits: usize, words: &[&str]) -> String {
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(self.0.expose_secret()) else {
            // HMAC takes keys of any length.
            return String::new();
        };
        // No word contains a blank, so different lists of words give different texts.
        mac.update(words.join(" ").as_bytes());
        let number = mac.finalize().into_bytes();
        let number = number
            .iter()
            .take(16)
            .fold(0_u128, |number, byte| number << 8 | u128::from(*byte));
        in_base(base, number, digits)
            .into_iter()
            .map(char::from)
            .collect()
    }
}

impl Keys {
    /// New targets are created without CHAP.
    pub fn off(former: Vec<Key>) -> Self {
        Self {
            method: Method::None,
            current: None,
            former,
        }
    }

    /// New targets get credentials from `current`; targets created with one of `former` are recognized.
    pub fn new(method: Method, current: Key, former: Vec<Key>) -> Self {
        Self {
            method,
            current: Some(current),
            former,
        }
    }

    /// The credentials for a target that is to be created or updated; `None`: no CHAP.
    pub fn credentials(&self, iqn: &Iqn) -> Option<Chap> {
        self.current.as_ref()?.credentials(self.method, iqn)
    }

    /// The credentials of an existing target, by the `auth_type` and user name that DSM reports. `None`: created with none of
    /// these keys.
    pub fn find(&self, iqn: &Iqn, auth_type: u8, user: &str) -> Option<Chap> {
        let method = [Method::Chap, Method::Mutual]
            .into_iter()
            .find(|method| method.auth_type() == auth_type)?;
        self.current
            .iter()
            .chain(&self.former)
            .filter_map(|key| key.credentials(method, iqn))
            .find(|chap| chap.initiator.user == user)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn key(letter: u8) -> Key {
        Key::read(&[letter; MIN_LEN]).unwrap()
    }

    fn iqn(node: &str) -> Iqn {
        format!("iqn.2000-01.com.synology:x.{node}")
            .parse()
            .unwrap()
    }

    #[test]
    fn each_publication_and_each_side_has_its_own_credentials() {
        let keys = Keys::new(Method::Mutual, key(b'a'), vec![]);
        let mut seen = BTreeSet::new();
        for node in 0..100 {
            let chap = keys.credentials(&iqn(&node.to_string())).unwrap();
            assert_eq!(
                keys.credentials(&iqn(&node.to_string())),
                Some(chap.clone())
            );
            for account in [Some(chap.initiator), chap.target].into_iter().flatten() {
                let password = account.password.expose_secret();
                assert!(Account::read(&account.user, password).is_some());
                assert_eq!((account.user.len(), password.len()), (12, 16));
                seen.insert(account.user);
                seen.insert(password.to_owned());
            }
        }
        assert_eq!(seen.len(), 400, "no two are the same");
        assert_eq!(Keys::off(vec![]).credentials(&iqn("a")), None);
        let one_way = Keys::new(Method::Chap, key(b'a'), vec![]);
        assert_eq!(one_way.credentials(&iqn("a")).unwrap().target, None);
    }

    #[test]
    fn the_user_name_shows_the_key_that_a_target_was_created_with() {
        let old = Keys::new(Method::Mutual, key(b'a'), vec![]);
        let original = old.credentials(&iqn("a")).unwrap();
        let user = original.initiator.user.clone();
        let rotated = Keys::new(Method::Chap, key(b'b'), vec![key(b'a')]);
        assert_eq!(rotated.find(&iqn("a"), 2, &user), Some(original.clone()));
        assert_eq!(
            Keys::off(vec![key(b'a')]).find(&iqn("a"), 2, &user),
            Some(original)
        );
        let lost = Keys::new(Method::Mutual, key(b'b'), vec![]);
        assert_eq!(lost.find(&iqn("a"), 2, &user), None);
        assert_eq!(rotated.find(&iqn("b"), 2, &user), None, "another target");
        assert_eq!(rotated.find(&iqn("a"), 0, ""), None);
    }

    #[test]
    fn a_key_is_long_and_never_printed() {
        assert!(Key::read(&[b'k'; MIN_LEN - 1]).is_none());
        let key = Key::read(b"planted-planted-planted-planted-\n").unwrap();
        let keys = Keys::new(Method::Mutual, key, vec![]);
        let shown = format!("{keys:?} {:?}", keys.credentials(&iqn("a")));
        assert!(!shown.contains("planted"), "{shown}");
        let password = keys.credentials(&iqn("a")).unwrap().initiator.password;
        assert!(!shown.contains(password.expose_secret()));
    }
}
