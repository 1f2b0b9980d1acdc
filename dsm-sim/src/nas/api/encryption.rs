//! Encrypted login parameters over plain HTTP: `SYNO.API.Encryption getinfo`, and the parameter that holds the encrypted ones.
//! Source: dsm-web-api.md 3.2.

use aes::Aes256;
use aes::cipher::{BlockModeDecrypt, KeyIvInit, block_padding::Pkcs7};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest, Md5};
use rand::rngs::StdRng;
use rsa::PrivateKey;
use rsa::traits::PublicKeyParts;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::nas::clock::Millis;
use crate::nas::code::{Code, Refusal};
use crate::nas::params::Params;

/// The parameter that holds the encrypted ones, and the one among those that holds the server's time.
pub(crate) const CIPHER_KEY: &str = "__cIpHeRtExT";
const CIPHER_TOKEN: &str = "__cIpHeRtOkEn";
/// Key size. Clients encrypt a passphrase of 501 bytes, which does not fit a smaller modulus.
const BITS: usize = 4096;
/// What OpenSSL puts before the salt.
const SALTED: &[u8] = b"Salted__";

/// The key that clients encrypt logins with. Generated on the first `getinfo`, which takes a second.
#[derive(Debug, Default)]
pub(crate) struct Cipher(Option<PrivateKey>);

/// Encrypted parameters as a client sends them, both in base64.
#[derive(Deserialize)]
struct Sealed {
    /// A passphrase, encrypted for the public key.
    rsa: String,
    /// Parameters, encrypted with the passphrase in OpenSSL's format.
    aes: String,
}

impl Cipher {
    /// `getinfo`.
    pub(crate) fn info(&mut self, now: Millis, rng: &mut StdRng) -> Result<Value, Refusal> {
        let made = match self.0.take() {
            Some(key) => Ok(key),
            None => PrivateKey::new(rng, BITS),
        };
        let key = made.map_err(|error| Code::Busy.because(format!("no key: {error}")))?;
        let modulus = hex::encode(key.n_bytes());
        self.0 = Some(key);
        Ok(json!({
            "cipherkey": CIPHER_KEY,
            "ciphertoken": CIPHER_TOKEN,
            "public_key": modulus,
            "server_time": now / 1_000,
        }))
    }

    /// The parameters of a login, with the encrypted ones decrypted.
    // ASSUMED: 120 if it cannot be decrypted; the time inside is required, but may have any value.
    pub(crate) fn open(&self, params: &Params) -> Result<Params, Refusal> {
        let Some(sealed) = params.raw(CIPHER_KEY) else {
            return Ok(params.clone());
        };
        let text = self.decrypt(sealed).ok_or_else(|| {
            Code::BadParameter.because(format!("{CIPHER_KEY} is not for our key"))
        })?;
        let mut all = params.clone();
        for (name, value) in url::form_urlencoded::parse(&text) {
            all.put(&name, value);
        }
        match all.take(CIPHER_TOKEN) {
            Some(_) => Ok(all),
            None => Err(Code::BadParameter.because(format!("{CIPHER_TOKEN} is not in it"))),
        }
    }

    fn decrypt(&self, sealed: &str) -> Option<Vec<u8>> {
        let sealed: Sealed = serde_json::from_str(sealed).ok()?;
        let passphrase = STANDARD.decode(sealed.rsa).ok()?;
        let passphrase = self.0.as_ref()?.pkcs1v15_decrypt(&passphrase).ok()?;
        let salted = STANDARD.decode(sealed.aes).ok()?;
        let (salt, text) = salted.strip_prefix(SALTED)?.split_at_checked(8)?;
        let (key, iv) = derive_key(&passphrase, salt);
        cbc::Decryptor::<Aes256>::new_from_slices(&key, &iv)
            .ok()?
            .decrypt_padded_vec::<Pkcs7>(text)
            .ok()
    }
}

/// Key and IV, as `openssl enc -md md5` derives them: one round.
fn derive_key(passphrase: &[u8], salt: &[u8]) -> ([u8; 32], [u8; 16]) {
    let mut stream = Vec::new();
    let mut block = Vec::new();
    while stream.len() < 48 {
        block = Md5::new()
            .chain_update(&block)
            .chain_update(passphrase)
            .chain_update(salt)
            .finalize()
            .to_vec();
        stream.extend_from_slice(&block);
    }
    let (mut key, mut iv) = ([0; 32], [0; 16]);
    key.copy_from_slice(&stream[..32]);
    iv.copy_from_slice(&stream[32..48]);
    (key, iv)
}

#[cfg(test)]
pub(crate) mod tests {
    use aes::cipher::BlockModeEncrypt;
    use rand::SeedableRng;
    use rsa::{BoxedUint, PublicKey};

    use super::*;

    /// Encrypts like a client with the answer of `getinfo`, following dsm-web-api.md 3.2.
    pub(crate) fn seal(info: &Value, text: &str, rng: &mut StdRng) -> String {
        let modulus = hex::decode(info["public_key"].as_str().unwrap()).unwrap();
        let modulus = BoxedUint::from_be_slice_vartime(&modulus);
        let key = PublicKey::new(modulus, 65_537_u32.into()).unwrap();
        let passphrase = [b'p'; 501];
        let text = format!("{text}&{CIPHER_TOKEN}={}", info["server_time"]);
        let (derived_key, iv) = derive_key(&passphrase, b"saltsalt");
        let aes = cbc::Encryptor::<Aes256>::new_from_slices(&derived_key, &iv)
            .unwrap()
            .encrypt_padded_vec::<Pkcs7>(text.as_bytes());
        let aes = [SALTED, b"saltsalt", &aes].concat();
        json!({
            "rsa": STANDARD.encode(key.pkcs1v15_encrypt_with_rng(rng, &passphrase).unwrap()),
            "aes": STANDARD.encode(aes),
        })
        .to_string()
    }

    #[test]
    fn openssl_derives_the_same_key() {
        // printf 'hello' | openssl enc -aes-256-cbc -md md5 -S 0102030405060708 -k secret -P
        let (key, iv) = derive_key(b"secret", &[1, 2, 3, 4, 5, 6, 7, 8]);
        let want = "C9E5A1BD216DBE1317E230CEF48F38EE7F0E17AD64022144BCCEC4A1AA2879AB";
        assert_eq!(hex::encode_upper(key), want);
        assert_eq!(hex::encode_upper(iv), "E24B32BBBC4EF02ECBCB6576523AD893");
    }

    #[test]
    fn encrypted_parameters_are_read() {
        let mut cipher = Cipher::default();
        let mut rng = StdRng::seed_from_u64(1);
        let sealed = |text: &str| Params::from_iter([(CIPHER_KEY, text), ("version", "6")]);
        assert_eq!(cipher.open(&sealed("{}")).unwrap_err().code, 120);
        let info = cipher.info(5_000, &mut rng).unwrap();
        assert_eq!(info["server_time"], 5);
        assert_eq!(info, cipher.info(5_000, &mut rng).unwrap(), "the key stays");
        let text = seal(&info, "account=admin&passwd=a%26b%20c", &mut rng);
        let params = cipher.open(&sealed(&text)).unwrap();
        assert_eq!(params.raw("account"), Some("admin"));
        assert_eq!(params.raw("passwd"), Some("a&b c"));
        assert_eq!(params.raw("version"), Some("6"));
        for wrong in [
            "",
            "{}",
            r#"{"rsa":"AAAA","aes":"AAAA"}"#,
            &text.replace('A', "B"),
        ] {
            assert_eq!(
                cipher.open(&sealed(wrong)).unwrap_err().code,
                120,
                "{wrong}"
            );
        }
    }
}
