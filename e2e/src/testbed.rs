//! Test beds for the model, the crash search and the fault matrix: two controllers on one NAS and a few nodes, where processes
//! can crash, commands can fail and replies can be lost. [`memory`] runs in this process, in virtual time; [`real`] has
//! processes, block devices and file systems; [`pool`] hands out either.

pub mod memory;
pub mod pool;
pub mod real;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::harness::plugin::Csi;
use crate::harness::test_volume::TestVolume;

/// Prefix of every password of a test bed, and of nothing else: leaked secrets are found by searching for it.
pub const SECRET_PREFIX: &str = "planted-";

/// The DSM error code with which the NAS of a test bed refuses to shrink a LUN; nothing else returns it. What a real NAS does is
/// unknown, so the driver must never ask for it.
pub const SHRINK_REFUSED: u32 = 18_990_599;

/// A process of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Process {
    /// One of the controllers.
    Controller(usize),
    /// The plugin of a node.
    Node(usize),
}

/// When a process crashes, relative to one of its effects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CrashTiming {
    /// The effect does not happen.
    Before,
    /// The effect is interrupted. Only some commands support that; for the others it is the same as [`CrashTiming::Before`].
    During,
    /// The effect has happened, and the process does not know it.
    After,
}

impl CrashTiming {
    /// All variants.
    pub const ALL: [Self; 3] = [Self::Before, Self::During, Self::After];
}

/// How a command fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CommandFault {
    /// It does nothing and exits with 1.
    Fails,
    /// It does its work and exits with 1.
    FailsAfterwards,
    /// It does nothing and blocks until its deadline.
    Hangs,
    /// It does its work, then blocks until its deadline.
    HangsAfterwards,
    /// It does its work, exits with 0 and prints garbage.
    SaysGarbage,
    /// It does nothing and exits with 0.
    DoesNothing,
}

impl CommandFault {
    /// All variants.
    pub const ALL: [Self; 6] = [
        Self::Fails,
        Self::FailsAfterwards,
        Self::Hangs,
        Self::HangsAfterwards,
        Self::SaysGarbage,
        Self::DoesNothing,
    ];
}

/// A fault of host commands on a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostFault {
    /// A part of the command line that selects the commands: `resize2fs`, `--login`. `files`: any change of a file or directory.
    pub command: String,
    /// How they fail.
    pub fault: CommandFault,
    /// The number of matching commands to fail; 0 = all from now on.
    pub times: u32,
}

/// A LUN on the NAS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedLun {
    /// Its LUN name.
    pub name: String,
    /// Its size, bytes.
    pub size: u64,
    /// It carries the driver's owner tag.
    pub ours: bool,
    /// The description, which holds the owner tag.
    pub description: String,
    /// Its snapshots: uuid, and whether it is locked.
    pub snapshots: BTreeMap<String, bool>,
}

/// The mount that is visible at a mount point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedMount {
    /// The uuid of the LUN; `None` if its device is gone.
    pub uuid: Option<String>,
    /// A block device, not a file system.
    pub raw: bool,
    /// Mounted read-only.
    pub readonly: bool,
}

/// The iSCSI and mount state of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedNode {
    /// The IQNs of its sessions, one entry per session.
    pub sessions: Vec<String>,
    /// The IQNs of its node records.
    pub records: BTreeSet<String>,
    /// The sizes of its disks in bytes, by LUN uuid.
    pub disks: BTreeMap<String, u64>,
    /// The topmost mount at each mount point below the kubelet's directory.
    pub mounts: BTreeMap<String, ObservedMount>,
    /// The number of all mounts of volumes, hidden ones included.
    pub mount_count: usize,
    /// The paths below the kubelet's directory, without those that the kubelet itself creates.
    pub paths: BTreeSet<String>,
}

/// The state of the NAS and of all nodes, observed without the driver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// By uuid.
    pub luns: BTreeMap<String, ObservedLun>,
    /// The uuids of the mapped LUNs, by IQN.
    pub targets: BTreeMap<String, Vec<String>>,
    /// By node number.
    pub nodes: Vec<ObservedNode>,
    /// Other leftovers of volumes (files, exports, devices), as text.
    pub rest: Vec<String>,
}

impl Observation {
    /// The IQNs of a LUN's publications to a node, by the driver's own rule (design.md, "Fencing").
    pub fn publications(&self, uuid: &str, node_id: &str) -> Vec<String> {
        let is_it = |iqn: &&String| {
            publication(iqn).is_some_and(|it| it == (uuid.to_owned(), node_id.to_owned()))
        };
        self.targets.keys().filter(is_it).cloned().collect()
    }
}

/// The LUN and the node of the publication that a target stands for; `None` if it is no publication's target.
pub fn publication(iqn: &str) -> Option<(String, String)> {
    let iqn: driver::publication::Iqn = iqn.parse().ok()?;
    let (lun, node) = iqn.publication()?;
    Some((lun.to_string(), node.to_string()))
}

/// Two controllers on one NAS and a few nodes. The trait's futures are boxed, so that its code is compiled once, in this library,
/// and not again in each program that uses it.
#[tonic::async_trait(?Send)]
pub trait TestBed {
    /// CSI clients of a controller and a node.
    type Clients: Csi + Send + Sync + 'static;

    /// Clients of one of the controllers and one of the nodes, as they run now: after a restart, get new ones.
    fn clients(&self, controller: usize, node: usize) -> Self::Clients;

    /// The number of nodes.
    fn nodes(&self) -> usize;

    /// Whether a file system of this type can be grown while mounted.
    fn grows_online(&self, fs: &str) -> bool;

    /// Observes the NAS and all nodes.
    ///
    /// # Errors
    /// The state cannot be read.
    async fn observe(&self) -> Result<Observation>;

    /// Whether the file system on a volume that is attached to a node fills a device of `size` bytes.
    ///
    /// # Errors
    /// There is no file system, or its size cannot be read.
    fn fs_fills_device(&self, volume: &TestVolume, node: usize, size: u64) -> Result<bool>;

    /// A pod writes and syncs.
    ///
    /// # Errors
    /// The write fails.
    fn write(&self, volume: &TestVolume, node: usize, data: u64) -> Result<()>;

    /// A pod writes without syncing.
    ///
    /// # Errors
    /// The write fails.
    fn write_unsynced(&self, volume: &TestVolume, node: usize, data: u64) -> Result<()>;

    /// With `true`, the NAS keeps serving the sessions of targets that it deletes, and keeps their LUNs mapped; with `false`, it
    /// stops that and ends the sessions that are left. Returns false where the nodes could not be kept from writing.
    ///
    /// # Errors
    /// The control API refuses.
    async fn keep_deleted_sessions(&mut self, _: bool) -> Result<bool> {
        Ok(false)
    }

    /// A pod reads the value that was written last.
    ///
    /// # Errors
    /// The read fails.
    fn read(&self, volume: &TestVolume, node: usize) -> Result<u64>;

    /// Writes data that no probe recognizes to a LUN that is not yet formatted.
    ///
    /// # Errors
    /// The write fails.
    fn write_foreign_data(&self, volume: &TestVolume) -> Result<()>;

    /// Whether the foreign data is still there.
    ///
    /// # Errors
    /// It cannot be read.
    fn is_foreign_data_intact(&self, volume: &TestVolume) -> Result<bool>;

    /// Turns the ext4 on a volume into one that was made without support for growth. Returns false if not supported.
    ///
    /// # Errors
    /// It fails half-way.
    fn make_unresizable(&self, _: &TestVolume) -> Result<bool> {
        Ok(false)
    }

    /// Shuts the file system of a volume down on the node that has it mounted, as after an I/O error. Returns false if not
    /// supported.
    ///
    /// # Errors
    /// It fails half-way.
    fn kill_file_system(&self, _: &TestVolume, _: usize) -> Result<bool> {
        Ok(false)
    }

    /// Exports another LUN in place of this volume's, or undoes that. Returns false if not supported.
    ///
    /// # Errors
    /// It fails half-way.
    async fn swap_lun(&mut self, volume: &TestVolume, on: bool) -> Result<bool>;

    /// Whether the swapped-in LUN is unchanged.
    ///
    /// # Errors
    /// It cannot be read.
    fn is_swapped_lun_untouched(&self, volume: &TestVolume) -> Result<bool>;

    /// Sets the password that the controllers use from their next start on.
    ///
    /// # Errors
    /// It cannot be set.
    fn set_password(&mut self, password: &str) -> Result<()>;

    /// The number of logins that the NAS refused because of a wrong password.
    ///
    /// # Errors
    /// The NAS does not answer.
    async fn refused_logins(&self) -> Result<usize>;

    /// Kills a process if it is still alive, and starts it again.
    ///
    /// # Errors
    /// It does not come up.
    async fn restart(&mut self, process: Process) -> Result<()>;

    /// The processes that have crashed and were not restarted.
    fn crashed_processes(&self) -> Vec<Process>;

    /// Makes a process crash at its `nth` effect from now; the first is 1.
    ///
    /// # Errors
    /// The crash cannot be set up.
    async fn crash_at(&mut self, process: Process, nth: usize, when: CrashTiming) -> Result<()>;

    /// The name of the effect at which the process crashed since the last [`TestBed::crash_at`], if it did. Disarms the crash.
    ///
    /// # Errors
    /// It cannot be read.
    async fn crashed_at(&mut self, process: Process) -> Result<Option<String>>;

    /// Power-cycles a node.
    ///
    /// # Errors
    /// Its driver does not come up.
    async fn reboot(&mut self, node: usize) -> Result<()>;

    /// Reinstalls a node: its own disks are empty, and its initiator has this name.
    ///
    /// # Errors
    /// Its driver does not come up.
    async fn reimage(&mut self, node: usize, initiator: &str) -> Result<()>;

    /// Whether a minute of [`TestBed::pause`] is a minute for the driver, so that its actions after one minute can be seen.
    fn can_wait_minutes(&self) -> bool {
        true
    }

    /// Restarts the NAS. With `loading`, its LUNs take a while to load; until then they are `busy`, `partial` or `absent`.
    ///
    /// # Errors
    /// It does not come up.
    async fn restart_nas(&mut self, loading: Option<&str>) -> Result<()>;

    /// POST to dsm-sim's control API.
    ///
    /// # Errors
    /// The control API refuses.
    async fn post_control(&self, path: &str, body: Value) -> Result<Value>;

    /// PATCH to dsm-sim's control API: merges fields into the existing ones.
    ///
    /// # Errors
    /// The control API refuses.
    async fn patch_control(&self, path: &str, body: Value) -> Result<Value>;

    /// Allows or forbids growing a mounted ext4 on all nodes; forbidden, the driver seems to lack `CAP_SYS_RESOURCE`. Returns
    /// whether the test bed is now as requested.
    fn allow_online_ext4(&mut self, allowed: bool) -> bool {
        allowed == self.grows_online("ext4")
    }

    /// Makes commands on a node fail.
    ///
    /// # Errors
    /// The fault cannot be set up.
    fn inject_fault(&mut self, node: usize, fault: HostFault) -> Result<()>;

    /// Clears all faults of the NAS and of all nodes.
    ///
    /// # Errors
    /// The NAS does not answer.
    async fn clear_faults(&mut self) -> Result<()>;

    /// How many commands and file accesses on nodes were hit by a fault so far.
    ///
    /// # Errors
    /// The counter cannot be read.
    fn fault_hits(&self) -> Result<usize>;

    /// The CO's backoff before a retry.
    async fn pause(&self, time: Duration);

    /// All requests to the NAS and all commands of the nodes, in order.
    ///
    /// # Errors
    /// The journal cannot be read.
    async fn journal(&self) -> Result<Vec<String>>;

    /// The folder on a node that holds the kubelet's directory.
    fn node_home(&self, node: usize) -> &Path;
}
