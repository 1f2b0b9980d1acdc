//! The reference model: volumes as the CO knows them, and what each step makes of them. Pure.

use std::collections::BTreeMap;

use super::environment::ManualEdit;
use super::step::{CsiCall, Kind, Step};
use crate::{GIB, MIB};

/// An existing volume.
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent states of a volume"
)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its content.
    pub kind: Kind,
    /// The size of its LUN, bytes.
    pub size: i64,
    /// The node that it is published to.
    pub published: Option<usize>,
    /// It is staged on that node.
    pub staged: bool,
    /// It is published to a pod on that node.
    pub node_published: bool,
    /// The pod has it read-only.
    pub readonly: bool,
    /// Its LUN may hold a file system of the driver's.
    pub formatted: bool,
    /// Its LUN holds data that the driver has not written.
    pub foreign_data: bool,
    /// Its file system cannot grow beyond this size, bytes.
    pub unresizable: Option<i64>,
    /// The size that the node has reported, bytes: the minimum for its device and its file system.
    pub promised: i64,
    /// The value that was written last.
    pub data: Option<u64>,
    /// Its node was rebooted, and the target path is still there: an empty directory or file.
    pub stale: bool,
    /// Its node was reinstalled since: it is published to a node id that no longer exists.
    pub former: bool,
    /// Its LUN was renamed by hand: a CO that asks for the volume by name gets another LUN.
    pub renamed: bool,
}

impl Volume {
    /// It has an ext4 that fills its disk.
    pub fn may_become_unresizable(&self) -> bool {
        self.kind == Kind::Ext4
            && self.staged
            && self.promised == self.size
            && self.unresizable.is_none()
    }
}

/// All volumes, by their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReferenceModel {
    /// The existing ones.
    pub volumes: BTreeMap<u8, Volume>,
    /// The number of writes so far; each writes a different value.
    pub writes: u64,
}

/// The expected final result of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// OK.
    Done,
    /// OK, with this size.
    Size(i64),
    /// `NOT_FOUND`.
    NotFound,
    /// `ALREADY_EXISTS`.
    Exists,
    /// `FAILED_PRECONDITION`.
    Refused,
    /// `RESOURCE_EXHAUSTED` or `OUT_OF_RANGE`.
    TooMuch,
    /// A CO would not make this call now.
    Idle,
}

/// The size of a LUN for a required size, bytes (design.md#sizes).
pub fn rounded(required: i64) -> i64 {
    (required + MIB - 1) / MIB * MIB
}

/// The expected result of a call to the node that has the volume.
fn on_node(known: &Volume, rpc: CsiCall) -> Expected {
    let is_raw = known.kind == Kind::Raw;
    match rpc {
        // Not before the attacher has published it to the node's new id.
        CsiCall::Stage if known.former => Expected::Idle,
        CsiCall::Stage if known.foreign_data && !is_raw => Expected::Refused,
        CsiCall::Unstage if known.node_published => Expected::Refused,
        CsiCall::Stage | CsiCall::NodeUnpublish | CsiCall::Unstage => Expected::Done,
        CsiCall::NodePublish | CsiCall::NodePublishReadonly => {
            let readonly = rpc == CsiCall::NodePublishReadonly;
            match (known.staged, known.node_published) {
                (false, _) => Expected::Idle,
                // A raw device is shown the same way, read-only or not.
                (true, true) if !is_raw && known.readonly != readonly => Expected::Exists,
                (true, _) => Expected::Done,
            }
        }
        CsiCall::NodeExpand => match (known.staged, known.node_published) {
            (false, _) => Expected::NotFound,
            (true, false) => Expected::Idle,
            // It can never succeed; and it is the only call that fails because of it.
            (true, true) if known.unresizable.is_some_and(|size| size < known.size) => {
                Expected::Refused
            }
            (true, true) => Expected::Size(known.size),
        },
        CsiCall::Create { .. }
        | CsiCall::Delete
        | CsiCall::Expand { .. }
        | CsiCall::ExpandTooFar
        | CsiCall::Publish { .. }
        | CsiCall::Unpublish { .. } => Expected::Idle,
    }
}

impl ReferenceModel {
    /// The volume was unpublished from its node behind the node's back.
    pub(super) fn unpublish_behind_node(&mut self, volume: u8) {
        if let Some(known) = self.volumes.get_mut(&volume) {
            (known.published, known.staged, known.node_published) = (None, false, false);
            known.promised = 0;
        }
    }

    /// The size that the node has reported, bytes.
    pub(super) fn promised(&self, volume: u8) -> i64 {
        self.volumes.get(&volume).map_or(0, |known| known.promised)
    }

    /// Sets the size that the node has reported, bytes.
    pub(super) fn promise(&mut self, volume: u8, promised: i64) {
        if let Some(known) = self.volumes.get_mut(&volume) {
            known.promised = promised;
        }
    }

    /// The volume was published to a pod, and so it is staged.
    pub(super) fn staged_by_node_publish(&mut self, volume: u8) {
        if let Some(known) = self.volumes.get_mut(&volume) {
            (known.staged, known.promised) = (true, known.size);
        }
    }

    /// The expected result of this call.
    pub fn expected(&self, volume: u8, rpc: CsiCall) -> Expected {
        let known = self.volumes.get(&volume);
        match rpc {
            CsiCall::Create { mib, .. } => match known {
                None => Expected::Size(rounded(mib * MIB).max(GIB)),
                // The provisioner does not ask again for a volume that it has.
                Some(known) if known.renamed => Expected::Idle,
                Some(known) if known.size < mib * MIB => Expected::Exists,
                Some(known) => Expected::Size(known.size),
            },
            CsiCall::Delete => match known {
                Some(known) if known.published.is_some() => Expected::Refused,
                Some(_) | None => Expected::Done,
            },
            CsiCall::Expand { mib } => known.map_or(Expected::NotFound, |known| {
                Expected::Size(known.size.max(rounded(mib * MIB)))
            }),
            CsiCall::ExpandTooFar => known.map_or(Expected::NotFound, |_| Expected::TooMuch),
            CsiCall::Publish { node } => {
                known.map_or(Expected::NotFound, |known| match known.published {
                    Some(holder) if holder != node => Expected::Refused,
                    Some(_) | None => Expected::Done,
                })
            }
            // A CO unpublishes only what it has unstaged.
            CsiCall::Unpublish { .. } => match known {
                Some(known) if known.staged || known.stale => Expected::Idle,
                Some(_) | None => Expected::Done,
            },
            CsiCall::Stage
            | CsiCall::NodePublish
            | CsiCall::NodePublishReadonly
            | CsiCall::NodeExpand
            | CsiCall::NodeUnpublish
            | CsiCall::Unstage => known
                .filter(|known| known.published.is_some())
                .map_or(Expected::Idle, |known| on_node(known, rpc)),
        }
    }

    /// Applies a call that had its expected result.
    pub fn apply_call(&mut self, volume: u8, rpc: CsiCall) {
        let expected = self.expected(volume, rpc);
        if !matches!(expected, Expected::Done | Expected::Size(_)) {
            return;
        }
        if let (CsiCall::Create { kind, .. }, Expected::Size(size)) = (rpc, expected) {
            self.volumes.entry(volume).or_insert(Volume {
                kind,
                size,
                published: None,
                staged: false,
                node_published: false,
                readonly: false,
                formatted: false,
                foreign_data: false,
                unresizable: None,
                promised: 0,
                data: None,
                stale: false,
                former: false,
                renamed: false,
            });
            return;
        }
        let Some(known) = self.volumes.get_mut(&volume) else {
            return;
        };
        match rpc {
            CsiCall::Create { .. } | CsiCall::ExpandTooFar => {}
            CsiCall::Delete => {
                self.volumes.remove(&volume);
            }
            CsiCall::Expand { mib } => known.size = known.size.max(rounded(mib * MIB)),
            CsiCall::Publish { node } => {
                known.published = Some(node);
                known.former = false;
            }
            CsiCall::Unpublish { node } => {
                known.published = known.published.filter(|holder| *holder != node);
                known.former &= known.published.is_some();
            }
            CsiCall::Stage => {
                known.staged = true;
                known.formatted = true;
                known.promised = known.size;
            }
            CsiCall::NodePublish | CsiCall::NodePublishReadonly => {
                known.node_published = true;
                known.readonly = rpc == CsiCall::NodePublishReadonly && known.kind != Kind::Raw;
                known.stale = false;
            }
            CsiCall::NodeExpand => known.promised = known.size,
            CsiCall::NodeUnpublish => {
                known.node_published = false;
                known.stale = false;
            }
            CsiCall::Unstage => {
                known.staged = false;
                known.promised = 0;
            }
        }
    }

    /// The calls that a step consists of, in order.
    pub fn calls_of(&self, step: &Step) -> Vec<(u8, CsiCall)> {
        let known = |volume: u8| self.volumes.get(&volume);
        let calls = |volume: u8, rpcs: &[CsiCall]| rpcs.iter().map(|rpc| (volume, *rpc)).collect();
        match *step {
            Step::Call {
                volume, call: rpc, ..
            } => {
                let rpc = match (rpc, known(volume)) {
                    // Another kind would be another request; this tests the same request again.
                    (CsiCall::Create { mib, .. }, Some(known)) => CsiCall::Create {
                        mib,
                        kind: known.kind,
                    },
                    (rpc, _) => rpc,
                };
                calls(volume, &[rpc])
            }
            Step::Attach { volume, node } => {
                let node = known(volume)
                    .and_then(|known| known.published)
                    .unwrap_or(node);
                calls(
                    volume,
                    &[
                        CsiCall::Publish { node },
                        CsiCall::Stage,
                        CsiCall::NodePublish,
                    ],
                )
            }
            Step::Detach { volume } => {
                let node = known(volume).and_then(|known| known.published).unwrap_or(0);
                calls(
                    volume,
                    &[
                        CsiCall::NodeUnpublish,
                        CsiCall::Unstage,
                        CsiCall::Unpublish { node },
                    ],
                )
            }
            Step::Grow { volume, mib } => {
                calls(volume, &[CsiCall::Expand { mib }, CsiCall::NodeExpand])
            }
            Step::GrowConcurrently {
                volume,
                mib,
                call: rpc,
            } => calls(volume, &[CsiCall::Expand { mib }, rpc]),
            Step::Write { .. }
            | Step::WriteForeignData { .. }
            | Step::MakeUnresizable { .. }
            | Step::KillFileSystem { .. }
            | Step::SwapLun { .. }
            | Step::UseForeignLun { .. }
            | Step::RotatePassword
            | Step::Fence { .. }
            | Step::Away { .. }
            | Step::Race { .. }
            | Step::Fault(_)
            | Step::Restart { .. }
            | Step::Reboot { .. }
            | Step::Reimage { .. }
            | Step::RestartNas { .. }
            | Step::ExpireSessions
            | Step::ChangeClientAddress
            | Step::ChangeEnvironment(_)
            | Step::HideLists(_)
            | Step::EditByHand { .. }
            | Step::List => Vec::new(),
        }
    }

    /// Applies a step that has completed.
    pub fn apply_step(&mut self, step: &Step) {
        for (volume, rpc) in self.calls_of(step) {
            self.apply_call(volume, rpc);
        }
        match *step {
            Step::Write { volume } => {
                self.writes += 1;
                let data = self.writes;
                if let Some(known) = self.volumes.get_mut(&volume)
                    && known.node_published
                    && !known.readonly
                {
                    known.data = Some(data);
                }
            }
            Step::WriteForeignData { volume } => {
                if let Some(known) = self.volumes.get_mut(&volume)
                    && !known.formatted
                {
                    known.foreign_data = true;
                }
            }
            Step::MakeUnresizable { volume } => {
                if let Some(known) = self.volumes.get_mut(&volume)
                    && known.may_become_unresizable()
                {
                    known.unresizable = Some(known.size);
                }
            }
            // The next pod may write.
            Step::KillFileSystem { volume } => {
                if let Some(known) = self.volumes.get_mut(&volume)
                    && known.node_published
                    && known.kind != Kind::Raw
                {
                    known.readonly = false;
                }
            }
            Step::Fence { volume } => {
                if let Some(known) = self.volumes.get_mut(&volume)
                    && let Some(node) = known.published
                {
                    (known.staged, known.node_published, known.stale) = (false, false, false);
                    known.promised = 0;
                    known.published = Some(1 - node);
                    known.former = false;
                }
            }
            // Whichever node wins, in the end it is unpublished.
            Step::Race { volume } => {
                if let Some(known) = self.volumes.get_mut(&volume)
                    && !known.staged
                    && !known.stale
                {
                    known.published = None;
                    known.former = false;
                }
            }
            Step::Reboot { node } => {
                for known in self.volumes.values_mut() {
                    if known.published == Some(node) {
                        known.stale |= known.node_published;
                        (known.staged, known.node_published, known.promised) = (false, false, 0);
                    }
                }
            }
            // The node's own disks are empty, so the kubelet's directories are gone too.
            Step::Reimage { node } => {
                for known in self.volumes.values_mut() {
                    if known.published == Some(node) {
                        (known.staged, known.node_published, known.promised) = (false, false, 0);
                        (known.stale, known.former) = (false, true);
                    }
                }
            }
            Step::EditByHand { volume, what } => {
                if let (Some(known), ManualEdit::Rename) = (self.volumes.get_mut(&volume), what) {
                    known.renamed = true;
                }
            }
            Step::Call { .. }
            | Step::Attach { .. }
            | Step::Detach { .. }
            | Step::Grow { .. }
            | Step::GrowConcurrently { .. }
            | Step::SwapLun { .. }
            | Step::UseForeignLun { .. }
            | Step::RotatePassword
            | Step::Away { .. }
            | Step::Fault(_)
            | Step::Restart { .. }
            | Step::RestartNas { .. }
            | Step::ExpireSessions
            | Step::ChangeClientAddress
            | Step::ChangeEnvironment(_)
            | Step::HideLists(_)
            | Step::List => {}
        }
    }
}
