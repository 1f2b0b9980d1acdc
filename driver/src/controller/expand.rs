//! `ControllerExpandVolume`: grows the LUN if it is smaller than required, and reads its size back
//! (design.md#expansion-is-read-back and #large-enough-already).

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
        let tag = self.owned(id, &lun)?;
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
        if let Some(seen) = too_full(nas, &tag, &lun, location, size) {
            // Not RESOURCE_EXHAUSTED, for the reason given in `not_grown`.
            return Err(range.out_of_range(&format!("{seen} (growing volume {id} to {size})")));
        }
        let sent = nas.grow_lun(&id.uuid, size).await;
        // A refused or lost `set` may have taken effect: the size that DSM reports now decides.
        let grown = |lun: Option<&Lun>| {
            sent.is_err() || lun.is_none_or(|lun| lun.size() >= size && lun.not_ready().is_none())
        };
        let lun = nas
            .lun_until(&id.uuid, grown)
            .await
            .with_context(|| format!("reading back the size of volume {id}"))?;
        let Some(reported) = lun.map(|lun| lun.size()) else {
            return Err(not_found(nas, id).await);
        };
        match sent {
            _ if reported >= range.required => Ok(reported),
            Ok(()) => Err(Error::Unverified {
                what: format!("growth of volume {id} to {size}"),
                seen: format!("DSM reports {reported}"),
            }),
            Err(error) => Err(not_grown(id, size, &range, error)),
        }
    }
}

/// Why the LUN must not grow to `size`, if free space would fall below the minimum (design.md#free-space).
fn too_full(
    nas: &Nas,
    tag: &OwnerTag,
    lun: &Lun,
    location: Option<Location>,
    size: Bytes,
) -> Option<String> {
    let floor = tag.floor.unwrap_or(nas.floor);
    let more = Bytes(size.0.saturating_sub(lun.size().0));
    let at_once = plan::allocated_at_once(lun.type_name(), more);
    let seen = floor.shortage(&location?, at_once)?;
    let setting = tag.floor.map_or_else(
        || "min_free_space of the NAS in the configuration".to_owned(),
        |floor| {
            format!(
                "f={floor} in the description of the LUN (SAN Manager), which was set by its StorageClass"
            )
        },
    );
    Some(format!(
        "{seen}; free space there in DSM, ask for less (kubectl edit pvc), or lower {setting}"
    ))
}

/// DSM refused, and the size has not changed. Only codes that explain why become final errors.
fn not_grown(id: &VolumeId, size: Bytes, range: &Range, refusal: DsmError) -> Error {
    let doing = format!("growing volume {id} to {size}");
    match refusal.code() {
        // RESOURCE_EXHAUSTED tells the resizer that the expansion may still be in progress: it would retry the same size for
        // ever, and ignore a claim that was edited to a smaller size.
        Some(Code::NO_SPACE) => range.out_of_range(&format!(
            "{doing} (ask for less, or free space on the NAS): {refusal}"
        )),
        Some(Code::BAD_SIZE) => range.out_of_range(&format!("{doing}: {refusal}")),
        Some(_) | None => Error::Dsm {
            doing,
            source: refusal,
        },
    }
}
