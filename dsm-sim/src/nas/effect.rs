//! What a call does outside of the state: files and exports that must follow it; and what it may look up there.

/// Something outside of the state that must follow it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Effect {
    /// The LUN's file is to have the LUN's size.
    File(String),
    /// An image is to become a copy of another, of its LUN's size; who has it open loses it.
    Copy { from: Image, to: Image },
    /// The target of this IQN is to be exported no more.
    Unexport(String),
    /// The target of this IQN was deleted, and turns new logins away; its sessions go on.
    Linger(String),
    /// The target of this number is to be exported as it is now.
    Export(u32),
    /// A file that nothing of the state names any more is to go.
    Discard(Image),
}

/// Data on disk, by the uuid of what it is the data of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Image {
    Lun(String),
    Snapshot(String),
}

/// What the state machine may look up outside of itself.
pub(crate) trait Environment {
    /// Bytes that data takes on disk.
    fn allocated(&self, image: &Image) -> u64;
    /// Who is logged in to a target.
    fn sessions(&self, iqn: &str) -> Vec<node_sim::target::Session>;
    /// Whether somebody is logged in to a target, as far as can be known: where nobody can tell, somebody may be.
    fn may_be_in_use(&self, iqn: &str) -> bool;
}
