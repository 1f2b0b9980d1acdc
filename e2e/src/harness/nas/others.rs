//! A NAS that was in use before: others' LUNs and targets of odd shapes stand in its lists, somebody has a LUN with a snapshot that
//! is locked, one volume wants attention, and one may have crashed. A driver is on it as on a clean one; only that a LUN is gone nobody
//! can prove as long as one has crashed (design.md#unknown-is-not-absent).

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{Nas, Settings};
use crate::GIB;

/// The LUN that somebody has.
const LUN: &str = "accounts-of-2019";
const ODD: [&str; 2] = ["--setting", "odd_rows=true"];
/// The first volume that there is.
const FULL: &str = "volume1";
/// A volume besides those of the plan. No LUN of the driver's lies there.
const CRASHED: &str = "/volume9=btrfs:2TiB";

/// What `dsm-sim serve` is told.
pub(super) fn arguments(settings: &Settings) -> Vec<&'static str> {
    let mut told = Vec::new();
    if settings.shared {
        told.extend(ODD);
    }
    if settings.crashed {
        told.extend(["--volume", CRASHED]);
    }
    told
}

impl Nas {
    /// Others settle in, where the settings say so.
    ///
    /// # Errors
    /// It does not answer or refuses.
    pub(super) async fn add_foreign_objects(&self) -> Result<()> {
        if !self.settings.shared {
            return Ok(());
        }
        let uuid = self.foreign_lun(LUN, GIB).await?;
        let snapshot = json!({"uuid": uuid, "name": "kept", "locked": true});
        self.change_setting("san/luns/snapshot", &snapshot).await?;
        self.patch_volume(FULL, &json!({"status": "attention"}))
            .await?;
        if self.settings.crashed {
            let (path, _) = CRASHED.split_once('=').context("a path")?;
            let crash = json!({"status": "crashed", "without": ["size_free_byte"]});
            self.patch_volume(path.trim_start_matches('/'), &crash)
                .await?;
        }
        Ok(())
    }

    /// What others have is there as on the first day.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn is_untouched(&self) -> Result<bool> {
        if !self.settings.shared {
            return Ok(true);
        }
        let state = self.state().await?;
        let rows = |name: &str| state[name].as_array().cloned().unwrap_or_default();
        let lun = rows("luns").into_iter().find(is_others);
        let Some(lun) = lun else { return Ok(false) };
        let kept = |row: &Value| {
            row["parent"] == lun["uuid"] && row["is_locked"] == true && row["name"] == "kept"
        };
        let same = lun["size"] == GIB && lun["description"] == "somebody else's";
        Ok(same && rows("snapshots").iter().any(kept))
    }
}

/// A row of a LUN is others', and of no story.
pub(super) fn is_others(row: &Value) -> bool {
    row["name"] == LUN
}
