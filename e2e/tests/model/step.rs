//! What can happen, and how often.

use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::select;
use serde_json::{Value, json};

/// Few, so that steps meet.
pub(super) const VOLUMES: u8 = 2;
pub(super) const NODES: [&str; 2] = ["worker-a:0000000a", "worker-b:0000000b"];

const LUN: &str = "SYNO.Core.ISCSI.LUN";
const TARGET: &str = "SYNO.Core.ISCSI.Target";

/// A call of the NAS that something happens to.
pub(super) type On = (&'static str, &'static str);

/// All that the controller sends, and "whatever comes next".
const CALLS: [On; 11] = [
    (LUN, "create"),
    (LUN, "get"),
    (LUN, "list"),
    (LUN, "set"),
    (LUN, "delete"),
    (LUN, "map_target"),
    (TARGET, "create"),
    (TARGET, "get"),
    (TARGET, "list"),
    (TARGET, "delete"),
    ("*", "*"),
];

/// Codes that say nothing of what was done: unknown error, busy, no session, and the denials that may be wrong.
const CODES: [u32; 6] = [100, 117, 119, 18_990_531, 18_990_710, 18_990_722];

/// Denials of what is there: the ones that a driver is most tempted to believe.
const DENIALS: [(On, u32); 5] = [
    ((LUN, "get"), 18_990_531),
    ((LUN, "get"), 18_990_505),
    ((TARGET, "get"), 18_990_710),
    ((LUN, "delete"), 18_990_531),
    ((TARGET, "delete"), 18_990_710),
];

#[derive(Clone, Debug)]
pub(super) enum Step {
    Create {
        volume: u8,
        mib: i64,
    },
    Expand {
        volume: u8,
        mib: i64,
    },
    /// With `resign` a failed try is not repeated but given up, by unpublishing.
    Publish {
        volume: u8,
        node: usize,
        resign: bool,
    },
    Unpublish {
        volume: u8,
        node: usize,
    },
    /// From the node that has it.
    Release {
        volume: u8,
    },
    UnpublishEverywhere {
        volume: u8,
    },
    Delete {
        volume: u8,
    },
    RestartDriver,
    RestartNas,
    ExpireSessions,
    LoseNextReply {
        on: On,
    },
    RefuseNext {
        on: On,
        code: u32,
    },
    GarbleNext {
        on: On,
    },
    FailNext {
        on: On,
        status: u16,
    },
    /// The driver is killed when it next makes this call: before its effect, or between effect and answer.
    KillDriverAt {
        on: On,
        after_effect: bool,
    },
}

impl Step {
    /// The fault to plant, for the steps that are one.
    pub(super) fn fault(&self) -> Option<(On, Value)> {
        match self {
            Self::LoseNextReply { on } => Some((*on, json!({"kind": "lose_reply"}))),
            Self::RefuseNext { on, code } => Some((*on, json!({"kind": "refuse", "code": code}))),
            Self::GarbleNext { on } => Some((*on, json!({"kind": "garble"}))),
            Self::FailNext { on, status } => Some((*on, json!({"kind": "http", "status": status}))),
            Self::Create { .. }
            | Self::Expand { .. }
            | Self::Publish { .. }
            | Self::Unpublish { .. }
            | Self::Release { .. }
            | Self::UnpublishEverywhere { .. }
            | Self::Delete { .. }
            | Self::RestartDriver
            | Self::RestartNas
            | Self::ExpireSessions
            | Self::KillDriverAt { .. } => None,
        }
    }
}

/// About 30 of them. Each may be left out on its own, which is how a long sequence shrinks to the steps that matter.
pub(super) fn steps() -> impl Strategy<Value = Vec<Step>> {
    vec(weighted(0.95, step()), 30).prop_map(|steps| steps.into_iter().flatten().collect())
}

fn step() -> impl Strategy<Value = Step> {
    let volume = || 0..VOLUMES;
    let node = || 0..NODES.len();
    let on = || select(&CALLS[..]);
    // Below and above the least size, whole and odd.
    let mib = || 1..4096_i64;
    prop_oneof![
        6 => (volume(), mib()).prop_map(|(volume, mib)| Step::Create { volume, mib }),
        6 => (volume(), mib()).prop_map(|(volume, mib)| Step::Expand { volume, mib }),
        8 => (volume(), node(), any::<bool>()).prop_map(|(volume, node, resign)| Step::Publish { volume, node, resign }),
        2 => (volume(), node()).prop_map(|(volume, node)| Step::Unpublish { volume, node }),
        4 => volume().prop_map(|volume| Step::Release { volume }),
        1 => volume().prop_map(|volume| Step::UnpublishEverywhere { volume }),
        4 => volume().prop_map(|volume| Step::Delete { volume }),
        1 => Just(Step::RestartDriver),
        1 => Just(Step::RestartNas),
        1 => Just(Step::ExpireSessions),
        4 => on().prop_map(|on| Step::LoseNextReply { on }),
        2 => (on(), select(&CODES[..])).prop_map(|(on, code)| Step::RefuseNext { on, code }),
        5 => select(&DENIALS[..]).prop_map(|(on, code)| Step::RefuseNext { on, code }),
        1 => on().prop_map(|on| Step::GarbleNext { on }),
        1 => (on(), select(&[302, 404, 500, 502][..])).prop_map(|(on, status)| Step::FailNext { on, status }),
        3 => (on(), any::<bool>()).prop_map(|(on, after_effect)| Step::KillDriverAt { on, after_effect }),
    ]
}
