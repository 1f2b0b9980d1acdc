//! Which names stand for secrets. Nobody knows all names of a NAS, so it goes by what a name is made of; a name too many that
//! is hidden harms nobody.

/// A name that holds one of these, however it is written.
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

/// A name that has one of these among its words.
const WORDS: [&str; 16] = [
    "auth", "cred", "creds", "did", "hash", "jwt", "key", "keys", "otp", "pass", "pin", "psk",
    "pwd", "salt", "sid", "totp",
];

/// What looks like one and is none: switches, and words that DSM tells everybody.
const INNOCENT: [&str; 5] = [
    "cipherkey",
    "ciphertoken",
    "enable_device_token",
    "enable_syno_token",
    "locked_app_keys",
];

/// Whether what stands under this name is nobody's business.
pub(crate) fn is_secret(name: &str) -> bool {
    if INNOCENT.contains(&name) {
        return false;
    }
    let words = words(name);
    let whole = words.concat();
    PARTS.iter().any(|part| whole.contains(part))
        || words.iter().any(|word| {
            // How a target authenticates is no secret.
            WORDS.contains(&word.as_str()) && name != "auth_type"
        })
}

/// `chap_password`, `chapPassword` and `CHAP-Password` are of the same words.
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

    /// Names under which a NAS keeps secrets, as they are written here and there.
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
    fn secrets_are_known_by_the_parts_of_their_names() {
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
