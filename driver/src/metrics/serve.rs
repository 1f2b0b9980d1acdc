//! `GET /metrics` over HTTP: for a scraper in the cluster, never for the CO. It holds no secret and takes no orders.

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

/// Where the metrics are.
const PATH: &str = "/metrics";
const FORMAT: HeaderValue = HeaderValue::from_static(prometheus_text::CONTENT_TYPE);
/// Connections at once; for one more, the oldest is closed.
const MAX_CONNECTIONS: usize = 16;
/// How long a connection may take, from its first byte to its last.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to leave the system alone when it gives no connection.
const ACCEPT_BACKOFF: Duration = Duration::from_secs(1);

/// A socket that waits for scrapers.
#[derive(Debug)]
pub struct Endpoint(TcpListener);

impl Endpoint {
    /// Opens the socket.
    ///
    /// # Errors
    /// The address is not this machine's, or is taken.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(Self(listener))
    }

    /// Where it is, with the port that the system chose for port 0.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Answers until it is dropped.
    ///
    /// # Errors
    /// The runtime cannot watch the socket.
    pub async fn serve(self, metrics: &'static Metrics) -> io::Result<Infallible> {
        let listener = tokio::net::TcpListener::from_std(self.0)?;
        let mut open = JoinSet::new();
        let mut oldest_first = VecDeque::new();
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    while open.try_join_next().is_some() {}
                    oldest_first.retain(|one: &AbortHandle| !one.is_finished());
                    // Those who are slow must not keep the next one waiting, who is not.
                    if oldest_first.len() >= MAX_CONNECTIONS
                        && let Some(slow) = oldest_first.pop_front()
                    {
                        slow.abort();
                    }
                    oldest_first.push_back(open.spawn(async move {
                        let answer =
                            |request| async move { Ok::<_, Infallible>(answer(&request, metrics)) };
                        let connection = http1::Builder::new()
                            .keep_alive(false)
                            .serve_connection(TokioIo::new(stream), service_fn(answer));
                        let outcome = timeout(REQUEST_TIMEOUT, connection).await;
                        debug!(%peer, ?outcome, "metrics asked for");
                    }));
                }
                Err(error) => {
                    warn!(%error, "no connection for metrics");
                    // sleep: between two tries of a system that has no room.
                    sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
    }
}

fn answer(request: &Request<Incoming>, metrics: &Metrics) -> Response<Full<Bytes>> {
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
            format!("nothing here but {PATH}\n"),
        ),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(name, value);
    response
}
