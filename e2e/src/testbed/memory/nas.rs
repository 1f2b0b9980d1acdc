//! The NAS of an in-memory test bed, and the transport to it.

use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes as Buffer;
use driver::dsm::transport::{Failure, Transport};
use driver::host::fake::{Export, Fake};
use driver::volume::Bytes;
use dsm_sim::{DsmSim, Embedded, Latency, Settings};
use futures::future::BoxFuture;
use http::{Method, Request, Response};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::Instant;

use super::crashable::CrashableProcess;
use crate::harness::nas::PASSWORD;
use crate::testbed::SHRINK_REFUSED;

/// The LUN that is exported in place of swapped LUNs.
pub(super) const FOREIGN_LUN: &str = "5ca1ab1e-0000-4000-8000-000000000000";
/// 2026-01-01, in milliseconds since 1970.
const START_TIME_MS: u64 = 1_767_225_600_000;
/// The second holds no LUN of the driver's: no LUN type in use fits its file system.
const VOLUMES: [&str; 2] = ["/volume1=btrfs:2TiB", "/volume2=ext4:2TiB"];
/// Longer than any call takes in the NAS, except calls that hang: these are cancelled when their client disconnects.
const MAX_CALL_TIME: Duration = Duration::from_secs(30);
/// How long a hanging call may go on after its client has disconnected.
const SETTLE_TIME: Duration = Duration::from_millis(1);

/// A cached state of dsm-sim.
struct CachedState {
    state: Arc<Value>,
    /// Nothing was in progress: it is valid until the next call.
    stable: bool,
}

/// A NAS that can be restarted, and the fake hosts that its targets are exported to.
pub(super) struct Nas {
    folder: TempDir,
    seed: u64,
    seeds_drawn: AtomicU64,
    running: Mutex<Option<Arc<Embedded>>>,
    hosts: Vec<Fake>,
    started: Instant,
    /// How far its clock has been advanced.
    clock_offset: Mutex<Duration>,
    /// The journal up to its last restart.
    journal: Mutex<Vec<String>>,
    /// Writes in progress; other clients see their effect before they are answered.
    writes_in_progress: AtomicUsize,
    /// The state may change until then: a call goes on after its client has disconnected.
    unstable_until: Mutex<Instant>,
    /// The cached state.
    state: Mutex<Option<CachedState>>,
    /// The uuids of LUNs in whose place another one is exported.
    swapped: Mutex<BTreeSet<String>>,
    latency: Latency,
    /// The account's password, which dsm-sim gets at each start.
    password: Mutex<String>,
}

impl fmt::Debug for Nas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nas").finish_non_exhaustive()
    }
}

impl Nas {
    pub(super) fn start(seed: u64, hosts: Vec<Fake>) -> io::Result<Self> {
        // In memory too, if possible: nothing here has to survive.
        let folder = TempDir::with_prefix_in("csi-", super::scratch())?;
        let nas = Self {
            folder,
            seed,
            seeds_drawn: AtomicU64::default(),
            running: Mutex::default(),
            hosts,
            started: Instant::now(),
            clock_offset: Mutex::default(),
            journal: Mutex::default(),
            writes_in_progress: AtomicUsize::new(0),
            unstable_until: Mutex::new(Instant::now()),
            state: Mutex::default(),
            swapped: Mutex::default(),
            password: Mutex::new(PASSWORD.to_owned()),
            // For half of the seeds the NAS answers at once, so that the client is the slow part.
            latency: if seed.is_multiple_of(2) {
                Latency::Instant
            } else {
                Latency::Ds918
            },
        };
        nas.switch_on()?;
        Ok(nas)
    }

    fn switch_on(&self) -> io::Result<()> {
        let embedded = DsmSim::builder()
            .state_dir(self.folder.path())
            .seed(self.seed)
            .clock(START_TIME_MS)
            .account("admin", self.password.lock().clone())
            .latency(self.latency)
            .volumes(VOLUMES.map(|volume| volume.parse().expect("a volume")))
            .settings(Settings {
                thin_growth_needs_space: true,
                shrink_code: SHRINK_REFUSED,
                // It is unknown whether and where a NAS lags after a delete.
                deleted_luns_stay_listed: !self.seed.is_multiple_of(3),
                deleted_luns_answer_get: self.seed % 4 < 2,
                ..Settings::default()
            })
            .embed()
            .map_err(io::Error::other)?;
        let clock_offset = *self.clock_offset.lock();
        embedded.advance_clock(clock_offset);
        *self.running.lock() = Some(Arc::new(embedded));
        Ok(())
    }

    pub(super) fn restart(&self) -> io::Result<()> {
        let lines = self.calls();
        self.journal.lock().extend(lines);
        *self.running.lock() = None;
        *self.state.lock() = None;
        self.switch_on()
    }

    pub(super) fn running(&self) -> Option<Arc<Embedded>> {
        let nas = self.running.lock().clone()?;
        let elapsed = self.started.elapsed();
        let mut clock_offset = self.clock_offset.lock();
        nas.advance_clock(elapsed.saturating_sub(*clock_offset));
        *clock_offset = elapsed;
        Some(nas)
    }

    /// Exports another LUN in place of this one, or undoes that.
    pub(super) fn swap_lun(&self, uuid: &str, on: bool) {
        *self.state.lock() = None;
        let mut swapped = self.swapped.lock();
        if on {
            swapped.insert(uuid.to_owned());
        } else {
            swapped.remove(uuid);
        }
    }

    /// A random number for a seed; each call returns another one.
    pub(super) fn next_seed(&self) -> u64 {
        let seeds_drawn = self.seeds_drawn.fetch_add(1, Ordering::Relaxed);
        self.seed.wrapping_mul(1_000_003).wrapping_add(seeds_drawn)
    }

    /// The temporary folder of the test bed.
    pub(super) fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    pub(super) async fn control(
        &self,
        method: Method,
        path: &str,
        body: &Value,
    ) -> io::Result<Value> {
        if method != Method::GET {
            *self.state.lock() = None;
        }
        if let ("/accounts", Some(password)) = (path, body["password"].as_str()) {
            password.clone_into(&mut self.password.lock());
        }
        self.require_running()?.control(method, path, body).await
    }

    /// dsm-sim's state; cached while it cannot have changed.
    pub(super) fn state(&self) -> io::Result<Arc<Value>> {
        self.export()?;
        self.state
            .lock()
            .as_ref()
            .map(|cached| Arc::clone(&cached.state))
            .ok_or_else(|| io::Error::other("the NAS has no state"))
    }

    /// Shows all hosts what is exported now.
    pub(super) fn export(&self) -> io::Result<()> {
        let quiet = self.writes_in_progress.load(Ordering::Relaxed) == 0
            && Instant::now() > *self.unstable_until.lock();
        if quiet
            && self
                .state
                .lock()
                .as_ref()
                .is_some_and(|cached| cached.stable)
        {
            return Ok(());
        }
        let state = Arc::new(self.require_running()?.state()?);
        *self.state.lock() = Some(CachedState {
            state: Arc::clone(&state),
            stable: quiet,
        });
        let mut exports = exports(&state);
        let swapped = self.swapped.lock();
        for export in &mut exports {
            if swapped.contains(&export.serial) {
                FOREIGN_LUN.clone_into(&mut export.serial);
                export.size = Bytes::gib(64);
            }
        }
        drop(swapped);
        for host in &self.hosts {
            host.set_exports(exports.iter().cloned());
        }
        if let Some(host) = self.hosts.first() {
            let luns = rows(&state["luns"]);
            host.keep_content(|serial| {
                serial == FOREIGN_LUN || luns.iter().any(|lun| lun["uuid"] == serial)
            });
        }
        Ok(())
    }

    fn require_running(&self) -> io::Result<Arc<Embedded>> {
        self.running()
            .ok_or_else(|| io::Error::other("the NAS is not running"))
    }

    /// All calls since its first start, as text that is the same in each run.
    pub(super) fn journal(&self) -> Vec<String> {
        let mut lines = self.journal.lock().clone();
        lines.extend(self.calls());
        lines
    }

    fn calls(&self) -> Vec<String> {
        let journal = self.running.lock().as_ref().map(|nas| nas.journal());
        journal
            .unwrap_or_default()
            .into_iter()
            .map(|entry| {
                format!(
                    "{} {}.{} {} -> {:?} {}",
                    entry.at,
                    entry.api,
                    entry.method,
                    json!(entry.params),
                    entry.code,
                    entry.fault.unwrap_or_default()
                )
            })
            .collect()
    }

    async fn answer(&self, request: Request<String>) -> Result<Response<Buffer>, Failure> {
        let Some(nas) = self.running() else {
            return Err(Failure::Unreachable("connection refused".into()));
        };
        let is_write = !is_read(request.body());
        let is_delete = request.body().contains("delete");
        let mut write = is_write.then(|| WriteInProgress::start(self));
        let answer = nas.answer(request.map(Body::from)).await;
        if let Some(write) = &mut write {
            write.outlives_reply = is_delete;
        }
        drop(write);
        if is_write {
            *self.state.lock() = None;
            self.export().map_err(|error| Failure::Lost(error.into()))?;
        }
        match answer {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(Failure::Lost("connection closed before an answer".into())),
            Err(error) => Err(Failure::Lost(error.into())),
        }
    }
}

/// A write in progress. It goes on after its client has disconnected, and a deletion even after its reply.
struct WriteInProgress<'a> {
    nas: &'a Nas,
    outlives_reply: bool,
}

impl<'a> WriteInProgress<'a> {
    fn start(nas: &'a Nas) -> Self {
        nas.writes_in_progress.fetch_add(1, Ordering::Relaxed);
        Self {
            nas,
            outlives_reply: true,
        }
    }
}

impl Drop for WriteInProgress<'_> {
    fn drop(&mut self) {
        self.nas.writes_in_progress.fetch_sub(1, Ordering::Relaxed);
        if self.outlives_reply {
            *self.nas.unstable_until.lock() = Instant::now() + MAX_CALL_TIME;
        }
    }
}

/// The rows of a list; empty if there is no list.
pub(super) fn rows(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The exports of a NAS, from its state.
fn exports(state: &Value) -> Vec<Export> {
    let sizes: std::collections::BTreeMap<&str, u64> = rows(&state["luns"])
        .iter()
        .filter_map(|lun| Some((lun["uuid"].as_str()?, lun["size"].as_u64()?)))
        .collect();
    let export = |(target, lingering): (&Value, bool)| {
        let mapped = rows(&target["mapped_luns"]).first()?;
        let uuid = mapped["lun_uuid"].as_str()?;
        Some(Export {
            iqn: target["iqn"].as_str()?.to_owned(),
            size: Bytes(*sizes.get(uuid)?),
            lun: u16::try_from(mapped["mapping_index"].as_u64()?).ok()?,
            serial: uuid.to_owned(),
            lingering,
        })
    };
    let (targets, deleted) = (rows(&state["targets"]), rows(&state["lingering_targets"]));
    let deleted = deleted.iter().map(|target| (target, true));
    let present = targets.iter().map(|target| (target, false));
    deleted.chain(present).filter_map(export).collect()
}

/// The value of a form field, without decoding: enough for names of APIs and methods.
fn field<'a>(form: &'a str, name: &str) -> &'a str {
    let pair = |pair: &&'a str| pair.split_once('=').is_some_and(|(key, _)| key == name);
    form.split('&')
        .find(pair)
        .and_then(|pair| Some(pair.split_once('=')?.1))
        .unwrap_or_default()
}

fn is_read(form: &str) -> bool {
    let in_compound = |method: &str| form.contains(method);
    match field(form, "method") {
        "get" | "list" | "query" | "login" | "logout" => true,
        "request" => !["create", "set", "delete", "map"]
            .into_iter()
            .any(in_compound),
        _ => false,
    }
}

/// The transport of one process to the NAS.
#[derive(Debug)]
pub(super) struct NasTransport {
    pub(super) nas: Arc<Nas>,
    pub(super) crashable: Arc<CrashableProcess>,
}

impl Transport for NasTransport {
    fn send(&self, request: Request<String>) -> BoxFuture<'_, Result<Response<Buffer>, Failure>> {
        Box::pin(async move {
            let form = request.body();
            let name = format!("{}.{}", field(form, "api"), field(form, "method"));
            self.crashable
                .effect(name, self.nas.answer(request), || {})
                .await
        })
    }
}

/// Lets calls without a client complete.
pub(super) async fn settle() {
    tokio::time::sleep(SETTLE_TIME).await;
}
