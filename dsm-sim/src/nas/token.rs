//! Random text for session ids and tokens.

use rand::RngExt as _;
use rand::rngs::StdRng;
pub(crate) fn random_text(rng: &mut StdRng, length: usize) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    (0..length)
        .map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]))
        .collect()
}
