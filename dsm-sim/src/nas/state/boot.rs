//! A boot in progress, while DSM is still loading LUNs and targets. `api::boot` applies it.

use serde::{Deserialize, Serialize};

use crate::nas::clock::Millis;

/// What calls see of LUNs and targets during the boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Loading {
    /// Every call about LUNs or targets is refused with 117.
    Busy,
    /// Every other one is loaded; the rest seem not to exist.
    Partial,
    /// None seems to exist.
    Absent,
}

/// A boot in progress.
#[derive(Clone, Debug)]
pub(crate) struct Boot {
    pub(crate) loading: Loading,
    pub(crate) until: Millis,
    /// The status of all volumes during the boot; `None`: their usual one.
    pub(crate) status: Option<String>,
}
