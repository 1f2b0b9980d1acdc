//! `DeleteVolume` (design.md#the-owners-mark, #unknown-is-not-absent and #deletevolume).

use super::Shared;
use super::lookup::{confirm_absent, find_targets};
use crate::dsm::Nas;
use crate::dsm::lun::Lun;
use crate::dsm::snapshot::Snapshots;
use crate::dsm::target::Target;
use crate::error::{Context as _, Error};
use crate::plan;
use crate::volume::VolumeId;

impl Shared {
    pub(super) async fn delete(&self, id: &VolumeId) -> Result<(), Error> {
        let nas = self.nas(id)?;
        let Some(lun) = nas
            .lun(&id.uuid)
            .await
            .with_context(|| format!("looking for volume {id}"))?
        else {
            return confirm_absent(nas, id).await;
        };
        self.owned(id, &lun)?;
        // A LUN that is broken may be deleted, one at which DSM is at work not yet.
        if let Some(seen) = lun.locked() {
            return Err(Error::NotReady {
                what: format!("volume {id}"),
                seen,
            });
        }
        let doing = || format!("asking who uses volume {id}, and for its snapshots");
        let (targets, snapshots) = nas
            .targets_and_snapshots(&id.uuid)
            .await
            .with_context(doing)?;
        refuse_published(nas, id, &lun, targets).await?;
        refuse_locked_snapshots(id, &snapshots)?;
        if !snapshots.free.is_empty() {
            tracing::warn!(volume = %id, snapshots = snapshots.free.join(", "), "these snapshots of the LUN are deleted with it");
        }
        let sent = nas.delete_lun(&id.uuid).await;
        // DSM deletes after it has answered: what `get` says decides. Without a yes there is nothing to wait for, and one look
        // tells whether the answer alone was lost.
        let seen = nas
            .lun_until(&id.uuid, |lun| sent.is_err() || lun.is_none())
            .await;
        match (
            seen.with_context(|| format!("waiting for LUN {} to be gone", id.uuid))?,
            sent,
        ) {
            (None, Ok(())) => Ok(()),
            // DSM never said that it deletes, so that it now denies the LUN proves no more than at any other time.
            (None, Err(_)) => confirm_absent(nas, id).await,
            (Some(_), Err(error)) => Err(error).with_context(|| format!("deleting volume {id}")),
            (Some(_), Ok(())) => Err(Error::Unverified {
                what: format!("deletion of volume {id}"),
                seen: "DSM still shows the LUN".to_owned(),
            }),
        }
    }
}

/// Refuses to delete what somebody may be using. The `lun_uuid` filter of `list` is not proven: that it shows nobody counts
/// only if the LUN itself says so too, else the full list decides.
async fn refuse_published(
    nas: &Nas,
    id: &VolumeId,
    lun: &Lun,
    mut targets: Vec<Target>,
) -> Result<(), Error> {
    let doing = || format!("asking who uses volume {id}");
    if lun.is_mapped != Some(false) && plan::holders(&id.uuid, &targets).is_empty() {
        let exports = |target: &Target| target.mapping_of(&id.uuid).is_some();
        targets = find_targets(nas, &id.uuid, doing, exports).await?;
    }
    match plan::holders(&id.uuid, &targets).first() {
        // Fibre Channel, for instance, is not among the targets.
        None if lun.is_mapped == Some(true) => Err(Error::Unverified {
            what: format!("that nobody uses volume {id}"),
            seen: "the LUN has is_mapped true, but no target exports it".to_owned(),
        }),
        None => Ok(()),
        Some(holder) => Err(Error::Refused {
            what: format!("deletion of volume {id}"),
            seen: holder.to_string(),
            remedy: "unpublish it there first (in Kubernetes: delete the pods that use it and wait for the VolumeAttachment to go)".to_owned(),
        }),
    }
}

/// So many snapshots are named; the message says how many more there are.
const NAMED: usize = 3;

/// DSM deletes a LUN with all its snapshots, and no lock of theirs stops it: so it is stopped here.
fn refuse_locked_snapshots(id: &VolumeId, snapshots: &Snapshots) -> Result<(), Error> {
    let kept = &snapshots.kept;
    if kept.is_empty() {
        return Ok(());
    }
    let more = match kept.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let named: Vec<&str> = kept.iter().take(NAMED).map(String::as_str).collect();
    Err(Error::Refused {
        what: format!("deletion of volume {id}"),
        seen: format!(
            "snapshots of its LUN would go with it: {}{more}",
            named.join(", ")
        ),
        remedy: "unlock or delete them in SAN Manager (Snapshots), and the volume is deleted with the next try; to keep the LUN: kubectl patch pv NAME -p '{\"spec\":{\"persistentVolumeReclaimPolicy\":\"Retain\"}}'".to_owned(),
    })
}
