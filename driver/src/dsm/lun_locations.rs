//! Remembers on which volume of the NAS each LUN was seen: a volume that hides its LUNs matters only for LUNs that may be on it
//! (design.md#unknown-is-not-absent). Kept in memory only; for a LUN that has not been seen, every such volume matters.

use parking_lot::Mutex;
use std::collections::HashMap;

use super::lun::Lun;
use crate::volume::LunUuid;

/// Capacity, several times the number of LUNs of a NAS.
const MAX_LUNS: usize = 4096;

/// Paths of volumes by LUN uuid.
// ASSUMED: a LUN keeps its volume for as long as it has its uuid. SAN Manager cannot move LUNs; a clone on another volume has its
// own uuid.
#[derive(Debug, Default)]
pub(super) struct LunLocations(Mutex<HashMap<String, String>>);

impl LunLocations {
    /// Remembers the volume of this LUN.
    pub(super) fn remember(&self, lun: &Lun) {
        let mut locations = self.0.lock();
        if locations.len() >= MAX_LUNS {
            locations.clear();
        }
        locations.insert(lun.uuid.clone(), lun.location.clone());
    }

    /// The volume on which the LUN was seen.
    pub(super) fn of(&self, uuid: &LunUuid) -> Option<String> {
        let locations = self.0.lock();
        locations.get(uuid.as_str()).cloned()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn volumes_are_remembered_up_to_the_capacity() {
        let locations = LunLocations::default();
        let uuid = |number: usize| format!("00000000-0000-4000-8000-{number:012}");
        let lun = |number: usize| -> Lun {
            let row = json!({"uuid": uuid(number), "name": "n", "size": 1, "location": "/volume2", "type": 263});
            serde_json::from_value(row).unwrap()
        };
        let location = |number: usize| locations.of(&uuid(number).parse().unwrap());
        assert_eq!(location(0), None);
        for number in 0..MAX_LUNS {
            locations.remember(&lun(number));
        }
        assert_eq!(location(0).as_deref(), Some("/volume2"));
        locations.remember(&lun(MAX_LUNS));
        assert_eq!(
            (location(0), location(MAX_LUNS).as_deref()),
            (None, Some("/volume2"))
        );
    }
}
