//! Cost of `ListVolumes` in one call, and in pages.

use anyhow::{Result, ensure};
use e2e::GIB;
use e2e::harness::plugin::Csi as _;
use e2e::harness::test_cluster::{Plan, TestCluster};
use e2e::harness::test_volume::{Content, TestVolume};
use futures::future::try_join_all;
use proto::csi;
use serde::Serialize;

use super::meter::Meter;
use super::{progress, ratio, table};

const PAGE: i32 = 100;
const MAKERS: usize = 8;

/// The results with this many volumes.
#[derive(Serialize)]
pub(crate) struct Listed {
    volumes: usize,
    /// In one call.
    whole: Cost,
    pages: Cost,
}

/// The total cost of listing all volumes.
#[derive(Serialize)]
struct Cost {
    calls: usize,
    wall_ms: f64,
    driver_cpu_ms: f64,
    /// Requests to the NAS, and bytes of its replies.
    requests: u64,
    bytes: u64,
}

/// Measures it with each of these numbers of volumes.
///
/// # Errors
/// Something does not start, or a call fails.
pub(super) async fn measure(sizes: &[usize]) -> Result<Vec<Listed>> {
    let mut plan = Plan::controller();
    plan.nas.more = vec!["--model", "unlimited"];
    "info".clone_into(&mut plan.log_level);
    let cluster = plan.start().await?;
    let mut found = Vec::new();
    let mut made = 0;
    for &volumes in sizes {
        let makers =
            (0..MAKERS).map(|maker| make(&cluster, (made + maker..volumes).step_by(MAKERS)));
        try_join_all(makers).await?;
        made = volumes;
        progress(&format!("list: {volumes} volumes"));
        // The first list is a warm-up.
        list(&cluster, volumes, 0).await?;
        found.push(Listed {
            volumes,
            whole: list(&cluster, volumes, 0).await?,
            pages: list(&cluster, volumes, PAGE).await?,
        });
    }
    Ok(found)
}

async fn make(cluster: &TestCluster, numbers: impl Iterator<Item = usize>) -> Result<()> {
    for n in numbers {
        TestVolume::create(cluster, &format!("list-{n}"), GIB, Content::Block).await?;
    }
    Ok(())
}

/// Lists all volumes in pages of this size; 0: in one call.
async fn list(cluster: &TestCluster, volumes: usize, page: i32) -> Result<Cost> {
    let meter = Meter::of(cluster.plugin.process.id())?;
    let traffic_before = cluster.nas.counters().await?;
    let before = meter.read()?;
    let (mut found, mut calls) = (0, 0);
    let mut starting_token = String::new();
    loop {
        let request = csi::ListVolumesRequest {
            max_entries: page,
            starting_token,
        };
        let answer = cluster
            .controller()
            .list_volumes(request)
            .await?
            .into_inner();
        found += answer.entries.len();
        calls += 1;
        starting_token = answer.next_token;
        if starting_token.is_empty() {
            break;
        }
    }
    let used = before.until(&meter.read()?);
    let traffic_after = cluster.nas.counters().await?;
    ensure!(
        found == volumes,
        "{found} volumes are listed, expected {volumes}"
    );
    Ok(Cost {
        calls,
        wall_ms: used.wall_ms,
        driver_cpu_ms: used.cpu_ms,
        requests: traffic_after.requests - traffic_before.requests,
        bytes: traffic_after.sent - traffic_before.sent,
    })
}

/// Prints a human-readable table.
pub(super) fn print(found: &[Listed]) {
    println!("\nListVolumes in one call and in pages of {PAGE} (ratios to one call)");
    let rows = found
        .iter()
        .flat_map(|row| [(row, &row.whole), (row, &row.pages)]);
    let rows = rows.map(|(row, cost)| {
        let whole = &row.whole;
        [
            row.volumes.to_string(),
            cost.calls.to_string(),
            format!("{:.0}", cost.wall_ms),
            format!("{:.1}", cost.driver_cpu_ms),
            ratio(cost.driver_cpu_ms, whole.driver_cpu_ms),
            cost.requests.to_string(),
            (cost.bytes / 1024).to_string(),
            ratio(number(cost.bytes), number(whole.bytes)),
        ]
    });
    let header = [
        "volumes",
        "calls",
        "wall ms",
        "driver CPU ms",
        "",
        "requests",
        "KiB from the NAS",
        "",
    ];
    println!("{}", table(header, rows));
}

fn number(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes / 1024).unwrap_or(u32::MAX))
}
