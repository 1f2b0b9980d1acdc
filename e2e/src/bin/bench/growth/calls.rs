//! Node calls on a node with increasing numbers of volumes. Each round takes a new volume through them; the volumes that are
//! already staged stay idle.

use std::fs::File;
use std::io::Read as _;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use anyhow::{Context as _, Result};
use e2e::GIB;
use e2e::harness::test_cluster::{Plan, TestCluster};
use e2e::harness::test_volume::{Content, TestVolume};
use futures::future::try_join_all;
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;
use tonic::Status;

use super::meter::{Meter, Used, Watch};
use super::{mib, progress, ratio, table};

/// `NodeGetVolumeStats` is so short that each round makes this many calls.
const STATS: u32 = 10;
/// Maximum number of concurrent calls.
const CONCURRENCY: usize = 20;
const CONTENT: Content = Content::Fs("xfs");

/// The results.
#[derive(Serialize)]
pub(crate) struct Measured {
    tables: Vec<Table>,
    calls: Vec<Call>,
    at_once: Vec<AtOnce>,
}

/// One CSI call with this many volumes on the node, including its own. Times are medians; child processes are a mean.
#[derive(Serialize)]
struct Call {
    rpc: &'static str,
    volumes: usize,
    wall_ms: f64,
    /// CPU of the driver's own threads.
    driver_cpu_ms: f64,
    /// CPU of the child processes: mount, mkfs and iscsiadm, which read the growing tables themselves.
    programs_cpu_ms: f64,
    /// Read and write system calls of the driver's own threads: a lower bound of its CPU.
    reads_and_writes: f64,
    bytes_read: f64,
    programs: f64,
}

/// The kernel's mount table, which grows with every volume: the cost of just reading it.
#[derive(Serialize)]
struct Table {
    volumes: usize,
    bytes: usize,
    cpu_ms: f64,
}

/// Twenty concurrent calls, or as many as there are volumes.
#[derive(Serialize)]
struct AtOnce {
    rpc: &'static str,
    volumes: usize,
    calls: usize,
    wall_ms: f64,
    driver_cpu_ms: f64,
    most_threads: usize,
    most_descriptors: usize,
    /// After the calls.
    resident_kib: u64,
}

/// The driver that is measured.
struct Bench {
    cluster: TestCluster,
    meter: Meter,
    metrics: SocketAddr,
    http: reqwest::Client,
    samples: Vec<(&'static str, Used, f64)>,
}

/// Measures all calls with each of these numbers of volumes.
///
/// # Errors
/// Something does not start, or a call fails.
pub(super) async fn measure(sizes: &[usize], rounds: usize) -> Result<Measured> {
    let mut bench = Bench::start().await?;
    let mut staged: Vec<TestVolume> = Vec::new();
    let mut found = Measured {
        tables: Vec::new(),
        calls: Vec::new(),
        at_once: Vec::new(),
    };
    for &volumes in sizes {
        while staged.len() + 1 < volumes {
            let name = format!("crowd-{}", staged.len());
            let mut volume = TestVolume::create(&bench.cluster, &name, GIB, CONTENT).await?;
            volume.attach(&bench.cluster).await?;
            staged.push(volume);
            if staged.len().is_multiple_of(20) {
                progress(&format!("calls: {} volumes are staged", staged.len()));
            }
        }
        for round in 0..rounds {
            bench.round(&format!("round-{volumes}-{round}")).await?;
        }
        progress(&format!("calls: measured with {volumes} volumes"));
        found.tables.push(Table::read(volumes)?);
        found.calls.extend(summarize(&bench.samples, volumes));
        bench.samples.clear();
        let concurrent = &staged[..staged.len().min(CONCURRENCY)];
        if !concurrent.is_empty() {
            found
                .at_once
                .extend(bench.at_once(concurrent, volumes).await?);
        }
    }
    Ok(found)
}

impl Bench {
    async fn start() -> Result<Self> {
        // The port was free a moment ago; if it is taken again, the driver reports that.
        let metrics = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut plan = Plan::with_node();
        "info".clone_into(&mut plan.log_level);
        plan.driver = vec!["--metrics-address".to_owned(), metrics.to_string()];
        let cluster = plan.start().await?;
        Ok(Self {
            meter: Meter::of(cluster.plugin.process.id())?,
            cluster,
            metrics,
            http: reqwest::Client::builder().no_proxy().build()?,
            samples: Vec::new(),
        })
    }

    /// Attaches a volume and detaches it, measuring each call.
    async fn round(&mut self, name: &str) -> Result<()> {
        let mut volume = TestVolume::create(&self.cluster, name, GIB, CONTENT).await?;
        volume.publish(&self.cluster).await?;
        self.one("NodeStageVolume", async |cluster| {
            volume.stage(cluster).await
        })
        .await?;
        self.one("NodeStageVolume (again)", async |cluster| {
            volume.stage(cluster).await
        })
        .await?;
        self.one("NodePublishVolume", async |cluster| {
            volume.node_publish(cluster).await
        })
        .await?;
        let (used, programs) = self
            .used(async |cluster| {
                for _ in 0..STATS {
                    volume.stats(cluster).await?;
                }
                Ok(())
            })
            .await?;
        let each = f64::from(STATS);
        self.samples
            .push(("NodeGetVolumeStats", used.divided_by(each), programs / each));
        self.one("NodeUnpublishVolume", async |cluster| {
            volume.node_unpublish(cluster).await
        })
        .await?;
        self.one("NodeUnstageVolume", async |cluster| {
            volume.unstage(cluster).await
        })
        .await?;
        volume.unpublish(&self.cluster).await?;
        Ok(volume.delete(&self.cluster).await?)
    }

    async fn one(
        &mut self,
        rpc: &'static str,
        call: impl AsyncFnOnce(&TestCluster) -> Result<(), Status>,
    ) -> Result<()> {
        let (used, programs) = self.used(call).await.context(rpc)?;
        self.samples.push((rpc, used, programs));
        Ok(())
    }

    /// The resources that the driver uses for a call, and how many child processes it starts.
    async fn used(
        &self,
        call: impl AsyncFnOnce(&TestCluster) -> Result<(), Status>,
    ) -> Result<(Used, f64)> {
        let programs = self.programs().await?;
        let before = self.meter.read()?;
        call(&self.cluster).await?;
        let used = before.until(&self.meter.read()?);
        Ok((used, self.programs().await? - programs))
    }

    /// How many child processes the driver has run, from its metrics.
    async fn programs(&self) -> Result<f64> {
        let url = format!("http://{}/metrics", self.metrics);
        let answer = self.http.get(url).send().await?.error_for_status()?;
        let text = answer.text().await?;
        let counts = text
            .lines()
            .filter(|line| line.starts_with("host_command_seconds_count"));
        let number = |line: &str| {
            line.rsplit(' ')
                .next()
                .and_then(|word| word.parse::<f64>().ok())
        };
        Ok(counts.filter_map(number).sum())
    }

    /// Unstages and restages all volumes concurrently.
    async fn at_once(&self, staged: &[TestVolume], volumes: usize) -> Result<Vec<AtOnce>> {
        let cluster = &self.cluster;
        let mut found = vec![
            self.concurrently("NodeGetVolumeStats", staged, volumes, async |volume| {
                volume.stats(cluster).await.map(drop)
            })
            .await?,
        ];
        for volume in staged {
            volume.node_unpublish(cluster).await?;
        }
        let unstage = async |volume: &TestVolume| volume.unstage(cluster).await;
        let stage = async |volume: &TestVolume| volume.stage(cluster).await;
        for rpc in [
            "NodeUnstageVolume",
            "NodeStageVolume (made before)",
            "NodeStageVolume (again)",
        ] {
            found.push(if rpc == "NodeUnstageVolume" {
                self.concurrently(rpc, staged, volumes, unstage).await?
            } else {
                self.concurrently(rpc, staged, volumes, stage).await?
            });
        }
        for volume in staged {
            volume.node_publish(cluster).await?;
        }
        Ok(found)
    }

    async fn concurrently(
        &self,
        rpc: &'static str,
        staged: &[TestVolume],
        volumes: usize,
        call: impl AsyncFn(&TestVolume) -> Result<(), Status>,
    ) -> Result<AtOnce> {
        let watch = Watch::begin(self.meter);
        let before = self.meter.read()?;
        try_join_all(staged.iter().map(|volume| call(volume)))
            .await
            .context(rpc)?;
        let used = before.until(&self.meter.read()?);
        let (most_threads, most_descriptors) = watch.end().await?;
        Ok(AtOnce {
            rpc,
            volumes,
            calls: staged.len(),
            wall_ms: used.wall_ms,
            driver_cpu_ms: used.cpu_ms,
            most_threads,
            most_descriptors,
            resident_kib: self.cluster.plugin.process.resident_kib()?,
        })
    }
}

impl Table {
    fn read(volumes: usize) -> Result<Self> {
        const TIMES: u32 = 200;
        let mut page = vec![0; 64 << 10];
        let mut whole = || -> Result<usize> {
            let mut table = File::open("/proc/self/mountinfo")?;
            let mut bytes = 0;
            loop {
                match table.read(&mut page)? {
                    0 => return Ok(bytes),
                    read => bytes += read,
                }
            }
        };
        let used = || clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map(Duration::from);
        let before = used()?;
        let mut bytes = 0;
        for _ in 0..TIMES {
            bytes = whole()?;
        }
        let all = used()?.saturating_sub(before);
        Ok(Self {
            volumes,
            bytes,
            cpu_ms: all.as_secs_f64() * 1000.0 / f64::from(TIMES),
        })
    }
}

impl Measured {
    /// The part of a call's CPU time that the kernel spends on generating its tables.
    fn table_cpu(&self, call: &Call) -> f64 {
        let table = self.tables.iter().find(|it| it.volumes == call.volumes);
        table.map_or(0.0, |table| {
            let bytes = f64::from(u32::try_from(table.bytes).unwrap_or(u32::MAX));
            (call.bytes_read / bytes).floor() * table.cpu_ms
        })
    }
}

impl Used {
    fn divided_by(self, calls: f64) -> Self {
        Self {
            wall_ms: self.wall_ms / calls,
            cpu_ms: self.cpu_ms / calls,
            programs_ms: self.programs_ms / calls,
            io: self.io / calls,
            bytes: self.bytes / calls,
        }
    }
}

/// A row per call, in the order in which they were made.
fn summarize(samples: &[(&'static str, Used, f64)], volumes: usize) -> Vec<Call> {
    let mut names: Vec<&'static str> = Vec::new();
    for (rpc, ..) in samples {
        if !names.contains(rpc) {
            names.push(rpc);
        }
    }
    let row = |rpc| {
        let own: Vec<_> = samples.iter().filter(|sample| sample.0 == rpc).collect();
        let median = |of: &dyn Fn(&Used) -> f64| {
            let mut all: Vec<f64> = own.iter().map(|sample| of(&sample.1)).collect();
            all.sort_by(f64::total_cmp);
            all[all.len() / 2]
        };
        let count = f64::from(u32::try_from(own.len()).unwrap_or(u32::MAX));
        Call {
            rpc,
            volumes,
            wall_ms: median(&|used| used.wall_ms),
            driver_cpu_ms: median(&|used| used.cpu_ms),
            programs_cpu_ms: own.iter().map(|sample| sample.1.programs_ms).sum::<f64>() / count,
            reads_and_writes: median(&|used| used.io),
            bytes_read: median(&|used| used.bytes),
            programs: own.iter().map(|sample| sample.2).sum::<f64>() / count,
        }
    };
    names.into_iter().map(row).collect()
}

/// Prints human-readable tables.
pub(super) fn print(found: &Measured) {
    println!(
        "\nNode calls with more and more volumes on the node (ratios to the first row of each)"
    );
    let mut calls: Vec<&Call> = found.calls.iter().collect();
    // Keeps the order of the calls.
    let position = |call: &Call| found.calls.iter().position(|other| other.rpc == call.rpc);
    calls.sort_by_key(|call| (position(call), call.volumes));
    let rows = calls.iter().map(|call| {
        let first = found.calls.iter().find(|other| other.rpc == call.rpc);
        let against = |of: &dyn Fn(&Call) -> f64| ratio(of(call), first.map_or(0.0, of));
        let own = |call: &Call| call.driver_cpu_ms - found.table_cpu(call);
        [
            call.rpc.to_owned(),
            call.volumes.to_string(),
            format!("{:.1}", call.wall_ms),
            against(&|call| call.wall_ms),
            format!("{:.2}", call.driver_cpu_ms),
            against(&|call| call.driver_cpu_ms),
            format!("{:.2}", own(call)),
            against(&own),
            format!("{:.1}", call.programs_cpu_ms),
            against(&|call| call.programs_cpu_ms),
            format!("{:.0}", call.reads_and_writes),
            format!("{:.1}", call.bytes_read / 1024.0),
            format!("{:.1}", call.programs),
        ]
    });
    let header = [
        "CSI call",
        "volumes",
        "wall ms",
        "",
        "driver CPU ms",
        "",
        "less the tables",
        "",
        "programs' CPU ms",
        "",
        "reads, writes",
        "KiB read",
        "programs",
    ];
    println!("{}", table(header, rows));
    for it in &found.tables {
        println!(
            "With {} volumes the kernel takes {:.2} ms of CPU to write its mount table ({:.1} KiB) on each read.",
            it.volumes,
            it.cpu_ms,
            f64::from(u32::try_from(it.bytes).unwrap_or(u32::MAX)) / 1024.0
        );
    }
    println!("\nMany calls at once");
    let rows = found.at_once.iter().map(|row| {
        [
            row.rpc.to_owned(),
            row.volumes.to_string(),
            row.calls.to_string(),
            format!("{:.0}", row.wall_ms),
            format!("{:.0}", row.driver_cpu_ms),
            row.most_threads.to_string(),
            row.most_descriptors.to_string(),
            mib(row.resident_kib),
        ]
    });
    let header = [
        "CSI call",
        "volumes",
        "at once",
        "wall ms",
        "driver CPU ms",
        "threads",
        "descriptors",
        "resident MiB",
    ];
    println!("{}", table(header, rows));
}
