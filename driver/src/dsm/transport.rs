//! The wire between the client and its NAS: one request out, one answer back. Here it is HTTP; what stands in its place
//! elsewhere (a simulated NAS in the same process, whose time is simulated too) is none of the client's business.

use std::fmt;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use http::header::LOCATION;
use http::{Request, Response};

use super::trust::{self, Complaint, Trust};

const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// Below the 20 s after which DSM closes an idle connection.
const KEEP_IDLE: Duration = Duration::from_secs(15);
/// Idle connections that are kept: the next request of many finds one, and together with those in use they stay within the bound of
/// `client/limits.rs`.
pub(super) const IDLE_CONNECTIONS: usize = 7;
/// More than any NAS has to say: a LUN takes 2 KiB of a list, and the largest models have some hundreds.
const LARGEST: usize = 16 << 20;

/// Why there is no answer, in the wire's own words.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// How a request failed.
#[derive(Debug)]
pub enum Failure {
    /// No connection: nothing was sent.
    Unreachable(Cause),
    /// No connection, for a reason that says what to type: nothing was sent.
    Refused(Complaint),
    /// Sent, as far as one can tell, and no whole answer came.
    Lost(Cause),
    /// An answer of more than so many bytes, the rest of which was not read.
    TooLarge(usize),
}

/// Carries requests to one NAS. There is no deadline here: the client has one.
pub trait Transport: fmt::Debug + Send + Sync {
    /// Sends a request with an absolute URL and a form as its body, and reads the whole answer: status, body, and where else to go.
    fn send(&self, request: Request<String>) -> BoxFuture<'_, Result<Response<Bytes>, Failure>>;
}

/// HTTP, with or without TLS.
#[derive(Debug)]
pub struct Http(reqwest::Client);

impl Http {
    /// For a NAS at `url`, which is trusted on these terms.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(url: &str, trust: Trust) -> Result<Self, Cause> {
        // The first client of the process chooses the cryptography; that it was chosen before is no error.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut http = reqwest::Client::builder()
            // A NAS stands in the local network; a proxy of the environment is for other traffic.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_DEADLINE)
            .pool_idle_timeout(KEEP_IDLE)
            .pool_max_idle_per_host(IDLE_CONNECTIONS);
        if url.starts_with("http://") {
            // The system's authorities are hundreds of files, and nobody would ask them.
            http = http.tls_certs_only([]);
        } else {
            let nobody = |error| {
                format!(
                    "there is nobody to trust: give ca_file, or tls_pins (driver/docs/tls.md): {error}"
                )
            };
            http = http.tls_backend_preconfigured(trust.client().map_err(nobody)?);
        }
        Ok(Self(http.build()?))
    }
}

impl Transport for Http {
    fn send(&self, request: Request<String>) -> BoxFuture<'_, Result<Response<Bytes>, Failure>> {
        Box::pin(async {
            let request = reqwest::Request::try_from(request).map_err(not_sent)?;
            let mut answer = self.0.execute(request).await.map_err(not_sent)?;
            let mut body = BytesMut::new();
            while let Some(chunk) = answer.chunk().await.map_err(lost)? {
                if body.len() + chunk.len() > LARGEST {
                    return Err(Failure::TooLarge(LARGEST));
                }
                body.extend_from_slice(&chunk);
            }
            let mut whole = Response::new(body.freeze());
            *whole.status_mut() = answer.status();
            if let Some(place) = answer.headers_mut().remove(LOCATION) {
                whole.headers_mut().insert(LOCATION, place);
            }
            Ok(whole)
        })
    }
}

fn not_sent(error: reqwest::Error) -> Failure {
    if let Some(complaint) = trust::complaint(&error) {
        Failure::Refused(complaint)
    } else if error.is_connect() || error.is_builder() {
        Failure::Unreachable(error.without_url().into())
    } else {
        lost(error)
    }
}

fn lost(error: reqwest::Error) -> Failure {
    Failure::Lost(error.without_url().into())
}
