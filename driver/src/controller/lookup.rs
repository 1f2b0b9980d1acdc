//! Look-ups that several RPCs share: a volume's LUN, the owner tag on it, whether it is really gone, and a LUN's targets.

use tokio::time::Instant;

use super::Shared;
use crate::dsm::Nas;
use crate::dsm::lun::{Lun, may_be};
use crate::dsm::target::Target;
use crate::error::{Context as _, Error};
use crate::owner_tag::OwnerTag;
use crate::plan;
use crate::volume::{LunUuid, VolumeId};

impl Shared {
    /// The volume's LUN, checked to exist and to be ours.
    pub(super) async fn lun(&self, id: &VolumeId) -> Result<Lun, Error> {
        let nas = self.nas(id)?;
        let Some(lun) = find_lun(nas, id).await? else {
            return Err(not_found(nas, id).await);
        };
        self.owned(id, &lun)?;
        Ok(lun)
    }

    /// Refuses a LUN without our owner tag: it is not this driver's.
    pub(super) fn owned(&self, id: &VolumeId, lun: &Lun) -> Result<OwnerTag, Error> {
        let reason = match self.owner.read(&lun.description) {
            Ok(tag) => return Ok(tag),
            Err(reason) => reason,
        };
        let (seen, remedy) = plan::not_ours(&self.owner, &reason, lun);
        Err(Error::Refused {
            what: format!("volume {id}"),
            seen,
            remedy,
        })
    }
}

/// The LUN of a volume. `None`: DSM does not find it, which proves nothing yet (see [`confirm_absent`]).
pub(super) async fn find_lun(nas: &Nas, id: &VolumeId) -> Result<Option<Lun>, Error> {
    nas.lun(&id.uuid)
        .await
        .with_context(|| format!("looking for volume {id}"))
}

/// The error of every call but `DeleteVolume` about a LUN that DSM does not find: NOT_FOUND if its absence is confirmed, else
/// UNAVAILABLE.
pub(super) async fn not_found(nas: &Nas, id: &VolumeId) -> Error {
    match confirm_absent(nas, id).await {
        Ok(()) => Error::NoSuchVolume {
            volume: id.to_string(),
            seen: format!("the NAS has no LUN {}", id.uuid),
        },
        Err(error) => error,
    }
}

/// DSM does not find the LUN, which alone is no proof of absence: checks the full list (design.md#unknown-is-not-absent).
pub(super) async fn confirm_absent(nas: &Nas, id: &VolumeId) -> Result<(), Error> {
    let what = || format!("the absence of volume {id}");
    match nas
        .why_maybe_present(
            Some(&id.uuid),
            |lun| lun.uuid == id.uuid.as_str(),
            |row| may_be(&id.uuid, row),
        )
        .await
        .with_context(|| format!("confirming {}", what()))?
    {
        None => Ok(()),
        Some(seen) => Err(Error::Unverified { what: what(), seen }),
    }
}

/// All targets of the NAS. If none matches `is_it`, this is an error unless the NAS has loaded all its targets: else a
/// publication whose target is not listed yet would be taken for ended, and its target would stay
/// (design.md#unknown-is-not-absent).
pub(super) async fn find_targets(
    nas: &Nas,
    lun: &LunUuid,
    doing: impl Fn() -> String,
    is_it: impl Fn(&Target) -> bool,
) -> Result<Vec<Target>, Error> {
    let queried = Instant::now();
    let targets = nas.targets(lun).await.with_context(&doing)?;
    if !targets.iter().any(is_it)
        && let Some(seen) = nas
            .why_targets_incomplete(queried, &targets)
            .await
            .with_context(&doing)?
    {
        return Err(unverified(doing(), seen));
    }
    Ok(targets)
}

pub(super) fn unverified(what: String, seen: String) -> Error {
    Error::Unverified { what, seen }
}
