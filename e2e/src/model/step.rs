//! What can happen, how often, and how sequences of it are made. Pure.

use proptest::prelude::{BoxedStrategy, Just, Strategy, any, prop_oneof};
use proptest::sample::select;
use proptest_state_machine::ReferenceStateMachine;
use serde::{Deserialize, Serialize};

use super::environment::{
    Environment, HiddenLists, ManualEdit, environment, hidden_lists, manual_edit,
};
use super::fault::fault;
pub use super::fault::{COMMANDS, FILE_ACCESSES, Fault, NasCall, NasFault};
use super::reference_model::ReferenceModel;
use crate::harness::test_volume::Content;

/// Few, so that steps meet.
pub const VOLUMES: u8 = 2;
/// As many as a plane has at least.
pub const NODES: usize = 2;

/// What a volume holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// An ext4.
    Ext4,
    /// An xfs.
    Xfs,
    /// A btrfs.
    Btrfs,
    /// Raw data.
    Raw,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ext4, Self::Xfs, Self::Btrfs, Self::Raw];

    /// As the harness calls it.
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
        /// For a volume that does not exist.
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
        /// To this node.
        node: usize,
    },
    /// `ControllerUnpublishVolume`.
    Unpublish {
        /// From this node.
        node: usize,
    },
    /// `NodeStageVolume`, where it is published.
    Stage,
    /// `ControllerExpandVolume` to more than any NAS has.
    ExpandTooFar,
    /// `NodePublishVolume`.
    NodePublish,
    /// `NodePublishVolume`, to be read only.
    NodePublishReadonly,
    /// `NodeExpandVolume` to the size of the LUN.
    NodeExpand,
    /// `NodeUnpublishVolume`.
    NodeUnpublish,
    /// `NodeUnstageVolume`.
    Unstage,
}

/// How a CO makes its first try of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Delivery {
    /// One call.
    Once,
    /// The same call twice at a time, to the same process.
    Twice,
    /// The same call twice at a time; what goes to a controller goes to two of them.
    TwoControllers,
    /// It goes away after so many milliseconds and comes again.
    Cancelled(u64),
}

/// How a volume is away from a node that was not told.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each may happen or not, whatever the others do"
)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Absence {
    /// The CO stages it again afterwards; else it believes it to be staged.
    pub stage: bool,
    /// A pod of before has written what was not synced.
    pub unsynced: bool,
    /// The node's driver is started anew meanwhile.
    pub restart: bool,
    /// The NAS serves the node's session after it has deleted the target. Only where machines are told so.
    pub kept: bool,
}

/// One step of a sequence.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Step {
    /// A call, repeated until it has come to what is due.
    Call {
        /// The number of the volume.
        volume: u8,
        /// The call.
        call: CsiCall,
        /// How it is tried first.
        delivery: Delivery,
        /// Through which controller.
        controller: usize,
    },
    /// From wherever it is to a pod on this node, or on the node that has it.
    Attach {
        /// The number of the volume.
        volume: u8,
        /// The node.
        node: usize,
    },
    /// From wherever it is to nobody.
    Detach {
        /// The number of the volume.
        volume: u8,
    },
    /// As a claim grows: the LUN, and then the node.
    Grow {
        /// The number of the volume.
        volume: u8,
        /// `required_bytes`, in MiB.
        mib: i64,
    },
    /// The LUN grows while the node does something else with the volume.
    GrowConcurrently {
        /// The number of the volume.
        volume: u8,
        /// `required_bytes`, in MiB.
        mib: i64,
        /// A call to the node.
        call: CsiCall,
    },
    /// Somebody has written to a LUN that was never formatted: no file system, but not blank.
    WriteForeignData {
        /// The number of the volume.
        volume: u8,
    },
    /// The ext4 of a volume turns out to be one that nothing grows.
    MakeUnresizable {
        /// The number of the volume.
        volume: u8,
    },
    /// A file system dies under its pod; the pod ends, and the next one comes.
    KillFileSystem {
        /// The number of the volume.
        volume: u8,
    },
    /// The target shows another LUN in the place of the volume's for a while.
    SwapLun {
        /// The number of the volume.
        volume: u8,
    },
    /// A CO asks for what is somebody else's.
    UseForeignLun {
        /// Which call.
        call: u8,
    },
    /// The account's password is changed on the NAS, and later in the driver's configuration.
    RotatePassword,
    /// A pod writes, if there is one.
    Write {
        /// The number of the volume.
        volume: u8,
    },
    /// The volume is taken from its node, which is believed to be dead, and given to the other; then that node comes back.
    Fence {
        /// The number of the volume.
        volume: u8,
    },
    /// The volume is taken from its node without the node's knowing, used by the other, and given back.
    Away {
        /// The number of the volume.
        volume: u8,
        /// What else happens.
        absence: Absence,
    },
    /// Two controllers publish it to two nodes at a time; then it is unpublished from both.
    Race {
        /// The number of the volume.
        volume: u8,
    },
    /// Something is arranged.
    Fault(Fault),
    /// A process is killed and started again: the first controller, or the plugin of this node.
    Restart {
        /// The node.
        node: Option<usize>,
    },
    /// A node loses its power.
    Reboot {
        /// The node.
        node: usize,
    },
    /// The NAS restarts; LUNs are loaded at once or in a while.
    RestartNas {
        /// `busy`, `partial` or `absent`.
        loading: Option<String>,
    },
    /// A node is installed anew, and comes back with another initiator name.
    Reimage {
        /// The node.
        node: usize,
    },
    /// All sessions of the Web API end.
    ExpireSessions,
    /// The driver's address is another one than that which it logged in from.
    ChangeClientAddress,
    /// The NAS lists what others have, and has its own words.
    ChangeEnvironment(Environment),
    /// The NAS cannot be read for a while.
    HideLists(HiddenLists),
    /// A person is at work in SAN Manager.
    EditByHand {
        /// The number of the volume.
        volume: u8,
        /// What he does.
        what: ManualEdit,
    },
    /// `ListVolumes`: all of them, or nothing.
    List,
}

/// Makes sequences.
#[derive(Clone, Debug)]
pub struct Steps;

impl ReferenceStateMachine for Steps {
    type State = ReferenceModel;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<ReferenceModel> {
        Just(ReferenceModel::default()).boxed()
    }

    fn transitions(book: &ReferenceModel) -> BoxedStrategy<Step> {
        // Mostly what the present state is waiting for, so that sequences get somewhere; and anything at all.
        let volume = 0..VOLUMES;
        let next = {
            let book = book.clone();
            (volume, 0..NODES, mib(), select(&Kind::ALL[..]))
                .prop_map(move |(volume, node, mib, kind)| next(&book, volume, node, mib, kind))
        };
        prop_oneof![
            10 => next,
            9 => call(),
            5 => (0..VOLUMES, mib()).prop_map(|(volume, mib)| Step::Grow { volume, mib }),
            3 => (0..VOLUMES).prop_map(|volume| Step::Write { volume }),
            2 => (0..VOLUMES).prop_map(|volume| Step::Detach { volume }),
            1 => (0..VOLUMES).prop_map(|volume| Step::Fence { volume }),
             2 => (0..VOLUMES, any::<[bool; 4]>()).prop_map(|(volume, [stage, unsynced, restart, kept])| {
                let absence = Absence { stage, unsynced, restart, kept };
                Step::Away { volume, absence }
            }),
            1 => (0..VOLUMES).prop_map(|volume| Step::Race { volume }),
            9 => fault().prop_map(Step::Fault),
            1 => process().prop_map(|node| Step::Restart { node }),
            1 => (0..NODES).prop_map(|node| Step::Reboot { node }),
            1 => select(&[None, Some("busy"), Some("partial"), Some("absent")][..])
                .prop_map(|loading| Step::RestartNas { loading: loading.map(str::to_owned) }),
            1 => Just(Step::ExpireSessions),
            1 => Just(Step::List),
            2 => (0..VOLUMES, mib(), node_act())
                .prop_map(|(volume, mib, call)| Step::GrowConcurrently { volume, mib, call }),
            1 => (0..VOLUMES).prop_map(|volume| Step::WriteForeignData { volume }),
            1 => (0..VOLUMES).prop_map(|volume| Step::SwapLun { volume }),
            1 => (0..VOLUMES).prop_map(|volume| Step::MakeUnresizable { volume }),
            1 => (0..VOLUMES).prop_map(|volume| Step::KillFileSystem { volume }),
            1 => (0..4_u8).prop_map(|call| Step::UseForeignLun { call }),
            1 => Just(Step::RotatePassword),
            1 => Just(Step::ChangeClientAddress),
            1 => (0..NODES).prop_map(|node| Step::Reimage { node }),
            3 => environment().prop_map(Step::ChangeEnvironment),
            2 => hidden_lists().prop_map(Step::HideLists),
            3 => (0..VOLUMES, manual_edit()).prop_map(|(volume, what)| Step::EditByHand { volume, what }),
        ]
        .boxed()
    }

    fn apply(mut book: ReferenceModel, step: &Step) -> ReferenceModel {
        book.apply_step(step);
        book
    }
}

/// What a CO would do next with a volume.
fn next(book: &ReferenceModel, volume: u8, node: usize, mib: i64, kind: Kind) -> Step {
    let call = |act| Step::Call {
        volume,
        call: act,
        delivery: Delivery::Once,
        controller: 0,
    };
    match book.volumes.get(&volume) {
        None => call(CsiCall::Create { mib, kind }),
        Some(known) if !known.node_published => Step::Attach { volume, node },
        Some(known) if known.data.is_none() => Step::Write { volume },
        Some(known) => Step::Grow {
            volume,
            mib: known.size / crate::MIB + mib % 1024,
        },
    }
}

/// Below and above the least size, whole and odd.
fn mib() -> impl Strategy<Value = i64> {
    1..4096_i64
}

pub(super) fn process() -> impl Strategy<Value = Option<usize>> {
    select(&[None, Some(0), Some(1)][..])
}

fn node_act() -> impl Strategy<Value = CsiCall> {
    select(
        &[
            CsiCall::Stage,
            CsiCall::NodePublish,
            CsiCall::NodeExpand,
            CsiCall::NodeUnpublish,
            CsiCall::Unstage,
        ][..],
    )
}

fn call() -> impl Strategy<Value = Step> {
    let node = || 0..NODES;
    let act = prop_oneof![
        2 => (mib(), select(&Kind::ALL[..])).prop_map(|(mib, kind)| CsiCall::Create { mib, kind }),
        3 => Just(CsiCall::Delete),
        4 => mib().prop_map(|mib| CsiCall::Expand { mib }),
        3 => node().prop_map(|node| CsiCall::Publish { node }),
        2 => node().prop_map(|node| CsiCall::Unpublish { node }),
        2 => Just(CsiCall::Stage),
        1 => Just(CsiCall::ExpandTooFar),
        2 => Just(CsiCall::NodePublish),
        1 => Just(CsiCall::NodePublishReadonly),
        3 => Just(CsiCall::NodeExpand),
        2 => Just(CsiCall::NodeUnpublish),
        2 => Just(CsiCall::Unstage),
    ];
    let how = prop_oneof![
        5 => Just(Delivery::Once),
        2 => Just(Delivery::Twice),
        1 => Just(Delivery::TwoControllers),
        1 => (0..2000_u64).prop_map(Delivery::Cancelled),
    ];
    (0..VOLUMES, act, how, 0..2_usize).prop_map(|(volume, act, how, controller)| Step::Call {
        volume,
        call: act,
        delivery: how,
        controller,
    })
}
