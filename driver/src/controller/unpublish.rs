//! `ControllerUnpublishVolume`: every target of a LUN and a node goes, whatever it is called. A node is meant by its name: it may have
//! been installed anew since, and the CO then names it by the new id.

use tokio::time::Instant;

use super::Shared;
use super::lookup::doubtful;
use super::target::delete_target;
use crate::dsm::target::Target;
use crate::error::{Context as _, Error};
use crate::publication::NodeId;
use crate::volume::VolumeId;

impl Shared {
    pub(super) async fn unpublish(&self, id: &VolumeId, node_id: &str) -> Result<(), Error> {
        let nas = self.nas(id)?;
        // An id that no node of ours can have never had a target; an empty one means all nodes.
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
        let asked = Instant::now();
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
                seen: "somebody publishes it at the same time".to_owned(),
            });
        }
        // There is one target for a node, save after two controllers at a time: who has found it need not look for more.
        if (withdrawn == 0 || node.is_none())
            && let Some(seen) = nas
                .why_targets_incomplete(asked, &targets)
                .await
                .with_context(doing)?
        {
            return Err(doubtful(doing(), seen));
        }
        Ok(())
    }
}
