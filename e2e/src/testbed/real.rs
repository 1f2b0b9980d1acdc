//! The test bed of processes: two controllers and two nodes of the shipped driver, dsm-sim, node-sim's `iscsiadm`, and real file
//! systems on loop devices. Needs root. Since time is real, it differs from the [in-memory test bed](crate::testbed::memory):
//!
//! - hangs are short: a command hangs for 300 ms and is then killed, as at the driver's deadline; a call of the NAS hangs
//!   until the [proxy] breaks the connection; delays and the loading of LUNs are as short,
//! - a CO waits less than [`TestBed::pause`] asks for, so that nothing happens that the driver does only after a minute,
//! - faults and crashes of a node apply to its commands only: a fault of a file access hits the next command instead,
//! - a mounted ext4 cannot be grown without `CAP_SYS_RESOURCE` ([`can_grow_mounted_ext4`]).
//!
//! Both nodes share one machine, one mount table and one set of loop devices without conflicts: a node's driver finds its devices
//! through its host root, and each node has its own.

mod clients;
mod disk;
mod machine;
mod observe;
mod proxy;

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::janitor::Janitor;
use crate::harness::nas::{self, Nas, PASSWORD};
use crate::harness::plugin::{self, Plugin};
use crate::harness::skip::can_grow_mounted_ext4;
use crate::harness::test_volume::TestVolume;
use crate::testbed::memory::scratch;
use crate::testbed::{
    CrashTiming, HostFault, Observation, Process, SHRINK_REFUSED, TestBed, publication,
};
pub use clients::CsiClients;
use machine::Machine;
use proxy::Proxy;

const NODES: [&str; 2] = ["worker-0", "worker-1"];
const CONTROLLERS: usize = 2;
/// The longest delay of a reply or of loading LUNs, in milliseconds.
const MAX_DELAY_MS: u64 = 300;
/// A CO's pauses are divided by this; their sum must exceed the longest wait of the driver itself, 15 s.
const FAST_RETRY: u32 = 200;
/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(64);
/// Longer than the driver's minimum interval between two logins that may not help.
const LOGIN_INTERVAL: Duration = Duration::from_secs(65);
/// The CO's pause when it waits for everything to complete, once the NAS has loaded its LUNs: all calls have ended before.
const SETTLE_PAUSE: Duration = Duration::from_millis(20);

/// A test bed of processes.
#[derive(Debug)]
pub struct Real {
    // Fields are dropped in this order: the processes, then the janitor, who removes the folder.
    processes: BTreeMap<Process, Plugin>,
    /// From each controller to the NAS.
    proxies: Vec<Proxy>,
    nas: Nas,
    machines: Vec<Machine>,
    _janitor: Janitor,
    folder: PathBuf,
    password: String,
    /// The effects at which processes have crashed, until they are read.
    crashed_effects: BTreeMap<Process, String>,
    /// Journal of the NAS before its last restart.
    past: Past,
    /// When the NAS has loaded all LUNs.
    loaded_at: Instant,
    /// When the clients' IP address changed last.
    address_changed: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
struct Past {
    journal: Vec<String>,
    refused: usize,
}

impl Real {
    /// Starts a test bed.
    ///
    /// # Errors
    /// A process does not come up; includes the end of its log.
    pub async fn start() -> Result<Self> {
        // Short: the path of a unix socket has at most 107 bytes.
        let folder = TempDir::with_prefix_in("csi-", scratch())?.keep();
        let janitor = Janitor::start(&folder)?;
        let settings = nas::Settings {
            export: "loop",
            volumes: vec!["/volume1=btrfs:2TiB", "/volume2=ext4:2TiB"],
            ..nas::Settings::default()
        };
        let nas = Nas::start(&folder, settings).await?;
        let machine = |name: &&str| Machine::make(&folder.join(name), &nas.targets());
        let machines = NODES.iter().map(machine).collect::<Result<_>>()?;
        let mut proxies = Vec::new();
        for _ in 0..CONTROLLERS {
            proxies.push(Proxy::start(&nas.api).await?);
        }
        let mut bed = Self {
            processes: BTreeMap::new(),
            proxies,
            nas,
            machines,
            _janitor: janitor,
            folder,
            password: PASSWORD.to_owned(),
            crashed_effects: BTreeMap::new(),
            past: Past::default(),
            loaded_at: Instant::now(),
            address_changed: Mutex::default(),
        };
        bed.apply_nas_settings().await?;
        for process in all_processes() {
            bed.restart(process).await?;
        }
        Ok(bed)
    }

    /// Resets everything to the state after [`Self::start`]. Cheap if little has changed.
    ///
    /// # Errors
    /// A resource cannot be freed.
    pub async fn reset(&mut self) -> Result<()> {
        for machine in &self.machines {
            machine.interceptor.clear()?;
        }
        let used = self.is_used().await?;
        let changed = std::fs::read_to_string(self.nas.password_file())? != PASSWORD;
        for process in all_processes() {
            // A call of a failed sequence may still be in progress in them.
            if used || self.is_dead(process) || changed && matches!(process, Process::Controller(_))
            {
                self.processes.remove(&process);
            }
        }
        for machine in &self.machines {
            machine.clear().await?;
            machine.interceptor.reset()?;
        }
        PASSWORD.clone_into(&mut self.password);
        std::fs::write(self.nas.password_file(), PASSWORD)?;
        self.nas.reset().await?;
        // A NAS that was started with another password has that one for its account.
        let account = json!({"name": "admin", "password": PASSWORD});
        self.nas.change_setting("accounts", &account).await?;
        self.apply_nas_settings().await?;
        self.crashed_effects.clear();
        self.past = Past::default();
        for process in all_processes() {
            // Logs are opened in append mode, so they can be truncated while they are written.
            std::fs::File::create(self.log(process))?;
            if !self.processes.contains_key(&process) {
                self.remove_login_refusals(process)?;
                self.restart(process).await?;
            }
        }
        for proxy in &self.proxies {
            proxy.disarm();
        }
        Ok(())
    }

    /// The log lines of all processes since the last reset.
    ///
    /// # Errors
    /// A log cannot be read.
    pub fn logs(&self) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        for process in all_processes() {
            let text = std::fs::read_to_string(self.log(process))?;
            lines.extend(text.lines().map(|line| format!("{process:?}: {line}")));
        }
        Ok(lines)
    }

    fn log(&self, process: Process) -> PathBuf {
        self.home(process).join("driver.log")
    }

    /// Whether a sequence has left something on a node, or a volume on the NAS.
    async fn is_used(&self) -> Result<bool> {
        let seen = self.observe_once().await?;
        let on_node = |node: &crate::testbed::ObservedNode| {
            !node.sessions.is_empty() || !node.records.is_empty() || node.mount_count > 0
        };
        let ours = seen.luns.values().any(|lun| lun.ours);
        let published = |iqn: &String| publication(iqn).is_some();
        Ok(ours
            || seen.targets.keys().any(published)
            || !seen.rest.is_empty()
            || seen.nodes.iter().any(on_node))
    }

    /// Applies the settings that have no command line option.
    async fn apply_nas_settings(&self) -> Result<()> {
        let settings = json!({"thin_growth_needs_space": true, "shrink_code": SHRINK_REFUSED});
        self.nas.patch_settings(&settings).await
    }

    async fn observe_once(&self) -> Result<Observation> {
        let state = self.nas.state().await?;
        let mut seen = Observation::of_nas(&state);
        observe::observe(&self.nas, &self.machines, &mut seen)?;
        Ok(seen)
    }

    fn home(&self, process: Process) -> PathBuf {
        match process {
            Process::Controller(number) => self.folder.join(format!("controller-{number}")),
            Process::Node(number) => self.machines[number].home.clone(),
        }
    }

    fn remove_login_refusals(&self, process: Process) -> Result<()> {
        match std::fs::remove_file(self.home(process).join("refused.json")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn is_dead(&self, process: Process) -> bool {
        let killed = match process {
            Process::Controller(number) => self.proxies[number].crashed_at().is_some(),
            Process::Node(number) => self.machines[number].interceptor.stopped_at().is_some(),
        };
        let alive = self
            .processes
            .get(&process)
            .is_some_and(|plugin| plugin.process.is_alive());
        killed || !alive
    }

    /// The effect at which a process has crashed; clears it.
    fn take_crash(&mut self, process: Process) -> Result<Option<String>> {
        match process {
            Process::Controller(number) => Ok(self.proxies[number].disarm()),
            Process::Node(number) => self.machines[number].interceptor.take_stopped(),
        }
    }

    async fn spawn(&self, process: Process) -> Result<Plugin> {
        let folder = self.home(process);
        std::fs::create_dir_all(&folder)?;
        let url = match process {
            Process::Controller(number) => &self.proxies[number].url,
            Process::Node(_) => &self.nas.api,
        };
        let settings = plugin::Settings {
            config: format!(
                "nas:\n  - name: nas1\n    url: {url}\n    username: admin\n    password: {}\n    portals: ['{}']\nstate_file: {}\nchap_key_file: {}\n",
                self.password,
                self.nas.settings().portals.join("', '"),
                folder.join("refused.json").display(),
                self.nas.chap_key_file().display(),
            ),
            folder,
            node_name: match process {
                Process::Controller(_) => String::new(),
                Process::Node(number) => NODES[number].to_owned(),
            },
            log_level: "debug".to_owned(),
            mode: match process {
                Process::Controller(_) => "controller",
                Process::Node(_) => "node",
            },
            more: Vec::new(),
        };
        let initiator = match process {
            Process::Controller(_) => None,
            Process::Node(number) => Some(&self.machines[number].initiator),
        };
        Plugin::start(&settings, initiator).await
    }
}

fn all_processes() -> impl Iterator<Item = Process> {
    let controllers = (0..CONTROLLERS).map(Process::Controller);
    controllers.chain((0..NODES.len()).map(Process::Node))
}

#[tonic::async_trait(?Send)]
impl TestBed for Real {
    type Clients = CsiClients;

    fn clients(&self, controller: usize, node: usize) -> CsiClients {
        let line = |process| self.processes.get(&process).map(Plugin::line);
        CsiClients::new(
            line(Process::Controller(controller)),
            line(Process::Node(node)),
            &self.machines[node].home,
        )
    }

    fn nodes(&self) -> usize {
        NODES.len()
    }

    fn grows_online(&self, fs: &str) -> bool {
        fs != "ext4" || can_grow_mounted_ext4()
    }

    async fn observe(&self) -> Result<Observation> {
        let mut last = self.observe_once().await?;
        // Files and devices of deleted objects may disappear a moment later.
        for _ in 0..20 {
            if last.rest.is_empty() {
                break;
            }
            // sleep: between two observations, with a bound.
            tokio::time::sleep(Duration::from_millis(50)).await;
            last = self.observe_once().await?;
        }
        Ok(last)
    }

    fn fs_fills_device(&self, volume: &TestVolume, node: usize, size: u64) -> Result<bool> {
        let device = self.machines[node].device(volume)?;
        disk::fs_fills_device(volume, &device, size)
    }

    fn write(&self, volume: &TestVolume, _: usize, data: u64) -> Result<()> {
        disk::write(volume, data).with_context(|| format!("writing to {}", volume.name))
    }

    fn write_unsynced(&self, volume: &TestVolume, _: usize, data: u64) -> Result<()> {
        let written = disk::write_unsynced(volume, data);
        written
            .map(drop)
            .with_context(|| format!("writing to {}", volume.name))
    }

    fn read(&self, volume: &TestVolume, _: usize) -> Result<u64> {
        disk::read(volume).with_context(|| format!("reading from {}", volume.name))
    }

    fn write_foreign_data(&self, volume: &TestVolume) -> Result<()> {
        disk::write_foreign_data(&self.lun_file(volume))
    }

    fn is_foreign_data_intact(&self, volume: &TestVolume) -> Result<bool> {
        disk::is_foreign_data_intact(&self.lun_file(volume))
    }

    fn kill_file_system(&self, volume: &TestVolume, node: usize) -> Result<bool> {
        disk::kill_file_system(volume, &self.machines[node].device(volume)?)
    }

    async fn swap_lun(&mut self, volume: &TestVolume, on: bool) -> Result<bool> {
        disk::swap_lun(&self.nas, &self.folder, volume, on)?;
        Ok(true)
    }

    fn is_swapped_lun_untouched(&self, _: &TestVolume) -> Result<bool> {
        disk::is_swapped_lun_blank(&self.folder)
    }

    fn set_password(&mut self, password: &str) -> Result<()> {
        password.clone_into(&mut self.password);
        Ok(())
    }

    async fn refused_logins(&self) -> Result<usize> {
        Ok(self.past.refused + self.refused_now().await?)
    }

    async fn restart(&mut self, process: Process) -> Result<()> {
        self.processes.remove(&process);
        if let Some(effect) = self.take_crash(process)? {
            self.crashed_effects.insert(process, effect);
        }
        if let Process::Node(number) = process {
            self.machines[number].interceptor.clear()?;
        }
        let plugin = self.spawn(process).await?;
        if let Process::Controller(number) = process {
            self.proxies[number].set_controller(plugin.process.id());
        }
        self.processes.insert(process, plugin);
        Ok(())
    }

    fn crashed_processes(&self) -> Vec<Process> {
        all_processes()
            .filter(|process| self.is_dead(*process))
            .collect()
    }

    async fn crash_at(&mut self, process: Process, nth: usize, when: CrashTiming) -> Result<()> {
        self.crashed_effects.remove(&process);
        match process {
            Process::Controller(number) => self.proxies[number].arm(nth, when),
            Process::Node(number) => self.machines[number].crash_at(nth, when)?,
        }
        Ok(())
    }

    async fn crashed_at(&mut self, process: Process) -> Result<Option<String>> {
        if let Some(effect) = self.crashed_effects.remove(&process) {
            return Ok(Some(effect));
        }
        if self.is_dead(process) {
            // Do not clear it: the process must count as dead until it is restarted.
            return Ok(match process {
                Process::Controller(number) => self.proxies[number].crashed_at(),
                Process::Node(number) => self.machines[number].interceptor.stopped_at(),
            });
        }
        self.take_crash(process)
    }

    async fn reboot(&mut self, node: usize) -> Result<()> {
        self.processes.remove(&Process::Node(node));
        self.machines[node].power_off().await?;
        self.restart(Process::Node(node)).await
    }

    async fn reimage(&mut self, node: usize, initiator: &str) -> Result<()> {
        self.processes.remove(&Process::Node(node));
        self.machines[node].reimage(initiator).await?;
        self.restart(Process::Node(node)).await
    }

    fn can_wait_minutes(&self) -> bool {
        false
    }

    async fn restart_nas(&mut self, loading: Option<&str>) -> Result<()> {
        let (lines, refused) = (self.calls().await?, self.refused_now().await?);
        self.past.journal.extend(lines);
        self.past.refused += refused;
        self.nas.restart().await?;
        self.apply_nas_settings().await?;
        if let Some(loading) = loading {
            let boot = json!({"loading": loading, "for_ms": MAX_DELAY_MS});
            self.post_control("/boot", boot).await?;
            self.loaded_at = Instant::now() + Duration::from_millis(MAX_DELAY_MS);
        }
        Ok(())
    }

    async fn post_control(&self, mut path: &str, mut body: Value) -> Result<Value> {
        if path == "/sessions/move" && !self.may_change_address() {
            path = "/sessions/expire";
        }
        if let Some(Value::Number(wait)) = body.pointer_mut("/fault/ms") {
            *wait = wait.as_u64().unwrap_or_default().min(MAX_DELAY_MS).into();
        }
        if let ("/accounts", Some(password)) = (path, body["password"].as_str()) {
            // dsm-sim reads it from there at its next start.
            std::fs::write(self.nas.password_file(), password)?;
        }
        self.nas
            .change_setting(path.trim_start_matches('/'), &body)
            .await
    }

    async fn patch_control(&self, path: &str, body: Value) -> Result<Value> {
        self.nas.patch(path.trim_start_matches('/'), &body).await
    }

    fn inject_fault(&mut self, node: usize, fault: HostFault) -> Result<()> {
        self.machines[node].inject_fault(&fault)
    }

    async fn clear_faults(&mut self) -> Result<()> {
        for machine in &self.machines {
            machine.interceptor.clear()?;
        }
        for proxy in &self.proxies {
            proxy.cancel_kill();
        }
        self.nas.clear_faults().await
    }

    fn fault_hits(&self) -> Result<usize> {
        self.machines
            .iter()
            .map(|machine| machine.interceptor.hits())
            .sum()
    }

    async fn pause(&self, time: Duration) {
        let short = if time > LONGEST_PAUSE {
            self.loaded_at.saturating_duration_since(Instant::now()) + SETTLE_PAUSE
        } else {
            time / FAST_RETRY
        };
        // sleep: a CO waits before it tries again, a bounded number of times.
        tokio::time::sleep(short).await;
        if time >= LONGEST_PAUSE && Instant::now() >= self.loaded_at {
            // A long pause of a CO: the uptime grows too. Errors are ignored, the next pause sets it again.
            let _ = self
                .nas
                .change_setting("uptime", &json!({"seconds": 360_000}))
                .await;
        }
    }

    async fn journal(&self) -> Result<Vec<String>> {
        let mut lines = self.past.journal.clone();
        lines.extend(self.calls().await?);
        for (machine, name) in self.machines.iter().zip(NODES) {
            let commands = machine.interceptor.journal()?;
            lines.extend(commands.iter().map(|line| format!("{name}: {line}")));
        }
        Ok(lines)
    }

    fn node_home(&self, node: usize) -> &Path {
        &self.machines[node].home
    }
}

impl Real {
    /// A driver checks at most once a minute whether another login helps, and no CO here waits that long. In between, its
    /// sessions expire instead.
    fn may_change_address(&self) -> bool {
        let mut address_changed = self.address_changed.lock();
        let allowed = address_changed.is_none_or(|at| at.elapsed() > LOGIN_INTERVAL);
        if allowed {
            *address_changed = Some(Instant::now());
        }
        allowed
    }

    fn lun_file(&self, volume: &TestVolume) -> PathBuf {
        self.nas
            .folder()
            .join(format!("luns/{}.img", volume.uuid()))
    }

    async fn calls(&self) -> Result<Vec<String>> {
        let (entries, _) = self.nas.journal(0).await?;
        let line = |entry: &nas::Entry| {
            let fault = entry.fault.as_deref().unwrap_or_default();
            format!(
                "{}.{} {} -> {:?} {fault}",
                entry.api, entry.method, entry.params, entry.code
            )
        };
        Ok(entries.iter().map(line).collect())
    }

    async fn refused_now(&self) -> Result<usize> {
        let (entries, _) = self.nas.journal(0).await?;
        // Logins that were refused by an injected fault do not count.
        let refused = |entry: &&nas::Entry| {
            entry.short() == "Auth.login" && entry.code == Some(400) && entry.fault.is_none()
        };
        Ok(entries.iter().filter(refused).count())
    }
}
