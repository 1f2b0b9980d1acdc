//! On which volumes of the NAS this process has seen LUNs. One that is gone was there, and nowhere else: a volume that hides its LUNs is a
//! doubt about those that may lie on it (design.md#unknown-is-not-absent). Forgotten with the process, and then every such volume is one.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::lun::Lun;
use crate::volume::LunUuid;

/// More than a NAS has LUNs, several times over.
const MOST: usize = 4096;

/// The volumes of LUNs.
// ASSUMED: a LUN keeps its volume for as long as it has its uuid. SAN Manager moves none; a clone on another volume has a uuid of its own.
#[derive(Debug, Default)]
pub(super) struct Places(Mutex<HashMap<String, String>>);

impl Places {
    /// The LUN was seen.
    pub(super) fn remember(&self, lun: &Lun) {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if places.len() >= MOST {
            places.clear();
        }
        places.insert(lun.uuid.clone(), lun.location.clone());
    }

    /// Where the LUN was seen.
    pub(super) fn of(&self, uuid: &LunUuid) -> Option<String> {
        let places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        places.get(uuid.as_str()).cloned()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_seen_is_known_until_there_is_too_much() {
        let places = Places::default();
        let uuid = |number: usize| format!("00000000-0000-4000-8000-{number:012}");
        let lun = |number: usize| -> Lun {
            let row = json!({"uuid": uuid(number), "name": "n", "size": 1, "location": "/volume2", "type": 263});
            serde_json::from_value(row).unwrap()
        };
        let place = |number: usize| places.of(&uuid(number).parse().unwrap());
        assert_eq!(place(0), None);
        for number in 0..MOST {
            places.remember(&lun(number));
        }
        assert_eq!(place(0).as_deref(), Some("/volume2"));
        places.remember(&lun(MOST));
        assert_eq!((place(0), place(MOST).as_deref()), (None, Some("/volume2")));
    }
}
