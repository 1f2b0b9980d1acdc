//! Who may log in, and with what besides a password. Source: dsm-web-api.md 3.1 and 10.2.

use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use totp_rs::{Builder, Secret, Totp};

use crate::nas::call::Call;
use crate::nas::clock::Millis;
use crate::nas::code::{Code, Refusal};
use crate::nas::state::table::{IndexKey, Row, Table};
use crate::nas::token::random_text;

/// An account.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// Its name.
    pub name: String,
    /// Its password.
    pub password: String,
    /// Whether it may do everything; SAN Manager wants that.
    #[serde(default = "yes")]
    pub administrator: bool,
    /// The base32 secret of its second factor (RFC 6238, 6 digits, 30 s), if it has one.
    #[serde(default)]
    pub otp_secret: Option<String>,
    /// What a login with the right password is refused with: 401 disabled, 408 to 410 expired, 411 locked, …
    #[serde(default)]
    pub refuse: Option<u32>,
}

fn yes() -> bool {
    true
}

impl Account {
    /// An administrator with just a password.
    pub fn new(name: impl Into<String>, password: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            password: password.into(),
            administrator: true,
            otp_secret: None,
            refuse: None,
        }
    }

    /// The second factor that [`Account::otp_secret`] stands for.
    ///
    /// # Errors
    /// It is no base32, or shorter than 128 bits.
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

    /// Whether a code of the second factor is right at this moment; 30 s of difference between the clocks are allowed.
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

/// A client that need not show the second factor any more. It survives a restart.
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

    fn terms(&self) -> Vec<IndexKey> {
        Vec::new()
    }

    fn number(&self) -> Option<u32> {
        None
    }
}

/// Judges a login with the right password: the state of the account, its rights, its second factor.
// ASSUMED: a device token counts for its account from anywhere, until the end of time; `device_name` is not compared.
// The session names that a plain account may use are those of the applications that it may open; known is only that
// `Core` is refused and `FileStation` is not (N4S4 #168).
pub(crate) fn judge(
    account: &Account,
    call: &Call,
    now: Millis,
    devices: &Table<Device>,
) -> Result<(), Refusal> {
    if let Some(code) = account.refuse {
        return Err(Refusal {
            code,
            why: format!("{} was told to be refused", account.name),
            errors: None,
        });
    }
    let session = call.params.raw("session").unwrap_or_default();
    if !account.administrator && matches!(session, "Core" | "dsm") {
        return Err(Code::NotAllowed.because(format!("{} is no administrator", account.name)));
    }
    if account.otp_secret.is_none() || knows(account, call, devices) {
        return Ok(());
    }
    match call.params.raw("otp_code").filter(|otp| !otp.is_empty()) {
        None => Err(Code::OtpRequired.because("otp_code is missing")),
        Some(otp) if account.accepts(otp, now) => Ok(()),
        Some(_) => Err(Code::OtpWrong.because("otp_code is wrong")),
    }
}

fn knows(account: &Account, call: &Call, devices: &Table<Device>) -> bool {
    let shown = ["device_id", "did"]
        .into_iter()
        .find_map(|name| call.params.raw(name));
    shown
        .and_then(|token| devices.get(&token.to_owned()))
        .is_some_and(|device| device.account == account.name)
}

/// A token for the client, which is remembered when it asks for that.
pub(crate) fn device(
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
    use crate::nas::api::auth::tests::{AWAY, AuthFixture, HOME};
    use crate::nas::model::Generation;

    /// 160 bits, as authenticators have them.
    const SECRET: &str = "JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP";
    const PLAIN: [(&str, &str); 2] = [("account", "anna"), ("passwd", "x")];

    fn door(account: Account) -> AuthFixture {
        let mut door = AuthFixture::new();
        door.auth.put_account(account);
        door
    }

    fn guarded() -> Account {
        Account {
            otp_secret: Some(SECRET.to_owned()),
            ..Account::new("anna", "x")
        }
    }

    fn code_at(now: Millis) -> String {
        let totp = guarded().totp().unwrap().unwrap();
        totp.generate(now / 1_000).to_string()
    }

    #[test]
    fn the_second_factor_is_asked_for() {
        let mut door = door(guarded());
        let now = 1_700_000_000_000;
        let mut login = |otp: &str, at| {
            let params = [PLAIN[0], PLAIN[1], ("otp_code", otp)];
            door.login(at, HOME, 6, &params)
                .map_or_else(|code| code, |_| 0)
        };
        assert_eq!(login("", now), 403);
        assert_eq!(login(&code_at(now), now + 30_000), 0, "clocks differ");
        let later = now + 300_000;
        assert_eq!(login(&code_at(now), later), 404, "too old");
        assert_eq!(login("000000", later), 404);
        assert_eq!(login("", later), 403, "which is no failure");
        assert_eq!(login("000000", later), 404);
        assert_eq!(login(&code_at(later), later), 407, "three wrong codes");
    }

    #[test]
    fn a_code_of_the_second_factor_is_good_for_one_login() {
        let now = 1_700_000_000_000;
        let again = |door: &mut AuthFixture, at| {
            let otp = code_at(now);
            let params = [PLAIN[0], PLAIN[1], ("otp_code", &*otp)];
            door.login(at, HOME, 6, &params)
                .map_or_else(|code| code, |_| 0)
        };
        let mut door = door(guarded());
        assert_eq!(again(&mut door, now), 0);
        assert_eq!(again(&mut door, now + 20_000), 404);
        door.settings.otp_codes_once = false;
        assert_eq!(again(&mut door, now + 20_000), 0);
        // Who needs no code may send one.
        let mut door = self::door(Account::new("anna", "x"));
        assert_eq!([0, 0], [again(&mut door, now), again(&mut door, now)]);
    }

    #[test]
    fn dsm_7_says_which_second_factors_there_are() {
        for (dsm, tells) in [(Generation::Seven, true), (Generation::Six, false)] {
            let mut door = door(guarded());
            door.dsm = dsm;
            let refusal = door.refusal(0, HOME, 6, &PLAIN).unwrap();
            assert_eq!(refusal.code, 403);
            assert_eq!(refusal.errors.is_some(), tells, "{dsm:?}");
            if let Some(errors) = refusal.errors {
                assert!(errors["token"].as_str().unwrap().len() > 20);
                let types = serde_json::json!([{"type": "authenticator"}, {"type": "fido"}, {"type": "otp"}]);
                assert_eq!(errors["types"], types);
            }
        }
    }

    #[test]
    fn a_device_token_replaces_the_second_factor() {
        let mut door = door(guarded());
        let now = 1_700_000_000_000;
        let (otp, next) = (code_at(now), code_at(now + 30_000));
        let first = [PLAIN[0], PLAIN[1], ("otp_code", &otp)];
        let forgotten = door.login(now, HOME, 7, &first).unwrap().data;
        let asked = [
            PLAIN[0],
            PLAIN[1],
            ("otp_code", &next),
            ("enable_device_token", "yes"),
        ];
        let known = door.login(now, HOME, 6, &asked).unwrap().data;
        let mut again = |account: [(&str, &str); 2], token: &str| {
            let params = [account[0], account[1], ("device_id", token)];
            door.login(now, AWAY, 6, &params)
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
        door.auth.put_account(Account {
            name: "otto".to_owned(),
            ..guarded()
        });
        let other = [("account", "otto"), PLAIN[1], ("device_id", token)];
        assert_eq!(door.login(now, HOME, 6, &other).unwrap_err(), 403);
    }

    #[test]
    fn a_plain_account_gets_no_further_than_the_door() {
        // Code 402 and 105 of dsm-web-api.md 10; 3.1.
        let mut door = door(Account {
            administrator: false,
            ..Account::new("anna", "x")
        });
        for session in ["Core", "dsm"] {
            let params = [PLAIN[0], PLAIN[1], ("session", session)];
            assert_eq!(
                door.login(0, HOME, 6, &params).unwrap_err(),
                402,
                "{session}"
            );
        }
        let params = [PLAIN[0], PLAIN[1], ("session", "FileStation")];
        let data = door.login(0, HOME, 6, &params).unwrap().data;
        assert_eq!(
            door.check(0, HOME, data["sid"].as_str().unwrap(), None),
            105
        );
    }

    #[test]
    fn an_account_can_be_told_to_be_refused() {
        // Codes 401 and 408 to 411 of dsm-web-api.md 10.2, which come after the password was right.
        for code in [401, 408, 409, 410, 411] {
            let mut door = door(Account {
                refuse: Some(code),
                ..Account::new("anna", "x")
            });
            assert_eq!(door.login(0, HOME, 6, &PLAIN).unwrap_err(), code);
            let wrong = [PLAIN[0], ("passwd", "y")];
            assert_eq!(door.login(0, HOME, 6, &wrong).unwrap_err(), 400);
        }
    }

    #[test]
    fn a_secret_that_is_none_is_refused() {
        for (secret, why) in [("not base32!", "base32"), ("AAAA", "128")] {
            let account = Account {
                otp_secret: Some(secret.to_owned()),
                ..Account::new("anna", "x")
            };
            let said = account.check().unwrap_err();
            assert!(said.contains("otp_secret of anna"), "{said}");
            assert!(said.contains(why), "{said}");
        }
    }
}
