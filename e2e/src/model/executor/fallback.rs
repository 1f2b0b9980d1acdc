//! Replacement calls for a test bed that lacks a feature of a real NAS or node. Nothing is skipped: a volume that grows in
//! another way must meet the same invariants.

use super::Executor;
use crate::harness::test_volume::Content;
use crate::model::reference_model::Volume;
use crate::model::step::CsiCall;
use crate::testbed::TestBed;

impl<P: TestBed> Executor<'_, P> {
    /// Calls to make before `rpc`. If it replaces the publication of a node's former registration, and the CO cannot wait the
    /// minute that this takes, the attacher first detaches the volume. If it grows a file system that this test bed cannot grow
    /// while it is mounted, the volume is unmounted and mounted again, which grows it too; the call itself then finds nothing to
    /// do.
    pub(super) fn fallback_calls(&self, volume: u8, rpc: CsiCall) -> Vec<CsiCall> {
        let Some(known) = self.model.volumes.get(&volume) else {
            return Vec::new();
        };
        if let CsiCall::Publish { node } = rpc
            && known.former
            && known.published == Some(node)
            && !self.waits_past_a_minute()
        {
            return vec![CsiCall::Unpublish { node }];
        }
        if known.promised == known.size || !self.cannot_grow_online(known, rpc) {
            return Vec::new();
        }
        let publish = if known.readonly {
            CsiCall::NodePublishReadonly
        } else {
            CsiCall::NodePublish
        };
        if known.node_published {
            vec![
                CsiCall::NodeUnpublish,
                CsiCall::Unstage,
                CsiCall::Stage,
                publish,
            ]
        } else {
            vec![CsiCall::Unstage, CsiCall::Stage]
        }
    }

    /// True if the call would have to grow a mounted file system, and this test bed cannot do that.
    pub(super) fn cannot_grow_online(&self, known: &Volume, rpc: CsiCall) -> bool {
        let grows = rpc == CsiCall::NodeExpand && known.node_published
            || rpc == CsiCall::Stage && known.staged;
        match known.kind.content() {
            Content::Fs(fs) => grows && !self.bed.grows_online(fs),
            Content::Block => false,
        }
    }
}
