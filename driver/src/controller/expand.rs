//! `ControllerExpandVolume`: judged against what is required, and read back (design.md#expansion-is-read-back and #large-enough-already).

use super::Shared;
use super::lookup::not_found;
use crate::dsm::location::Location;
use crate::dsm::lun::Lun;
use crate::dsm::{Code, DsmError, Nas};
use crate::error::{Context as _, Error};
use crate::owner_tag::OwnerTag;
use crate::plan::{self, Expand};
use crate::request::Range;
use crate::volume::{Bytes, VolumeId};

impl Shared {
    pub(super) async fn expand(&self, id: &VolumeId, range: Range) -> Result<Bytes, Error> {
        let nas = self.nas(id)?;
        let doing = || format!("looking for volume {id}");
        let Some((lun, location)) = nas.lun_and_location(&id.uuid).await.with_context(doing)?
        else {
            return Err(not_found(nas, id).await);
        };
        let mark = self.owned(id, &lun)?;
        let size = match plan::expand(lun.size(), &range)? {
            Expand::Done(size) => return Ok(size),
            Expand::Grow(size) => size,
        };
        if let Some(seen) = lun.not_ready() {
            return Err(Error::NotReady {
                what: format!("volume {id}"),
                seen,
            });
        }
        if let Some(seen) = too_full(nas, &mark, &lun, location, size) {
            // Not RESOURCE_EXHAUSTED, for the reason that is given below.
            return Err(range.unmet(&format!("{seen} (growing volume {id} to {size})")));
        }
        let sent = nas.grow_lun(&id.uuid, size).await;
        // A refused or lost `set` may have taken effect: the size that DSM now reports decides.
        let grown = |lun: Option<&Lun>| {
            sent.is_err() || lun.is_none_or(|lun| lun.size() >= size && lun.not_ready().is_none())
        };
        let seen = nas
            .lun_until(&id.uuid, grown)
            .await
            .with_context(|| format!("reading back the size of volume {id}"))?;
        let Some(seen) = seen.map(|lun| lun.size()) else {
            return Err(not_found(nas, id).await);
        };
        match sent {
            _ if seen >= range.required => Ok(seen),
            Ok(()) => Err(Error::Unverified {
                what: format!("growth of volume {id} to {size}"),
                seen: format!("DSM reports {seen}"),
            }),
            Err(error) => Err(not_grown(id, size, &range, error)),
        }
    }
}

/// What stands against growing to `size`, if the NAS would have too little room left for others (design.md#free-space).
fn too_full(
    nas: &Nas,
    mark: &OwnerTag,
    lun: &Lun,
    location: Option<Location>,
    size: Bytes,
) -> Option<String> {
    let floor = mark.floor.unwrap_or(nas.floor);
    let more = Bytes(size.0.saturating_sub(lun.size().0));
    let at_once = plan::taken_at_once(lun.type_name(), more);
    let seen = floor.refuses(&location?, at_once)?;
    let set = mark.floor.map_or_else(
        || "min_free_space of the NAS in the configuration".to_owned(),
        |floor| {
            format!(
                "f={floor} in the description of the LUN (SAN Manager), where its class has put it"
            )
        },
    );
    Some(format!(
        "{seen}; free space there in DSM, ask for less (kubectl edit pvc), or lower {set}"
    ))
}

/// DSM refused, and the size is the old one. Only codes that say why are final.
fn not_grown(id: &VolumeId, size: Bytes, range: &Range, refusal: DsmError) -> Error {
    let doing = format!("growing volume {id} to {size}");
    match refusal.code() {
        // RESOURCE_EXHAUSTED says to the resizer that the growth may still go on: it would ask for the same size for ever, and
        // a claim that was edited to less would not be heard.
        Some(Code::NO_SPACE) => range.unmet(&format!(
            "{doing} (ask for less, or free space on the NAS): {refusal}"
        )),
        Some(Code::BAD_SIZE) => range.unmet(&format!("{doing}: {refusal}")),
        Some(_) | None => Error::Dsm {
            doing,
            source: refusal,
        },
    }
}
