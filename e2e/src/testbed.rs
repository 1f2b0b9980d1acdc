//! Places to run the model, the crash search and the fault matrix: two controllers on one NAS and a few nodes, where processes can
//! crash, commands can fail and replies can be lost. [`memory`] is in this process, in virtual time; [`real`] has processes, block
//! devices and file systems; [`pool`] hands out either.

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

/// Every password of a plane begins with it, and nothing else does: whoever looks for secrets that are told looks for this.
pub const SECRET_PREFIX: &str = "planted-";

/// The code with which the NAS of a plane refuses to make a LUN smaller, and nothing else: nobody knows what a real one would
/// do, so nobody may ask it to.
pub const SHRINK_REFUSED: u32 = 18_990_599;

/// A process of the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Process {
    /// One of the controllers.
    Controller(usize),
    /// The plugin of a node.
    Node(usize),
}

/// When a process dies, as seen from one of its effects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CrashTiming {
    /// The effect does not happen.
    Before,
    /// It is broken off. Only some commands can be; with others it is like [`When::Before`].
    During,
    /// It has happened, and the process does not know it.
    After,
}

impl CrashTiming {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Before, Self::During, Self::After];
}

/// What is wrong with a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CommandFault {
    /// It does nothing and exits with 1.
    Fails,
    /// It does all and exits with 1.
    FailsAfterwards,
    /// It does nothing until its deadline.
    Hangs,
    /// It does all, and then nothing until its deadline.
    HangsAfterwards,
    /// It does all, exits with 0 and prints nonsense.
    SaysGarbage,
    /// It does nothing and exits with 0.
    DoesNothing,
}

impl CommandFault {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Fails,
        Self::FailsAfterwards,
        Self::Hangs,
        Self::HangsAfterwards,
        Self::SaysGarbage,
        Self::DoesNothing,
    ];
}

/// A command of a node that goes wrong.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostFault {
    /// A part of the command line, by which it is known: `resize2fs`, `--login`. `files`: any change of a file or directory.
    pub command: String,
    /// What is wrong with it.
    pub fault: CommandFault,
    /// How many of such commands; 0 = all of them from now on.
    pub times: u32,
}

/// A LUN on the NAS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedLun {
    /// Its name.
    pub name: String,
    /// Its size, bytes.
    pub size: u64,
    /// It bears the driver's mark.
    pub ours: bool,
    /// Where that stands.
    pub description: String,
    /// Its snapshots, by uuid, and whether somebody has locked them.
    pub snapshots: BTreeMap<String, bool>,
}

/// What is visible at a mount point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedMount {
    /// The uuid of the LUN, or nothing when its device is gone.
    pub uuid: Option<String>,
    /// A block device and not a file system.
    pub raw: bool,
    /// Nothing can be written through it.
    pub readonly: bool,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedNode {
    /// The targets that it has sessions with, one entry a session.
    pub sessions: Vec<String>,
    /// The targets that it has records of.
    pub records: BTreeSet<String>,
    /// The sizes of its disks by the uuids of their LUNs, bytes.
    pub disks: BTreeMap<String, u64>,
    /// What is mounted where the CO may see it.
    pub mounts: BTreeMap<String, ObservedMount>,
    /// The number of all mounts that have to do with volumes.
    pub mount_count: usize,
    /// What there is below the CO's directories, those that the CO makes left out.
    pub paths: BTreeSet<String>,
}

/// Everything, by ways that do not lead through the driver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// By uuid.
    pub luns: BTreeMap<String, ObservedLun>,
    /// The uuids of what is mapped, by IQN.
    pub targets: BTreeMap<String, Vec<String>>,
    /// In their order.
    pub nodes: Vec<ObservedNode>,
    /// More that is left of volumes: files, exports, devices; in words.
    pub rest: Vec<String>,
}

impl Observation {
    /// The targets of a LUN's publications to a node, by the driver's own rule (design.md, "Fencing").
    pub fn publications(&self, uuid: &str, node_id: &str) -> Vec<String> {
        let is_it = |iqn: &&String| {
            publication(iqn).is_some_and(|it| it == (uuid.to_owned(), node_id.to_owned()))
        };
        self.targets.keys().filter(is_it).cloned().collect()
    }
}

/// The LUN and the node that a target publishes one to the other.
pub fn publication(iqn: &str) -> Option<(String, String)> {
    let iqn: driver::publication::Iqn = iqn.parse().ok()?;
    let (lun, node) = iqn.publication()?;
    Some((lun.to_string(), node.to_string()))
}

/// A world of two controllers on one NAS and a few nodes. Its futures are boxed, so that its code is compiled once, in this library,
/// and not once more in each program that plays on it.
#[tonic::async_trait(?Send)]
pub trait TestBed {
    /// Who calls, and whom.
    type Clients: Csi + Send + Sync + 'static;

    /// A CO that speaks to one of the controllers and to one of the nodes, in their present life.
    fn clients(&self, controller: usize, node: usize) -> Self::Clients;

    /// How many nodes there are.
    fn nodes(&self) -> usize;

    /// Whether a file system of this type can be grown while it is mounted.
    fn grows_online(&self, fs: &str) -> bool;

    /// Looks at everything.
    ///
    /// # Errors
    /// It cannot be seen.
    async fn observe(&self) -> Result<Observation>;

    /// Whether the file system on a volume that is attached to a node fills a device of `size` bytes.
    ///
    /// # Errors
    /// There is none, or it cannot be asked.
    fn fs_fills_device(&self, life: &TestVolume, node: usize, size: u64) -> Result<bool>;

    /// A pod writes.
    ///
    /// # Errors
    /// It cannot.
    fn write(&self, life: &TestVolume, node: usize, data: u64) -> Result<()>;

    /// A pod writes and does not sync.
    ///
    /// # Errors
    /// It cannot.
    fn write_unsynced(&self, life: &TestVolume, node: usize, data: u64) -> Result<()>;

    /// Lets the NAS go on serving the sessions of targets that it deletes, and keep what is mapped there; or not any more, and ends
    /// what it still serves. False where the nodes could not be kept from writing.
    ///
    /// # Errors
    /// The knob's.
    async fn keep_deleted_sessions(&mut self, _: bool) -> Result<bool> {
        Ok(false)
    }

    /// A pod reads what was written last.
    ///
    /// # Errors
    /// It cannot.
    fn read(&self, life: &TestVolume, node: usize) -> Result<u64>;

    /// Somebody writes to a LUN that bears nothing yet, what no probe knows.
    ///
    /// # Errors
    /// It cannot be written.
    fn write_foreign_data(&self, life: &TestVolume) -> Result<()>;

    /// Whether that is still there.
    ///
    /// # Errors
    /// It cannot be read.
    fn is_foreign_data_intact(&self, life: &TestVolume) -> Result<bool>;

    /// The ext4 on a volume is one that nothing grows, and always was. False where that cannot be played.
    ///
    /// # Errors
    /// It was begun and not done.
    fn make_unresizable(&self, _: &TestVolume) -> Result<bool> {
        Ok(false)
    }

    /// The file system of a volume dies on the node that has it mounted, as after an error of its disk. False where that cannot
    /// be played.
    ///
    /// # Errors
    /// It was begun and not done.
    fn kill_file_system(&self, _: &TestVolume, _: usize) -> Result<bool> {
        Ok(false)
    }

    /// Shows another LUN in the place of this volume's to the nodes, or takes that back. False where that cannot be done.
    ///
    /// # Errors
    /// It was begun and not done.
    async fn swap_lun(&mut self, life: &TestVolume, on: bool) -> Result<bool>;

    /// Whether that other LUN is as it was.
    ///
    /// # Errors
    /// It cannot be read.
    fn is_swapped_lun_untouched(&self, life: &TestVolume) -> Result<bool>;

    /// From their next start on, the controllers have this password.
    ///
    /// # Errors
    /// They cannot be told.
    fn set_password(&mut self, password: &str) -> Result<()>;

    /// Logins that the NAS has refused because of their password.
    ///
    /// # Errors
    /// It cannot be told.
    async fn refused_logins(&self) -> Result<usize>;

    /// Kills a process, if it still lives, and starts it again.
    ///
    /// # Errors
    /// It does not come up.
    async fn restart(&mut self, process: Process) -> Result<()>;

    /// The processes that have died and were not started again.
    fn crashed_processes(&self) -> Vec<Process>;

    /// Lets a process die at its `nth` effect from now: the first is 1.
    ///
    /// # Errors
    /// It cannot be arranged.
    async fn crash_at(&mut self, process: Process, nth: usize, when: CrashTiming) -> Result<()>;

    /// Whether the last [`Plane::trip`] has come to its effect; it is taken away. Its name.
    ///
    /// # Errors
    /// It cannot be told.
    async fn crashed_at(&mut self, process: Process) -> Result<Option<String>>;

    /// The power of a node fails, and comes back.
    ///
    /// # Errors
    /// Its driver does not come up.
    async fn reboot(&mut self, node: usize) -> Result<()>;

    /// A node is installed anew: nothing is left on its own disks, and its initiator has this name.
    ///
    /// # Errors
    /// Its driver does not come up.
    async fn reimage(&mut self, node: usize, initiator: &str) -> Result<()>;

    /// A minute of a CO's is one of the driver's: who waits sees what the driver does only after a minute.
    fn can_wait_minutes(&self) -> bool {
        true
    }

    /// The NAS restarts; its LUNs are loaded in a while: `busy`, `partial` or `absent` until then.
    ///
    /// # Errors
    /// It does not come up.
    async fn restart_nas(&mut self, loading: Option<&str>) -> Result<()>;

    /// Turns a knob of dsm-sim: a POST to this path.
    ///
    /// # Errors
    /// The knob's.
    async fn post_control(&self, path: &str, body: Value) -> Result<Value>;

    /// Turns a knob of dsm-sim that lays fields over what is there: a PATCH to this path.
    ///
    /// # Errors
    /// The knob's.
    async fn patch_control(&self, path: &str, body: Value) -> Result<Value>;

    /// Lets no node grow an ext4 that is mounted, as if its driver lacked `CAP_SYS_RESOURCE`; or lets it again. Whether it
    /// is as was asked for.
    fn allow_online_ext4(&mut self, allowed: bool) -> bool {
        allowed == self.grows_online("ext4")
    }

    /// Lets a command on a node go wrong.
    ///
    /// # Errors
    /// It cannot be arranged.
    fn inject_fault(&mut self, node: usize, fault: HostFault) -> Result<()>;

    /// Ends all faults, of the NAS and of all nodes.
    ///
    /// # Errors
    /// The NAS does not answer.
    async fn clear_faults(&mut self) -> Result<()>;

    /// How many faults of nodes were met so far.
    ///
    /// # Errors
    /// It cannot be told.
    fn fault_hits(&self) -> Result<usize>;

    /// A CO waits before it tries again.
    async fn pause(&self, time: Duration);

    /// What was asked of the NAS and of the nodes' commands, in order.
    ///
    /// # Errors
    /// It cannot be read.
    async fn journal(&self) -> Result<Vec<String>>;

    /// The CO's directories of a node.
    fn kubelet_dir(&self, node: usize) -> &Path;
}
