//! Sends calls to one NAS. Sessions are managed in `client/session.rs` and nowhere else (design.md#one-login).

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

/// Timeout of a request, from when it is sent: the wait for a permit does not count. DSM creates LUNs one at a time and can take
/// longer than 10 s under load. Reads have the same timeout: long lists take long, and a list that always times out would never
/// be read.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// The source of the password. A file is read at each login, so a rotated secret needs no restart.
#[derive(Clone, Debug)]
pub enum Password {
    /// Given in the configuration.
    Given(SecretString),
    /// In a file, possibly with a trailing line end.
    File(PathBuf),
}

/// Address and credentials of a NAS.
#[derive(Clone, Debug)]
pub struct Account {
    /// The NAS's permanent name.
    pub nas: NasName,
    /// For instance `https://nas.example:5001`.
    pub url: String,
    /// The account, an administrator.
    pub username: String,
    /// Its password.
    pub password: Password,
}

/// One NAS, one shared session. Clones are the same client.
#[derive(Clone, Debug)]
pub struct Client {
    pub(super) transport: Arc<dyn Transport>,
    pub(super) account: Arc<Account>,
    pub(super) refusals: Arc<Refusals>,
    logins: Arc<Logins>,
    limits: Arc<RequestLimits>,
    liveness: Arc<Liveness>,
}

/// A request timed out although the NAS answers others.
#[derive(Debug, thiserror::Error)]
#[error("NAS {nas} gave none within {} s, though it answers other requests", .limit.as_secs())]
struct TimedOut {
    nas: NasName,
    limit: Duration,
}

impl Client {
    /// A client that has not logged in yet. `trust`: which TLS certificates to accept.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(account: Account, trust: Trust, refusals: Arc<Refusals>) -> Result<Self, Cause> {
        let http = Http::new(&account.url, trust)?;
        Ok(Self::over(Arc::new(http), account, refusals))
    }

    /// Like [`Client::new`], over another transport than HTTP.
    pub fn over(transport: Arc<dyn Transport>, account: Account, refusals: Arc<Refusals>) -> Self {
        Self {
            transport,
            account: Arc::new(account),
            refusals,
            logins: Arc::default(),
            limits: Arc::default(),
            liveness: Arc::default(),
        }
    }

    /// Sends one call and parses its reply. A lost session is renewed once, for all waiting calls, and the call is sent again:
    /// DSM refused it before it did anything. If it is unclear whether another login helps, renewal is rate-limited: then the
    /// refusal is returned.
    ///
    /// # Errors
    /// [`DsmError`]; only [`DsmError::Refused`], [`DsmError::Unreachable`], [`DsmError::Silent`] and [`DsmError::Login`] prove
    /// that the call did nothing.
    pub async fn call<T: DeserializeOwned>(&self, call: &Call) -> Result<T, DsmError> {
        // Before waiting for a permit: if the login fails, all waiting calls get that error together.
        self.session().await?;
        let permit = self.permit(call.class()).await?;
        // And again after it: the session may have been renewed meanwhile.
        let session = self.session().await?;
        match self.send_with(call, &session, Some(permit.clone())).await {
            Err(DsmError::Refused { api, method, code }) if code.wants_login() => {
                match self.renew(&session, code).await? {
                    Some(session) => self.send_with(call, &session, Some(permit)).await,
                    None => Err(DsmError::Refused { api, method, code }),
                }
            }
            reply => reply,
        }
    }

    /// Sends two calls in one request, the second only if the first succeeds, and parses both replies. A NAS without
    /// compound requests gets them one by one.
    ///
    /// # Errors
    /// The error of the call that failed; if it is the second, the first was carried out.
    pub async fn call_both<A: DeserializeOwned, B: DeserializeOwned>(
        &self,
        first: &Call,
        second: &Call,
    ) -> Result<(A, B), DsmError> {
        let (first, second) = self.call_pair(first, second).await?;
        Ok((first, second?))
    }

    /// Like [`Client::call_both`], but the second call may fail.
    ///
    /// # Errors
    /// The error of the request, or of the first call.
    pub async fn call_pair<A: DeserializeOwned, B: DeserializeOwned>(
        &self,
        first: &Call,
        second: &Call,
    ) -> Result<(A, Result<B, DsmError>), DsmError> {
        let both = Call::sequence(&[first.clone(), second.clone()]);
        let (answer, second) = self.call_two(&both, first, second).await?;
        Ok((answer?, second))
    }

    /// Sends two calls in one request, the second even if the first fails, and parses both replies.
    ///
    /// # Errors
    /// The error of the request; those of the calls are in the result.
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
        // A lost session may be reported inside a compound reply as well. Sending the call by itself renews it.
        if first_answer.as_ref().err().is_some_and(lost) {
            return Ok(self.one_by_one(first, second).await);
        }
        match second.result(results.next()) {
            Err(error) if lost(&error) => Ok((first_answer, self.call(second).await)),
            answer => Ok((first_answer, answer)),
        }
    }

    /// Without a compound request. The second call is sent only if the first succeeds.
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

    /// Sends calls in one request that stops at the first one that fails, and returns the results that DSM gives. It is never
    /// split: for sequences in which an earlier call guards the later ones.
    ///
    /// # Errors
    /// The request itself failed; only [`DsmError::Refused`], [`DsmError::Unreachable`], [`DsmError::Silent`] and
    /// [`DsmError::Login`] prove that no call was carried out.
    pub async fn call_sequence(&self, calls: &[Call]) -> Result<Results, DsmError> {
        let whole = Call::sequence(calls);
        let answer = self.call::<CompoundAnswer>(&whole).await?;
        let results = Results::of(calls, answer);
        let lost = |error: &DsmError| error.code().is_some_and(Code::wants_login);
        // A lost session may be reported inside a compound reply as well. Only reads were carried out then, so the whole request
        // may be sent again, once a read has renewed the session.
        if results.first_refusal().is_some_and(lost) && results.has_only_reads() {
            let read = self.call::<NoData>(&calls[0]).await;
            if let Err(error) = read
                && error.code().is_none_or(Code::wants_login)
            {
                return Err(error);
            }
            return Ok(Results::of(calls, self.call(&whole).await?));
        }
        Ok(results)
    }

    /// Sends a call in a session, with a permit if it counts against the request limits.
    async fn send_with<T: DeserializeOwned>(
        &self,
        call: &Call,
        session: &Session,
        permit: Option<Permit>,
    ) -> Result<T, DsmError> {
        let mut form = call.form();
        trace!(nas = %self.account.nas, ?call, "DSM call");
        // DSM 7.1 requires the cookie, other versions are known to work with `_sid`: send both.
        form.push(("_sid", session.sid().to_owned()));
        let mut request = self.request("entry.cgi").header(COOKIE, session.cookie());
        if let Some(token) = session.token() {
            request = request.header("X-SYNO-TOKEN", token);
        }
        // Boxed: a CSI call awaits several of these large futures.
        let sent = Box::pin(self.send(
            request,
            &form,
            call.api,
            call.method,
            REQUEST_TIMEOUT,
            permit,
        ));
        let answer = sent.await;
        session.note_reply(&answer);
        answer
    }

    async fn send<T: DeserializeOwned>(
        &self,
        request: Builder,
        form: &[(impl AsRef<str>, impl AsRef<str>)],
        api: &'static str,
        method: &'static str,
        deadline: Duration,
        permit: Option<Permit>,
    ) -> Result<T, DsmError> {
        let form = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs(form)
            .finish();
        let unfit =
            |error: http::Error| self.not_answered(Failure::Unreachable(error.into()), api, method);
        let request = request.body(form).map_err(unfit)?;
        let started = Instant::now();
        let span = debug_span!("dsm", nas = %self.account.nas, api, method);
        // In its own task: the NAS is busy, and the permit in use, until there is a reply, even if the caller has given up.
        let exchange = self.clone().exchange(request, deadline, permit);
        let exchange = tokio::spawn(exchange.instrument(span)).await;
        let answer = exchange
            .unwrap_or_else(|broken| Err(Failure::Lost(broken.into())))
            .map_err(|failure| self.not_answered(failure, api, method))
            .and_then(|answer| self.read(&answer, api, method));
        let label = answer
            .as_ref()
            .err()
            .map_or(Cow::Borrowed("ok"), DsmError::label);
        let answered = answer.as_ref().err().is_none_or(DsmError::is_from_dsm);
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

    /// One HTTP exchange, with a timeout, as long as the NAS answers at all.
    async fn exchange(
        self,
        request: http::Request<String>,
        deadline: Duration,
        permit: Option<Permit>,
    ) -> Result<http::Response<bytes::Bytes>, Failure> {
        let exchange = self.while_alive(self.transport.send(request));
        let ended = timeout(deadline, exchange).await;
        drop(permit);
        match ended {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(silence)) => Err(Failure::Lost(silence.into())),
            Err(_) => Err(Failure::Lost(Box::new(TimedOut {
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
                    // Sending it would be a failed login, which Auto Block counts.
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

/// Strips what editors add to a password: a byte-order mark, a line end.
fn bare(text: &str) -> &str {
    text.trim_start_matches('\u{feff}')
        .trim_end_matches(['\r', '\n'])
}

/// The error for an HTTP status that indicates a wrong URL: then nothing was done.
fn misplaced(url: &str, answer: &http::Response<bytes::Bytes>) -> Option<DsmError> {
    let misplaced = |seen| {
        Some(DsmError::Misplaced {
            url: url.to_owned(),
            seen,
        })
    };
    if answer.status().is_redirection() {
        let target = answer.headers().get(LOCATION)?.to_str().ok()?;
        // Without the path: that is a page for browsers.
        let origin = url::Url::parse(url).ok()?.join(target).ok()?.origin();
        return misplaced(format!(
            "sends its callers elsewhere: write url: {} into the configuration",
            origin.ascii_serialization()
        ));
    }
    // ASSUMED: DSM's web server answers with this status to plain HTTP on a TLS port, as any nginx does.
    let plain = url.starts_with("http://") && answer.status() == StatusCode::BAD_REQUEST;
    let host = url.trim_start_matches("http://").trim_end_matches('/');
    plain.then_some(()).and_then(|()| {
        misplaced(format!(
        "answers plain HTTP with status 400, as the port of HTTPS does: write url: https://{host} into the configuration"
        ))
    })
}
