//! Runs steps on a test bed, and retries calls as a CO does, until the expected result.
//!
//! Below it: the steps that change the environment, the scenarios (steps of several calls), and the replacement calls for what a test
//! bed cannot do.

mod environment_steps;
mod fallback;
mod repeat;
mod scenarios;
mod single;

use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use proto::csi;
use serde_json::json;
use tonic::{Code, Status};

use super::invariants::check;
use super::reference_model::{Expected, ReferenceModel};
use super::step::{CsiCall, Delivery, Fault, Step};
use crate::harness::plugin::Csi;
use crate::harness::test_volume::{TestVolume, create_request};
use crate::testbed::{HostFault, Observation, Process, SECRET_PREFIX, SHRINK_REFUSED, TestBed};
use crate::{GIB, MIB};
use environment_steps::EnvironmentState;

/// Far more tries than there are faults in a sequence.
pub(super) const TRIES: usize = 60;
/// Between the first two tries; it doubles up to a minute, as a sidecar's backoff does.
pub(super) const PAUSE: Duration = Duration::from_secs(1);
/// After this time nothing is still in progress, and the uptime of the NAS is long enough to be trusted.
const SETTLED: Duration = Duration::from_secs(1200);
const NONEXISTENT_ID: &str = "nas1/00000000-0000-4000-8000-000000000000";
/// Foreign LUNs; the last one has the name that the driver would choose for `pvc-9`.
const FOREIGN: [&str; 3] = ["finance", "csi-not-ours", "csi-pvc-9"];
/// More bytes than a NAS of a test bed has.
const BEYOND: i64 = 4 << 40;
/// The CHAP password of every publication of volume 1. It must be visible only in node records and on the NAS.
const SECRET: &str = "planted-chap";

/// The answer to a successful call; repeating the call must return an equal one.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Answer {
    Volume(csi::Volume),
    Size(i64),
    Context(BTreeMap<String, String>),
    Done,
}

/// Counters of a sequence.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// CSI calls, retries included.
    pub calls: usize,
    /// Crashes of processes at one of their effects.
    pub crashes: usize,
    /// Commands that were hit by a fault.
    pub hits: usize,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.calls += other.calls;
        self.crashes += other.crashes;
        self.hits += other.hits;
    }
}

/// A CO that runs steps and keeps a reference model.
#[derive(Debug)]
pub struct Executor<'a, P> {
    pub(super) bed: &'a mut P,
    pub(super) model: ReferenceModel,
    /// Deleted volumes too.
    pub(super) volumes: BTreeMap<u8, TestVolume>,
    /// The password that the driver logs in with.
    pub(super) password: String,
    /// How often the password was changed.
    pub(super) rotations: u32,
    pub(super) foreign: Observation,
    pub(super) node_ids: Vec<String>,
    /// A step has made two calls concurrently, and only one of them is in the model yet.
    concurrent: bool,
    /// A scenario is running: the model already has its final state.
    pub(super) in_scenario: bool,
    environment: EnvironmentState,
    /// The messages of all errors that the driver returned.
    pub(super) messages: Vec<String>,
    tally: Tally,
}

impl<'a, P: TestBed> Executor<'a, P> {
    /// Starts on a fresh test bed and adds the foreign objects.
    ///
    /// # Errors
    /// The test bed does not answer.
    pub async fn start(bed: &'a mut P) -> Result<Self> {
        for name in FOREIGN {
            add_foreign_objects(bed, name).await?;
        }
        let mut node_ids = Vec::new();
        for node in 0..bed.nodes() {
            let info = csi::NodeGetInfoRequest {};
            let answer = bed.clients(0, node).node().node_get_info(info).await?;
            node_ids.push(answer.into_inner().node_id);
        }
        let foreign = bed.observe().await?;
        Ok(Self {
            bed,
            model: ReferenceModel::default(),
            volumes: BTreeMap::new(),
            rotations: 0,
            foreign,
            node_ids,
            concurrent: false,
            in_scenario: false,
            environment: EnvironmentState::default(),
            password: crate::harness::nas::PASSWORD.to_owned(),
            messages: Vec::new(),
            tally: Tally::default(),
        })
    }

    /// Runs a step, then checks all invariants.
    ///
    /// # Errors
    /// An invariant is violated.
    pub async fn run_step(&mut self, step: &Step) -> Result<()> {
        let rpcs = self.model.calls_of(step);
        if let Step::GrowConcurrently {
            volume,
            mib,
            call: rpc,
        } = step
        {
            self.run_concurrently(*volume, *mib, *rpc).await?;
            self.concurrent = true;
        }
        for (volume, rpc) in rpcs {
            let (delivery, controller) = if let Step::Call {
                delivery,
                controller,
                ..
            } = step
            {
                (*delivery, *controller)
            } else {
                (Delivery::Once, 0)
            };
            self.call_until_stable(volume, rpc, delivery, controller, TRIES)
                .await
                .with_context(|| format!("{rpc:?}"))?;
        }
        self.concurrent = false;
        match step {
            Step::Write { volume } => self.write(*volume)?,
            Step::Fence { volume } => self.fence(*volume).await?,
            Step::Away { volume, absence } => {
                self.in_scenario = true;
                self.use_elsewhere(*volume, *absence).await?;
                self.in_scenario = false;
            }
            Step::Race { volume } => self.race_publish(*volume).await?,
            Step::Fault(fault) => self.inject(fault).await?,
            Step::Restart { node } => self.bed.restart(process(*node)).await?,
            Step::Reboot { node } => {
                self.bed.reboot(*node).await?;
                self.model.apply_step(step);
            }
            Step::Reimage { node } => self.reimage(*node).await?,
            Step::RestartNas { loading } => {
                self.bed.restart_nas(loading.as_deref()).await?;
                self.send_environment().await?;
            }
            Step::List => self.list(TRIES).await?,
            Step::ExpireSessions => {
                self.bed.post_control("/sessions/expire", json!({})).await?;
            }
            Step::ChangeClientAddress => {
                self.bed.post_control("/sessions/move", json!({})).await?;
            }
            Step::ChangeEnvironment(environment) => self.change_environment(environment).await?,
            Step::HideLists(hidden_lists) => self.hide_lists(*hidden_lists).await?,
            Step::EditByHand { volume, what } => self.edit_by_hand(*volume, *what).await?,
            Step::WriteForeignData { volume } => self.write_foreign_data(*volume)?,
            Step::MakeUnresizable { volume } => self.make_unresizable(*volume)?,
            Step::KillFileSystem { volume } => self.kill_file_system(*volume).await?,
            Step::SwapLun { volume } => self.swap_lun(*volume).await?,
            Step::UseForeignLun { call } => self.use_foreign_lun(*call).await?,
            Step::RotatePassword => self.rotate_password().await?,
            Step::Call { .. }
            | Step::Attach { .. }
            | Step::Detach { .. }
            | Step::Grow { .. }
            | Step::GrowConcurrently { .. } => {}
        }
        self.check_invariants().await
    }

    /// Compares the observed state with the model.
    ///
    /// # Errors
    /// They differ.
    pub async fn check_invariants(&self) -> Result<()> {
        let seen = self.bed.observe().await?;
        check(&self.model, &self.volumes, &self.foreign, self.bed, &seen)
    }

    /// Clears all faults, deletes all volumes with at most one retry per call, and checks that nothing is left.
    ///
    /// # Errors
    /// An invariant is violated.
    pub async fn finish(mut self) -> Result<Tally> {
        self.bed.clear_faults().await?;
        self.restart_crashed().await?;
        self.show_lists().await?;
        self.bed.pause(SETTLED).await;
        self.list(2).await?;
        self.remove_all().await?;
        self.check_invariants().await.context("at the end")?;
        self.ensure_no_violations().await?;
        self.tally.hits = self.bed.fault_hits()?;
        Ok(self.tally)
    }

    /// Checks all error messages and the journal: no leaked secret, no LUN shrunk, no foreign object changed.
    async fn ensure_no_violations(&self) -> Result<()> {
        let leaked = self
            .messages
            .iter()
            .find(|text| text.contains(SECRET_PREFIX));
        ensure!(
            leaked.is_none(),
            "an error message leaks a secret: {leaked:?}"
        );
        let refused = format!("-> Some({SHRINK_REFUSED})");
        let journal = self.bed.journal().await?;
        let shrunk = journal.iter().find(|line| line.contains(&refused));
        ensure!(
            shrunk.is_none(),
            "the driver tried to shrink a LUN: {shrunk:?}"
        );
        self.ensure_foreign_untouched(&journal)
    }

    /// Detaches and deletes every volume with at most one retry per call.
    async fn remove_all(&mut self) -> Result<()> {
        for volume in self.model.volumes.keys().copied().collect::<Vec<_>>() {
            let node = self.model.volumes[&volume].published.unwrap_or(0);
            for rpc in [
                CsiCall::NodeUnpublish,
                CsiCall::Unstage,
                CsiCall::Unpublish { node },
                CsiCall::Delete,
            ] {
                self.call_until_stable(volume, rpc, Delivery::Once, 0, 2)
                    .await
                    .with_context(|| format!("at the end, volume {volume}, {rpc:?}"))?;
            }
        }
        Ok(())
    }

    async fn inject(&mut self, fault: &Fault) -> Result<()> {
        match fault {
            Fault::Nas { call, fault, times } => {
                let (api, method) = call.names();
                let rule =
                    json!({"api": api, "method": method, "times": times, "fault": fault.fault()});
                self.bed.post_control("/faults", rule).await.map(drop)
            }
            Fault::Host {
                node,
                command,
                fault,
                times,
            } => self.bed.inject_fault(
                *node,
                HostFault {
                    command: command.clone(),
                    fault: *fault,
                    times: *times,
                },
            ),
            Fault::Crash { node, nth, when } => {
                self.bed.crash_at(process(*node), *nth, *when).await
            }
        }
    }

    pub(super) fn write(&mut self, volume: u8) -> Result<()> {
        self.model.apply_step(&Step::Write { volume });
        let known = self.model.volumes.get(&volume);
        let Some((node, data)) = known
            .filter(|known| known.node_published && !known.readonly)
            .and_then(|known| Some((known.published?, known.data?)))
        else {
            return Ok(());
        };
        self.bed.write(&self.volumes[&volume], node, data)
    }

    /// Restarts crashed processes. Returns whether there were any.
    ///
    /// # Errors
    /// One does not come up.
    pub async fn restart_crashed(&mut self) -> Result<bool> {
        let dead = self.bed.crashed_processes();
        self.tally.crashes += dead.len();
        for process in &dead {
            self.bed.restart(*process).await?;
        }
        Ok(!dead.is_empty())
    }

    /// Prepares a call as a CO does.
    pub(super) async fn prepare(&mut self, volume: u8, rpc: CsiCall) -> Result<()> {
        if rpc == CsiCall::Delete {
            self.delete_locked_snapshots(volume).await?;
        }
        if let (
            CsiCall::Publish { .. }
            | CsiCall::Expand { .. }
            | CsiCall::ExpandTooFar
            | CsiCall::Delete
            | CsiCall::Unpublish { .. },
            None,
        ) = (rpc, self.volumes.get(&volume))
        {
            let clients = self.bed.clients(0, 0);
            let nonexistent = csi::Volume {
                volume_id: NONEXISTENT_ID.to_owned(),
                ..csi::Volume::default()
            };
            let test_volume = TestVolume::of(
                &clients,
                "pvc-nonexistent",
                super::step::Kind::Ext4.content(),
                nonexistent,
            )?;
            self.volumes.insert(volume, test_volume);
        }
        if let (CsiCall::Stage, Some(test_volume)) = (rpc, self.volumes.get(&volume)) {
            let node = self.model.volumes[&volume].published.unwrap_or(0);
            self.bed.clients(0, node).make_dir(&test_volume.staging)?;
        }
        Ok(())
    }

    /// Records the result of a call.
    pub(super) fn record(
        &mut self,
        volume: u8,
        rpc: CsiCall,
        answer: Option<&Answer>,
    ) -> Result<()> {
        let node = if let CsiCall::Publish { node } = rpc {
            node
        } else {
            0
        };
        match answer {
            Some(Answer::Volume(made)) if !self.model.volumes.contains_key(&volume) => {
                let CsiCall::Create { kind, .. } = rpc else {
                    bail!("{rpc:?} returned a volume");
                };
                let old = self.volumes.get(&volume);
                ensure!(
                    old.is_none_or(|old| old.id != made.volume_id),
                    "the id {} is reused",
                    made.volume_id
                );
                let clients = self.bed.clients(0, 0);
                let mut test_volume =
                    TestVolume::of(&clients, &name(volume), kind.content(), made.clone())?;
                if volume == 1 {
                    test_volume.secrets = [("username", "alice"), ("password", SECRET)]
                        .map(|(key, value)| (format!("node.session.auth.{key}"), value.to_owned()))
                        .into();
                }
                self.volumes.insert(volume, test_volume);
            }
            Some(Answer::Volume(made)) => {
                let id = &self.volumes[&volume].id;
                ensure!(*id == made.volume_id, "another volume: {made:?}, was {id}");
            }
            Some(Answer::Context(context)) => {
                let folder = self.bed.node_home(node).join("kubelet").join(name(volume));
                let test_volume = self.volumes.get_mut(&volume).context("published")?;
                ensure!(
                    context
                        .get("uuid")
                        .is_some_and(|uuid| *uuid == test_volume.uuid()),
                    "{context:?} for {}",
                    test_volume.id
                );
                test_volume.publish_context = context.clone().into_iter().collect();
                test_volume.node_id.clone_from(&self.node_ids[node]);
                test_volume.staging = folder.join("staging");
                test_volume.target = folder.join("target");
            }
            Some(Answer::Size(_) | Answer::Done) | None => {}
        }
        self.model.apply_call(volume, rpc);
        Ok(())
    }
}

/// Adds a foreign LUN with a target of its own and a locked snapshot.
async fn add_foreign_objects(bed: &impl TestBed, name: &str) -> Result<()> {
    let lun = json!({"name": name, "size": 3 * GIB});
    let uuid = bed.post_control("/luns", lun).await?["uuid"].take();
    let iqn = format!("iqn.2000-01.com.synology:somebody.{name}");
    let target = json!({"name": format!("of-{name}"), "iqn": iqn});
    bed.post_control("/san/targets/create", target).await?;
    let map = json!({"iqn": iqn, "lun_uuid": uuid});
    bed.post_control("/san/targets/map", map).await?;
    let snapshot = json!({"uuid": uuid, "name": "kept", "locked": true});
    bed.post_control("/san/luns/snapshot", snapshot)
        .await
        .map(drop)
}

fn name(volume: u8) -> String {
    format!("pvc-{volume}")
}

fn process(node: Option<usize>) -> Process {
    node.map_or(Process::Controller(0), Process::Node)
}

pub(super) fn transient(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Aborted)
}

/// The status codes of an expected failure.
pub(super) fn expected_codes(expected: Expected) -> &'static [Code] {
    match expected {
        Expected::NotFound => &[Code::NotFound],
        Expected::Exists => &[Code::AlreadyExists],
        Expected::Refused => &[Code::FailedPrecondition],
        Expected::TooMuch => &[Code::ResourceExhausted, Code::OutOfRange],
        Expected::Done | Expected::Size(_) | Expected::Idle => &[],
    }
}

/// A success must be expected, and have the expected size.
pub(super) fn ensure_expected(answer: &Answer, expected: Expected) -> Result<()> {
    let size = match answer {
        Answer::Volume(volume) => Some(volume.capacity_bytes),
        Answer::Size(size) => Some(*size),
        Answer::Context(_) | Answer::Done => None,
    };
    let matches = match expected {
        Expected::Done => size.is_none(),
        Expected::Size(wanted) => size == Some(wanted),
        Expected::NotFound
        | Expected::Exists
        | Expected::Refused
        | Expected::TooMuch
        | Expected::Idle => false,
    };
    ensure!(matches, "expected {expected:?}, got {answer:?}");
    Ok(())
}

/// Makes a single CSI call.
pub(super) async fn call(
    clients: &impl Csi,
    volume: u8,
    test_volume: Option<TestVolume>,
    rpc: CsiCall,
    node_id: &str,
    size: i64,
) -> Result<Answer, Status> {
    if let CsiCall::Create { mib, kind } = rpc {
        let mut request = create_request(&name(volume), mib * MIB, kind.content());
        if volume == 1 {
            // A StorageClass without `location`: the driver chooses the NAS volume.
            request.parameters.remove("location");
        }
        let answer = clients
            .controller()
            .create_volume(request)
            .await?
            .into_inner();
        return Ok(Answer::Volume(answer.volume.unwrap_or_default()));
    }
    let test_volume =
        test_volume.ok_or_else(|| Status::internal("no such volume in the harness"))?;
    match rpc {
        CsiCall::Create { .. } => unreachable!("see above"),
        CsiCall::Delete => test_volume.delete(clients).await.map(|()| Answer::Done),
        CsiCall::Expand { mib } => test_volume
            .expand_lun(clients, mib * MIB)
            .await
            .map(Answer::Size),
        CsiCall::Publish { .. } => {
            let context = test_volume.publish_to(clients, node_id).await?;
            Ok(Answer::Context(context.into_iter().collect()))
        }
        CsiCall::Unpublish { .. } => {
            test_volume.unpublish_from(clients, node_id).await?;
            Ok(Answer::Done)
        }
        CsiCall::Stage => test_volume.stage(clients).await.map(|()| Answer::Done),
        CsiCall::ExpandTooFar => test_volume
            .expand_lun(clients, BEYOND)
            .await
            .map(Answer::Size),
        CsiCall::NodePublish => test_volume
            .node_publish(clients)
            .await
            .map(|()| Answer::Done),
        CsiCall::NodePublishReadonly => {
            let reader = TestVolume {
                readonly: true,
                ..test_volume
            };
            reader.node_publish(clients).await.map(|()| Answer::Done)
        }
        // A claim need not be a multiple of 1 MiB, as LUNs are; the answer is the real size.
        CsiCall::NodeExpand => test_volume
            .expand_on_node(clients, size - 1)
            .await
            .map(Answer::Size),
        CsiCall::NodeUnpublish => test_volume
            .node_unpublish(clients)
            .await
            .map(|()| Answer::Done),
        CsiCall::Unstage => test_volume.unstage(clients).await.map(|()| Answer::Done),
    }
}
