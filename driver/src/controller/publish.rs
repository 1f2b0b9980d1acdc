//! `ControllerPublishVolume` and `ControllerUnpublishVolume`: one target per publication (design choices 4 to 7).
//!
//! The target's IQN is the only record of the publication, and its absence is the fence: a node that comes back from the
//! dead finds no target to log in to.

use proto::csi;

use super::expand::no_volume;
use super::{Doing as _, Shared, read_node};
use crate::dsm::target::Target;
use crate::dsm::{Code, DsmError, Nas};
use crate::error::Error;
use crate::plan::{self, Published};
use crate::publication::{Iqn, NodeId, PublishContext};
use crate::request::{Capability, Handle, required};
use crate::volume::{LunUuid, VolumeId, digest};

/// `ControllerPublishVolume`, checked.
#[derive(Debug)]
pub(super) struct Publish {
    pub(super) id: VolumeId,
    node: NodeId,
    multi_node: bool,
}

impl Publish {
    pub(super) fn read(message: &csi::ControllerPublishVolumeRequest) -> Result<Self, Error> {
        let handle = Handle::read(&message.volume_id)?;
        required("node_id", &message.node_id, "name the node as NodeGetInfo does")?;
        let capability = Capability::read("volume_capability", message.volume_capability.as_ref())?;
        if message.readonly {
            return Err(Error::Invalid {
                field: "readonly".to_owned(),
                value: "true".to_owned(),
                remedy: "this driver enforces read-only on the node: set it in NodePublishVolume or use a READER access mode".to_owned(),
            });
        }
        Ok(Self { id: handle.ours()?, node: read_node(&message.node_id)?, multi_node: capability.multi_node() })
    }
}

/// A target of this publication, and whether this call made it.
struct Own {
    target_id: u64,
    made: bool,
}

impl Shared {
    pub(super) async fn publish(&self, asked: &Publish) -> Result<PublishContext, Error> {
        let Publish { id, node, multi_node } = asked;
        let nas = self.nas(id)?;
        let lun = nas.lun(&id.uuid).await.doing(|| format!("looking for volume {id}"))?.ok_or_else(|| no_volume(id))?;
        self.owned(id, &lun)?;
        if let Some(seen) = lun.not_ready() {
            return Err(Error::Unfinished { what: format!("volume {id}"), seen });
        }
        let portals = nas.portals().await.map_err(|error| Error::Unfinished {
            what: format!("NAS {}", nas.name),
            seen: format!("its name {:?} cannot be resolved ({error}): give portals in the configuration", nas.host),
        })?;
        let iqn = Iqn::of_publication(&id.uuid, node);
        let own = own_target(nas, &id.uuid, node, &iqn).await?;
        let targets = match nas.map_target(&id.uuid, own.target_id).await {
            Ok(targets) => targets,
            Err(error) => return Err(undo(nas, id, &own, &iqn, Error::Dsm { doing: format!("mapping volume {id} to target {iqn}"), source: error }).await),
        };
        match plan::published(&id.uuid, &iqn, *multi_node, &targets) {
            Published::Here(lun) => Ok(PublishContext { portals, iqn, lun, uuid: id.uuid.clone() }),
            Published::NotHere(seen) => Err(Error::Unproven { what: format!("publication of volume {id} to node {node}"), seen }),
            Published::Conflict { holder } => {
                let refused = Error::Refused {
                    what: format!("publication of volume {id} to node {node}"),
                    seen: holder.to_string(),
                    remedy: conflict_remedy(holder.node.is_some()),
                };
                Err(undo(nas, id, &own, &iqn, refused).await)
            }
        }
    }

    pub(super) async fn unpublish(&self, id: &VolumeId, node_id: &str) -> Result<(), Error> {
        let nas = self.nas(id)?;
        let doing = || format!("looking for the targets of volume {id}");
        if node_id.is_empty() {
            let ours = |target: &Target| target.iqn().and_then(|iqn| iqn.publication()).is_some_and(|(lun, _)| lun == id.uuid);
            for target in nas.targets().await.doing(doing)?.into_iter().filter(ours) {
                withdraw(nas, &id.uuid, &target).await?;
            }
            return Ok(());
        }
        // An id that no node of ours can have never had a target.
        let Ok(node) = node_id.parse::<NodeId>() else { return Ok(()) };
        let iqn = Iqn::of_publication(&id.uuid, &node);
        match nas.target(&target_name(&id.uuid, &node), &iqn).await.doing(doing)? {
            Some(target) => withdraw(nas, &id.uuid, &target).await,
            None => Ok(()),
        }
    }
}

/// The target's name, by which DSM finds it in one call. Unlike the IQN it has to be short.
fn target_name(lun: &LunUuid, node: &NodeId) -> String {
    format!("csi-{}-{}", lun.digits(), digest(node.as_str(), 12))
}

fn conflict_remedy(ours: bool) -> String {
    if ours {
        "if that node no longer needs it, call ControllerUnpublishVolume for it (in Kubernetes: kubectl get volumeattachment, then delete the one of that node)".to_owned()
    } else {
        "unmap it there in SAN Manager".to_owned()
    }
}

/// Creates the target of a publication, or finds the one that an earlier call made.
async fn own_target(nas: &Nas, lun: &LunUuid, node: &NodeId, iqn: &Iqn) -> Result<Own, Error> {
    let name = target_name(lun, node);
    let refusal = match nas.create_target(&name, iqn).await {
        Ok(target_id) => return Ok(Own { target_id, made: true }),
        Err(refusal) => refusal,
    };
    let doing = || format!("creating target {iqn}");
    match nas.target(&name, iqn).await.doing(doing)? {
        Some(target) => Ok(Own { target_id: target.target_id, made: false }),
        None => Err(no_target(&name, doing(), refusal)),
    }
}

/// DSM refused the target and lists none of this IQN: nothing was made.
fn no_target(name: &str, doing: String, refusal: DsmError) -> Error {
    match refusal.code() {
        Some(Code::TOO_MANY_TARGETS) => Error::Exhausted { what: format!("{doing} (each published volume needs a target: unpublish others)"), source: refusal },
        Some(Code::TARGET_NAME_EXISTS) => Error::Refused {
            what: doing,
            seen: format!("a target named {name} with another IQN exists"),
            remedy: "delete or rename it in SAN Manager".to_owned(),
        },
        Some(_) | None => Error::Dsm { doing, source: refusal },
    }
}

/// Takes back what this call made. When that cannot be proven the caller is told to come again.
async fn undo(nas: &Nas, id: &VolumeId, own: &Own, iqn: &Iqn, failure: Error) -> Error {
    if !own.made {
        return failure;
    }
    match nas.delete_target(&id.uuid, own.target_id).await {
        Ok(targets) if targets.iter().all(|target| target.iqn != iqn.as_str()) => failure,
        Ok(_) => Error::Unproven { what: format!("taking back the publication of volume {id} ({})", failure.chain()), seen: format!("DSM still lists target {iqn}") },
        Err(source) => Error::Dsm { doing: format!("taking back the publication of volume {id} ({})", failure.chain()), source },
    }
}

/// Deletes a target and reads back that the LUN is no longer exported by it.
async fn withdraw(nas: &Nas, lun: &LunUuid, target: &Target) -> Result<(), Error> {
    let what = || format!("deletion of target {} (id {})", target.iqn, target.target_id);
    let left = match nas.delete_target(lun, target.target_id).await {
        Ok(targets) => targets,
        // Another controller may have been faster; only the full list can say so (design choice 6).
        Err(error) if error.code().is_some_and(Code::no_target) => nas.targets().await.doing(what)?,
        Err(error) => return Err(error).doing(what),
    };
    if left.iter().any(|row| row.iqn == target.iqn) {
        return Err(Error::Unproven { what: what(), seen: "DSM still lists it".to_owned() });
    }
    Ok(())
}
