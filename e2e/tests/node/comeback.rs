//! A volume that is taken from its node by force, used on the other one and given back (design.md, "Fencing: one publication,
//! one name"). Each is a step of the model, which looks at everything afterwards.

use anyhow::Context as _;
use e2e::grounds::{Grounds as _, OnDevices};
use e2e::model::player::Player;
use e2e::model::step::{Absence, Act, How, Kind, Step};
use e2e::skip::needs_root;

#[test]
fn what_was_written_elsewhere_is_there() {
    if needs_root("comeback::what_was_written_elsewhere_is_there") {
        return;
    }
    let grounds = OnDevices::default();
    for kind in Kind::ALL {
        // Whether the kubelet stages it again, or takes it for staged; and whether the driver has been started anew.
        for (stage, restart) in [(true, false), (false, true)] {
            let steps = life(
                kind,
                Absence {
                    stage,
                    unsynced: true,
                    restart,
                    kept: false,
                },
            );
            grounds
                .play(async |plane| {
                    let mut player = Player::start(plane).await?;
                    for step in &steps {
                        player
                            .take(step)
                            .await
                            .with_context(|| format!("{step:?}"))?;
                    }
                    player.end().await
                })
                .unwrap_or_else(|error| panic!("{kind:?}: {error:#}"));
        }
    }
}

/// It is lost twice: the node that has lost it is the other's other.
fn life(kind: Kind, how: Absence) -> Vec<Step> {
    let call = |act| Step::Call {
        volume: 0,
        act,
        how: How::Once,
        controller: 0,
    };
    let mut steps: Vec<Step> = [
        Act::Create { mib: 1024, kind },
        Act::Publish { node: 0 },
        Act::Stage,
        Act::Show,
    ]
    .map(call)
    .into();
    let lost = [Step::Write { volume: 0 }, Step::Away { volume: 0, how }];
    steps.extend(lost.clone());
    steps.extend(lost);
    steps
}
