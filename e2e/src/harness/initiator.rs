//! The node: a host root and an `iscsiadm` of node-sim for the driver, or this machine's own.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::harness::process;

/// A host root made by node-sim, or that of this machine.
#[derive(Debug)]
pub struct Initiator {
    root: PathBuf,
    targets: PathBuf,
    simulated: bool,
}

impl Initiator {
    /// Makes one in `folder/node`, which finds the targets in `targets`.
    ///
    /// # Errors
    /// node-sim fails.
    pub fn init(folder: &Path, targets: &Path) -> Result<Self> {
        let root = folder.join("node");
        // Commands are killed all the time; the lock that they leave is waited for, but not for half a minute.
        node_sim(&[
            "init",
            "--root",
            &text(&root),
            "--targets",
            &text(targets),
            "--lock-wait",
            "100",
        ])?;
        Ok(Self {
            root,
            targets: targets.to_owned(),
            simulated: true,
        })
    }

    /// Lets its multipathd be like this: `stopped`, `excluding`, as node-sim calls it.
    ///
    /// # Errors
    /// node-sim fails.
    pub fn set_multipathd(&self, state: &str) -> Result<()> {
        let (root, targets) = (text(&self.root), text(&self.targets));
        let place = ["init", "--root", &root, "--targets", &targets];
        node_sim(&[&place[..], &["--multipathd", state]].concat()).map(drop)
    }

    /// This machine's own.
    pub fn real() -> Self {
        Self {
            root: PathBuf::from("/"),
            targets: PathBuf::new(),
            simulated: false,
        }
    }

    /// It was made by node-sim.
    pub fn is_simulated(&self) -> bool {
        self.simulated
    }

    /// For the driver's `--host-root`.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// To stand first on the driver's `PATH`.
    pub fn bin(&self) -> PathBuf {
        self.root.join("bin")
    }

    /// Sessions, their devices, node records.
    ///
    /// # Errors
    /// node-sim fails.
    pub fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(&node_sim(&[
            "status",
            "--root",
            &text(&self.root),
            "--json",
        ])?)?)
    }

    /// Logs out of everything and frees all loop devices that nobody uses, as the end of the kernel does. Records stay.
    ///
    /// # Errors
    /// node-sim fails.
    pub fn cleanup(&self) -> Result<()> {
        node_sim(&["cleanup", "--root", &text(&self.root)]).map(drop)
    }

    /// The loop device that stands for the LUN at `iqn`, for instance `/dev/loop3`.
    ///
    /// # Errors
    /// There is no session with that target.
    pub fn device(&self, iqn: &str) -> Result<PathBuf> {
        let sessions = self.root.join("sys/class/iscsi_session");
        for session in std::fs::read_dir(sessions)? {
            let session = session?.path();
            if std::fs::read_to_string(session.join("targetname"))
                .is_ok_and(|name| name.trim() == iqn)
            {
                return device_below(&session.join("device"))
                    .with_context(|| format!("no device in the session with {iqn}"));
            }
        }
        anyhow::bail!("no session with {iqn}")
    }

    /// Entries of open-iscsi's tree below `sys/class` and `etc/iscsi`, for instance `iscsi_session`: their number.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn count(&self, folder: &str) -> Result<usize> {
        match std::fs::read_dir(self.root.join(folder)) {
            Ok(entries) => Ok(entries.count()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error.into()),
        }
    }
}

fn device_below(session: &Path) -> Option<PathBuf> {
    let targets = entries(session)
        .into_iter()
        .filter(|path| name(path).starts_with("target"));
    let units = targets
        .flat_map(|target| entries(&target))
        .filter(|path| name(path).contains(':'));
    let mut blocks = units.flat_map(|unit| entries(&unit.join("block")));
    blocks
        .next()
        .map(|block| Path::new("/dev").join(name(&block)))
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect()
}

fn name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn node_sim(args: &[&str]) -> Result<String> {
    process::run(&text(&process::binary("node-sim")?), args)
}
