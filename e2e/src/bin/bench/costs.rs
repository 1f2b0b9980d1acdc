//! What each CSI call costs the NAS and the caller when called alone, and what resources driver and simulator need.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use comfy_table::{CellAlignment, Table, presets};
use e2e::GIB;
use e2e::harness::call_costs::{CallCosts, Row};
use e2e::harness::nas::Nas;
use e2e::harness::process::run;
use e2e::harness::test_cluster::{Node, Plan, TestCluster};
use e2e::harness::test_volume::{Content, TestVolume};
use e2e::model::stats::{STATS_FILE, Stats};
use serde::Serialize;

use crate::capacity;

/// Number of foreign LUNs on the NAS.
const OTHERS: usize = 100;
const FAST_ROUNDS: usize = 30;
const SLOW_ROUNDS: usize = 3;
const MEASURED: Duration = Duration::from_secs(3);
/// Number of sequences for the model run.
const MODELLED: &str = "1000";

/// The results.
#[derive(Serialize)]
pub(crate) struct Costs {
    /// With a NAS that responds instantly: the driver's own cost.
    instant: Vec<Line>,
    /// With a NAS that responds as slowly as a DS918+: what a user waits for.
    ds918: Vec<Line>,
    /// Resident memory after all rounds, KiB.
    resident_kib: BTreeMap<&'static str, u64>,
    /// From `ControllerExpandVolume` to a grown file system, milliseconds, median.
    grown_after_ms: BTreeMap<&'static str, f64>,
    /// Requests per second that dsm-sim serves to four clients.
    dsm_sim_requests_per_second: f64,
    /// dsm-sim with increasing numbers of LUNs.
    dsm_sim_capacity: capacity::Capacity,
    /// Create, expand twice, delete: such life cycles per second against the instant NAS.
    expand_sequences_per_second: f64,
    /// The model in memory: random sequences of calls and faults, with a full check after each step.
    model: Stats,
    /// Whether the node half was measured (needs root).
    node: bool,
}

#[derive(Serialize)]
struct Line {
    rpc: &'static str,
    /// HTTP requests to the NAS per call, without logins and polls.
    requests: usize,
    /// The most polls in one call, while a LUN was locked or being deleted.
    polls: usize,
    calls: String,
    p50_ms: f64,
    p99_ms: f64,
}

/// Runs all measurements; `node`: the node half, too, which needs root.
///
/// # Errors
/// Something does not start, or a call fails.
pub(crate) async fn measure(node: bool) -> Result<Costs> {
    let plan = || {
        if node {
            Plan::with_node()
        } else {
            Plan::controller()
        }
    };
    let (cluster, fast) = rounds(plan(), FAST_ROUNDS).await?;
    let speed = requests_per_second(&cluster.nas).await?;
    let sequences = sequences_per_second(&cluster).await?;
    let resident_kib = BTreeMap::from([
        ("synology-csi", cluster.plugin.process.resident_kib()?),
        ("dsm-sim", cluster.nas.resident_kib()?),
    ]);
    drop(cluster);
    let (_, slow) = rounds(plan().slow(), SLOW_ROUNDS).await?;
    let folder = tempfile::tempdir()?;
    let dsm_sim_capacity = capacity::measure(folder.path()).await?;
    Ok(Costs {
        instant: lines(&fast),
        ds918: lines(&slow),
        resident_kib,
        grown_after_ms: BTreeMap::from([
            ("instant", grown_after(&fast)),
            ("like a DS918+", grown_after(&slow)),
        ]),
        dsm_sim_requests_per_second: speed,
        dsm_sim_capacity,
        expand_sequences_per_second: sequences,
        model: model(folder.path())?,
        node,
    })
}

/// Life cycles of volumes, one after the other, on a NAS with other LUNs.
async fn rounds(plan: Plan, rounds: usize) -> Result<(TestCluster, Vec<Row>)> {
    let node = plan.node != Node::None;
    let cluster = plan.start().await?;
    cluster.nas.seed(OTHERS).await?;
    let mut call_costs = CallCosts::default();
    for round in 0..rounds {
        life_cycle(&cluster, &mut call_costs, &format!("bench-{round}"), node).await?;
    }
    // The first life cycle logs in and warms up.
    Ok((
        cluster,
        call_costs.rows.split_off(call_costs.rows.len() / rounds),
    ))
}

/// A volume's life cycle from create to delete, with a file system if there is a node.
///
/// # Errors
/// A call fails.
pub(crate) async fn life_cycle(
    cluster: &TestCluster,
    call_costs: &mut CallCosts,
    name: &str,
    node: bool,
) -> Result<()> {
    let nas = &cluster.nas;
    let mut volume = call_costs
        .call(
            nas,
            "CreateVolume",
            TestVolume::create(cluster, name, GIB, Content::Fs("xfs")),
        )
        .await?;
    if node {
        call_costs
            .call(nas, "ControllerPublishVolume", volume.publish(cluster))
            .await?;
        call_costs
            .call(nas, "NodeStageVolume", volume.stage(cluster))
            .await?;
        call_costs
            .call(nas, "NodePublishVolume", volume.node_publish(cluster))
            .await?;
        call_costs
            .call(nas, "NodeGetVolumeStats", volume.stats(cluster))
            .await?;
    } else {
        "worker-1:01234567".clone_into(&mut volume.node_id);
        volume.publish_context = call_costs
            .call(
                nas,
                "ControllerPublishVolume",
                volume.publish_to(cluster, &volume.node_id),
            )
            .await?;
    }
    call_costs
        .call(
            nas,
            "ControllerExpandVolume",
            volume.expand_lun(cluster, 2 * GIB),
        )
        .await?;
    if node {
        call_costs
            .call(
                nas,
                "NodeExpandVolume",
                volume.expand_on_node(cluster, 2 * GIB),
            )
            .await?;
    }
    call_costs
        .call(
            nas,
            "ControllerExpandVolume (done)",
            volume.expand_lun(cluster, 2 * GIB),
        )
        .await?;
    if node {
        call_costs
            .call(nas, "NodeUnpublishVolume", volume.node_unpublish(cluster))
            .await?;
        call_costs
            .call(nas, "NodeUnstageVolume", volume.unstage(cluster))
            .await?;
    }
    call_costs
        .call(nas, "ControllerUnpublishVolume", volume.unpublish(cluster))
        .await?;
    call_costs
        .call(nas, "DeleteVolume", volume.delete(cluster))
        .await?;
    Ok(())
}

fn lines(rows: &[Row]) -> Vec<Line> {
    let mut names: Vec<&'static str> = Vec::new();
    for row in rows {
        if !names.contains(&row.rpc) {
            names.push(row.rpc);
        }
    }
    names
        .into_iter()
        .filter_map(|name| {
            line(
                name,
                &rows
                    .iter()
                    .filter(|row| row.rpc == name)
                    .collect::<Vec<_>>(),
            )
        })
        .collect()
}

fn line(rpc: &'static str, rows: &[&Row]) -> Option<Line> {
    let waits = sorted(rows.iter().map(|row| row.elapsed));
    // The most expensive round is reported for the call.
    let worst = rows.iter().max_by_key(|row| row.requests)?;
    Some(Line {
        rpc,
        requests: worst.requests,
        polls: rows.iter().map(|row| row.polls).max()?,
        calls: worst.call_sequence(),
        p50_ms: quantile(&waits, 50),
        p99_ms: quantile(&waits, 99),
    })
}

/// Sorted ascending.
pub(crate) fn sorted(waits: impl Iterator<Item = Duration>) -> Vec<Duration> {
    let mut waits: Vec<Duration> = waits.collect();
    waits.sort_unstable();
    waits
}

/// The quantile of a sorted list, in milliseconds.
pub(crate) fn quantile(waits: &[Duration], percent: usize) -> f64 {
    let index = (waits.len() * percent).div_ceil(100).saturating_sub(1);
    waits
        .get(index)
        .map_or(f64::NAN, |wait| wait.as_secs_f64() * 1000.0)
}

/// Median of controller plus node expansion.
fn grown_after(rows: &[Row]) -> f64 {
    let of = |rpc: &str| {
        rows.iter()
            .filter(|row| row.rpc == rpc)
            .map(|row| row.elapsed)
            .collect::<Vec<_>>()
    };
    let (on_nas, on_node) = (of("ControllerExpandVolume"), of("NodeExpandVolume"));
    quantile(
        &sorted(on_nas.iter().zip(&on_node).map(|(a, b)| *a + *b)),
        50,
    )
}

async fn requests_per_second(nas: &Nas) -> Result<f64> {
    let query = format!(
        "{}/webapi/query.cgi?api=SYNO.API.Info&version=1&method=query&query=SYNO.API.Auth",
        nas.api
    );
    let client = reqwest::Client::builder().no_proxy().build()?;
    let started = Instant::now();
    let clients = (0..4).map(|_| async {
        let mut served = 0_u32;
        while started.elapsed() < MEASURED {
            client
                .get(&query)
                .send()
                .await?
                .error_for_status()?
                .bytes()
                .await?;
            served += 1;
        }
        anyhow::Ok(served)
    });
    let served: u32 = futures::future::try_join_all(clients).await?.iter().sum();
    Ok(f64::from(served) / started.elapsed().as_secs_f64())
}

async fn sequences_per_second(cluster: &TestCluster) -> Result<f64> {
    let started = Instant::now();
    let mut life_cycles = 0_u32;
    while started.elapsed() < MEASURED {
        let volume = TestVolume::create(
            cluster,
            &format!("sequence-{life_cycles}"),
            GIB,
            Content::Block,
        )
        .await?;
        for size in [2 * GIB, 3 * GIB] {
            volume.expand_lun(cluster, size).await?;
        }
        volume.delete(cluster).await?;
        life_cycles += 1;
    }
    Ok(f64::from(life_cycles) / started.elapsed().as_secs_f64())
}

/// Runs the `model` binary next to this one.
fn model(folder: &Path) -> Result<Stats> {
    let program = std::env::current_exe()?.with_file_name("model");
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let nothing_kept = folder.join("none");
    let arguments = [
        "--cases",
        MODELLED,
        "--report",
        &text(folder),
        "--regressions",
        &text(&nothing_kept),
    ];
    run(&text(&program), arguments)?;
    Ok(serde_json::from_slice(&std::fs::read(
        folder.join(STATS_FILE),
    )?)?)
}

/// Prints human-readable tables.
pub(crate) fn print(report: &Costs) {
    println!(
        "\nEach CSI call on a NAS with {OTHERS} other LUNs (calls joined by + share one request)"
    );
    println!("{}", costs(report));
    println!("\ndsm-sim with many LUNs (sixteen clients on the same processors)");
    println!("{}", capacity::table(&report.dsm_sim_capacity));
    println!("{}", report.dsm_sim_capacity.memory());
    println!(
        "\nresident memory   {}",
        list(&report.resident_kib, |kib| format!(
            "{} MiB",
            kib.div_ceil(1024)
        ))
    );
    println!(
        "grown file system {}",
        list(&report.grown_after_ms, |ms| format!("{ms:.1} ms"))
    );
    println!(
        "dsm-sim           {:.0} requests/s",
        report.dsm_sim_requests_per_second
    );
    println!(
        "lives             {:.1} create + 2 expand + delete per second",
        report.expand_sequences_per_second
    );
    println!("model             {}", report.model);
}

fn costs(report: &Costs) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "CSI call",
        "requests",
        "polls",
        "p50 ms",
        "p99 ms",
        "like a DS918+: polls",
        "p50 ms",
        "DSM calls",
    ]);
    for line in &report.instant {
        let slow = report.ds918.iter().find(|slow| slow.rpc == line.rpc);
        table.add_row([
            line.rpc.to_owned(),
            line.requests.to_string(),
            line.polls.to_string(),
            format!("{:.1}", line.p50_ms),
            format!("{:.1}", line.p99_ms),
            slow.map_or_else(String::new, |slow| slow.polls.to_string()),
            slow.map_or_else(String::new, |slow| format!("{:.0}", slow.p50_ms)),
            line.calls.clone(),
        ]);
    }
    for column in 1..7 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn list<T>(values: &BTreeMap<&'static str, T>, show: impl Fn(&T) -> String) -> String {
    values
        .iter()
        .map(|(name, value)| format!("{name} {}", show(value)))
        .collect::<Vec<_>>()
        .join(", ")
}
