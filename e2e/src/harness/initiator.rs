//! The node's iSCSI initiator: a host root and an `iscsiadm` of node-sim for the driver, or this machine's own.

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
    /// Makes a host root in `folder/node`; its targets are in the folder `targets`.
    ///
    /// # Errors
    /// node-sim fails.
    pub fn init(folder: &Path, targets: &Path) -> Result<Self> {
        let root = folder.join("node");
        // Commands are often killed and leave a lock behind: wait for it, but not for half a minute.
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

    /// Sets the state of its multipathd, in node-sim's words: `stopped`, `excluding`.
    ///
    /// # Errors
    /// node-sim fails.
    pub fn set_multipathd(&self, state: &str) -> Result<()> {
        let (root, targets) = (text(&self.root), text(&self.targets));
        let init = ["init", "--root", &root, "--targets", &targets];
        node_sim(&[&init[..], &["--multipathd", state]].concat()).map(drop)
    }

    /// This machine's own.
    pub fn real() -> Self {
        Self {
            root: PathBuf::from("/"),
            targets: PathBuf::new(),
            simulated: false,
        }
    }

    /// Whether node-sim made it.
    pub fn is_simulated(&self) -> bool {
        self.simulated
    }

    /// For the driver's `--host-root`.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder to put first on the driver's `PATH`.
    pub fn bin(&self) -> PathBuf {
        self.root.join("bin")
    }

    /// Sessions, their devices and node records, as JSON.
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

    /// Logs out of all sessions and frees unused loop devices, as a shutdown does. Node records stay.
    ///
    /// # Errors
    /// node-sim fails.
    pub fn cleanup(&self) -> Result<()> {
        node_sim(&["cleanup", "--root", &text(&self.root)]).map(drop)
    }

    /// The loop device of the LUN at the target `iqn`, for instance `/dev/loop3`.
    ///
    /// # Errors
    /// There is no session with that target, or it has no device.
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

    /// The number of entries in a folder of open-iscsi below the host root, for instance `sys/class/iscsi_session`.
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
