//! Targets as the controller finds them and ends them, and what it says when DSM did something else than was meant (design.md#dsm-reuses-target-numbers).

use super::lookup::find_targets;
use crate::dsm::target::Target;
use crate::dsm::{Nas, TargetWrite};
use crate::error::{Context as _, Error};
use crate::volume::LunUuid;

/// Deletes a target and reads back that it is gone; answers all others.
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
        // Another controller may have been faster; only the full list of a NAS that is up can say so (design.md#dsm-reuses-target-numbers).
        TargetWrite::NotThere(_) => {
            find_targets(nas, lun, what, |row| row.iqn == target.iqn).await?
        }
        TargetWrite::UponAnother { holder, .. } => {
            return Err(differs_from_request(what(), target, holder));
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

/// DSM went on after a call that failed, and acted upon a target that is somebody else's by now.
pub(super) fn differs_from_request(what: String, target: &Target, holder: Option<Target>) -> Error {
    let whose = holder.map_or_else(
        || "another's, it does not say whose".to_owned(),
        |holder| format!("that of target {} ({})", holder.iqn, holder.name),
    );
    let seen = format!(
        "the number {} was {whose} by then, and DSM carried the call out all the same, for it goes on after a call that fails: look in SAN Manager whether that target is there and as it was, and report this",
        target.target_id
    );
    tracing::error!(what, seen, "a target of somebody else was changed");
    Error::Unverified { what, seen }
}

/// The LUN was mapped into a target that is somebody else's: that is undone.
pub(super) async fn unmap_lun(
    nas: &Nas,
    lun: &LunUuid,
    own: &Target,
    holder: Option<Target>,
) -> Error {
    let what = format!("mapping LUN {lun} to target {}", own.iqn);
    // A mapping that was there before stays: somebody wanted it.
    let Some(stranger) = holder.filter(|holder| holder.mapping_of(lun).is_none()) else {
        return differs_from_request(what, own, None);
    };
    match nas.unmap_target(lun, &stranger).await {
        Ok(TargetWrite::Done(targets))
            if targets
                .iter()
                .all(|row| !row.is(&stranger) || row.mapping_of(lun).is_none()) =>
        {
            Error::NotReady {
                what,
                seen: format!(
                    "its number {} was target {}'s by then; the LUN was taken out of that again",
                    own.target_id, stranger.iqn
                ),
            }
        }
        Ok(_) | Err(_) => differs_from_request(what, own, Some(stranger)),
    }
}
