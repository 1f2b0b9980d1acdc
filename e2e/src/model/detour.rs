//! What a CO does where a plane cannot do all that a NAS and its nodes can. Nothing is left out: what is grown the one way
//! instead of the other is judged the same.

use super::book::Volume;
use super::player::Player;
use super::step::Act;
use crate::life::Content;
use crate::plane::Plane;

impl<P: Plane> Player<'_, P> {
    /// What has to be done before a call that replaces what a former registration of the node has left, where nobody waits for the
    /// minute that it takes: the attacher detaches it first. And before one that grows a file system, on a plane where it cannot be grown while it is mounted:
    /// it is unmounted and mounted again, which grows it too, and the call itself finds nothing to do.
    pub(super) fn instead(&self, volume: u8, act: Act) -> Vec<Act> {
        let Some(known) = self.book.volumes.get(&volume) else {
            return Vec::new();
        };
        if let Act::Publish { node } = act
            && known.former
            && known.published == Some(node)
            && !self.outwaits_a_minute()
        {
            return vec![Act::Unpublish { node }];
        }
        if known.promised == known.size || !self.may_not_grow(known, act) {
            return Vec::new();
        }
        let show = if known.readonly {
            Act::ShowReadonly
        } else {
            Act::Show
        };
        if known.shown {
            vec![Act::Hide, Act::Unstage, Act::Stage, show]
        } else {
            vec![Act::Unstage, Act::Stage]
        }
    }

    /// True when a call that finds a grown LUN would have to grow its file system while it is mounted, and this plane cannot.
    pub(super) fn may_not_grow(&self, known: &Volume, act: Act) -> bool {
        let grows = act == Act::ExpandNode && known.shown || act == Act::Stage && known.staged;
        match known.kind.content() {
            Content::Fs(fs) => grows && !self.plane.grows_mounted(fs),
            Content::Block => false,
        }
    }
}
