//! Two controllers on one NAS, interleaved at every request, while another user's target immediately takes every target number
//! that becomes free: foreign targets are never touched, and publications that were returned stay valid (design.md, "Fencing").
//!
//! A failure prints its seed.

#![expect(
    clippy::print_stdout,
    reason = "a program that talks to its user on stdout"
)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use axum::body::Body;
use bytes::Bytes;
use clap::Parser;
use driver::chap::Method;
use driver::chap::keys::{Key, Keys};
use driver::controller::Controller;
use driver::dsm;
use driver::dsm::client::credential::Refusals;
use driver::dsm::client::{Account, Client, Password};
use driver::dsm::transport::{Failure, Transport};
use driver::in_flight::InFlight;
use driver::owner_tag::Owner;
use dsm_sim::{DsmSim, Embedded, Settings};
use e2e::harness::nas::{CHAP_KEY, PASSWORD};
use e2e::harness::test_volume::{Content, capability, create_request};
use e2e::testbed::publication;
use futures::future::BoxFuture;
use http::{Request, Response};
use proto::csi;
use proto::csi::controller_server::Controller as _;
use proto::csi::volume_capability::access_mode::Mode;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};
use tokio::sync::oneshot;

/// How far time advances while no request is pending, because a controller sleeps between two polls.
const TICK: Duration = Duration::from_millis(1);
/// After this time a CO retries.
const RETRY_AFTER: Duration = Duration::from_secs(1);
const NODES: [&str; 2] = ["worker-a:0000000a", "worker-b:0000000b"];

/// Requests that wait to be released, with the controller that sent them.
#[derive(Debug, Default)]
struct Queue(Mutex<Vec<(usize, oneshot::Sender<oneshot::Sender<()>>)>>);

impl Queue {
    fn lock(
        &self,
    ) -> std::sync::MutexGuard<'_, Vec<(usize, oneshot::Sender<oneshot::Sender<()>>)>> {
        self.0.lock().expect("not poisoned")
    }
}

#[derive(Debug)]
struct QueuedTransport {
    nas: Arc<Embedded>,
    queue: Arc<Queue>,
    who: usize,
}

impl Transport for QueuedTransport {
    fn send(&self, request: Request<String>) -> BoxFuture<'_, Result<Response<Bytes>, Failure>> {
        Box::pin(async move {
            let (sender, turn) = oneshot::channel();
            self.queue.lock().push((self.who, sender));
            let done = turn.await.map_err(|error| Failure::Lost(error.into()))?;
            let answer = self.nas.answer(request.map(Body::from)).await;
            let _ = done.send(());
            match answer {
                Ok(Some(answer)) => Ok(answer),
                Ok(None) => Err(Failure::Lost("cut".into())),
                Err(error) => Err(Failure::Lost(error.into())),
            }
        })
    }
}

/// The cluster for one schedule.
struct TestSetup {
    nas: Arc<Embedded>,
    queue: Arc<Queue>,
    controllers: Vec<Controller>,
    random: StdRng,
    /// Foreign targets, as they were created.
    foreign: BTreeMap<String, Value>,
    /// A foreign LUN. An administrator never maps the volume's own LUN; foreign targets map this one.
    foreign_lun: String,
    made: u64,
    _folder: tempfile::TempDir,
}

impl TestSetup {
    async fn start(seed: u64, settings: Settings) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let nas = DsmSim::builder()
            .state_dir(folder.path())
            .seed(seed)
            .clock(1_767_225_600_000)
            .account("admin", PASSWORD)
            .settings(settings)
            .embed()
            .map_err(anyhow::Error::msg)?;
        let nas = Arc::new(nas);
        let queue = Arc::new(Queue::default());
        let controller = |who: usize| -> Result<Controller> {
            let name: driver::volume::NasName = "nas1".parse().ok().context("a name")?;
            let account = Account {
                nas: name.clone(),
                url: "http://nas.example:5000".to_owned(),
                username: "admin".to_owned(),
                password: Password::Given(PASSWORD.to_owned().into()),
            };
            let line = QueuedTransport {
                nas: nas.clone(),
                queue: queue.clone(),
                who,
            };
            let refusals = Arc::new(Refusals::open(None)?);
            let client = Client::over(Arc::new(line), account, refusals);
            let mut nas = dsm::Nas::new(name, "nas.example".to_owned(), client);
            nas.portals = vec!["10.0.0.5:3260".parse().ok().context("a portal")?];
            let key = Key::read(CHAP_KEY.as_bytes()).context("a key")?;
            Ok(Controller::new(
                Owner::new("csi.synology.com".to_owned(), None),
                vec![nas],
                Keys::new(Method::Mutual, key, vec![]),
                StdRng::seed_from_u64(seed.wrapping_mul(31) + who as u64),
                InFlight::default(),
            ))
        };
        let controllers = vec![controller(0)?, controller(1)?];
        let lun = json!({"name": "theirs", "type": "BLUN", "size": 1 << 30, "location": "/volume1", "description": "no mark"});
        let made = nas.control(http::Method::POST, "/luns", &lun).await?;
        let foreign_lun = made["uuid"].as_str().context("a uuid")?.to_owned();
        Ok(Self {
            nas,
            queue,
            controllers,
            random: StdRng::seed_from_u64(seed),
            foreign: BTreeMap::new(),
            foreign_lun,
            made: 0,
            _folder: folder,
        })
    }

    async fn targets(&self) -> Result<Vec<Value>> {
        let state = self
            .nas
            .control(http::Method::GET, "/state", &json!(null))
            .await?;
        Ok(state["targets"].as_array().cloned().unwrap_or_default())
    }

    /// Another user takes every target number that is free below the highest in use, and the next higher one.
    async fn take_free_numbers(&mut self) -> Result<()> {
        let numbers: BTreeSet<u64> = self
            .targets()
            .await?
            .iter()
            .filter_map(|row| row["target_id"].as_u64())
            .collect();
        let free = (1..=6).filter(|number| !numbers.contains(number)).count();
        for _ in 0..free {
            if self.random.random_bool(0.3) {
                continue;
            }
            self.made += 1;
            let iqn = format!("iqn.2000-01.com.synology:theirs-{}", self.made);
            let create = json!({"name": format!("theirs-{}", self.made), "iqn": iqn});
            self.nas
                .control(http::Method::POST, "/san/targets/create", &create)
                .await?;
            let map = json!({"iqn": iqn, "lun_uuid": self.foreign_lun});
            self.nas
                .control(http::Method::POST, "/san/targets/map", &map)
                .await?;
            let rows = self.targets().await?;
            let row = rows.into_iter().find(|row| row["iqn"] == iqn);
            self.foreign.insert(iqn, row.context("the new target")?);
        }
        Ok(())
    }

    /// Another user deletes one of their targets, so that its number becomes free.
    async fn free_a_number(&mut self) -> Result<()> {
        let names: Vec<String> = self.foreign.keys().cloned().collect();
        if names.is_empty() {
            return Ok(());
        }
        let name = &names[self.random.random_range(0..names.len())];
        let body = json!({ "iqn": name });
        self.nas
            .control(http::Method::POST, "/san/targets/delete", &body)
            .await?;
        self.foreign.remove(name);
        Ok(())
    }

    async fn check_foreign_targets(&self) -> Result<()> {
        let rows = self.targets().await?;
        let foreign_now: BTreeMap<String, Value> = rows
            .into_iter()
            .filter_map(|row| Some((row["iqn"].as_str()?.to_owned(), row)))
            .filter(|(iqn, _)| publication(iqn).is_none())
            .collect();
        ensure!(
            foreign_now == self.foreign,
            "foreign targets were {:?}, are {foreign_now:?}",
            self.foreign
        );
        Ok(())
    }

    /// Releases requests one at a time in random order, until the calls have ended.
    async fn run_calls<T: Send + 'static>(
        &mut self,
        calls: Vec<tokio::task::JoinHandle<T>>,
    ) -> Result<Vec<T>> {
        while !calls.iter().all(tokio::task::JoinHandle::is_finished) {
            let waiting = self.queue.lock().len();
            if waiting == 0 {
                // sleep: in paused time this returns when no task can run, and then wakes the task that sleeps between two polls
                tokio::time::sleep(TICK).await;
                continue;
            }
            let chosen = self.random.random_range(0..waiting);
            let (_, turn) = self.queue.lock().remove(chosen);
            let (done, ended) = oneshot::channel();
            if turn.send(done).is_ok() {
                let _ = ended.await;
            }
            self.check_foreign_targets().await?;
            if self.random.random_bool(0.3) {
                self.free_a_number().await?;
            }
            if self.random.random_bool(0.7) {
                self.take_free_numbers().await?;
            }
        }
        let mut answers = Vec::new();
        for call in calls {
            answers.push(call.await?);
        }
        Ok(answers)
    }
}

type Answer = Result<Option<String>, tonic::Status>;

/// `ControllerPublishVolume` or `ControllerUnpublishVolume`, retried a few times as a CO does.
async fn retry(
    controller: Controller,
    (id, secrets): (String, HashMap<String, String>),
    node: &'static str,
    publish: bool,
) -> Answer {
    let mut last = None;
    for _ in 0..6 {
        let answer = if publish {
            let request = csi::ControllerPublishVolumeRequest {
                volume_id: id.clone(),
                node_id: node.to_owned(),
                volume_capability: Some(capability(Content::Block, Mode::SingleNodeWriter)),
                secrets: secrets.clone(),
                ..Default::default()
            };
            let answer = controller
                .controller_publish_volume(tonic::Request::new(request))
                .await;
            answer.map(|answer| answer.into_inner().publish_context.remove("iqn"))
        } else {
            let request = csi::ControllerUnpublishVolumeRequest {
                volume_id: id.clone(),
                node_id: node.to_owned(),
                ..Default::default()
            };
            let answer = controller
                .controller_unpublish_volume(tonic::Request::new(request))
                .await;
            answer.map(|_| None)
        };
        match answer {
            Err(status)
                if matches!(
                    status.code(),
                    tonic::Code::Aborted | tonic::Code::Unavailable
                ) =>
            {
                last = Some(status);
            }
            other => return other,
        }
        // sleep: as a CO does between two tries; it takes no real time
        tokio::time::sleep(RETRY_AFTER).await;
    }
    Err(last.unwrap_or_else(|| tonic::Status::internal("no try")))
}

/// Half of the StorageClasses name a Secret, so that each Publish sets CHAP on the target.
fn secrets(seed: u64) -> HashMap<String, String> {
    let named = [("username", "alice"), ("password", "alice-1234567")];
    let named = named.map(|(key, value)| (format!("node.session.auth.{key}"), value.to_owned()));
    named.into_iter().filter(|_| seed % 4 >= 2).collect()
}

async fn schedule(seed: u64, settings: Settings) -> Result<()> {
    let mut cluster = TestSetup::start(seed, settings).await?;
    let create = create_request("pvc-1", 1 << 30, Content::Block);
    let controller = cluster.controllers[0].clone();
    let made =
        tokio::spawn(async move { controller.create_volume(tonic::Request::new(create)).await });
    let made = cluster.run_calls(vec![made]).await?.remove(0)?;
    let id = made.into_inner().volume.unwrap_or_default().volume_id;
    let secrets = secrets(seed);
    let auth_type = if secrets.is_empty() { 2 } else { 1 };
    let volume = (id, secrets);
    cluster.take_free_numbers().await?;
    let mut names = BTreeSet::new();
    for _ in 0..3 {
        let (first, second) = (
            NODES[0],
            NODES[usize::from(cluster.random.random_bool(0.2))],
        );
        let both = cluster.random.random_bool(0.8);
        let calls = [(0, first, true), (1, second, both)].map(|(who, node, publish)| {
            let controller = cluster.controllers[who].clone();
            tokio::spawn(retry(controller, volume.clone(), node, publish))
        });
        let answers = cluster.run_calls(calls.into()).await?;
        let rows = cluster.targets().await?;
        let exported: BTreeSet<String> = rows
            .iter()
            .filter(|row| {
                row["mapped_luns"]
                    .as_array()
                    .is_some_and(|luns| !luns.is_empty())
            })
            .filter_map(|row| row["iqn"].as_str().map(str::to_owned))
            .filter(|iqn| publication(iqn).is_some())
            .collect();
        let open = rows.iter().find(|row| {
            row["auth_type"] != auth_type && row["iqn"].as_str().and_then(publication).is_some()
        });
        ensure!(open.is_none(), "a target takes any login: {open:?}");
        if both {
            let returned: BTreeSet<String> = answers.iter().flatten().flatten().cloned().collect();
            ensure!(returned.len() <= 1, "two answers: {answers:?}");
            ensure!(
                returned.is_subset(&exported),
                "answered {returned:?}, exported {exported:?}: {answers:?}"
            );
            ensure!(
                first != second || !returned.is_empty(),
                "neither has an answer: {answers:?}"
            );
            ensure!(
                names.is_disjoint(&returned),
                "{returned:?} was there before"
            );
            names.extend(returned);
        }
        for node in NODES {
            let controllers = cluster.controllers.clone();
            let calls = controllers
                .into_iter()
                .map(|controller| tokio::spawn(retry(controller, volume.clone(), node, false)));
            for answer in cluster.run_calls(calls.collect()).await? {
                answer?;
            }
        }
        let remaining = cluster.targets().await?;
        let ours = |row: &&Value| row["iqn"].as_str().and_then(publication).is_some();
        ensure!(
            !remaining.iter().any(|row| ours(&row)),
            "left: {remaining:?}"
        );
    }
    Ok(())
}

/// Interleaves two controllers at every request, on a NAS that reuses target numbers at once
#[derive(Debug, Parser)]
#[command(name = "interleaved")]
struct Cli {
    /// Number of schedules
    #[arg(long, default_value_t = 1000)]
    cases: u64,
    /// Random seed of the first schedule; later ones use the following numbers
    #[arg(long, default_value_t = 2026)]
    seed: u64,
}

fn run_calls(seed: u64) -> Result<()> {
    let settings = Settings {
        // On every other NAS, a stopped compound returns entries for the calls that it skipped.
        compound_fills_stopped: seed.is_multiple_of(2),
        ..Settings::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()?;
    runtime.block_on(schedule(seed, settings))
}

fn main() -> ExitCode {
    let Cli { cases, seed } = Cli::parse();
    for seed in seed..seed + cases {
        if let Err(error) = run_calls(seed) {
            eprintln!("interleaved --cases 1 --seed {seed}: {error:#}");
            return ExitCode::FAILURE;
        }
    }
    println!("{cases} schedules from seed {seed}: no foreign target was touched");
    ExitCode::SUCCESS
}
