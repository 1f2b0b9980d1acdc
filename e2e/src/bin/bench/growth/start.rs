//! The node's startup on a host with increasing numbers of node records.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use e2e::GIB;
use e2e::harness::process::run;
use e2e::harness::test_cluster::{Plan, TestCluster};
use e2e::harness::test_volume::{Content, TestVolume};
use proto::csi::NodeGetInfoRequest;
use serde::Serialize;

use super::meter::Meter;
use super::{progress, ratio, table};

/// Number of starts, of which the median is reported.
const STARTS: usize = 3;

/// One start.
#[derive(Serialize)]
pub(crate) struct Start {
    records: usize,
    sessions: usize,
    /// Milliseconds until `Probe` and `NodeGetInfo` respond, polled every 20 ms.
    first_answer_ms: f64,
    /// CPU of the driver until then, and of child processes that it has waited for.
    cpu_then_ms: f64,
    programs_then_ms: f64,
    /// Milliseconds until it is idle, which includes the startup sweep.
    quiet_ms: f64,
    cpu_ms: f64,
    programs_ms: f64,
    /// Records left at that time: the sweep removes those without a session.
    records_left: usize,
}

/// Measures it with each of these numbers of records, and with the last one again after every other session is gone.
///
/// # Errors
/// Something does not start, or a call fails.
pub(super) async fn measure(sizes: &[usize]) -> Result<Vec<Start>> {
    let mut plan = Plan::with_node();
    "info".clone_into(&mut plan.log_level);
    plan.nas.more = vec!["--model", "unlimited"];
    let mut cluster = plan.start().await?;
    let mut staged = 0;
    let mut found = Vec::new();
    for &records in sizes {
        while staged < records {
            let name = format!("start-{staged}");
            // Raw block, because only records and sessions matter here.
            let mut volume = TestVolume::create(&cluster, &name, GIB, Content::Block).await?;
            volume.publish(&cluster).await?;
            volume.stage(&cluster).await?;
            staged += 1;
            if staged % 50 == 0 {
                progress(&format!("start: {staged} records"));
            }
        }
        let mut starts = Vec::new();
        for _ in 0..STARTS {
            starts.push(start(&mut cluster).await?);
        }
        starts.sort_by(|a, b| a.first_answer_ms.total_cmp(&b.first_answer_ms));
        found.push(starts.swap_remove(STARTS / 2));
    }
    cluster.plugin.process.kill();
    log_out_half(&cluster)?;
    found.push(start(&mut cluster).await?);
    progress("start: measured");
    Ok(found)
}

async fn start(cluster: &mut TestCluster) -> Result<Start> {
    cluster.plugin.process.kill();
    let count = |cluster: &TestCluster, folder| cluster.initiator()?.count(folder);
    let (records, sessions) = (
        count(cluster, "etc/iscsi/nodes")?,
        count(cluster, "sys/class/iscsi_session")?,
    );
    let started = Instant::now();
    cluster.restart_driver_until_probe().await?;
    cluster
        .plugin
        .node()
        .node_get_info(NodeGetInfoRequest {})
        .await?;
    let first_answer_ms = millis(started.elapsed());
    let meter = Meter::of(cluster.plugin.process.id())?;
    let then = meter.read()?;
    let quiet_ms = millis(meter.quiet_since(started).await?);
    let end = meter.read()?;
    Ok(Start {
        records,
        sessions,
        first_answer_ms,
        cpu_then_ms: then.cpu_ms(),
        programs_then_ms: then.programs_ms(),
        quiet_ms,
        cpu_ms: end.cpu_ms(),
        programs_ms: end.programs_ms(),
        records_left: count(cluster, "etc/iscsi/nodes")?,
    })
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Logs out every other session, leaving its record.
fn log_out_half(cluster: &TestCluster) -> Result<()> {
    let initiator = cluster.initiator()?;
    let iscsiadm = initiator.bin().join("iscsiadm");
    let status = initiator.status()?;
    let sessions = status["sessions"].as_array().context("sessions")?;
    for session in sessions.iter().step_by(2) {
        let sid = session["sid"].to_string();
        run(
            &iscsiadm.to_string_lossy(),
            ["--mode", "session", "--sid", &sid, "--logout"],
        )?;
    }
    Ok(())
}

/// Prints a human-readable table.
pub(super) fn print(found: &[Start]) {
    println!("\nThe node's start (ratios to the first row)");
    let rows = found.iter().map(|row| {
        [
            row.records.to_string(),
            row.sessions.to_string(),
            format!("{:.0}", row.first_answer_ms),
            ratio(row.first_answer_ms, found[0].first_answer_ms),
            format!("{:.0}", row.cpu_then_ms),
            format!("{:.0}", row.programs_then_ms),
            format!("{:.0}", row.quiet_ms),
            format!("{:.0}", row.cpu_ms),
            ratio(row.cpu_ms, found[0].cpu_ms),
            format!("{:.0}", row.programs_ms),
            row.records_left.to_string(),
        ]
    });
    let header = [
        "records",
        "sessions",
        "first answer ms",
        "",
        "driver CPU ms",
        "programs' CPU ms",
        "at rest ms",
        "driver CPU ms",
        "",
        "programs' CPU ms",
        "records left",
    ];
    println!("{}", table(header, rows));
}
