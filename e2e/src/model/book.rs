//! Volumes as the CO believes them to be. Pure: what a step makes of them once it has settled.

use std::collections::BTreeMap;

use super::step::{Act, Kind, Step};
use super::surroundings::ByHand;
use crate::{GIB, MIB};

/// A volume that exists.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one thing that a CO or a disk may know"
)]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// What it holds.
    pub kind: Kind,
    /// The size of its LUN, bytes.
    pub size: i64,
    /// The node that it is published to.
    pub published: Option<usize>,
    /// It is staged there.
    pub staged: bool,
    /// A pod there has it.
    pub shown: bool,
    /// The pod may only read.
    pub readonly: bool,
    /// Its LUN may bear a file system of ours.
    pub formatted: bool,
    /// Its LUN bears something of somebody else's.
    pub scribbled: bool,
    /// Its file system keeps this size for ever, bytes.
    pub stiff: Option<i64>,
    /// The size that the node has promised, bytes: what its device and its file system have at least.
    pub promised: i64,
    /// What was written last.
    pub data: Option<u64>,
    /// A node was rebooted under it, and what the pod saw of it is still there: an empty directory or file.
    pub stale: bool,
    /// Its node was installed anew since: it is published to one that there is no more.
    pub former: bool,
    /// Its LUN has another name than the driver has given it: for a CO that asks for the volume by name, it is another LUN.
    pub renamed: bool,
}

impl Volume {
    /// It has an ext4 that fills its disk.
    pub fn may_stiffen(&self) -> bool {
        self.kind == Kind::Ext4 && self.staged && self.promised == self.size && self.stiff.is_none()
    }
}

/// All volumes, by their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Book {
    /// Those that exist.
    pub volumes: BTreeMap<u8, Volume>,
    /// How many writes there were; each writes something else.
    pub writes: u64,
}

/// What a call must come to, at last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
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
    /// A CO would not make this call.
    Idle,
}

/// The size of a LUN for a required one (design.md#sizes).
pub fn rounded(required: i64) -> i64 {
    (required + MIB - 1) / MIB * MIB
}

/// What a call to the node must come to that has the volume.
fn on_node(known: &Volume, act: Act) -> Due {
    let is_raw = known.kind == Kind::Raw;
    match act {
        // Not before the attacher has seen which node it is by now.
        Act::Stage if known.former => Due::Idle,
        Act::Stage if known.scribbled && !is_raw => Due::Refused,
        Act::Unstage if known.shown => Due::Refused,
        Act::Stage | Act::Hide | Act::Unstage => Due::Done,
        Act::Show | Act::ShowReadonly => {
            let readonly = act == Act::ShowReadonly;
            match (known.staged, known.shown) {
                (false, _) => Due::Idle,
                // A path shows a device, whether it is to be written or not.
                (true, true) if !is_raw && known.readonly != readonly => Due::Exists,
                (true, _) => Due::Done,
            }
        }
        Act::ExpandNode => match (known.staged, known.shown) {
            (false, _) => Due::NotFound,
            (true, false) => Due::Idle,
            // It can never be done; and it is the only call that fails of it.
            (true, true) if known.stiff.is_some_and(|size| size < known.size) => Due::Refused,
            (true, true) => Due::Size(known.size),
        },
        Act::Create { .. }
        | Act::Delete
        | Act::Expand { .. }
        | Act::Beyond
        | Act::Publish { .. }
        | Act::Unpublish { .. } => Due::Idle,
    }
}

impl Book {
    /// The volume was taken from its node, and the node was not told.
    pub(super) fn take_from_node(&mut self, volume: u8) {
        if let Some(known) = self.volumes.get_mut(&volume) {
            (known.published, known.staged, known.shown) = (None, false, false);
            known.promised = 0;
        }
    }

    /// The size that the node has promised, bytes.
    pub(super) fn promised(&self, volume: u8) -> i64 {
        self.volumes.get(&volume).map_or(0, |known| known.promised)
    }

    /// The node has promised no more than this, bytes.
    pub(super) fn promise(&mut self, volume: u8, promised: i64) {
        if let Some(known) = self.volumes.get_mut(&volume) {
            known.promised = promised;
        }
    }

    /// A pod was shown the volume, and so it is staged.
    pub(super) fn staged_by_show(&mut self, volume: u8) {
        if let Some(known) = self.volumes.get_mut(&volume) {
            (known.staged, known.promised) = (true, known.size);
        }
    }

    /// What this call must come to.
    pub fn due(&self, volume: u8, act: Act) -> Due {
        let known = self.volumes.get(&volume);
        match act {
            Act::Create { mib, .. } => match known {
                None => Due::Size(rounded(mib * MIB).max(GIB)),
                // The provisioner does not ask for what it has.
                Some(known) if known.renamed => Due::Idle,
                Some(known) if known.size < mib * MIB => Due::Exists,
                Some(known) => Due::Size(known.size),
            },
            Act::Delete => match known {
                Some(known) if known.published.is_some() => Due::Refused,
                Some(_) | None => Due::Done,
            },
            Act::Expand { mib } => known.map_or(Due::NotFound, |known| {
                Due::Size(known.size.max(rounded(mib * MIB)))
            }),
            Act::Beyond => known.map_or(Due::NotFound, |_| Due::TooMuch),
            Act::Publish { node } => known.map_or(Due::NotFound, |known| match known.published {
                Some(holder) if holder != node => Due::Refused,
                Some(_) | None => Due::Done,
            }),
            // A CO unpublishes what it has unstaged.
            Act::Unpublish { .. } => match known {
                Some(known) if known.staged || known.stale => Due::Idle,
                Some(_) | None => Due::Done,
            },
            Act::Stage
            | Act::Show
            | Act::ShowReadonly
            | Act::ExpandNode
            | Act::Hide
            | Act::Unstage => known
                .filter(|known| known.published.is_some())
                .map_or(Due::Idle, |known| on_node(known, act)),
        }
    }

    /// What has become of the volume once the call has come to what is due.
    pub fn settle(&mut self, volume: u8, act: Act) {
        let due = self.due(volume, act);
        if !matches!(due, Due::Done | Due::Size(_)) {
            return;
        }
        if let (Act::Create { kind, .. }, Due::Size(size)) = (act, due) {
            self.volumes.entry(volume).or_insert(Volume {
                kind,
                size,
                published: None,
                staged: false,
                shown: false,
                readonly: false,
                formatted: false,
                scribbled: false,
                stiff: None,
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
        match act {
            Act::Create { .. } | Act::Beyond => {}
            Act::Delete => {
                self.volumes.remove(&volume);
            }
            Act::Expand { mib } => known.size = known.size.max(rounded(mib * MIB)),
            Act::Publish { node } => {
                known.published = Some(node);
                known.former = false;
            }
            Act::Unpublish { node } => {
                known.published = known.published.filter(|holder| *holder != node);
                known.former &= known.published.is_some();
            }
            Act::Stage => {
                known.staged = true;
                known.formatted = true;
                known.promised = known.size;
            }
            Act::Show | Act::ShowReadonly => {
                known.shown = true;
                known.readonly = act == Act::ShowReadonly && known.kind != Kind::Raw;
                known.stale = false;
            }
            Act::ExpandNode => known.promised = known.size,
            Act::Hide => {
                known.shown = false;
                known.stale = false;
            }
            Act::Unstage => {
                known.staged = false;
                known.promised = 0;
            }
        }
    }

    /// The calls that a step consists of, in order.
    pub fn acts(&self, step: &Step) -> Vec<(u8, Act)> {
        let known = |volume: u8| self.volumes.get(&volume);
        let calls = |volume: u8, acts: &[Act]| acts.iter().map(|act| (volume, *act)).collect();
        match *step {
            Step::Call { volume, act, .. } => {
                let act = match (act, known(volume)) {
                    // Another kind would be another request, and this is about the same one.
                    (Act::Create { mib, .. }, Some(known)) => Act::Create {
                        mib,
                        kind: known.kind,
                    },
                    (act, _) => act,
                };
                calls(volume, &[act])
            }
            Step::Attach { volume, node } => {
                let node = known(volume)
                    .and_then(|known| known.published)
                    .unwrap_or(node);
                calls(volume, &[Act::Publish { node }, Act::Stage, Act::Show])
            }
            Step::Detach { volume } => {
                let node = known(volume).and_then(|known| known.published).unwrap_or(0);
                calls(volume, &[Act::Hide, Act::Unstage, Act::Unpublish { node }])
            }
            Step::Grow { volume, mib } => calls(volume, &[Act::Expand { mib }, Act::ExpandNode]),
            Step::GrowBeside { volume, mib, act } => calls(volume, &[Act::Expand { mib }, act]),
            Step::Write { .. }
            | Step::Scribble { .. }
            | Step::Stiffen { .. }
            | Step::Die { .. }
            | Step::Disguise { .. }
            | Step::Trespass { .. }
            | Step::Rotate
            | Step::Fence { .. }
            | Step::Away { .. }
            | Step::Race { .. }
            | Step::Mishap(_)
            | Step::Restart { .. }
            | Step::Reboot { .. }
            | Step::Reimage { .. }
            | Step::RestartNas { .. }
            | Step::Expire
            | Step::Move
            | Step::Surround(_)
            | Step::Blind(_)
            | Step::ByHand { .. }
            | Step::List => Vec::new(),
        }
    }

    /// What a step makes of the volumes once it has settled.
    pub fn take(&mut self, step: &Step) {
        for (volume, act) in self.acts(step) {
            self.settle(volume, act);
        }
        match *step {
            Step::Write { volume } => {
                self.writes += 1;
                let data = self.writes;
                if let Some(known) = self.volumes.get_mut(&volume)
                    && known.shown
                    && !known.readonly
                {
                    known.data = Some(data);
                }
            }
            Step::Scribble { volume } => {
                if let Some(known) = self.volumes.get_mut(&volume)
                    && !known.formatted
                {
                    known.scribbled = true;
                }
            }
            Step::Stiffen { volume } => {
                if let Some(known) = self.volumes.get_mut(&volume)
                    && known.may_stiffen()
                {
                    known.stiff = Some(known.size);
                }
            }
            // The next pod may write.
            Step::Die { volume } => {
                if let Some(known) = self.volumes.get_mut(&volume)
                    && known.shown
                    && known.kind != Kind::Raw
                {
                    known.readonly = false;
                }
            }
            Step::Fence { volume } => {
                if let Some(known) = self.volumes.get_mut(&volume)
                    && let Some(node) = known.published
                {
                    (known.staged, known.shown, known.stale) = (false, false, false);
                    known.promised = 0;
                    known.published = Some(1 - node);
                    known.former = false;
                }
            }
            // Whoever wins, in the end it is nobody's.
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
                        known.stale |= known.shown;
                        (known.staged, known.shown, known.promised) = (false, false, 0);
                    }
                }
            }
            // Whatever was on its own disks is gone, a kubelet's directories, too.
            Step::Reimage { node } => {
                for known in self.volumes.values_mut() {
                    if known.published == Some(node) {
                        (known.staged, known.shown, known.promised) = (false, false, 0);
                        (known.stale, known.former) = (false, true);
                    }
                }
            }
            Step::ByHand { volume, what } => {
                if let (Some(known), ByHand::Rename) = (self.volumes.get_mut(&volume), what) {
                    known.renamed = true;
                }
            }
            Step::Call { .. }
            | Step::Attach { .. }
            | Step::Detach { .. }
            | Step::Grow { .. }
            | Step::GrowBeside { .. }
            | Step::Disguise { .. }
            | Step::Trespass { .. }
            | Step::Rotate
            | Step::Away { .. }
            | Step::Mishap(_)
            | Step::Restart { .. }
            | Step::RestartNas { .. }
            | Step::Expire
            | Step::Move
            | Step::Surround(_)
            | Step::Blind(_)
            | Step::List => {}
        }
    }
}
