//! `ControllerPublishVolume`: one target per publication, under a name that is never reused
//! (design.md, "Fencing: one publication, one name").
//!
//! The target's IQN is the only record of the publication, and its absence is the fence: a node that still has an earlier
//! publication finds no target to log in to.

use std::time::Duration;

use proto::csi;
use tokio::time::sleep;

use super::auth::{bad_auth_data, verify_auth};
use super::lookup::{find_targets, not_found};
use super::target::{delete_target, foreign_target_changed, undo_foreign_mapping};
use super::{Shared, read_node};
use crate::chap::{Chap, Method};
use crate::dsm::target::{Mapping, Target};
use crate::dsm::{Code, DsmError, Nas, TargetWrite};
use crate::error::{Context as _, Error};
use crate::plan::{self, Holder};
use crate::publication::{Iqn, NodeId, PublishContext, target_name};
use crate::request::{Capability, Handle, required};
use crate::volume::{LunUuid, VolumeId};

/// How often to poll for the mapping of another controller's target, every [`POLL_INTERVAL`].
const POLLS: usize = 8;
/// How often to create a target when two controllers back off for each other.
const MAX_ATTEMPTS: usize = 4;
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// A validated `ControllerPublishVolume` request.
#[derive(Debug)]
pub(super) struct Publish {
    pub(super) id: VolumeId,
    pub(super) node: NodeId,
    multi_node: bool,
    pub(super) chap: Option<Chap>,
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

impl Publish {
    pub(super) fn what(&self) -> String {
        format!("publication of volume {} to node {}", self.id, self.node)
    }

    pub(super) fn publication<'a>(&self, targets: &'a [Target]) -> plan::Publication<'a> {
        plan::publication(&self.id.uuid, &self.node, self.multi_node, targets)
    }

    fn conflict(&self, holder: &Holder) -> Error {
        let remedy = if holder.node.is_some() {
            "if that node no longer needs it, call ControllerUnpublishVolume for it (in Kubernetes: kubectl get volumeattachment, then delete the one of that node)"
        } else {
            "unmap it there in SAN Manager"
        };
        Error::Refused {
            what: self.what(),
            seen: holder.to_string(),
            remedy: remedy.to_owned(),
        }
    }
}

/// The target of a publication, its LUN number, and the CHAP credentials of its logins.
struct Exported {
    iqn: Iqn,
    lun: u16,
    chap: Option<Chap>,
}

impl Shared {
    pub(super) async fn publish(&self, request: &Publish) -> Result<PublishContext, Error> {
        let id = &request.id;
        let nas = self.nas(id)?;
        let found = nas
            .lun_and_targets(&id.uuid)
            .await
            .with_context(|| format!("looking for volume {id}"))?;
        let Some((lun, targets)) = found else {
            return Err(not_found(nas, id).await);
        };
        self.owned(id, &lun)?;
        if let Some(seen) = lun.not_ready() {
            return Err(Error::NotReady {
                what: format!("volume {id}"),
                seen,
            });
        }
        let portals = nas.portals().await.map_err(|error| Error::NotReady {
            what: format!("NAS {}", nas.name),
            seen: format!(
                "its name {:?} cannot be resolved ({error}): give portals in the configuration",
                nas.host
            ),
        })?;
        let exported = match self
            .delete_former_publications(nas, request, &targets)
            .await?
        {
            None => self.export(nas, request, &targets, lun.is_mapped).await?,
            // `is_mapped` is outdated: the LUN was mapped to a target that is deleted now.
            Some(left) => self.export(nas, request, &left, None).await?,
        };
        let chap = exported.chap.as_ref();
        Ok(PublishContext {
            portals,
            iqn: exported.iqn,
            lun: exported.lun,
            uuid: id.uuid.clone(),
            auth: Some(Method::of(chap)),
            // The node gets credentials from a Secret through the CO.
            chap: chap.filter(|_| request.chap.is_none()).cloned(),
        })
    }

    /// Finds the target of the publication, or creates one.
    async fn export(
        &self,
        nas: &Nas,
        request: &Publish,
        targets: &[Target],
        is_mapped: Option<bool>,
    ) -> Result<Exported, Error> {
        // Checking first saves calls if there is nothing to do, and avoids creating a target next to another node's that would
        // have to be rolled back, and that a crash could leave behind. What counts is still the state after the mapping.
        let publication = request.publication(targets);
        if let Some(holder) = &publication.conflict {
            return Err(self
                .abort(nas, request, targets, request.conflict(holder))
                .await);
        }
        if let Some(exported) = self.reuse(nas, request, &publication).await? {
            return Ok(exported);
        }
        if !publication.unmapped.is_empty() {
            return self.resume(nas, request, targets).await;
        }
        let is_exported = |target: &Target| target.mapping_of(&request.id.uuid).is_some();
        if is_mapped == Some(true) && !targets.iter().any(is_exported) {
            return Err(Error::Unverified {
                what: request.what(),
                seen: "the LUN has is_mapped true, and the NAS lists no target that exports it: it may still be starting"
                    .to_owned(),
            });
        }
        self.create_target(nas, request).await
    }

    /// Creates a target and maps the LUN to it. Of two concurrent controllers, the one that finds the other's target next to its
    /// own deletes its own, which was never mapped, so that no call can have returned it. If both do so, they retry after random
    /// delays.
    async fn create_target(&self, nas: &Nas, request: &Publish) -> Result<Exported, Error> {
        for _ in 0..MAX_ATTEMPTS {
            let nonce = self.nonce();
            let iqn = Iqn::of_publication(&request.id.uuid, &request.node, &nonce);
            let name = target_name(&request.id.uuid, &nonce);
            let chap = request.chap.clone().or_else(|| self.keys.credentials(&iqn));
            let targets = match nas
                .create_target(&request.id.uuid, &name, &iqn, chap.as_ref())
                .await
            {
                Ok(targets) => targets,
                Err(refusal) => {
                    created_despite_error(nas, &request.id.uuid, &name, &iqn, refusal).await?
                }
            };
            let Some(own) = targets.iter().find(|target| target.iqn == iqn.as_str()) else {
                return Err(Error::Unverified {
                    what: format!("creating target {iqn}"),
                    seen: "DSM does not list it".to_owned(),
                });
            };
            if !request.publication(&targets).has_another(&iqn) {
                return self.map(nas, request, own, chap, true).await;
            }
            let left = delete_target(nas, &request.id.uuid, own).await?;
            if let Some(exported) = self.wait_for_other_controller(nas, request, left).await? {
                return Ok(exported);
            }
            sleep(self.random_delay(POLL_INTERVAL)).await;
        }
        Err(Error::NotReady {
            what: request.what(),
            seen: "another controller is making its target".to_owned(),
        })
    }

    /// Another controller is creating the target. `None`: it has backed off, too.
    async fn wait_for_other_controller(
        &self,
        nas: &Nas,
        request: &Publish,
        mut targets: Vec<Target>,
    ) -> Result<Option<Exported>, Error> {
        for _ in 0..POLLS {
            let publication = request.publication(&targets);
            if let Some(holder) = &publication.conflict {
                return Err(request.conflict(holder));
            }
            if let Some(exported) = self.reuse(nas, request, &publication).await? {
                return Ok(Some(exported));
            }
            if publication.unmapped.is_empty() {
                return Ok(None);
            }
            sleep(POLL_INTERVAL).await;
            let doing = || format!("waiting for the target of the {}", request.what());
            targets = nas.targets(&request.id.uuid).await.with_context(doing)?;
        }
        Err(Error::NotReady {
            what: request.what(),
            seen: "another controller has begun to make its target".to_owned(),
        })
    }

    /// There are targets that an earlier call has created and not mapped. It may have crashed, or be about to map: so each is
    /// renamed first, which makes the guard of a call with the old name fail. The first one becomes the publication's; the others
    /// are deleted.
    async fn resume(
        &self,
        nas: &Nas,
        request: &Publish,
        targets: &[Target],
    ) -> Result<Exported, Error> {
        let targets = self.take_over(nas, request, targets).await?;
        let publication = request.publication(&targets);
        if let Some(holder) = &publication.conflict {
            return Err(self
                .abort(nas, request, &targets, request.conflict(holder))
                .await);
        }
        if let Some(exported) = self.reuse(nas, request, &publication).await? {
            return Ok(exported);
        }
        let [own, others @ ..] = publication.unmapped.as_slice() else {
            return Err(Error::NotReady {
                what: request.what(),
                seen: "it is being unpublished at the same time".to_owned(),
            });
        };
        for other in others {
            delete_target(nas, &request.id.uuid, other).await?;
        }
        let chap = self
            .ensure_auth(nas, &request.id.uuid, request.chap.as_ref(), own)
            .await?;
        self.map(nas, request, own, chap, false).await
    }

    /// Renames every target of the publication that does not export the LUN to a name that only this call knows; returns all
    /// targets after that.
    async fn take_over(
        &self,
        nas: &Nas,
        request: &Publish,
        targets: &[Target],
    ) -> Result<Vec<Target>, Error> {
        let mut current = targets.to_vec();
        for target in request.publication(targets).unmapped {
            let name = target_name(&request.id.uuid, &self.nonce());
            let what = || format!("renaming target {}", target.iqn);
            match nas
                .rename_target(&request.id.uuid, target, &name)
                .await
                .with_context(what)?
            {
                TargetWrite::Done(targets) => current = targets,
                TargetWrite::NotFound(_) => {
                    return Err(Error::NotReady {
                        what: what(),
                        seen: "another controller is changing it".to_owned(),
                    });
                }
                TargetWrite::WrongTarget { holder, .. } => {
                    return Err(foreign_target_changed(what(), target, holder));
                }
            }
        }
        Ok(current)
    }

    /// Maps the LUN to a target of this publication, which this call has `created` or taken over.
    async fn map(
        &self,
        nas: &Nas,
        request: &Publish,
        own: &Target,
        chap: Option<Chap>,
        created: bool,
    ) -> Result<Exported, Error> {
        let (uuid, iqn) = (&request.id.uuid, &own.iqn);
        let doing = || format!("mapping volume {} to target {iqn}", request.id);
        // Nothing is rolled back if this fails: another controller may have found the target, and returned it. The CO retries the
        // call, or unpublishes.
        let targets = match nas.map_target(uuid, own).await.with_context(doing)? {
            TargetWrite::Done(targets) => targets,
            TargetWrite::NotFound(_) => {
                return Err(Error::NotReady {
                    what: doing(),
                    seen: "the target is gone, or another controller has taken it over".to_owned(),
                });
            }
            TargetWrite::WrongTarget { holder, .. } => {
                return Err(undo_foreign_mapping(nas, uuid, own, holder).await);
            }
        };
        let publication = request.publication(&targets);
        if let Some(holder) = &publication.conflict {
            let failure = request.conflict(holder);
            if created {
                return Err(roll_back(nas, request, own, failure).await);
            }
            return Err(self.abort(nas, request, &targets, failure).await);
        }
        let mapped = publication
            .exporting
            .iter()
            .find(|(target, _)| target.is(own));
        let Some((target, mapping)) = mapped else {
            return Err(Error::Unverified {
                what: request.what(),
                seen: format!("target {iqn} does not export the LUN"),
            });
        };
        ensure_enabled(request, target)?;
        verify_auth(target, chap.as_ref())?;
        exported(request, target, mapping, chap)
    }

    /// Returns the existing publication, if any, and deletes other targets beside it: a call that created another target has
    /// found this one, so it has not mapped the LUN to its own. It backs off, or has crashed before it could.
    async fn reuse(
        &self,
        nas: &Nas,
        request: &Publish,
        publication: &plan::Publication<'_>,
    ) -> Result<Option<Exported>, Error> {
        let Some((target, mapping)) = publication.exporting.first() else {
            return Ok(None);
        };
        let is_unused = |target: &&&Target| target.connected_sessions.is_empty();
        for other in publication.unmapped.iter().filter(is_unused) {
            delete_target(nas, &request.id.uuid, other).await?;
        }
        ensure_enabled(request, target)?;
        let chap = self
            .ensure_auth(nas, &request.id.uuid, request.chap.as_ref(), target)
            .await?;
        exported(request, target, mapping, chap).map(Some)
    }

    /// The LUN is exported to somebody else. Deletes own targets that do not export it before `failure` is returned. If an own
    /// target exports it, and so may be in use, or if the others cannot be verified to be deleted, the error is not final.
    async fn abort(
        &self,
        nas: &Nas,
        request: &Publish,
        targets: &[Target],
        failure: Error,
    ) -> Error {
        let targets = match self.take_over(nas, request, targets).await {
            Ok(targets) => targets,
            Err(error) => return not_final(&failure, error.chain()),
        };
        let publication = request.publication(&targets);
        for target in &publication.unmapped {
            if let Err(error) = delete_target(nas, &request.id.uuid, target).await {
                return not_final(&failure, error.chain());
            }
        }
        match publication.exporting.first() {
            None => failure,
            Some((target, _)) => not_final(
                &failure,
                format!(
                    "target {} (id {}) of node {} exports it too and may be in use",
                    target.iqn, target.target_id, request.node
                ),
            ),
        }
    }
}

fn exported(
    request: &Publish,
    target: &Target,
    mapping: &Mapping,
    chap: Option<Chap>,
) -> Result<Exported, Error> {
    let unverified = |seen: String| Error::Unverified {
        what: request.what(),
        seen,
    };
    let iqn = target.iqn().ok_or_else(|| {
        unverified(format!(
            "{} is not a target name of this driver",
            target.iqn
        ))
    })?;
    let lun = mapping.unit().ok_or_else(|| {
        unverified(format!(
            "target {iqn} has the LUN under number {}, so the NAS has not loaded it: look at it in SAN Manager",
            mapping.mapping_index
        ))
    })?;
    Ok(Exported { iqn, lun, chap })
}

/// A target that an administrator has disabled exports nothing. It is not enabled here, because it may be a fence.
fn ensure_enabled(request: &Publish, target: &Target) -> Result<(), Error> {
    if target.is_enabled == Some(false) {
        return Err(Error::Unverified {
            what: format!("target {}", target.iqn),
            seen: format!(
                "somebody has disabled it, and it may be a fence: enable {} in SAN Manager, or delete the pods that use the volume (kubectl delete pod), and they get another; this is the {}",
                target.name,
                request.what()
            ),
        });
    }
    Ok(())
}

/// DSM did not confirm that it created the target. Returns all targets if it is among them; else the error.
async fn created_despite_error(
    nas: &Nas,
    lun: &LunUuid,
    name: &str,
    iqn: &Iqn,
    refusal: DsmError,
) -> Result<Vec<Target>, Error> {
    let doing = || format!("creating target {iqn}");
    let is_it = |target: &Target| target.iqn == iqn.as_str();
    let targets = find_targets(nas, lun, doing, is_it).await?;
    if targets.iter().any(is_it) {
        return Ok(targets);
    }
    Err(match refusal.code() {
        Some(Code::TOO_MANY_TARGETS) => Error::Exhausted {
            what: format!(
                "{} (each published volume needs a target: unpublish others)",
                doing()
            ),
            source: refusal,
        },
        Some(Code::BAD_AUTH_DATA) => bad_auth_data(),
        Some(Code::TARGET_NAME_EXISTS) => Error::NotReady {
            what: doing(),
            seen: format!("a target named {name} exists; the next try uses another name"),
        },
        Some(_) | None => Error::Dsm {
            doing: doing(),
            source: refusal,
        },
    })
}

/// Deletes the target that this call has created before `failure` is returned.
async fn roll_back(nas: &Nas, request: &Publish, own: &Target, failure: Error) -> Error {
    match delete_target(nas, &request.id.uuid, own).await {
        Err(error) => not_final(&failure, error.chain()),
        Ok(targets) => {
            let publication = request.publication(&targets);
            // Another controller may have created a target for this node meanwhile, and decides about that itself.
            if publication.exporting.is_empty() {
                failure
            } else {
                not_final(
                    &failure,
                    "another target of this node exports it".to_owned(),
                )
            }
        }
    }
}

fn not_final(failure: &Error, seen: String) -> Error {
    Error::Unverified {
        what: format!("rolling back a publication ({})", failure.chain()),
        seen,
    }
}
