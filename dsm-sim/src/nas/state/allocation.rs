//! What LUNs take of their volumes, added up as far as it can be.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// What LUNs take, as far as it need not be looked up.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// LUNs that stay as they are: their volume, and the bytes that they take of it.
    pub(crate) resting: HashMap<String, (String, u64)>,
    /// By volume, the bytes of those.
    pub(crate) sums: BTreeMap<String, u128>,
    /// By volume, the LUNs that somebody may be writing to.
    pub(crate) moving: BTreeMap<String, BTreeSet<String>>,
}

impl Taken {
    pub(crate) fn rests(&mut self, uuid: String, volume: &str, bytes: u64) {
        *self.sums.entry(volume.to_owned()).or_default() += u128::from(bytes);
        self.resting.insert(uuid, (volume.to_owned(), bytes));
    }

    pub(crate) fn moves(&mut self, uuid: String, volume: &str) {
        let here = self.moving.entry(volume.to_owned()).or_default();
        here.insert(uuid);
    }

    pub(crate) fn forget(&mut self, uuid: &str) {
        if let Some((volume, bytes)) = self.resting.remove(uuid)
            && let Some(sum) = self.sums.get_mut(&volume)
        {
            *sum -= u128::from(bytes);
        }
        for here in self.moving.values_mut() {
            here.remove(uuid);
        }
    }
}
