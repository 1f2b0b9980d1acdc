//! Generates sequences: the weights of the steps, and the sizes and nodes that they get. Pure.

use proptest::prelude::{BoxedStrategy, Just, Strategy, any, prop_oneof};
use proptest::sample::select;
use proptest_state_machine::ReferenceStateMachine;

use super::environment::{environment, hidden_lists, manual_edit};
use super::fault::{fault, process};
use super::reference_model::ReferenceModel;
use super::step::{Absence, CsiCall, Delivery, Kind, Step};
use super::{NODES, VOLUMES};

/// Generates sequences.
#[derive(Clone, Debug)]
pub struct Steps;

impl ReferenceStateMachine for Steps {
    type State = ReferenceModel;
    type Transition = Step;

    fn init_state() -> BoxedStrategy<ReferenceModel> {
        Just(ReferenceModel::default()).boxed()
    }

    fn transitions(model: &ReferenceModel) -> BoxedStrategy<Step> {
        // Mostly the next step of the volume's life cycle, so that sequences get somewhere; and anything at all.
        let volume = 0..VOLUMES;
        let next = {
            let model = model.clone();
            (volume, 0..NODES, mib(), select(&Kind::ALL[..]))
                .prop_map(move |(volume, node, mib, kind)| next(&model, volume, node, mib, kind))
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
            2 => (0..VOLUMES, mib(), node_rpc())
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

    fn apply(mut model: ReferenceModel, step: &Step) -> ReferenceModel {
        model.apply_step(step);
        model
    }
}

/// The next step of a volume's life cycle.
fn next(model: &ReferenceModel, volume: u8, node: usize, mib: i64, kind: Kind) -> Step {
    let call = |rpc| Step::Call {
        volume,
        call: rpc,
        delivery: Delivery::Once,
        controller: 0,
    };
    match model.volumes.get(&volume) {
        None => call(CsiCall::Create { mib, kind }),
        Some(known) if !known.node_published => Step::Attach { volume, node },
        Some(known) if known.data.is_none() => Step::Write { volume },
        Some(known) => Step::Grow {
            volume,
            mib: known.size / crate::MIB + mib % 1024,
        },
    }
}

/// Sizes below and above the minimum, whole GiB and odd.
fn mib() -> impl Strategy<Value = i64> {
    1..4096_i64
}

fn node_rpc() -> impl Strategy<Value = CsiCall> {
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
    let rpc = prop_oneof![
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
    let delivery = prop_oneof![
        5 => Just(Delivery::Once),
        2 => Just(Delivery::Twice),
        1 => Just(Delivery::TwoControllers),
        1 => (0..2000_u64).prop_map(Delivery::Cancelled),
    ];
    (0..VOLUMES, rpc, delivery, 0..2_usize).prop_map(|(volume, rpc, delivery, controller)| {
        Step::Call {
            volume,
            call: rpc,
            delivery,
            controller,
        }
    })
}
