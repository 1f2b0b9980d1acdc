//! Sends calls to one NAS: the effect. Session care lives here and nowhere else (design choice 23).

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_TYPE, COOKIE, HeaderValue};
use http::request::Builder;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tracing::{Instrument as _, debug, debug_span, info, trace, warn};

use super::call::Call;
use super::credential::{Credential, Refusals};
use super::reply::{self, Code, CompoundAnswer, DsmError, Nothing, Results};
use super::wire::{Failure, Http, Wire};
use crate::metrics;
use crate::volume::NasName;

/// DSM creates LUNs one at a time and can take longer than 10 s under load.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long an address that Auto Block refuses stays silent.
const BLOCKED_PAUSE: Duration = Duration::from_secs(600);

/// Where the password comes from. A file is read at each login, so a rotated secret needs no restart.
#[derive(Clone, Debug)]
pub enum Password {
    /// Stands in the configuration.
    Given(SecretString),
    /// Stands in a file, perhaps with a line end.
    File(PathBuf),
}

/// What a client must know of its NAS.
#[derive(Clone, Debug)]
pub struct Account {
    /// The NAS's permanent name.
    pub nas: NasName,
    /// For instance `https://nas.example:5001`.
    pub url: String,
    /// An administrator.
    pub username: String,
    /// Its password.
    pub password: Password,
}

/// One NAS, one shared session.
#[derive(Debug)]
pub struct Client {
    wire: Arc<dyn Wire>,
    account: Account,
    refusals: Arc<Refusals>,
    login: Mutex<LoginState>,
}

#[derive(Debug, Default)]
struct LoginState {
    session: Option<Session>,
    logins: u64,
    blocked: Option<Instant>,
}

#[derive(Clone, Debug)]
struct Session {
    number: u64,
    sid: SecretString,
    cookie: HeaderValue,
    token: Option<HeaderValue>,
}

impl Client {
    /// A client that has not logged in yet. `ca` is trusted beside the system's authorities.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(
        account: Account,
        ca: Option<reqwest::Certificate>,
        refusals: Arc<Refusals>,
    ) -> reqwest::Result<Self> {
        let http = Http::new(&account.url, ca)?;
        Ok(Self::over(Arc::new(http), account, refusals))
    }

    /// The same over a wire of the caller's.
    pub fn over(wire: Arc<dyn Wire>, account: Account, refusals: Arc<Refusals>) -> Self {
        Self {
            wire,
            account,
            refusals,
            login: Mutex::default(),
        }
    }

    /// Sends one call and reads its answer. A lost session is renewed once, for all who wait, and the call sent once more:
    /// DSM refused it before it did anything.
    ///
    /// # Errors
    /// [`DsmError`]; only [`DsmError::Refused`], [`DsmError::Unreachable`] and [`DsmError::Login`] prove that the call did nothing.
    pub async fn call<T: DeserializeOwned>(&self, call: &Call) -> Result<T, DsmError> {
        let session = self.session(None).await?;
        match self.send_with(call, &session).await {
            Err(DsmError::Refused { code, .. }) if code.wants_login() => {
                let session = self.session(Some(session.number)).await?;
                self.send_with(call, &session).await
            }
            answer => answer,
        }
    }

    /// Sends two calls in one request, the second only if the first succeeds, and reads both answers. A NAS that knows no
    /// compound requests gets them one by one.
    ///
    /// # Errors
    /// Of the call that failed; then the first may have been carried out.
    pub async fn call_both<A: DeserializeOwned, B: DeserializeOwned>(
        &self,
        first: &Call,
        second: &Call,
    ) -> Result<(A, B), DsmError> {
        let both = Call::sequence(&[first.clone(), second.clone()]);
        let answer: CompoundAnswer = match self.call(&both).await {
            Err(DsmError::Refused { code, .. }) if code.no_compound() => {
                return Ok((self.call(first).await?, self.call(second).await?));
            }
            answer => answer?,
        };
        let mut results = answer.result.into_iter();
        let mut open = |call: &Call| {
            let missing = || DsmError::Garbled {
                api: call.api,
                method: call.method,
                seen: "no result in a compound answer".to_owned(),
            };
            results
                .next()
                .ok_or_else(missing)
                .map(|envelope| (envelope, call.api, call.method))
        };
        let lost = |error: &DsmError| error.code().is_some_and(Code::wants_login);
        let (envelope, api, method) = open(first)?;
        let first_answer = match envelope.open(api, method) {
            // A session may be missed inside of a compound as well. What is sent by itself renews it.
            Err(error) if lost(&error) => {
                return Ok((self.call(first).await?, self.call(second).await?));
            }
            answer => answer?,
        };
        let (envelope, api, method) = open(second)?;
        match envelope.open(api, method) {
            Err(error) if lost(&error) => Ok((first_answer, self.call(second).await?)),
            answer => Ok((first_answer, answer?)),
        }
    }

    /// Sends calls in one request that stops at the first that fails, and answers as many results as DSM gives. It is never sent
    /// in parts: for sequences of which a later call is right only because an earlier one has just been answered.
    ///
    /// # Errors
    /// The request itself failed; only [`DsmError::Refused`], [`DsmError::Unreachable`] and [`DsmError::Login`] prove that no
    /// call was carried out.
    pub async fn call_sequence(&self, calls: &[Call]) -> Result<Results, DsmError> {
        let whole = Call::sequence(calls);
        let answer = self.call::<CompoundAnswer>(&whole).await?;
        let results = Results::of(calls, answer);
        let lost = |error: &DsmError| error.code().is_some_and(Code::wants_login);
        // A session may be missed inside of a compound as well. Nothing was carried out then but questions, so all of it may be sent
        // anew, once the session is renewed by a question.
        if results.first_refusal().is_some_and(lost) && results.has_only_asked() {
            let asked = self.call::<Nothing>(&calls[0]).await;
            if let Err(error) = asked
                && error.code().is_none_or(Code::wants_login)
            {
                return Err(error);
            }
            return Ok(Results::of(calls, self.call(&whole).await?));
        }
        Ok(results)
    }

    /// Ends the session, if there is one. A failure is only logged: the session ends by itself.
    pub async fn logout(&self) {
        let session = self.login.lock().await.session.take();
        if let Some(session) = session {
            let call = Call::new("SYNO.API.Auth", 1, "logout");
            if let Err(error) = self.send_with::<Nothing>(&call, &session).await {
                debug!(nas = %self.account.nas, %error, "logout failed");
            }
        }
    }

    /// The shared session; a new one when there is none or it is number `stale`.
    async fn session(&self, stale: Option<u64>) -> Result<Session, DsmError> {
        let mut login = self.login.lock().await;
        if let Some(session) = &login.session
            && stale != Some(session.number)
        {
            return Ok(session.clone());
        }
        login.session = None;
        let session = self.log_in(&mut login).await?;
        login.session = Some(session.clone());
        Ok(session)
    }

    async fn log_in(&self, state: &mut LoginState) -> Result<Session, DsmError> {
        let Account {
            nas, url, username, ..
        } = &self.account;
        let password = self.password().await?;
        let credential = Credential {
            url,
            account: username,
            password: &password,
        };
        let refused = |code, remembered| DsmError::Login {
            account: username.clone(),
            code,
            remembered,
        };
        if let Some(code) = self.refusals.code(&nas.to_string(), credential) {
            return Err(refused(code, true));
        }
        if state
            .blocked
            .is_some_and(|since| since.elapsed() < BLOCKED_PAUSE)
        {
            return Err(refused(Code::ADDRESS_BLOCKED, false));
        }
        state.logins += 1;
        match self.send_login(&password).await {
            Ok(answer) => {
                info!(%nas, "logged in");
                self.refusals.forget(&nas.to_string());
                answer.into_session(state.logins)
            }
            Err(DsmError::Refused { code, .. }) => {
                warn!(%nas, %code, "login refused");
                if code.refuses_credential() {
                    self.refusals.remember(&nas.to_string(), credential, code);
                }
                state.blocked = (code == Code::ADDRESS_BLOCKED).then(Instant::now);
                Err(refused(code, false))
            }
            Err(error) => Err(error),
        }
    }

    async fn send_login(&self, password: &SecretString) -> Result<LoginAnswer, DsmError> {
        // Version 6 is the highest that DSM 6 offers, and DSM 7 still takes it. Values are plain: this API is not JSON.
        let form = [
            ("api", "SYNO.API.Auth"),
            ("version", "6"),
            ("method", "login"),
            ("account", &self.account.username),
            ("passwd", password.expose_secret()),
            ("session", "dsm"),
            ("format", "sid"),
            ("enable_syno_token", "yes"),
        ];
        let request = self.request("auth.cgi");
        self.send(request, &form, "SYNO.API.Auth", "login").await
    }

    async fn send_with<T: DeserializeOwned>(
        &self,
        call: &Call,
        session: &Session,
    ) -> Result<T, DsmError> {
        let mut form = call.form();
        trace!(nas = %self.account.nas, ?call, "DSM call");
        // DSM 7.1 wants the cookie, other versions are known to work with `_sid`: send both.
        form.push(("_sid", session.sid.expose_secret().to_owned()));
        let mut request = self
            .request("entry.cgi")
            .header(COOKIE, session.cookie.clone());
        if let Some(token) = &session.token {
            request = request.header("X-SYNO-TOKEN", token.clone());
        }
        self.send(request, &form, call.api, call.method).await
    }

    async fn send<T: DeserializeOwned>(
        &self,
        request: Builder,
        form: &[(impl AsRef<str>, impl AsRef<str>)],
        api: &'static str,
        method: &'static str,
    ) -> Result<T, DsmError> {
        let form = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(form)
            .finish();
        let unfit =
            |error: http::Error| self.not_answered(Failure::Unreachable(error.into()), api, method);
        let request = request.body(form).map_err(unfit)?;
        let started = Instant::now();
        let answer = async {
            let late = |late: tokio::time::error::Elapsed| Err(Failure::Lost(late.into()));
            let answer = timeout(DEADLINE, self.wire.send(request)).await;
            let answer = answer
                .unwrap_or_else(late)
                .map_err(|failure| self.not_answered(failure, api, method))?;
            if !answer.status().is_success() {
                return Err(DsmError::Garbled {
                    api,
                    method,
                    seen: format!("HTTP status {}", answer.status()),
                });
            }
            reply::read(api, method, answer.body())
        }
        .instrument(debug_span!("dsm", nas = %self.account.nas, api, method))
        .await;
        let label = answer
            .as_ref()
            .err()
            .map_or(Cow::Borrowed("ok"), DsmError::label);
        metrics::of_process().dsm(api, method, label, started.elapsed());
        let outcome = answer
            .as_ref()
            .err()
            .map_or_else(|| "ok".to_owned(), ToString::to_string);
        debug!(nas = %self.account.nas, api, method, elapsed = ?started.elapsed(), outcome, "DSM answered");
        answer
    }

    fn not_answered(&self, failure: Failure, api: &'static str, method: &'static str) -> DsmError {
        match failure {
            Failure::Unreachable(source) => DsmError::Unreachable {
                url: self.account.url.clone(),
                source,
            },
            Failure::Lost(source) => DsmError::Lost {
                api,
                method,
                source,
            },
        }
    }

    async fn password(&self) -> Result<SecretString, DsmError> {
        match &self.account.password {
            Password::Given(password) => Ok(password.clone()),
            Password::File(path) => {
                let unreadable = |source| DsmError::Password {
                    path: path.display().to_string(),
                    source,
                };
                let text = tokio::fs::read_to_string(path).await.map_err(unreadable)?;
                Ok(SecretString::from(text.trim_end_matches(['\r', '\n'])))
            }
        }
    }

    fn request(&self, cgi: &str) -> Builder {
        let url = self.account.url.trim_end_matches('/');
        http::Request::post(format!("{url}/webapi/{cgi}"))
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
    }
}

#[derive(Deserialize)]
struct LoginAnswer {
    sid: SecretString,
    synotoken: Option<SecretString>,
}

impl LoginAnswer {
    fn into_session(self, number: u64) -> Result<Session, DsmError> {
        let header = |text: &str| {
            let garbled = |_| DsmError::Garbled {
                api: "SYNO.API.Auth",
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
        })
    }
}
