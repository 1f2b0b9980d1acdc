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
/// Measured (jt docs/TESTING.md): three failures in five minutes lock an address out for a day.
const FAILURES: usize = 3;
const WINDOW: Millis = 5 * MINUTE;
const BLOCKED_FOR: Millis = 24 * 60 * MINUTE;
const COOKIE_LIFE_SECONDS: u64 = 604_800;
/// A code is right for 30 s, and for as long before and after because clocks differ.
const CODE_LIFE: Millis = 90_000;
/// An address that no client has: RFC 5737 keeps it for documents.
const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 254));

#[derive(Debug)]
struct Session {
    client: IpAddr,
    token: Option<String>,
    used: Millis,
    administrator: bool,
}

/// Everything about who may call. It forgets all sessions when the NAS restarts.
#[derive(Debug)]
pub(crate) struct Auth {
    accounts: Vec<Account>,
    cipher: Cipher,
    sessions: BTreeMap<String, Session>,
    failures: BTreeMap<IpAddr, Vec<Millis>>,
    blocked: BTreeMap<IpAddr, Millis>,
    /// Codes of a second factor that were taken, by account, and how long they are remembered.
    used_codes: BTreeMap<(String, String), Millis>,
}

/// A login that went well.
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
            used_codes: BTreeMap::new(),
        }
    }

    /// From now on there are these accounts and no others.
    pub(crate) fn set_accounts(&mut self, accounts: Vec<Account>) {
        self.accounts = accounts;
    }

    /// Adds an account, or changes the one of this name.
    pub(crate) fn put_account(&mut self, account: Account) {
        self.accounts.retain(|other| other.name != account.name);
        self.accounts.push(account);
    }

    /// `SYNO.API.Encryption getinfo`.
    pub(crate) fn encryption(&mut self, now: Millis, rng: &mut StdRng) -> Result<Value, Refusal> {
        self.cipher.info(now, rng)
    }

    /// Who can log in.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.accounts.iter().map(|account| account.name.as_str())
    }

    /// How many sessions there are.
    pub(crate) fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Every session id is unknown from now on, as after a restart of DSM.
    pub(crate) fn forget_sessions(&mut self) {
        self.sessions.clear();
    }

    /// As if every client had another address from now on: the sessions are there, and are none of theirs (150).
    pub(crate) fn move_clients(&mut self) {
        for session in self.sessions.values_mut() {
            session.client = ELSEWHERE;
        }
    }

    /// Lifts every Auto Block.
    pub(crate) fn unblock(&mut self) {
        self.failures.clear();
        self.blocked.clear();
        self.used_codes.clear();
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
        // Recorded for version 2 (N4S4 #74): DSM 7 says "no such method" although Info says minVersion 1.
        // ASSUMED: version 1 likewise.
        if dsm == Generation::Seven && call.version < 3 {
            return Err(
                Code::NoSuchMethod.because("DSM 7 takes no login below version 3; use 6 or 7")
            );
        }
        let client = call.caller.client;
        if self.blocked.get(&client).is_some_and(|&until| now < until) {
            return Err(Code::Blocked.because(format!(
                "{client} is locked out after {FAILURES} failed logins"
            )));
        }
        let call = &Call {
            params: self.cipher.open(&call.params)?,
            ..call.clone()
        };
        // The login is the one API whose values are never JSON: a password may well look like a number.
        // ASSUMED: a missing name or password is a failed login like any other.
        let name = call.params.raw("account").unwrap_or_default();
        let password = call.params.raw("passwd").unwrap_or_default();
        let right = |account: &&Account| account.name == name && account.password == password;
        let Some(account) = self.accounts.iter().find(right).cloned() else {
            self.failed(now, client, settings);
            return Err(Code::BadCredentials.because("wrong account or password"));
        };
        // ASSUMED: a wrong second factor counts like a wrong password; other refusals do not.
        let judged = account::judge(&account, call, now, devices)
            .and_then(|()| self.use_code(now, call, settings, &account));
        if let Err(mut refusal) = judged {
            if refusal.code == Code::OtpWrong as u32 {
                self.failed(now, client, settings);
            }
            // DSM 7 says which second factors there are, and gives a token for the ways that are no code.
            if refusal.code == Code::OtpRequired as u32 && dsm == Generation::Seven {
                let types = ["authenticator", "fido", "otp"].map(|kind| json!({"type": kind}));
                refusal.errors = Some(json!({"token": random_text(rng, 64), "types": types}));
            }
            return Err(refusal);
        }
        let asked = call.params.raw("enable_syno_token") == Some("yes");
        let given = asked || (settings.csrf_protection && settings.token_unasked);
        let token = (call.version >= 3 && given).then(|| random_text(rng, 13));
        let sid = random_text(rng, 64);
        let device = account::device(&account, call, devices, rng);
        let data = login_data(call, name, &sid, token.as_deref(), &device);
        self.sessions.insert(
            sid.clone(),
            Session {
                client,
                token,
                used: now,
                administrator: account.administrator,
            },
        );
        let cookie = (call.params.raw("format") != Some("sid")).then(|| cookie(now, &sid));
        Ok(Login { data, cookie })
    }

    /// Uses a code of the second factor up.
    // ASSUMED: one that was taken is not taken again while it would still be right (pvulgaris measured 30 s); a code that was
    // not asked for is none.
    fn use_code(
        &mut self,
        now: Millis,
        call: &Call,
        settings: &Settings,
        account: &Account,
    ) -> Result<(), Refusal> {
        self.used_codes.retain(|_, until| now < *until);
        let otp = call.params.raw("otp_code").filter(|otp| !otp.is_empty());
        let Some(otp) = otp.filter(|_| account.otp_secret.is_some()) else {
            return Ok(());
        };
        let used = self
            .used_codes
            .insert((account.name.clone(), otp.to_owned()), now + CODE_LIFE);
        if used.is_some() && settings.otp_codes_once {
            return Err(Code::OtpWrong.because("otp_code was used before"));
        }
        Ok(())
    }

    // ASSUMED: the third failure itself still says 400, a good login does not wipe earlier failures out, and calls of a
    // session that is already open go on from a blocked address.
    fn failed(&mut self, now: Millis, client: IpAddr, settings: &Settings) {
        if !settings.auto_block {
            return;
        }
        let failures = self.failures.entry(client).or_default();
        failures.retain(|&at| now < at + WINDOW);
        failures.push(now);
        if failures.len() >= FAILURES {
            failures.clear();
            self.blocked.insert(client, now + BLOCKED_FOR);
        }
    }

    // ASSUMED: a logout without a known session is a success too.
    pub(crate) fn logout(&mut self, caller: &Caller, settings: &Settings) {
        if let Some(sid) = caller.sid(settings.sid_in_form) {
            self.sessions.remove(sid);
        }
    }

    /// Finds the caller's session and renews it.
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
        if now > session.used + settings.timeout_minutes * MINUTE {
            self.sessions.remove(sid);
            // ASSUMED: DSM 6 says 106 once and 119 from then on; 106 is only known to be "session timeout" on older DSM.
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
        session.used = now;
        // Measured by jt: a plain account is refused per call. It can still end its session.
        if !session.administrator {
            return Err(Code::NoPermission.because("the account is no administrator"));
        }
        Ok(())
    }
}

// ASSUMED: version 7 always answers `device_id`, version 6 its `did` only when a device token is asked for; recordings of
// version 6 have it only there.
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
            // ASSUMED: nothing, where a client has sent one: a browser's handshake (Noise IK) is not simulated, and N4S4
            // does without. The recorded answer to a client that sends none is this.
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

/// A cookie as the login page of DSM 7 sets it: what a browser takes for the NAS's public key (32 bytes in base64).
// ASSUMED: nobody has the private key, see `ik_message`.
pub(crate) fn page_cookie(rng: &mut StdRng) -> String {
    let key: [u8; 32] = rng.random();
    format!("_SSID={};path=/;HttpOnly", URL_SAFE_NO_PAD.encode(key))
}

fn cookie(now: Millis, sid: &str) -> String {
    let life = std::time::Duration::from_secs(COOKIE_LIFE_SECONDS);
    let expires = httpdate::fmt_http_date(
        std::time::UNIX_EPOCH + std::time::Duration::from_millis(now) + life,
    );
    format!("id={sid};expires={expires};max-age={COOKIE_LIFE_SECONDS};path=/;HttpOnly")
}

#[cfg(test)]
pub(crate) mod tests;
