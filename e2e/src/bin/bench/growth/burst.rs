//! Many concurrent `CreateVolume` calls, then as many `DeleteVolume`, on a slow NAS. Callers retry like external-provisioner:
//! the timeout of each call is 120 s, and a failed call is repeated with exponential backoff from 1 s.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use e2e::GIB;
use e2e::harness::plugin::Csi as _;
use e2e::harness::test_cluster::{Plan, TestCluster};
use e2e::harness::test_volume::{Content, create_request};
use futures::future::join_all;
use proto::csi;
use serde::Serialize;
use tonic::{Code, Request, Status};

use super::meter::{Meter, Watch};
use super::{progress, table};
use crate::costs::{quantile, sorted};

const DEADLINE: Duration = Duration::from_secs(120);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// A caller of the benchmark gives up after this time.
const GIVE_UP_AFTER: Duration = Duration::from_secs(900);

/// The results for one number of concurrent calls.
#[derive(Serialize)]
pub(crate) struct Burst {
    rpc: &'static str,
    calls: usize,
    /// How many calls succeeded, retries included.
    ok: usize,
    /// Seconds until the last call ended.
    all_ended_s: f64,
    p50_s: f64,
    /// How often each gRPC code was returned.
    codes: BTreeMap<String, usize>,
    /// The most HTTP requests that the NAS processed concurrently.
    most_in_flight: u64,
    /// The most open file descriptors of the driver.
    most_descriptors: usize,
    most_threads: usize,
}

/// The outcome of one call with its retries.
struct Outcome<T> {
    answer: Option<T>,
    after: Duration,
    codes: Vec<Code>,
}

/// Measures each of these numbers of concurrent callers.
///
/// # Errors
/// Something does not start.
pub(super) async fn measure(sizes: &[usize]) -> Result<Vec<Burst>> {
    let mut found = Vec::new();
    for &calls in sizes {
        progress(&format!(
            "burst: {calls} CreateVolume at once, a second each"
        ));
        let mut plan = Plan::controller().slow();
        plan.nas.more = vec!["--model", "unlimited"];
        "info".clone_into(&mut plan.log_level);
        // A fresh cluster, so that an earlier burst does not affect this one.
        let cluster = plan.start().await?;
        let (burst, ids) = at_once(&cluster, "CreateVolume", calls, async |n| {
            let name = format!("burst-{n}");
            let request = create_request(&name, GIB, Content::Fs("ext4"));
            let answer = cluster
                .controller()
                .create_volume(with_deadline(request))
                .await?;
            Ok(answer.into_inner().volume.unwrap_or_default().volume_id)
        })
        .await?;
        found.push(burst);
        progress(&format!("burst: {} DeleteVolume at once", ids.len()));
        let (burst, _) = at_once(&cluster, "DeleteVolume", ids.len(), async |n| {
            let request = csi::DeleteVolumeRequest {
                volume_id: ids[n].clone(),
                ..csi::DeleteVolumeRequest::default()
            };
            cluster
                .controller()
                .delete_volume(with_deadline(request))
                .await
                .map(drop)
        })
        .await?;
        found.push(burst);
    }
    Ok(found)
}

fn with_deadline<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

async fn at_once<T>(
    cluster: &TestCluster,
    rpc: &'static str,
    calls: usize,
    call: impl AsyncFn(usize) -> Result<T, Status>,
) -> Result<(Burst, Vec<T>)> {
    let watch = Watch::begin(Meter::of(cluster.plugin.process.id())?);
    let started = Instant::now();
    let ended = join_all((0..calls).map(|n| with_retries(&call, n))).await;
    let all_ended_s = started.elapsed().as_secs_f64();
    let (most_threads, most_descriptors) = watch.end().await?;
    let mut codes = BTreeMap::new();
    for code in ended.iter().flat_map(|ended| &ended.codes) {
        *codes.entry(format!("{code:?}")).or_default() += 1;
    }
    let waits = sorted(ended.iter().map(|ended| ended.after));
    let answers: Vec<T> = ended.into_iter().filter_map(|ended| ended.answer).collect();
    let counters = cluster.nas.get_control("counters").await?;
    let most_in_flight = counters["most_in_flight"].as_u64();
    let burst = Burst {
        rpc,
        calls,
        ok: answers.len(),
        all_ended_s,
        p50_s: quantile(&waits, 50) / 1e3,
        codes,
        most_in_flight: most_in_flight.context("most_in_flight")?,
        most_descriptors,
        most_threads,
    };
    Ok((burst, answers))
}

/// One caller. Errors that retrying cannot fix are not retried.
async fn with_retries<T>(call: impl AsyncFn(usize) -> Result<T, Status>, n: usize) -> Outcome<T> {
    let started = Instant::now();
    let (mut codes, mut pause) = (Vec::new(), Duration::from_secs(1));
    let answer = loop {
        let answer = tokio::time::timeout(DEADLINE, call(n)).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("the caller's")));
        let code = answer.as_ref().map_or_else(Status::code, |_| Code::Ok);
        codes.push(code);
        let again = matches!(
            code,
            Code::Aborted | Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled
        );
        if !again || started.elapsed() > GIVE_UP_AFTER {
            break answer.ok();
        }
        tokio::time::sleep(pause).await;
        pause = LONGEST_PAUSE.min(pause * 2);
    };
    Outcome {
        answer,
        after: started.elapsed(),
        codes,
    }
}

/// Prints a human-readable table.
pub(super) fn print(found: &[Burst]) {
    println!("\nCalls at once on a NAS like a DS918+, each repeated as external-provisioner does");
    let rows = found.iter().map(|row| {
        let codes = row
            .codes
            .iter()
            .map(|(code, count)| format!("{code} {count}"));
        [
            row.rpc.to_owned(),
            row.calls.to_string(),
            row.ok.to_string(),
            format!("{:.1}", row.all_ended_s),
            format!("{:.1}", row.p50_s),
            row.most_in_flight.to_string(),
            row.most_descriptors.to_string(),
            row.most_threads.to_string(),
            codes.collect::<Vec<_>>().join(", "),
        ]
    });
    let header = [
        "CSI call",
        "at once",
        "OK",
        "all ended s",
        "p50 s",
        "in flight at the NAS",
        "descriptors",
        "threads",
        "answers",
    ];
    println!("{}", table(header, rows));
}
