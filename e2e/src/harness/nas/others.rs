//! A NAS that is not empty: its lists contain foreign LUNs and targets of odd shapes, there is a foreign LUN with a locked
//! snapshot, one volume needs attention, and one may have crashed. The driver must work as on an empty one, except that no LUN
//! can be confirmed absent while a volume has crashed (design.md#unknown-is-not-absent).

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{Nas, Settings};
use crate::GIB;

/// The name of the foreign LUN.
const FOREIGN_LUN: &str = "accounts-of-2019";
const ODD_ROWS: [&str; 2] = ["--setting", "odd_rows=true"];
/// The name of the first volume.
const ATTENTION_VOLUME: &str = "volume1";
/// An additional volume, which holds no LUN of the driver's.
const CRASHED_VOLUME: &str = "/volume9=btrfs:2TiB";

/// Additional arguments for `dsm-sim serve`.
pub(super) fn arguments(settings: &Settings) -> Vec<&'static str> {
    let mut arguments = Vec::new();
    if settings.shared {
        arguments.extend(ODD_ROWS);
    }
    if settings.crashed {
        arguments.extend(["--volume", CRASHED_VOLUME]);
    }
    arguments
}

impl Nas {
    /// Adds the foreign objects, if the settings say so.
    ///
    /// # Errors
    /// It does not answer, or refuses.
    pub(super) async fn add_foreign_objects(&self) -> Result<()> {
        if !self.settings.shared {
            return Ok(());
        }
        let uuid = self.foreign_lun(FOREIGN_LUN, GIB).await?;
        let snapshot = json!({"uuid": uuid, "name": "kept", "locked": true});
        self.change_setting("san/luns/snapshot", &snapshot).await?;
        self.patch_volume(ATTENTION_VOLUME, &json!({"status": "attention"}))
            .await?;
        if self.settings.crashed {
            let (path, _) = CRASHED_VOLUME
                .split_once('=')
                .context("the volume has a path")?;
            let crash = json!({"status": "crashed", "without": ["size_free_byte"]});
            self.patch_volume(path.trim_start_matches('/'), &crash)
                .await?;
        }
        Ok(())
    }

    /// Whether the foreign objects are unchanged.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn is_untouched(&self) -> Result<bool> {
        if !self.settings.shared {
            return Ok(true);
        }
        let state = self.state().await?;
        let rows = |name: &str| state[name].as_array().cloned().unwrap_or_default();
        let lun = rows("luns").into_iter().find(is_foreign);
        let Some(lun) = lun else { return Ok(false) };
        let is_locked_snapshot = |row: &Value| {
            row["parent"] == lun["uuid"] && row["is_locked"] == true && row["name"] == "kept"
        };
        let same = lun["size"] == GIB && lun["description"] == "somebody else's";
        Ok(same && rows("snapshots").iter().any(is_locked_snapshot))
    }
}

/// Whether a LUN's row is the foreign LUN's.
pub(super) fn is_foreign(row: &Value) -> bool {
    row["name"] == FOREIGN_LUN
}
