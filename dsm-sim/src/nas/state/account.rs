//! Accounts, second factors and device tokens: who may log in, and how. Source: dsm-web-api.md 3.1 and 10.2.

use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use totp_rs::{Builder, Secret, Totp};

use crate::nas::call::Call;
use crate::nas::clock::Millis;
use crate::nas::code::{Code, Refusal};
use crate::nas::state::table::{IndexKey, Row, Table};
use crate::nas::token::random_text;

/// A user account of the NAS.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// Login name.
    pub name: String,
    /// Password, in plain text.
    pub password: String,
    /// Whether it is an administrator; SAN Manager requires one.
    #[serde(default = "yes")]
    pub administrator: bool,
    /// The base32 secret of its second factor (RFC 6238, 6 digits, 30 s), if it has one.
    #[serde(default)]
    pub otp_secret: Option<String>,
    /// The code that refuses its logins, even with the right password: 401 disabled, 408 to 410 expired, 411 locked, …
    #[serde(default)]
    pub refuse: Option<u32>,
}

fn yes() -> bool {
    true
}

impl Account {
    /// An administrator without a second factor.
    pub fn new(name: impl Into<String>, password: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            password: password.into(),
            administrator: true,
            otp_secret: None,
            refuse: None,
        }
    }

    /// Validates [`Account::otp_secret`].
    ///
    /// # Errors
    /// The secret is not base32, or shorter than 128 bits.
    pub fn check(&self) -> Result<(), String> {
        self.totp().map(|_| ())
    }

    fn totp(&self) -> Result<Option<Totp>, String> {
        let Some(secret) = &self.otp_secret else {
            return Ok(None);
        };
        let wrong = |what: String| format!("otp_secret of {}: {what}", self.name);
        let secret = Secret::try_from_base32(secret).map_err(|error| wrong(error.to_string()))?;
        let totp = Builder::new().with_secret(secret).build();
        totp.map(Some).map_err(|error| wrong(error.to_string()))
    }

    /// Whether a second-factor code is valid at this time; the clocks may differ by 30 s.
    fn accepts(&self, otp: &str, now: Millis) -> bool {
        let totp = self.totp().ok().flatten();
        totp.is_some_and(|totp| totp.check(otp, now / 1_000).is_some())
    }
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Account({})", self.name)
    }
}

/// A trusted device: a client whose token replaces the second factor. It survives a restart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Device {
    token: String,
    account: String,
}

impl Row for Device {
    type Key = String;

    fn key(&self) -> String {
        self.token.clone()
    }

    fn index_keys(&self) -> Vec<IndexKey> {
        Vec::new()
    }

    fn number(&self) -> Option<u32> {
        None
    }
}

/// Checks a login whose password is right: the state of the account, its rights, its second factor.
// ASSUMED: a device token is valid for its account from any address and never expires; `device_name` is not compared. An account
// without administrator rights may use the session names of the applications that it may open; it is known only that `Core` is
// refused and `FileStation` is not (N4S4 #168).
pub(crate) fn check_login(
    account: &Account,
    call: &Call,
    now: Millis,
    devices: &Table<Device>,
) -> Result<(), Refusal> {
    if let Some(code) = account.refuse {
        return Err(Refusal {
            code,
            why: format!("{} is set to be refused", account.name),
            errors: None,
        });
    }
    let session = call.params.raw("session").unwrap_or_default();
    if !account.administrator && matches!(session, "Core" | "dsm") {
        return Err(Code::NotAllowed.because(format!("{} is no administrator", account.name)));
    }
    if account.otp_secret.is_none() || has_device_token(account, call, devices) {
        return Ok(());
    }
    match call.params.raw("otp_code").filter(|otp| !otp.is_empty()) {
        None => Err(Code::OtpRequired.because("otp_code is missing")),
        Some(otp) if account.accepts(otp, now) => Ok(()),
        Some(_) => Err(Code::OtpWrong.because("otp_code is wrong")),
    }
}

fn has_device_token(account: &Account, call: &Call, devices: &Table<Device>) -> bool {
    let token = ["device_id", "did"]
        .into_iter()
        .find_map(|name| call.params.raw(name));
    token
        .and_then(|token| devices.get(&token.to_owned()))
        .is_some_and(|device| device.account == account.name)
}

/// Issues a device token. It is stored only if the client sends `enable_device_token=yes`.
pub(crate) fn issue_device_token(
    account: &Account,
    call: &Call,
    devices: &mut Table<Device>,
    rng: &mut StdRng,
) -> String {
    let token = random_text(rng, 86);
    if call.params.raw("enable_device_token") == Some("yes") {
        devices.put(Device {
            token: token.clone(),
            account: account.name.clone(),
        });
    }
    token
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nas::api::auth::tests::{AuthFixture, CLIENT, OTHER_CLIENT};
    use crate::nas::model::Generation;

    /// 160 bits, as authenticator apps use.
    const SECRET: &str = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP";
    const PLAIN: [(&str, &str); 2] = [("account", "anna"), ("passwd", "x")];

    fn fixture_with(account: Account) -> AuthFixture {
        let mut fixture = AuthFixture::new();
        fixture.auth.put_account(account);
        fixture
    }

    fn account_with_otp() -> Account {
        Account {
            otp_secret: Some(SECRET.to_owned()),
            ..Account::new("anna", "x")
        }
    }

    fn otp_at(now: Millis) -> String {
        let totp = account_with_otp().totp().unwrap().unwrap();
        totp.generate(now / 1_000).to_string()
    }

    #[test]
    fn the_second_factor_is_asked_for() {
        let mut fixture = fixture_with(account_with_otp());
        let now = 1_700_000_000_000;
        let mut login = |otp: &str, at| {
            let params = [PLAIN[0], PLAIN[1], ("otp_code", otp)];
            fixture
                .login(at, CLIENT, 6, &params)
                .map_or_else(|code| code, |_| 0)
        };
        assert_eq!(login("", now), 403);
        assert_eq!(login(&otp_at(now), now + 30_000), 0, "clocks differ");
        let later = now + 300_000;
        assert_eq!(login(&otp_at(now), later), 404, "too old");
        assert_eq!(login("000000", later), 404);
        assert_eq!(login("", later), 403, "not counted as a failure");
        assert_eq!(login("000000", later), 404);
        assert_eq!(login(&otp_at(later), later), 407, "three wrong codes");
    }

    #[test]
    fn a_code_of_the_second_factor_is_good_for_one_login() {
        let now = 1_700_000_000_000;
        let again = |fixture: &mut AuthFixture, at| {
            let otp = otp_at(now);
            let params = [PLAIN[0], PLAIN[1], ("otp_code", &*otp)];
            fixture
                .login(at, CLIENT, 6, &params)
                .map_or_else(|code| code, |_| 0)
        };
        let mut fixture = fixture_with(account_with_otp());
        assert_eq!(again(&mut fixture, now), 0);
        assert_eq!(again(&mut fixture, now + 20_000), 404);
        fixture.settings.otp_codes_once = false;
        assert_eq!(again(&mut fixture, now + 20_000), 0);
        // An account without a second factor ignores the code.
        let mut fixture = self::fixture_with(Account::new("anna", "x"));
        assert_eq!([0, 0], [again(&mut fixture, now), again(&mut fixture, now)]);
    }

    #[test]
    fn dsm_7_lists_the_second_factors() {
        for (dsm, lists) in [(Generation::Seven, true), (Generation::Six, false)] {
            let mut fixture = fixture_with(account_with_otp());
            fixture.dsm = dsm;
            let refusal = fixture.refusal(0, CLIENT, 6, &PLAIN).unwrap();
            assert_eq!(refusal.code, 403);
            assert_eq!(refusal.errors.is_some(), lists, "{dsm:?}");
            if let Some(errors) = refusal.errors {
                assert!(errors["token"].as_str().unwrap().len() > 20);
                let types = serde_json::json!([{"type": "authenticator"}, {"type": "fido"}, {"type": "otp"}]);
                assert_eq!(errors["types"], types);
            }
        }
    }

    #[test]
    fn a_device_token_replaces_the_second_factor() {
        let mut fixture = fixture_with(account_with_otp());
        let now = 1_700_000_000_000;
        let (otp, next) = (otp_at(now), otp_at(now + 30_000));
        let first = [PLAIN[0], PLAIN[1], ("otp_code", &otp)];
        let forgotten = fixture.login(now, CLIENT, 7, &first).unwrap().data;
        let asked = [
            PLAIN[0],
            PLAIN[1],
            ("otp_code", &next),
            ("enable_device_token", "yes"),
        ];
        let known = fixture.login(now, CLIENT, 6, &asked).unwrap().data;
        let mut again = |account: [(&str, &str); 2], token: &str| {
            let params = [account[0], account[1], ("device_id", token)];
            fixture
                .login(now, OTHER_CLIENT, 6, &params)
                .map_or_else(|code| code, |_| 0)
        };
        let token = known["did"].as_str().unwrap();
        assert_eq!(again(PLAIN, token), 0);
        assert_eq!(again(PLAIN, forgotten["device_id"].as_str().unwrap()), 403);
        assert_eq!(
            again([PLAIN[0], ("passwd", "y")], token),
            400,
            "only the code"
        );
        fixture.auth.put_account(Account {
            name: "otto".to_owned(),
            ..account_with_otp()
        });
        let other = [("account", "otto"), PLAIN[1], ("device_id", token)];
        assert_eq!(fixture.login(now, CLIENT, 6, &other).unwrap_err(), 403);
    }

    #[test]
    fn an_account_without_administrator_rights_cannot_call() {
        // Code 402 and 105 of dsm-web-api.md 10; 3.1.
        let mut fixture = fixture_with(Account {
            administrator: false,
            ..Account::new("anna", "x")
        });
        for session in ["Core", "dsm"] {
            let params = [PLAIN[0], PLAIN[1], ("session", session)];
            assert_eq!(
                fixture.login(0, CLIENT, 6, &params).unwrap_err(),
                402,
                "{session}"
            );
        }
        let params = [PLAIN[0], PLAIN[1], ("session", "FileStation")];
        let data = fixture.login(0, CLIENT, 6, &params).unwrap().data;
        assert_eq!(
            fixture.check(0, CLIENT, data["sid"].as_str().unwrap(), None),
            105
        );
    }

    #[test]
    fn an_account_can_be_set_to_be_refused() {
        // Codes 401 and 408 to 411 of dsm-web-api.md 10.2, which require the right password.
        for code in [401, 408, 409, 410, 411] {
            let mut fixture = fixture_with(Account {
                refuse: Some(code),
                ..Account::new("anna", "x")
            });
            assert_eq!(fixture.login(0, CLIENT, 6, &PLAIN).unwrap_err(), code);
            let wrong = [PLAIN[0], ("passwd", "y")];
            assert_eq!(fixture.login(0, CLIENT, 6, &wrong).unwrap_err(), 400);
        }
    }

    #[test]
    fn an_invalid_otp_secret_is_refused() {
        for (secret, why) in [("not base32!", "base32"), ("AAAA", "128")] {
            let account = Account {
                otp_secret: Some(secret.to_owned()),
                ..Account::new("anna", "x")
            };
            let message = account.check().unwrap_err();
            assert!(message.contains("otp_secret of anna"), "{message}");
            assert!(message.contains(why), "{message}");
        }
    }
}
