//! The environment of the driver: foreign objects on the NAS, the statuses that it reports, and manual edits in SAN Manager.
//! Pure: the values and their proptest strategies. Unless its description says otherwise, none of it may affect a volume.

use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::select;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Statuses of healthy LUNs. The last one is unknown to the driver.
const LUN_STATUSES: [&str; 6] = [
    "normal",
    "soft_limit_reach",
    "hard_limit_reach",
    "defragging",
    "processing",
    "a_word_of_tomorrow",
];

/// Statuses that were recorded of volumes of running NASes (`dsm-sim/docs/knobs.md`). The last one is unknown to the driver.
const VOLUME_STATUSES: [&str; 11] = [
    "normal",
    "attention",
    "has_acceptable_disk",
    "has_unverified_disk",
    "background",
    "background_optimizing",
    "data_scrubbing",
    "raid_syncing",
    "expanding",
    "degrade",
    "a_word_of_tomorrow",
];

/// Foreign objects and healthy statuses. Permanent, and without effect on any call's result.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Environment {
    /// All lists contain foreign rows that do not match the client's types.
    pub odd_rows: bool,
    /// The `status` of all LUNs.
    pub lun: String,
    /// The `status` of both volumes.
    pub volume: String,
    /// The NAS reports its uptime. If it does not, each confirmation that an object is absent takes a minute.
    pub up_time_shown: bool,
}

impl Environment {
    /// For dsm-sim's `PATCH /settings`.
    pub fn settings(&self) -> Value {
        json!({"odd_rows": self.odd_rows, "lun_status": self.lun, "up_time_shown": self.up_time_shown})
    }
}

impl Default for Environment {
    fn default() -> Self {
        Self {
            odd_rows: false,
            lun: "normal".to_owned(),
            volume: "normal".to_owned(),
            up_time_shown: true,
        }
    }
}

/// Why the lists of the NAS cannot be trusted. Lasts until the CO has failed a call twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum HiddenLists {
    /// Some rows have no name.
    Nameless,
    /// The rows of LUNs and targets lack a field that every client needs.
    Cut,
    /// The second volume has crashed: it may hold LUNs that are not listed. None of the driver's do.
    Crashed,
}

impl HiddenLists {
    /// For dsm-sim's `PATCH /settings`.
    pub fn settings(now: Option<Self>) -> Value {
        json!({"nameless_rows": now == Some(Self::Nameless), "cut_rows": now == Some(Self::Cut)})
    }
}

/// A manual edit of a volume's LUN in SAN Manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ManualEdit {
    /// Renames it.
    Rename,
    /// Adds text before and after the owner tag in its description, or removes that text again.
    Describe,
    /// Overwrites its description, and later restores the owner tag as the driver's error message says.
    Unmark,
    /// Takes a snapshot.
    Snapshot {
        /// Locks it. A locked snapshot is deleted by hand before the volume is deleted.
        locked: bool,
    },
}

pub(super) fn environment() -> impl Strategy<Value = Environment> {
    let shown = prop_oneof![3 => Just(true), 1 => Just(false)];
    let odd = prop_oneof![4 => Just(true), 1 => Just(false)];
    let statuses = (select(&LUN_STATUSES[..]), select(&VOLUME_STATUSES[..]));
    (odd, statuses, shown).prop_map(|(odd_rows, (lun, volume), up_time_shown)| Environment {
        odd_rows,
        lun: lun.to_owned(),
        volume: volume.to_owned(),
        up_time_shown,
    })
}

pub(super) fn hidden_lists() -> impl Strategy<Value = HiddenLists> {
    select(
        &[
            HiddenLists::Nameless,
            HiddenLists::Cut,
            HiddenLists::Crashed,
        ][..],
    )
}

pub(super) fn manual_edit() -> impl Strategy<Value = ManualEdit> {
    prop_oneof![
        1 => Just(ManualEdit::Rename),
        1 => Just(ManualEdit::Describe),
        1 => Just(ManualEdit::Unmark),
        1 => any::<bool>().prop_map(|locked| ManualEdit::Snapshot { locked }),
    ]
}
