//! A volume that is forcibly detached from its node, used on another one and given back (design.md, "Fencing: one publication,
//! one name"). Each is a step of the model, which checks the invariants afterwards.

use anyhow::Context as _;
use e2e::harness::skip::needs_root;
use e2e::model::executor::Executor;
use e2e::model::step::{Absence, CsiCall, Delivery, Kind, Step};
use e2e::testbed::pool::{DevicePool, TestBedPool as _};

#[test]
fn data_written_on_another_node_are_visible() {
    if needs_root("comeback::data_written_on_another_node_are_visible") {
        return;
    }
    let pool = DevicePool::default();
    for kind in Kind::ALL {
        // Whether the kubelet stages the volume again or believes it is staged, and whether the driver was restarted.
        for (stage, restart) in [(true, false), (false, true)] {
            let steps = steps_for(
                kind,
                Absence {
                    stage,
                    unsynced: true,
                    restart,
                    kept: false,
                },
            );
            pool.run(async |bed| {
                let mut executor = Executor::start(bed).await?;
                for step in &steps {
                    executor
                        .run_step(step)
                        .await
                        .with_context(|| format!("{step:?}"))?;
                }
                executor.finish().await
            })
            .unwrap_or_else(|error| panic!("{kind:?}: {error:#}"));
        }
    }
}

/// The volume is forcibly detached twice, so that each node is once the one that lost it.
fn steps_for(kind: Kind, how: Absence) -> Vec<Step> {
    let call = |act| Step::Call {
        volume: 0,
        call: act,
        delivery: Delivery::Once,
        controller: 0,
    };
    let mut steps: Vec<Step> = [
        CsiCall::Create { mib: 1024, kind },
        CsiCall::Publish { node: 0 },
        CsiCall::Stage,
        CsiCall::NodePublish,
    ]
    .map(call)
    .into();
    let lost = [
        Step::Write { volume: 0 },
        Step::Away {
            volume: 0,
            absence: how,
        },
    ];
    steps.extend(lost.clone());
    steps.extend(lost);
    steps
}
