//! The calls in which a process crashes, each with the volume life cycle that leads to it. No I/O.

use e2e::model::reference_model::ReferenceModel;
use e2e::model::step::{CsiCall, Kind};
use e2e::testbed::Process;

/// The node that everything happens on.
const NODE: usize = 0;
/// Initial size of a volume, in MiB.
const SMALL: i64 = 1024;
/// Size after expansion, in MiB: large enough for every file system to use the difference.
const LARGE: i64 = 2048;
/// The number of the volume for which the executor uses CHAP.
const WITH_CHAP: u8 = 1;

/// A step before or after the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Move {
    /// A call.
    Call(CsiCall),
    /// A pod writes.
    Write,
}

/// A call to be searched for crash points.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    /// The call's name.
    pub(crate) call: &'static str,
    /// The content of the volume.
    pub(crate) kind: Kind,
    /// The content in words, and the state of the volume.
    pub(crate) variant: String,
    /// The number of the volume.
    pub(crate) volume: u8,
    /// The steps that lead to the call.
    pub(crate) before: Vec<Move>,
    /// The call.
    pub(crate) act: CsiCall,
    /// What the CO does instead of a retry when it gives up, before it tears everything down.
    pub(crate) instead: Vec<CsiCall>,
    /// Whether processes crash in the retry, too.
    pub(crate) pairs: bool,
}

impl Scenario {
    /// The process that serves the call.
    pub(crate) fn process(&self) -> Process {
        match self.act {
            CsiCall::Create { .. }
            | CsiCall::Delete
            | CsiCall::Expand { .. }
            | CsiCall::ExpandTooFar
            | CsiCall::Publish { .. }
            | CsiCall::Unpublish { .. } => Process::Controller(0),
            CsiCall::Stage
            | CsiCall::NodePublish
            | CsiCall::NodePublishReadonly
            | CsiCall::NodeExpand
            | CsiCall::NodeUnpublish
            | CsiCall::Unstage => Process::Node(NODE),
        }
    }

    /// Whether the call can succeed if only these kinds can grow while mounted.
    pub(crate) fn is_possible(&self, grow: &[Kind]) -> bool {
        self.act != CsiCall::NodeExpand || grow.contains(&self.kind)
    }

    /// The next step towards a pod that has written, if the call is on that path.
    pub(crate) fn next_move(&self, model: &ReferenceModel) -> Option<Move> {
        let backwards = matches!(
            self.act,
            CsiCall::NodeUnpublish | CsiCall::Unstage | CsiCall::Unpublish { .. } | CsiCall::Delete
        );
        let known = model.volumes.get(&self.volume).filter(|_| !backwards)?;
        if known.published.is_none() {
            return Some(Move::Call(CsiCall::Publish { node: NODE }));
        }
        if !known.staged {
            return Some(Move::Call(CsiCall::Stage));
        }
        if !known.node_published {
            return Some(Move::Call(CsiCall::NodePublish));
        }
        if known.promised < known.size {
            return Some(Move::Call(CsiCall::NodeExpand));
        }
        known.data.is_none().then_some(Move::Write)
    }
}

/// How far a life cycle has progressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Progress {
    Nothing,
    Created,
    Published,
    Staged,
    NodePublished,
    Written,
    Expanded,
    NodeUnpublished,
    Unstaged,
    Unpublished,
}

/// The steps of a life cycle until there.
fn life_cycle(kind: Kind, until: Progress) -> Vec<Move> {
    let all = [
        (
            Progress::Created,
            Move::Call(CsiCall::Create { mib: SMALL, kind }),
        ),
        (
            Progress::Published,
            Move::Call(CsiCall::Publish { node: NODE }),
        ),
        (Progress::Staged, Move::Call(CsiCall::Stage)),
        (Progress::NodePublished, Move::Call(CsiCall::NodePublish)),
        (Progress::Written, Move::Write),
        (
            Progress::Expanded,
            Move::Call(CsiCall::Expand { mib: LARGE }),
        ),
        (
            Progress::NodeUnpublished,
            Move::Call(CsiCall::NodeUnpublish),
        ),
        (Progress::Unstaged, Move::Call(CsiCall::Unstage)),
        (
            Progress::Unpublished,
            Move::Call(CsiCall::Unpublish { node: NODE }),
        ),
    ];
    let included = all.into_iter().filter(|(stop, _)| *stop <= until);
    included.map(|(_, step)| step).collect()
}

/// A life cycle that was torn down before the expansion; the LUN was then expanded while detached.
fn expanded_detached(kind: Kind) -> Vec<Move> {
    let mut moves = life_cycle(kind, Progress::Unpublished);
    moves.retain(|step| !matches!(step, Move::Call(CsiCall::Expand { .. })));
    moves.extend([
        Move::Call(CsiCall::Expand { mib: LARGE }),
        Move::Call(CsiCall::Publish { node: NODE }),
    ]);
    moves
}

fn scenario(call: &'static str, kind: Kind, before: Vec<Move>, act: CsiCall) -> Scenario {
    Scenario {
        call,
        kind,
        variant: kind.content().name().to_owned(),
        volume: 0,
        before,
        act,
        instead: Vec::new(),
        pairs: false,
    }
}

impl Scenario {
    fn variant(mut self, more: &str) -> Self {
        self.variant = format!("{}, {more}", self.variant);
        self
    }

    fn with_chap(mut self) -> Self {
        self.volume = WITH_CHAP;
        self.variant("CHAP")
    }

    fn or(mut self, instead: &[CsiCall]) -> Self {
        self.instead = instead.to_vec();
        self
    }

    fn in_pairs(mut self) -> Self {
        self.pairs = true;
        self
    }
}

/// All scenarios, in the order of a life cycle.
pub(crate) fn all() -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    for kind in Kind::ALL {
        scenarios.extend(setup(kind));
    }
    for kind in Kind::ALL {
        scenarios.extend(expansion(kind));
    }
    for kind in Kind::ALL {
        scenarios.extend(teardown(kind));
    }
    // Sorted by call, not by kind, for readability.
    let order = [
        "CreateVolume",
        "ControllerPublishVolume",
        "NodeStageVolume",
        "NodePublishVolume",
        "ControllerExpandVolume",
        "NodeExpandVolume",
        "NodeUnpublishVolume",
        "NodeUnstageVolume",
        "ControllerUnpublishVolume",
        "DeleteVolume",
    ];
    scenarios.sort_by_key(|scenario| order.iter().position(|call| *call == scenario.call));
    scenarios
}

/// The controller treats all file systems alike, so one kind is enough.
fn is_first(kind: Kind) -> bool {
    matches!(kind, Kind::Ext4 | Kind::Raw)
}

fn setup(kind: Kind) -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    let publish = |before| {
        scenario(
            "ControllerPublishVolume",
            kind,
            before,
            CsiCall::Publish { node: NODE },
        )
    };
    let stage = |before| scenario("NodeStageVolume", kind, before, CsiCall::Stage);
    let (created, published) = (
        life_cycle(kind, Progress::Created),
        life_cycle(kind, Progress::Published),
    );
    if is_first(kind) {
        let create = CsiCall::Create { mib: SMALL, kind };
        // A provisioner cannot give up without creating the volume first and then deleting it.
        let create_anyway = scenario(
            "CreateVolume",
            kind,
            life_cycle(kind, Progress::Nothing),
            create,
        )
        .or(&[create]);
        scenarios.push(create_anyway);
        scenarios.push(publish(created.clone()));
        scenarios.push(publish(created).with_chap());
        scenarios.push(stage(published.clone()).with_chap());
    }
    scenarios.push(stage(published).variant("blank"));
    scenarios.push(stage(expanded_detached(kind)).variant("in use before, and grown"));
    scenarios.push(scenario(
        "NodePublishVolume",
        kind,
        life_cycle(kind, Progress::Staged),
        CsiCall::NodePublish,
    ));
    scenarios
}

fn expansion(kind: Kind) -> Vec<Scenario> {
    let mut scenarios = Vec::new();
    let expand = |before| {
        scenario(
            "ControllerExpandVolume",
            kind,
            before,
            CsiCall::Expand { mib: LARGE },
        )
    };
    if is_first(kind) {
        scenarios.push(
            expand(life_cycle(kind, Progress::Written))
                .variant("in use")
                .in_pairs(),
        );
        scenarios.push(
            expand(life_cycle(kind, Progress::Created))
                .variant("not published")
                .in_pairs(),
        );
    }
    let on_node = scenario(
        "NodeExpandVolume",
        kind,
        life_cycle(kind, Progress::Expanded),
        CsiCall::NodeExpand,
    );
    scenarios.push(on_node.in_pairs());
    scenarios
}

/// A CO that gives up tearing down goes forward again.
fn teardown(kind: Kind) -> Vec<Scenario> {
    let again = [
        CsiCall::Publish { node: NODE },
        CsiCall::Stage,
        CsiCall::NodePublish,
    ];
    let node_unpublish = scenario(
        "NodeUnpublishVolume",
        kind,
        life_cycle(kind, Progress::Expanded),
        CsiCall::NodeUnpublish,
    );
    let unstage = scenario(
        "NodeUnstageVolume",
        kind,
        life_cycle(kind, Progress::NodeUnpublished),
        CsiCall::Unstage,
    );
    let mut scenarios = vec![node_unpublish.or(&again[2..]), unstage.or(&again[1..])];
    if is_first(kind) {
        let unpublish = CsiCall::Unpublish { node: NODE };
        let before = life_cycle(kind, Progress::Unstaged);
        scenarios.push(scenario("ControllerUnpublishVolume", kind, before, unpublish).or(&again));
        let before = life_cycle(kind, Progress::Unpublished);
        scenarios.push(scenario("DeleteVolume", kind, before, CsiCall::Delete));
    }
    scenarios
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_life_cycle_is_a_valid_sequence_for_a_co() {
        let scenarios = all();
        assert!(scenarios.len() > 30, "{}", scenarios.len());
        for scenario in scenarios {
            let mut model = ReferenceModel::default();
            for step in &scenario.before {
                if let Move::Call(act) = step {
                    let included = model.expected(scenario.volume, *act);
                    assert!(
                        matches!(
                            included,
                            e2e::model::reference_model::Expected::Done
                                | e2e::model::reference_model::Expected::Size(_)
                        ),
                        "{scenario:?}: {act:?} is {included:?}"
                    );
                    model.apply_call(scenario.volume, *act);
                }
            }
        }
    }
}
