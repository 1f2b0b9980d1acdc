//! The wire between the client and its NAS: one request out, one answer back. Here it is HTTP; what stands in its place
//! elsewhere (a simulated NAS in the same process, whose time is simulated too) is none of the client's business.

use std::fmt;
use std::time::Duration;

use futures::future::BoxFuture;
use http::{Request, Response};

const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// Below the 20 s after which DSM closes an idle connection.
const KEEP_IDLE: Duration = Duration::from_secs(15);

/// Why there is no answer, in the wire's own words.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// How a request failed.
#[derive(Debug)]
pub enum Failure {
    /// No connection: nothing was sent.
    Unreachable(Cause),
    /// Sent, as far as one can tell, and no whole answer came.
    Lost(Cause),
}

/// Carries requests to one NAS. There is no deadline here: the client has one.
pub trait Wire: fmt::Debug + Send + Sync {
    /// Sends a request with an absolute URL and a form as its body, and reads the whole answer.
    fn send(
        &self,
        request: Request<String>,
    ) -> BoxFuture<'_, Result<Response<bytes::Bytes>, Failure>>;
}

/// HTTP, with or without TLS.
#[derive(Debug)]
pub struct Http(reqwest::Client);

impl Http {
    /// For a NAS at `url`. `ca` is trusted beside the system's authorities.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(url: &str, ca: Option<reqwest::Certificate>) -> reqwest::Result<Self> {
        // The first client of the process chooses the cryptography; that it was chosen before is no error.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut http = reqwest::Client::builder()
            // A NAS stands in the local network; a proxy of the environment is for other traffic.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_DEADLINE)
            .pool_idle_timeout(KEEP_IDLE);
        if url.starts_with("http://") {
            // The system's authorities are hundreds of files, and nobody would ask them.
            http = http.tls_certs_only([]);
        } else if let Some(ca) = ca {
            http = http.tls_certs_merge([ca]);
        }
        http.build().map(Self)
    }
}

impl Wire for Http {
    fn send(
        &self,
        request: Request<String>,
    ) -> BoxFuture<'_, Result<Response<bytes::Bytes>, Failure>> {
        Box::pin(async {
            let request = reqwest::Request::try_from(request).map_err(not_sent)?;
            let answer = self.0.execute(request).await.map_err(not_sent)?;
            let status = answer.status();
            let body = answer.bytes().await.map_err(lost)?;
            let mut answer = Response::new(body);
            *answer.status_mut() = status;
            Ok(answer)
        })
    }
}

fn not_sent(error: reqwest::Error) -> Failure {
    if error.is_connect() || error.is_builder() {
        Failure::Unreachable(error.without_url().into())
    } else {
        lost(error)
    }
}

fn lost(error: reqwest::Error) -> Failure {
    Failure::Lost(error.without_url().into())
}
