//! `CreateVolume`: create the LUN first, look it up by name only if that fails (design.md#create-first).

use proto::csi;

use super::Shared;
use crate::dsm::location::Location;
use crate::dsm::lun::{Lun, NewLun};
use crate::dsm::nas::free_space::NameLookup;
use crate::dsm::rows::UnreadableRow;
use crate::dsm::{Code, DsmError, Nas};
use crate::error::{Context as _, Error};
use crate::metrics;
use crate::plan;
use crate::request::{CreateVolume, LunType};
use crate::volume::{Bytes, LunUuid, lun_name};

impl Shared {
    pub(super) async fn create(
        &self,
        request: &CreateVolume,
    ) -> Result<csi::CreateVolumeResponse, Error> {
        let size = plan::new_size(&request.range)?;
        let nas = self.nas_for(request)?;
        let (mut new, full) = self.new_lun(nas, request, size).await?;
        let created = match full {
            None => create_lun(nas, &mut new, request).await,
            // A LUN that an earlier call has created is returned all the same.
            Some(full) => Err(CreateFailure::Full(full)),
        };
        let lun = match created {
            Ok((uuid, found)) => {
                let lun = read_back(nas, &uuid, found, request).await?;
                if let Err(differs) = plan::check_compatible(&self.owner, &lun, request) {
                    return Err(roll_back(nas, &lun, &new, differs).await);
                }
                lun
            }
            Err(refusal) => {
                let lun = look_up(nas, &new, request, refusal).await?;
                plan::check_compatible(&self.owner, &lun, request)?;
                lun
            }
        };
        Ok(csi::CreateVolumeResponse {
            volume: Some(csi::Volume {
                capacity_bytes: lun.size().as_i64(),
                volume_id: format!("{}/{}", nas.name, lun.uuid),
                volume_context: request.parameters.volume_context(),
                content_source: None,
                accessible_topology: Vec::new(),
            }),
        })
    }

    fn nas_for(&self, request: &CreateVolume) -> Result<&Nas, Error> {
        let parameters = &request.parameters;
        let mut fitting = self.nases.iter().filter(|nas| parameters.match_nas(nas));
        let criteria = format!(
            "nas={:?} dsm={:?}",
            parameters.nas.as_ref().map(ToString::to_string),
            parameters.dsm
        );
        let configured = || {
            self.nases
                .iter()
                .map(|nas| nas.name.to_string())
                .collect::<Vec<_>>()
                .join(", ")
        };
        match (fitting.next(), fitting.next()) {
            (Some(nas), None) => Ok(nas),
            (None, _) => Err(Error::Refused {
                what: format!("volume {:?}", request.name),
                seen: format!("no configured NAS matches the parameters ({criteria})"),
                remedy: format!("configured are: {}", configured()),
            }),
            // Not final: else the CO would forget a volume that an earlier call created when there was only one NAS.
            (Some(_), Some(_)) => Err(Error::NotReady {
                what: format!("volume {:?}", request.name),
                seen: format!(
                    "several NASes fit the parameters ({criteria}): name one of them as nas in the StorageClass ({})",
                    configured()
                ),
            }),
        }
    }

    /// The LUN to create, and an error if there is too little free space: one request about the NAS's volumes.
    async fn new_lun(
        &self,
        nas: &Nas,
        request: &CreateVolume,
        size: Bytes,
    ) -> Result<(NewLun, Option<Error>), Error> {
        let parameters = &request.parameters;
        let (path, kind, location) = match (&parameters.location, &parameters.kind) {
            // Only its free space is needed: DSM refuses the create if the volume does not exist or does not support the type.
            (Some(path), LunType::Exactly(kind)) => {
                let location = nas.location_if_reported(path).await;
                let doing = || format!("reading volume {path} of NAS {}", nas.name);
                (path.clone(), *kind, location.with_context(doing)?)
            }
            (path, kind) => {
                let location = find_location(nas, path.as_deref(), kind).await?;
                let kind = kind.on(&location.fs_type);
                (location.path.clone(), kind, Some(location))
            }
        };
        let claim = parameters.claim();
        let digest = parameters.digest();
        let description =
            self.owner
                .description(&request.name, &digest, parameters.floor, claim.as_deref());
        let new = NewLun {
            name: lun_name(&request.name),
            size,
            kind: kind.to_owned(),
            location: path,
            description,
            flushes: parameters.flushes.unwrap_or(true),
        };
        let floor = parameters.floor.unwrap_or(nas.floor);
        let at_once = plan::allocated_at_once(Some(kind), size);
        let shortage = location.and_then(|location| floor.shortage(&location, at_once));
        let full = shortage.map(|seen| Error::Full {
            what: format!("no room for volume {:?} on NAS {}", request.name, nas.name),
            seen,
            remedy: format!(
                "free space there in DSM, ask for less, or lower {MIN_FREE_SETTINGS} (it was to be LUN {} of {size}, {kind})",
                new.name
            ),
        });
        Ok((new, full))
    }
}

/// Where the minimum free space is configured, for error messages.
const MIN_FREE_SETTINGS: &str =
    "minFreeSpace in the StorageClass or min_free_space of the NAS in the configuration";

/// Why this call did not create a LUN.
enum CreateFailure {
    /// DSM refused, or the outcome is unknown; with the result of the look-up by name in the same request.
    Refused(DsmError, NameLookup),
    /// There is too little free space, so nothing was sent to DSM.
    Full(Error),
}

/// Creates the LUN; without the attributes for reliable flushes if DSM does not have them and the StorageClass does not require
/// them.
async fn create_lun(
    nas: &Nas,
    new: &mut NewLun,
    request: &CreateVolume,
) -> Result<(String, NameLookup), CreateFailure> {
    let mut creation = nas.create_lun(new).await;
    let refused = creation.uuid.as_ref().err().and_then(DsmError::code);
    let flushes_optional = new.flushes && request.parameters.flushes.is_none();
    if refused == Some(Code::BAD_ATTRIBUTE) && flushes_optional {
        tracing::warn!(nas = %nas.name, lun = new.name, kind = new.kind, "DSM has no emulate_fua_write and emulate_sync_cache for this LUN: what a pod has flushed may not survive a power cut of the NAS");
        metrics::of_process().lun_without_flush();
        new.flushes = false;
        creation = nas.create_lun(new).await;
    }
    match creation.uuid {
        Ok(uuid) => Ok((uuid, creation.found)),
        Err(refusal) => Err(CreateFailure::Refused(refusal, creation.found)),
    }
}

async fn find_location(nas: &Nas, path: Option<&str>, kind: &LunType) -> Result<Location, Error> {
    let doing = || format!("looking for a volume on NAS {}", nas.name);
    if let Some(path) = path {
        let found = nas.location(path).await.with_context(doing)?;
        return found.ok_or_else(|| no_location(nas, path));
    }
    let all = nas.locations().await.with_context(doing)?;
    let seen: Vec<String> = all.iter().map(ToString::to_string).collect();
    plan::choose_location(all, kind).ok_or_else(|| Error::NotReady {
        what: format!("NAS {}", nas.name),
        seen: format!(
            "none of its volumes takes a LUN of type {kind} unless it is named: give location in the StorageClass, or repair one; they are {}",
            seen.join(", ")
        ),
    })
}

fn no_location(nas: &Nas, path: &str) -> Error {
    Error::Invalid {
        field: "parameters[location]".to_owned(),
        value: path.to_owned(),
        remedy: format!(
            "NAS {} has no such volume, or it takes no LUNs: name another in the StorageClass",
            nas.name
        ),
    }
}

/// Polls the LUN that was just created until the NAS has finished with it. Returns `found` if that LUN is ready already.
async fn read_back(
    nas: &Nas,
    uuid: &str,
    found: NameLookup,
    request: &CreateVolume,
) -> Result<Lun, Error> {
    let what = || format!("the new LUN {uuid} of volume {:?}", request.name);
    let uuid: LunUuid = uuid.parse().map_err(|_| Error::Unverified {
        what: what(),
        seen: "DSM's reply is not a uuid".to_owned(),
    })?;
    let ready = |lun: Option<&Lun>| lun.is_some_and(|lun| lun.not_ready().is_none());
    if let NameLookup::Found(lun) = found
        && lun.uuid == uuid.as_str()
        && ready(Some(&lun))
    {
        return Ok(*lun);
    }
    let seen = nas
        .lun_until(&uuid, ready)
        .await
        .with_context(|| format!("reading back {}", what()))?;
    seen.ok_or_else(|| Error::Unverified {
        what: what(),
        seen: "DSM does not find it".to_owned(),
    })
}

/// The LUN that this call has created does not match the request. It holds no data yet: deletes it, and returns the error.
async fn roll_back(nas: &Nas, lun: &Lun, new: &NewLun, differs: Error) -> Error {
    if !differs.is_final() {
        return differs;
    }
    let what = format!(
        "DSM has created LUN {} differently than requested ({}; its description is {:?}, not {:?}), and deleting it",
        lun.uuid,
        differs.chain(),
        lun.description,
        new.description
    );
    let is_new = |uuid: &LunUuid| lun.name == new.name && lun.uuid == uuid.as_str();
    let uuid = lun.uuid.parse::<LunUuid>().ok().filter(is_new);
    let Some(uuid) = uuid.filter(|_| lun.is_mapped == Some(false)) else {
        return Error::Unverified {
            what,
            seen: "it is not certain that this is the new LUN".to_owned(),
        };
    };
    let sent = nas.delete_lun(&uuid).await;
    match nas
        .lun_until(&uuid, |lun| sent.is_err() || lun.is_none())
        .await
    {
        Ok(None) if sent.is_ok() => Error::Refused {
            what: format!("volume of LUN {}", lun.name),
            seen: format!(
                "DSM creates it differently than requested: {}",
                differs.chain()
            ),
            remedy: "it was deleted again; report this with the release of DSM".to_owned(),
        },
        Ok(_) => Error::Unverified {
            what,
            seen: "DSM still shows it, or did not accept the deletion".to_owned(),
        },
        Err(source) => Error::Dsm {
            doing: what,
            source,
        },
    }
}

/// After a create that failed, was lost or was not sent: looks whether the LUN exists all the same.
async fn look_up(
    nas: &Nas,
    new: &NewLun,
    request: &CreateVolume,
    refusal: CreateFailure,
) -> Result<Lun, Error> {
    let NewLun {
        name,
        size,
        location,
        ..
    } = new;
    let doing = || {
        format!(
            "creating LUN {name} of {size} for volume {:?} on {location} of NAS {}",
            request.name, nas.name
        )
    };
    let (failure, found) = match refusal {
        // The NAS is inaccessible: another request would only double the time until the caller gets the error.
        CreateFailure::Refused(refusal, _) if refusal.is_before_sending() => {
            return Err(refusal).with_context(doing);
        }
        CreateFailure::Refused(refusal, found) => {
            (not_created(nas, request, refusal, doing()), found)
        }
        CreateFailure::Full(full) => (full, NameLookup::Unknown),
    };
    let found = match found {
        NameLookup::Found(lun) => Ok(Some(*lun)),
        NameLookup::NotFound => Ok(None),
        NameLookup::Unknown => nas.lun_by_name(name).await,
    };
    match found {
        Ok(Some(lun)) if lun.name == *name => Ok(lun),
        Ok(_) => {
            if matches!(failure, Error::Dsm { .. }) {
                Err(failure)
            } else {
                Err(confirm_not_created(nas, name, failure).await)
            }
        }
        Err(error) => {
            tracing::warn!(refusal = %failure.chain(), "creating a LUN failed, and so did the look-up by its name");
            Err(error).with_context(doing)
        }
    }
}

/// A final error lets the CO forget the volume, so it must be certain that no earlier attempt left a LUN that a NAS which is
/// still starting does not list yet (design.md#unknown-is-not-absent and #final-codes).
async fn confirm_not_created(nas: &Nas, name: &str, failure: Error) -> Error {
    let is_it = |lun: &Lun| lun.name == name;
    let could_be = |row: &UnreadableRow| row.text("name").is_none_or(|seen| seen == name);
    match nas.why_maybe_present(None, is_it, could_be).await {
        Ok(None) => failure,
        Ok(Some(seen)) => Error::Unverified {
            what: format!("that there is no LUN {name} ({})", failure.chain()),
            seen,
        },
        Err(source) => Error::Dsm {
            doing: format!(
                "confirming that there is no LUN {name} ({})",
                failure.chain()
            ),
            source,
        },
    }
}

/// DSM refused the create and does not know the name: nothing was created. Only codes that prove this become final errors.
fn not_created(nas: &Nas, request: &CreateVolume, refusal: DsmError, doing: String) -> Error {
    let parameters = &request.parameters;
    let bad_type = |remedy: &str| Error::Invalid {
        field: "parameters[type]".to_owned(),
        value: parameters.kind.to_string(),
        remedy: format!("{remedy}: choose another type or location"),
    };
    match refusal.code() {
        Some(Code::NO_SPACE) => Error::Exhausted {
            what: format!("{doing} (ask for less, or choose a thin type or another location)"),
            source: refusal,
        },
        Some(Code::TOO_MANY_LUNS) => Error::Exhausted {
            what: format!("{doing} (delete LUNs that nobody needs)"),
            source: refusal,
        },
        Some(Code::BAD_LOCATION) => {
            no_location(nas, parameters.location.as_deref().unwrap_or_default())
        }
        Some(Code::BAD_TYPE | Code::NOT_ON_THIS_FILE_SYSTEM | Code::TYPE_NOT_ON_VOLUME) => {
            bad_type(&refusal.to_string())
        }
        Some(Code::BAD_ATTRIBUTE) => Error::Invalid {
            field: "parameters[enableFuaSyncCache]".to_owned(),
            value: "true".to_owned(),
            remedy: format!(
                "the NAS does not support it for this type ({refusal}): leave it out, or choose another type"
            ),
        },
        Some(Code::BAD_SIZE) => request.range.out_of_range(&refusal.to_string()),
        Some(_) | None => Error::Dsm {
            doing,
            source: refusal,
        },
    }
}
