//! The steps that a sequence consists of. Pure.

use serde::{Deserialize, Serialize};

use super::environment::{Environment, HiddenLists, ManualEdit};
pub use super::fault::{COMMANDS, FILE_ACCESSES, Fault, NasCall, NasFault};
use crate::harness::test_volume::Content;

/// The content of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// An ext4 file system.
    Ext4,
    /// An xfs file system.
    Xfs,
    /// A btrfs file system.
    Btrfs,
    /// A raw block device.
    Raw,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Ext4, Self::Xfs, Self::Btrfs, Self::Raw];

    /// The same as the harness's type.
    pub fn content(self) -> Content {
        match self {
            Self::Ext4 => Content::Fs("ext4"),
            Self::Xfs => Content::Fs("xfs"),
            Self::Btrfs => Content::Fs("btrfs"),
            Self::Raw => Content::Block,
        }
    }
}

/// One CSI call for one volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum CsiCall {
    /// `CreateVolume`.
    Create {
        /// `required_bytes`, in MiB.
        mib: i64,
        /// The content, if the volume does not exist yet.
        kind: Kind,
    },
    /// `DeleteVolume`.
    Delete,
    /// `ControllerExpandVolume`.
    Expand {
        /// `required_bytes`, in MiB.
        mib: i64,
    },
    /// `ControllerPublishVolume`.
    Publish {
        /// The node's number.
        node: usize,
    },
    /// `ControllerUnpublishVolume`.
    Unpublish {
        /// The node's number.
        node: usize,
    },
    /// `NodeStageVolume`, on the node that it is published to.
    Stage,
    /// `ControllerExpandVolume` to more than the NAS has.
    ExpandTooFar,
    /// `NodePublishVolume`.
    NodePublish,
    /// `NodePublishVolume` with `readonly`.
    NodePublishReadonly,
    /// `NodeExpandVolume` to the size of the LUN.
    NodeExpand,
    /// `NodeUnpublishVolume`.
    NodeUnpublish,
    /// `NodeUnstageVolume`.
    Unstage,
}

/// How a CO makes the first try of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Delivery {
    /// One call.
    Once,
    /// The same call twice concurrently, to the same process.
    Twice,
    /// The same call twice concurrently; calls to a controller go to both controllers.
    TwoControllers,
    /// The CO cancels it after this many milliseconds and retries.
    Cancelled(u64),
}

/// What happens while a volume is used on another node behind its node's back.
#[expect(clippy::struct_excessive_bools, reason = "independent events")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Absence {
    /// The CO stages it again afterwards; otherwise it believes that it is still staged.
    pub stage: bool,
    /// The former pod has written data that it did not sync.
    pub unsynced: bool,
    /// The node's driver is restarted meanwhile.
    pub restart: bool,
    /// The NAS keeps serving the node's session after it has deleted the target. Only on test beds that support it.
    pub kept: bool,
}

/// One step of a sequence.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Step {
    /// A call, retried until its expected result.
    Call {
        /// The number of the volume.
        volume: u8,
        /// The call.
        call: CsiCall,
        /// How the first try is made.
        delivery: Delivery,
        /// The controller's number.
        controller: usize,
    },
    /// Publishes, stages and node-publishes it on this node, or on the node that already has it.
    Attach {
        /// The number of the volume.
        volume: u8,
        /// The node's number.
        node: usize,
    },
    /// Node-unpublishes, unstages and unpublishes it.
    Detach {
        /// The number of the volume.
        volume: u8,
    },
    /// A claim grows: the LUN, then the node.
    Grow {
        /// The number of the volume.
        volume: u8,
        /// `required_bytes`, in MiB.
        mib: i64,
    },
    /// The LUN grows while the node executes another call for the volume.
    GrowConcurrently {
        /// The number of the volume.
        volume: u8,
        /// `required_bytes`, in MiB.
        mib: i64,
        /// A call to the node.
        call: CsiCall,
    },
    /// Foreign data is written to a LUN that was never formatted: no file system, but not blank.
    WriteForeignData {
        /// The number of the volume.
        volume: u8,
    },
    /// The ext4 of a volume turns out not to be growable.
    MakeUnresizable {
        /// The number of the volume.
        volume: u8,
    },
    /// A file system is shut down under its pod; the pod ends, and the next one starts.
    KillFileSystem {
        /// The number of the volume.
        volume: u8,
    },
    /// The target exports another LUN in place of the volume's for a while.
    SwapLun {
        /// The number of the volume.
        volume: u8,
    },
    /// A CO makes a call for a foreign LUN.
    UseForeignLun {
        /// Which call: 0 to 3.
        call: u8,
    },
    /// The account's password is changed on the NAS, and later in the driver's configuration.
    RotatePassword,
    /// A pod writes, if the volume has one.
    Write {
        /// The number of the volume.
        volume: u8,
    },
    /// The volume is unpublished from a node that is believed dead, and published to the other; then the first node comes back.
    Fence {
        /// The number of the volume.
        volume: u8,
    },
    /// The volume is unpublished behind its node's back, used on the other node, and published back.
    Away {
        /// The number of the volume.
        volume: u8,
        /// What else happens meanwhile.
        absence: Absence,
    },
    /// Two controllers publish it to two nodes concurrently; then it is unpublished from both.
    Race {
        /// The number of the volume.
        volume: u8,
    },
    /// A fault is injected.
    Fault(Fault),
    /// A process is killed and restarted.
    Restart {
        /// The plugin of this node; `None`: the first controller.
        node: Option<usize>,
    },
    /// A node is power-cycled.
    Reboot {
        /// The node's number.
        node: usize,
    },
    /// The NAS restarts; its LUNs are loaded at once or after a while.
    RestartNas {
        /// The state of the LUNs until then: `busy`, `partial` or `absent`.
        loading: Option<String>,
    },
    /// A node is reinstalled, and comes back with another initiator name.
    Reimage {
        /// The node's number.
        node: usize,
    },
    /// All Web API sessions end.
    ExpireSessions,
    /// The driver's IP address changes after it has logged in.
    ChangeClientAddress,
    /// The NAS lists foreign objects and reports unusual statuses.
    ChangeEnvironment(Environment),
    /// The lists of the NAS cannot be trusted for a while.
    HideLists(HiddenLists),
    /// A person edits the volume's LUN in SAN Manager.
    EditByHand {
        /// The number of the volume.
        volume: u8,
        /// The edit.
        what: ManualEdit,
    },
    /// `ListVolumes` must return all volumes, or fail.
    List,
}
