//! `ControllerPublishVolume`: one target per publication, under a name that is never made twice
//! (design.md, "Fencing: one publication, one name").
//!
//! The target's IQN is the only record of the publication, and its absence is the fence: what a node still holds of an earlier
//! publication finds no target to log in to.

use std::time::Duration;

use proto::csi;
use tokio::time::sleep;

use super::auth::{bad_auth_data, verify_auth};
use super::lookup::{find_targets, not_found};
use super::target::{delete_target, differs_from_request, unmap_lun};
use super::{Shared, read_node};
use crate::chap::{Chap, Method};
use crate::dsm::target::{Mapping, Target};
use crate::dsm::{Code, DsmError, Nas, TargetWrite};
use crate::error::{Context as _, Error};
use crate::plan::{self, Holder};
use crate::publication::{Iqn, NodeId, PublishContext, target_name};
use crate::request::{Capability, Handle, required};
use crate::volume::{LunUuid, VolumeId};

/// How often another controller's target is looked for that is about to export the LUN, and the time between two looks.
const POLLS: usize = 8;
/// How often a target is made when two controllers step back before each other.
const TRIES: usize = 4;
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// `ControllerPublishVolume`, checked.
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

    pub(super) fn seen<'a>(&self, targets: &'a [Target]) -> plan::Publication<'a> {
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

/// The target of a publication and what its login takes.
struct Exported {
    iqn: Iqn,
    lun: u16,
    chap: Option<Chap>,
}

impl Shared {
    pub(super) async fn publish(&self, asked: &Publish) -> Result<PublishContext, Error> {
        let id = &asked.id;
        let nas = self.nas(id)?;
        let seen = nas
            .lun_and_targets(&id.uuid)
            .await
            .with_context(|| format!("looking for volume {id}"))?;
        let Some((lun, targets)) = seen else {
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
        let exported = match self.end_former_publications(nas, asked, &targets).await? {
            None => self.export(nas, asked, &targets, lun.is_mapped).await?,
            // The LUN was mapped to what is gone now.
            Some(left) => self.export(nas, asked, &left, None).await?,
        };
        let chap = exported.chap.as_ref();
        Ok(PublishContext {
            portals,
            iqn: exported.iqn,
            lun: exported.lun,
            uuid: id.uuid.clone(),
            auth: Some(Method::of(chap)),
            // A Secret of the class reaches the node by itself.
            chap: chap.filter(|_| asked.chap.is_none()).cloned(),
        })
    }

    /// Finds the target of the publication, or makes one.
    async fn export(
        &self,
        nas: &Nas,
        asked: &Publish,
        targets: &[Target],
        is_mapped: Option<bool>,
    ) -> Result<Exported, Error> {
        // Looking first spares the calls when there is nothing to do, and makes nothing that would have to be taken back from
        // beside another node's target, where a crash could leave it. What counts is still what is seen after the map.
        let seen = asked.seen(targets);
        if let Some(holder) = &seen.conflict {
            return Err(self
                .abort(nas, asked, targets, asked.conflict(holder))
                .await);
        }
        if let Some(exported) = self.keep(nas, asked, &seen).await? {
            return Ok(exported);
        }
        if !seen.idle.is_empty() {
            return self.resume(nas, asked, targets).await;
        }
        let is_exported = |target: &Target| target.mapping_of(&asked.id.uuid).is_some();
        if is_mapped == Some(true) && !targets.iter().any(is_exported) {
            return Err(Error::Unverified {
                what: asked.what(),
                seen: "the LUN has is_mapped true, and the NAS lists no target that exports it: it may still be starting"
                    .to_owned(),
            });
        }
        self.create_target(nas, asked).await
    }

    /// Makes a target and maps the LUN to it. Of two controllers the one that finds the target of the other beside its own takes its
    /// own back, which was never mapped, so that nobody can have answered it. Both may do so; then luck decides who is first.
    async fn create_target(&self, nas: &Nas, asked: &Publish) -> Result<Exported, Error> {
        for _ in 0..TRIES {
            let nonce = self.nonce();
            let iqn = Iqn::of_publication(&asked.id.uuid, &asked.node, &nonce);
            let name = target_name(&asked.id.uuid, &nonce);
            let chap = asked.chap.clone().or_else(|| self.keys.proofs(&iqn));
            let targets = match nas
                .create_target(&asked.id.uuid, &name, &iqn, chap.as_ref())
                .await
            {
                Ok(targets) => targets,
                Err(refusal) => {
                    created_despite_error(nas, &asked.id.uuid, &name, &iqn, refusal).await?
                }
            };
            let Some(mine) = targets.iter().find(|target| target.iqn == iqn.as_str()) else {
                return Err(Error::Unverified {
                    what: format!("creating target {iqn}"),
                    seen: "DSM does not list it".to_owned(),
                });
            };
            if !asked.seen(&targets).has_another(&iqn) {
                return self.map(nas, asked, mine, chap, true).await;
            }
            let left = delete_target(nas, &asked.id.uuid, mine).await?;
            if let Some(exported) = self.wait_for_another(nas, asked, left).await? {
                return Ok(exported);
            }
            sleep(self.up_to(POLL_INTERVAL)).await;
        }
        Err(Error::NotReady {
            what: asked.what(),
            seen: "another controller is making its target".to_owned(),
        })
    }

    /// Another controller is making the target. `None`: it has stepped back, too.
    async fn wait_for_another(
        &self,
        nas: &Nas,
        asked: &Publish,
        mut targets: Vec<Target>,
    ) -> Result<Option<Exported>, Error> {
        for _ in 0..POLLS {
            let seen = asked.seen(&targets);
            if let Some(holder) = &seen.conflict {
                return Err(asked.conflict(holder));
            }
            if let Some(exported) = self.keep(nas, asked, &seen).await? {
                return Ok(Some(exported));
            }
            if seen.idle.is_empty() {
                return Ok(None);
            }
            sleep(POLL_INTERVAL).await;
            let doing = || format!("waiting for the target of the {}", asked.what());
            targets = nas.targets(&asked.id.uuid).await.with_context(doing)?;
        }
        Err(Error::NotReady {
            what: asked.what(),
            seen: "another controller has begun to make its target".to_owned(),
        })
    }

    /// There are targets that a call has made and not mapped. It may have died, or be about to map: so each is given another name
    /// first, and the guard of a call that knows the old one fails. The first then is the publication's; the others go.
    async fn resume(
        &self,
        nas: &Nas,
        asked: &Publish,
        targets: &[Target],
    ) -> Result<Exported, Error> {
        let targets = self.take_over(nas, asked, targets).await?;
        let seen = asked.seen(&targets);
        if let Some(holder) = &seen.conflict {
            return Err(self
                .abort(nas, asked, &targets, asked.conflict(holder))
                .await);
        }
        if let Some(exported) = self.keep(nas, asked, &seen).await? {
            return Ok(exported);
        }
        let [own, others @ ..] = seen.idle.as_slice() else {
            return Err(Error::NotReady {
                what: asked.what(),
                seen: "somebody else ends it at the same time".to_owned(),
            });
        };
        for other in others {
            delete_target(nas, &asked.id.uuid, other).await?;
        }
        let chap = self
            .ensure_auth(nas, &asked.id.uuid, asked.chap.as_ref(), own)
            .await?;
        self.map(nas, asked, own, chap, false).await
    }

    /// Gives every target of the publication that does not export the LUN a name that only this call knows; answers all targets as
    /// they are then.
    async fn take_over(
        &self,
        nas: &Nas,
        asked: &Publish,
        targets: &[Target],
    ) -> Result<Vec<Target>, Error> {
        let mut now = targets.to_vec();
        for begun in asked.seen(targets).idle {
            let name = target_name(&asked.id.uuid, &self.nonce());
            let what = || format!("giving target {} another name", begun.iqn);
            match nas
                .rename_target(&asked.id.uuid, begun, &name)
                .await
                .with_context(what)?
            {
                TargetWrite::Done(targets) => now = targets,
                TargetWrite::NotThere(_) => {
                    return Err(Error::NotReady {
                        what: what(),
                        seen: "another controller is at it".to_owned(),
                    });
                }
                TargetWrite::UponAnother { holder, .. } => {
                    return Err(differs_from_request(what(), begun, holder));
                }
            }
        }
        Ok(now)
    }

    /// Maps the LUN to a target of this publication, which this call `made` or has taken over.
    async fn map(
        &self,
        nas: &Nas,
        asked: &Publish,
        own: &Target,
        chap: Option<Chap>,
        made: bool,
    ) -> Result<Exported, Error> {
        let (uuid, iqn) = (&asked.id.uuid, &own.iqn);
        let doing = || format!("mapping volume {} to target {iqn}", asked.id);
        // Nothing is taken back when this fails: another controller may have found the target, and answered for it. The CO
        // repeats the call, or unpublishes.
        let targets = match nas.map_target(uuid, own).await.with_context(doing)? {
            TargetWrite::Done(targets) => targets,
            TargetWrite::NotThere(_) => {
                return Err(Error::NotReady {
                    what: doing(),
                    seen: "the target is gone, or another controller has taken it over".to_owned(),
                });
            }
            TargetWrite::UponAnother { holder, .. } => {
                return Err(unmap_lun(nas, uuid, own, holder).await);
            }
        };
        let seen = asked.seen(&targets);
        if let Some(holder) = &seen.conflict {
            let failure = asked.conflict(holder);
            if made {
                return Err(rolled_back(nas, asked, own, failure).await);
            }
            return Err(self.abort(nas, asked, &targets, failure).await);
        }
        let here = seen.exporting.iter().find(|(target, _)| target.is(own));
        let Some((target, mapping)) = here else {
            return Err(Error::Unverified {
                what: asked.what(),
                seen: format!("target {iqn} does not export the LUN"),
            });
        };
        enabled(asked, target)?;
        verify_auth(target, chap.as_ref())?;
        exported(asked, target, mapping, chap)
    }

    /// The publication that there is, and nothing beside it: whoever has made another target has found this one, and so has not
    /// mapped the LUN to its own. It steps back, or has died before it could.
    async fn keep(
        &self,
        nas: &Nas,
        asked: &Publish,
        seen: &plan::Publication<'_>,
    ) -> Result<Option<Exported>, Error> {
        let Some((target, mapping)) = seen.exporting.first() else {
            return Ok(None);
        };
        let unused = |target: &&&Target| target.connected_sessions.is_empty();
        for other in seen.idle.iter().filter(unused) {
            delete_target(nas, &asked.id.uuid, other).await?;
        }
        enabled(asked, target)?;
        let chap = self
            .ensure_auth(nas, &asked.id.uuid, asked.chap.as_ref(), target)
            .await?;
        exported(asked, target, mapping, chap).map(Some)
    }

    /// Somebody else has the LUN. Own targets that do not export it go before `failure` is answered; one that does may be in use:
    /// then, and when it cannot be proven that the others are gone, the answer is not final.
    async fn abort(&self, nas: &Nas, asked: &Publish, targets: &[Target], failure: Error) -> Error {
        let targets = match self.take_over(nas, asked, targets).await {
            Ok(targets) => targets,
            Err(error) => return not_final(&failure, error.chain()),
        };
        let seen = asked.seen(&targets);
        for begun in &seen.idle {
            if let Err(error) = delete_target(nas, &asked.id.uuid, begun).await {
                return not_final(&failure, error.chain());
            }
        }
        match seen.exporting.first() {
            None => failure,
            Some((target, _)) => not_final(
                &failure,
                format!(
                    "target {} (id {}) of node {} exports it too and may be in use",
                    target.iqn, target.target_id, asked.node
                ),
            ),
        }
    }
}

fn exported(
    asked: &Publish,
    target: &Target,
    mapping: &Mapping,
    chap: Option<Chap>,
) -> Result<Exported, Error> {
    let unproven = |seen: String| Error::Unverified {
        what: asked.what(),
        seen,
    };
    let iqn = target
        .iqn()
        .ok_or_else(|| unproven(format!("{} is no name that this driver makes", target.iqn)))?;
    let lun = mapping.unit().ok_or_else(|| {
        unproven(format!(
            "target {iqn} has the LUN under number {}, so the NAS has not loaded it: look at it in SAN Manager",
            mapping.mapping_index
        ))
    })?;
    Ok(Exported { iqn, lun, chap })
}

/// A target that a person has disabled exports nothing. It is not enabled here, for it may be a fence.
fn enabled(asked: &Publish, target: &Target) -> Result<(), Error> {
    if target.is_enabled == Some(false) {
        return Err(Error::Unverified {
            what: format!("target {}", target.iqn),
            seen: format!(
                "somebody has disabled it, and it may be a fence: enable {} in SAN Manager, or delete the pods that use the volume (kubectl delete pod), and they get another; this is the {}",
                target.name,
                asked.what()
            ),
        });
    }
    Ok(())
}

/// DSM has not said that it made the target. All targets, if it is among them; else what that means.
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

/// Takes back the target that this call has made before `failure` is answered.
async fn rolled_back(nas: &Nas, asked: &Publish, own: &Target, failure: Error) -> Error {
    match delete_target(nas, &asked.id.uuid, own).await {
        Err(error) => not_final(&failure, error.chain()),
        Ok(targets) => {
            let seen = asked.seen(&targets);
            // What another controller has made for this node meanwhile is its own to judge.
            if seen.exporting.is_empty() {
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
        what: format!("taking back a publication ({})", failure.chain()),
        seen,
    }
}
