//! Prometheus metrics of this process: counts and durations of CSI calls, NAS requests and host commands, by outcome.
//!
//! Label values are names from the source, codes, exit statuses and the configured NAS names, never messages, volumes or secrets:
//! the number of time series is bounded. [`serve`] exports them.

pub mod serve;

use parking_lot::Mutex;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use prometheus_client::encoding::{EncodeLabelSet, prometheus_text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// Upper bounds of the histogram buckets, in seconds: from a sysfs read to the timeout of a sidecar.
const SECONDS: [f64; 12] = [
    0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0,
];

static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);

/// The metrics of this process.
pub fn of_process() -> &'static Metrics {
    &METRICS
}

/// A histogram of durations per label set.
type Durations<L> = Family<L, Histogram, fn() -> Histogram>;

/// All metrics, with their registry.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    rpc: Durations<RpcLabels>,
    dsm: Durations<DsmLabels>,
    queue: Durations<NasLabels>,
    answers: Family<NasLabels, Gauge>,
    refused: Family<RefusedLabels, Gauge>,
    /// The code for each NAS that `refused` currently shows.
    codes: Mutex<BTreeMap<String, u32>>,
    host: Durations<HostLabels>,
    in_flight: Gauge,
    late: Family<CodeLabels, Counter>,
    missing_programs: Gauge<u64, AtomicU64>,
    missing_paths: Gauge<u64, AtomicU64>,
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
    nas: String,
    api: &'static str,
    method: &'static str,
    code: Cow<'static, str>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CodeLabels {
    code: Cow<'static, str>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct NasLabels {
    nas: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RefusedLabels {
    nas: String,
    code: u32,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct HostLabels {
    program: &'static str,
    exit: Cow<'static, str>,
}

/// The labels of a request to a NAS.
#[derive(Clone, Copy, Debug)]
pub struct DsmCall<'a> {
    /// The NAS's permanent name.
    pub nas: &'a str,
    /// For instance `SYNO.Core.ISCSI.LUN`.
    pub api: &'static str,
    /// For instance `set`.
    pub method: &'static str,
}

impl Metrics {
    fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            rpc: durations(),
            dsm: durations(),
            queue: durations(),
            answers: Family::default(),
            refused: Family::default(),
            codes: Mutex::default(),
            host: durations(),
            in_flight: Gauge::default(),
            late: Family::default(),
            missing_programs: Gauge::default(),
            missing_paths: Gauge::default(),
            open_targets: Gauge::default(),
            luns_without_flush: Counter::default(),
        };
        let registry = &mut metrics.registry;
        registry.register_with_unit(
            "csi_rpc",
            "CSI calls, by gRPC code; Cancelled: the caller gave up, the operation may continue",
            Unit::Seconds,
            metrics.rpc.clone(),
        );
        registry.register_with_unit(
            "dsm_request",
            "Requests to NASes, by DSM's error code, ok, or why there was no DSM reply",
            Unit::Seconds,
            metrics.dsm.clone(),
        );
        registry.register_with_unit(
            "dsm_queue",
            "Waits for the limit of concurrent requests to this NAS; not part of dsm_request_seconds",
            Unit::Seconds,
            metrics.queue.clone(),
        );
        registry.register(
            "dsm_answers",
            "1 if DSM answered the last request to this NAS; an idle driver sends none",
            metrics.answers.clone(),
        );
        registry.register(
            "dsm_login_refused",
            "1 while DSM refuses the login with this code: the log has the remedy and the time of the next attempt",
            metrics.refused.clone(),
        );
        registry.register_with_unit(
            "host_command",
            "Programs run on this machine, by exit status, or why there is none",
            Unit::Seconds,
            metrics.host.clone(),
        );
        registry.register(
            "csi_in_flight",
            "Operations that hold a lock, including those whose caller gave up",
            metrics.in_flight.clone(),
        );
        registry.register(
            "csi_late_operations",
            "Operations that ended after their caller had given up, by gRPC code; see the log",
            metrics.late.clone(),
        );
        registry.register(
            "csi_node_missing_programs",
            "Required programs that are missing on this node, at the last Probe; the log names them",
            metrics.missing_programs.clone(),
        );
        registry.register(
            "csi_node_missing_paths",
            "Missing paths of volumes on this node: lost sessions, and portals of a multipath map without a session; the log names them",
            metrics.missing_paths.clone(),
        );
        registry.register(
            "csi_targets_without_chap",
            "1 if new targets accept any initiator that reaches the portal (chap: off in the configuration)",
            metrics.open_targets.clone(),
        );
        registry.register(
            "csi_luns_without_flush",
            "LUNs created without reliable flushes, because DSM has no such attributes for them",
            metrics.luns_without_flush.clone(),
        );
        metrics
    }

    /// A LUN was created on which flushes do not reach the disks.
    pub fn lun_without_flush(&self) {
        self.luns_without_flush.inc();
    }

    /// Whether new targets require CHAP.
    pub fn set_chap_enabled(&self, on: bool) {
        self.open_targets.set(i64::from(!on));
    }

    /// Starts the timer of a CSI call. A timer that is dropped without [`RpcTimer::ended`] counts as `Cancelled`: the caller gave
    /// up.
    pub fn rpc(&self, rpc: &'static str) -> RpcTimer<'_> {
        RpcTimer {
            metrics: self,
            rpc,
            code: Cow::Borrowed("Cancelled"),
            started: Instant::now(),
        }
    }

    /// A request to a NAS has ended. `code`: DSM's error code, or [`crate::dsm::DsmError::label`]. `answered`: by DSM itself.
    pub fn dsm(&self, call: DsmCall<'_>, code: Cow<'static, str>, answered: bool, took: Duration) {
        let DsmCall { nas, api, method } = call;
        let nas = nas.to_owned();
        let answers = NasLabels { nas: nas.clone() };
        self.answers.get_or_create(&answers).set(answered.into());
        let labels = DsmLabels {
            nas,
            api,
            method,
            code,
        };
        self.dsm.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// How long a request waited until it could be sent to the NAS, or until the wait was given up.
    pub fn dsm_queue(&self, nas: &str, waited: Duration) {
        let labels = NasLabels {
            nas: nas.to_owned(),
        };
        let times = self.queue.get_or_create(&labels);
        times.observe(waited.as_secs_f64());
    }

    /// The outcome of the last login: `None` if it succeeded, else DSM's code.
    pub fn login(&self, nas: &str, refused: Option<u32>) {
        let mut codes = self.codes.lock();
        let labels = |code| RefusedLabels {
            nas: nas.to_owned(),
            code,
        };
        if let Some(code) = codes.remove(nas) {
            self.refused.remove(&labels(code));
        }
        if let Some(code) = refused {
            codes.insert(nas.to_owned(), code);
            self.refused.get_or_create(&labels(code)).set(1);
        }
    }

    /// A program has ended. `exit`: its status, or why there is none.
    pub fn host(&self, program: &'static str, exit: Cow<'static, str>, took: Duration) {
        let labels = HostLabels { program, exit };
        self.host.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// An operation has acquired its lock.
    pub fn operation_started(&self) {
        self.in_flight.inc();
    }

    /// An operation has released its lock.
    pub fn operation_ended(&self) {
        self.in_flight.dec();
    }

    /// An operation has ended after its caller had given up.
    pub fn late_completion(&self, code: tonic::Code) {
        let labels = CodeLabels {
            code: code_label(code),
        };
        self.late.get_or_create(&labels).inc();
    }

    /// The number of late completions with this code label.
    #[cfg(test)]
    pub(crate) fn late_operations(&self, code: &'static str) -> u64 {
        let code = Cow::Borrowed(code);
        self.late.get_or_create(&CodeLabels { code }).get()
    }

    /// Sets the number of missing programs.
    pub fn missing_programs(&self, count: usize) {
        self.missing_programs.set(count as u64);
    }

    /// Sets the number of missing paths.
    pub fn missing_paths(&self, count: usize) {
        self.missing_paths.set(count as u64);
    }

    /// All metrics in the Prometheus text format.
    fn text(&self) -> String {
        let mut text = String::new();
        prometheus_text::encode(&mut text, &self.registry)
            .expect("writing to a String cannot fail");
        text
    }
}

fn durations<L: Clone + std::hash::Hash + Eq>() -> Durations<L> {
    Family::new_with_constructor(|| Histogram::new(SECONDS))
}

/// The timer of one CSI call. It stops when it is dropped.
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
        self.code = code_label(code);
    }
}

/// As in the logs, and in those of the sidecars.
fn code_label(code: tonic::Code) -> Cow<'static, str> {
    if code == tonic::Code::Ok {
        Cow::Borrowed("OK")
    } else {
        Cow::Owned(format!("{code:?}"))
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
        let call = DsmCall {
            nas: "nas1",
            api: "SYNO.Core.ISCSI.LUN",
            method: "set",
        };
        metrics.dsm(call, Cow::Borrowed("117"), true, took);
        let lost = DsmCall {
            nas: "nas2",
            ..call
        };
        metrics.dsm(lost, Cow::Borrowed("lost"), false, took);
        metrics.login("nas1", Some(402));
        metrics.login("nas1", Some(400));
        metrics.login("nas2", Some(407));
        metrics.host("mount", Cow::Borrowed("32"), took);
        metrics.dsm_queue("nas1", took);
        metrics.operation_started();
        metrics.missing_programs(2);
        metrics.missing_paths(3);
        metrics.late_completion(tonic::Code::Ok);
        let text = metrics.text();
        for line in [
            "# TYPE csi_rpc_seconds histogram",
            "csi_rpc_seconds_count{rpc=\"CreateVolume\",code=\"OK\"} 1",
            "csi_rpc_seconds_count{rpc=\"CreateVolume\",code=\"NotFound\"} 1",
            "csi_rpc_seconds_count{rpc=\"NodeStageVolume\",code=\"Cancelled\"} 1",
            "dsm_request_seconds_sum{nas=\"nas1\",api=\"SYNO.Core.ISCSI.LUN\",method=\"set\",code=\"117\"} 0.2",
            "dsm_queue_seconds_sum{nas=\"nas1\"} 0.2",
            "dsm_answers{nas=\"nas1\"} 1",
            "dsm_answers{nas=\"nas2\"} 0",
            "dsm_login_refused{nas=\"nas1\",code=\"400\"} 1",
            "dsm_login_refused{nas=\"nas2\",code=\"407\"} 1",
            "host_command_seconds_bucket{program=\"mount\",exit=\"32\",le=\"0.1\"} 0",
            "host_command_seconds_bucket{program=\"mount\",exit=\"32\",le=\"0.3\"} 1",
            "csi_in_flight 1",
            "csi_node_missing_programs 2",
            "csi_node_missing_paths 3",
            "csi_late_operations_total{code=\"OK\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        metrics.operation_ended();
        metrics.login("nas1", None);
        let text = metrics.text();
        assert!(text.contains("csi_in_flight 0"));
        assert!(!text.contains("nas=\"nas1\",code=\"40"), "{text}");
    }
}
