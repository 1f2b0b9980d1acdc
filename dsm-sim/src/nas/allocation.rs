//! Space that LUNs use on their volumes, computed without reading every image file for each query.
//!
//! Only its file knows how much of a thin LUN is written. Initiators can write to LUNs that a target maps; the file of any other
//! LUN is read once after each change of the LUN, and cached. So a sum reads as many files as there are mapped LUNs, and a
//! thousand unmapped ones cost nothing.

use std::collections::BTreeSet;

use crate::nas::Nas;
use crate::nas::effect::Environment;
use crate::nas::state::table::IndexKey;
use crate::nas::state::volume::Volume;

impl Nas {
    /// Updates the cache for the LUNs that have changed since the last time. Call this at the start of a call, when files and
    /// exports match the state.
    pub(crate) fn refresh_allocation(&mut self, env: &dyn Environment) {
        let mut touched = self.state.luns.take_touched();
        touched.extend(self.state.targets.take_touched());
        for uuid in touched {
            self.allocation.forget(&uuid);
            let Some(lun) = self.state.luns.get(&uuid) else {
                continue;
            };
            if lun.kind.is_thin() && self.may_be_written(&uuid) {
                self.allocation.insert_writable(uuid, &lun.location);
            } else {
                let bytes = lun.used_bytes(env);
                self.allocation.insert_cached(uuid, &lun.location, bytes);
            }
        }
    }

    /// Whether an initiator can write to the LUN.
    pub(crate) fn may_be_written(&self, uuid: &str) -> bool {
        let mapping = IndexKey::Lun(uuid.to_owned());
        self.state.targets.find(&mapping).next().is_some()
            || self.lingering.values().any(|target| target.maps(uuid))
    }

    /// Bytes that LUNs use on a volume: thick ones their full size, thin ones what was written.
    pub(crate) fn used_by_luns(&self, volume: &Volume, env: &dyn Environment) -> u64 {
        let (luns, targets) = (&self.state.luns, &self.state.targets);
        // Changed by the current call, so the cache is stale.
        let touched: BTreeSet<&String> = luns.touched().union(targets.touched()).collect();
        let mut sum = self.allocation.sums.get(&volume.path).copied().unwrap_or(0);
        for uuid in &touched {
            if let Some((path, bytes)) = self.allocation.cached.get(*uuid)
                && *path == volume.path
            {
                sum -= u128::from(*bytes);
            }
        }
        let writable = self
            .allocation
            .writable
            .get(&volume.path)
            .into_iter()
            .flatten();
        let writable = writable.filter(|uuid| !touched.contains(uuid));
        let uncached = writable.chain(touched.iter().copied());
        for lun in uncached.filter_map(|uuid| luns.get(uuid)) {
            if lun.location == volume.path {
                sum += u128::from(lun.used_bytes(env));
            }
        }
        u64::try_from(sum).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests;
