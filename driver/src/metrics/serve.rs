//! Serves `GET /metrics` over HTTP to Prometheus. The endpoint exposes no secrets and is read-only.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use prometheus_client::encoding::prometheus_text;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::Metrics;

const PATH: &str = "/metrics";
const FORMAT: HeaderValue = HeaderValue::from_static(prometheus_text::CONTENT_TYPE);
/// Concurrent connections; when the limit is reached, the oldest is closed.
const MAX_CONNECTIONS: usize = 16;
/// How long a connection may take, from its first byte to its last.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after `accept` failed, for instance because there are too many open files.
const ACCEPT_BACKOFF: Duration = Duration::from_secs(1);

/// The listening socket of the metrics endpoint.
#[derive(Debug)]
pub struct Endpoint(TcpListener);

impl Endpoint {
    /// Binds the socket.
    ///
    /// # Errors
    /// The address is not local, or is in use.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Self(listener))
    }

    /// The bound address, with the actual port if port 0 was requested.
    ///
    /// # Errors
    /// `getsockname` failed.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Serves until it is dropped.
    ///
    /// # Errors
    /// The socket cannot be registered with the runtime.
    pub async fn serve(self, metrics: &'static Metrics) -> io::Result<Infallible> {
        let listener = tokio::net::TcpListener::from_std(self.0)?;
        let mut open = JoinSet::new();
        let mut oldest_first = VecDeque::new();
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    while open.try_join_next().is_some() {}
                    oldest_first.retain(|connection: &AbortHandle| !connection.is_finished());
                    // Slow clients must not block others.
                    if oldest_first.len() >= MAX_CONNECTIONS
                        && let Some(slow) = oldest_first.pop_front()
                    {
                        slow.abort();
                    }
                    oldest_first.push_back(open.spawn(async move {
                        let respond = |request| async move {
                            Ok::<_, Infallible>(respond(&request, metrics))
                        };
                        let connection = http1::Builder::new()
                            .keep_alive(false)
                            .serve_connection(TokioIo::new(stream), service_fn(respond));
                        let outcome = timeout(REQUEST_TIMEOUT, connection).await;
                        debug!(%peer, ?outcome, "metrics scraped");
                    }));
                }
                Err(error) => {
                    warn!(%error, "cannot accept a connection to the metrics endpoint");
                    // sleep: between two attempts while the system is out of resources.
                    sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
    }
}

fn respond(request: &Request<Incoming>, metrics: &Metrics) -> Response<Full<Bytes>> {
    let (status, name, value, body) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, PATH) => {
            (StatusCode::OK, CONTENT_TYPE, FORMAT, metrics.text())
        }
        (_, PATH) => (
            StatusCode::METHOD_NOT_ALLOWED,
            ALLOW,
            HeaderValue::from_static("GET, HEAD"),
            String::new(),
        ),
        (_, _) => (
            StatusCode::NOT_FOUND,
            CONTENT_TYPE,
            FORMAT,
            format!("not found; metrics are at {PATH}\n"),
        ),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(name, value);
    response
}
