//! `DeleteVolume` (design.md#owner-tag, #unknown-is-not-absent and #deletevolume).

use super::Shared;
use super::lookup::{confirm_absent, find_lun, find_targets};
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
        let Some(lun) = find_lun(nas, id).await? else {
            return confirm_absent(nas, id).await;
        };
        self.owned(id, &lun)?;
        // A damaged LUN may be deleted, but not one that DSM has locked for an operation in progress.
        if let Some(seen) = lun.locked() {
            return Err(Error::NotReady {
                what: format!("volume {id}"),
                seen,
            });
        }
        let doing = || format!("listing the targets and snapshots of volume {id}");
        let (targets, snapshots) = nas
            .targets_and_snapshots(&id.uuid)
            .await
            .with_context(doing)?;
        refuse_published(nas, id, &lun, targets).await?;
        refuse_locked_snapshots(id, &snapshots)?;
        if !snapshots.unlocked.is_empty() {
            tracing::warn!(volume = %id, snapshots = snapshots.unlocked.join(", "), "these snapshots of the LUN are deleted with it");
        }
        let sent = nas.delete_lun(&id.uuid).await;
        // DSM deletes asynchronously, so `get` decides. If DSM did not accept the deletion there is nothing to wait for, and one
        // `get` shows whether only the reply was lost.
        let seen = nas
            .lun_until(&id.uuid, |lun| sent.is_err() || lun.is_none())
            .await;
        match (
            seen.with_context(|| format!("waiting for LUN {} to disappear", id.uuid))?,
            sent,
        ) {
            (None, Ok(())) => Ok(()),
            // DSM did not confirm the deletion, so a LUN that it does not find may still exist, as at any other time.
            (None, Err(_)) => confirm_absent(nas, id).await,
            (Some(_), Err(error)) => Err(error).with_context(|| format!("deleting volume {id}")),
            (Some(_), Ok(())) => Err(Error::Unverified {
                what: format!("deletion of volume {id}"),
                seen: "DSM still shows the LUN".to_owned(),
            }),
        }
    }
}

/// Refuses to delete a LUN that may be in use. The `lun_uuid` filter of `list` is not verified: an empty result counts only if
/// the LUN is not mapped either, else the full list decides.
async fn refuse_published(
    nas: &Nas,
    id: &VolumeId,
    lun: &Lun,
    mut targets: Vec<Target>,
) -> Result<(), Error> {
    let doing = || format!("listing the targets of volume {id}");
    if lun.is_mapped != Some(false) && plan::holders(&id.uuid, &targets).is_empty() {
        let exports = |target: &Target| target.mapping_of(&id.uuid).is_some();
        targets = find_targets(nas, &id.uuid, doing, exports).await?;
    }
    match plan::holders(&id.uuid, &targets).first() {
        // For instance over Fibre Channel, which `list` does not show.
        None if lun.is_mapped == Some(true) => Err(Error::Unverified {
            what: format!("that volume {id} is unused"),
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

/// How many snapshots the message names; of the others it gives the number.
const MAX_NAMED: usize = 3;

/// Refuses to delete a LUN with locked snapshots: DSM would delete them too, despite their locks.
fn refuse_locked_snapshots(id: &VolumeId, snapshots: &Snapshots) -> Result<(), Error> {
    let locked = &snapshots.locked;
    if locked.is_empty() {
        return Ok(());
    }
    let more = match locked.len().saturating_sub(MAX_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let named: Vec<&str> = locked.iter().take(MAX_NAMED).map(String::as_str).collect();
    Err(Error::Refused {
        what: format!("deletion of volume {id}"),
        seen: format!(
            "snapshots of its LUN would go with it: {}{more}",
            named.join(", ")
        ),
        remedy: "unlock or delete them in SAN Manager (Snapshots), and the volume is deleted with the next try; to keep the LUN: kubectl patch pv NAME -p '{\"spec\":{\"persistentVolumeReclaimPolicy\":\"Retain\"}}'".to_owned(),
    })
}
