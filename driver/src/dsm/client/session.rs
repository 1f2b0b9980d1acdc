//! Session care (design.md#one-login): one session of a NAS for all who call, one login for all who wait for it.

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

/// A login makes nothing and costs the NAS little, and who waits for it shares its outcome: one that sleeps is awake for the next try.
const DEADLINE: Duration = Duration::from_secs(15);
/// How long one may take to end: it ends by itself.
const LOGOUT_TIMEOUT: Duration = Duration::from_secs(3);
/// How often a session is renewed that another login may not help.
const SELDOM: Duration = Duration::from_secs(60);

/// The logins to one NAS.
#[derive(Debug, Default)]
pub(super) struct Logins {
    state: Arc<Mutex<State>>,
    /// How many of them have failed.
    failed: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    session: Option<Session>,
    count: u64,
    /// How many sessions the NAS has lost.
    lost: u64,
    /// The last one that failed: its number, and why.
    failure: Option<(u64, DsmError)>,
    /// When a session was last renewed of which one cannot know whether it was to blame.
    doubted: Option<Instant>,
}

/// A session.
#[derive(Clone)]
pub(super) struct Session {
    number: u64,
    sid: SecretString,
    cookie: HeaderValue,
    token: Option<HeaderValue>,
    since: Instant,
    /// It was made in the place of another.
    renewed: bool,
    /// A call was answered in it.
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

    /// Learns from the answer to a call.
    pub(super) fn judge<T>(&self, answer: &Result<T, DsmError>) {
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
    /// Another login in the place of this session is worth a try.
    fn may_renew(&self, stale: &Session, code: Code) -> bool {
        let seldom = |at: Instant| at.elapsed() >= SELDOM;
        match code.session() {
            SessionLoss::No => false,
            SessionLoss::Gone => {
                !stale.renewed || stale.worked.load(Ordering::Relaxed) || seldom(stale.since)
            }
            SessionLoss::Perhaps => self.doubted.is_none_or(seldom),
        }
    }
}

impl Client {
    /// How many sessions the NAS has lost. Those that are renewed on suspicion do not count: it may not know one from another.
    pub(in crate::dsm) async fn lost_sessions(&self) -> u64 {
        self.logins.state.lock().await.lost
    }

    /// The shared session; a new one when there is none.
    pub(super) async fn session(&self) -> Result<Session, DsmError> {
        let logins = self.after_logins().await?;
        match &logins.session {
            Some(session) => Ok(session.clone()),
            None => Box::pin(self.log_in(logins, None)).await,
        }
    }

    /// Another session than this one, in which a call was refused with `code`. `None`: another one was tried only just now, and
    /// may have helped nothing.
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

    /// Ends the session, if there is one. A failure is only logged: the session ends by itself.
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

    /// Waits for a login that is under way, and shares its failure: who waits for a NAS that hangs waits once.
    async fn after_logins(&self) -> Result<OwnedMutexGuard<State>, DsmError> {
        let known = self.logins.failed.load(Ordering::Relaxed);
        let state = Arc::clone(&self.logins.state).lock_owned().await;
        match &state.failure {
            Some((number, error)) if *number > known => Err(error.clone()),
            Some(_) | None => Ok(state),
        }
    }

    /// Logs in, in a task of its own: what becomes of it is shared even when the call that has begun it is given up, and no session is
    /// left that nobody knows. `stale`: the session in whose place the new one is to stand, and how it was lost.
    async fn log_in(
        &self,
        mut logins: OwnedMutexGuard<State>,
        stale: Option<(Session, SessionLoss)>,
    ) -> Result<Session, DsmError> {
        let client = self.clone();
        let login = async move {
            let made = client.try_login(&mut logins, stale.is_some()).await;
            match &made {
                Ok(session) => logins.session = Some(session.clone()),
                Err(error) => {
                    let number = client.logins.failed.fetch_add(1, Ordering::Relaxed) + 1;
                    logins.failure = Some((number, error.clone()));
                }
            }
            if let (Ok(_), Some((stale, SessionLoss::Perhaps))) = (&made, stale) {
                logins.doubted = Some(Instant::now());
                drop(logins);
                // It may live on, and a NAS has room for so many.
                client.end(&stale).await;
            }
            made
        };
        let made = tokio::spawn(login.in_current_span()).await;
        made.unwrap_or_else(|broken| {
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
        if let Some((code, next)) = self.refusals.rest(&nas, credential) {
            metrics::of_process().login(&nas, Some(code.0));
            return Err(refused(code, Some(next)));
        }
        self.listen().await?;
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
        // Version 6 is the highest that DSM 6 offers, and DSM 7 still takes it. Values are plain: this API is not JSON.
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
        self.send(request, &form, LOGIN, "login", DEADLINE, None)
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
                seen: "a sid or token that cannot stand in a header".to_owned(),
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
