//! Logins and sessions: `SYNO.API.Auth`, Auto Block, CSRF tokens, address binding and expiry. Source: dsm-web-api.md 1.4 and 3.

use crate::nas::token::random_text;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use crate::nas::api::encryption::Cipher;
use crate::nas::call::{Call, Caller};
use crate::nas::clock::Millis;
use crate::nas::code::{Code, Refusal};
use crate::nas::model::Generation;
use crate::nas::settings::Settings;
use crate::nas::state::account::{self, Account, Device};
use crate::nas::state::table::Table;

const MINUTE: Millis = 60_000;
/// Measured (jt docs/TESTING.md): three failures in five minutes block an address for a day.
const MAX_FAILURES: usize = 3;
const FAILURE_WINDOW: Millis = 5 * MINUTE;
const BLOCK_DURATION: Millis = 24 * 60 * MINUTE;
const COOKIE_LIFETIME_SECONDS: u64 = 604_800;
/// A code is valid for 30 s, plus as long before and after because clocks differ.
const OTP_LIFETIME: Millis = 90_000;
/// An address that no client has: RFC 5737 reserves it for documentation.
const UNUSED_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 254));

#[derive(Debug)]
struct Session {
    client: IpAddr,
    token: Option<String>,
    last_used: Millis,
    administrator: bool,
}

/// Accounts, sessions and Auto Block. A restart of the NAS ends all sessions.
#[derive(Debug)]
pub(crate) struct Auth {
    accounts: Vec<Account>,
    cipher: Cipher,
    sessions: BTreeMap<String, Session>,
    failures: BTreeMap<IpAddr, Vec<Millis>>,
    blocked: BTreeMap<IpAddr, Millis>,
    /// Second-factor codes that were accepted, by account and code, and until when they are remembered.
    used_otps: BTreeMap<(String, String), Millis>,
}

/// The answer to a successful login.
#[derive(Debug)]
pub(crate) struct Login {
    pub(crate) data: Value,
    pub(crate) cookie: Option<String>,
}

impl Auth {
    pub(crate) fn new(accounts: Vec<Account>) -> Self {
        Self {
            accounts,
            cipher: Cipher::default(),
            sessions: BTreeMap::new(),
            failures: BTreeMap::new(),
            blocked: BTreeMap::new(),
            used_otps: BTreeMap::new(),
        }
    }

    /// Replaces all accounts.
    pub(crate) fn set_accounts(&mut self, accounts: Vec<Account>) {
        self.accounts = accounts;
    }

    /// Adds an account, or replaces the one with this name.
    pub(crate) fn put_account(&mut self, account: Account) {
        self.accounts.retain(|other| other.name != account.name);
        self.accounts.push(account);
    }

    /// `SYNO.API.Encryption getinfo`.
    pub(crate) fn encryption(&mut self, now: Millis, rng: &mut StdRng) -> Result<Value, Refusal> {
        self.cipher.info(now, rng)
    }

    /// The names of all accounts.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.accounts.iter().map(|account| account.name.as_str())
    }

    /// The number of sessions.
    pub(crate) fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Ends all sessions, as a restart of DSM does.
    pub(crate) fn forget_sessions(&mut self) {
        self.sessions.clear();
    }

    /// Acts as if every client had changed its address: sessions still exist, but belong to another address (150).
    pub(crate) fn move_clients(&mut self) {
        for session in self.sessions.values_mut() {
            session.client = UNUSED_ADDRESS;
        }
    }

    /// Lifts every Auto Block.
    pub(crate) fn clear_auto_block(&mut self) {
        self.failures.clear();
        self.blocked.clear();
        self.used_otps.clear();
    }

    pub(crate) fn login(
        &mut self,
        now: Millis,
        call: &Call,
        dsm: Generation,
        settings: &Settings,
        devices: &mut Table<Device>,
        rng: &mut StdRng,
    ) -> Result<Login, Refusal> {
        // Recorded for version 2 (N4S4 #74): DSM 7 answers "no such method" although Info says minVersion 1.
        // ASSUMED: version 1 likewise.
        if dsm == Generation::Seven && call.version < 3 {
            return Err(
                Code::NoSuchMethod.because("DSM 7 takes no login below version 3; use 6 or 7")
            );
        }
        let client = call.caller.client;
        if self.blocked.get(&client).is_some_and(|&until| now < until) {
            return Err(Code::Blocked.because(format!(
                "{client} is locked out after {MAX_FAILURES} failed logins"
            )));
        }
        let call = &Call {
            params: self.cipher.open(&call.params)?,
            ..call.clone()
        };
        // The login is the only API whose values are never JSON: a password may well look like a number.
        // ASSUMED: a missing name or password is a failed login like any other.
        let name = call.params.raw("account").unwrap_or_default();
        let password = call.params.raw("passwd").unwrap_or_default();
        let matches = |account: &&Account| account.name == name && account.password == password;
        let Some(account) = self.accounts.iter().find(matches).cloned() else {
            self.record_failure(now, client, settings);
            return Err(Code::BadCredentials.because("wrong account or password"));
        };
        // ASSUMED: a wrong second factor counts like a wrong password; other refusals do not.
        let checked = account::check_login(&account, call, now, devices)
            .and_then(|()| self.consume_otp(now, call, settings, &account));
        if let Err(mut refusal) = checked {
            if refusal.code == Code::OtpWrong as u32 {
                self.record_failure(now, client, settings);
            }
            // DSM 7 lists the second factors, and returns a token for those that are not a code.
            if refusal.code == Code::OtpRequired as u32 && dsm == Generation::Seven {
                let types = ["authenticator", "fido", "otp"].map(|kind| json!({"type": kind}));
                refusal.errors = Some(json!({"token": random_text(rng, 64), "types": types}));
            }
            return Err(refusal);
        }
        let requested = call.params.raw("enable_syno_token") == Some("yes");
        let give_token = requested || (settings.csrf_protection && settings.token_unasked);
        let token = (call.version >= 3 && give_token).then(|| random_text(rng, 13));
        let sid = random_text(rng, 64);
        let device = account::issue_device_token(&account, call, devices, rng);
        let data = login_data(call, name, &sid, token.as_deref(), &device);
        self.sessions.insert(
            sid.clone(),
            Session {
                client,
                token,
                last_used: now,
                administrator: account.administrator,
            },
        );
        let cookie = (call.params.raw("format") != Some("sid")).then(|| cookie(now, &sid));
        Ok(Login { data, cookie })
    }

    /// Marks a second-factor code as used.
    // ASSUMED: an accepted code is refused for as long as it would still be valid (pvulgaris measured 30 s); a code that was not
    // required does not count.
    fn consume_otp(
        &mut self,
        now: Millis,
        call: &Call,
        settings: &Settings,
        account: &Account,
    ) -> Result<(), Refusal> {
        self.used_otps.retain(|_, until| now < *until);
        let otp = call.params.raw("otp_code").filter(|otp| !otp.is_empty());
        let Some(otp) = otp.filter(|_| account.otp_secret.is_some()) else {
            return Ok(());
        };
        let used = self
            .used_otps
            .insert((account.name.clone(), otp.to_owned()), now + OTP_LIFETIME);
        if used.is_some() && settings.otp_codes_once {
            return Err(Code::OtpWrong.because("otp_code was used before"));
        }
        Ok(())
    }

    // ASSUMED: the third failure itself is still answered with 400, a successful login does not reset earlier failures, and open
    // sessions keep working from a blocked address.
    fn record_failure(&mut self, now: Millis, client: IpAddr, settings: &Settings) {
        if !settings.auto_block {
            return;
        }
        let failures = self.failures.entry(client).or_default();
        failures.retain(|&at| now < at + FAILURE_WINDOW);
        failures.push(now);
        if failures.len() >= MAX_FAILURES {
            failures.clear();
            self.blocked.insert(client, now + BLOCK_DURATION);
        }
    }

    // ASSUMED: a logout without a known session succeeds, too.
    pub(crate) fn logout(&mut self, caller: &Caller, settings: &Settings) {
        if let Some(sid) = caller.sid(settings.sid_in_form) {
            self.sessions.remove(sid);
        }
    }

    /// Checks the caller's session, and renews it.
    pub(crate) fn check(
        &mut self,
        now: Millis,
        caller: &Caller,
        dsm: Generation,
        settings: &Settings,
    ) -> Result<(), Refusal> {
        let sid = caller
            .sid(settings.sid_in_form)
            .ok_or_else(|| Code::NoSession.because("no session id in query, form or cookie"))?;
        let session = self
            .sessions
            .get_mut(sid)
            .ok_or_else(|| Code::NoSession.because("unknown session id"))?;
        if now > session.last_used + settings.timeout_minutes * MINUTE {
            self.sessions.remove(sid);
            // ASSUMED: DSM 6 answers 106 once and then 119; 106 is known only as "session timeout" on older DSM.
            return Err(match dsm {
                Generation::Six => Code::SessionTimeout,
                Generation::Seven => Code::NoSession,
            }
            .because("the session has expired"));
        }
        if session.client != caller.client && !settings.skip_ip_checking {
            return Err(
                Code::WrongAddress.because(format!("the login came from {}", session.client))
            );
        }
        if settings.csrf_protection && (session.token.is_none() || session.token != caller.token) {
            return Err(Code::NoPermission
                .because("CSRF protection is on and the SynoToken is missing or wrong"));
        }
        session.last_used = now;
        // Measured by jt: an account without administrator rights is refused per call. It can still end its session.
        if !session.administrator {
            return Err(Code::NoPermission.because("the account is no administrator"));
        }
        Ok(())
    }
}

// ASSUMED: version 7 always returns `device_id`, version 6 its `did` only if the client requests a device token; recordings of
// version 6 have it only then.
fn login_data(call: &Call, name: &str, sid: &str, token: Option<&str>, device: &str) -> Value {
    let mut data = json!({"sid": sid});
    if call.version >= 4 {
        data["is_portal_port"] = json!(false);
    }
    match call.version {
        6 if call.params.raw("enable_device_token") == Some("yes") => {
            data["did"] = json!(device);
        }
        7 => {
            data["account"] = json!(name);
            data["device_id"] = json!(device);
            // ASSUMED: no answer if the client has sent one: a browser's handshake (Noise IK) is not simulated, and N4S4 does
            // without. This is the recorded answer to a client that sends none.
            if call.params.raw("ik_message").is_none() {
                data["ik_message"] = json!("");
            }
        }
        _ => {}
    }
    if let Some(token) = token {
        data["synotoken"] = json!(token);
    }
    data
}

/// `SYNO.Core.Security.DSM get`.
pub(crate) fn security(settings: &Settings) -> Value {
    json!({
        "enable_csrf_protection": settings.csrf_protection,
        "skip_ip_checking": settings.skip_ip_checking,
        "timeout": settings.timeout_minutes,
    })
}

/// The cookie of DSM 7's login page: browsers take it for the NAS's public key (32 bytes in base64).
// ASSUMED: the private key does not exist and is not needed, see `ik_message`.
pub(crate) fn login_page_cookie(rng: &mut StdRng) -> String {
    let key: [u8; 32] = rng.random();
    format!("_SSID={};path=/;HttpOnly", URL_SAFE_NO_PAD.encode(key))
}

fn cookie(now: Millis, sid: &str) -> String {
    let life = std::time::Duration::from_secs(COOKIE_LIFETIME_SECONDS);
    let expires = httpdate::fmt_http_date(
        std::time::UNIX_EPOCH + std::time::Duration::from_millis(now) + life,
    );
    format!("id={sid};expires={expires};max-age={COOKIE_LIFETIME_SECONDS};path=/;HttpOnly")
}

#[cfg(test)]
pub(crate) mod tests;
