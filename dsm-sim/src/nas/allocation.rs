//! What LUNs take of their volumes, without a look at all of them for each question.
//!
//! How much of a thin LUN is written only its file knows. Initiators write to LUNs that a target maps; a file that nobody can write
//! to is looked at once after each change of its LUN, and added up. So a sum costs as many looks as LUNs are mapped, and a NAS
//! with a thousand that are not costs none.

use std::collections::BTreeSet;

use crate::nas::Nas;
use crate::nas::effect::Environment;
use crate::nas::state::table::IndexKey;
use crate::nas::state::volume::Volume;

impl Nas {
    /// Looks at the LUNs that something has happened to since the last time. All that was to follow the state has followed it by
    /// now: this is for the beginning of a call.
    pub(crate) fn take_stock(&mut self, outside: &dyn Environment) {
        let mut touched = self.state.luns.untouch();
        touched.extend(self.state.targets.untouch());
        for uuid in touched {
            self.taken.forget(&uuid);
            let Some(lun) = self.state.luns.get(&uuid) else {
                continue;
            };
            if lun.kind.is_thin() && self.may_be_written(&uuid) {
                self.taken.moves(uuid, &lun.location);
            } else {
                let bytes = lun.uses(outside);
                self.taken.rests(uuid, &lun.location, bytes);
            }
        }
    }

    /// Whether an initiator can reach it.
    pub(crate) fn may_be_written(&self, uuid: &str) -> bool {
        let mapping = IndexKey::Lun(uuid.to_owned());
        self.state.targets.find(&mapping).next().is_some()
            || self.lingering.values().any(|target| target.maps(uuid))
    }

    /// Bytes that LUNs take: thick ones all of their size, thin ones what was written.
    pub(crate) fn used_by_luns(&self, volume: &Volume, outside: &dyn Environment) -> u64 {
        let (luns, targets) = (&self.state.luns, &self.state.targets);
        // What this very call has changed.
        let fresh: BTreeSet<&String> = luns.touched().union(targets.touched()).collect();
        let mut sum = self.taken.sums.get(&volume.path).copied().unwrap_or(0);
        for uuid in &fresh {
            if let Some((at, bytes)) = self.taken.resting.get(*uuid)
                && *at == volume.path
            {
                sum -= u128::from(*bytes);
            }
        }
        let moving = self.taken.moving.get(&volume.path).into_iter().flatten();
        let moving = moving.filter(|uuid| !fresh.contains(uuid));
        let looked_up = moving.chain(fresh.iter().copied());
        for lun in looked_up.filter_map(|uuid| luns.get(uuid)) {
            if lun.location == volume.path {
                sum += u128::from(lun.uses(outside));
            }
        }
        u64::try_from(sum).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests;
