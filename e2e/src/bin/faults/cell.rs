//! Plays a cell: a volume in use, a fault, growth as Kubernetes asks for it, the fault's end, and what has come of it all.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::grounds::Grounds;
use e2e::model::player::Player;
use e2e::model::step::{Act, Mishap, On, Step, Trouble};
use e2e::plane::{Failing, HostFault, Plane, Process};
use e2e::{GIB, MIB};
use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::fault::{Tool, Way, What};
use crate::plan::{Cell, Doing, LARGE, LESS, NODE, SMALL};
use crate::report::Failure;

mod readonly;

/// The only volume.
const VOLUME: u8 = 0;
/// How much of a journal is told of a failure.
const TAIL: usize = 40;
/// How often a call is tried while the fault lasts.
const TRIES: u32 = 3;
/// A NAS that has restarted has loaded its LUNs after this, and is believed. It is longer than any pause between two tries: by that a plane
/// whose time is real knows what is waited for.
const LOADED: Duration = Duration::from_secs(16 * 60);
/// The tool that resizes is at work after this.
const AT_WORK: Duration = Duration::from_secs(2);

/// How far it went while the fault was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    /// All the way.
    Grew,
    /// All calls were answered, and the file system was left as it was: it may only be read.
    Kept,
    /// A call was refused, and so it ended.
    Refused,
}

impl Outcome {
    /// In a table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Grew => "grew",
            Self::Kept => "kept",
            Self::Refused => "refused",
        }
    }
}

/// What has come of a cell.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Line {
    pub(crate) fault: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) way: Way,
    pub(crate) outcome: Outcome,
    /// The last failure's code, or `OK`.
    pub(crate) code: String,
    /// Its message.
    pub(crate) message: String,
    /// The codes of all failed tries.
    pub(crate) codes: Vec<String>,
    /// From the fault's end until all was as it should be.
    pub(crate) ms: u128,
    pub(crate) leftovers: Vec<String>,
}

/// A cell that is being played.
struct Course<'a, 'p, P, G> {
    player: Player<'p, P>,
    grounds: &'a G,
    cell: &'a Cell,
    /// Failed tries.
    failed: Vec<Status>,
}

/// Plays it in a fresh world; what does not hold is an answer too.
///
/// # Errors
/// There is no world.
pub(crate) fn play(grounds: &impl Grounds, cell: &Cell) -> Result<Result<Line, Failure>> {
    grounds.play(async |plane| {
        let error = match live(plane, grounds, cell).await {
            Ok(line) => return Ok(Ok(line)),
            Err(error) => error,
        };
        let mut journal = plane.journal().await.unwrap_or_default();
        journal.drain(..journal.len().saturating_sub(TAIL));
        // A world that is used again must be able to grow.
        plane.let_grow_mounted(true);
        Ok(Err(Failure {
            cell: cell.place(),
            reason: format!("{error:#}"),
            journal,
        }))
    })
}

async fn live<P: Plane, G: Grounds>(plane: &mut P, grounds: &G, cell: &Cell) -> Result<Line> {
    if cell.fault.incapable {
        ensure!(plane.let_grow_mounted(false), "the capability stays");
    }
    let player = Player::start(plane).await?;
    let mut course = Course {
        player,
        grounds,
        cell,
        failed: Vec::new(),
    };
    course.in_use().await.context("a volume in use")?;
    let (outcome, ms) = if cell.fault.what == What::ReadOnly {
        course.read_only().await?
    } else {
        course.grow().await?
    };
    course.player.plane().let_grow_mounted(true);
    course.line(outcome, ms).await
}

impl<P: Plane, G: Grounds> Course<'_, '_, P, G> {
    async fn line(self, outcome: Outcome, ms: u128) -> Result<Line> {
        let leftovers = self.player.leave().await.context("on the way back")?;
        let name = |status: &Status| format!("{:?}", status.code());
        let last = self.failed.last();
        Ok(Line {
            fault: self.cell.fault.name,
            kind: self.cell.kind.content().name(),
            way: self.cell.way,
            outcome,
            code: last.map_or_else(|| "OK".to_owned(), name),
            message: last.map_or_else(String::new, |status| status.message().to_owned()),
            codes: self.failed.iter().map(name).collect(),
            ms,
            leftovers,
        })
    }

    async fn must(&mut self, acts: &[Act]) -> Result<()> {
        for act in acts {
            self.player
                .once(VOLUME, *act)
                .await?
                .with_context(|| format!("{act:?}"))?;
        }
        Ok(())
    }

    async fn in_use(&mut self) -> Result<()> {
        let kind = self.cell.kind;
        let made = Act::Create { mib: SMALL, kind };
        self.must(&[made, Act::Publish { node: NODE }, Act::Stage, Act::Show])
            .await?;
        self.player.happen(&Step::Write { volume: VOLUME }).await
    }

    /// Growth while the fault is there, and after its end. The outcome of the first, and how long the second took.
    async fn grow(&mut self) -> Result<(Outcome, u128)> {
        let plan = self.cell.plan();
        let met_before = self.met().await?;
        let stuck = self
            .under_fault(&plan)
            .await
            .context("while the fault is there")?;
        let met = self.met().await? > met_before;
        ensure!(
            met || !self.is_counted(),
            "the fault was never met: this cell shows nothing"
        );
        self.judge(stuck.is_some())?;
        let rest: Vec<Act> = plan[stuck.unwrap_or(0)..]
            .iter()
            .filter_map(|doing| match doing {
                Doing::Call(act) => Some(*act),
                Doing::Plant | Doing::Reboot | Doing::Restart => None,
            })
            .collect();
        // Where all was done there is nothing to go on with; but the same is asked again.
        let last = &[Act::Expand { mib: LARGE }, Act::ExpandNode];
        let rest = if stuck.is_some() { &rest[..] } else { last };
        if self.cell.fault.what != What::Full {
            self.end_fault().await.context("the fault's end")?;
        }
        let start = Instant::now();
        for act in rest {
            self.player
                .perform(VOLUME, self.smaller(*act))
                .await
                .context("after the fault's end")?;
        }
        let ms = start.elapsed().as_millis();
        self.end_fault().await.context("the fault's end")?;
        self.has_grown().await.context("after the fault's end")?;
        let outcome = if stuck.is_some() {
            Outcome::Refused
        } else {
            Outcome::Grew
        };
        Ok((outcome, ms))
    }

    /// A NAS that is full stays so, and the CO asks for less.
    fn smaller(&self, act: Act) -> Act {
        if matches!(act, Act::Expand { .. }) && self.cell.fault.what == What::Full {
            Act::Expand { mib: LESS }
        } else {
            act
        }
    }

    /// Goes on until it is done, or a call has failed so often that one waits for the fault's end. Where it is stuck.
    async fn under_fault(&mut self, plan: &[Doing]) -> Result<Option<usize>> {
        for (at, doing) in plan.iter().enumerate() {
            match *doing {
                Doing::Plant => self.begin_fault().await.context("the fault's beginning")?,
                Doing::Reboot => self.player.happen(&Step::Reboot { node: NODE }).await?,
                Doing::Restart => {
                    for process in [Process::Controller(0), Process::Node(NODE)] {
                        self.player.plane().restart(process).await?;
                    }
                }
                Doing::Call(act) => {
                    if !self.tries(act).await.with_context(|| format!("{act:?}"))? {
                        return Ok(Some(at));
                    }
                }
            }
        }
        Ok(None)
    }

    /// As often as a CO tries before somebody looks. Whether it was done, and then all is as it was answered.
    async fn tries(&mut self, act: Act) -> Result<bool> {
        for number in 0..TRIES {
            match self.attempt(act).await? {
                Ok(()) => {
                    self.player
                        .look()
                        .await
                        .context("it was answered that all is well")?;
                    return Ok(true);
                }
                Err(status) => self.failed.push(status),
            }
            if number + 1 < TRIES {
                let pause = Duration::from_secs(1 << number);
                self.player.plane().pause(pause).await;
            }
        }
        Ok(false)
    }

    async fn attempt(&mut self, act: Act) -> Result<Result<(), Status>> {
        let dies = matches!(self.cell.fault.what, What::Dies(_));
        if !dies || act != self.cell.grows_in() || !self.failed.is_empty() {
            return self.player.once(VOLUME, act).await;
        }
        let call = self.player.once(VOLUME, act);
        if let Ok(answer) = tokio::time::timeout(AT_WORK, call).await {
            return answer;
        }
        self.player.plane().restart(Process::Node(NODE)).await?;
        Ok(Err(Status::unavailable("the plugin has died")))
    }

    /// The codes that are promised to users.
    fn judge(&self, stuck: bool) -> Result<()> {
        let wanted = if self.cell.fault.what == What::Full {
            Code::OutOfRange
        } else if self.cell.fault.what == What::Incapable {
            Code::FailedPrecondition
        } else {
            return Ok(());
        };
        ensure!(stuck, "it grew, and {wanted:?} is due");
        let other = self.failed.iter().find(|status| status.code() != wanted);
        ensure!(other.is_none(), "{wanted:?} is due: {other:?}");
        Ok(())
    }

    /// LUN, device and file system have the size, and the data are what was written: the player compares with its book,
    /// and its book must say so.
    async fn has_grown(&mut self) -> Result<()> {
        let full = self.cell.fault.what == What::Full;
        let size = MIB * if full { LESS } else { LARGE };
        let known = &self.player.book().volumes[&VOLUME];
        ensure!(
            known.size == size && known.promised == size && known.shown && known.data.is_some(),
            "the book has {known:?}, not {size} bytes"
        );
        self.player.look().await
    }

    async fn begin_fault(&mut self) -> Result<()> {
        match self.cell.fault.what {
            What::Nas(on, trouble) => self.plant_on_nas(on, trouble).await,
            What::Full => self.room(LESS * MIB - GIB + GIB / 2).await,
            What::Locked => self.lock(true).await,
            What::Loading(how) => self.player.plane().restart_nas(Some(how)).await,
            What::Expired { logins_are_lost } => {
                if logins_are_lost {
                    self.plant_on_nas(On::Login, Trouble::LoseCall).await?;
                }
                self.player.happen(&Step::Expire).await
            }
            What::Host(tool, failing) => self.plant(tool, failing, 0),
            What::Dies(failing) => self.plant(Tool::Resize, failing, 1),
            What::Incapable => {
                let taken = self.player.plane().let_grow_mounted(false);
                ensure!(taken, "the capability stays");
                Ok(())
            }
            What::Reboot | What::Restart | What::ReadOnly => Ok(()),
        }
    }

    async fn end_fault(&mut self) -> Result<()> {
        self.player.plane().clear().await?;
        match self.cell.fault.what {
            What::Full => self.room(500 * GIB).await,
            What::Locked => self.lock(false).await,
            What::Loading(_) => {
                self.player.plane().pause(LOADED).await;
                Ok(())
            }
            What::Incapable => {
                let given = self.player.plane().let_grow_mounted(true);
                ensure!(given, "the capability does not come back");
                Ok(())
            }
            What::Nas(..)
            | What::Expired { .. }
            | What::Host(..)
            | What::Dies(_)
            | What::Reboot
            | What::Restart
            | What::ReadOnly => Ok(()),
        }
    }

    async fn plant_on_nas(&mut self, on: On, trouble: Trouble) -> Result<()> {
        let mishap = Mishap::Nas {
            on,
            trouble,
            times: 0,
        };
        self.player.happen(&Step::Mishap(mishap)).await
    }

    fn plant(&mut self, tool: Tool, failing: Failing, times: u32) -> Result<()> {
        let Some(command) = tool.text(self.cell.kind, self.grounds) else {
            bail!("nothing of the kind is run: this is no cell");
        };
        let fault = HostFault {
            command: command.to_owned(),
            failing,
            times,
        };
        self.player.plane().plant(NODE, fault)
    }

    /// The NAS has so many bytes left, and they count.
    async fn room(&mut self, bytes: i64) -> Result<()> {
        let plane = self.player.plane();
        let counts = json!({"thin_growth_needs_space": true});
        plane.patch("/settings", counts).await?;
        let free = json!({"free": bytes});
        plane.patch("/volumes/volume1", free).await.map(drop)
    }

    async fn lock(&mut self, locked: bool) -> Result<()> {
        let path = format!("/luns/{}", self.player.life(VOLUME)?.uuid());
        let lock = json!({"is_action_locked": locked});
        self.player.plane().patch(&path, lock).await.map(drop)
    }

    /// Whether it is counted how often the fault was met.
    fn is_counted(&self) -> bool {
        matches!(
            self.cell.fault.what,
            What::Host(..) | What::Dies(_) | What::Nas(..) | What::Expired { .. }
        )
    }

    /// How often a fault was met so far.
    async fn met(&mut self) -> Result<usize> {
        let word = if let What::Nas(_, trouble) = self.cell.fault.what {
            word(trouble)
        } else if let What::Expired { .. } = self.cell.fault.what {
            "SYNO.API.Auth.login"
        } else {
            return self.player.plane().hits();
        };
        let journal = self.player.plane().journal().await?;
        Ok(journal.iter().filter(|line| line.contains(word)).count())
    }
}

/// What dsm-sim's journal calls it.
fn word(trouble: Trouble) -> &'static str {
    match trouble {
        Trouble::LoseCall => "lose_call",
        Trouble::LoseReply => "lose_reply",
        Trouble::Refuse { .. } => "refuse",
        Trouble::Garble => "garble",
        Trouble::Http { .. } => "http",
        Trouble::Hang => "hang",
        Trouble::Delay(_) => "delay",
    }
}
