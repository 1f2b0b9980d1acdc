//! Finding and deleting targets, and errors for when DSM acted on another target than intended
//! (design.md#dsm-reuses-target-numbers).

use super::lookup::find_targets;
use crate::dsm::target::Target;
use crate::dsm::{Nas, TargetWrite};
use crate::error::{Context as _, Error};
use crate::volume::LunUuid;

/// Deletes a target and verifies that it is gone; returns all others.
pub(super) async fn delete_target(
    nas: &Nas,
    lun: &LunUuid,
    target: &Target,
) -> Result<Vec<Target>, Error> {
    let what = || {
        format!(
            "deletion of target {} (id {})",
            target.iqn, target.target_id
        )
    };
    let left = match nas.delete_target(lun, target).await.with_context(what)? {
        TargetWrite::Done(left) => left,
        // Another controller may have deleted it; only the full list of a NAS that is up proves that
        // (design.md#dsm-reuses-target-numbers).
        TargetWrite::NotFound(_) => {
            find_targets(nas, lun, what, |row| row.iqn == target.iqn).await?
        }
        TargetWrite::WrongTarget { holder, .. } => {
            return Err(foreign_target_changed(what(), target, holder));
        }
    };
    if left.iter().any(|row| row.iqn == target.iqn) {
        return Err(Error::Unverified {
            what: what(),
            seen: "DSM still lists it".to_owned(),
        });
    }
    Ok(left)
}

/// DSM continued a compound request after a failed call, and acted on a target that is somebody else's by now.
pub(super) fn foreign_target_changed(
    what: String,
    target: &Target,
    holder: Option<Target>,
) -> Error {
    let whose = holder.map_or_else(
        || "that of another target, which DSM does not name".to_owned(),
        |holder| format!("that of target {} ({})", holder.iqn, holder.name),
    );
    let seen = format!(
        "the number {} was {whose} by then, and DSM carried out the call all the same, because it continues after a call that fails: check in SAN Manager whether that target still exists unchanged, and report this",
        target.target_id
    );
    tracing::error!(what, seen, "a target of somebody else was changed");
    Error::Unverified { what, seen }
}

/// Undoes a mapping of the LUN to a target that is somebody else's.
pub(super) async fn undo_foreign_mapping(
    nas: &Nas,
    lun: &LunUuid,
    own: &Target,
    holder: Option<Target>,
) -> Error {
    let what = format!("mapping LUN {lun} to target {}", own.iqn);
    // A mapping that existed before is kept: it was intended.
    let Some(foreign) = holder.filter(|holder| holder.mapping_of(lun).is_none()) else {
        return foreign_target_changed(what, own, None);
    };
    match nas.unmap_target(lun, &foreign).await {
        Ok(TargetWrite::Done(targets))
            if targets
                .iter()
                .all(|row| !row.is(&foreign) || row.mapping_of(lun).is_none()) =>
        {
            Error::NotReady {
                what,
                seen: format!(
                    "its number {} belonged to target {} by then; the LUN was unmapped from that target again",
                    own.target_id, foreign.iqn
                ),
            }
        }
        Ok(_) | Err(_) => foreign_target_changed(what, own, Some(foreign)),
    }
}
