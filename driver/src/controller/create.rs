//! `CreateVolume`: create first, look later (design.md#create-first).

use proto::csi;

use super::Shared;
use crate::dsm::location::Location;
use crate::dsm::lun::{Lun, NewLun};
use crate::dsm::nas::free_space::Seen;
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
        asked: &CreateVolume,
    ) -> Result<csi::CreateVolumeResponse, Error> {
        let size = plan::new_size(&asked.range)?;
        let nas = self.nas_for(asked)?;
        let (mut new, full) = self.new_lun(nas, asked, size).await?;
        let made = match full {
            None => create_lun(nas, &mut new, asked).await,
            // What an earlier call has made is handed out as ever.
            Some(full) => Err(CreateFailure::Full(full)),
        };
        let lun = match made {
            Ok((uuid, seen)) => {
                let lun = read_back(nas, &uuid, seen, asked).await?;
                if let Err(differs) = plan::check_compatible(&self.owner, &lun, asked) {
                    return Err(rolled_back(nas, &lun, &new, differs).await);
                }
                lun
            }
            Err(refusal) => {
                let lun = look_up(nas, &new, asked, refusal).await?;
                plan::check_compatible(&self.owner, &lun, asked)?;
                lun
            }
        };
        Ok(csi::CreateVolumeResponse {
            volume: Some(csi::Volume {
                capacity_bytes: lun.size().as_i64(),
                volume_id: format!("{}/{}", nas.name, lun.uuid),
                volume_context: asked.parameters.volume_context(),
                content_source: None,
                accessible_topology: Vec::new(),
            }),
        })
    }

    fn nas_for(&self, asked: &CreateVolume) -> Result<&Nas, Error> {
        let parameters = &asked.parameters;
        let mut fitting = self.nases.iter().filter(|nas| parameters.means(nas));
        let named = format!(
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
                what: format!("volume {:?}", asked.name),
                seen: format!("no configured NAS is meant by the parameters ({named})"),
                remedy: format!("configured are: {}", configured()),
            }),
            // Not final: a volume that an earlier call has made, when there was one NAS only, would be forgotten.
            (Some(_), Some(_)) => Err(Error::NotReady {
                what: format!("volume {:?}", asked.name),
                seen: format!(
                    "several NASes fit the parameters ({named}): name one of them as nas in the StorageClass ({})",
                    configured()
                ),
            }),
        }
    }

    /// What to create, and what stands against it if there is too little room: one look at the NAS's volumes.
    async fn new_lun(
        &self,
        nas: &Nas,
        asked: &CreateVolume,
        size: Bytes,
    ) -> Result<(NewLun, Option<Error>), Error> {
        let parameters = &asked.parameters;
        let (path, kind, location) = match (&parameters.location, &parameters.kind) {
            // Nothing has to be known of it but how much is free: whether it is there and takes the type DSM says of the create.
            (Some(path), LunType::Exactly(word)) => {
                let location = nas.location_if_told(path).await;
                let doing = || format!("looking at {path} of NAS {}", nas.name);
                (path.clone(), *word, location.with_context(doing)?)
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
                .description(&asked.name, &digest, parameters.floor, claim.as_deref());
        let new = NewLun {
            name: lun_name(&asked.name),
            size,
            kind: kind.to_owned(),
            location: path,
            description,
            flushes: parameters.flushes.unwrap_or(true),
        };
        let floor = parameters.floor.unwrap_or(nas.floor);
        let at_once = plan::taken_at_once(Some(kind), size);
        let lacking = location.and_then(|location| floor.refuses(&location, at_once));
        let full = lacking.map(|seen| Error::Full {
            what: format!("no room for volume {:?} on NAS {}", asked.name, nas.name),
            seen,
            remedy: format!(
                "free space there in DSM, ask for less, or lower {FLOOR} (it was to be LUN {} of {size}, {kind})",
                new.name
            ),
        });
        Ok((new, full))
    }
}

/// Where the floor of free space is set.
const FLOOR: &str =
    "minFreeSpace in the StorageClass or min_free_space of the NAS in the configuration";

/// Why a LUN was not made by this very call.
enum CreateFailure {
    /// DSM did not, or nobody knows; and what was found by its name then.
    Refused(DsmError, Seen),
    /// There is too little room, so DSM was not asked to.
    Full(Error),
}

/// Creates the LUN; without the attributes that make flushes count if DSM does not have them and the class does not insist.
async fn create_lun(
    nas: &Nas,
    new: &mut NewLun,
    asked: &CreateVolume,
) -> Result<(String, Seen), CreateFailure> {
    let mut made = nas.create_lun(new).await;
    let refused = made.uuid.as_ref().err().and_then(DsmError::code);
    let may_do_without = new.flushes && asked.parameters.flushes.is_none();
    if refused == Some(Code::BAD_ATTRIBUTE) && may_do_without {
        tracing::warn!(nas = %nas.name, lun = new.name, kind = new.kind, "DSM has no emulate_fua_write and emulate_sync_cache for this LUN: what a pod has flushed may not survive a power cut of the NAS");
        metrics::of_process().lun_without_flush();
        new.flushes = false;
        made = nas.create_lun(new).await;
    }
    match made.uuid {
        Ok(uuid) => Ok((uuid, made.seen)),
        Err(refusal) => Err(CreateFailure::Refused(refusal, made.seen)),
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

/// Reads the LUN that was just created, until the NAS has finished with it. Perhaps it has already been `seen` to have.
async fn read_back(nas: &Nas, uuid: &str, seen: Seen, asked: &CreateVolume) -> Result<Lun, Error> {
    let what = || format!("the new LUN {uuid} of volume {:?}", asked.name);
    let uuid: LunUuid = uuid.parse().map_err(|_| Error::Unverified {
        what: what(),
        seen: "DSM answered something that is no uuid".to_owned(),
    })?;
    let ready = |lun: Option<&Lun>| lun.is_some_and(|lun| lun.not_ready().is_none());
    if let Seen::Lun(lun) = seen
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

/// The LUN that this very call has made is not as it was asked for. It holds nothing yet: it goes, and nobody is told of it.
async fn rolled_back(nas: &Nas, lun: &Lun, new: &NewLun, differs: Error) -> Error {
    if !differs.is_final() {
        return differs;
    }
    let what = format!(
        "DSM has made LUN {} otherwise than asked for ({}; its description is {:?}, not {:?}), and taking it back",
        lun.uuid,
        differs.chain(),
        lun.description,
        new.description
    );
    let made = |uuid: &LunUuid| lun.name == new.name && lun.uuid == uuid.as_str();
    let uuid = lun.uuid.parse::<LunUuid>().ok().filter(made);
    let Some(uuid) = uuid.filter(|_| lun.is_mapped == Some(false)) else {
        return Error::Unverified {
            what,
            seen: "it is not certain that it is this one".to_owned(),
        };
    };
    let sent = nas.delete_lun(&uuid).await;
    match nas
        .lun_until(&uuid, |lun| sent.is_err() || lun.is_none())
        .await
    {
        Ok(None) if sent.is_ok() => Error::Refused {
            what: format!("volume of LUN {}", lun.name),
            seen: format!("DSM makes it otherwise than asked for: {}", differs.chain()),
            remedy: "it was deleted again; report this with the release of DSM".to_owned(),
        },
        Ok(_) => Error::Unverified {
            what,
            seen: "DSM still shows it, or has not said that it deletes it".to_owned(),
        },
        Err(source) => Error::Dsm {
            doing: what,
            source,
        },
    }
}

/// After a failed or lost create, or none: is the LUN there all the same?
async fn look_up(
    nas: &Nas,
    new: &NewLun,
    asked: &CreateVolume,
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
            asked.name, nas.name
        )
    };
    let (verdict, seen) = match refusal {
        // Nobody was let in: asking once more would only double the time until the caller hears of it.
        CreateFailure::Refused(refusal, _) if refusal.is_before_sending() => {
            return Err(refusal).with_context(doing);
        }
        CreateFailure::Refused(refusal, seen) => (not_created(nas, asked, refusal, doing()), seen),
        CreateFailure::Full(full) => (full, Seen::Unknown),
    };
    let found = match seen {
        Seen::Lun(lun) => Ok(Some(*lun)),
        Seen::Nothing => Ok(None),
        Seen::Unknown => nas.lun_called(name).await,
    };
    match found {
        Ok(Some(lun)) if lun.name == *name => Ok(lun),
        Ok(_) => {
            if matches!(verdict, Error::Dsm { .. }) {
                Err(verdict)
            } else {
                Err(confirm_not_created(nas, name, verdict).await)
            }
        }
        Err(error) => {
            tracing::warn!(refusal = %verdict.chain(), "a create failed, and the look-up after it failed too");
            Err(error).with_context(doing)
        }
    }
}

/// A final verdict lets the CO forget the volume, so no earlier try may have left a LUN that a NAS which is still coming up
/// does not show yet (design.md#unknown-is-not-absent and #final-codes).
async fn confirm_not_created(nas: &Nas, name: &str, verdict: Error) -> Error {
    let is_it = |lun: &Lun| lun.name == name;
    let could_be = |row: &UnreadableRow| row.text("name").is_none_or(|seen| seen == name);
    match nas.why_maybe_present(None, is_it, could_be).await {
        Ok(None) => verdict,
        Ok(Some(seen)) => Error::Unverified {
            what: format!("that there is no LUN {name} ({})", verdict.chain()),
            seen,
        },
        Err(source) => Error::Dsm {
            doing: format!("proving that there is no LUN {name} ({})", verdict.chain()),
            source,
        },
    }
}

/// DSM refused the create and does not know the name: nothing was made. Only codes that say so are final.
fn not_created(nas: &Nas, asked: &CreateVolume, refusal: DsmError, doing: String) -> Error {
    let parameters = &asked.parameters;
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
                "the NAS has it not for this type ({refusal}): leave it out, or choose another type"
            ),
        },
        Some(Code::BAD_SIZE) => asked.range.unmet(&refusal.to_string()),
        Some(_) | None => Error::Dsm {
            doing,
            source: refusal,
        },
    }
}
