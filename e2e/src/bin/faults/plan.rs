//! What happens in a cell, in order. Pure.

use e2e::model::step::{Act, Kind};

use crate::fault::{Fault, Way, What};

/// The node that it happens on.
pub(crate) const NODE: usize = 0;
/// What a volume has first, in MiB.
pub(crate) const SMALL: i64 = 1024;
/// What it shall have, in MiB.
pub(crate) const LARGE: i64 = 3072;
/// What a NAS that is full still has room for, in MiB.
pub(crate) const LESS: i64 = 2048;

/// A step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Doing {
    /// A call, tried again while it fails.
    Call(Act),
    /// The fault begins.
    Plant,
    /// The node loses its power.
    Reboot,
    /// The driver's processes restart.
    Restart,
}

/// A cell of the matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cell {
    pub(crate) fault: Fault,
    pub(crate) kind: Kind,
    pub(crate) way: Way,
}

/// To a pod, from nothing but the LUN.
const UP: [Act; 3] = [Act::Publish { node: NODE }, Act::Stage, Act::Show];
/// And back.
const DOWN: [Act; 3] = [Act::Hide, Act::Unstage, Act::Unpublish { node: NODE }];
const EXPAND: Act = Act::Expand { mib: LARGE };

impl Cell {
    /// From a volume that a pod has written to, to one that has grown and is shown to a pod.
    pub(crate) fn plan(&self) -> Vec<Doing> {
        let calls = |acts: &[Act]| acts.iter().copied().map(Doing::Call).collect::<Vec<_>>();
        let (online, early) = (self.way == Way::Online, self.fault.early);
        let mut plan = Vec::new();
        if !online && !early {
            plan.extend(calls(&DOWN));
        }
        plan.push(Doing::Plant);
        if early {
            plan.extend(calls(&DOWN));
        }
        plan.extend(calls(&[EXPAND]));
        match (self.fault.what, online) {
            (What::Reboot, true) => {
                plan.push(Doing::Reboot);
                plan.extend(calls(&UP[1..]));
            }
            (What::Reboot, false) => {
                plan.extend(calls(&UP[..2]));
                plan.push(Doing::Reboot);
                plan.extend(calls(&UP[1..]));
            }
            (What::Restart, online) => {
                plan.push(Doing::Restart);
                plan.extend(calls(if online { &[] } else { &UP }));
            }
            (_, true) => {}
            (_, false) => plan.extend(calls(&UP)),
        }
        plan.extend(calls(&[Act::ExpandNode]));
        plan
    }

    /// The call in which the file system grows.
    pub(crate) fn grows_in(&self) -> Act {
        match self.way {
            Way::Online => Act::ExpandNode,
            Way::Offline => Act::Stage,
        }
    }

    /// Its place in the matrix, in words.
    pub(crate) fn place(&self) -> String {
        format!(
            "{}, {}, {}",
            self.fault.name,
            self.kind.content().name(),
            self.way.name()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use e2e::model::book::{Book, Due};
    use e2e::model::step::Step;

    #[test]
    fn every_plan_ends_with_a_volume_that_has_grown() {
        for fault in crate::fault::all() {
            for way in fault.ways.iter().copied() {
                let cell = Cell {
                    fault,
                    kind: Kind::Ext4,
                    way,
                };
                let mut book = Book::default();
                let create = Act::Create {
                    mib: SMALL,
                    kind: Kind::Ext4,
                };
                for act in [create].iter().chain(&UP) {
                    book.settle(0, *act);
                }
                for doing in cell.plan() {
                    match doing {
                        Doing::Call(act) => {
                            let due = book.due(0, act);
                            assert!(matches!(due, Due::Done | Due::Size(_)), "{cell:?} {act:?}");
                            book.settle(0, act);
                        }
                        Doing::Reboot => book.take(&Step::Reboot { node: NODE }),
                        Doing::Plant | Doing::Restart => {}
                    }
                }
                let known = &book.volumes[&0];
                assert!(
                    known.shown && known.promised == LARGE * e2e::MIB,
                    "{cell:?}"
                );
            }
        }
    }
}
