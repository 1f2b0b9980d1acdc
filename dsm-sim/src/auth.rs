//! Logins and sessions: `SYNO.API.Auth`, Auto Block, CSRF tokens, address binding and expiry. Source: dsm-api.md 1.4 and 3.

use std::collections::BTreeMap;
use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::RngExt;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::account::{self, Account, Device};
use crate::clock::Millis;
use crate::code::{Code, Refusal};
use crate::encryption::Cipher;
use crate::model::Generation;
use crate::nas::{Call, Caller};
use crate::table::Table;

const MINUTE: Millis = 60_000;
/// Measured (jt docs/TESTING.md): three failures in five minutes lock an address out for a day.
const FAILURES: usize = 3;
const WINDOW: Millis = 5 * MINUTE;
const BLOCKED_FOR: Millis = 24 * 60 * MINUTE;
const COOKIE_LIFE_SECONDS: u64 = 604_800;

/// What an administrator can switch on the security page, and switches for what is not known of DSM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "these are switches, each on its own"
)]
pub struct Settings {
    /// Refuse calls without the login's token (105).
    pub csrf_protection: bool,
    /// Let a session be used from any address.
    pub skip_ip_checking: bool,
    /// Idle minutes after which a session ends.
    pub timeout_minutes: u64,
    /// Lock addresses out after three failed logins.
    pub auto_block: bool,
    /// Take `_sid` from a form body too. jt measured that DSM 7.1.1 does not; other clients depend on it.
    pub sid_in_form: bool,
    /// Take target names, not only numbers, in calls that change a target.
    pub target_names_in_changes: bool,
    /// Take target names, not only numbers, in `Target.get`; else a name answers 18990710.
    pub target_get_takes_names: bool,
    /// Let sessions go on when their target is deleted, until they end by themselves or the NAS restarts; new logins are
    /// turned away.
    pub deleted_targets_keep_sessions: bool,
    /// Carry a compound with `stop_when_error` on after a failing call all the same.
    pub compounds_go_on: bool,
    /// After a stop, put the calls that were not made into a compound's `result`, each refused with 112.
    pub compound_fills_stopped: bool,
    /// Let other requests get in between the calls of a compound.
    pub compounds_interleave: bool,
    /// The code for a LUN that is not there: 18990531, or 18990505 as Cinder expects.
    pub missing_lun_code: u32,
    /// The code for a `new_size` below the present size.
    pub shrink_code: u32,
    /// Refuse to grow a thin LUN beyond what its volume has free (18990002), as is done for thick ones.
    pub thin_growth_needs_space: bool,
    /// Let ADV LUNs start with `can_snapshot` on.
    pub adv_can_snapshot: bool,
    /// Snapshots that a LUN may have: 256, or 128 as DSM's other figure says.
    pub snapshots_per_lun: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            csrf_protection: false,
            skip_ip_checking: false,
            timeout_minutes: 15,
            auto_block: true,
            // ASSUMED: accepted; measurements disagree, so it can be switched off.
            sid_in_form: true,
            target_names_in_changes: false,
            // ASSUMED: taken; the official driver asks so for what it has just made, but nobody recorded the answer.
            target_get_takes_names: true,
            // ASSUMED: live sessions are dropped and the call succeeds; nobody has looked at the initiator's end.
            deleted_targets_keep_sessions: false,
            // ASSUMED: stop_when_error stops, as its name says; nobody recorded a compound that had an error inside.
            compounds_go_on: false,
            // ASSUMED: the calls after the failing one are left out of `result`.
            compound_fills_stopped: false,
            // ASSUMED: they get in, wherever a call waits; DSM's own page shows no sign of a lock, and a client that is
            // right here is right on a NAS that holds the others back, too.
            compounds_interleave: true,
            missing_lun_code: Code::NoSuchLun as u32,
            // ASSUMED: 18990502; every driver refuses to shrink, nobody recorded DSM's own answer.
            shrink_code: Code::BadSize as u32,
            // ASSUMED: growing a thin LUN needs no free space.
            thin_growth_needs_space: false,
            // ASSUMED: on; one report says so, another the contrary (official #23, #22).
            adv_can_snapshot: true,
            // ASSUMED: 256, as `max_snapshot_per_lun` says; `max_snapshot_per_lun_v2` says 128, and nobody has found out
            // which of them binds.
            snapshots_per_lun: 256,
        }
    }
}

impl Settings {
    /// These settings with the fields of a JSON object laid over them.
    ///
    /// # Errors
    /// It is no object, a field is unknown, or a value is of the wrong type.
    pub fn patched(&self, patch: Value) -> serde_json::Result<Self> {
        let mut fields = serde_json::from_value::<Map<String, Value>>(json!(self))?;
        fields.extend(serde_json::from_value::<Map<String, Value>>(patch)?);
        serde_json::from_value(Value::Object(fields))
    }
}

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

    /// How many sessions there are.
    pub(crate) fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Every session id is unknown from now on, as after a restart of DSM.
    pub(crate) fn forget_sessions(&mut self) {
        self.sessions.clear();
    }

    /// Lifts every Auto Block.
    pub(crate) fn unblock(&mut self) {
        self.failures.clear();
        self.blocked.clear();
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
        if let Err(refusal) = account::judge(&account, call, now, devices) {
            if refusal.code == Code::OtpWrong as u32 {
                self.failed(now, client, settings);
            }
            return Err(refusal);
        }
        let token = (call.version >= 3 && call.params.raw("enable_syno_token") == Some("yes"))
            .then(|| random_text(rng, 13));
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

pub(crate) fn random_text(rng: &mut StdRng, length: usize) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    (0..length)
        .map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]))
        .collect()
}

#[cfg(test)]
pub(crate) mod tests;
