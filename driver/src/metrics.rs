//! Counts and times of this process, like its logs: how calls of the CO, requests to NASes and programs of the host ended.
//!
//! Labels are names from the source, codes and exit statuses: nothing of a message, a volume or a secret, so that their number
//! is bounded. [`serve`] shows them.

pub mod serve;

use std::borrow::Cow;
use std::sync::LazyLock;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use prometheus_client::encoding::{EncodeLabelSet, prometheus_text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Upper ends of the histograms' buckets, seconds: from a look at sysfs to the patience of a sidecar.
const SECONDS: [f64; 12] = [
    0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0,
];

static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

/// The metrics of this process.
pub fn of_process() -> &'static Metrics {
    &METRICS
}

/// Times of one kind of effects.
type Times<L> = Family<L, Histogram, fn() -> Histogram>;

/// Everything that is counted.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    rpc: Times<RpcLabels>,
    dsm: Times<DsmLabels>,
    host: Times<HostLabels>,
    in_flight: Gauge,
    missing_programs: Gauge<u64, AtomicU64>,
    luns_without_flush: Counter,
    open_targets: Gauge,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RpcLabels {
    rpc: &'static str,
    code: Cow<'static, str>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct DsmLabels {
    api: &'static str,
    method: &'static str,
    code: Cow<'static, str>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct HostLabels {
    program: &'static str,
    exit: Cow<'static, str>,
}

impl Metrics {
    fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            rpc: times(),
            dsm: times(),
            host: times(),
            in_flight: Gauge::default(),
            missing_programs: Gauge::default(),
            open_targets: Gauge::default(),
            luns_without_flush: Counter::default(),
        };
        let registry = &mut metrics.registry;
        registry.register_with_unit(
            "csi_rpc",
            "CSI calls, by gRPC code; Cancelled: the caller gave up, the work may go on",
            Unit::Seconds,
            metrics.rpc.clone(),
        );
        registry.register_with_unit(
            "dsm_request",
            "Requests to NASes, by DSM's code, ok, or what became of the answer",
            Unit::Seconds,
            metrics.dsm.clone(),
        );
        registry.register_with_unit(
            "host_command",
            "Programs run on this machine, by exit status or why there is none",
            Unit::Seconds,
            metrics.host.clone(),
        );
        registry.register(
            "csi_in_flight",
            "Operations that hold a lock, those whose caller gave up among them",
            metrics.in_flight.clone(),
        );
        registry.register(
            "csi_node_missing_programs",
            "Programs that this node needs and lacks, at the last Probe; the log names them",
            metrics.missing_programs.clone(),
        );
        registry.register(
            "csi_targets_without_chap",
            "1 when new targets let in whoever reaches the portal (chap: off in the configuration)",
            metrics.open_targets.clone(),
        );
        registry.register(
            "csi_luns_without_flush",
            "LUNs made on which flushes do not count, because DSM has no such attributes for them",
            metrics.luns_without_flush.clone(),
        );
        metrics
    }

    /// A LUN was made on which flushes do not count.
    pub fn lun_without_flush(&self) {
        self.luns_without_flush.inc();
    }

    /// Whether a login to a new target takes a proof.
    pub fn chap_is(&self, on: bool) {
        self.open_targets.set(i64::from(!on));
    }

    /// Starts the clock of a CSI call. Unless it is told how the call ended, it says that the caller gave up.
    pub fn rpc(&self, rpc: &'static str) -> RpcTimer<'_> {
        RpcTimer {
            metrics: self,
            rpc,
            code: Cow::Borrowed("Cancelled"),
            started: Instant::now(),
        }
    }

    /// A request to a NAS has ended. `code`: DSM's, or a word.
    pub fn dsm(
        &self,
        api: &'static str,
        method: &'static str,
        code: Cow<'static, str>,
        took: Duration,
    ) {
        let labels = DsmLabels { api, method, code };
        self.dsm.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// A program has ended. `exit`: its status, or a word.
    pub fn host(&self, program: &'static str, exit: Cow<'static, str>, took: Duration) {
        let labels = HostLabels { program, exit };
        self.host.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// An operation has taken its lock.
    pub fn begun(&self) {
        self.in_flight.inc();
    }

    /// An operation has let its lock go.
    pub fn ended(&self) {
        self.in_flight.dec();
    }

    /// So many programs are missing.
    pub fn missing_programs(&self, count: usize) {
        self.missing_programs.set(count as u64);
    }

    /// All of it in the text format of Prometheus.
    fn text(&self) -> String {
        let mut text = String::new();
        prometheus_text::encode(&mut text, &self.registry)
            .expect("a String takes all that is written");
        text
    }
}

fn times<L: Clone + std::hash::Hash + Eq>() -> Times<L> {
    Family::new_with_constructor(|| Histogram::new(SECONDS))
}

/// The clock of one CSI call: it stops when it is dropped.
#[derive(Debug)]
pub struct RpcTimer<'a> {
    metrics: &'a Metrics,
    rpc: &'static str,
    code: Cow<'static, str>,
    started: Instant,
}

impl RpcTimer<'_> {
    /// The call ended with this code.
    pub fn ended(mut self, code: tonic::Code) {
        self.code = if code == tonic::Code::Ok {
            // As the logs say it, and the sidecars.
            Cow::Borrowed("OK")
        } else {
            Cow::Owned(format!("{code:?}"))
        };
    }
}

impl Drop for RpcTimer<'_> {
    fn drop(&mut self) {
        let labels = RpcLabels {
            rpc: self.rpc,
            code: std::mem::take(&mut self.code),
        };
        let took = self.started.elapsed().as_secs_f64();
        self.metrics.rpc.get_or_create(&labels).observe(took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_units_and_labels() {
        let metrics = Metrics::new();
        metrics.rpc("CreateVolume").ended(tonic::Code::Ok);
        metrics.rpc("CreateVolume").ended(tonic::Code::NotFound);
        drop(metrics.rpc("NodeStageVolume"));
        let took = Duration::from_millis(200);
        metrics.dsm("SYNO.Core.ISCSI.LUN", "set", Cow::Borrowed("117"), took);
        metrics.host("mount", Cow::Borrowed("32"), took);
        metrics.begun();
        metrics.missing_programs(2);
        let text = metrics.text();
        for line in [
            "# TYPE csi_rpc_seconds histogram",
            "csi_rpc_seconds_count{rpc=\"CreateVolume\",code=\"OK\"} 1",
            "csi_rpc_seconds_count{rpc=\"CreateVolume\",code=\"NotFound\"} 1",
            "csi_rpc_seconds_count{rpc=\"NodeStageVolume\",code=\"Cancelled\"} 1",
            "dsm_request_seconds_sum{api=\"SYNO.Core.ISCSI.LUN\",method=\"set\",code=\"117\"} 0.2",
            "host_command_seconds_bucket{program=\"mount\",exit=\"32\",le=\"0.1\"} 0",
            "host_command_seconds_bucket{program=\"mount\",exit=\"32\",le=\"0.3\"} 1",
            "csi_in_flight 1",
            "csi_node_missing_programs 2",
        ] {
            assert!(text.lines().any(|there| there == line), "{line}\n{text}");
        }
        metrics.ended();
        assert!(metrics.text().contains("csi_in_flight 0"));
    }
}
