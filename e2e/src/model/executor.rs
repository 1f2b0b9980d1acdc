//! Runs steps on a test bed, and retries calls as a CO does, until the expected result.

mod repeat;
mod single;

use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use proto::csi;
use serde_json::json;
use tonic::{Code, Status};

use super::environment_steps::EnvironmentState;
use super::invariants::check;
use super::reference_model::{Expected, ReferenceModel};
use super::step::{CsiCall, Delivery, Fault, Step};
use crate::harness::plugin::Csi;
use crate::harness::test_volume::{TestVolume, create_request};
use crate::testbed::{HostFault, Observation, Process, SECRET_PREFIX, SHRINK_REFUSED, TestBed};
use crate::{GIB, MIB};

/// Far more tries than there are faults in a sequence.
pub(super) const TRIES: usize = 60;
/// Between the first two tries; it doubles up to a minute, as a sidecar's backoff does.
pub(super) const PAUSE: Duration = Duration::from_secs(1);
/// After this time nothing is still in progress, and the uptime of the NAS is long enough to be trusted.
const SETTLED: Duration = Duration::from_secs(1200);
const NEVER_MADE: &str = "nas1/00000000-0000-4000-8000-000000000000";
/// Foreign LUNs; the last one has the name that the driver would choose for `pvc-9`.
const FOREIGN: [&str; 3] = ["finance", "csi-not-ours", "csi-pvc-9"];
/// More bytes than a NAS of a test bed has.
const BEYOND: i64 = 4 << 40;
/// The CHAP password of every publication of volume 1. It must be visible only in node records and on the NAS.
const SECRET: &str = "planted-chap";

/// The answer to a call, without what may differ between two identical calls.
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
    pub deaths: usize,
    /// Commands that were hit by a fault.
    pub hits: usize,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.calls += other.calls;
        self.deaths += other.deaths;
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
    beside: bool,
    /// A scenario is running: the model already has its final state.
    pub(super) in_scenario: bool,
    pub(super) environment: EnvironmentState,
    /// The messages of all errors that the driver returned.
    pub(super) said: Vec<String>,
    tally: Tally,
}

impl<'a, P: TestBed> Executor<'a, P> {
    /// Starts on a fresh test bed and adds the foreign objects.
    ///
    /// # Errors
    /// The test bed does not answer.
    pub async fn start(plane: &'a mut P) -> Result<Self> {
        for name in FOREIGN {
            add_foreign_objects(plane, name).await?;
        }
        let mut node_ids = Vec::new();
        for node in 0..plane.nodes() {
            let info = csi::NodeGetInfoRequest {};
            let answer = plane.clients(0, node).node().node_get_info(info).await?;
            node_ids.push(answer.into_inner().node_id);
        }
        let foreign = plane.observe().await?;
        Ok(Self {
            bed: plane,
            model: ReferenceModel::default(),
            volumes: BTreeMap::new(),
            rotations: 0,
            foreign,
            node_ids,
            beside: false,
            in_scenario: false,
            environment: EnvironmentState::default(),
            password: crate::harness::nas::PASSWORD.to_owned(),
            said: Vec::new(),
            tally: Tally::default(),
        })
    }

    /// Runs a step, then checks all invariants.
    ///
    /// # Errors
    /// An invariant is violated.
    pub async fn run_step(&mut self, step: &Step) -> Result<()> {
        let acts = self.model.calls_of(step);
        if let Step::GrowConcurrently {
            volume,
            mib,
            call: act,
        } = step
        {
            self.run_concurrently(*volume, *mib, *act).await?;
            self.beside = true;
        }
        for (volume, act) in acts {
            let (how, controller) = if let Step::Call {
                delivery: how,
                controller,
                ..
            } = step
            {
                (*how, *controller)
            } else {
                (Delivery::Once, 0)
            };
            self.call_until_stable(volume, act, how, controller, TRIES)
                .await
                .with_context(|| format!("{act:?}"))?;
        }
        self.beside = false;
        match step {
            Step::Write { volume } => self.write(*volume)?,
            Step::Fence { volume } => self.fence(*volume).await?,
            Step::Away {
                volume,
                absence: how,
            } => {
                self.in_scenario = true;
                self.use_elsewhere(*volume, *how).await?;
                self.in_scenario = false;
            }
            Step::Race { volume } => self.race_publish(*volume).await?,
            Step::Fault(mishap) => self.inject(mishap).await?,
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
            Step::ChangeEnvironment(surroundings) => self.change_environment(surroundings).await?,
            Step::HideLists(blindness) => self.hide_lists(*blindness).await?,
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
        self.check_invariants().await.context("in the end")?;
        self.ensure_no_violations().await?;
        self.tally.hits = self.bed.fault_hits()?;
        Ok(self.tally)
    }

    /// Checks all error messages and the journal: no leaked secret, no LUN shrunk, no foreign object changed.
    async fn ensure_no_violations(&self) -> Result<()> {
        let told = self.said.iter().find(|text| text.contains(SECRET_PREFIX));
        ensure!(told.is_none(), "a secret is told: {told:?}");
        let refused = format!("-> Some({SHRINK_REFUSED})");
        let journal = self.bed.journal().await?;
        let shrunk = journal.iter().find(|line| line.contains(&refused));
        ensure!(shrunk.is_none(), "a LUN was to shrink: {shrunk:?}");
        self.must_have_kept_off(&journal)
    }

    /// Detaches and deletes every volume with at most one retry per call.
    async fn remove_all(&mut self) -> Result<()> {
        for volume in self.model.volumes.keys().copied().collect::<Vec<_>>() {
            let node = self.model.volumes[&volume].published.unwrap_or(0);
            for act in [
                CsiCall::NodeUnpublish,
                CsiCall::Unstage,
                CsiCall::Unpublish { node },
                CsiCall::Delete,
            ] {
                self.call_until_stable(volume, act, Delivery::Once, 0, 2)
                    .await
                    .with_context(|| format!("in the end, volume {volume}, {act:?}"))?;
            }
        }
        Ok(())
    }

    async fn inject(&mut self, mishap: &Fault) -> Result<()> {
        match mishap {
            Fault::Nas {
                call: on,
                fault: trouble,
                times,
            } => {
                let (api, method) = on.names();
                let rule =
                    json!({"api": api, "method": method, "times": times, "fault": trouble.fault()});
                self.bed.post_control("/faults", rule).await.map(drop)
            }
            Fault::Host {
                node,
                command,
                fault: failing,
                times,
            } => self.bed.inject_fault(
                *node,
                HostFault {
                    command: command.clone(),
                    fault: *failing,
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
        self.tally.deaths += dead.len();
        for process in &dead {
            self.bed.restart(*process).await?;
        }
        Ok(!dead.is_empty())
    }

    /// Prepares a call as a CO does.
    pub(super) async fn prepare(&mut self, volume: u8, act: CsiCall) -> Result<()> {
        if act == CsiCall::Delete {
            self.unlock(volume).await?;
        }
        if let (
            CsiCall::Publish { .. }
            | CsiCall::Expand { .. }
            | CsiCall::ExpandTooFar
            | CsiCall::Delete
            | CsiCall::Unpublish { .. },
            None,
        ) = (act, self.volumes.get(&volume))
        {
            let seat = self.bed.clients(0, 0);
            let never = csi::Volume {
                volume_id: NEVER_MADE.to_owned(),
                ..csi::Volume::default()
            };
            let life =
                TestVolume::of(&seat, "pvc-never", super::step::Kind::Ext4.content(), never)?;
            self.volumes.insert(volume, life);
        }
        if let (CsiCall::Stage, Some(life)) = (act, self.volumes.get(&volume)) {
            let node = self.model.volumes[&volume].published.unwrap_or(0);
            self.bed.clients(0, node).make_dir(&life.staging)?;
        }
        Ok(())
    }

    /// Records the result of a call.
    pub(super) fn record(
        &mut self,
        volume: u8,
        act: CsiCall,
        answer: Option<&Answer>,
    ) -> Result<()> {
        let node = if let CsiCall::Publish { node } = act {
            node
        } else {
            0
        };
        match answer {
            Some(Answer::Volume(made)) if !self.model.volumes.contains_key(&volume) => {
                let CsiCall::Create { kind, .. } = act else {
                    bail!("a volume was answered to {act:?}");
                };
                let old = self.volumes.get(&volume);
                ensure!(
                    old.is_none_or(|old| old.id != made.volume_id),
                    "{} was a volume before",
                    made.volume_id
                );
                let seat = self.bed.clients(0, 0);
                let mut life = TestVolume::of(&seat, &name(volume), kind.content(), made.clone())?;
                if volume == 1 {
                    life.secrets = [("username", "alice"), ("password", SECRET)]
                        .map(|(key, value)| (format!("node.session.auth.{key}"), value.to_owned()))
                        .into();
                }
                self.volumes.insert(volume, life);
            }
            Some(Answer::Volume(made)) => {
                let id = &self.volumes[&volume].id;
                ensure!(*id == made.volume_id, "another volume: {made:?}, was {id}");
            }
            Some(Answer::Context(context)) => {
                let folder = self
                    .bed
                    .kubelet_dir(node)
                    .join("kubelet")
                    .join(name(volume));
                let life = self.volumes.get_mut(&volume).context("published")?;
                ensure!(
                    context.get("uuid").is_some_and(|uuid| *uuid == life.uuid()),
                    "{context:?} for {}",
                    life.id
                );
                life.publish_context = context.clone().into_iter().collect();
                life.node_id.clone_from(&self.node_ids[node]);
                life.staging = folder.join("staging");
                life.target = folder.join("target");
            }
            Some(Answer::Size(_) | Answer::Done) | None => {}
        }
        self.model.apply_call(volume, act);
        Ok(())
    }
}

/// Adds a foreign LUN with a target of its own and a locked snapshot.
async fn add_foreign_objects(plane: &impl TestBed, name: &str) -> Result<()> {
    let lun = json!({"name": name, "size": 3 * GIB});
    let uuid = plane.post_control("/luns", lun).await?["uuid"].take();
    let iqn = format!("iqn.2000-01.com.synology:somebody.{name}");
    let target = json!({"name": format!("of-{name}"), "iqn": iqn});
    plane.post_control("/san/targets/create", target).await?;
    let map = json!({"iqn": iqn, "lun_uuid": uuid});
    plane.post_control("/san/targets/map", map).await?;
    let snapshot = json!({"uuid": uuid, "name": "kept", "locked": true});
    plane
        .post_control("/san/luns/snapshot", snapshot)
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
pub(super) fn expected_codes(due: Expected) -> &'static [Code] {
    match due {
        Expected::NotFound => &[Code::NotFound],
        Expected::Exists => &[Code::AlreadyExists],
        Expected::Refused => &[Code::FailedPrecondition],
        Expected::TooMuch => &[Code::ResourceExhausted, Code::OutOfRange],
        Expected::Done | Expected::Size(_) | Expected::Idle => &[],
    }
}

/// A success must be expected, and have the expected size.
pub(super) fn ensure_expected(answer: &Answer, due: Expected) -> Result<()> {
    let size = match answer {
        Answer::Volume(volume) => Some(volume.capacity_bytes),
        Answer::Size(size) => Some(*size),
        Answer::Context(_) | Answer::Done => None,
    };
    let meets = match due {
        Expected::Done => size.is_none(),
        Expected::Size(wanted) => size == Some(wanted),
        Expected::NotFound
        | Expected::Exists
        | Expected::Refused
        | Expected::TooMuch
        | Expected::Idle => false,
    };
    ensure!(meets, "{due:?} is due, and it was answered {answer:?}");
    Ok(())
}

/// Makes a single CSI call.
pub(super) async fn call(
    seat: &impl Csi,
    volume: u8,
    life: Option<TestVolume>,
    act: CsiCall,
    node_id: &str,
    size: i64,
) -> Result<Answer, Status> {
    if let CsiCall::Create { mib, kind } = act {
        let mut request = create_request(&name(volume), mib * MIB, kind.content());
        if volume == 1 {
            // A StorageClass without `location`: the driver chooses the NAS volume.
            request.parameters.remove("location");
        }
        let answer = seat.controller().create_volume(request).await?.into_inner();
        return Ok(Answer::Volume(answer.volume.unwrap_or_default()));
    }
    let life = life.ok_or_else(|| Status::internal("the harness knows no such volume"))?;
    match act {
        CsiCall::Create { .. } => unreachable!("see above"),
        CsiCall::Delete => life.delete(seat).await.map(|()| Answer::Done),
        CsiCall::Expand { mib } => life.expand_lun(seat, mib * MIB).await.map(Answer::Size),
        CsiCall::Publish { .. } => {
            let context = life.publish_to(seat, node_id).await?;
            Ok(Answer::Context(context.into_iter().collect()))
        }
        CsiCall::Unpublish { .. } => {
            life.unpublish_from(seat, node_id).await?;
            Ok(Answer::Done)
        }
        CsiCall::Stage => life.stage(seat).await.map(|()| Answer::Done),
        CsiCall::ExpandTooFar => life.expand_lun(seat, BEYOND).await.map(Answer::Size),
        CsiCall::NodePublish => life.node_publish(seat).await.map(|()| Answer::Done),
        CsiCall::NodePublishReadonly => {
            let reader = TestVolume {
                readonly: true,
                ..life
            };
            reader.node_publish(seat).await.map(|()| Answer::Done)
        }
        // A claim need not be a multiple of 1 MiB, as LUNs are; the answer is the real size.
        CsiCall::NodeExpand => life.expand_on_node(seat, size - 1).await.map(Answer::Size),
        CsiCall::NodeUnpublish => life.node_unpublish(seat).await.map(|()| Answer::Done),
        CsiCall::Unstage => life.unstage(seat).await.map(|()| Answer::Done),
    }
}
