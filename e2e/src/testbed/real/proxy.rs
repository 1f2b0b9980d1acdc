//! An HTTP proxy between a controller and the NAS. It counts calls, kills the controller before or after a chosen one, and breaks
//! the connection if a reply does not come. So the controller dies exactly there, without a watcher; a call that hangs is cut
//! after a second instead of the driver's minute.

use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TRANSFER_ENCODING};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::testbed::CrashTiming;

/// The timeout of a call.
const HANG_TIMEOUT: Duration = Duration::from_secs(1);

/// A running proxy. It stops when dropped.
#[derive(Debug)]
pub(super) struct Proxy {
    /// Base URL for the controller's configuration.
    pub(super) url: String,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    nas: String,
    http: reqwest::Client,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    controller: Option<u32>,
    /// The number of calls until the controller is killed, and when.
    armed: Option<(usize, CrashTiming)>,
    /// The call at which it was killed.
    crashed_at: Option<String>,
}

impl Proxy {
    /// Starts a proxy to the NAS at this URL.
    ///
    /// # Errors
    /// No port can be bound.
    pub(super) async fn start(nas: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let http = reqwest::Client::builder().no_proxy().tls_certs_only([]);
        let shared = Arc::new(Shared {
            nas: nas.to_owned(),
            // No keep-alive: the NAS may restart, which leaves dead connections.
            http: http.pool_max_idle_per_host(0).build()?,
            inner: Mutex::default(),
        });
        let task = tokio::spawn(listen(listener, shared.clone()));
        Ok(Self { url, shared, task })
    }

    /// Sets the process id of the controller to kill; disarms the proxy.
    pub(super) fn set_controller(&self, controller: u32) {
        *self.shared.inner() = Inner {
            controller: Some(controller),
            ..Inner::default()
        };
    }

    pub(super) fn arm(&self, nth: usize, when: CrashTiming) {
        self.shared.inner().armed = Some((nth, when));
    }

    pub(super) fn cancel_kill(&self) {
        self.shared.inner().armed = None;
    }

    /// Disarms the proxy. Returns the call at which the controller was killed, and clears it.
    pub(super) fn disarm(&self) -> Option<String> {
        let mut inner = self.shared.inner();
        inner.armed = None;
        inner.crashed_at.take()
    }

    pub(super) fn crashed_at(&self) -> Option<String> {
        self.shared.inner().crashed_at.clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let shared = shared.clone();
        let forward = service_fn(move |request| {
            let shared = shared.clone();
            async move { shared.forward(request).await }
        });
        // An unanswered call breaks the connection, which is all that this error reports.
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), forward));
    }
}

impl Shared {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// Forwards a call and its reply. An error breaks the connection, as the NAS would.
    async fn forward(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>> {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let name = name(&head.uri, &body);
        let timing = self.count_call();
        if matches!(timing, Some(CrashTiming::Before | CrashTiming::During)) {
            self.kill(name);
            anyhow::bail!("the controller was killed before its call");
        }
        let mut headers = head.headers;
        for own in [HOST, CONTENT_LENGTH, TRANSFER_ENCODING, CONNECTION] {
            headers.remove(own);
        }
        let call = self
            .http
            .request(head.method, format!("{}{}", self.nas, head.uri))
            .headers(headers)
            .body(body);
        let answer = async {
            let mut answer = call.send().await?;
            let (status, mut headers) = (answer.status(), std::mem::take(answer.headers_mut()));
            headers.remove(TRANSFER_ENCODING);
            headers.remove(CONTENT_LENGTH);
            let mut reply = Response::new(Full::new(answer.bytes().await?));
            (*reply.status_mut(), *reply.headers_mut()) = (status, headers);
            anyhow::Ok(reply)
        };
        let answer = tokio::time::timeout(HANG_TIMEOUT, answer).await?;
        if timing == Some(CrashTiming::After) {
            self.kill(name);
            anyhow::bail!("the controller was killed before the reply");
        }
        answer
    }

    /// Counts a call. Returns when to kill the controller, if at this call.
    fn count_call(&self) -> Option<CrashTiming> {
        let mut inner = self.inner();
        let (left, when) = inner.armed?;
        inner.armed = (left > 1).then_some((left - 1, when));
        (left <= 1).then_some(when)
    }

    fn kill(&self, name: String) {
        let mut inner = self.inner();
        inner.crashed_at = Some(name);
        let controller = inner.controller.and_then(|id| i32::try_from(id).ok());
        if let Some(controller) = controller {
            let _ = kill(Pid::from_raw(controller), Signal::SIGKILL);
        }
    }
}

/// API and method of a call.
fn name(uri: &http::Uri, body: &[u8]) -> String {
    let form = format!(
        "{}&{}",
        uri.query().unwrap_or_default(),
        String::from_utf8_lossy(body)
    );
    let field = |name: &str| {
        let mut pairs = form.split('&').filter_map(|pair| pair.split_once('='));
        let found = pairs.find(|(key, _)| *key == name);
        found.map_or_else(String::new, |(_, value)| value.to_owned())
    };
    format!("{}.{}", field("api"), field("method"))
}
