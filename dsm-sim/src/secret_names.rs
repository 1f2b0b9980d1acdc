//! Tells by a field's or parameter's name whether its value is secret. The names of a NAS are not all known, so this looks at
//! the parts of a name. A false positive is harmless.

/// A name that contains one of these is secret, in any spelling.
const PARTS: [&str; 14] = [
    "passw",
    "passphrase",
    "passcode",
    "secret",
    "token",
    "credential",
    "private",
    "cipher",
    "cookie",
    "apikey",
    "deviceid",
    "recoverycode",
    "signature",
    "authorization",
];

/// A name that has one of these as a word is secret.
const WORDS: [&str; 16] = [
    "auth", "cred", "creds", "did", "hash", "jwt", "key", "keys", "otp", "pass", "pin", "psk",
    "pwd", "salt", "sid", "totp",
];

/// Exceptions: switches, and values that DSM gives to unauthenticated clients.
const NOT_SECRET: [&str; 5] = [
    "cipherkey",
    "ciphertoken",
    "enable_device_token",
    "enable_syno_token",
    "locked_app_keys",
];

/// Whether the value of a field or parameter with this name must not be shown.
pub(crate) fn is_secret(name: &str) -> bool {
    if NOT_SECRET.contains(&name) {
        return false;
    }
    let words = words(name);
    let whole = words.concat();
    PARTS.iter().any(|part| whole.contains(part))
        || words.iter().any(|word| {
            // How a target authenticates is not secret.
            WORDS.contains(&word.as_str()) && name != "auth_type"
        })
}

/// Splits a name into lower-case words: `chap_password`, `chapPassword` and `CHAP-Password` give the same words.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut before = ' ';
    for c in name.chars() {
        let begins = c.is_ascii_uppercase() && before.is_ascii_lowercase();
        if begins || !c.is_alphanumeric() {
            words.push(String::new());
        }
        if c.is_alphanumeric()
            && let Some(word) = words.last_mut()
        {
            word.push(c.to_ascii_lowercase());
        }
        before = c;
    }
    words
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Names of secret fields, in the spellings that occur.
    pub(crate) const NAMES: [&str; 30] = [
        "passwd",
        "password",
        "mutual_password",
        "enc_passwd",
        "chap_password",
        "passphrase",
        "access_token",
        "refreshToken",
        "private_key",
        "privateKey",
        "api_key",
        "apikey",
        "sid",
        "_sid",
        "SynoToken",
        "otp_code",
        "totp-seed",
        "did",
        "device_id",
        "device_token",
        "deviceId",
        "client_secret",
        "enc_key",
        "psk",
        "wifi_pwd",
        "pin",
        "recovery_code",
        "session_cookie",
        "smtp_auth",
        "__cIpHeRtExT",
    ];

    #[test]
    fn secrets_are_recognized_by_the_parts_of_their_names() {
        for name in NAMES {
            assert!(is_secret(name), "{name}");
        }
        for name in [
            "name",
            "description",
            "uuid",
            "enable_syno_token",
            "auth_type",
            "is_action_locked",
            "session",
            "location",
            "additional",
            "considered",
            "monkey",
            "mapping_index",
            "max_sessions",
        ] {
            assert!(!is_secret(name), "{name}");
        }
    }
}
