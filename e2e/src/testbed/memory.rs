//! The in-memory test bed: the services of the shipped driver, dsm-sim without ports, and fake hosts, all in this process. Time
//! is tokio's paused clock, so that a minute of waiting costs nothing and a run is reproducible byte for byte. Needs no root; its
//! only files are in a temporary folder.

mod crashable;
mod fault_host;
mod nas;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use driver::chap::Method;
use driver::chap::keys::{Key, Keys};
use driver::controller::Controller;
use driver::dsm;
use driver::dsm::client::credential::Refusals;
use driver::dsm::client::{Account, Client, Password};
use driver::host::fake::{Fake, Mounted};
use driver::in_flight::InFlight;
use driver::node::Node;
use driver::owner_tag::Owner;
use driver::volume::Bytes;
use proto::csi::controller_client::ControllerClient;
use proto::csi::controller_server::ControllerServer;
use proto::csi::node_client::NodeClient;
use proto::csi::node_server::NodeServer;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};
use tokio::runtime::Builder;
use tonic::Status;

use crate::harness::nas::{CHAP_KEY, PASSWORD};
use crate::harness::plugin::{Csi, CsiChannel};
use crate::harness::test_volume::{Content, TestVolume};
use crate::testbed::{
    CrashTiming, HostFault, Observation, ObservedLun, ObservedMount, ObservedNode, Process, TestBed,
};
use crashable::CrashableProcess;
use fault_host::FaultHost;
use nas::{Nas, NasTransport};

const DRIVER: &str = "csi.synology.com";
const NAS: &str = "nas1";
const PORTAL: &str = "10.0.0.5:3260";
const NODES: [&str; 2] = ["worker-0", "worker-1"];
const CONTROLLERS: usize = 2;
/// The driver's default iSCSI replacement timeout.
const REPLACEMENT: Duration = Duration::from_secs(120);

/// An in-memory test bed.
#[derive(Debug)]
pub struct Memory {
    nas: Arc<Nas>,
    hosts: Vec<Fake>,
    processes: BTreeMap<Process, Running>,
    /// Crashed or restarted processes, for their effects and fault hits.
    former_processes: Vec<Arc<CrashableProcess>>,
    password: String,
    kubelets: Vec<PathBuf>,
}

/// A running process of the driver.
#[derive(Debug)]
struct Running {
    crashable: Arc<CrashableProcess>,
    line: CsiChannel,
    /// The number of effects when a crash was armed, and the crash's position from there.
    armed: Option<(usize, usize)>,
}

/// CSI clients of an in-memory test bed.
#[derive(Clone, Debug)]
pub struct CsiClients {
    controller: CsiChannel,
    node: CsiChannel,
    kubelet: PathBuf,
    host: Fake,
}

impl Csi for CsiClients {
    fn controller(&self) -> ControllerClient<CsiChannel> {
        ControllerClient::new(self.controller.clone())
    }

    fn node(&self) -> NodeClient<CsiChannel> {
        NodeClient::new(self.node.clone())
    }

    fn folder(&self) -> &Path {
        &self.kubelet
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        self.host.make_dir(&path.to_string_lossy());
        Ok(())
    }
}

/// `/dev/shm` if it exists, or else the folder for temporary files.
pub(crate) fn scratch() -> PathBuf {
    let shared = PathBuf::from("/dev/shm");
    if shared.is_dir() {
        shared
    } else {
        std::env::temp_dir()
    }
}

/// Runs a test on a fresh test bed with this seed, on a single-threaded runtime whose time is paused.
///
/// # Errors
/// The temporary folder cannot be made, or the test's error.
pub fn run<T>(seed: u64, test: impl AsyncFnOnce(&mut Memory) -> Result<T>) -> Result<T> {
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()?;
    runtime.block_on(async { test(&mut Memory::start(seed).await?).await })
}

impl Memory {
    /// A test bed with this seed. Needs a single-threaded runtime whose time is paused.
    ///
    /// # Errors
    /// The temporary folder cannot be made.
    pub async fn start(seed: u64) -> Result<Self> {
        let first = Fake::node("iqn.1993-08.org.debian:01:0");
        let second = first.on_same_nas("iqn.1993-08.org.debian:01:1");
        let hosts = vec![first, second];
        let nas = Arc::new(Nas::start(seed, hosts.clone())?);
        let kubelets = NODES.map(|name| PathBuf::from(format!("/{name}"))).to_vec();
        let mut bed = Self {
            nas,
            hosts,
            processes: BTreeMap::new(),
            former_processes: Vec::new(),
            password: PASSWORD.to_owned(),
            kubelets,
        };
        let controllers = (0..CONTROLLERS).map(Process::Controller);
        for process in controllers.chain((0..NODES.len()).map(Process::Node)) {
            bed.restart(process).await?;
        }
        Ok(bed)
    }

    fn controller(&self, number: usize, crashable: &Arc<CrashableProcess>) -> Result<CsiChannel> {
        let transport = NasTransport {
            nas: self.nas.clone(),
            crashable: crashable.clone(),
        };
        let name: driver::volume::NasName = NAS.parse().ok().context("a name")?;
        let account = Account {
            nas: name.clone(),
            url: "http://nas.example:5000".to_owned(),
            username: "admin".to_owned(),
            password: Password::Given(self.password.clone().into()),
        };
        let refusals = self.nas.folder().join(format!("refused-{number}.json"));
        let refusals = Arc::new(Refusals::open(Some(refusals))?);
        let client = Client::over(Arc::new(transport), account, refusals);
        let mut nas = dsm::Nas::new(name, "nas.example".to_owned(), client);
        nas.portals = vec![PORTAL.parse().ok().context("a portal")?];
        let keys = Key::read(CHAP_KEY.as_bytes()).context("a key")?;
        let keys = Keys::new(Method::Mutual, keys, vec![]);
        // Each restart draws other names, and the same ones when the run is repeated.
        let random = StdRng::seed_from_u64(self.nas.next_seed());
        let nases = vec![nas];
        let service = Controller::new(
            Owner::new(DRIVER.to_owned(), None),
            nases,
            keys,
            random,
            InFlight::default(),
        );
        let server = ControllerServer::new(service);
        Ok(self.line(server, crashable))
    }

    async fn node(&self, number: usize, crashable: &Arc<CrashableProcess>) -> CsiChannel {
        let host = FaultHost {
            host: self.hosts[number].clone(),
            crashable: crashable.clone(),
        };
        let node = Node::new(
            host,
            NODES[number].to_owned(),
            DRIVER.to_owned(),
            REPLACEMENT,
            InFlight::default(),
        );
        tokio::select! {
            () = node.sweep() => {}
            () = crashable.death() => {}
        }
        self.line(NodeServer::new(node), crashable)
    }

    /// A connection to a service of a process: it breaks when the process dies.
    fn line<S>(&self, service: S, crashable: &Arc<CrashableProcess>) -> CsiChannel
    where
        S: tower::Service<
                http::Request<tonic::body::Body>,
                Response = http::Response<tonic::body::Body>,
                Error = std::convert::Infallible,
            > + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send,
    {
        let (crashable, nas) = (crashable.clone(), self.nas.clone());
        CsiChannel::new(tower::service_fn(move |request| {
            let (mut service, crashable, nas) = (service.clone(), crashable.clone(), nas.clone());
            async move {
                // Export what the NAS has done in the background: every node sees it.
                nas.export()
                    .map_err(|error| Status::internal(error.to_string()))?;
                tokio::select! {
                    biased;
                    () = crashable.death() => Err(Status::unavailable("the process has died")),
                    Ok(answer) = service.call(request) => Ok(answer),
                }
            }
        }))
    }

    fn running(&self, process: Process) -> &Running {
        &self.processes[&process]
    }

    fn observe_node(&self, number: usize) -> ObservedNode {
        let seen = self.hosts[number].observe();
        let mount = |mounted: Mounted| ObservedMount {
            uuid: mounted.serial,
            raw: mounted.raw,
            readonly: mounted.readonly,
        };
        let kubelet = format!("{}/kubelet/", self.kubelets[number].display());
        // The kubelet makes a directory for each volume, and the staging path in it.
        let is_from_driver = |path: &String| {
            let inside = path.strip_prefix(&kubelet).unwrap_or_default();
            let part = inside.split_once('/').map(|(_, part)| part);
            part.is_some_and(|part| part != "staging")
        };
        ObservedNode {
            sessions: seen.sessions,
            records: seen.records,
            disks: seen
                .disks
                .into_iter()
                .map(|(uuid, size)| (uuid, size.0))
                .collect(),
            mount_count: seen.mount_count,
            mounts: seen
                .mounts
                .into_iter()
                .map(|(point, mounted)| (point, mount(mounted)))
                .collect(),
            paths: seen.paths.into_iter().filter(is_from_driver).collect(),
        }
    }

    /// All processes, running or dead.
    fn crashables(&self) -> impl Iterator<Item = &Arc<CrashableProcess>> {
        let now = self.processes.values().map(|running| &running.crashable);
        now.chain(&self.former_processes)
    }

    /// All texts that could hold a leaked secret: command lines and files.
    pub fn texts(&self) -> Vec<String> {
        let commands = self.hosts.iter().flat_map(Fake::commands);
        let files = self.hosts.iter().flat_map(Fake::texts);
        commands.chain(files).collect()
    }
}

#[tonic::async_trait(?Send)]
impl TestBed for Memory {
    type Clients = CsiClients;

    fn clients(&self, controller: usize, node: usize) -> CsiClients {
        CsiClients {
            controller: self.running(Process::Controller(controller)).line.clone(),
            node: self.running(Process::Node(node)).line.clone(),
            kubelet: self.kubelets[node].clone(),
            host: self.hosts[node].clone(),
        }
    }

    fn nodes(&self) -> usize {
        NODES.len()
    }

    fn grows_online(&self, _: &str) -> bool {
        true
    }

    async fn observe(&self) -> Result<Observation> {
        nas::settle().await;
        let state = self.nas.state()?;
        let mut seen = Observation::of_nas(&state);
        seen.nodes = (0..NODES.len())
            .map(|number| self.observe_node(number))
            .collect();
        let cancelled = self
            .crashables()
            .flat_map(|crashable| crashable.cancelled());
        seen.rest
            .extend(cancelled.map(|name| format!("{name}, cancelled half-way")));
        Ok(seen)
    }

    fn fs_fills_device(&self, volume: &TestVolume, node: usize, size: u64) -> Result<bool> {
        let Content::Fs(fs) = volume.content else {
            return Ok(true);
        };
        let found = self.hosts[node].file_system(volume.uuid(), Bytes(size));
        let (kind, _, fills) = found.context("there is no file system")?;
        ensure!(kind.as_str() == fs, "the file system is {kind}, not {fs}");
        Ok(fills)
    }

    fn write(&self, volume: &TestVolume, node: usize, data: u64) -> Result<()> {
        let target = volume.target.to_string_lossy();
        ensure!(
            self.hosts[node].write_data(&target, data),
            "writing to {target} failed"
        );
        Ok(())
    }

    fn write_unsynced(&self, volume: &TestVolume, node: usize, data: u64) -> Result<()> {
        let target = volume.target.to_string_lossy();
        ensure!(
            self.hosts[node].write_unsynced(&target, data),
            "writing to {target} failed"
        );
        Ok(())
    }

    async fn keep_deleted_sessions(&mut self, keeps: bool) -> Result<bool> {
        self.patch_control("/settings", json!({"deleted_targets_keep_sessions": keeps}))
            .await?;
        if keeps {
            // Otherwise the driver unmaps the LUN before it deletes the target.
            let refuse = json!({"api": "SYNO.Core.ISCSI.LUN", "method": "unmap_target", "times": 1, "fault": {"kind": "refuse", "code": 18_990_505}});
            self.post_control("/faults", refuse).await?;
        } else {
            let state = self.nas.state()?;
            let left = state["lingering_targets"].as_array().cloned();
            for target in left.unwrap_or_default() {
                let iqn = json!({"iqn": target["iqn"]});
                self.post_control("/lingering/forget", iqn).await?;
            }
        }
        Ok(keeps)
    }

    fn read(&self, volume: &TestVolume, node: usize) -> Result<u64> {
        let target = volume.target.to_string_lossy();
        self.hosts[node]
            .read_data(&target)
            .with_context(|| format!("reading from {target} failed"))
    }

    fn write_foreign_data(&self, volume: &TestVolume) -> Result<()> {
        self.hosts[0].write_foreign_data(volume.uuid());
        Ok(())
    }

    fn is_foreign_data_intact(&self, volume: &TestVolume) -> Result<bool> {
        Ok(self.hosts[0].is_foreign_data_intact(volume.uuid()))
    }

    fn make_unresizable(&self, volume: &TestVolume) -> Result<bool> {
        Ok(self.hosts[0].make_unresizable(volume.uuid()))
    }

    fn kill_file_system(&self, volume: &TestVolume, node: usize) -> Result<bool> {
        let staging = volume.staging.to_string_lossy();
        Ok(self.hosts[node].kill_file_system(&staging))
    }

    async fn swap_lun(&mut self, volume: &TestVolume, on: bool) -> Result<bool> {
        self.nas.swap_lun(volume.uuid(), on);
        self.nas.export()?;
        Ok(true)
    }

    fn is_swapped_lun_untouched(&self, _: &TestVolume) -> Result<bool> {
        Ok(self.hosts[0].is_blank(nas::FOREIGN_LUN))
    }

    fn set_password(&mut self, password: &str) -> Result<()> {
        password.clone_into(&mut self.password);
        Ok(())
    }

    async fn refused_logins(&self) -> Result<usize> {
        let journal = self.nas.journal();
        // The driver does not know of a login whose reply was lost.
        let refused = |line: &&String| line.contains("Auth.login") && line.ends_with("Some(400) ");
        Ok(journal.iter().filter(refused).count())
    }

    async fn restart(&mut self, process: Process) -> Result<()> {
        if let Some(old) = self.processes.remove(&process) {
            old.crashable.die();
            self.former_processes.push(old.crashable);
        }
        let crashable = Arc::new(CrashableProcess::start());
        let line = match process {
            Process::Controller(number) => self.controller(number, &crashable)?,
            Process::Node(number) => self.node(number, &crashable).await,
        };
        let armed = None;
        self.processes.insert(
            process,
            Running {
                crashable,
                line,
                armed,
            },
        );
        Ok(())
    }

    fn crashed_processes(&self) -> Vec<Process> {
        let dead = self
            .processes
            .iter()
            .filter(|(_, running)| running.crashable.is_dead());
        dead.map(|(process, _)| *process).collect()
    }

    async fn crash_at(&mut self, process: Process, nth: usize, when: CrashTiming) -> Result<()> {
        let running = self
            .processes
            .get_mut(&process)
            .context("the process was never started")?;
        running.armed = Some((running.crashable.effects().len(), nth));
        running.crashable.crash_at(nth, when);
        Ok(())
    }

    async fn crashed_at(&mut self, process: Process) -> Result<Option<String>> {
        let running = self
            .processes
            .get_mut(&process)
            .context("the process was never started")?;
        let Some((before, nth)) = running.armed.take() else {
            return Ok(None);
        };
        let effect = running.crashable.effects().get(before + nth - 1).cloned();
        if effect.is_none() {
            running.crashable.clear();
        }
        Ok(effect)
    }

    async fn reboot(&mut self, node: usize) -> Result<()> {
        if let Some(running) = self.processes.get(&Process::Node(node)) {
            running.crashable.die();
        }
        self.hosts[node].reboot();
        self.restart(Process::Node(node)).await
    }

    async fn reimage(&mut self, node: usize, initiator: &str) -> Result<()> {
        if let Some(running) = self.processes.get(&Process::Node(node)) {
            running.crashable.die();
        }
        self.hosts[node].reimage(initiator);
        self.restart(Process::Node(node)).await
    }

    async fn restart_nas(&mut self, loading: Option<&str>) -> Result<()> {
        self.nas.restart()?;
        if let Some(loading) = loading {
            let boot = json!({"loading": loading, "for_ms": 5000});
            self.post_control("/boot", boot).await?;
        }
        Ok(())
    }

    async fn post_control(&self, path: &str, body: Value) -> Result<Value> {
        Ok(self.nas.control(http::Method::POST, path, &body).await?)
    }

    async fn patch_control(&self, path: &str, body: Value) -> Result<Value> {
        Ok(self.nas.control(http::Method::PATCH, path, &body).await?)
    }

    fn allow_online_ext4(&mut self, allowed: bool) -> bool {
        for host in &self.hosts {
            host.set_capable(allowed);
        }
        true
    }

    fn inject_fault(&mut self, node: usize, fault: HostFault) -> Result<()> {
        self.running(Process::Node(node))
            .crashable
            .inject_fault(fault);
        Ok(())
    }

    async fn clear_faults(&mut self) -> Result<()> {
        for running in self.processes.values() {
            running.crashable.clear();
        }
        self.nas
            .control(http::Method::DELETE, "/faults", &json!(null))
            .await?;
        Ok(())
    }

    fn fault_hits(&self) -> Result<usize> {
        Ok(self.crashables().map(|crashable| crashable.hits()).sum())
    }

    async fn pause(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    async fn journal(&self) -> Result<Vec<String>> {
        let mut lines = self.nas.journal();
        for (host, name) in self.hosts.iter().zip(NODES) {
            let commands = host.commands();
            lines.extend(commands.iter().map(|line| format!("{name}: {line}")));
        }
        Ok(lines)
    }

    fn node_home(&self, node: usize) -> &Path {
        &self.kubelets[node]
    }
}

impl Observation {
    /// The NAS's part of an observation, from dsm-sim's state.
    pub fn of_nas(state: &Value) -> Self {
        let rows = |name: &str| nas::rows(&state[name]);
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let snapshots = rows("snapshots");
        let snapshots_of = |uuid: &Value| {
            let rows = snapshots.iter().filter(|row| row["parent"] == *uuid);
            rows.map(|row| (text(&row["uuid"]), row["is_locked"] == true))
                .collect()
        };
        let lun = |lun: &Value| ObservedLun {
            name: text(&lun["name"]),
            size: lun["size"].as_u64().unwrap_or_default(),
            // A manual edit may add text before the owner tag.
            ours: text(&lun["description"]).contains("csi2 o="),
            description: text(&lun["description"]),
            snapshots: snapshots_of(&lun["uuid"]),
        };
        let mapped = |target: &Value| {
            let luns = nas::rows(&target["mapped_luns"]).iter();
            luns.map(|lun| text(&lun["lun_uuid"])).collect()
        };
        Self {
            // A LUN that is being deleted counts as gone: the NAS completes the deletion.
            luns: rows("luns")
                .iter()
                .filter(|row| row["is_dying"] != true)
                .map(|row| (text(&row["uuid"]), lun(row)))
                .collect(),
            targets: rows("targets")
                .iter()
                .map(|row| (text(&row["iqn"]), mapped(row)))
                .collect(),
            ..Self::default()
        }
    }
}
