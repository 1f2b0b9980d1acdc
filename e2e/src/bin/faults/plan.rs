//! The sequence of calls and events in a cell. No I/O.

use e2e::model::step::{CsiCall, Kind};

use crate::fault::{ExpandMode, Fault, FaultKind};

/// The number of the node that it happens on.
pub(crate) const NODE: usize = 0;
/// Initial size of a volume, in MiB.
pub(crate) const SMALL: i64 = 1024;
/// Requested size, in MiB.
pub(crate) const LARGE: i64 = 3072;
/// Size that a full NAS still has space for, in MiB.
pub(crate) const LESS: i64 = 2048;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// A CSI call, retried while it fails.
    Call(CsiCall),
    /// The fault starts.
    InjectFault,
    /// The node loses power.
    Reboot,
    /// The driver's processes restart.
    Restart,
}

/// A cell of the matrix.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) fault: Fault,
    pub(crate) kind: Kind,
    pub(crate) way: ExpandMode,
}

/// Attaches a volume to a pod.
const ATTACH: [CsiCall; 3] = [
    CsiCall::Publish { node: NODE },
    CsiCall::Stage,
    CsiCall::NodePublish,
];
/// Detaches it.
const DETACH: [CsiCall; 3] = [
    CsiCall::NodeUnpublish,
    CsiCall::Unstage,
    CsiCall::Unpublish { node: NODE },
];
const EXPAND: CsiCall = CsiCall::Expand { mib: LARGE };

impl Case {
    /// From a volume that a pod has written to, to one that is expanded and published to a pod.
    pub(crate) fn plan(&self) -> Vec<Action> {
        let calls = |csi_calls: &[CsiCall]| {
            csi_calls
                .iter()
                .copied()
                .map(Action::Call)
                .collect::<Vec<_>>()
        };
        let (online, early) = (self.way == ExpandMode::Online, self.fault.early);
        let mut plan = Vec::new();
        if !online && !early {
            plan.extend(calls(&DETACH));
        }
        plan.push(Action::InjectFault);
        if early {
            plan.extend(calls(&DETACH));
        }
        plan.extend(calls(&[EXPAND]));
        match (self.fault.what, online) {
            (FaultKind::Reboot, true) => {
                plan.push(Action::Reboot);
                plan.extend(calls(&ATTACH[1..]));
            }
            (FaultKind::Reboot, false) => {
                plan.extend(calls(&ATTACH[..2]));
                plan.push(Action::Reboot);
                plan.extend(calls(&ATTACH[1..]));
            }
            (FaultKind::Restart, online) => {
                plan.push(Action::Restart);
                plan.extend(calls(if online { &[] } else { &ATTACH }));
            }
            (_, true) => {}
            (_, false) => plan.extend(calls(&ATTACH)),
        }
        plan.extend(calls(&[CsiCall::NodeExpand]));
        plan
    }

    /// The call in which the file system grows.
    pub(crate) fn call_that_grows(&self) -> CsiCall {
        match self.way {
            ExpandMode::Online => CsiCall::NodeExpand,
            ExpandMode::Offline => CsiCall::Stage,
        }
    }

    /// Human-readable name: fault, content, mode.
    pub(crate) fn name(&self) -> String {
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
    use e2e::model::reference_model::{Expected, ReferenceModel};
    use e2e::model::step::Step;

    #[test]
    fn every_plan_ends_with_a_volume_that_has_grown() {
        for fault in crate::fault::all() {
            for way in fault.ways.iter().copied() {
                let cell = Case {
                    fault,
                    kind: Kind::Ext4,
                    way,
                };
                let mut model = ReferenceModel::default();
                let create = CsiCall::Create {
                    mib: SMALL,
                    kind: Kind::Ext4,
                };
                for act in [create].iter().chain(&ATTACH) {
                    model.apply_call(0, *act);
                }
                for doing in cell.plan() {
                    match doing {
                        Action::Call(act) => {
                            let due = model.expected(0, act);
                            assert!(
                                matches!(due, Expected::Done | Expected::Size(_)),
                                "{cell:?} {act:?}"
                            );
                            model.apply_call(0, act);
                        }
                        Action::Reboot => model.apply_step(&Step::Reboot { node: NODE }),
                        Action::InjectFault | Action::Restart => {}
                    }
                }
                let known = &model.volumes[&0];
                assert!(
                    known.node_published && known.promised == LARGE * e2e::MIB,
                    "{cell:?}"
                );
            }
        }
    }
}
