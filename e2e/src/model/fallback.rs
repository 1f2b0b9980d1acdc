//! What a CO does where a plane cannot do all that a NAS and its nodes can. Nothing is left out: what is grown the one way
//! instead of the other is judged the same.

use super::executor::Executor;
use super::reference_model::Volume;
use super::step::CsiCall;
use crate::harness::test_volume::Content;
use crate::testbed::TestBed;

impl<P: TestBed> Executor<'_, P> {
    /// What has to be done before a call that replaces what a former registration of the node has left, where nobody waits for the
    /// minute that it takes: the attacher detaches it first. And before one that grows a file system, on a plane where it cannot be grown while it is mounted:
    /// it is unmounted and mounted again, which grows it too, and the call itself finds nothing to do.
    pub(super) fn fallback_calls(&self, volume: u8, act: CsiCall) -> Vec<CsiCall> {
        let Some(known) = self.model.volumes.get(&volume) else {
            return Vec::new();
        };
        if let CsiCall::Publish { node } = act
            && known.former
            && known.published == Some(node)
            && !self.waits_past_a_minute()
        {
            return vec![CsiCall::Unpublish { node }];
        }
        if known.promised == known.size || !self.may_not_grow(known, act) {
            return Vec::new();
        }
        let show = if known.readonly {
            CsiCall::NodePublishReadonly
        } else {
            CsiCall::NodePublish
        };
        if known.node_published {
            vec![
                CsiCall::NodeUnpublish,
                CsiCall::Unstage,
                CsiCall::Stage,
                show,
            ]
        } else {
            vec![CsiCall::Unstage, CsiCall::Stage]
        }
    }

    /// True when a call that finds a grown LUN would have to grow its file system while it is mounted, and this plane cannot.
    pub(super) fn may_not_grow(&self, known: &Volume, act: CsiCall) -> bool {
        let grows = act == CsiCall::NodeExpand && known.node_published
            || act == CsiCall::Stage && known.staged;
        match known.kind.content() {
            Content::Fs(fs) => grows && !self.bed.grows_online(fs),
            Content::Block => false,
        }
    }
}
