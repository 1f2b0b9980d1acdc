//! What a driver returns for DeleteVolume while the NAS does not list its LUNs: a real NAS does not either for a while
//! after boot, and a driver that takes "unknown" for "absent" leaks the LUN.

use anyhow::{Context as _, Result, ensure};
use comfy_table::{Table, presets};
use proto::csi;
use serde::Serialize;
use serde_json::json;

use crate::peer::{Kind, Peer};

const MINUTE: u64 = 60_000;

/// Why the NAS reports the LUN as missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum MissingReason {
    ListsAreRefused,
    Boots,
}

/// The result.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    driver: String,
    trouble: MissingReason,
    /// The gRPC code.
    answer: String,
    /// The LUN exists after the fault ends.
    lun_is_left: bool,
}

impl Line {
    /// The driver reported success, but the LUN still exists.
    fn leaks(&self) -> bool {
        self.answer == "Ok" && self.lun_is_left
    }
}

/// Runs one driver with each fault.
pub(crate) async fn run(kind: &Kind) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for trouble in [MissingReason::ListsAreRefused, MissingReason::Boots] {
        let peer = Peer::start(kind, "7.2").await?;
        let mut controller = peer.controller.clone();
        let created = controller.create_volume(kind.create("kept"));
        let created = created.await?.into_inner();
        let volume_id = created.volume.context("no volume")?.volume_id;
        let nas = peer.nas();
        match trouble {
            MissingReason::ListsAreRefused => {
                let refuse = json!({"kind": "refuse", "code": 117});
                nas.fault("*", "list", 1, 0, refuse).await?;
            }
            MissingReason::Boots => nas.boot(MINUTE).await?,
        }
        let delete = csi::DeleteVolumeRequest {
            volume_id,
            ..csi::DeleteVolumeRequest::default()
        };
        let answer = controller.delete_volume(delete).await;
        let answer =
            answer.map_or_else(|status| format!("{:?}", status.code()), |_| "Ok".to_owned());
        nas.clear_faults().await?;
        nas.advance(MINUTE).await?;
        lines.push(Line {
            driver: kind.to_string(),
            trouble,
            answer,
            lun_is_left: !nas.luns().await?.is_empty(),
        });
    }
    Ok(lines)
}

/// Human-readable table.
pub(crate) fn table(lines: &[Line]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["driver", "the NAS", "answers", "the LUN afterwards"]);
    for line in lines {
        let trouble = match line.trouble {
            MissingReason::ListsAreRefused => "refuses lists (117)",
            MissingReason::Boots => "boots: knows no LUN yet",
        };
        let lun_state = match (line.lun_is_left, line.leaks()) {
            (_, true) => "LEAKED",
            (true, false) => "is there",
            (false, _) => "is gone",
        };
        table.add_row([&line.driver, trouble, &line.answer, lun_state]);
    }
    table
}

/// Ours must never leak. That another one does shows that dsm-sim behaves like a real NAS here.
pub(crate) fn check(lines: &[Line]) -> Result<()> {
    for line in lines {
        match line.driver.as_str() {
            "ours" => ensure!(!line.leaks(), "our own driver has leaked a LUN: {line:?}"),
            "official" => ensure!(
                line.leaks(),
                "the official driver is known to leak a LUN here (dsm-web-api.md 11.2), but did not; find out why: {line:?}"
            ),
            _ => {}
        }
    }
    Ok(())
}
