//! Counts and times of this process, like its logs: how calls of the CO, requests to NASes and programs of the host ended.
//!
//! Labels are names from the source, codes, exit statuses and the NASes' names in the configuration: nothing of a message, a
//! volume or a secret, so that their number is bounded. [`serve`] shows them.

pub mod serve;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{LazyLock, Mutex, PoisonError};
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
    queue: Times<NasLabels>,
    answers: Family<NasLabels, Gauge>,
    refused: Family<RefusedLabels, Gauge>,
    /// The codes that `refused` shows.
    codes: Mutex<BTreeMap<String, u32>>,
    host: Times<HostLabels>,
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

/// A request to a NAS, as metrics name it.
#[derive(Clone, Copy, Debug)]
pub struct DsmCall<'a> {
    /// The NAS's permanent name.
    pub nas: &'a str,
    /// The API.
    pub api: &'static str,
    /// The method.
    pub method: &'static str,
}

impl Metrics {
    fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            rpc: times(),
            dsm: times(),
            queue: times(),
            answers: Family::default(),
            refused: Family::default(),
            codes: Mutex::default(),
            host: times(),
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
            "dsm_queue",
            "Waits for a place among the requests that this NAS is sent at a time; not part of dsm_request_seconds",
            Unit::Seconds,
            metrics.queue.clone(),
        );
        registry.register(
            "dsm_answers",
            "1 when the last request to this NAS was answered by DSM; idle drivers send none",
            metrics.answers.clone(),
        );
        registry.register(
            "dsm_login_refused",
            "1 while DSM refuses the login with this code: the log says what to change, and when it is tried again",
            metrics.refused.clone(),
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
            "csi_late_operations",
            "Operations that ended after their caller had given up, by gRPC code; the log says more",
            metrics.late.clone(),
        );
        registry.register(
            "csi_node_missing_programs",
            "Programs that this node needs and lacks, at the last Probe; the log names them",
            metrics.missing_programs.clone(),
        );
        registry.register(
            "csi_node_missing_paths",
            "Paths that volumes on this node lack: lost sessions, and portals below a multipath map without one; the log names them",
            metrics.missing_paths.clone(),
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

    /// A request to a NAS has ended. `code`: DSM's, or a word. `answered`: by DSM.
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

    /// A request had to wait for so long until the NAS could be sent it, or the wait was given up.
    pub fn dsm_queue(&self, nas: &str, waited: Duration) {
        let labels = NasLabels {
            nas: nas.to_owned(),
        };
        let times = self.queue.get_or_create(&labels);
        times.observe(waited.as_secs_f64());
    }

    /// What DSM last said to a login: `None`, or the code with which it refuses it.
    pub fn login(&self, nas: &str, refused: Option<u32>) {
        let mut codes = self.codes.lock().unwrap_or_else(PoisonError::into_inner);
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

    /// An operation has ended that nobody waits for.
    pub fn late(&self, code: tonic::Code) {
        let labels = CodeLabels { code: word(code) };
        self.late.get_or_create(&labels).inc();
    }

    /// How many did with this code, by its word.
    #[cfg(test)]
    pub(crate) fn late_operations(&self, code: &'static str) -> u64 {
        let code = Cow::Borrowed(code);
        self.late.get_or_create(&CodeLabels { code }).get()
    }

    /// So many programs are missing.
    pub fn missing_programs(&self, count: usize) {
        self.missing_programs.set(count as u64);
    }

    /// So many paths are missing.
    pub fn missing_paths(&self, count: usize) {
        self.missing_paths.set(count as u64);
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
        self.code = word(code);
    }
}

/// As the logs say it, and the sidecars.
fn word(code: tonic::Code) -> Cow<'static, str> {
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
        metrics.begun();
        metrics.missing_programs(2);
        metrics.missing_paths(3);
        metrics.late(tonic::Code::Ok);
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
            assert!(text.lines().any(|there| there == line), "{line}\n{text}");
        }
        metrics.ended();
        metrics.login("nas1", None);
        let text = metrics.text();
        assert!(text.contains("csi_in_flight 0"));
        assert!(!text.contains("nas=\"nas1\",code=\"40"), "{text}");
    }
}
