//! What a NAS has besides the driver's own, what it says of itself, and what people do there. Pure: the values and how they
//! are drawn. None of it may make a difference to a volume, but where its description says so.

use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::select;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Words that healthy LUNs say. The last is in no list.
const LUN_WORDS: [&str; 6] = [
    "normal",
    "soft_limit_reach",
    "hard_limit_reach",
    "defragging",
    "processing",
    "a_word_of_tomorrow",
];

/// Words that were recorded of volumes of NASes that run (`dsm-sim/docs/knobs.md`). The last is in no list.
const VOLUME_WORDS: [&str; 11] = [
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

/// What a NAS lists besides, and the words that it has for what is well. It lasts, and nothing is different.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Environment {
    /// Rows of others stand in all lists, and fit no client's types.
    pub odd_rows: bool,
    /// What all LUNs say.
    pub lun: String,
    /// What both volumes say.
    pub volume: String,
    /// The NAS tells how long it has been up. Where it does not, whatever is proven takes a minute.
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

/// Why nobody can tell from its lists what a NAS has. It lasts until somebody has asked in vain for the second time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum HiddenLists {
    /// Rows stand in them that do not tell whose they are.
    Nameless,
    /// The rows of LUNs and targets lack something that no client can do without.
    Cut,
    /// The second volume has crashed: LUNs that are in no list may lie there. None of the driver's do.
    Crashed,
}

impl HiddenLists {
    /// For dsm-sim's `PATCH /settings`.
    pub fn settings(now: Option<Self>) -> Value {
        json!({"nameless_rows": now == Some(Self::Nameless), "cut_rows": now == Some(Self::Cut)})
    }
}

/// What a person does to a volume's LUN in SAN Manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ManualEdit {
    /// Gives it another name.
    Rename,
    /// Writes around what stands in its description, or takes that away again.
    Describe,
    /// Writes over its description, and later back what a refusal says.
    Unmark,
    /// Takes a snapshot.
    Snapshot {
        /// And locks it. It goes before the volume does: who has locked it takes it away.
        locked: bool,
    },
}

pub(super) fn environment() -> impl Strategy<Value = Environment> {
    let shown = prop_oneof![3 => Just(true), 1 => Just(false)];
    let odd = prop_oneof![4 => Just(true), 1 => Just(false)];
    let words = (select(&LUN_WORDS[..]), select(&VOLUME_WORDS[..]));
    (odd, words, shown).prop_map(|(odd_rows, (lun, volume), up_time_shown)| Environment {
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
