//! What each operation costs in NAS calls, by the number of LUNs on the NAS.

use std::future::Future;

use anyhow::{Context as _, Result, ensure};
use comfy_table::{CellAlignment, Table, presets};
use e2e::GIB;
use e2e::harness::nas::Nas;
use e2e::harness::test_volume::{Content, at_least, capability};
use proto::csi;
use proto::csi::volume_capability::access_mode::Mode;
use serde::Serialize;
use tonic::{Code, Response, Status};

use crate::peer::{Kind, Peer};

const SIZES: [usize; 4] = [1, 10, 100, 1_000];

/// One operation of one driver.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    driver: String,
    operation: &'static str,
    /// Other LUNs on the NAS, each mapped to a target.
    luns: usize,
    /// HTTP requests; `None`: the driver does not support the operation.
    requests: Option<u64>,
    /// API calls in these requests: a compound request has many.
    calls: Option<u64>,
    /// Bytes of queries and bodies, in both directions.
    bytes: Option<u64>,
}

/// Fills a NAS in steps, and measures each operation once per step.
pub(crate) async fn measure(kind: &Kind) -> Result<Vec<Line>> {
    let peer = Peer::start(kind, "7.2").await?;
    // Ours logs in on the first call.
    let capacity = csi::GetCapacityRequest {
        parameters: kind.parameters(),
        ..csi::GetCapacityRequest::default()
    };
    if matches!(kind, Kind::Ours) {
        peer.controller.clone().get_capacity(capacity).await?;
    }
    let started = peer.nas().counters().await?;
    let mut lines = vec![Line {
        driver: kind.to_string(),
        operation: "start and log in",
        luns: 0,
        requests: Some(started.requests),
        calls: Some(started.all_calls()),
        bytes: Some(started.bytes()),
    }];
    let mut existing = 0;
    for luns in SIZES {
        fill(peer.nas(), kind.prefix(), existing..luns).await?;
        existing = luns;
        let volume = volume(kind, &peer, luns).await;
        let context = || {
            format!(
                "{kind} at {luns} LUNs; the end of its log:\n{}",
                peer.log_tail()
            )
        };
        lines.extend(volume.with_context(context)?);
    }
    Ok(lines)
}

/// Creates LUNs, each mapped to its own target, as a driver would.
async fn fill(nas: &Nas, prefix: &str, numbers: std::ops::Range<usize>) -> Result<()> {
    let session = nas.session().await?;
    for n in numbers {
        let name = format!("{prefix}-pvc-{n}");
        let lun = [
            ("name", &*name),
            ("type", "BLUN"),
            ("location", "/volume1"),
            ("size", "1073741824"),
        ];
        let lun = session.call("SYNO.Core.ISCSI.LUN", "create", &lun).await?;
        let iqn = format!("iqn.2000-01.com.synology:{name}");
        let target = session
            .call(
                "SYNO.Core.ISCSI.Target",
                "create",
                &[("name", &name), ("iqn", &iqn)],
            )
            .await?;
        let uuid = lun["uuid"].as_str().context("uuid")?;
        let ids = format!("[{}]", target["target_id"]);
        let map = [("uuid", uuid), ("target_ids", &*ids)];
        session
            .call("SYNO.Core.ISCSI.LUN", "map_target", &map)
            .await?;
    }
    Ok(())
}

/// Counts the NAS calls that CSI calls cause.
struct Meter<'a> {
    driver: String,
    nas: &'a Nas,
    luns: usize,
    lines: Vec<Line>,
}

impl Meter<'_> {
    /// Makes a call; `None` if the driver does not implement it.
    async fn call<T>(
        &mut self,
        operation: &'static str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<Option<T>> {
        let before = self.nas.counters().await?;
        let answer = call.await;
        let after = self.nas.counters().await?;
        let (requests, calls, bytes, answer) = match answer {
            Ok(answer) => (
                Some(after.requests - before.requests),
                Some(after.all_calls() - before.all_calls()),
                Some(after.bytes() - before.bytes()),
                Some(answer.into_inner()),
            ),
            Err(status) if status.code() == Code::Unimplemented => (None, None, None, None),
            Err(status) => return Err(anyhow::Error::new(status).context(operation)),
        };
        self.lines.push(Line {
            driver: self.driver.clone(),
            operation,
            luns: self.luns,
            requests,
            calls,
            bytes,
        });
        Ok(answer)
    }
}

/// Every operation on one volume, from create to delete.
async fn volume(kind: &Kind, peer: &Peer, luns: usize) -> Result<Vec<Line>> {
    let mut meter = Meter {
        driver: kind.to_string(),
        nas: peer.nas(),
        luns,
        lines: Vec::new(),
    };
    let mut controller = peer.controller.clone();
    let request = kind.create(&format!("measured-{luns}"));
    let created = meter
        .call("create", controller.create_volume(request.clone()))
        .await?;
    let volume = created
        .and_then(|created| created.volume)
        .context("no volume")?;
    let repeated = meter
        .call("create again", controller.create_volume(request))
        .await?;
    let repeated = repeated
        .and_then(|repeated| repeated.volume)
        .context("no volume")?;
    ensure!(
        repeated.volume_id == volume.volume_id,
        "created twice: {repeated:?}"
    );
    let listed = controller.list_volumes(csi::ListVolumesRequest::default());
    if let Some(listed) = meter.call("list volumes", listed).await? {
        let all = listed
            .entries
            .iter()
            .filter_map(|entry| entry.volume.as_ref());
        ensure!(
            all.map(|volume| &volume.volume_id)
                .any(|id| *id == volume.volume_id),
            "{} is not listed",
            volume.volume_id
        );
    }
    let validate = csi::ValidateVolumeCapabilitiesRequest {
        volume_id: volume.volume_id.clone(),
        volume_capabilities: vec![capability(Content::Fs("ext4"), Mode::SingleNodeWriter)],
        ..csi::ValidateVolumeCapabilitiesRequest::default()
    };
    meter
        .call(
            "validate",
            controller.validate_volume_capabilities(validate),
        )
        .await?;
    let expand = csi::ControllerExpandVolumeRequest {
        volume_id: volume.volume_id.clone(),
        capacity_range: Some(at_least(2 * GIB)),
        volume_capability: Some(capability(Content::Fs("ext4"), Mode::SingleNodeWriter)),
        ..csi::ControllerExpandVolumeRequest::default()
    };
    let grown = meter
        .call("expand", controller.controller_expand_volume(expand))
        .await?;
    ensure!(
        grown.is_some_and(|grown| grown.capacity_bytes == 2 * GIB),
        "not grown"
    );
    snapshots(&mut meter, peer, &volume.volume_id).await?;
    let delete = csi::DeleteVolumeRequest {
        volume_id: volume.volume_id.clone(),
        ..csi::DeleteVolumeRequest::default()
    };
    meter
        .call("delete", controller.delete_volume(delete))
        .await?;
    let left = peer.nas().luns().await?.len();
    ensure!(left == luns, "{left} LUNs are left, expected {luns}");
    Ok(meter.lines)
}

async fn snapshots(meter: &mut Meter<'_>, peer: &Peer, volume: &str) -> Result<()> {
    let mut controller = peer.controller.clone();
    let take = csi::CreateSnapshotRequest {
        source_volume_id: volume.to_owned(),
        name: format!("snapshot-{}", meter.luns),
        ..csi::CreateSnapshotRequest::default()
    };
    let taken = meter
        .call("take snapshot", controller.create_snapshot(take))
        .await?;
    let list = csi::ListSnapshotsRequest {
        source_volume_id: volume.to_owned(),
        ..csi::ListSnapshotsRequest::default()
    };
    let listed = meter
        .call("list snapshots", controller.list_snapshots(list))
        .await?;
    let Some(snapshot) = taken.and_then(|taken| taken.snapshot) else {
        return Ok(());
    };
    ensure!(
        listed.is_some_and(|listed| listed.entries.len() == 1),
        "not one snapshot is listed"
    );
    let delete = csi::DeleteSnapshotRequest {
        snapshot_id: snapshot.snapshot_id,
        ..csi::DeleteSnapshotRequest::default()
    };
    meter
        .call("delete snapshot", controller.delete_snapshot(delete))
        .await?;
    Ok(())
}

/// Rows are operations, columns are drivers and numbers of LUNs.
pub(crate) fn table(lines: &[Line]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    let mut header = vec!["operation".to_owned(), "driver".to_owned()];
    header.extend(
        SIZES
            .iter()
            .flat_map(|luns| [luns.to_string(), "calls".to_owned(), "KiB".to_owned()]),
    );
    table.set_header(header);
    let mut rows: Vec<(&str, &str)> = Vec::new();
    for line in lines {
        if !rows.contains(&(line.operation, &line.driver)) {
            rows.push((line.operation, &line.driver));
        }
    }
    let order: Vec<&str> = lines.iter().map(|line| line.operation).collect();
    rows.sort_by_key(|row| order.iter().position(|operation| *operation == row.0));
    for (operation, driver) in rows {
        let mut row = vec![operation.to_owned(), driver.to_owned()];
        for luns in SIZES {
            let line = lines.iter().find(|line| {
                (line.operation, line.driver.as_str()) == (operation, driver)
                    && (line.luns == luns || line.luns == 0)
            });
            let shown =
                |number: Option<u64>| number.map_or("–".to_owned(), |number| number.to_string());
            row.push(shown(line.and_then(|line| line.requests)));
            row.push(shown(line.and_then(|line| line.calls)));
            row.push(shown(
                line.and_then(|line| line.bytes)
                    .map(|bytes| bytes.div_ceil(1024)),
            ));
        }
        table.add_row(row);
    }
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// Our cost must not depend on the number of LUNs; the official driver must make one more call per mapped LUN. If it
/// did not, dsm-sim would hide from it what it looks for (dsm-web-api.md 13.1).
pub(crate) fn check(lines: &[Line]) -> Result<()> {
    let (few, many) = (SIZES[0], SIZES[SIZES.len() - 1]);
    let more = u64::try_from(many - few)?;
    for line in lines.iter().filter(|line| line.luns == many) {
        let before = lines.iter().find(|before| {
            (&before.driver, before.operation, before.luns) == (&line.driver, line.operation, few)
        });
        let before = before.context("measured at one size only")?;
        let (Some(before), Some(after)) = (before.calls, line.calls) else {
            continue;
        };
        match (line.driver.as_str(), line.operation) {
            ("ours", _) => ensure!(before == after, "grows, from {before} calls: {line:?}"),
            ("official", "create" | "expand" | "delete") => ensure!(
                before + more == after,
                "from {before} calls, and not one more for each LUN: {line:?}"
            ),
            _ => {}
        }
    }
    Ok(())
}
