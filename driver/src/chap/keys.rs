//! The proofs of each publication, derived from a key that only controllers have (design.md, "CHAP for each publication"). Pure.
//!
//! DSM never tells a password and the driver keeps no state, so a password is computed from the target's IQN, which is never
//! made twice. The names are computed too: by the name that DSM tells of a target one sees which key it was made with.

use hmac::{Hmac, KeyInit as _, Mac as _};
use secrecy::{ExposeSecret as _, SecretSlice};
use sha2::Sha256;

use super::{Account, Chap, Method};
use crate::publication::{Iqn, in_base};

/// The fewest bytes that a key has.
pub const LEAST: usize = 32;

/// Who proves itself to whom, and by which keys.
#[derive(Clone, Debug)]
pub struct Keys {
    method: Method,
    current: Option<Key>,
    former: Vec<Key>,
}

/// A secret of at least [`LEAST`] bytes.
#[derive(Clone, Debug)]
pub struct Key(SecretSlice<u8>);

impl Key {
    /// `None` when it is too short.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        (bytes.len() >= LEAST).then(|| Self(bytes.to_vec().into()))
    }

    fn proofs(&self, method: Method, iqn: &Iqn) -> Option<Chap> {
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

    /// So many digits of this base. 128 bits of the HMAC make them: what the remainder favours is beyond counting.
    fn text(&self, base: u128, digits: usize, words: &[&str]) -> String {
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(self.0.expose_secret()) else {
            // HMAC takes keys of any length.
            return String::new();
        };
        // No word holds a blank, so no two lists of words are the same text.
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
    /// Targets are made that ask nobody for a proof.
    pub fn off(former: Vec<Key>) -> Self {
        Self {
            method: Method::None,
            current: None,
            former,
        }
    }

    /// Targets are made with the proofs of `current`; those made with one of `former` are known too.
    pub fn new(method: Method, current: Key, former: Vec<Key>) -> Self {
        Self {
            method,
            current: Some(current),
            former,
        }
    }

    /// The proofs for a target that is to be made or set.
    pub fn proofs(&self, iqn: &Iqn) -> Option<Chap> {
        self.current.as_ref()?.proofs(self.method, iqn)
    }

    /// The proofs of a target that there is, by what DSM tells of it. `None`: made with none of these keys.
    pub fn known(&self, iqn: &Iqn, auth_type: u8, user: &str) -> Option<Chap> {
        let method = [Method::Chap, Method::Mutual]
            .into_iter()
            .find(|method| method.auth_type() == auth_type)?;
        self.current
            .iter()
            .chain(&self.former)
            .filter_map(|key| key.proofs(method, iqn))
            .find(|chap| chap.initiator.user == user)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn key(letter: u8) -> Key {
        Key::read(&[letter; LEAST]).unwrap()
    }

    fn iqn(node: &str) -> Iqn {
        format!("iqn.2000-01.com.synology:x.{node}")
            .parse()
            .unwrap()
    }

    #[test]
    fn each_publication_and_each_side_has_proofs_of_its_own() {
        let keys = Keys::new(Method::Mutual, key(b'a'), vec![]);
        let mut seen = BTreeSet::new();
        for node in 0..100 {
            let chap = keys.proofs(&iqn(&node.to_string())).unwrap();
            assert_eq!(keys.proofs(&iqn(&node.to_string())), Some(chap.clone()));
            for account in [Some(chap.initiator), chap.target].into_iter().flatten() {
                let password = account.password.expose_secret();
                assert!(Account::read(&account.user, password).is_some());
                assert_eq!((account.user.len(), password.len()), (12, 16));
                seen.insert(account.user);
                seen.insert(password.to_owned());
            }
        }
        assert_eq!(seen.len(), 400, "no two are the same");
        assert_eq!(Keys::off(vec![]).proofs(&iqn("a")), None);
        let one_way = Keys::new(Method::Chap, key(b'a'), vec![]);
        assert_eq!(one_way.proofs(&iqn("a")).unwrap().target, None);
    }

    #[test]
    fn a_target_tells_the_key_that_it_was_made_with() {
        let old = Keys::new(Method::Mutual, key(b'a'), vec![]);
        let made = old.proofs(&iqn("a")).unwrap();
        let user = made.initiator.user.clone();
        let rotated = Keys::new(Method::Chap, key(b'b'), vec![key(b'a')]);
        assert_eq!(rotated.known(&iqn("a"), 2, &user), Some(made.clone()));
        assert_eq!(
            Keys::off(vec![key(b'a')]).known(&iqn("a"), 2, &user),
            Some(made)
        );
        let lost = Keys::new(Method::Mutual, key(b'b'), vec![]);
        assert_eq!(lost.known(&iqn("a"), 2, &user), None);
        assert_eq!(rotated.known(&iqn("b"), 2, &user), None, "another target");
        assert_eq!(rotated.known(&iqn("a"), 0, ""), None);
    }

    #[test]
    fn a_key_is_long_and_shown_nowhere() {
        assert!(Key::read(&[b'k'; LEAST - 1]).is_none());
        let key = Key::read(b"planted-planted-planted-planted-\n").unwrap();
        let keys = Keys::new(Method::Mutual, key, vec![]);
        let shown = format!("{keys:?} {:?}", keys.proofs(&iqn("a")));
        assert!(!shown.contains("planted"), "{shown}");
        let password = keys.proofs(&iqn("a")).unwrap().initiator.password;
        assert!(!shown.contains(password.expose_secret()));
    }
}
