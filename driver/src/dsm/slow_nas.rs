//! A fake NAS for tests of request limits and timeouts, with paused time. It can be slow, hang, or be off.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, pending};
use http::{Request, Response};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::sleep;

use super::call::Call;
use super::client::credential::Refusals;
use super::client::{Account, Client, Password};
use super::reply::{DsmError, NoData};
use super::transport::{Failure, Transport};

const LUN: &str = "SYNO.Core.ISCSI.LUN";
/// The client's connect timeout.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// By default it answers each request after a delay.
pub(super) struct SlowNas {
    /// The delay of everything but logins, logouts and probes.
    pub(super) takes: Mutex<Duration>,
    /// Serializes creates.
    creating: tokio::sync::Mutex<()>,
    /// No request is answered while this is true.
    hangs: watch::Sender<bool>,
    /// Methods that are never answered.
    pub(super) mute: Mutex<BTreeSet<&'static str>>,
    /// Connecting times out.
    pub(super) off: AtomicBool,
    /// The methods of all requests; every compound counts as `create`.
    seen: Mutex<Vec<String>>,
    /// Requests in progress now and at most: creates, others, probes.
    in_progress: [(AtomicUsize, AtomicUsize); 3],
}

impl fmt::Debug for SlowNas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SlowNas")
    }
}

/// A request in progress.
struct InProgress<'a>(&'a AtomicUsize);

impl Drop for InProgress<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl SlowNas {
    /// The NAS, and a client for it.
    pub(super) fn nas() -> (Arc<Self>, Client) {
        let nas = Arc::new(Self {
            takes: Mutex::new(Duration::from_secs(1)),
            creating: tokio::sync::Mutex::default(),
            hangs: watch::Sender::new(false),
            mute: Mutex::default(),
            off: AtomicBool::new(false),
            seen: Mutex::default(),
            in_progress: Default::default(),
        });
        let account = Account {
            nas: "nas1".parse().unwrap(),
            url: "http://nas.example:5000".to_owned(),
            username: "csi".to_owned(),
            password: Password::Given("right".into()),
        };
        (
            nas.clone(),
            Client::over(nas, account, Arc::new(Refusals::default())),
        )
    }

    pub(super) fn hang(&self, hangs: bool) {
        self.hangs.send_replace(hangs);
    }

    pub(super) fn count(&self, method: &str) -> usize {
        let seen = self.seen.lock().unwrap();
        seen.iter().filter(|seen| *seen == method).count()
    }

    /// The maximum number of concurrent creates, other requests, and probes.
    pub(super) fn most(&self) -> [usize; 3] {
        [0, 1, 2].map(|class: usize| self.in_progress[class].1.load(Ordering::Relaxed))
    }

    /// How many creates, other requests, and probes are in progress.
    pub(super) fn now(&self) -> [usize; 3] {
        [0, 1, 2].map(|class: usize| self.in_progress[class].0.load(Ordering::Relaxed))
    }

    fn begin(&self, method: &str) -> InProgress<'_> {
        let class = match method {
            "create" => 0,
            "query" => 2,
            _ => 1,
        };
        let (now, most) = &self.in_progress[class];
        let count = now.fetch_add(1, Ordering::Relaxed) + 1;
        most.fetch_max(count, Ordering::Relaxed);
        InProgress(now)
    }

    async fn answer(&self, method: &str) -> Result<&'static str, Failure> {
        if self.off.load(Ordering::Relaxed) {
            sleep(CONNECT_TIMEOUT).await;
            return Err(Failure::Unreachable("timed out".into()));
        }
        if self.mute.lock().unwrap().contains(method) {
            pending::<()>().await;
        }
        let _ = self.hangs.subscribe().wait_for(|hangs| !hangs).await;
        let takes = *self.takes.lock().unwrap();
        match method {
            "login" => return Ok(r#"{"success":true,"data":{"sid":"s","synotoken":"t"}}"#),
            "logout" | "query" => {}
            "create" => {
                let _one = self.creating.lock().await;
                sleep(takes).await;
                return Ok(
                    r#"{"success":true,"data":{"result":[{"success":true},{"success":true}]}}"#,
                );
            }
            _ => sleep(takes).await,
        }
        // Requests that were in progress when the NAS started to hang are answered after it.
        let _ = self.hangs.subscribe().wait_for(|hangs| !hangs).await;
        Ok(r#"{"success":true}"#)
    }
}

impl Transport for SlowNas {
    fn send(&self, request: Request<String>) -> BoxFuture<'_, Result<Response<Bytes>, Failure>> {
        Box::pin(async move {
            let mut pairs = url::form_urlencoded::parse(request.body().as_bytes());
            let method = pairs.find(|(key, _)| key == "method").unwrap().1;
            let method = if method == "request" {
                "create"
            } else {
                &method
            };
            self.seen.lock().unwrap().push(method.to_owned());
            let _in_progress = self.begin(method);
            let body = self.answer(method).await?;
            Ok(Response::new(body.into()))
        })
    }
}

/// A read, which needs a permit.
pub(super) async fn read(client: &Client) -> Result<(), DsmError> {
    let call = Call::new(LUN, 1, "list");
    client.call::<NoData>(&call).await.map(drop)
}

/// A create, in one request with a look-up of its result.
pub(super) async fn create(client: &Client) -> Result<(), DsmError> {
    let create = Call::new(LUN, 1, "create").with("name", json!("n"));
    let get = Call::new(LUN, 1, "get").with("uuid", json!("n"));
    let both = client.call_each::<NoData, NoData>(&create, &get).await?;
    both.0.map(drop)
}

/// Advances the paused time, and runs other tasks.
pub(super) async fn wait(time: Duration) {
    // sleep: returns at once in paused time.
    sleep(time).await;
}
