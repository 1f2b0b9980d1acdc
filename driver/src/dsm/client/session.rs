//! Session management (design.md#one-login): all calls to a NAS share one session, and all waiting calls share one login.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use http::header::HeaderValue;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::{Instant, timeout};
use tracing::{Instrument as _, debug, info, warn};

use super::Client;
use super::credential::Credential;
use crate::dsm::call::Call;
use crate::dsm::reply::{Code, DsmError, LOGIN, NoData, SessionLoss};
use crate::metrics;

/// Timeout of a login: it is cheap for the NAS, and all waiting calls share its outcome. A NAS that was asleep is awake for the
/// next attempt.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(15);
/// Timeout of a logout: sessions also expire by themselves.
const LOGOUT_TIMEOUT: Duration = Duration::from_secs(3);
/// Minimum interval between renewals if it is unclear whether another login helps.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(60);

/// The login state of one NAS.
#[derive(Debug, Default)]
pub(super) struct Logins {
    state: Arc<Mutex<State>>,
    /// How many logins have failed.
    failed: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    session: Option<Session>,
    /// How many logins were attempted.
    count: u64,
    /// How many sessions the NAS has lost.
    lost: u64,
    /// The last failed login: its number, and the error.
    failure: Option<(u64, DsmError)>,
    /// When a session was last renewed on suspicion ([`SessionLoss::Perhaps`]).
    last_suspicious_renewal: Option<Instant>,
}

/// A DSM session.
#[derive(Clone)]
pub(super) struct Session {
    number: u64,
    sid: SecretString,
    cookie: HeaderValue,
    token: Option<HeaderValue>,
    since: Instant,
    /// It replaced another session.
    renewed: bool,
    /// A call in it has succeeded, or failed for another reason than the session.
    worked: Arc<AtomicBool>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

impl Session {
    pub(super) fn sid(&self) -> &str {
        self.sid.expose_secret()
    }

    pub(super) fn cookie(&self) -> HeaderValue {
        self.cookie.clone()
    }

    pub(super) fn token(&self) -> Option<HeaderValue> {
        self.token.clone()
    }

    /// Notes from the reply to a call whether the session works.
    pub(super) fn note_reply<T>(&self, answer: &Result<T, DsmError>) {
        let worked = answer.as_ref().map_or_else(
            |error| error.code().is_some_and(|code| !code.wants_login()),
            |_| true,
        );
        if worked {
            self.worked.store(true, Ordering::Relaxed);
        }
    }
}

impl State {
    /// Whether to try another login in place of this session.
    fn may_renew(&self, stale: &Session, code: Code) -> bool {
        let is_due = |at: Instant| at.elapsed() >= RENEWAL_INTERVAL;
        match code.session() {
            SessionLoss::No => false,
            SessionLoss::Gone => {
                !stale.renewed || stale.worked.load(Ordering::Relaxed) || is_due(stale.since)
            }
            SessionLoss::Perhaps => self.last_suspicious_renewal.is_none_or(is_due),
        }
    }
}

impl Client {
    /// How many sessions the NAS has lost. Renewals on suspicion do not count.
    pub(in crate::dsm) async fn lost_sessions(&self) -> u64 {
        self.logins.state.lock().await.lost
    }

    /// The shared session; logs in if there is none.
    pub(super) async fn session(&self) -> Result<Session, DsmError> {
        let logins = self.after_logins().await?;
        match &logins.session {
            Some(session) => Ok(session.clone()),
            None => Box::pin(self.log_in(logins, None)).await,
        }
    }

    /// A session to replace `stale`, in which a call was refused with `code`. `None`: one was replaced just now, so another login
    /// would likely not help.
    pub(super) async fn renew(
        &self,
        stale: &Session,
        code: Code,
    ) -> Result<Option<Session>, DsmError> {
        let mut logins = self.after_logins().await?;
        if let Some(session) = &logins.session
            && session.number != stale.number
        {
            return Ok(Some(session.clone()));
        }
        if !logins.may_renew(stale, code) {
            return Ok(None);
        }
        logins.session = None;
        logins.lost += u64::from(code.session() == SessionLoss::Gone);
        let stale = (stale.clone(), code.session());
        Box::pin(self.log_in(logins, Some(stale))).await.map(Some)
    }

    /// Logs out, if there is a session. A failure is only logged: the session expires by itself.
    pub async fn logout(&self) {
        let session = self.logins.state.lock().await.session.take();
        if let Some(session) = session {
            self.end(&session).await;
        }
    }

    async fn end(&self, session: &Session) {
        let call = Call::new(LOGIN, 1, "logout");
        let ended = self.send_with::<NoData>(&call, session, None);
        let ended = timeout(LOGOUT_TIMEOUT, ended).await;
        if !matches!(ended, Ok(Ok(NoData))) {
            debug!(nas = %self.account.nas, ?ended, "logout failed");
        }
    }

    /// Waits for a login in progress, and shares its failure: waiting calls do not repeat it one by one.
    async fn after_logins(&self) -> Result<OwnedMutexGuard<State>, DsmError> {
        let known = self.logins.failed.load(Ordering::Relaxed);
        let state = Arc::clone(&self.logins.state).lock_owned().await;
        match &state.failure {
            Some((number, error)) if *number > known => Err(error.clone()),
            Some(_) | None => Ok(state),
        }
    }

    /// Logs in, in its own task: its outcome is shared even if the call that started it is dropped, and no session is leaked.
    /// `stale`: the session to be replaced, and how it was lost.
    async fn log_in(
        &self,
        mut logins: OwnedMutexGuard<State>,
        stale: Option<(Session, SessionLoss)>,
    ) -> Result<Session, DsmError> {
        let client = self.clone();
        let login = async move {
            let outcome = client.try_login(&mut logins, stale.is_some()).await;
            match &outcome {
                Ok(session) => logins.session = Some(session.clone()),
                Err(error) => {
                    let number = client.logins.failed.fetch_add(1, Ordering::Relaxed) + 1;
                    logins.failure = Some((number, error.clone()));
                }
            }
            if let (Ok(_), Some((stale, SessionLoss::Perhaps))) = (&outcome, stale) {
                logins.last_suspicious_renewal = Some(Instant::now());
                drop(logins);
                // The old session may still be valid, and the number of sessions on a NAS is limited.
                client.end(&stale).await;
            }
            outcome
        };
        let outcome = tokio::spawn(login.in_current_span()).await;
        outcome.unwrap_or_else(|broken| {
            Err(DsmError::Lost {
                api: LOGIN,
                method: "login",
                source: Arc::new(broken),
            })
        })
    }

    async fn try_login(&self, state: &mut State, renewed: bool) -> Result<Session, DsmError> {
        let nas = self.account.nas.to_string();
        let password = self.password().await?;
        let credential = Credential {
            url: &self.account.url,
            account: &self.account.username,
            password: &password,
        };
        let refused = |code, next| DsmError::Login {
            account: self.account.username.clone(),
            code,
            next,
        };
        if let Some((code, next)) = self.refusals.pending(&nas, credential) {
            metrics::of_process().login(&nas, Some(code.0));
            return Err(refused(code, Some(next)));
        }
        self.check_alive().await?;
        state.count += 1;
        match self.send_login(&password).await {
            Ok(answer) => {
                info!(nas, "logged in");
                self.refusals.forget(&nas);
                metrics::of_process().login(&nas, None);
                answer.into_session(state.count, renewed)
            }
            Err(DsmError::Refused { code, .. }) => {
                let next = self.refusals.remember(&nas, credential, code);
                metrics::of_process().login(&nas, Some(code.0));
                let error = refused(code, next);
                warn!(nas, %error, "login refused");
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    async fn send_login(&self, password: &SecretString) -> Result<LoginAnswer, DsmError> {
        // Version 6 is the highest that DSM 6 supports, and DSM 7 still accepts it. Values are plain: this API does not use JSON.
        let form = [
            ("api", LOGIN),
            ("version", "6"),
            ("method", "login"),
            ("account", &self.account.username),
            ("passwd", password.expose_secret()),
            ("session", "dsm"),
            ("format", "sid"),
            ("enable_syno_token", "yes"),
        ];
        let request = self.request("auth.cgi");
        self.send(request, &form, LOGIN, "login", LOGIN_TIMEOUT, None)
            .await
    }
}

#[derive(Deserialize)]
struct LoginAnswer {
    sid: SecretString,
    synotoken: Option<SecretString>,
}

impl LoginAnswer {
    fn into_session(self, number: u64, renewed: bool) -> Result<Session, DsmError> {
        let header = |text: &str| {
            let garbled = |_| DsmError::Garbled {
                api: LOGIN,
                method: "login",
                seen: "a sid or token that is not valid in a header".to_owned(),
            };
            let mut value = HeaderValue::from_str(text).map_err(garbled)?;
            value.set_sensitive(true);
            Ok(value)
        };
        Ok(Session {
            number,
            cookie: header(&format!("id={}", self.sid.expose_secret()))?,
            token: self
                .synotoken
                .map(|token| header(token.expose_secret()))
                .transpose()?,
            sid: self.sid,
            since: Instant::now(),
            renewed,
            worked: Arc::default(),
        })
    }
}

#[cfg(test)]
mod tests;
