//! Cache for the space that LUNs use on their volumes; `nas::allocation` fills and reads it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Used space of LUNs, cached where nothing can be writing to the file.
#[derive(Debug, Default)]
pub(crate) struct AllocationCache {
    /// LUNs that no initiator can write to: their volume, and the bytes that they use on it.
    pub(crate) cached: HashMap<String, (String, u64)>,
    /// By volume, the total of `cached`.
    pub(crate) sums: BTreeMap<String, u128>,
    /// By volume, the LUNs that an initiator may be writing to.
    pub(crate) writable: BTreeMap<String, BTreeSet<String>>,
}

impl AllocationCache {
    pub(crate) fn insert_cached(&mut self, uuid: String, volume: &str, bytes: u64) {
        *self.sums.entry(volume.to_owned()).or_default() += u128::from(bytes);
        self.cached.insert(uuid, (volume.to_owned(), bytes));
    }

    pub(crate) fn insert_writable(&mut self, uuid: String, volume: &str) {
        let luns = self.writable.entry(volume.to_owned()).or_default();
        luns.insert(uuid);
    }

    pub(crate) fn forget(&mut self, uuid: &str) {
        if let Some((volume, bytes)) = self.cached.remove(uuid)
            && let Some(sum) = self.sums.get_mut(&volume)
        {
            *sum -= u128::from(bytes);
        }
        for luns in self.writable.values_mut() {
            luns.remove(uuid);
        }
    }
}
