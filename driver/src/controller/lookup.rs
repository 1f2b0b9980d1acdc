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
    /// The volume's LUN, which exists and is ours.
    pub(super) async fn lun(&self, id: &VolumeId) -> Result<Lun, Error> {
        let nas = self.nas(id)?;
        let Some(lun) = nas
            .lun(&id.uuid)
            .await
            .with_context(|| format!("looking for volume {id}"))?
        else {
            return Err(not_found(nas, id).await);
        };
        self.owned(id, &lun)?;
        Ok(lun)
    }

    /// Refuses a LUN without our mark: it is somebody else's.
    pub(super) fn owned(&self, id: &VolumeId, lun: &Lun) -> Result<OwnerTag, Error> {
        let not = match self.owner.read(&lun.description) {
            Ok(mark) => return Ok(mark),
            Err(not) => not,
        };
        let (seen, remedy) = plan::not_ours(&self.owner, &not, lun);
        Err(Error::Refused {
            what: format!("volume {id}"),
            seen,
            remedy,
        })
    }
}

/// The answer to every call but deletion about a LUN that DSM denies: NOT_FOUND if that is proven, else UNAVAILABLE.
pub(super) async fn not_found(nas: &Nas, id: &VolumeId) -> Error {
    match confirm_absent(nas, id).await {
        Ok(()) => Error::NoSuchVolume {
            volume: id.to_string(),
            seen: format!("the NAS has no LUN {}", id.uuid),
        },
        Err(doubt) => doubt,
    }
}

/// DSM denies the LUN: what follows needs more than its word (design.md#unknown-is-not-absent).
pub(super) async fn confirm_absent(nas: &Nas, id: &VolumeId) -> Result<(), Error> {
    let what = || format!("the absence of volume {id}");
    match nas
        .why_maybe_present(
            Some(&id.uuid),
            |lun| lun.uuid == id.uuid.as_str(),
            |row| may_be(&id.uuid, row),
        )
        .await
        .with_context(|| format!("proving {}", what()))?
    {
        None => Ok(()),
        Some(seen) => Err(Error::Unverified { what: what(), seen }),
    }
}

/// All targets of the NAS. That there is none that `is_it` accepts is an answer only if the NAS has loaded them all: a publication
/// whose target it does not show yet would else be taken for ended, and the target would stay (design.md#unknown-is-not-absent).
pub(super) async fn find_targets(
    nas: &Nas,
    lun: &LunUuid,
    doing: impl Fn() -> String,
    is_it: impl Fn(&Target) -> bool,
) -> Result<Vec<Target>, Error> {
    let asked = Instant::now();
    let targets = nas.targets(lun).await.with_context(&doing)?;
    if !targets.iter().any(is_it)
        && let Some(seen) = nas
            .why_targets_incomplete(asked, &targets)
            .await
            .with_context(&doing)?
    {
        return Err(doubtful(doing(), seen));
    }
    Ok(targets)
}

pub(super) fn doubtful(what: String, seen: String) -> Error {
    Error::Unverified { what, seen }
}
