//! What can happen, how often, and how sequences of it are made. Pure.

use proptest::prelude::{BoxedStrategy, Just, Strategy, any, prop_oneof};
use proptest::sample::select;
use proptest_state_machine::ReferenceStateMachine;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::book::Book;
use super::surroundings::{Blindness, ByHand, Surroundings, blindness, by_hand, surroundings};
use crate::life::Content;
use crate::plane::{Failing, When};

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

/// A call of the NAS that something happens to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(
    missing_docs,
    reason = "each is a method of the Web API, as it is spelt there"
)]
pub enum On {
    LunCreate,
    LunGet,
    LunList,
    LunSet,
    LunDelete,
    LunMap,
    TargetCreate,
    TargetGet,
    TargetList,
    TargetDelete,
    Login,
    Any,
}

impl On {
    const ALL: [Self; 12] = [
        Self::LunCreate,
        Self::LunGet,
        Self::LunList,
        Self::LunSet,
        Self::LunDelete,
        Self::LunMap,
        Self::TargetCreate,
        Self::TargetGet,
        Self::TargetList,
        Self::TargetDelete,
        Self::Login,
        Self::Any,
    ];

    /// API and method.
    pub fn names(self) -> (&'static str, &'static str) {
        const LUN: &str = "SYNO.Core.ISCSI.LUN";
        const TARGET: &str = "SYNO.Core.ISCSI.Target";
        match self {
            Self::LunCreate => (LUN, "create"),
            Self::LunGet => (LUN, "get"),
            Self::LunList => (LUN, "list"),
            Self::LunSet => (LUN, "set"),
            Self::LunDelete => (LUN, "delete"),
            Self::LunMap => (LUN, "map_target"),
            Self::TargetCreate => (TARGET, "create"),
            Self::TargetGet => (TARGET, "get"),
            Self::TargetList => (TARGET, "list"),
            Self::TargetDelete => (TARGET, "delete"),
            Self::Login => ("SYNO.API.Auth", "login"),
            Self::Any => ("*", "*"),
        }
    }
}

/// What happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Trouble {
    /// Nothing is done, and the connection breaks.
    LoseCall,
    /// All is done, and the connection breaks.
    LoseReply,
    /// It is refused with this code, before or after all was done.
    Refuse {
        /// The code.
        code: u32,
        /// All was done.
        after: bool,
    },
    /// All is done; half an answer comes.
    Garble,
    /// A page with this status comes.
    Http {
        /// The status.
        status: u16,
        /// All was done.
        after: bool,
    },
    /// Nothing comes, until the driver gives up.
    Hang,
    /// All is done; the answer takes so many milliseconds.
    Delay(u64),
}

impl Trouble {
    /// As dsm-sim calls it.
    pub fn fault(self) -> Value {
        match self {
            Self::LoseCall => json!({"kind": "lose_call"}),
            Self::LoseReply => json!({"kind": "lose_reply"}),
            Self::Refuse { code, after } => {
                json!({"kind": "refuse", "code": code, "after": after})
            }
            Self::Garble => json!({"kind": "garble"}),
            Self::Http { status, after } => {
                json!({"kind": "http", "status": status, "after": after})
            }
            Self::Hang => json!({"kind": "hang"}),
            Self::Delay(millis) => json!({"kind": "delay", "ms": millis}),
        }
    }
}

/// Codes that say nothing of what was done: unknown error, busy, no session, and the denials that may be wrong.
const CODES: [u32; 6] = [100, 117, 119, 18_990_531, 18_990_710, 18_990_722];

/// Denials of what is there: the ones that a driver is most tempted to believe.
const DENIALS: [(On, u32); 5] = [
    (On::LunGet, 18_990_531),
    (On::LunGet, 18_990_505),
    (On::TargetGet, 18_990_710),
    (On::LunDelete, 18_990_531),
    (On::TargetDelete, 18_990_710),
];

/// Parts of the commands that the node half runs, by which faults find them; its own changes of files, and its looks at them.
pub const COMMANDS: [&str; 29] = [
    "iscsiadm",
    "-o new",
    "-o update",
    "--login",
    "--logout",
    "--rescan",
    "-o delete",
    "blkid",
    "mkfs",
    "mount -t",
    "bind",
    "umount",
    "blockdev",
    "e2fsck",
    "resize2fs",
    "xfs_spaceman",
    "xfs_growfs",
    "btrfs filesystem resize",
    "btrfs filesystem show",
    "echo",
    "mkdir",
    "rmdir",
    "touch",
    "rm ",
    "write",
    "files",
    "list /etc",
    "list /sys",
    "read /",
];

/// Something that is arranged and happens later.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Mishap {
    /// To calls of the NAS.
    Nas {
        /// To which.
        on: On,
        /// What.
        trouble: Trouble,
        /// How many in a row.
        times: u64,
    },
    /// To commands of a node.
    Host {
        /// Which node.
        node: usize,
        /// Which command: one of [`COMMANDS`].
        command: String,
        /// What.
        failing: Failing,
        /// How many in a row.
        times: u32,
    },
    /// A process dies at one of its next effects.
    Death {
        /// The first controller, or the plugin of this node.
        node: Option<usize>,
        /// The number of the effect.
        nth: usize,
        /// When.
        when: When,
    },
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

fn process() -> impl Strategy<Value = Option<usize>> {
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

fn mishap() -> impl Strategy<Value = Mishap> {
    let on = || select(&On::ALL[..]);
    let trouble = prop_oneof![
        3 => Just(Trouble::LoseReply),
        2 => Just(Trouble::LoseCall),
        2 => (select(&CODES[..]), any::<bool>()).prop_map(|(code, after)| Trouble::Refuse { code, after }),
        1 => Just(Trouble::Garble),
        1 => (select(&[302_u16, 404, 500, 502][..]), any::<bool>()).prop_map(|(status, after)| Trouble::Http { status, after }),
        1 => Just(Trouble::Hang),
        1 => (1..5000_u64).prop_map(Trouble::Delay),
    ];
    let denial =
        select(&DENIALS[..]).prop_map(|(on, code)| (on, Trouble::Refuse { code, after: false }));
    let nas = prop_oneof![3 => (on(), trouble), 1 => denial];
    let nas = (nas, 1..3_u64).prop_map(|((on, trouble), times)| Mishap::Nas { on, trouble, times });
    let host = (
        0..NODES,
        select(&COMMANDS[..]),
        select(&Failing::ALL[..]),
        1..3_u32,
    )
        .prop_map(|(node, command, failing, times)| Mishap::Host {
            node,
            command: command.to_owned(),
            failing,
            times,
        });
    let death = (process(), 1..12_usize, select(&When::ALL[..]))
        .prop_map(|(node, nth, when)| Mishap::Death { node, nth, when });
    prop_oneof![3 => nas, 4 => host, 3 => death]
}
