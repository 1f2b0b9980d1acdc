//! Resident memory of the driver: after its start, after some volume life cycles, and idle.

use std::time::Duration;

use anyhow::Result;
use e2e::harness::call_costs::CallCosts;
use e2e::harness::test_cluster::{Plan, TestCluster};
use serde::Serialize;

use super::meter::Meter;
use super::{mib, progress, table};
use crate::costs::life_cycle;

/// Number of life cycles before the first and the second sample.
const LIFE_CYCLES: [usize; 2] = [12, 30];
const SETTLED: Duration = Duration::from_secs(2);

/// Memory of the driver at one time.
#[derive(Serialize)]
pub(crate) struct Moment {
    when: String,
    resident_kib: u64,
    threads: usize,
    descriptors: usize,
}

/// Measures it; `idle`: seconds of idle time at the end.
///
/// # Errors
/// Something does not start, or a call fails.
pub(super) async fn measure(node: bool, idle: u64) -> Result<Vec<Moment>> {
    let mut plan = if node {
        Plan::with_node()
    } else {
        Plan::controller()
    };
    "info".clone_into(&mut plan.log_level);
    let cluster = plan.start().await?;
    let mut call_costs = CallCosts::default();
    tokio::time::sleep(SETTLED).await;
    let mut found = vec![moment(&cluster, "after the start")?];
    let mut done = 0;
    for life_cycles in LIFE_CYCLES {
        while done < life_cycles {
            life_cycle(&cluster, &mut call_costs, &format!("memory-{done}"), node).await?;
            done += 1;
        }
        found.push(moment(&cluster, &format!("after {life_cycles} lives"))?);
    }
    progress(&format!("memory: {idle} s idle"));
    tokio::time::sleep(Duration::from_secs(idle)).await;
    found.push(moment(&cluster, &format!("{idle} s later"))?);
    Ok(found)
}

fn moment(cluster: &TestCluster, when: &str) -> Result<Moment> {
    let process = &cluster.plugin.process;
    let (threads, descriptors) = Meter::of(process.id())?.now()?;
    Ok(Moment {
        when: when.to_owned(),
        resident_kib: process.resident_kib()?,
        threads,
        descriptors,
    })
}

/// Prints a human-readable table.
pub(super) fn print(found: &[Moment]) {
    println!("\nThe driver's memory");
    let rows = found.iter().map(|row| {
        [
            row.when.clone(),
            mib(row.resident_kib),
            row.threads.to_string(),
            row.descriptors.to_string(),
        ]
    });
    println!(
        "{}",
        table(["", "resident MiB", "threads", "descriptors"], rows)
    );
}
