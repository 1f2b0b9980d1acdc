//! The calls at whose effects a process dies, each in a volume's life that has come to it. Pure.

use e2e::model::book::Book;
use e2e::model::step::{Act, Kind};
use e2e::plane::Process;

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
    Call(Act),
    /// A pod writes.
    Write,
}

/// A call that is to be searched.
#[derive(Clone, Debug)]
pub(crate) struct Scene {
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
    pub(crate) act: Act,
    /// What a CO does that gives up: not the call again, but this, and then all the way back.
    pub(crate) instead: Vec<Act>,
    /// Processes die in its repetition too.
    pub(crate) pairs: bool,
}

impl Scene {
    /// The process that serves the call.
    pub(crate) fn process(&self) -> Process {
        match self.act {
            Act::Create { .. }
            | Act::Delete
            | Act::Expand { .. }
            | Act::Beyond
            | Act::Publish { .. }
            | Act::Unpublish { .. } => Process::Controller(0),
            Act::Stage
            | Act::Show
            | Act::ShowReadonly
            | Act::ExpandNode
            | Act::Hide
            | Act::Unstage => Process::Node(NODE),
        }
    }

    /// Whether the call can succeed where only these kinds `grow` in use.
    pub(crate) fn is_possible(&self, grow: &[Kind]) -> bool {
        self.act != Act::ExpandNode || grow.contains(&self.kind)
    }

    /// The rest of the way to a pod that has written, as far as the call is on it.
    pub(crate) fn onwards(&self, book: &Book) -> Option<Move> {
        let backwards = matches!(
            self.act,
            Act::Hide | Act::Unstage | Act::Unpublish { .. } | Act::Delete
        );
        let known = book.volumes.get(&self.volume).filter(|_| !backwards)?;
        if known.published.is_none() {
            return Some(Move::Call(Act::Publish { node: NODE }));
        }
        if !known.staged {
            return Some(Move::Call(Act::Stage));
        }
        if !known.shown {
            return Some(Move::Call(Act::Show));
        }
        if known.promised < known.size {
            return Some(Move::Call(Act::ExpandNode));
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
        (Stop::Made, Move::Call(Act::Create { mib: SMALL, kind })),
        (Stop::Published, Move::Call(Act::Publish { node: NODE })),
        (Stop::Staged, Move::Call(Act::Stage)),
        (Stop::Shown, Move::Call(Act::Show)),
        (Stop::Written, Move::Write),
        (Stop::Grown, Move::Call(Act::Expand { mib: LARGE })),
        (Stop::Hidden, Move::Call(Act::Hide)),
        (Stop::Unstaged, Move::Call(Act::Unstage)),
        (Stop::Unpublished, Move::Call(Act::Unpublish { node: NODE })),
    ];
    let due = all.into_iter().filter(|(stop, _)| *stop <= until);
    due.map(|(_, step)| step).collect()
}

/// A life that was interrupted before it grew, and has grown since.
fn grown_aside(kind: Kind) -> Vec<Move> {
    let mut moves = life(kind, Stop::Unpublished);
    moves.retain(|step| !matches!(step, Move::Call(Act::Expand { .. })));
    moves.extend([
        Move::Call(Act::Expand { mib: LARGE }),
        Move::Call(Act::Publish { node: NODE }),
    ]);
    moves
}

fn scene(call: &'static str, kind: Kind, before: Vec<Move>, act: Act) -> Scene {
    Scene {
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

impl Scene {
    fn variant(mut self, more: &str) -> Self {
        self.variant = format!("{}, {more}", self.variant);
        self
    }

    fn with_chap(mut self) -> Self {
        self.volume = WITH_CHAP;
        self.variant("CHAP")
    }

    fn or(mut self, instead: &[Act]) -> Self {
        self.instead = instead.to_vec();
        self
    }

    fn in_pairs(mut self) -> Self {
        self.pairs = true;
        self
    }
}

/// All of them, in the order of a life.
pub(crate) fn all() -> Vec<Scene> {
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

fn until_a_pod(kind: Kind) -> Vec<Scene> {
    let mut scenes = Vec::new();
    let publish = |before| {
        scene(
            "ControllerPublishVolume",
            kind,
            before,
            Act::Publish { node: NODE },
        )
    };
    let stage = |before| scene("NodeStageVolume", kind, before, Act::Stage);
    let (made, published) = (life(kind, Stop::Made), life(kind, Stop::Published));
    if is_first(kind) {
        let create = Act::Create { mib: SMALL, kind };
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
        Act::Show,
    ));
    scenes
}

fn growth(kind: Kind) -> Vec<Scene> {
    let mut scenes = Vec::new();
    let expand = |before| {
        scene(
            "ControllerExpandVolume",
            kind,
            before,
            Act::Expand { mib: LARGE },
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
        Act::ExpandNode,
    );
    scenes.push(on_node.in_pairs());
    scenes
}

/// Who gives up going back goes on again.
fn back(kind: Kind) -> Vec<Scene> {
    let again = [Act::Publish { node: NODE }, Act::Stage, Act::Show];
    let hide = scene(
        "NodeUnpublishVolume",
        kind,
        life(kind, Stop::Grown),
        Act::Hide,
    );
    let unstage = scene(
        "NodeUnstageVolume",
        kind,
        life(kind, Stop::Hidden),
        Act::Unstage,
    );
    let mut scenes = vec![hide.or(&again[2..]), unstage.or(&again[1..])];
    if is_first(kind) {
        let unpublish = Act::Unpublish { node: NODE };
        let before = life(kind, Stop::Unstaged);
        scenes.push(scene("ControllerUnpublishVolume", kind, before, unpublish).or(&again));
        let before = life(kind, Stop::Unpublished);
        scenes.push(scene("DeleteVolume", kind, before, Act::Delete));
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
            let mut book = Book::default();
            for step in &scene.before {
                if let Move::Call(act) = step {
                    let due = book.due(scene.volume, *act);
                    assert!(
                        matches!(
                            due,
                            e2e::model::book::Due::Done | e2e::model::book::Due::Size(_)
                        ),
                        "{scene:?}: {act:?} is {due:?}"
                    );
                    book.settle(scene.volume, *act);
                }
            }
        }
    }
}
