//! A test cluster: one NAS, one node and one driver, in a temporary folder.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use proto::csi::controller_client::ControllerClient;
use proto::csi::node_client::NodeClient;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::initiator::Initiator;
use crate::harness::janitor::{self, Janitor, mounts_below};
use crate::harness::nas::{self, Nas};
use crate::harness::plugin::{self, Csi, CsiChannel, Plugin};

/// The configuration of a test cluster.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The NAS.
    pub nas: nas::Settings,
    /// The node for the driver's node service; needs root.
    pub node: Node,
    /// For the driver's `--log-level`.
    pub log_level: String,
    /// More arguments of the driver.
    pub driver: Vec<String>,
}

/// The kind of node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// No node: controller only.
    None,
    /// An `iscsiadm` of node-sim.
    Simulated,
    /// This machine's own open-iscsi.
    Real,
}

impl Plan {
    /// NAS and controller. Needs no root. With `E2E_NAS=shared`, the NAS holds foreign objects.
    pub fn controller() -> Self {
        let nas = nas::Settings::default();
        Self {
            nas: if is_shared() {
                with_foreign_objects(nas)
            } else {
                nas
            },
            node: Node::None,
            log_level: "debug".to_owned(),
            driver: Vec::new(),
        }
    }

    /// NAS, controller and node, with LUNs as loop devices. Needs root.
    pub fn with_node() -> Self {
        Self {
            nas: nas::Settings {
                export: "loop",
                ..Self::controller().nas
            },
            node: Node::Simulated,
            ..Self::controller()
        }
    }

    /// NAS, controller and node over real iSCSI: `export` is `tgt` or `lio`. Needs a machine that runs nothing else.
    pub fn real(export: &'static str, portals: &[&str]) -> Self {
        Self {
            nas: nas::Settings {
                export,
                portals: portals.iter().map(|&portal| portal.to_owned()).collect(),
                ..nas::Settings::default()
            },
            node: Node::Real,
            ..Self::controller()
        }
    }

    /// With the latency of a real NAS.
    #[must_use]
    pub fn slow(mut self) -> Self {
        self.nas.latency = "ds918";
        self
    }

    /// On a NAS that holds foreign objects: see `nas::others`.
    #[must_use]
    pub fn shared(mut self) -> Self {
        self.nas = with_foreign_objects(self.nas);
        self
    }

    /// Without a crashed NAS volume: for tests in which the absence of a LUN is confirmed (design.md#unknown-is-not-absent).
    #[must_use]
    pub fn without_crashed_volume(mut self) -> Self {
        self.nas.crashed = false;
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// A process does not come up; includes the end of its log.
    pub async fn start(self) -> Result<TestCluster> {
        TestCluster::start(self).await
    }
}

/// A running test cluster. Whatever happens to it, its janitor frees its resources.
#[derive(Debug)]
pub struct TestCluster {
    // Fields are dropped in this order: the processes, then the janitor, who removes the folder.
    /// The driver.
    pub plugin: Plugin,
    /// The node, if the cluster has one.
    pub initiator: Option<Initiator>,
    /// The NAS.
    pub nas: Nas,
    plugin_settings: plugin::Settings,
    _reporter: Reporter,
    _janitor: Janitor,
    folder: PathBuf,
}

impl Csi for TestCluster {
    fn controller(&self) -> ControllerClient<CsiChannel> {
        self.plugin.controller()
    }

    fn node(&self) -> NodeClient<CsiChannel> {
        self.plugin.node()
    }

    fn folder(&self) -> &Path {
        &self.folder
    }
}

impl TestCluster {
    async fn start(plan: Plan) -> Result<Self> {
        // Short: the path of a unix socket has at most 107 bytes.
        let folder = TempDir::with_prefix("csi-")?.keep();
        let janitor = Janitor::start(&folder)?;
        let nas = Nas::start(&folder, plan.nas).await?;
        let initiator = match plan.node {
            Node::None => None,
            Node::Simulated => Some(Initiator::init(&folder, &nas.targets())?),
            Node::Real => Some(Initiator::real()),
        };
        let plugin_settings = plugin::Settings {
            folder: folder.clone(),
            config: config(&folder, &nas),
            node_name: "worker-1".to_owned(),
            log_level: plan.log_level,
            mode: if plan.node == Node::None {
                "controller"
            } else {
                "all"
            },
            more: plan.driver,
        };
        let plugin = Plugin::start(&plugin_settings, initiator.as_ref()).await?;
        Ok(Self {
            plugin,
            initiator,
            nas,
            plugin_settings,
            _reporter: Reporter(folder.clone()),
            _janitor: janitor,
            folder,
        })
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The node.
    ///
    /// # Errors
    /// The cluster has none.
    pub fn initiator(&self) -> Result<&Initiator> {
        self.initiator.as_ref().context("this cluster has no node")
    }

    /// Kills the driver, as a crash does, and starts it again.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn restart_driver(&mut self) -> Result<()> {
        self.plugin.process.kill();
        self.plugin = Plugin::start(&self.plugin_settings, self.initiator.as_ref()).await?;
        Ok(())
    }

    /// Like [`Self::restart_driver`], but waits only until it answers `Probe`.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn restart_driver_until_probe(&mut self) -> Result<()> {
        self.plugin.process.kill();
        self.plugin = Plugin::begin(&self.plugin_settings, self.initiator.as_ref()).await?;
        Ok(())
    }

    /// Starts a second driver on the same NAS, with another configuration text, name or mode.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn another_driver(
        &self,
        name: &str,
        change: impl FnOnce(&mut plugin::Settings),
    ) -> Result<Plugin> {
        let folder = self.folder.join(name);
        std::fs::create_dir_all(&folder)?;
        let mut settings = plugin::Settings {
            folder,
            ..self.plugin_settings.clone()
        };
        change(&mut settings);
        Plugin::start(&settings, self.initiator.as_ref()).await
    }

    /// Leaves everything running for inspection: no cleanup.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn keep(self) -> Result<()> {
        std::fs::write(self.folder.join(janitor::KEEP), "")?;
        std::mem::forget(self);
        Ok(())
    }

    /// What volumes have left behind, as text: LUNs and targets on the NAS, files in its state directory, and sessions, devices,
    /// mounts and node records on the node. Empty if all is clean.
    ///
    /// # Errors
    /// The NAS does not answer, or a file cannot be read.
    pub async fn leftovers(&self) -> Result<Vec<String>> {
        let mut left = Vec::new();
        let mut found = |what: &str, number: usize| {
            if number > 0 {
                left.push(format!("{number} {what}"));
            }
        };
        let (luns, state) = (self.nas.luns().await?, self.nas.state().await?);
        let foreign = state["luns"].as_array().map_or(0, Vec::len) - luns.len();
        found("LUNs on the NAS", luns.len());
        found(
            "targets on the NAS",
            state["targets"].as_array().map_or(0, Vec::len),
        );
        found(
            "LUN files in the state directory",
            files(&self.nas.folder().join("luns"))?.saturating_sub(foreign),
        );
        found(
            "changes of foreign objects",
            usize::from(!self.nas.is_untouched().await?),
        );
        found(
            "exports in the state directory",
            files(&self.nas.targets())?,
        );
        found("mounts", mounts_below(&self.folder)?.len());
        if let Some(initiator) = &self.initiator {
            found(
                "iSCSI sessions",
                initiator.count("sys/class/iscsi_session")?,
            );
            if initiator.is_simulated() {
                found(
                    "links to block devices",
                    initiator.count("sys/class/block")?,
                );
            }
            found("node records", initiator.count("etc/iscsi/nodes")?);
            found("loop devices", loop_devices(self.nas.folder())?);
        }
        Ok(left)
    }
}

/// Loop devices whose backing file lies below `folder`.
///
/// # Errors
/// losetup fails.
pub fn loop_devices(folder: &Path) -> Result<usize> {
    let listed = crate::harness::process::run(
        "losetup",
        ["--list", "--json", "--output", "NAME,BACK-FILE"],
    )?;
    let Ok(listed) = serde_json::from_str::<Value>(&listed) else {
        return Ok(0);
    };
    let devices = listed["loopdevices"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let folder = folder.to_string_lossy();
    Ok(devices
        .iter()
        .filter(|device| {
            device["back-file"]
                .as_str()
                .is_some_and(|file| file.starts_with(&*folder))
        })
        .count())
}

fn with_foreign_objects(nas: nas::Settings) -> nas::Settings {
    nas::Settings {
        shared: true,
        crashed: true,
        ..nas
    }
}

/// Whether tests run on a NAS that holds foreign objects.
fn is_shared() -> bool {
    #[expect(
        clippy::disallowed_methods,
        reason = "set by cargo ci to run the same tests on a shared NAS"
    )]
    let nas = std::env::var("E2E_NAS");
    nas.is_ok_and(|nas| nas == "shared")
}

fn files(folder: &Path) -> Result<usize> {
    match std::fs::read_dir(folder) {
        // Hidden files are locks, which stay.
        Ok(entries) => Ok(entries
            .flatten()
            .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
            .count()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error.into()),
    }
}

fn config(folder: &Path, nas: &Nas) -> String {
    format!(
        "nas:\n  - name: nas1\n    url: {}\n    username: admin\n    password_file: {}\n    portals: ['{}']\nstate_file: {}\nchap_key_file: {}\n",
        nas.api,
        nas.password_file().display(),
        nas.settings().portals.join("', '"),
        folder.join("refused.json").display(),
        nas.chap_key_file().display(),
    )
}

/// Prints the end of the driver's log when a test fails, before the folder is removed.
#[derive(Debug)]
struct Reporter(PathBuf);

impl Drop for Reporter {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.0.join("driver.log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!(
                "the end of the driver's log:\n{}",
                lines[lines.len().saturating_sub(30)..].join("\n")
            );
        }
    }
}
