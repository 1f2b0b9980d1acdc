//! What a NAS is asked together with something else: how much is free where a LUN lies or shall lie. That it does not tell stands
//! against nothing; then DSM's own refusals are what is left (design.md#free-space).

use super::Nas;
use crate::dsm::location::{self, Location, LocationAnswer, LocationsAnswer};
use crate::dsm::lun::{self, CreatedLun, Lun, LunAnswer, NewLun};
use crate::dsm::reply::DsmError;
use crate::volume::LunUuid;

/// What has come of a `create`.
#[derive(Debug)]
pub struct Creation {
    /// The key of the LUN that DSM says it has made. An error says little: the LUN may exist (design.md#create-first).
    pub uuid: Result<String, DsmError>,
    /// What was then found by its name.
    pub seen: Seen,
}

/// What is found by a LUN's name.
#[derive(Debug)]
pub enum Seen {
    /// A LUN of this name.
    Lun(Box<Lun>),
    /// DSM says that there is none, which alone is no proof (design.md#unknown-is-not-absent).
    Nothing,
    /// DSM has not said.
    Unknown,
}

impl Nas {
    /// Creates a LUN, and looks whether it is there by its name whatever DSM says of that: one request.
    pub async fn create_lun(&self, new: &NewLun) -> Creation {
        let answers = self
            .client
            .call_each::<CreatedLun, LunAnswer>(&lun::create(new), &lun::get(&new.name))
            .await;
        let (created, seen) = match answers {
            Ok(answers) => answers,
            Err(error) => {
                return Creation {
                    uuid: Err(error),
                    seen: Seen::Unknown,
                };
            }
        };
        let seen = match seen {
            Ok(answer) if answer.lun.name == new.name => Seen::Lun(Box::new(self.seen(answer.lun))),
            Ok(_) => Seen::Nothing,
            Err(error) if error.code().is_some_and(crate::dsm::Code::no_lun) => Seen::Nothing,
            Err(_) => Seen::Unknown,
        };
        Creation {
            uuid: created.map(|created| created.uuid),
            seen,
        }
    }

    /// A volume of the NAS, as far as it tells: for who can do without.
    ///
    /// # Errors
    /// [`DsmError`]: there was no answer of DSM's.
    pub async fn location_if_told(&self, path: &str) -> Result<Option<Location>, DsmError> {
        let answer = self
            .client
            .call::<LocationAnswer>(&location::get(path))
            .await;
        match answer {
            Ok(answer) => Ok(answer.volume),
            Err(error @ (DsmError::Refused { .. } | DsmError::Garbled { .. })) => {
                self.is_no_space(&error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The LUN with this key, under the terms of [`Nas::lun`], and where it lies, as far as the NAS tells: one request.
    ///
    /// # Errors
    /// Anything else than a LUN or DSM's word that there is none.
    pub async fn lun_and_location(
        &self,
        uuid: &LunUuid,
    ) -> Result<Option<(Lun, Option<Location>)>, DsmError> {
        let answer = self
            .client
            .call_pair::<LunAnswer, LocationsAnswer>(&lun::get(uuid.as_str()), &location::list())
            .await;
        let (lun, volumes) = match answer {
            Ok((found, volumes)) => (self.seen(found.lun), volumes),
            Err(error) if error.code().is_some_and(crate::dsm::Code::no_lun) => return Ok(None),
            Err(error) => return Err(error),
        };
        // `get` takes names too: a LUN that is merely called like this uuid is another one.
        if lun.uuid != uuid.as_str() {
            return Ok(None);
        }
        let location = match volumes {
            Ok(answer) => {
                self.report(&answer.volumes);
                let mut volumes = answer.volumes.fit.into_iter();
                volumes.find(|volume| volume.path == lun.location)
            }
            Err(error) => {
                self.is_no_space(&error);
                None
            }
        };
        Ok(Some((lun, location)))
    }

    fn is_no_space(&self, error: &DsmError) {
        let text = format!("free space: {error}");
        if self.told.first(&text) {
            tracing::warn!(nas = %self.name, %error, "the NAS does not tell how much is free: a LUN is made or grown all the same");
        }
    }
}
