//! A node: a host root of node-sim, the command interceptor, and the kubelet's directory. Cheap to observe and to reset: programs
//! run only if there is something to undo.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, umount2};

use crate::harness::initiator::Initiator;
use crate::harness::janitor::mounts_below;
use crate::harness::test_volume::TestVolume;
use crate::harness::until::until;
use crate::interceptor::{self, CommandInterceptor};
use crate::model::step::FILE_ACCESSES;
use crate::testbed::{CrashTiming, HostFault};

const INITIATOR_NAME: &str = "etc/iscsi/initiatorname.iscsi";

/// A node.
#[derive(Debug)]
pub(super) struct Machine {
    /// The folder of its driver and its kubelet.
    pub(super) home: PathBuf,
    pub(super) initiator: Initiator,
    pub(super) interceptor: CommandInterceptor,
    /// The content of the initiator name file, as node-sim made it.
    initiator_name: String,
}

impl Machine {
    /// Makes a node that logs in to the targets in the folder `targets`.
    ///
    /// # Errors
    /// node-sim fails, or a file cannot be written.
    pub(super) fn make(home: &Path, targets: &Path) -> Result<Self> {
        fs::create_dir_all(home.join("kubelet"))?;
        let initiator = Initiator::init(home, targets)?;
        let interceptor = CommandInterceptor::build(&home.join("interceptor"), &initiator.bin())?;
        let initiator_name = fs::read_to_string(initiator.root().join(INITIATOR_NAME))?;
        Ok(Self {
            home: home.to_owned(),
            initiator,
            interceptor,
            initiator_name,
        })
    }

    /// The block device of a volume's LUN.
    ///
    /// # Errors
    /// The volume is not attached.
    pub(super) fn device(&self, volume: &TestVolume) -> Result<PathBuf> {
        let iqn = volume
            .publish_context
            .get("iqn")
            .context("the volume is not published")?;
        self.initiator.device(iqn)
    }

    pub(super) fn inject_fault(&mut self, fault: &HostFault) -> Result<()> {
        let mut fault = fault.clone();
        // File accesses are not intercepted, so the fault hits the next command instead.
        if FILE_ACCESSES.contains(&fault.command.as_str()) {
            fault.command.clear();
        }
        self.interceptor.inject_fault(&fault)
    }

    pub(super) fn crash_at(&self, nth: usize, when: CrashTiming) -> Result<()> {
        // Some commands take a millisecond, others ten: each number has its own moment.
        let moment = u32::try_from(nth * 1_700 % 8_000)?;
        let when = match when {
            CrashTiming::Before => interceptor::StopAt::Before,
            CrashTiming::During => interceptor::StopAt::During(moment),
            CrashTiming::After => interceptor::StopAt::After,
        };
        self.interceptor.arm_to_kill(nth, when)
    }

    /// A power cut: ends all commands, mounts and sessions; what is on disk stays: records and directories. The driver is already
    /// dead.
    ///
    /// # Errors
    /// A resource cannot be freed.
    pub(super) async fn power_off(&self) -> Result<()> {
        let running = async || self.interceptor.kill_commands();
        until("the commands of the node end", running, |running| !running).await?;
        let kubelet = self.home.join("kubelet");
        let unmount = async || unmount_below(&kubelet);
        until("the mounts of the node are gone", unmount, |left| {
            *left == 0
        })
        .await?;
        if !is_empty(&self.initiator.root().join("var/node-sim/sessions"))? {
            self.initiator.cleanup()?;
        }
        Ok(())
    }

    /// Resets the node to its state after [`Self::make`].
    ///
    /// # Errors
    /// A resource cannot be freed.
    pub(super) async fn clear(&self) -> Result<()> {
        self.power_off().await?;
        let root = self.initiator.root();
        for folder in ["nodes", "send_targets", "static"] {
            empty(&root.join("etc/iscsi").join(folder))?;
        }
        fs::write(root.join(INITIATOR_NAME), &self.initiator_name)?;
        empty(&self.home.join("kubelet"))
    }

    /// Empties the node's own disks and sets its initiator name. The driver is already dead.
    ///
    /// # Errors
    /// A resource cannot be freed.
    pub(super) async fn reimage(&self, initiator: &str) -> Result<()> {
        self.clear().await?;
        let text = format!("InitiatorName={initiator}\n");
        Ok(fs::write(self.initiator.root().join(INITIATOR_NAME), text)?)
    }
}

/// Returns the number of mounts that are left.
fn unmount_below(folder: &Path) -> Result<usize> {
    for point in mounts_below(folder)?.iter().rev() {
        // A busy one is retried by the caller.
        let _ = umount2(point, MntFlags::empty());
    }
    Ok(mounts_below(folder)?.len())
}

fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(none) if none.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn is_empty(folder: &Path) -> io::Result<bool> {
    Ok(entries(folder)?.is_empty())
}

fn empty(folder: &Path) -> Result<()> {
    for path in entries(folder)? {
        if path.is_dir() {
            fs::remove_dir_all(path)?;
        } else {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}
