//! Effects of a call outside of the state (image files and exports), and what the state machine may query there.

/// A change outside of the state that must follow it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Effect {
    /// Create or resize the image file of this LUN.
    File(String),
    /// Copy an image over another, at the size of the destination. Whoever has the destination open loses it.
    Copy { from: Image, to: Image },
    /// Stop exporting the target with this IQN.
    Unexport(String),
    /// The target with this IQN was deleted: reject new logins, but keep its sessions.
    Linger(String),
    /// Export the target with this number as it is now.
    Export(u32),
    /// Delete an image file that the state no longer references.
    Discard(Image),
}

/// An image file, by the uuid of its LUN or snapshot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Image {
    Lun(String),
    Snapshot(String),
}

/// What the state machine may query outside of the state.
pub(crate) trait Environment {
    /// Bytes allocated on disk for an image.
    fn allocated(&self, image: &Image) -> u64;
    /// The sessions of a target.
    fn sessions(&self, iqn: &str) -> Vec<node_sim::target::Session>;
    /// Whether a target may have sessions. True if that cannot be determined.
    fn may_be_in_use(&self, iqn: &str) -> bool;
}
