//! Takes steps on a plane, and repeats calls as a CO does: until they have come to what is due.

mod repeat;
mod single;

use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use proto::csi;
use serde_json::json;
use tonic::{Code, Status};

use super::book::{Book, Due};
use super::judge::judge;
use super::people::World;
use super::step::{Act, How, Mishap, Step};
use crate::life::{Life, create_request};
use crate::plane::{HostFault, PLANTED, Plane, Process, SHRINKS, Seen};
use crate::plugin::Csi;
use crate::{GIB, MIB};

/// Far more tries than there are mishaps in a sequence.
pub(super) const TRIES: usize = 60;
/// Between the first two of them; it doubles as a sidecar's does, up to a minute.
pub(super) const PAUSE: Duration = Duration::from_secs(1);
/// Nothing that was begun is still under way after this, and a NAS has been up for long enough to be believed.
const SETTLED: Duration = Duration::from_secs(1200);
const NEVER_MADE: &str = "nas1/00000000-0000-4000-8000-000000000000";
/// LUNs of somebody else's; the last has the name that the driver would choose for `pvc-9`.
const FOREIGN: [&str; 3] = ["finance", "csi-not-ours", "csi-pvc-9"];
/// More than a NAS of a plane has.
const BEYOND: i64 = 4 << 40;
/// The CHAP password of every publication of volume 1. It must not be seen anywhere but in records and at the NAS.
const SECRET: &str = "planted-chap";

/// What was answered; equal answers are equal promises.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Answer {
    Volume(csi::Volume),
    Size(i64),
    Context(BTreeMap<String, String>),
    Done,
}

/// What a sequence came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// CSI calls, repetitions included.
    pub calls: usize,
    /// Processes that have died of one of their effects.
    pub deaths: usize,
    /// Faults of commands that were met.
    pub hits: usize,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.calls += other.calls;
        self.deaths += other.deaths;
        self.hits += other.hits;
    }
}

/// A CO that keeps a book.
#[derive(Debug)]
pub struct Player<'a, P> {
    pub(super) plane: &'a mut P,
    pub(super) book: Book,
    /// Also of volumes that are gone.
    pub(super) lives: BTreeMap<u8, Life>,
    /// What the driver logs in with.
    pub(super) password: String,
    /// How often the password was changed.
    pub(super) rotations: u32,
    pub(super) foreign: Seen,
    pub(super) node_ids: Vec<String>,
    /// Two calls were made at a time, and only one of them is in the book yet.
    beside: bool,
    /// A step that is a story is being told: the book says what will be.
    pub(super) amid: bool,
    pub(super) world: World,
    /// What the driver has said of its failures.
    pub(super) said: Vec<String>,
    tally: Tally,
}

impl<'a, P: Plane> Player<'a, P> {
    /// Takes its seat at a fresh plane.
    ///
    /// # Errors
    /// The plane is not in order.
    pub async fn start(plane: &'a mut P) -> Result<Self> {
        for name in FOREIGN {
            settle_in(plane, name).await?;
        }
        let mut node_ids = Vec::new();
        for node in 0..plane.nodes() {
            let info = csi::NodeGetInfoRequest {};
            let answer = plane.seat(0, node).node().node_get_info(info).await?;
            node_ids.push(answer.into_inner().node_id);
        }
        let foreign = plane.see().await?;
        Ok(Self {
            plane,
            book: Book::default(),
            lives: BTreeMap::new(),
            rotations: 0,
            foreign,
            node_ids,
            beside: false,
            amid: false,
            world: World::default(),
            password: crate::nas::PASSWORD.to_owned(),
            said: Vec::new(),
            tally: Tally::default(),
        })
    }

    /// Takes a step, and looks at everything.
    ///
    /// # Errors
    /// A property does not hold.
    pub async fn take(&mut self, step: &Step) -> Result<()> {
        let acts = self.book.acts(step);
        if let Step::GrowBeside { volume, mib, act } = step {
            self.beside(*volume, *mib, *act).await?;
            self.beside = true;
        }
        for (volume, act) in acts {
            let (how, controller) = if let Step::Call {
                how, controller, ..
            } = step
            {
                (*how, *controller)
            } else {
                (How::Once, 0)
            };
            self.settle(volume, act, how, controller, TRIES)
                .await
                .with_context(|| format!("{act:?}"))?;
        }
        self.beside = false;
        match step {
            Step::Write { volume } => self.write(*volume)?,
            Step::Fence { volume } => self.fence(*volume).await?,
            Step::Away { volume, how } => {
                self.amid = true;
                self.away(*volume, *how).await?;
                self.amid = false;
            }
            Step::Race { volume } => self.race(*volume).await?,
            Step::Mishap(mishap) => self.arrange(mishap).await?,
            Step::Restart { node } => self.plane.restart(process(*node)).await?,
            Step::Reboot { node } => {
                self.plane.reboot(*node).await?;
                self.book.take(step);
            }
            Step::Reimage { node } => self.reimage(*node).await?,
            Step::RestartNas { loading } => {
                self.plane.restart_nas(loading.as_deref()).await?;
                self.tell().await?;
            }
            Step::List => self.list(TRIES).await?,
            Step::Expire => {
                self.plane.knob("/sessions/expire", json!({})).await?;
            }
            Step::Move => {
                self.plane.knob("/sessions/move", json!({})).await?;
            }
            Step::Surround(surroundings) => self.surround(surroundings).await?,
            Step::Blind(blindness) => self.blind(*blindness).await?,
            Step::ByHand { volume, what } => self.by_hand(*volume, *what).await?,
            Step::Scribble { volume } => self.scribble(*volume)?,
            Step::Stiffen { volume } => self.stiffen(*volume)?,
            Step::Die { volume } => self.die(*volume).await?,
            Step::Disguise { volume } => self.disguise(*volume).await?,
            Step::Trespass { call } => self.trespass(*call).await?,
            Step::Rotate => self.rotate().await?,
            Step::Call { .. }
            | Step::Attach { .. }
            | Step::Detach { .. }
            | Step::Grow { .. }
            | Step::GrowBeside { .. } => {}
        }
        self.look().await
    }

    /// Everything must be as the book has it.
    ///
    /// # Errors
    /// It is not.
    pub async fn look(&self) -> Result<()> {
        let seen = self.plane.see().await?;
        judge(&self.book, &self.lives, &self.foreign, self.plane, &seen)
    }

    /// Without faults everything is answered after at most one repetition; then all is taken away, and nothing is left.
    ///
    /// # Errors
    /// A property does not hold.
    pub async fn end(mut self) -> Result<Tally> {
        self.plane.clear().await?;
        self.revive().await?;
        self.enlighten().await?;
        self.plane.pause(SETTLED).await;
        self.list(2).await?;
        self.take_away().await?;
        self.look().await.context("in the end")?;
        self.must_have_behaved().await?;
        self.tally.hits = self.plane.hits()?;
        Ok(self.tally)
    }

    /// What it has said and asked, whatever came of it.
    async fn must_have_behaved(&self) -> Result<()> {
        let told = self.said.iter().find(|text| text.contains(PLANTED));
        ensure!(told.is_none(), "a secret is told: {told:?}");
        let refused = format!("-> Some({SHRINKS})");
        let journal = self.plane.journal().await?;
        let shrunk = journal.iter().find(|line| line.contains(&refused));
        ensure!(shrunk.is_none(), "a LUN was to shrink: {shrunk:?}");
        self.must_have_kept_off(&journal)
    }

    /// The way back of every volume, with one repetition at most.
    async fn take_away(&mut self) -> Result<()> {
        for volume in self.book.volumes.keys().copied().collect::<Vec<_>>() {
            let node = self.book.volumes[&volume].published.unwrap_or(0);
            for act in [
                Act::Hide,
                Act::Unstage,
                Act::Unpublish { node },
                Act::Delete,
            ] {
                self.settle(volume, act, How::Once, 0, 2)
                    .await
                    .with_context(|| format!("in the end, volume {volume}, {act:?}"))?;
            }
        }
        Ok(())
    }

    async fn arrange(&mut self, mishap: &Mishap) -> Result<()> {
        match mishap {
            Mishap::Nas { on, trouble, times } => {
                let (api, method) = on.names();
                let rule =
                    json!({"api": api, "method": method, "times": times, "fault": trouble.fault()});
                self.plane.knob("/faults", rule).await.map(drop)
            }
            Mishap::Host {
                node,
                command,
                failing,
                times,
            } => self.plane.plant(
                *node,
                HostFault {
                    command: command.clone(),
                    failing: *failing,
                    times: *times,
                },
            ),
            Mishap::Death { node, nth, when } => self.plane.trip(process(*node), *nth, *when).await,
        }
    }

    pub(super) fn write(&mut self, volume: u8) -> Result<()> {
        self.book.take(&Step::Write { volume });
        let known = self.book.volumes.get(&volume);
        let Some((node, data)) = known
            .filter(|known| known.shown && !known.readonly)
            .and_then(|known| Some((known.published?, known.data?)))
        else {
            return Ok(());
        };
        self.plane.write(&self.lives[&volume], node, data)
    }

    /// Starts what has died again. Whether anything had.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn revive(&mut self) -> Result<bool> {
        let dead = self.plane.dead();
        self.tally.deaths += dead.len();
        for process in &dead {
            self.plane.restart(*process).await?;
        }
        Ok(!dead.is_empty())
    }

    /// What a CO does before a call.
    pub(super) async fn prepare(&mut self, volume: u8, act: Act) -> Result<()> {
        if act == Act::Delete {
            self.unlock(volume).await?;
        }
        if let (
            Act::Publish { .. }
            | Act::Expand { .. }
            | Act::Beyond
            | Act::Delete
            | Act::Unpublish { .. },
            None,
        ) = (act, self.lives.get(&volume))
        {
            let seat = self.plane.seat(0, 0);
            let never = csi::Volume {
                volume_id: NEVER_MADE.to_owned(),
                ..csi::Volume::default()
            };
            let life = Life::of(&seat, "pvc-never", super::step::Kind::Ext4.content(), never)?;
            self.lives.insert(volume, life);
        }
        if let (Act::Stage, Some(life)) = (act, self.lives.get(&volume)) {
            let node = self.book.volumes[&volume].published.unwrap_or(0);
            self.plane.seat(0, node).make_dir(&life.staging)?;
        }
        Ok(())
    }

    /// Writes down what has been achieved.
    pub(super) fn note(&mut self, volume: u8, act: Act, answer: Option<&Answer>) -> Result<()> {
        let node = if let Act::Publish { node } = act {
            node
        } else {
            0
        };
        match answer {
            Some(Answer::Volume(made)) if !self.book.volumes.contains_key(&volume) => {
                let Act::Create { kind, .. } = act else {
                    bail!("a volume was answered to {act:?}");
                };
                let old = self.lives.get(&volume);
                ensure!(
                    old.is_none_or(|old| old.id != made.volume_id),
                    "{} was a volume before",
                    made.volume_id
                );
                let seat = self.plane.seat(0, 0);
                let mut life = Life::of(&seat, &name(volume), kind.content(), made.clone())?;
                if volume == 1 {
                    life.secrets = [("username", "alice"), ("password", SECRET)]
                        .map(|(key, value)| (format!("node.session.auth.{key}"), value.to_owned()))
                        .into();
                }
                self.lives.insert(volume, life);
            }
            Some(Answer::Volume(made)) => {
                let id = &self.lives[&volume].id;
                ensure!(*id == made.volume_id, "another volume: {made:?}, was {id}");
            }
            Some(Answer::Context(context)) => {
                let folder = self.plane.kubelet(node).join("kubelet").join(name(volume));
                let life = self.lives.get_mut(&volume).context("published")?;
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
        self.book.settle(volume, act);
        Ok(())
    }
}

/// Somebody else has a LUN, exports it at a target of his own, and has a snapshot that nobody may delete.
async fn settle_in(plane: &impl Plane, name: &str) -> Result<()> {
    let lun = json!({"name": name, "size": 3 * GIB});
    let uuid = plane.knob("/luns", lun).await?["uuid"].take();
    let iqn = format!("iqn.2000-01.com.synology:somebody.{name}");
    let target = json!({"name": format!("of-{name}"), "iqn": iqn});
    plane.knob("/san/targets/create", target).await?;
    let map = json!({"iqn": iqn, "lun_uuid": uuid});
    plane.knob("/san/targets/map", map).await?;
    let snapshot = json!({"uuid": uuid, "name": "kept", "locked": true});
    plane.knob("/san/luns/snapshot", snapshot).await.map(drop)
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

/// The code of a failure that is due.
pub(super) fn wanted(due: Due) -> &'static [Code] {
    match due {
        Due::NotFound => &[Code::NotFound],
        Due::Exists => &[Code::AlreadyExists],
        Due::Refused => &[Code::FailedPrecondition],
        Due::TooMuch => &[Code::ResourceExhausted, Code::OutOfRange],
        Due::Done | Due::Size(_) | Due::Idle => &[],
    }
}

/// A success must be due, and with this size.
pub(super) fn meets(answer: &Answer, due: Due) -> Result<()> {
    let size = match answer {
        Answer::Volume(volume) => Some(volume.capacity_bytes),
        Answer::Size(size) => Some(*size),
        Answer::Context(_) | Answer::Done => None,
    };
    let meets = match due {
        Due::Done => size.is_none(),
        Due::Size(wanted) => size == Some(wanted),
        Due::NotFound | Due::Exists | Due::Refused | Due::TooMuch | Due::Idle => false,
    };
    ensure!(meets, "{due:?} is due, and it was answered {answer:?}");
    Ok(())
}

/// One try.
pub(super) async fn call(
    seat: &impl Csi,
    volume: u8,
    life: Option<Life>,
    act: Act,
    node_id: &str,
    size: i64,
) -> Result<Answer, Status> {
    if let Act::Create { mib, kind } = act {
        let mut request = create_request(&name(volume), mib * MIB, kind.content());
        if volume == 1 {
            // Of a class that leaves it to the driver where volumes lie.
            request.parameters.remove("location");
        }
        let answer = seat.controller().create_volume(request).await?.into_inner();
        return Ok(Answer::Volume(answer.volume.unwrap_or_default()));
    }
    let life = life.ok_or_else(|| Status::internal("the harness knows no such volume"))?;
    match act {
        Act::Create { .. } => unreachable!("see above"),
        Act::Delete => life.delete(seat).await.map(|()| Answer::Done),
        Act::Expand { mib } => life.expand_lun(seat, mib * MIB).await.map(Answer::Size),
        Act::Publish { .. } => {
            let context = life.publish_to(seat, node_id).await?;
            Ok(Answer::Context(context.into_iter().collect()))
        }
        Act::Unpublish { .. } => {
            life.unpublish_from(seat, node_id).await?;
            Ok(Answer::Done)
        }
        Act::Stage => life.stage(seat).await.map(|()| Answer::Done),
        Act::Beyond => life.expand_lun(seat, BEYOND).await.map(Answer::Size),
        Act::Show => life.node_publish(seat).await.map(|()| Answer::Done),
        Act::ShowReadonly => {
            let reader = Life {
                readonly: true,
                ..life
            };
            reader.node_publish(seat).await.map(|()| Answer::Done)
        }
        // A claim need not be of whole MiB, as LUNs are; what is answered is what there is.
        Act::ExpandNode => life.expand_on_node(seat, size - 1).await.map(Answer::Size),
        Act::Hide => life.node_unpublish(seat).await.map(|()| Answer::Done),
        Act::Unstage => life.unstage(seat).await.map(|()| Answer::Done),
    }
}
