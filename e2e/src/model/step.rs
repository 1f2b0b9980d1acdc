//! What can happen, how often, and how sequences of it are made. Pure.

use proptest::prelude::{BoxedStrategy, Just, Strategy, any, prop_oneof};
use proptest::sample::select;
use proptest_state_machine::ReferenceStateMachine;
use serde::{Deserialize, Serialize};

use super::book::Book;
use super::mishap::mishap;
pub use super::mishap::{COMMANDS, FILE_ACCESSES, Mishap, On, Trouble};
use super::surroundings::{Blindness, ByHand, Surroundings, blindness, by_hand, surroundings};
use crate::life::Content;

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
pub enum Act {
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
    Beyond,
    /// `NodePublishVolume`.
    Show,
    /// `NodePublishVolume`, to be read only.
    ShowReadonly,
    /// `NodeExpandVolume` to the size of the LUN.
    ExpandNode,
    /// `NodeUnpublishVolume`.
    Hide,
    /// `NodeUnstageVolume`.
    Unstage,
}

/// How a CO makes its first try of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum How {
    /// One call.
    Once,
    /// The same call twice at a time, to the same process.
    Twice,
    /// The same call twice at a time; what goes to a controller goes to two of them.
    Rivals,
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
        act: Act,
        /// How it is tried first.
        how: How,
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
    GrowBeside {
        /// The number of the volume.
        volume: u8,
        /// `required_bytes`, in MiB.
        mib: i64,
        /// A call to the node.
        act: Act,
    },
    /// Somebody has written to a LUN that was never formatted: no file system, but not blank.
    Scribble {
        /// The number of the volume.
        volume: u8,
    },
    /// The ext4 of a volume turns out to be one that nothing grows.
    Stiffen {
        /// The number of the volume.
        volume: u8,
    },
    /// A file system dies under its pod; the pod ends, and the next one comes.
    Die {
        /// The number of the volume.
        volume: u8,
    },
    /// The target shows another LUN in the place of the volume's for a while.
    Disguise {
        /// The number of the volume.
        volume: u8,
    },
    /// A CO asks for what is somebody else's.
    Trespass {
        /// Which call.
        call: u8,
    },
    /// The account's password is changed on the NAS, and later in the driver's configuration.
    Rotate,
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
        how: Absence,
    },
    /// Two controllers publish it to two nodes at a time; then it is unpublished from both.
    Race {
        /// The number of the volume.
        volume: u8,
    },
    /// Something is arranged.
    Mishap(Mishap),
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
    Expire,
    /// The driver's address is another one than that which it logged in from.
    Move,
    /// The NAS lists what others have, and has its own words.
    Surround(Surroundings),
    /// The NAS cannot be read for a while.
    Blind(Blindness),
    /// A person is at work in SAN Manager.
    ByHand {
        /// The number of the volume.
        volume: u8,
        /// What he does.
        what: ByHand,
    },
    /// `ListVolumes`: all of them, or nothing.
    List,
}

/// Makes sequences.
#[derive(Clone, Debug)]
pub struct Steps;

impl ReferenceStateMachine for Steps {
    type State = Book;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<Book> {
        Just(Book::default()).boxed()
    }

    fn transitions(book: &Book) -> BoxedStrategy<Step> {
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
                let how = Absence { stage, unsynced, restart, kept };
                Step::Away { volume, how }
            }),
            1 => (0..VOLUMES).prop_map(|volume| Step::Race { volume }),
            9 => mishap().prop_map(Step::Mishap),
            1 => process().prop_map(|node| Step::Restart { node }),
            1 => (0..NODES).prop_map(|node| Step::Reboot { node }),
            1 => select(&[None, Some("busy"), Some("partial"), Some("absent")][..])
                .prop_map(|loading| Step::RestartNas { loading: loading.map(str::to_owned) }),
            1 => Just(Step::Expire),
            1 => Just(Step::List),
            2 => (0..VOLUMES, mib(), node_act())
                .prop_map(|(volume, mib, act)| Step::GrowBeside { volume, mib, act }),
            1 => (0..VOLUMES).prop_map(|volume| Step::Scribble { volume }),
            1 => (0..VOLUMES).prop_map(|volume| Step::Disguise { volume }),
            1 => (0..VOLUMES).prop_map(|volume| Step::Stiffen { volume }),
            1 => (0..VOLUMES).prop_map(|volume| Step::Die { volume }),
            1 => (0..4_u8).prop_map(|call| Step::Trespass { call }),
            1 => Just(Step::Rotate),
            1 => Just(Step::Move),
            1 => (0..NODES).prop_map(|node| Step::Reimage { node }),
            3 => surroundings().prop_map(Step::Surround),
            2 => blindness().prop_map(Step::Blind),
            3 => (0..VOLUMES, by_hand()).prop_map(|(volume, what)| Step::ByHand { volume, what }),
        ]
        .boxed()
    }

    fn apply(mut book: Book, step: &Step) -> Book {
        book.take(step);
        book
    }
}

/// What a CO would do next with a volume.
fn next(book: &Book, volume: u8, node: usize, mib: i64, kind: Kind) -> Step {
    let call = |act| Step::Call {
        volume,
        act,
        how: How::Once,
        controller: 0,
    };
    match book.volumes.get(&volume) {
        None => call(Act::Create { mib, kind }),
        Some(known) if !known.shown => Step::Attach { volume, node },
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

fn node_act() -> impl Strategy<Value = Act> {
    select(
        &[
            Act::Stage,
            Act::Show,
            Act::ExpandNode,
            Act::Hide,
            Act::Unstage,
        ][..],
    )
}

fn call() -> impl Strategy<Value = Step> {
    let node = || 0..NODES;
    let act = prop_oneof![
        2 => (mib(), select(&Kind::ALL[..])).prop_map(|(mib, kind)| Act::Create { mib, kind }),
        3 => Just(Act::Delete),
        4 => mib().prop_map(|mib| Act::Expand { mib }),
        3 => node().prop_map(|node| Act::Publish { node }),
        2 => node().prop_map(|node| Act::Unpublish { node }),
        2 => Just(Act::Stage),
        1 => Just(Act::Beyond),
        2 => Just(Act::Show),
        1 => Just(Act::ShowReadonly),
        3 => Just(Act::ExpandNode),
        2 => Just(Act::Hide),
        2 => Just(Act::Unstage),
    ];
    let how = prop_oneof![
        5 => Just(How::Once),
        2 => Just(How::Twice),
        1 => Just(How::Rivals),
        1 => (0..2000_u64).prop_map(How::Cancelled),
    ];
    (0..VOLUMES, act, how, 0..2_usize).prop_map(|(volume, act, how, controller)| Step::Call {
        volume,
        act,
        how,
        controller,
    })
}
