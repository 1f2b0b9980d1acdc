//! Runs one cell of the matrix: a volume in use, a fault, expansion as Kubernetes does it, the end of the fault, and the final
//! state.

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

mod readonly;

/// The number of the only volume.
const VOLUME: u8 = 0;
/// How many lines of the journal are printed for a failure.
const TAIL: usize = 40;
/// How often a call is tried while the fault lasts.
const TRIES: u32 = 3;
/// After this time a restarted NAS has loaded its LUNs, and the driver believes it. It must be longer than any pause between two
/// tries: by that a test bed in real time knows what it is waiting for.
const LOADED: Duration = Duration::from_secs(16 * 60);
/// After this time the resize tool is running.
const AT_WORK: Duration = Duration::from_secs(2);

/// How far the expansion went during the fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    /// All the way.
    Grew,
    /// All calls succeeded, and the file system kept its size because it is read-only.
    Kept,
    /// A call failed, and the expansion stopped there.
    Refused,
}

impl Outcome {
    /// The text for tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Grew => "grew",
            Self::Kept => "kept",
            Self::Refused => "refused",
        }
    }
}

/// The result of a cell.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct CaseResult {
    pub(crate) fault: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) way: ExpandMode,
    pub(crate) outcome: Outcome,
    /// The code of the last failure, or `OK`.
    pub(crate) code: String,
    pub(crate) message: String,
    /// The codes of all failed tries.
    pub(crate) codes: Vec<String>,
    /// From the end of the fault until everything was as it should be.
    pub(crate) ms: u128,
    pub(crate) leftovers: Vec<String>,
}

/// A cell in which a property was violated.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Failure {
    pub(crate) cell: String,
    pub(crate) reason: String,
    /// The end of the journal: what was called on the NAS and the nodes.
    pub(crate) journal: Vec<String>,
}

/// A cell that is being run.
struct Run<'a, 'p, P, G> {
    executor: Executor<'p, P>,
    pool: &'a G,
    cell: &'a Case,
    /// Failed tries.
    failed: Vec<Status>,
}

/// Runs a cell in a fresh test bed; a violated property is an `Ok(Err(…))`.
///
/// # Errors
/// No test bed could be created.
pub(crate) fn run(pool: &impl TestBedPool, cell: &Case) -> Result<Result<CaseResult, Failure>> {
    pool.run(async |bed| {
        let error = match run_in(bed, pool, cell).await {
            Ok(line) => return Ok(Ok(line)),
            Err(error) => error,
        };
        let mut journal = bed.journal().await.unwrap_or_default();
        journal.drain(..journal.len().saturating_sub(TAIL));
        // A test bed that is reused must be able to grow ext4.
        bed.allow_online_ext4(true);
        Ok(Err(Failure {
            cell: cell.name(),
            reason: format!("{error:#}"),
            journal,
        }))
    })
}

async fn run_in<P: TestBed, G: TestBedPool>(
    bed: &mut P,
    pool: &G,
    cell: &Case,
) -> Result<CaseResult> {
    if cell.fault.incapable {
        ensure!(
            bed.allow_online_ext4(false),
            "CAP_SYS_RESOURCE could not be dropped"
        );
    }
    let executor = Executor::start(bed).await?;
    let mut run = Run {
        executor,
        pool,
        cell,
        failed: Vec::new(),
    };
    run.in_use().await.context("a volume in use")?;
    let (outcome, ms) = if cell.fault.what == FaultKind::ReadOnly {
        run.read_only().await?
    } else {
        run.grow().await?
    };
    run.executor.bed().allow_online_ext4(true);
    run.line(outcome, ms).await
}

impl<P: TestBed, G: TestBedPool> Run<'_, '_, P, G> {
    async fn line(self, outcome: Outcome, ms: u128) -> Result<CaseResult> {
        let leftovers = self
            .executor
            .remove_all_and_list_leftovers()
            .await
            .context("on the way back")?;
        let name = |status: &Status| format!("{:?}", status.code());
        let last = self.failed.last();
        Ok(CaseResult {
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

    async fn call_all(&mut self, calls: &[CsiCall]) -> Result<()> {
        for act in calls {
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
        self.call_all(&[
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

    /// Expansion during the fault and after it; the outcome of the former and the duration of the latter.
    async fn grow(&mut self) -> Result<(Outcome, u128)> {
        let plan = self.cell.plan();
        let met_before = self.hits().await?;
        let stopped_at = self
            .under_fault(&plan)
            .await
            .context("while the fault is there")?;
        let hits = self.hits().await? > met_before;
        ensure!(
            hits || !self.is_counted(),
            "the fault never took effect: this cell tests nothing"
        );
        self.check(stopped_at.is_some())?;
        let rest: Vec<CsiCall> = plan[stopped_at.unwrap_or(0)..]
            .iter()
            .filter_map(|action| match action {
                Action::Call(act) => Some(*act),
                Action::InjectFault | Action::Reboot | Action::Restart => None,
            })
            .collect();
        // If all calls succeeded there is nothing to continue; the expansion is repeated instead.
        let last = &[CsiCall::Expand { mib: LARGE }, CsiCall::NodeExpand];
        let rest = if stopped_at.is_some() {
            &rest[..]
        } else {
            last
        };
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
        let outcome = if stopped_at.is_some() {
            Outcome::Refused
        } else {
            Outcome::Grew
        };
        Ok((outcome, ms))
    }

    /// A full NAS stays full, so the CO asks for less.
    fn smaller(&self, act: CsiCall) -> CsiCall {
        if matches!(act, CsiCall::Expand { .. }) && self.cell.fault.what == FaultKind::Full {
            CsiCall::Expand { mib: LESS }
        } else {
            act
        }
    }

    /// Runs the plan until it is done, or until a call has used up its tries. Returns the index of that call.
    async fn under_fault(&mut self, plan: &[Action]) -> Result<Option<usize>> {
        for (at, action) in plan.iter().enumerate() {
            match *action {
                Action::InjectFault => self.begin_fault().await.context("the fault's beginning")?,
                Action::Reboot => {
                    self.executor
                        .run_event(&Step::Reboot { node: NODE })
                        .await?;
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

    /// Tries as often as a CO does before an administrator looks. Returns whether it succeeded, and then checks the invariants.
    async fn tries(&mut self, act: CsiCall) -> Result<bool> {
        for number in 0..TRIES {
            match self.attempt(act).await? {
                Ok(()) => {
                    self.executor
                        .check_invariants()
                        .await
                        .context("after the call succeeded")?;
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
        if !dies || act != self.cell.call_that_grows() || !self.failed.is_empty() {
            return self.executor.call_once(VOLUME, act).await;
        }
        let call = self.executor.call_once(VOLUME, act);
        if let Ok(answer) = tokio::time::timeout(AT_WORK, call).await {
            return answer;
        }
        self.executor.bed().restart(Process::Node(NODE)).await?;
        Ok(Err(Status::unavailable("the plugin has died")))
    }

    /// The codes that the documentation promises to users.
    fn check(&self, stopped_at: bool) -> Result<()> {
        let expected = if self.cell.fault.what == FaultKind::Full {
            Code::OutOfRange
        } else if self.cell.fault.what == FaultKind::Incapable {
            Code::FailedPrecondition
        } else {
            return Ok(());
        };
        ensure!(stopped_at, "it grew, and {expected:?} is due");
        let other = self.failed.iter().find(|status| status.code() != expected);
        ensure!(other.is_none(), "{expected:?} is due: {other:?}");
        Ok(())
    }

    /// LUN, device and file system have the size, and the data are what was written: the executor compares them with its model,
    /// and the model must have the new size.
    async fn has_grown(&mut self) -> Result<()> {
        let full = self.cell.fault.what == FaultKind::Full;
        let size = MIB * if full { LESS } else { LARGE };
        let known = &self.executor.model().volumes[&VOLUME];
        ensure!(
            known.size == size
                && known.promised == size
                && known.node_published
                && known.data.is_some(),
            "the model has {known:?}, not {size} bytes"
        );
        self.executor.check_invariants().await
    }

    async fn begin_fault(&mut self) -> Result<()> {
        match self.cell.fault.what {
            FaultKind::Nas(on, nas_fault) => self.inject_on_nas(on, nas_fault).await,
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
            FaultKind::Host(tool, command_fault) => self.inject_on_node(tool, command_fault, 0),
            FaultKind::Dies(command_fault) => self.inject_on_node(Tool::Resize, command_fault, 1),
            FaultKind::Incapable => {
                let taken = self.executor.bed().allow_online_ext4(false);
                ensure!(taken, "CAP_SYS_RESOURCE could not be dropped");
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
                ensure!(given, "CAP_SYS_RESOURCE could not be restored");
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

    async fn inject_on_nas(&mut self, on: NasCall, nas_fault: NasFault) -> Result<()> {
        let event = Fault::Nas {
            call: on,
            fault: nas_fault,
            times: 0,
        };
        self.executor.run_event(&Step::Fault(event)).await
    }

    fn inject_on_node(
        &mut self,
        tool: Tool,
        command_fault: CommandFault,
        times: u32,
    ) -> Result<()> {
        let Some(command) = tool.text(self.cell.kind, self.pool) else {
            bail!("no such command is run: this cell does not exist");
        };
        let fault = HostFault {
            command: command.to_owned(),
            fault: command_fault,
            times,
        };
        self.executor.bed().inject_fault(NODE, fault)
    }

    /// Leaves this many bytes free on the NAS, and makes thin growth depend on them.
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

    /// Whether the fault's hits are counted.
    fn is_counted(&self) -> bool {
        matches!(
            self.cell.fault.what,
            FaultKind::Host(..)
                | FaultKind::Dies(_)
                | FaultKind::Nas(..)
                | FaultKind::Expired { .. }
        )
    }

    /// How often the fault has been hit so far.
    async fn hits(&mut self) -> Result<usize> {
        let journal_name = if let FaultKind::Nas(_, nas_fault) = self.cell.fault.what {
            journal_name(nas_fault)
        } else if let FaultKind::Expired { .. } = self.cell.fault.what {
            "SYNO.API.Auth.login"
        } else {
            return self.executor.bed().fault_hits();
        };
        let journal = self.executor.bed().journal().await?;
        Ok(journal
            .iter()
            .filter(|line| line.contains(journal_name))
            .count())
    }
}

/// How dsm-sim's journal names it.
fn journal_name(nas_fault: NasFault) -> &'static str {
    match nas_fault {
        NasFault::LoseCall => "lose_call",
        NasFault::LoseReply => "lose_reply",
        NasFault::Refuse { .. } => "refuse",
        NasFault::Garble => "garble",
        NasFault::Http { .. } => "http",
        NasFault::Hang => "hang",
        NasFault::Delay(_) => "delay",
    }
}
