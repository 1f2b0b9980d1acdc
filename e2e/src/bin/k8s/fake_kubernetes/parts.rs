//! The processes: the driver's controller, a node plugin per node, and the NAS, with kill and restart.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use e2e::harness::initiator::Initiator;
use e2e::harness::nas::{Nas, Settings as NasSettings};
use e2e::harness::plugin::{Plugin, Settings};
use e2e::testbed::real::CsiClients;
use serde_json::Value;
use tokio::sync::Mutex;

use crate::co::Half;

/// How long a killed process stays down.
const DOWNTIME: Duration = Duration::from_millis(500);

/// A part of the driver.
struct Part {
    settings: Settings,
    initiator: Option<Initiator>,
    /// `None` while it is down.
    plugin: Option<Plugin>,
}

/// All processes.
pub(super) struct Parts {
    nas: Mutex<Nas>,
    controller: Mutex<Part>,
    nodes: BTreeMap<String, Mutex<Part>>,
    /// The parent folder of their folders.
    pub(super) folder: PathBuf,
}

impl Part {
    async fn start(&mut self) -> Result<()> {
        self.plugin = Some(Plugin::start(&self.settings, self.initiator.as_ref()).await?);
        Ok(())
    }
}

impl Parts {
    /// Starts all of them, each with a subfolder of `folder`.
    ///
    /// # Errors
    /// One of them does not start.
    pub(super) async fn start(folder: &Path, nodes: &[&str]) -> Result<Self> {
        let settings = NasSettings {
            export: "loop",
            volumes: vec!["/volume1=btrfs:2TiB", "/volume2=ext4:4GiB"],
            ..NasSettings::default()
        };
        let nas = Nas::start(folder, settings).await?;
        let config = format!(
            "nas:\n  - name: sim\n    url: {}\n    username: admin\n    password_file: {}\n    portals: ['{}']\nstate_file: {}\nchap_key_file: {}\n",
            nas.api,
            nas.password_file().display(),
            nas.settings().portals.join("', '"),
            folder.join("refused.json").display(),
            nas.chap_key_file().display(),
        );
        let part = async |name: &str, mode, initiator| {
            let home = folder.join(name);
            std::fs::create_dir_all(&home)?;
            let mut part = Part {
                settings: Settings {
                    folder: home,
                    config: config.clone(),
                    node_name: name.to_owned(),
                    log_level: "info".to_owned(),
                    mode,
                    more: Vec::new(),
                },
                initiator,
                plugin: None,
            };
            part.start().await?;
            anyhow::Ok(Mutex::new(part))
        };
        let controller = part("controller", "controller", None).await?;
        let mut plugins = BTreeMap::new();
        for &node in nodes {
            let home = folder.join(node);
            std::fs::create_dir_all(&home)?;
            let initiator = Initiator::init(&home, &nas.targets())?;
            plugins.insert(node.to_owned(), part(node, "node", Some(initiator)).await?);
        }
        Ok(Self {
            nas: Mutex::new(nas),
            controller,
            nodes: plugins,
            folder: folder.to_owned(),
        })
    }

    /// The kubelet's folder on a node.
    pub(super) fn home(&self, node: &str) -> PathBuf {
        self.folder.join(node).join("kubelet")
    }

    /// Clients for the sidecars, and for the kubelet of a node. A part that is down returns UNAVAILABLE.
    pub(super) async fn clients(&self, node: Option<&str>) -> CsiClients {
        let line = async |part: &Mutex<Part>| part.lock().await.plugin.as_ref().map(Plugin::line);
        let plugin = match node.and_then(|node| self.nodes.get(node)) {
            Some(part) => line(part).await,
            None => None,
        };
        let home = self.home(node.unwrap_or_default());
        CsiClients::new(line(&self.controller).await, plugin, &home)
    }

    /// Kills a part. [`Parts::restart`] starts it again.
    ///
    /// # Errors
    /// There is no such node.
    pub(super) async fn kill(&self, half: &Half) -> Result<()> {
        let mut part = self.part(half)?.lock().await;
        part.plugin = None;
        Ok(())
    }

    /// Starts a part that was killed.
    ///
    /// # Errors
    /// It does not start.
    pub(super) async fn restart(&self, half: &Half) -> Result<()> {
        // sleep: keeps it down for a while.
        tokio::time::sleep(DOWNTIME).await;
        let mut part = self.part(half)?.lock().await;
        if part.plugin.is_none() {
            part.start().await?;
        }
        Ok(())
    }

    fn part(&self, half: &Half) -> Result<&Mutex<Part>> {
        match half {
            Half::Controller => Ok(&self.controller),
            Half::Node(node) => self.nodes.get(node).context("no such node"),
        }
    }

    /// Whether all parts are running.
    pub(super) async fn all_up(&self) -> bool {
        for part in self.nodes.values().chain([&self.controller]) {
            if part.lock().await.plugin.is_none() {
                return false;
            }
        }
        true
    }

    /// Kills the NAS.
    pub(super) async fn kill_nas(&self) {
        self.nas.lock().await.kill();
    }

    /// Restarts the killed NAS.
    ///
    /// # Errors
    /// It does not start.
    pub(super) async fn restart_nas(&self) -> Result<()> {
        // sleep: keeps it down for a while.
        tokio::time::sleep(DOWNTIME).await;
        self.nas.lock().await.restart().await
    }

    /// Calls the NAS's control API.
    ///
    /// # Errors
    /// It does not respond.
    pub(super) async fn call_nas(&self, path: &str, body: Option<Value>) -> Result<Value> {
        let nas = self.nas.lock().await;
        match body {
            Some(body) => nas.change_setting(path, &body).await,
            None => nas.get_control(path).await,
        }
    }

    /// Describes what volumes have left on the NAS and on nodes.
    ///
    /// # Errors
    /// A part does not respond.
    pub(super) async fn leftovers(&self) -> Result<Vec<String>> {
        let mut leftovers = Vec::new();
        let state = self.call_nas("state", None).await?;
        let number = |kind: &str| state[kind].as_array().map_or(0, Vec::len);
        let mut add = |what: String, number: usize| {
            if number > 0 {
                leftovers.push(format!("{number} {what}"));
            }
        };
        add("LUNs on the NAS".to_owned(), number("luns"));
        add("targets on the NAS".to_owned(), number("targets"));
        let mounts = e2e::harness::janitor::mounts_below(&self.folder)?;
        add("mounts".to_owned(), mounts.len());
        let devices = e2e::harness::test_cluster::loop_devices(self.nas.lock().await.folder())?;
        add("loop devices".to_owned(), devices);
        for (name, part) in &self.nodes {
            let part = part.lock().await;
            let host = part
                .initiator
                .as_ref()
                .context("a node without an initiator")?;
            let sessions = host.count("sys/class/iscsi_session")?;
            add(format!("sessions on {name}"), sessions);
            let records = host.count("etc/iscsi/nodes")?;
            add(format!("node records on {name}"), records);
        }
        Ok(leftovers)
    }
}
