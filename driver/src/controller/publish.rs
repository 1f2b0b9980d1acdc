//! `ControllerPublishVolume` and `ControllerUnpublishVolume`: one target per publication (design choices 4 to 7).
//!
//! The target's IQN is the only record of the publication, and its absence is the fence: a node that comes back from the
//! dead finds no target to log in to.

use proto::csi;

use super::delete::denied;
use super::{Doing as _, Shared, read_node};
use crate::chap::{self, Chap, Method};
use crate::dsm::target::Target;
use crate::dsm::{Code, DsmError, Nas};
use crate::error::Error;
use crate::plan::{self, Holder, Published};
use crate::publication::{Iqn, NodeId, PublishContext};
use crate::request::{Capability, Handle, required};
use crate::volume::{LunUuid, VolumeId, digest};

/// `ControllerPublishVolume`, checked.
#[derive(Debug)]
pub(super) struct Publish {
    pub(super) id: VolumeId,
    node: NodeId,
    multi_node: bool,
    chap: Option<Chap>,
}

impl Publish {
    pub(super) fn read(message: &csi::ControllerPublishVolumeRequest) -> Result<Self, Error> {
        let handle = Handle::read(&message.volume_id)?;
        required(
            "node_id",
            &message.node_id,
            "name the node as NodeGetInfo does",
        )?;
        let capability = Capability::read("volume_capability", message.volume_capability.as_ref())?;
        if message.readonly {
            return Err(Error::Invalid {
                field: "readonly".to_owned(),
                value: "true".to_owned(),
                remedy: "this driver enforces read-only on the node: set it in NodePublishVolume or use a READER access mode".to_owned(),
            });
        }
        let chap = Chap::read(&message.secrets)?;
        Ok(Self {
            id: handle.ours()?,
            node: read_node(&message.node_id)?,
            multi_node: capability.multi_node(),
            chap,
        })
    }
}

/// A target of this publication, and whether this call made it.
struct Own {
    target_id: u64,
    made: bool,
}

impl Shared {
    pub(super) async fn publish(&self, asked: &Publish) -> Result<PublishContext, Error> {
        let Publish {
            id,
            node,
            multi_node,
            chap,
        } = asked;
        let chap = chap.as_ref();
        let nas = self.nas(id)?;
        let seen = nas
            .lun_and_targets(&id.uuid)
            .await
            .doing(|| format!("looking for volume {id}"))?;
        let Some((lun, targets)) = seen else {
            return Err(denied(nas, id).await);
        };
        self.owned(id, &lun)?;
        if let Some(seen) = lun.not_ready() {
            return Err(Error::Unfinished {
                what: format!("volume {id}"),
                seen,
            });
        }
        let portals = nas.portals().await.map_err(|error| Error::Unfinished {
            what: format!("NAS {}", nas.name),
            seen: format!(
                "its name {:?} cannot be resolved ({error}): give portals in the configuration",
                nas.host
            ),
        })?;
        let iqn = Iqn::of_publication(&id.uuid, node);
        let what = || format!("publication of volume {id} to node {node}");
        let conflict = |holder: &Holder| Error::Refused {
            what: what(),
            seen: holder.to_string(),
            remedy: conflict_remedy(holder.node.is_some()),
        };
        let context = |lun| PublishContext {
            portals,
            iqn: iqn.clone(),
            lun,
            uuid: id.uuid.clone(),
            auth: Some(Method::of(chap)),
        };
        // Looking first spares the calls when there is nothing to do, and makes nothing that would have to be taken back from
        // beside another node's target, where a crash could leave it. What counts is still what is seen after the map.
        match plan::published(&id.uuid, &iqn, *multi_node, &targets) {
            Published::Here(lun) => {
                let Some(target_id) = to_set(&targets, &iqn, chap) else {
                    return Ok(context(lun));
                };
                let targets = match nas.set_auth(&id.uuid, target_id, chap).await {
                    Ok(targets) => targets,
                    Err(source) => {
                        return Err(take_back(nas, asked, &iqn, false, refused(&iqn, source)).await);
                    }
                };
                return match plan::published(&id.uuid, &iqn, *multi_node, &targets) {
                    Published::Here(lun) => proven(&targets, &iqn, chap).map(|()| context(lun)),
                    Published::NotHere(seen) => Err(Error::Unproven { what: what(), seen }),
                    Published::Conflict { holder } => {
                        Err(take_back(nas, asked, &iqn, false, conflict(&holder)).await)
                    }
                };
            }
            Published::Conflict { holder } => {
                return Err(take_back(nas, asked, &iqn, false, conflict(&holder)).await);
            }
            Published::NotHere(_) => {}
        }
        let own = own_target(nas, asked, &iqn).await?;
        // Nothing is taken back when this fails: another controller may have found the target, and answered for it. The CO
        // repeats the call, or unpublishes.
        let targets = nas
            .map_target(&id.uuid, own.target_id)
            .await
            .doing(|| format!("mapping volume {id} to target {iqn}"))?;
        match plan::published(&id.uuid, &iqn, *multi_node, &targets) {
            Published::Here(lun) => proven(&targets, &iqn, chap).map(|()| context(lun)),
            Published::NotHere(seen) => Err(Error::Unproven { what: what(), seen }),
            Published::Conflict { holder } => {
                Err(take_back(nas, asked, &iqn, own.made, conflict(&holder)).await)
            }
        }
    }

    pub(super) async fn unpublish(&self, id: &VolumeId, node_id: &str) -> Result<(), Error> {
        let nas = self.nas(id)?;
        let doing = || format!("looking for the targets of volume {id}");
        if node_id.is_empty() {
            let ours = |target: &Target| {
                target
                    .iqn()
                    .and_then(|iqn| iqn.publication())
                    .is_some_and(|(lun, _)| lun == id.uuid)
            };
            let (targets, doubt) = nas.all_targets().await.doing(doing)?;
            for target in targets.into_iter().filter(ours) {
                withdraw(nas, &id.uuid, &target).await?;
            }
            return doubt.map_or(Ok(()), |seen| Err(doubtful(doing(), seen)));
        }
        // An id that no node of ours can have never had a target.
        let Ok(node) = node_id.parse::<NodeId>() else {
            return Ok(());
        };
        let iqn = Iqn::of_publication(&id.uuid, &node);
        match find(nas, &target_name(&id.uuid, &node), &iqn).await? {
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

/// The target that exports the LUN already and must be told what a login has to prove. A password cannot be read back, so
/// with CHAP that is always so.
fn to_set(targets: &[Target], iqn: &Iqn, chap: Option<&Chap>) -> Option<u64> {
    targets
        .iter()
        .find(|target| target.iqn == iqn.as_str())
        .filter(|target| must_set(target, chap))
        .map(|target| target.target_id)
}

fn must_set(target: &Target, chap: Option<&Chap>) -> bool {
    chap.is_some() || target.differs_from(chap).is_some()
}

/// The target asks for the proof that was asked for, as far as DSM tells.
fn proven(targets: &[Target], iqn: &Iqn, chap: Option<&Chap>) -> Result<(), Error> {
    let seen = targets
        .iter()
        .find(|target| target.iqn == iqn.as_str())
        .and_then(|target| target.differs_from(chap));
    match seen {
        None => Ok(()),
        Some(seen) => Err(Error::Unproven {
            what: format!("the CHAP settings of target {iqn}"),
            seen,
        }),
    }
}

/// What a failed change of the CHAP settings means. To be answered only when the target is gone.
fn refused(iqn: &Iqn, source: DsmError) -> Error {
    match source.code() {
        Some(Code::BAD_AUTH_DATA) => bad_auth_data(),
        Some(_) | None => Error::Dsm {
            doing: format!("setting the CHAP settings of target {iqn}"),
            source,
        },
    }
}

fn bad_auth_data() -> Error {
    Error::BadSecret {
        field: chap::field(chap::PASSWORD),
        remedy: format!(
            "the NAS does not take these names and passwords ({}): choose others, of letters and digits",
            Code::BAD_AUTH_DATA
        ),
    }
}

/// Creates the target of a publication, or finds the one that an earlier call made and tells it what a login has to prove.
async fn own_target(nas: &Nas, asked: &Publish, iqn: &Iqn) -> Result<Own, Error> {
    let (lun, chap) = (&asked.id.uuid, asked.chap.as_ref());
    let name = target_name(lun, &asked.node);
    let refusal = match nas.create_target(&name, iqn, chap).await {
        Ok(target_id) => {
            return Ok(Own {
                target_id,
                made: true,
            });
        }
        Err(refusal) => refusal,
    };
    let Some(target) = find(nas, &name, iqn).await? else {
        return Err(no_target(&name, format!("creating target {iqn}"), refusal));
    };
    let target_id = target.target_id;
    if must_set(&target, chap)
        && let Err(source) = nas.set_auth(lun, target_id, chap).await
    {
        return Err(take_back(nas, asked, iqn, false, refused(iqn, source)).await);
    }
    Ok(Own {
        target_id,
        made: false,
    })
}

/// DSM refused the target and lists none of this IQN: nothing was made.
fn no_target(name: &str, doing: String, refusal: DsmError) -> Error {
    match refusal.code() {
        Some(Code::TOO_MANY_TARGETS) => Error::Exhausted {
            what: format!("{doing} (each published volume needs a target: unpublish others)"),
            source: refusal,
        },
        Some(Code::BAD_AUTH_DATA) => bad_auth_data(),
        Some(Code::TARGET_NAME_EXISTS) => Error::Refused {
            what: doing,
            seen: format!("a target named {name} with another IQN exists"),
            remedy: "delete or rename it in SAN Manager".to_owned(),
        },
        Some(_) | None => Error::Dsm {
            doing,
            source: refusal,
        },
    }
}

/// Takes the target of a publication back before `failure` is answered. One that this call did not make is left alone when it
/// exports the LUN, because it may be in use: then, and when it cannot be proven that the target is gone, the answer is not
/// final. Its number is read afresh, for DSM gives the numbers of deleted targets away again (design choice 6).
async fn take_back(nas: &Nas, asked: &Publish, iqn: &Iqn, made: bool, failure: Error) -> Error {
    let Publish { id, node, .. } = asked;
    let left = match find(nas, &target_name(&id.uuid, node), iqn).await {
        Ok(None) => None,
        Ok(Some(target)) if made || target.mapping_of(&id.uuid).is_none() => {
            withdraw(nas, &id.uuid, &target)
                .await
                .err()
                .map(|error| error.chain())
        }
        Ok(Some(target)) => Some(format!(
            "target {iqn} (id {}) of this node exported it before this call and may be in use",
            target.target_id
        )),
        Err(error) => Some(error.chain()),
    };
    match left {
        None => failure,
        Some(seen) => Error::Unproven {
            what: format!("taking back a publication ({})", failure.chain()),
            seen,
        },
    }
}

/// The target of a publication. `None` is proven: DSM does not find it by name, and the full list lacks it (design choice 6).
async fn find(nas: &Nas, name: &str, iqn: &Iqn) -> Result<Option<Target>, Error> {
    let doing = || format!("looking for target {iqn}");
    if let Some(target) = nas.target(name, iqn).await.doing(doing)? {
        return Ok(Some(target));
    }
    let is_it = |target: &Target| target.iqn == iqn.as_str();
    Ok(targets_that(nas, doing, is_it).await?.pop())
}

/// The targets of the NAS that `is_it` accepts. None is an answer only if the NAS has loaded them all: a publication whose
/// target it does not show yet would else be taken for ended, and the target would stay (design choice 16).
pub(super) async fn targets_that(
    nas: &Nas,
    doing: impl Fn() -> String,
    is_it: impl Fn(&Target) -> bool,
) -> Result<Vec<Target>, Error> {
    let (mut targets, doubt) = nas.all_targets().await.doing(&doing)?;
    targets.retain(is_it);
    match doubt {
        Some(seen) if targets.is_empty() => Err(doubtful(doing(), seen)),
        Some(_) | None => Ok(targets),
    }
}

fn doubtful(what: String, seen: String) -> Error {
    Error::Unproven { what, seen }
}

/// Deletes a target and reads back that the LUN is no longer exported by it.
async fn withdraw(nas: &Nas, lun: &LunUuid, target: &Target) -> Result<(), Error> {
    let what = || {
        format!(
            "deletion of target {} (id {})",
            target.iqn, target.target_id
        )
    };
    let left = match nas.delete_target(lun, target.target_id).await {
        Ok(targets) => targets,
        // Another controller may have been faster; only the full list can say so (design choice 6).
        Err(error) if error.code().is_some_and(Code::no_target) => {
            targets_that(nas, what, |row| row.iqn == target.iqn).await?
        }
        Err(error) => return Err(error).doing(what),
    };
    if left.iter().any(|row| row.iqn == target.iqn) {
        return Err(Error::Unproven {
            what: what(),
            seen: "DSM still lists it".to_owned(),
        });
    }
    Ok(())
}
