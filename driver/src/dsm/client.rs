//! Sends calls to one NAS: the effect. Session care lives in [`super::session`] and nowhere else (design.md#one-login).

pub mod credential;
mod limits;
mod liveness;
mod session;

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http::header::{CONTENT_TYPE, COOKIE, LOCATION};
use http::request::Builder;
use secrecy::{ExposeSecret as _, SecretString};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout};
use tracing::{Instrument as _, debug, debug_span, trace};

use super::call::Call;
use super::compound::{CompoundAnswer, Results};
use super::reply::{self, Code, DsmError, NoData};
use super::transport::{Cause, Failure, Http, Transport};
use super::trust::{Complaint, Trust};
use crate::metrics::{self, DsmCall};
use crate::volume::NasName;
use credential::Refusals;
use limits::{Permit, RequestLimits};
use liveness::Liveness;
use session::{Logins, Session};

/// From when a request is sent: the wait for a place does not count. DSM creates LUNs one at a time and can take longer than 10 s under load.
/// Questions have as long: a list takes the longer the more there is to list, and one that is always given up too early never comes.
const DEADLINE: Duration = Duration::from_secs(60);

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

/// One NAS, one shared session. Clones are the same client.
#[derive(Clone, Debug)]
pub struct Client {
    pub(super) wire: Arc<dyn Transport>,
    pub(super) account: Arc<Account>,
    pub(super) refusals: Arc<Refusals>,
    logins: Arc<Logins>,
    lanes: Arc<RequestLimits>,
    pulse: Arc<Liveness>,
}

/// A request under way ended without an answer, though the NAS answers others.
#[derive(Debug, thiserror::Error)]
#[error("NAS {nas} gave none within {} s, though it answers other requests", .limit.as_secs())]
struct Late {
    nas: NasName,
    limit: Duration,
}

impl Client {
    /// A client that has not logged in yet, for a NAS that is trusted on these terms.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(account: Account, trust: Trust, refusals: Arc<Refusals>) -> Result<Self, Cause> {
        let http = Http::new(&account.url, trust)?;
        Ok(Self::over(Arc::new(http), account, refusals))
    }

    /// The same over a wire of the caller's.
    pub fn over(wire: Arc<dyn Transport>, account: Account, refusals: Arc<Refusals>) -> Self {
        Self {
            wire,
            account: Arc::new(account),
            refusals,
            logins: Arc::default(),
            lanes: Arc::default(),
            pulse: Arc::default(),
        }
    }

    /// Sends one call and reads its answer. A lost session is renewed once, for all who wait, and the call sent once more:
    /// DSM refused it before it did anything. Where another login may not help it is not tried again and again: then the
    /// refusal is the answer.
    ///
    /// # Errors
    /// [`DsmError`]; only [`DsmError::Refused`], [`DsmError::Unreachable`], [`DsmError::Silent`] and [`DsmError::Login`] prove that the
    /// call did nothing.
    pub async fn call<T: DeserializeOwned>(&self, call: &Call) -> Result<T, DsmError> {
        // Before the wait for a place: whoever cannot log in learns it together with all others.
        self.session().await?;
        let place = self.place(call.lane()).await?;
        // And after it: the session may have been renewed meanwhile.
        let session = self.session().await?;
        match self.send_with(call, &session, Some(place.clone())).await {
            Err(DsmError::Refused { api, method, code }) if code.wants_login() => {
                match self.renew(&session, code).await? {
                    Some(session) => self.send_with(call, &session, Some(place)).await,
                    None => Err(DsmError::Refused { api, method, code }),
                }
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
        let (first, second) = self.call_pair(first, second).await?;
        Ok((first, second?))
    }

    /// The same for who can do without the second answer.
    ///
    /// # Errors
    /// Of the request, or of the first call.
    pub async fn call_pair<A: DeserializeOwned, B: DeserializeOwned>(
        &self,
        first: &Call,
        second: &Call,
    ) -> Result<(A, Result<B, DsmError>), DsmError> {
        let both = Call::sequence(&[first.clone(), second.clone()]);
        let (answer, second) = self.call_two(&both, first, second).await?;
        Ok((answer?, second))
    }

    /// Sends two calls in one request, the second whatever comes of the first, and reads both answers.
    ///
    /// # Errors
    /// Of the request; those of the calls are in the answer.
    pub async fn call_each<A: DeserializeOwned, B: DeserializeOwned>(
        &self,
        first: &Call,
        second: &Call,
    ) -> Result<(Result<A, DsmError>, Result<B, DsmError>), DsmError> {
        let both = Call::each(&[first.clone(), second.clone()]);
        self.call_two(&both, first, second).await
    }

    async fn call_two<A: DeserializeOwned, B: DeserializeOwned>(
        &self,
        both: &Call,
        first: &Call,
        second: &Call,
    ) -> Result<(Result<A, DsmError>, Result<B, DsmError>), DsmError> {
        let answer: CompoundAnswer = match self.call(both).await {
            Err(DsmError::Refused { code, .. }) if code.no_such_call() => {
                return Ok(self.one_by_one(first, second).await);
            }
            answer => answer?,
        };
        let mut results = answer.into_results();
        let lost = |error: &DsmError| error.code().is_some_and(Code::wants_login);
        let first_answer = first.result(results.next());
        // A session may be missed inside of a compound as well. What is sent by itself renews it.
        if first_answer.as_ref().err().is_some_and(lost) {
            return Ok(self.one_by_one(first, second).await);
        }
        match second.result(results.next()) {
            Err(error) if lost(&error) => Ok((first_answer, self.call(second).await)),
            answer => Ok((first_answer, answer)),
        }
    }

    /// The second only if the first succeeds.
    async fn one_by_one<A: DeserializeOwned, B: DeserializeOwned>(
        &self,
        first: &Call,
        second: &Call,
    ) -> (Result<A, DsmError>, Result<B, DsmError>) {
        let answer = self.call(first).await;
        let second = match &answer {
            Ok(_) => self.call(second).await,
            Err(_) => second.result(None),
        };
        (answer, second)
    }

    /// Sends calls in one request that stops at the first that fails, and answers as many results as DSM gives. It is never sent
    /// in parts: for sequences of which a later call is right only because an earlier one has just been answered.
    ///
    /// # Errors
    /// The request itself failed; only [`DsmError::Refused`], [`DsmError::Unreachable`], [`DsmError::Silent`] and
    /// [`DsmError::Login`] prove that no call was carried out.
    pub async fn call_sequence(&self, calls: &[Call]) -> Result<Results, DsmError> {
        let whole = Call::sequence(calls);
        let answer = self.call::<CompoundAnswer>(&whole).await?;
        let results = Results::of(calls, answer);
        let lost = |error: &DsmError| error.code().is_some_and(Code::wants_login);
        // A session may be missed inside of a compound as well. Nothing was carried out then but questions, so all of it may be sent
        // anew, once the session is renewed by a question.
        if results.first_refusal().is_some_and(lost) && results.has_only_asked() {
            let asked = self.call::<NoData>(&calls[0]).await;
            if let Err(error) = asked
                && error.code().is_none_or(Code::wants_login)
            {
                return Err(error);
            }
            return Ok(Results::of(calls, self.call(&whole).await?));
        }
        Ok(results)
    }

    /// Sends a call in a session, with a place among the requests under way if it is one of those that need one.
    async fn send_with<T: DeserializeOwned>(
        &self,
        call: &Call,
        session: &Session,
        place: Option<Permit>,
    ) -> Result<T, DsmError> {
        let mut form = call.form();
        trace!(nas = %self.account.nas, ?call, "DSM call");
        // DSM 7.1 wants the cookie, other versions are known to work with `_sid`: send both.
        form.push(("_sid", session.sid().to_owned()));
        let mut request = self.request("entry.cgi").header(COOKIE, session.cookie());
        if let Some(token) = session.token() {
            request = request.header("X-SYNO-TOKEN", token);
        }
        // On the heap: several of these wait in one call of the CO, one after the other.
        let sent = Box::pin(self.send(request, &form, call.api, call.method, DEADLINE, place));
        let answer = sent.await;
        session.judge(&answer);
        answer
    }

    async fn send<T: DeserializeOwned>(
        &self,
        request: Builder,
        form: &[(impl AsRef<str>, impl AsRef<str>)],
        api: &'static str,
        method: &'static str,
        deadline: Duration,
        place: Option<Permit>,
    ) -> Result<T, DsmError> {
        let form = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(form)
            .finish();
        let unfit =
            |error: http::Error| self.not_answered(Failure::Unreachable(error.into()), api, method);
        let request = request.body(form).map_err(unfit)?;
        let started = Instant::now();
        let span = debug_span!("dsm", nas = %self.account.nas, api, method);
        // In a task of its own: the NAS is at work, and the place taken, until there is an answer, whoever still waits for it.
        let exchange = self.clone().exchange(request, deadline, place);
        let exchange = tokio::spawn(exchange.instrument(span)).await;
        let answer = exchange
            .unwrap_or_else(|broken| Err(Failure::Lost(broken.into())))
            .map_err(|failure| self.not_answered(failure, api, method))
            .and_then(|answer| self.read(&answer, api, method));
        let label = answer
            .as_ref()
            .err()
            .map_or(Cow::Borrowed("ok"), DsmError::label);
        let answered = answer.as_ref().err().is_none_or(DsmError::is_of_dsm);
        let nas = self.account.nas.to_string();
        let call = DsmCall {
            nas: &nas,
            api,
            method,
        };
        metrics::of_process().dsm(call, label, answered, started.elapsed());
        let outcome = answer
            .as_ref()
            .err()
            .map_or_else(|| "ok".to_owned(), ToString::to_string);
        debug!(nas = %self.account.nas, api, method, elapsed = ?started.elapsed(), outcome, "DSM answered");
        answer
    }

    /// One request and its answer, within a deadline, as long as the NAS answers at all.
    async fn exchange(
        self,
        request: http::Request<String>,
        deadline: Duration,
        place: Option<Permit>,
    ) -> Result<http::Response<bytes::Bytes>, Failure> {
        let exchange = self.while_heard(self.wire.send(request));
        let ended = timeout(deadline, exchange).await;
        drop(place);
        match ended {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(silence)) => Err(Failure::Lost(silence.into())),
            Err(_) => Err(Failure::Lost(Box::new(Late {
                nas: self.account.nas.clone(),
                limit: deadline,
            }))),
        }
    }

    fn read<T: DeserializeOwned>(
        &self,
        answer: &http::Response<bytes::Bytes>,
        api: &'static str,
        method: &'static str,
    ) -> Result<T, DsmError> {
        if answer.status().is_success() {
            return reply::read(api, method, answer.body());
        }
        let garbled = || DsmError::Garbled {
            api,
            method,
            seen: format!("HTTP status {}", answer.status()),
        };
        Err(misplaced(&self.account.url, answer).unwrap_or_else(garbled))
    }

    fn not_answered(&self, failure: Failure, api: &'static str, method: &'static str) -> DsmError {
        match failure {
            Failure::Unreachable(source) => DsmError::Unreachable {
                url: self.account.url.clone(),
                source: source.into(),
            },
            Failure::Refused(Complaint::Untrusted(seen)) => DsmError::Untrusted {
                url: self.account.url.clone(),
                seen,
            },
            Failure::Refused(Complaint::NoTls) => DsmError::Misplaced {
                url: self.account.url.clone(),
                seen: "speaks no TLS at that port: write the port of its HTTPS, 5001 unless somebody changed it (Control Panel, Login Portal)".to_owned(),
            },
            Failure::TooLarge(limit) => DsmError::Garbled {
                api,
                method,
                seen: format!("more than {} MiB", limit >> 20),
            },
            Failure::Lost(source) => DsmError::Lost {
                api,
                method,
                source: source.into(),
            },
        }
    }

    pub(super) async fn password(&self) -> Result<SecretString, DsmError> {
        match &self.account.password {
            Password::Given(password) => Ok(password.clone()),
            Password::File(path) => {
                let unreadable = |source: std::io::Error| DsmError::Password {
                    path: path.display().to_string(),
                    source: Arc::new(source),
                };
                let text = tokio::fs::read_to_string(path).await.map_err(unreadable)?;
                let text = SecretString::from(text);
                let password = bare(text.expose_secret());
                if password.is_empty() {
                    // Sent, it would be a failed login, and Auto Block would count it.
                    return Err(unreadable(std::io::Error::other(
                        "the file is empty: write the account's password into it (in Kubernetes: into the Secret)",
                    )));
                }
                Ok(SecretString::from(password))
            }
        }
    }

    pub(super) fn request(&self, cgi: &str) -> Builder {
        let url = self.account.url.trim_end_matches('/');
        http::Request::post(format!("{url}/webapi/{cgi}"))
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
    }
}

/// A password without what editors put around it: a byte-order mark, a line end.
fn bare(text: &str) -> &str {
    text.trim_start_matches('\u{feff}')
        .trim_end_matches(['\r', '\n'])
}

/// What an answer without success says about the address: then nothing was done.
fn misplaced(url: &str, answer: &http::Response<bytes::Bytes>) -> Option<DsmError> {
    let told = |seen| {
        Some(DsmError::Misplaced {
            url: url.to_owned(),
            seen,
        })
    };
    if answer.status().is_redirection() {
        let place = answer.headers().get(LOCATION)?.to_str().ok()?;
        // Without its path: that is a page for people.
        let place = url::Url::parse(url).ok()?.join(place).ok()?.origin();
        return told(format!(
            "sends its callers elsewhere: write url: {} into the configuration",
            place.ascii_serialization()
        ));
    }
    // ASSUMED: DSM's web server says so when it hears plain HTTP where it expects TLS, as any nginx does.
    let plain = url.starts_with("http://") && answer.status() == StatusCode::BAD_REQUEST;
    let host = url.trim_start_matches("http://").trim_end_matches('/');
    plain.then_some(()).and_then(|()| {
        told(format!(
            "answers plain HTTP with status 400, as the port of HTTPS does: write url: https://{host} into the configuration"
        ))
    })
}
