//! A boot that goes on.

use serde::{Deserialize, Serialize};

use crate::nas::clock::Millis;

/// What LUNs and targets are like until then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Loading {
    /// Every call for LUNs or targets is refused with 117.
    Busy,
    /// Every other one is there; the rest is answered for as if it did not exist.
    Partial,
    /// None is there.
    Absent,
}

/// A boot that is going on.
#[derive(Clone, Debug)]
pub(crate) struct Boot {
    pub(crate) loading: Loading,
    pub(crate) until: Millis,
    /// What volumes say so long, if not what they always do.
    pub(crate) status: Option<String>,
}
