//! Plays a cell: a volume in use, a fault, growth as Kubernetes asks for it, the fault's end, and what has come of it all.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use e2e::model::executor::Executor;
use e2e::model::step::{CsiCall, Fault, NasCall, NasFault, Step};
use e2e::testbed::pool::TestBedPool;
use e2e::testbed::{CommandFault, HostFault, Process, TestBed};
use e2e::{GIB, MIB};
use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;
use tonic::{Code, Status};

use crate::fault::{ExpandMode, FaultKind, Tool};
use crate::plan::{Action, Case, LARGE, LESS, NODE, SMALL};
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
    pub(crate) way: ExpandMode,
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
struct Run<'a, 'p, P, G> {
    executor: Executor<'p, P>,
    pool: &'a G,
    cell: &'a Case,
    /// Failed tries.
    failed: Vec<Status>,
}

/// Plays it in a fresh world; what does not hold is an answer too.
///
/// # Errors
/// There is no world.
pub(crate) fn play(pool: &impl TestBedPool, cell: &Case) -> Result<Result<Line, Failure>> {
    pool.run(async |bed| {
        let error = match live(bed, pool, cell).await {
            Ok(line) => return Ok(Ok(line)),
            Err(error) => error,
        };
        let mut journal = bed.journal().await.unwrap_or_default();
        journal.drain(..journal.len().saturating_sub(TAIL));
        // A world that is used again must be able to grow.
        bed.allow_online_ext4(true);
        Ok(Err(Failure {
            cell: cell.place(),
            reason: format!("{error:#}"),
            journal,
        }))
    })
}

async fn live<P: TestBed, G: TestBedPool>(bed: &mut P, pool: &G, cell: &Case) -> Result<Line> {
    if cell.fault.incapable {
        ensure!(bed.allow_online_ext4(false), "the capability stays");
    }
    let executor = Executor::start(bed).await?;
    let mut course = Run {
        executor,
        pool,
        cell,
        failed: Vec::new(),
    };
    course.in_use().await.context("a volume in use")?;
    let (outcome, ms) = if cell.fault.what == FaultKind::ReadOnly {
        course.read_only().await?
    } else {
        course.grow().await?
    };
    course.executor.bed().allow_online_ext4(true);
    course.line(outcome, ms).await
}

impl<P: TestBed, G: TestBedPool> Run<'_, '_, P, G> {
    async fn line(self, outcome: Outcome, ms: u128) -> Result<Line> {
        let leftovers = self
            .executor
            .remove_all_and_list_leftovers()
            .await
            .context("on the way back")?;
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

    async fn must(&mut self, acts: &[CsiCall]) -> Result<()> {
        for act in acts {
            self.executor
                .call_once(VOLUME, *act)
                .await?
                .with_context(|| format!("{act:?}"))?;
        }
        Ok(())
    }

    async fn in_use(&mut self) -> Result<()> {
        let kind = self.cell.kind;
        let made = CsiCall::Create { mib: SMALL, kind };
        self.must(&[
            made,
            CsiCall::Publish { node: NODE },
            CsiCall::Stage,
            CsiCall::NodePublish,
        ])
        .await?;
        self.executor
            .run_event(&Step::Write { volume: VOLUME })
            .await
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
        self.check(stuck.is_some())?;
        let rest: Vec<CsiCall> = plan[stuck.unwrap_or(0)..]
            .iter()
            .filter_map(|doing| match doing {
                Action::Call(act) => Some(*act),
                Action::Plant | Action::Reboot | Action::Restart => None,
            })
            .collect();
        // Where all was done there is nothing to go on with; but the same is asked again.
        let last = &[CsiCall::Expand { mib: LARGE }, CsiCall::NodeExpand];
        let rest = if stuck.is_some() { &rest[..] } else { last };
        if self.cell.fault.what != FaultKind::Full {
            self.end_fault().await.context("the fault's end")?;
        }
        let start = Instant::now();
        for act in rest {
            self.executor
                .call_and_repeat(VOLUME, self.smaller(*act))
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
    fn smaller(&self, act: CsiCall) -> CsiCall {
        if matches!(act, CsiCall::Expand { .. }) && self.cell.fault.what == FaultKind::Full {
            CsiCall::Expand { mib: LESS }
        } else {
            act
        }
    }

    /// Goes on until it is done, or a call has failed so often that one waits for the fault's end. Where it is stuck.
    async fn under_fault(&mut self, plan: &[Action]) -> Result<Option<usize>> {
        for (at, doing) in plan.iter().enumerate() {
            match *doing {
                Action::Plant => self.begin_fault().await.context("the fault's beginning")?,
                Action::Reboot => {
                    self.executor
                        .run_event(&Step::Reboot { node: NODE })
                        .await?
                }
                Action::Restart => {
                    for process in [Process::Controller(0), Process::Node(NODE)] {
                        self.executor.bed().restart(process).await?;
                    }
                }
                Action::Call(act) => {
                    if !self.tries(act).await.with_context(|| format!("{act:?}"))? {
                        return Ok(Some(at));
                    }
                }
            }
        }
        Ok(None)
    }

    /// As often as a CO tries before somebody looks. Whether it was done, and then all is as it was answered.
    async fn tries(&mut self, act: CsiCall) -> Result<bool> {
        for number in 0..TRIES {
            match self.attempt(act).await? {
                Ok(()) => {
                    self.executor
                        .check_invariants()
                        .await
                        .context("it was answered that all is well")?;
                    return Ok(true);
                }
                Err(status) => self.failed.push(status),
            }
            if number + 1 < TRIES {
                let pause = Duration::from_secs(1 << number);
                self.executor.bed().pause(pause).await;
            }
        }
        Ok(false)
    }

    async fn attempt(&mut self, act: CsiCall) -> Result<Result<(), Status>> {
        let dies = matches!(self.cell.fault.what, FaultKind::Dies(_));
        if !dies || act != self.cell.grows_in() || !self.failed.is_empty() {
            return self.executor.call_once(VOLUME, act).await;
        }
        let call = self.executor.call_once(VOLUME, act);
        if let Ok(answer) = tokio::time::timeout(AT_WORK, call).await {
            return answer;
        }
        self.executor.bed().restart(Process::Node(NODE)).await?;
        Ok(Err(Status::unavailable("the plugin has died")))
    }

    /// The codes that are promised to users.
    fn check(&self, stuck: bool) -> Result<()> {
        let wanted = if self.cell.fault.what == FaultKind::Full {
            Code::OutOfRange
        } else if self.cell.fault.what == FaultKind::Incapable {
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
        let full = self.cell.fault.what == FaultKind::Full;
        let size = MIB * if full { LESS } else { LARGE };
        let known = &self.executor.model().volumes[&VOLUME];
        ensure!(
            known.size == size
                && known.promised == size
                && known.node_published
                && known.data.is_some(),
            "the book has {known:?}, not {size} bytes"
        );
        self.executor.check_invariants().await
    }

    async fn begin_fault(&mut self) -> Result<()> {
        match self.cell.fault.what {
            FaultKind::Nas(on, trouble) => self.inject_on_nas(on, trouble).await,
            FaultKind::Full => self.room(LESS * MIB - GIB + GIB / 2).await,
            FaultKind::Locked => self.lock(true).await,
            FaultKind::Loading(how) => self.executor.bed().restart_nas(Some(how)).await,
            FaultKind::Expired { logins_are_lost } => {
                if logins_are_lost {
                    self.inject_on_nas(NasCall::Login, NasFault::LoseCall)
                        .await?;
                }
                self.executor.run_event(&Step::ExpireSessions).await
            }
            FaultKind::Host(tool, failing) => self.inject_on_node(tool, failing, 0),
            FaultKind::Dies(failing) => self.inject_on_node(Tool::Resize, failing, 1),
            FaultKind::Incapable => {
                let taken = self.executor.bed().allow_online_ext4(false);
                ensure!(taken, "the capability stays");
                Ok(())
            }
            FaultKind::Reboot | FaultKind::Restart | FaultKind::ReadOnly => Ok(()),
        }
    }

    async fn end_fault(&mut self) -> Result<()> {
        self.executor.bed().clear_faults().await?;
        match self.cell.fault.what {
            FaultKind::Full => self.room(500 * GIB).await,
            FaultKind::Locked => self.lock(false).await,
            FaultKind::Loading(_) => {
                self.executor.bed().pause(LOADED).await;
                Ok(())
            }
            FaultKind::Incapable => {
                let given = self.executor.bed().allow_online_ext4(true);
                ensure!(given, "the capability does not come back");
                Ok(())
            }
            FaultKind::Nas(..)
            | FaultKind::Expired { .. }
            | FaultKind::Host(..)
            | FaultKind::Dies(_)
            | FaultKind::Reboot
            | FaultKind::Restart
            | FaultKind::ReadOnly => Ok(()),
        }
    }

    async fn inject_on_nas(&mut self, on: NasCall, trouble: NasFault) -> Result<()> {
        let mishap = Fault::Nas {
            call: on,
            fault: trouble,
            times: 0,
        };
        self.executor.run_event(&Step::Fault(mishap)).await
    }

    fn inject_on_node(&mut self, tool: Tool, failing: CommandFault, times: u32) -> Result<()> {
        let Some(command) = tool.text(self.cell.kind, self.pool) else {
            bail!("nothing of the kind is run: this is no cell");
        };
        let fault = HostFault {
            command: command.to_owned(),
            fault: failing,
            times,
        };
        self.executor.bed().inject_fault(NODE, fault)
    }

    /// The NAS has so many bytes left, and they count.
    async fn room(&mut self, bytes: i64) -> Result<()> {
        let bed = self.executor.bed();
        let counts = json!({"thin_growth_needs_space": true});
        bed.patch_control("/settings", counts).await?;
        let free = json!({"free": bytes});
        bed.patch_control("/volumes/volume1", free).await.map(drop)
    }

    async fn lock(&mut self, locked: bool) -> Result<()> {
        let path = format!("/luns/{}", self.executor.volume(VOLUME)?.uuid());
        let lock = json!({"is_action_locked": locked});
        self.executor
            .bed()
            .patch_control(&path, lock)
            .await
            .map(drop)
    }

    /// Whether it is counted how often the fault was met.
    fn is_counted(&self) -> bool {
        matches!(
            self.cell.fault.what,
            FaultKind::Host(..)
                | FaultKind::Dies(_)
                | FaultKind::Nas(..)
                | FaultKind::Expired { .. }
        )
    }

    /// How often a fault was met so far.
    async fn met(&mut self) -> Result<usize> {
        let word = if let FaultKind::Nas(_, trouble) = self.cell.fault.what {
            word(trouble)
        } else if let FaultKind::Expired { .. } = self.cell.fault.what {
            "SYNO.API.Auth.login"
        } else {
            return self.executor.bed().fault_hits();
        };
        let journal = self.executor.bed().journal().await?;
        Ok(journal.iter().filter(|line| line.contains(word)).count())
    }
}

/// What dsm-sim's journal calls it.
fn word(trouble: NasFault) -> &'static str {
    match trouble {
        NasFault::LoseCall => "lose_call",
        NasFault::LoseReply => "lose_reply",
        NasFault::Refuse { .. } => "refuse",
        NasFault::Garble => "garble",
        NasFault::Http { .. } => "http",
        NasFault::Hang => "hang",
        NasFault::Delay(_) => "delay",
    }
}
