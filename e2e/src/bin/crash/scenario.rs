//! The calls at whose effects a process dies, each in a volume's life that has come to it. Pure.

use e2e::model::reference_model::ReferenceModel;
use e2e::model::step::{CsiCall, Kind};
use e2e::testbed::Process;

/// The node that everything happens on.
const NODE: usize = 0;
/// What a volume has first, in MiB.
const SMALL: i64 = 1024;
/// What it has after each growth: every file system can use what is added.
const LARGE: i64 = 2048;
/// The volume that the player has CHAP for.
const WITH_CHAP: u8 = 1;

/// What comes before a call, or after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Move {
    /// A call.
    Call(CsiCall),
    /// A pod writes.
    Write,
}

/// A call that is to be searched.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    /// The call's name.
    pub(crate) call: &'static str,
    /// What the volume holds.
    pub(crate) kind: Kind,
    /// The same in words, and in which state it is.
    pub(crate) variant: String,
    /// The number of the volume.
    pub(crate) volume: u8,
    /// What leads to the call.
    pub(crate) before: Vec<Move>,
    /// The call.
    pub(crate) act: CsiCall,
    /// What a CO does that gives up: not the call again, but this, and then all the way back.
    pub(crate) instead: Vec<CsiCall>,
    /// Processes die in its repetition too.
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

    /// Whether the call can succeed where only these kinds `grow` in use.
    pub(crate) fn is_possible(&self, grow: &[Kind]) -> bool {
        self.act != CsiCall::NodeExpand || grow.contains(&self.kind)
    }

    /// The rest of the way to a pod that has written, as far as the call is on it.
    pub(crate) fn onwards(&self, model: &ReferenceModel) -> Option<Move> {
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

/// How far a life has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stop {
    Nothing,
    Made,
    Published,
    Staged,
    Shown,
    Written,
    Grown,
    Hidden,
    Unstaged,
    Unpublished,
}

/// A life until there.
fn life(kind: Kind, until: Stop) -> Vec<Move> {
    let all = [
        (Stop::Made, Move::Call(CsiCall::Create { mib: SMALL, kind })),
        (Stop::Published, Move::Call(CsiCall::Publish { node: NODE })),
        (Stop::Staged, Move::Call(CsiCall::Stage)),
        (Stop::Shown, Move::Call(CsiCall::NodePublish)),
        (Stop::Written, Move::Write),
        (Stop::Grown, Move::Call(CsiCall::Expand { mib: LARGE })),
        (Stop::Hidden, Move::Call(CsiCall::NodeUnpublish)),
        (Stop::Unstaged, Move::Call(CsiCall::Unstage)),
        (
            Stop::Unpublished,
            Move::Call(CsiCall::Unpublish { node: NODE }),
        ),
    ];
    let due = all.into_iter().filter(|(stop, _)| *stop <= until);
    due.map(|(_, step)| step).collect()
}

/// A life that was interrupted before it grew, and has grown since.
fn grown_aside(kind: Kind) -> Vec<Move> {
    let mut moves = life(kind, Stop::Unpublished);
    moves.retain(|step| !matches!(step, Move::Call(CsiCall::Expand { .. })));
    moves.extend([
        Move::Call(CsiCall::Expand { mib: LARGE }),
        Move::Call(CsiCall::Publish { node: NODE }),
    ]);
    moves
}

fn scene(call: &'static str, kind: Kind, before: Vec<Move>, act: CsiCall) -> Scenario {
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

/// All of them, in the order of a life.
pub(crate) fn all() -> Vec<Scenario> {
    let mut scenes = Vec::new();
    for kind in Kind::ALL {
        scenes.extend(until_a_pod(kind));
    }
    for kind in Kind::ALL {
        scenes.extend(growth(kind));
    }
    for kind in Kind::ALL {
        scenes.extend(back(kind));
    }
    // By call, and not by kind: so they are read.
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
    scenes.sort_by_key(|scene| order.iter().position(|call| *call == scene.call));
    scenes
}

/// To the controller all kinds of file systems are one.
fn is_first(kind: Kind) -> bool {
    matches!(kind, Kind::Ext4 | Kind::Raw)
}

fn until_a_pod(kind: Kind) -> Vec<Scenario> {
    let mut scenes = Vec::new();
    let publish = |before| {
        scene(
            "ControllerPublishVolume",
            kind,
            before,
            CsiCall::Publish { node: NODE },
        )
    };
    let stage = |before| scene("NodeStageVolume", kind, before, CsiCall::Stage);
    let (made, published) = (life(kind, Stop::Made), life(kind, Stop::Published));
    if is_first(kind) {
        let create = CsiCall::Create { mib: SMALL, kind };
        // A provisioner has no way back but to make the volume, and to delete it.
        let made_anyway =
            scene("CreateVolume", kind, life(kind, Stop::Nothing), create).or(&[create]);
        scenes.push(made_anyway);
        scenes.push(publish(made.clone()));
        scenes.push(publish(made).with_chap());
        scenes.push(stage(published.clone()).with_chap());
    }
    scenes.push(stage(published).variant("blank"));
    scenes.push(stage(grown_aside(kind)).variant("in use before, and grown"));
    scenes.push(scene(
        "NodePublishVolume",
        kind,
        life(kind, Stop::Staged),
        CsiCall::NodePublish,
    ));
    scenes
}

fn growth(kind: Kind) -> Vec<Scenario> {
    let mut scenes = Vec::new();
    let expand = |before| {
        scene(
            "ControllerExpandVolume",
            kind,
            before,
            CsiCall::Expand { mib: LARGE },
        )
    };
    if is_first(kind) {
        scenes.push(
            expand(life(kind, Stop::Written))
                .variant("in use")
                .in_pairs(),
        );
        scenes.push(
            expand(life(kind, Stop::Made))
                .variant("not published")
                .in_pairs(),
        );
    }
    let on_node = scene(
        "NodeExpandVolume",
        kind,
        life(kind, Stop::Grown),
        CsiCall::NodeExpand,
    );
    scenes.push(on_node.in_pairs());
    scenes
}

/// Who gives up going back goes on again.
fn back(kind: Kind) -> Vec<Scenario> {
    let again = [
        CsiCall::Publish { node: NODE },
        CsiCall::Stage,
        CsiCall::NodePublish,
    ];
    let hide = scene(
        "NodeUnpublishVolume",
        kind,
        life(kind, Stop::Grown),
        CsiCall::NodeUnpublish,
    );
    let unstage = scene(
        "NodeUnstageVolume",
        kind,
        life(kind, Stop::Hidden),
        CsiCall::Unstage,
    );
    let mut scenes = vec![hide.or(&again[2..]), unstage.or(&again[1..])];
    if is_first(kind) {
        let unpublish = CsiCall::Unpublish { node: NODE };
        let before = life(kind, Stop::Unstaged);
        scenes.push(scene("ControllerUnpublishVolume", kind, before, unpublish).or(&again));
        let before = life(kind, Stop::Unpublished);
        scenes.push(scene("DeleteVolume", kind, before, CsiCall::Delete));
    }
    scenes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_life_is_one_that_a_co_would_lead() {
        let scenes = all();
        assert!(scenes.len() > 30, "{}", scenes.len());
        for scene in scenes {
            let mut model = ReferenceModel::default();
            for step in &scene.before {
                if let Move::Call(act) = step {
                    let due = model.expected(scene.volume, *act);
                    assert!(
                        matches!(
                            due,
                            e2e::model::reference_model::Expected::Done
                                | e2e::model::reference_model::Expected::Size(_)
                        ),
                        "{scene:?}: {act:?} is {due:?}"
                    );
                    model.apply_call(scene.volume, *act);
                }
            }
        }
    }
}
