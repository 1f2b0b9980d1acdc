//! A NAS for tests of how many requests it gets and what becomes of those that it does not answer: in paused time.

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
/// What the client has for connecting.
const CONNECTS: Duration = Duration::from_secs(10);

/// Does what it is told to; answers each request at first, after the time that its method takes.
pub(super) struct SlowNas {
    /// How long everything but logins and questions takes.
    pub(super) takes: Mutex<Duration>,
    /// It carries creates out one after the other.
    creating: tokio::sync::Mutex<()>,
    /// Nothing is answered while this is so, as if it were stopped.
    hangs: watch::Sender<bool>,
    /// These are never answered.
    pub(super) mute: Mutex<BTreeSet<&'static str>>,
    /// Nobody is there.
    pub(super) off: AtomicBool,
    /// The methods that were sent; a compound is called `create` if it holds one.
    seen: Mutex<Vec<String>>,
    /// How many are under way, and how many were at most: creates, others, questions.
    lanes: [(AtomicUsize, AtomicUsize); 3],
}

impl fmt::Debug for SlowNas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Played")
    }
}

/// A request under way.
struct UnderWay<'a>(&'a AtomicUsize);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl SlowNas {
    /// The NAS, and a client that knows it.
    pub(super) fn nas() -> (Arc<Self>, Client) {
        let nas = Arc::new(Self {
            takes: Mutex::new(Duration::from_secs(1)),
            creating: tokio::sync::Mutex::default(),
            hangs: watch::Sender::new(false),
            mute: Mutex::default(),
            off: AtomicBool::new(false),
            seen: Mutex::default(),
            lanes: Default::default(),
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

    /// How many creates, other requests, and questions were under way at most.
    pub(super) fn most(&self) -> [usize; 3] {
        [0, 1, 2].map(|lane: usize| self.lanes[lane].1.load(Ordering::Relaxed))
    }

    /// How many creates, other requests, and questions are under way.
    pub(super) fn now(&self) -> [usize; 3] {
        [0, 1, 2].map(|lane: usize| self.lanes[lane].0.load(Ordering::Relaxed))
    }

    fn begin(&self, method: &str) -> UnderWay<'_> {
        let lane = match method {
            "create" => 0,
            "query" => 2,
            _ => 1,
        };
        let (now, most) = &self.lanes[lane];
        let count = now.fetch_add(1, Ordering::Relaxed) + 1;
        most.fetch_max(count, Ordering::Relaxed);
        UnderWay(now)
    }

    async fn answer(&self, method: &str) -> Result<&'static str, Failure> {
        if self.off.load(Ordering::Relaxed) {
            sleep(CONNECTS).await;
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
        // What had been begun when it came to hang is answered afterwards.
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
            let _under_way = self.begin(method);
            let body = self.answer(method).await?;
            Ok(Response::new(body.into()))
        })
    }
}

/// A question that takes a place.
pub(super) async fn ask(client: &Client) -> Result<(), DsmError> {
    let call = Call::new(LUN, 1, "list");
    client.call::<NoData>(&call).await.map(drop)
}

/// A create, in one request with a look at what has come of it.
pub(super) async fn create(client: &Client) -> Result<(), DsmError> {
    let create = Call::new(LUN, 1, "create").with("name", json!("n"));
    let look = Call::new(LUN, 1, "get").with("uuid", json!("n"));
    let both = client.call_each::<NoData, NoData>(&create, &look).await?;
    both.0.map(drop)
}

/// Lets so much paused time pass.
pub(super) async fn later(time: Duration) {
    // sleep: in paused time it takes none.
    sleep(time).await;
}
