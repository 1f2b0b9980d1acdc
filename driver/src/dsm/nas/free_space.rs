//! Requests that combine another call with a look-up: creating a LUN, and the free space of a volume. If the NAS does not report
//! free space, nothing is refused for it; DSM's own errors remain (design.md#free-space).

use super::Nas;
use crate::dsm::location::{self, Location, LocationAnswer, LocationsAnswer};
use crate::dsm::lun::{self, CreatedLun, Lun, LunAnswer, NewLun};
use crate::dsm::reply::DsmError;
use crate::volume::LunUuid;

/// The outcome of a `create`.
#[derive(Debug)]
pub struct Creation {
    /// The key of the new LUN as DSM reports it. After an error the LUN may exist all the same (design.md#create-first).
    pub uuid: Result<String, DsmError>,
    /// The result of the look-up by name in the same request.
    pub found: NameLookup,
}

/// The result of looking up a LUN by name.
#[derive(Debug)]
pub enum NameLookup {
    /// A LUN with this name.
    Found(Box<Lun>),
    /// DSM reports that there is none, which alone is no proof (design.md#unknown-is-not-absent).
    NotFound,
    /// There was no usable reply.
    Unknown,
}

impl Nas {
    /// Creates a LUN, and looks it up by name even if that fails, in one request.
    pub async fn create_lun(&self, new: &NewLun) -> Creation {
        let replies = self
            .client
            .call_each::<CreatedLun, LunAnswer>(&lun::create(new), &lun::get(&new.name))
            .await;
        let (created, found) = match replies {
            Ok(replies) => replies,
            Err(error) => {
                return Creation {
                    uuid: Err(error),
                    found: NameLookup::Unknown,
                };
            }
        };
        let found = match found {
            Ok(answer) if answer.lun.name == new.name => {
                NameLookup::Found(Box::new(self.note_lun(answer.lun)))
            }
            Ok(_) => NameLookup::NotFound,
            Err(error) if error.code().is_some_and(crate::dsm::Code::no_lun) => {
                NameLookup::NotFound
            }
            Err(_) => NameLookup::Unknown,
        };
        Creation {
            uuid: created.map(|created| created.uuid),
            found,
        }
    }

    /// A volume of the NAS, if the NAS reports it: for callers that can do without.
    ///
    /// # Errors
    /// [`DsmError`], if DSM itself did not reply.
    pub async fn location_if_reported(&self, path: &str) -> Result<Option<Location>, DsmError> {
        let answer = self
            .client
            .call::<LocationAnswer>(&location::get(path))
            .await;
        match answer {
            Ok(answer) => Ok(answer.volume),
            Err(error @ (DsmError::Refused { .. } | DsmError::Garbled { .. })) => {
                self.log_free_space_unknown(&error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The LUN with this key, as [`Nas::lun`] returns it, and its volume, if the NAS reports it: one request.
    ///
    /// # Errors
    /// Any reply other than a LUN or DSM's code for no such LUN.
    pub async fn lun_and_location(
        &self,
        uuid: &LunUuid,
    ) -> Result<Option<(Lun, Option<Location>)>, DsmError> {
        let answer = self
            .client
            .call_pair::<LunAnswer, LocationsAnswer>(&lun::get(uuid.as_str()), &location::list())
            .await;
        let (lun, volumes) = match answer {
            Ok((found, volumes)) => (self.note_lun(found.lun), volumes),
            Err(error) if error.code().is_some_and(crate::dsm::Code::no_lun) => return Ok(None),
            Err(error) => return Err(error),
        };
        // `get` takes names too: a LUN whose name is this uuid is another one.
        if lun.uuid != uuid.as_str() {
            return Ok(None);
        }
        let location = match volumes {
            Ok(answer) => {
                self.report(&answer.volumes);
                let mut volumes = answer.volumes.readable.into_iter();
                volumes.find(|volume| volume.path == lun.location)
            }
            Err(error) => {
                self.log_free_space_unknown(&error);
                None
            }
        };
        Ok(Some((lun, location)))
    }

    fn log_free_space_unknown(&self, error: &DsmError) {
        let text = format!("free space: {error}");
        if self.logged.is_first(&text) {
            tracing::warn!(nas = %self.name, %error, "the NAS does not report free space: LUNs are created and expanded without that check");
        }
    }
}
