//! The faults that a sequence can inject, and their weights. Pure.

use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::select;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::NODES;
use crate::testbed::{CommandFault, CrashTiming};

/// The Web API call that a fault applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names of Web API methods")]
pub enum NasCall {
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

impl NasCall {
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

/// A fault of the NAS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NasFault {
    /// The call is not executed, and the connection breaks.
    LoseCall,
    /// The call is executed, and the connection breaks.
    LoseReply,
    /// The call is refused with this code, before or after it was executed.
    Refuse {
        /// The DSM error code.
        code: u32,
        /// The call was executed.
        after: bool,
    },
    /// The call is executed; the reply is truncated.
    Garble,
    /// An HTML page with this status is returned.
    Http {
        /// The HTTP status.
        status: u16,
        /// The call was executed.
        after: bool,
    },
    /// No reply, until the driver gives up.
    Hang,
    /// The call is executed; the reply takes this many milliseconds.
    Delay(u64),
}

impl NasFault {
    /// As JSON for dsm-sim's control API.
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

/// Codes that do not tell whether the call was executed: unknown error, busy, no session, and "not found" codes that may be
/// wrong.
const AMBIGUOUS_CODES: [u32; 6] = [100, 117, 119, 18_990_531, 18_990_710, 18_990_722];

/// False "not found" replies for existing objects: the ones that a driver is most likely to trust.
const FALSE_NOT_FOUND: [(NasCall, u32); 5] = [
    (NasCall::LunGet, 18_990_531),
    (NasCall::LunGet, 18_990_505),
    (NasCall::TargetGet, 18_990_710),
    (NasCall::LunDelete, 18_990_531),
    (NasCall::TargetDelete, 18_990_710),
];

/// Parts of the node service's command lines, to select commands for faults.
pub const COMMANDS: [&str; 19] = [
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
];

/// The names of the node service's own file accesses, to select them for faults.
pub const FILE_ACCESSES: [&str; 10] = [
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

/// A fault that is injected now and takes effect later.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Fault {
    /// In calls of the NAS.
    Nas {
        /// Which call.
        call: NasCall,
        /// How it fails.
        fault: NasFault,
        /// The number of consecutive calls.
        times: u64,
    },
    /// In commands of a node.
    Host {
        /// The node's number.
        node: usize,
        /// Which command: one of [`COMMANDS`] or [`FILE_ACCESSES`].
        command: String,
        /// How it fails.
        fault: CommandFault,
        /// The number of consecutive commands.
        times: u32,
    },
    /// A process crashes at one of its next effects.
    Crash {
        /// The plugin of this node; `None`: the first controller.
        node: Option<usize>,
        /// The number of the effect; the first is 1.
        nth: usize,
        /// Before, during or after the effect.
        when: CrashTiming,
    },
}

pub(super) fn fault() -> impl Strategy<Value = Fault> {
    let call = || select(&NasCall::ALL[..]);
    let fault = prop_oneof![
        3 => Just(NasFault::LoseReply),
        2 => Just(NasFault::LoseCall),
        2 => (select(&AMBIGUOUS_CODES[..]), any::<bool>()).prop_map(|(code, after)| NasFault::Refuse { code, after }),
        1 => Just(NasFault::Garble),
        1 => (select(&[302_u16, 404, 500, 502][..]), any::<bool>()).prop_map(|(status, after)| NasFault::Http { status, after }),
        1 => Just(NasFault::Hang),
        1 => (1..5000_u64).prop_map(NasFault::Delay),
    ];
    let false_not_found = select(&FALSE_NOT_FOUND[..])
        .prop_map(|(call, code)| (call, NasFault::Refuse { code, after: false }));
    let nas = prop_oneof![3 => (call(), fault), 1 => false_not_found];
    let nas = (nas, 1..3_u64).prop_map(|((call, fault), times)| Fault::Nas { call, fault, times });
    let host = (
        0..NODES,
        select([&COMMANDS[..], &FILE_ACCESSES[..]].concat()),
        select(&CommandFault::ALL[..]),
        1..3_u32,
    )
        .prop_map(|(node, command, fault, times)| Fault::Host {
            node,
            command: command.to_owned(),
            fault,
            times,
        });
    let crash = (process(), 1..12_usize, select(&CrashTiming::ALL[..]))
        .prop_map(|(node, nth, when)| Fault::Crash { node, nth, when });
    prop_oneof![3 => nas, 4 => host, 3 => crash]
}

pub(super) fn process() -> impl Strategy<Value = Option<usize>> {
    select(&[None, Some(0), Some(1)][..])
}
