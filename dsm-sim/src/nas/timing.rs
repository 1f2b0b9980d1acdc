//! Simulated latency. It depends only on the call and the current time, so the same calls take the same time.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::nas::clock::Millis;
use crate::nas::state::lun_type::LunType;

/// A latency profile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Latency {
    /// No delays: all work is done when the answer arrives.
    #[default]
    Instant,
    /// A DS918+ as jt measured it: `jasoncheng7115/jt-pve-storage-synology: docs/TESTING.md`, cited in dsm-web-api.md.
    Ds918,
}

impl FromStr for Latency {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "instant" => Ok(Self::Instant),
            "ds918" => Ok(Self::Ds918),
            _ => Err("say instant or ds918".to_owned()),
        }
    }
}

/// How long the NAS keeps working after its answer.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Timing {
    /// How long `is_action_locked` is set after a create.
    pub(crate) lock_after_create: Millis,
    /// How long a deleted LUN is still listed.
    pub(crate) delete_duration: Millis,
    /// How long its space is still missing after that.
    pub(crate) space_return_delay: Millis,
    /// How long a reflink clone stays locked, per MiB of data.
    clone_per_mib: Millis,
    /// The same for any other clone, per MiB to copy.
    copy_per_mib: Millis,
}

impl Timing {
    /// How long a clone stays locked, for a source of this type, size and amount of data (bytes).
    pub(crate) fn clone_duration(self, kind: LunType, size: u64, data: u64) -> Millis {
        match (kind.is_btrfs(), kind.is_thin()) {
            (true, true) => self.clone_per_mib * (data >> 20),
            (false, true) => self.copy_per_mib * (data >> 20),
            (_, false) => self.copy_per_mib * (size >> 20),
        }
    }
}

impl Latency {
    pub(crate) fn timing(self) -> Timing {
        match self {
            Self::Instant => Timing::default(),
            Self::Ds918 => Timing {
                // Measured: 1.2 s for a 1 GiB BLUN (behaviour 1).
                lock_after_create: 1_200,
                // ASSUMED: 2 s; it is known only that the LUN can stay listed "for seconds" (behaviour 3), and that democratic
                // waits 5 s before it checks.
                delete_duration: 2_000,
                // ASSUMED: 60 s; it was measured only that free space "can stay low for minutes" after a delete (behaviour 13).
                space_return_delay: 60_000,
                // Measured: nothing for an empty LUN, 3.5 s for 512 MiB (behaviour 2).
                clone_per_mib: 7,
                // ASSUMED: 100 MiB/s; it is known only that a clone of a big thick LUN takes much longer than 20 s.
                copy_per_mib: 10,
            },
        }
    }

    /// How long one call takes, if its `list` has this many rows.
    fn duration(self, api: &str, method: &str, rows: usize) -> Millis {
        if self == Self::Instant {
            return 0;
        }
        let rows = Millis::try_from(rows).unwrap_or(Millis::MAX);
        match (api, method) {
            // Measured: 0.6 s with 7 LUNs (behaviour 25).
            // ASSUMED: 0.25 s for the call and 0.05 s for each LUN; only their sum was measured.
            ("SYNO.Core.ISCSI.LUN", "list") => 250 + rows.saturating_mul(50),
            // ASSUMED: the cost of a target list depends on the number of targets; the filter saves no time.
            ("SYNO.Core.ISCSI.Target", "list") => 250 + rows.saturating_mul(20),
            // Measured: 16 concurrent creates take 15 s in total, one after the other (behaviour 4).
            ("SYNO.Core.ISCSI.LUN", "create") => 1_000,
            // ASSUMED: 0.3 s for changes and logins, 0.2 s for reads; 0.2 s was measured for a snapshot, 0.2 to 1 s is the range
            // of all calls.
            ("SYNO.Core.ISCSI.LUN" | "SYNO.Core.ISCSI.Target", "get") => 200,
            ("SYNO.Core.ISCSI.LUN" | "SYNO.Core.ISCSI.Target", _) | ("SYNO.API.Auth", "login") => {
                300
            }
            _ => 200,
        }
    }
}

/// Delays calls. Creates run one after the other.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    creates_until: Millis,
}

impl Queue {
    /// Milliseconds from `now` until the call takes effect.
    pub(crate) fn wait(
        &mut self,
        latency: Latency,
        now: Millis,
        api: &str,
        method: &str,
        rows: usize,
    ) -> Millis {
        let duration = latency.duration(api, method, rows);
        if duration == 0 || (api, method) != ("SYNO.Core.ISCSI.LUN", "create") {
            return duration;
        }
        self.creates_until = self.creates_until.max(now) + duration;
        self.creates_until - now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LUN: &str = "SYNO.Core.ISCSI.LUN";

    #[test]
    fn a_list_of_seven_takes_600_ms() {
        // Behaviour 25 of dsm-web-api.md section 11.
        assert_eq!(
            Queue::default().wait(Latency::Ds918, 0, LUN, "list", 7),
            600
        );
        assert_eq!(
            Queue::default().wait(Latency::Instant, 0, LUN, "list", 7),
            0
        );
    }

    #[test]
    fn creates_run_one_after_the_other() {
        // Behaviour 4 of dsm-web-api.md section 11.
        let mut queue = Queue::default();
        let waits: Vec<Millis> = (0..3)
            .map(|_| queue.wait(Latency::Ds918, 5_000, LUN, "create", 0))
            .collect();
        assert_eq!(waits, [1_000, 2_000, 3_000]);
        // Behaviour 26: more than 10 s when many run at once; a client with a shorter timeout finds on its retry that its LUN
        // exists.
        let last = (0..8).map(|_| queue.wait(Latency::Ds918, 5_000, LUN, "create", 0));
        assert_eq!(last.last(), Some(11_000));
        assert_eq!(queue.wait(Latency::Ds918, 5_000, LUN, "get", 0), 200);
        assert_eq!(queue.wait(Latency::Ds918, 60_000, LUN, "create", 0), 1_000);
    }
}
