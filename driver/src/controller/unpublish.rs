//! `ControllerUnpublishVolume`: deletes every target of a LUN and a node, whatever its name. Nodes are compared by name: the node
//! may have been reinstalled since, and the CO then passes its new id.

use tokio::time::Instant;

use super::Shared;
use super::lookup::unverified;
use super::target::delete_target;
use crate::dsm::target::Target;
use crate::error::{Context as _, Error};
use crate::publication::NodeId;
use crate::volume::VolumeId;

impl Shared {
    pub(super) async fn unpublish(&self, id: &VolumeId, node_id: &str) -> Result<(), Error> {
        let nas = self.nas(id)?;
        // There is no target for an invalid node id; an empty one means all nodes.
        let node = match node_id {
            "" => None,
            id => match id.parse::<NodeId>() {
                Ok(node) => Some(node),
                Err(_) => return Ok(()),
            },
        };
        let ours = |target: &Target| {
            let publication = target.iqn().and_then(|iqn| iqn.publication());
            publication.is_some_and(|(lun, to)| {
                lun == id.uuid && node.as_ref().is_none_or(|node| node.is_same_node(&to))
            })
        };
        let doing = || format!("looking for the targets of volume {id}");
        let queried = Instant::now();
        let targets = nas.targets(&id.uuid).await.with_context(doing)?;
        let (mut withdrawn, mut left) = (0, 0);
        for target in targets.iter().filter(|target| ours(target)) {
            left = delete_target(nas, &id.uuid, target)
                .await?
                .iter()
                .filter(|row| ours(row))
                .count();
            withdrawn += 1;
        }
        if left > 0 {
            return Err(Error::NotReady {
                what: format!("unpublishing volume {id}"),
                seen: "it is being published at the same time".to_owned(),
            });
        }
        // A node has one target, except after two concurrent controllers: if it was found, an incomplete list does not matter.
        if (withdrawn == 0 || node.is_none())
            && let Some(seen) = nas
                .why_targets_incomplete(queried, &targets)
                .await
                .with_context(doing)?
        {
            return Err(unverified(doing(), seen));
        }
        Ok(())
    }
}
