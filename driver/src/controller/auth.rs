//! CHAP credentials of targets: how the controller sets them, and verifies them by reading them back.

use super::Shared;
use super::target::foreign_target_changed;
use crate::chap::{self, Chap, Method};
use crate::dsm::target::Target;
use crate::dsm::{Code, Nas, TargetWrite};
use crate::error::{Context as _, Error};
use crate::volume::LunUuid;

impl Shared {
    /// The CHAP credentials for logins to a target of an earlier call; updates the target if necessary.
    /// `secret`: those of the StorageClass's Secret.
    pub(super) async fn ensure_auth(
        &self,
        nas: &Nas,
        lun: &LunUuid,
        secret: Option<&Chap>,
        target: &Target,
    ) -> Result<Option<Chap>, Error> {
        let what = || format!("the CHAP settings of target {}", target.iqn);
        // DSM returns no password, so one from a Secret has to be set each time; but never under a node that is logged in: its
        // session keeps running, and a reconnect uses the same credentials as before.
        if let Some(chap) = secret {
            let in_use = !target.connected_sessions.is_empty();
            if in_use && target.differs_from(Some(chap)).is_none() {
                return Ok(Some(chap.clone()));
            }
            self.set_auth(nas, lun, target, Some(chap)).await?;
            return Ok(Some(chap.clone()));
        }
        let user = target.user.as_deref().unwrap_or_default();
        let (Some(iqn), Some(auth_type)) = (target.iqn(), target.auth_type) else {
            return Err(Error::Unverified {
                what: what(),
                seen: "DSM does not report them".to_owned(),
            });
        };
        // Created by a release without CHAP, or while CHAP was off: it stays that way until it is deleted.
        if auth_type == Method::None.auth_type() {
            return Ok(None);
        }
        if let Some(chap) = self.keys.find(&iqn, auth_type, user) {
            return Ok(Some(chap));
        }
        if !self.is_idle_for_long(nas, target).await? {
            return Err(Error::Unverified {
                what: what(),
                seen: "they were made with a key that this controller does not have, and a node may be logged in with them: give the old key as one of chap_former_key_files, or delete the pods that use the volume. Without a session they are replaced after a minute".to_owned(),
            });
        }
        let chap = self.keys.credentials(&iqn);
        self.set_auth(nas, lun, target, chap.as_ref()).await?;
        Ok(chap)
    }

    async fn set_auth(
        &self,
        nas: &Nas,
        lun: &LunUuid,
        target: &Target,
        chap: Option<&Chap>,
    ) -> Result<(), Error> {
        let what = || format!("setting the CHAP settings of target {}", target.iqn);
        match nas.set_auth(lun, target, chap).await {
            Ok(TargetWrite::Done(targets)) => {
                let updated = targets.iter().find(|row| row.is(target));
                updated.map_or(Ok(()), |updated| verify_auth(updated, chap))
            }
            Ok(TargetWrite::NotFound(_)) => Err(Error::NotReady {
                what: what(),
                seen: "the target is gone".to_owned(),
            }),
            Ok(TargetWrite::WrongTarget { holder, .. }) => {
                Err(foreign_target_changed(what(), target, holder))
            }
            Err(source) if source.code() == Some(Code::BAD_AUTH_DATA) => Err(Error::Unverified {
                what: what(),
                seen: bad_auth_data().chain(),
            }),
            Err(source) => Err(source).with_context(what),
        }
    }
}

/// Checks that the target has these CHAP settings, as far as DSM reports them.
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
