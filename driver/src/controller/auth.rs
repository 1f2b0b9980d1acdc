//! What a login to a target must prove: CHAP as the controller sets it and reads it back.

use super::Shared;
use super::target::differs_from_request;
use crate::chap::{self, Chap, Method};
use crate::dsm::target::Target;
use crate::dsm::{Code, Nas, TargetWrite};
use crate::error::{Context as _, Error};
use crate::volume::LunUuid;

impl Shared {
    /// The CHAP settings of a target that an earlier call made; they are set where that is needed. `secret`: those of the StorageClass's Secret.
    pub(super) async fn ensure_auth(
        &self,
        nas: &Nas,
        lun: &LunUuid,
        secret: Option<&Chap>,
        target: &Target,
    ) -> Result<Option<Chap>, Error> {
        let what = || format!("the CHAP settings of target {}", target.iqn);
        // DSM tells no password, so one that somebody else chose has to be set each time; but never under a node that is logged in: its
        // session goes on with what it has proven, and when it comes back it proves the same.
        if let Some(chap) = secret {
            let in_use = !target.connected_sessions.is_empty();
            if in_use && target.differs_from(Some(chap)).is_none() {
                return Ok(Some(chap.clone()));
            }
            self.set(nas, lun, target, Some(chap)).await?;
            return Ok(Some(chap.clone()));
        }
        let user = target.user.as_deref().unwrap_or_default();
        let (Some(iqn), Some(auth_type)) = (target.iqn(), target.auth_type) else {
            return Err(Error::Unverified {
                what: what(),
                seen: "DSM does not tell them".to_owned(),
            });
        };
        // Made by a release that asked for no proof, or while that was switched off: so it stays until it ends.
        if auth_type == Method::None.auth_type() {
            return Ok(None);
        }
        if let Some(chap) = self.keys.known(&iqn, auth_type, user) {
            return Ok(Some(chap));
        }
        if !self.is_idle_for_long(nas, target).await? {
            return Err(Error::Unverified {
                what: what(),
                seen: "they were made with a key that this controller does not have, and a node may be logged in with them: give the old key as one of chap_former_key_files, or delete the pods that use the volume. Without a session they are set anew after a minute".to_owned(),
            });
        }
        let chap = self.keys.proofs(&iqn);
        self.set(nas, lun, target, chap.as_ref()).await?;
        Ok(chap)
    }

    async fn set(
        &self,
        nas: &Nas,
        lun: &LunUuid,
        target: &Target,
        chap: Option<&Chap>,
    ) -> Result<(), Error> {
        let what = || format!("setting the CHAP settings of target {}", target.iqn);
        match nas.set_auth(lun, target, chap).await {
            Ok(TargetWrite::Done(targets)) => {
                let now = targets.iter().find(|row| row.is(target));
                now.map_or(Ok(()), |now| verify_auth(now, chap))
            }
            Ok(TargetWrite::NotThere(_)) => Err(Error::NotReady {
                what: what(),
                seen: "the target is gone".to_owned(),
            }),
            Ok(TargetWrite::UponAnother { holder, .. }) => {
                Err(differs_from_request(what(), target, holder))
            }
            Err(source) if source.code() == Some(Code::BAD_AUTH_DATA) => Err(Error::Unverified {
                what: what(),
                seen: bad_auth_data().chain(),
            }),
            Err(source) => Err(source).with_context(what),
        }
    }
}

/// The target asks for the proof that was asked for, as far as DSM tells.
pub(super) fn verify_auth(target: &Target, chap: Option<&Chap>) -> Result<(), Error> {
    match target.differs_from(chap) {
        None => Ok(()),
        Some(seen) => Err(Error::Unverified {
            what: format!("the CHAP settings of target {}", target.iqn),
            seen,
        }),
    }
}

pub(super) fn bad_auth_data() -> Error {
    Error::BadSecret {
        field: chap::field(chap::PASSWORD),
        remedy: format!(
            "the NAS does not take these names and passwords ({}): choose others, of letters and digits",
            Code::BAD_AUTH_DATA
        ),
    }
}
