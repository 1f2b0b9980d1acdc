//! A node: a host root of node-sim's, a gate before all host commands, and the kubelet's folder. Cheap to look at and to
//! clear: no program is started unless there is something to undo.

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
    /// Where its driver and its kubelet keep what they have.
    pub(super) home: PathBuf,
    pub(super) initiator: Initiator,
    pub(super) trap: CommandInterceptor,
    /// The file with its initiator's name, as it was made.
    named: String,
}

impl Machine {
    /// Makes one that reaches the targets in `targets`.
    ///
    /// # Errors
    /// node-sim fails, or a file cannot be written.
    pub(super) fn make(home: &Path, targets: &Path) -> Result<Self> {
        fs::create_dir_all(home.join("kubelet"))?;
        let initiator = Initiator::init(home, targets)?;
        let trap = CommandInterceptor::build(&home.join("trap"), &initiator.bin())?;
        let named = fs::read_to_string(initiator.root().join(INITIATOR_NAME))?;
        Ok(Self {
            home: home.to_owned(),
            initiator,
            trap,
            named,
        })
    }

    /// The device that stands for the LUN.
    ///
    /// # Errors
    /// It is not attached.
    pub(super) fn device(&self, life: &TestVolume) -> Result<PathBuf> {
        let iqn = life
            .publish_context
            .get("iqn")
            .context("it is not published")?;
        self.initiator.device(iqn)
    }

    pub(super) fn inject_fault(&mut self, fault: &HostFault) -> Result<()> {
        let mut fault = fault.clone();
        // They pass no gate, so it hits the next command instead, whatever that is.
        if FILE_ACCESSES.contains(&fault.command.as_str()) {
            fault.command.clear();
        }
        self.trap.inject_fault(&fault)
    }

    pub(super) fn crash_at(&self, nth: usize, when: CrashTiming) -> Result<()> {
        // Some commands take a millisecond, others ten: each number has its own moment.
        let moment = u32::try_from(nth * 1_700 % 8_000)?;
        let when = match when {
            CrashTiming::Before => interceptor::StopAt::Before,
            CrashTiming::During => interceptor::StopAt::During(moment),
            CrashTiming::After => interceptor::StopAt::After,
        };
        self.trap.arm_to_kill(nth, when)
    }

    /// What the kernel and every process has of volumes is gone; what is written to disks stays: records and directories.
    /// The driver is dead already.
    ///
    /// # Errors
    /// Something cannot be freed.
    pub(super) async fn power_off(&self) -> Result<()> {
        let still = async || self.trap.kill_commands();
        until("the commands of the node end", still, |still| !still).await?;
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

    /// As if it had never been used.
    ///
    /// # Errors
    /// Something cannot be freed.
    pub(super) async fn clear(&self) -> Result<()> {
        self.power_off().await?;
        let root = self.initiator.root();
        for folder in ["nodes", "send_targets", "static"] {
            empty(&root.join("etc/iscsi").join(folder))?;
        }
        fs::write(root.join(INITIATOR_NAME), &self.named)?;
        empty(&self.home.join("kubelet"))
    }

    /// Nothing is left of what was on its own disks, and its initiator has this name. The driver is dead already.
    ///
    /// # Errors
    /// Something cannot be freed.
    pub(super) async fn reimage(&self, initiator: &str) -> Result<()> {
        self.clear().await?;
        let text = format!("InitiatorName={initiator}\n");
        Ok(fs::write(self.initiator.root().join(INITIATOR_NAME), text)?)
    }
}

/// Answers how many mounts are left.
fn unmount_below(folder: &Path) -> Result<usize> {
    for point in mounts_below(folder)?.iter().rev() {
        // One that is busy is tried again.
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
