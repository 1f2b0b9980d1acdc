//! The transport between the client and its NAS: one request, one reply. Here it is HTTP; tests use another one (an in-process
//! simulated NAS with simulated time).

use std::fmt;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use http::header::LOCATION;
use http::{Request, Response};

use super::trust::{self, Complaint, Trust};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Below the 20 s after which DSM closes an idle connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// How many idle connections to keep: the next burst of requests reuses them, and the total stays within the limit in
/// `client/limits.rs`.
pub(super) const MAX_IDLE_CONNECTIONS: usize = 7;
/// The largest reply in bytes, more than any NAS sends: a LUN takes 2 KiB of a list, and the largest models have some hundreds.
const MAX_REPLY: usize = 16 << 20;

/// Why there is no reply: the error of the HTTP library.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// How a request failed.
#[derive(Debug)]
pub enum Failure {
    /// No connection: nothing was sent.
    Unreachable(Cause),
    /// TLS failed for a reason with a known remedy: nothing was sent.
    Refused(Complaint),
    /// The request may have been sent, and there was no complete reply.
    Lost(Cause),
    /// The reply exceeds this limit in bytes, and was not read to its end.
    TooLarge(usize),
}

/// Sends requests to one NAS. Without a timeout: the client has one.
pub trait Transport: fmt::Debug + Send + Sync {
    /// Sends a request with an absolute URL and a form as its body, and reads the complete reply: status, body, and `Location`
    /// header.
    fn send(&self, request: Request<String>) -> BoxFuture<'_, Result<Response<Bytes>, Failure>>;
}

/// HTTP, with or without TLS.
#[derive(Debug)]
pub struct Http(reqwest::Client);

impl Http {
    /// For a NAS at `url`. `trust`: which TLS certificates to accept.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(url: &str, trust: Trust) -> Result<Self, Cause> {
        // The first client installs the crypto provider of the process; later ones fail, which is harmless.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut http = reqwest::Client::builder()
            // The NAS is in the local network; a proxy in the environment is for other traffic.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(MAX_IDLE_CONNECTIONS);
        if url.starts_with("http://") {
            // Loading the system's CA certificates takes hundreds of files, and plain HTTP does not use them.
            http = http.tls_certs_only([]);
        } else {
            let no_roots = |error| {
                format!(
                    "no trusted CA certificates: give ca_file, or tls_pins (driver/docs/tls.md): {error}"
                )
            };
            http = http.tls_backend_preconfigured(trust.client().map_err(no_roots)?);
        }
        Ok(Self(http.build()?))
    }
}

impl Transport for Http {
    fn send(&self, request: Request<String>) -> BoxFuture<'_, Result<Response<Bytes>, Failure>> {
        Box::pin(async {
            let request = reqwest::Request::try_from(request).map_err(not_sent)?;
            let mut reply = self.0.execute(request).await.map_err(not_sent)?;
            let mut body = BytesMut::new();
            while let Some(chunk) = reply.chunk().await.map_err(lost)? {
                if body.len() + chunk.len() > MAX_REPLY {
                    return Err(Failure::TooLarge(MAX_REPLY));
                }
                body.extend_from_slice(&chunk);
            }
            let mut response = Response::new(body.freeze());
            *response.status_mut() = reply.status();
            if let Some(location) = reply.headers_mut().remove(LOCATION) {
                response.headers_mut().insert(LOCATION, location);
            }
            Ok(response)
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
