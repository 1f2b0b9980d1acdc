//! A fake Kubernetes: it makes the calls of provisioner, attacher, resizer and kubelets in their order, with their
//! retries, to the shipped driver on this machine. It has two nodes; pods are processes.
//!
//! ```text
//! store: desired and known state ─▶ decide: calls that are due ─▶ act: make one, record the result ─▶ store
//! ```

mod act;
mod backoff;
mod decide;
mod parts;
mod store;

use parking_lot::{Mutex, MutexGuard};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use e2e::harness::janitor::Janitor;
use e2e::harness::plugin::Csi as _;
use e2e::harness::process::{self, Process};
use e2e::harness::until::until_within;
use proto::csi;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::co::{
    CLEAR_TIMEOUT, Claim, ClaimSeen, Class, Co, Half, Pod, PodSeen, Reclaim, VolumeSeen,
};
use backoff::Backoff;
use decide::Action;
use parts::Parts;
use store::{ClaimState, PodState, Store, Volume};

const NODES: [&str; 2] = ["worker-1", "worker-2"];
/// The script of a pod without a workload.
const IDLE: &str = "exec sleep 2147483647";
/// How often the CO re-evaluates the state without an event.
const SYNC_INTERVAL: Duration = Duration::from_millis(50);

/// A CO on this machine.
pub(crate) struct FakeKubernetes {
    shared: Arc<Shared>,
    sync_task: JoinHandle<()>,
    // Dropped last: it cleans up what is left.
    _janitor: Janitor,
}

/// State that is shared by its tasks.
struct Shared {
    store: Mutex<Store>,
    calls: Mutex<Calls>,
    pods: Mutex<HashMap<String, Process>>,
    parts: Parts,
    /// The driver's node id by node name.
    node_ids: HashMap<String, String>,
    changed: Notify,
}

/// Calls in progress, calls that wait for a retry, and completed calls.
#[derive(Default)]
struct Calls {
    busy: HashSet<Action>,
    waiting: HashMap<Action, Backoff>,
    /// Duration, action, and result.
    made: Vec<(Duration, Action, String)>,
}

impl FakeKubernetes {
    /// Starts NAS, driver and CO. Needs root.
    ///
    /// # Errors
    /// Something does not start.
    pub(crate) async fn start() -> Result<Self> {
        // A short path: that of a unix socket has at most 107 bytes.
        let folder = TempDir::with_prefix("co-")?.keep();
        let janitor = Janitor::start(&folder)?;
        let parts = Parts::start(&folder, &NODES).await?;
        let mut node_ids = HashMap::new();
        for node in NODES {
            let clients = parts.clients(Some(node)).await;
            let mut plugin = clients.node();
            let info = plugin.node_get_info(csi::NodeGetInfoRequest {}).await?;
            node_ids.insert(node.to_owned(), info.into_inner().node_id);
        }
        let store = Store {
            nodes: NODES.map(str::to_owned).to_vec(),
            ..Store::default()
        };
        let shared = Arc::new(Shared {
            store: Mutex::new(store),
            calls: Mutex::default(),
            pods: Mutex::default(),
            parts,
            node_ids,
            changed: Notify::new(),
        });
        let sync_task = tokio::spawn(Arc::clone(&shared).sync_loop());
        Ok(Self {
            shared,
            sync_task,
            _janitor: janitor,
        })
    }

    /// Changes the desired state.
    fn update<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        let answer = change(&mut self.shared.store());
        self.shared.changed.notify_one();
        answer
    }
}

impl Drop for FakeKubernetes {
    fn drop(&mut self) {
        self.sync_task.abort();
        self.shared.pods.lock().clear();
    }
}

/// The kubelet's folder for a pod.
fn pod_folder(home: &Path, pod: &str) -> PathBuf {
    home.join("pods").join(pod)
}

impl Shared {
    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock()
    }

    fn with_volume<T>(&self, name: &str, change: impl FnOnce(&mut Volume) -> T) -> Option<T> {
        self.store().volumes.get_mut(name).map(change)
    }

    async fn sync_loop(self: Arc<Self>) {
        loop {
            self.sync_pods();
            let due = {
                let mut store = self.store();
                store.reconcile();
                decide::next_actions(&store)
            };
            for action in self.begin(due) {
                let shared = Arc::clone(&self);
                tokio::spawn(async move { shared.run_action(action).await });
            }
            // Also without an event: backoffs end, and pods exit.
            let _ = tokio::time::timeout(SYNC_INTERVAL, self.changed.notified()).await;
        }
    }

    /// Selects the actions that are neither in progress nor waiting for their backoff, and marks them as in progress.
    fn begin(&self, due: Vec<Action>) -> Vec<Action> {
        let mut calls = self.calls.lock();
        let now = Instant::now();
        calls.waiting.retain(|action, _| due.contains(action));
        let mut started = Vec::new();
        for action in due {
            let waits = calls
                .waiting
                .get(&action)
                .is_some_and(|backoff| backoff.at > now);
            if !waits && calls.busy.insert(action.clone()) {
                started.push(action);
            }
        }
        started
    }

    async fn run_action(&self, action: Action) {
        let began = Instant::now();
        let answer = act::act(self, &action).await;
        let mut calls = self.calls.lock();
        calls.busy.remove(&action);
        let result = match &answer {
            Ok(()) => {
                calls.waiting.remove(&action);
                "OK".to_owned()
            }
            Err(status) => {
                let before = calls.waiting.get(&action).copied();
                let infeasible = act::is_infeasible(status);
                let backoff = Backoff::after(before, infeasible, Instant::now());
                calls.waiting.insert(action.clone(), backoff);
                format!("{:?}: {}", status.code(), status.message())
            }
        };
        calls.made.push((began.elapsed(), action, result));
        drop(calls);
        self.changed.notify_one();
    }

    /// Starts the processes of pods whose volume is published, restarts those that have ended, and kills those of pods that are
    /// being stopped.
    fn sync_pods(&self) {
        let mut store = self.store();
        let mut processes = self.pods.lock();
        let has_all = |(name, pod): (&String, &PodState)| store.has_all(pod).then(|| name.clone());
        let ready: HashSet<String> = store.pods.iter().filter_map(has_all).collect();
        for (name, running) in &mut store.pods {
            if running.stopping {
                processes.remove(name);
                running.runs = false;
                continue;
            }
            let ended = processes
                .get(name)
                .is_some_and(|process| !process.is_alive());
            if ended {
                processes.remove(name);
                running.restarts += 1;
            }
            let published = running.published == Some(store::CallState::Done);
            if published && ready.contains(name) && !processes.contains_key(name) {
                let node = running.node.as_deref().unwrap_or_default();
                let target = act::target_of(self, node, name);
                let started = start(&target, running.pod.script.unwrap_or(IDLE));
                running.runs = started.is_ok();
                if let Ok(process) = started {
                    processes.insert(name.clone(), process);
                }
            }
        }
    }
}

/// Starts a shell with its volume as `$V`. The kernel kills it when this program ends.
fn start(volume: &Path, script: &str) -> Result<Process> {
    let place = format!("V={}", volume.display());
    let words = ["--pdeathsig", "KILL", "env", &place, "sh", "-c", script];
    Process::tool("setpriv", words, Path::new("/dev/null"))
}

impl Co for FakeKubernetes {
    async fn nodes(&self) -> Result<Vec<String>> {
        Ok(self.shared.store().nodes.clone())
    }

    async fn class(&self, class: &Class) -> Result<()> {
        self.update(|store| store.classes.insert(class.name.clone(), class.clone()));
        Ok(())
    }

    async fn claim(&self, claim: &Claim) -> Result<()> {
        self.update(|store| {
            store.claims_created += 1;
            let claim_state = ClaimState {
                claim: claim.clone(),
                volume: format!("pvc-{:08}", store.claims_created),
                bound: false,
                create_started: false,
                requested: claim.bytes,
                capacity: 0,
                allocated: None,
                conditions: BTreeMap::new(),
                deleting: false,
            };
            store
                .claims
                .entry(claim.name.clone())
                .or_insert(claim_state);
        });
        Ok(())
    }

    async fn resize(&self, claim: &str, bytes: i64) -> Result<()> {
        self.update(|store| {
            let claim_state = store.claims.get_mut(claim).context("no such claim")?;
            ensure!(
                bytes >= claim_state.requested || bytes > claim_state.capacity,
                "{bytes} bytes are not more than the {} that it has",
                claim_state.capacity
            );
            claim_state.requested = bytes;
            Ok(())
        })?;
        let edited = Action::Grow {
            claim: claim.to_owned(),
        };
        self.shared.calls.lock().waiting.remove(&edited);
        Ok(())
    }

    async fn see_claim(&self, claim: &str) -> Result<Option<ClaimSeen>> {
        Ok(self
            .shared
            .store()
            .claims
            .get(claim)
            .map(|claim_state| ClaimSeen {
                volume: claim_state.bound.then(|| claim_state.volume.clone()),
                requested: claim_state.requested,
                capacity: claim_state.capacity,
                conditions: claim_state.conditions.clone(),
            }))
    }

    async fn unclaim(&self, claim: &str) -> Result<()> {
        self.update(|store| {
            if let Some(claim_state) = store.claims.get_mut(claim) {
                claim_state.deleting = true;
            }
        });
        Ok(())
    }

    async fn see_volumes(&self) -> Result<Vec<VolumeSeen>> {
        let store = self.shared.store();
        let seen = store.volumes.iter().map(|(name, volume)| VolumeSeen {
            name: name.clone(),
            handle: volume.handle.clone(),
            nodes: volume.attached.keys().cloned().collect(),
        });
        Ok(seen.collect())
    }

    async fn set_reclaim(&self, volume: &str, reclaim: Reclaim) -> Result<()> {
        self.update(|store| {
            let volume = store.volumes.get_mut(volume).context("no such volume")?;
            volume.reclaim = reclaim;
            Ok(())
        })
    }

    async fn start(&self, pod: &Pod) -> Result<()> {
        self.update(|store| {
            let running = PodState {
                pod: pod.clone(),
                node: None,
                published: None,
                runs: false,
                restarts: 0,
                stopping: false,
            };
            store.pods.entry(pod.name.clone()).or_insert(running);
        });
        Ok(())
    }

    async fn see_pod(&self, pod: &str) -> Result<Option<PodSeen>> {
        Ok(self.shared.store().pods.get(pod).map(|running| PodSeen {
            node: running.node.clone().unwrap_or_default(),
            runs: running.runs && !running.stopping,
            restarts: running.restarts,
        }))
    }

    async fn stop(&self, pod: &str) -> Result<()> {
        self.update(|store| {
            if let Some(running) = store.pods.get_mut(pod) {
                running.stopping = true;
            }
        });
        Ok(())
    }

    async fn run(&self, pod: &str, script: &str) -> Result<String> {
        let node = {
            let store = self.shared.store();
            let running = store.pods.get(pod).filter(|running| running.runs);
            running.and_then(|running| running.node.clone())
        };
        let target = act::target_of(&self.shared, &node.context("the pod does not run")?, pod);
        let place = format!("V={}", target.display());
        let words = [place, "sh".to_owned(), "-c".to_owned(), script.to_owned()];
        let printed = tokio::task::spawn_blocking(move || process::run("env", words)).await??;
        Ok(printed.trim().to_owned())
    }

    async fn kill(&self, half: &Half) -> Result<()> {
        self.shared.parts.kill(half).await?;
        let (shared, half) = (Arc::clone(&self.shared), half.clone());
        tokio::task::spawn_local(async move {
            if let Err(error) = shared.parts.restart(&half).await {
                eprintln!("{half:?} does not restart: {error:#}");
            }
        });
        Ok(())
    }

    async fn driver_is_up(&self) -> Result<bool> {
        Ok(self.shared.parts.all_up().await)
    }

    async fn restart_nas(&self) -> Result<()> {
        self.shared.parts.kill_nas().await;
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_local(async move {
            if let Err(error) = shared.parts.restart_nas().await {
                eprintln!("the NAS does not restart: {error:#}");
            }
        });
        Ok(())
    }

    async fn nas(&self, path: &str, body: Option<Value>) -> Result<Value> {
        self.shared.parts.call_nas(path, body).await
    }

    async fn leftovers(&self) -> Result<Vec<String>> {
        let mut left = self.shared.parts.leftovers().await?;
        let store = self.shared.store();
        left.extend(store.pods.keys().map(|name| format!("pod {name}")));
        left.extend(store.claims.keys().map(|name| format!("claim {name}")));
        left.extend(store.volumes.keys().map(|name| format!("volume {name}")));
        Ok(left)
    }

    async fn clear(&self) -> Result<()> {
        self.update(|store| {
            store.pods.values_mut().for_each(|pod| pod.stopping = true);
            store
                .claims
                .values_mut()
                .for_each(|claim| claim.deleting = true);
            let volumes = store.volumes.values_mut();
            volumes.for_each(|volume| volume.reclaim = Reclaim::Delete);
        });
        let poll = async || self.leftovers().await;
        until_within(
            CLEAR_TIMEOUT,
            "everything is cleared away",
            poll,
            Vec::is_empty,
        )
        .await?;
        Ok(())
    }

    async fn evidence(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder)?;
        let store = format!("{:#?}", self.shared.store());
        std::fs::write(folder.join("store"), store)?;
        let calls: Vec<String> = self
            .shared
            .calls
            .lock()
            .made
            .iter()
            .map(|(took, action, result)| format!("{action:?} {took:?} {result}"))
            .collect();
        std::fs::write(folder.join("calls"), calls.join("\n"))?;
        let journal = self
            .nas("journal", None)
            .await
            .unwrap_or_else(|error| json!(error.to_string()));
        std::fs::write(folder.join("nas-journal.json"), journal.to_string())?;
        for part in NODES.into_iter().chain(["controller"]) {
            let log = self.shared.parts.folder.join(part).join("driver.log");
            std::fs::copy(log, folder.join(format!("{part}.log")))?;
        }
        Ok(())
    }
}
