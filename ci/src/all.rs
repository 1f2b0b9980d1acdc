//! Everything, with the time and the work that each task took.
//!
//! ```text
//! lane    Devices   one after the other: mounts, loop devices, engines; they wait for much of their time
//!         Beside    at the same time, one after the other: what computes, and touches nothing that others look at
//!         Alone     when both have ended: what is measured
//! ```
//! Each task is a process of its own, this program with the task's arguments, so what is run here is what one types.

mod usage;

use std::{
    fs,
    io::{self, Write as _},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{context::Context, run::Step, table};
use usage::Usage;

/// A call of a task, as it is typed behind `cargo ci`.
#[derive(Debug)]
struct Line {
    arguments: &'static str,
    /// Of no use without root.
    needs_root: bool,
}

/// Beside which others a task may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    Devices,
    Beside,
    Alone,
}

/// What has a row of its own.
#[derive(Debug)]
pub(crate) struct Task {
    name: &'static str,
    lane: Lane,
    lines: &'static [Line],
}

impl Task {
    /// As its row is called.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }
}

const fn anybody(arguments: &'static str) -> Line {
    Line {
        arguments,
        needs_root: false,
    }
}

const fn root(arguments: &'static str) -> Line {
    Line {
        arguments,
        needs_root: true,
    }
}

macro_rules! task {
    ($name:literal, $lane:ident, $($line:expr),+) => {
        Task { name: $name, lane: Lane::$lane, lines: &[$($line),+] }
    };
}

/// What a pipeline has time for. `sabotage` tries the first few bugs, `model` plays twice in memory, to see that it is the same run.
pub(crate) const TASKS: [Task; 22] = [
    task!("fmt", Beside, anybody("fmt")),
    task!("lint", Beside, anybody("lint")),
    task!("deny", Beside, anybody("deny")),
    task!("spec", Beside, anybody("spec")),
    task!("chart", Beside, anybody("chart")),
    // After chart, which installs the helm that the plain manifests are compared with.
    task!("tidy", Beside, anybody("tidy")),
    task!("workflows", Beside, anybody("workflows")),
    task!("external", Beside, anybody("external --check")),
    task!("crash", Beside, anybody("crash")),
    task!("faults", Beside, anybody("faults")),
    task!("sabotage", Beside, anybody("sabotage --sample 4")),
    task!("fuzz", Beside, anybody("fuzz")),
    task!("clients", Beside, anybody("clients")),
    task!("peers", Beside, anybody("peers")),
    task!("test", Devices, anybody("test")),
    task!(
        "model",
        Devices,
        anybody("model --cases 2000 -- --twice"),
        root("model --cases 500 --real")
    ),
    task!("sanity", Devices, root("sanity")),
    task!("k8s", Devices, root("k8s --stand-in")),
    task!("containers", Devices, root("containers")),
    task!("vm", Devices, anybody("vm")),
    task!("demo", Devices, root("demo")),
    task!("bench", Alone, root("bench --sample")),
];

/// What takes hours. A seed of its own each time, which the programs print.
pub(crate) const NIGHTLY: [Task; 5] = [
    task!(
        "model",
        Devices,
        anybody("model --cases 100000 --new-seed"),
        root("model --cases 5000 --new-seed --real")
    ),
    task!("crash", Devices, root("crash --plane real")),
    task!("faults", Devices, root("faults --plane real")),
    task!("sabotage", Devices, anybody("sabotage")),
    // Newer kernels too: Debian 12's of today's backports, and Debian 13's.
    task!(
        "vm",
        Devices,
        anybody("vm --only / --cases 1000"),
        anybody("vm --only / --kernel bookworm-backports"),
        anybody("vm --only / --kernel trixie")
    ),
];

/// The names of all that `.ci/run` does.
pub(crate) fn names() -> Vec<&'static str> {
    TASKS.iter().map(|task| task.name).collect()
}

/// What became of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    LeftOut,
}

#[derive(Debug)]
struct Done {
    name: &'static str,
    outcome: Outcome,
    time: Duration,
    work: Usage,
}

/// Runs every task of a list, also after one has failed.
///
/// # Errors
/// When one failed; in a pipeline also when one was left out.
pub(crate) fn run(context: &Context, tasks: &[Task]) -> Result<()> {
    let start = Instant::now();
    let shown = Mutex::new(());
    let lane = |lane: Lane, seen: bool| -> Vec<Done> {
        let of_lane = tasks.iter().filter(|task| task.lane == lane);
        of_lane
            .map(|task| one(context, task, seen, &shown))
            .collect()
    };
    let mut done = thread::scope(|scope| {
        let beside = scope.spawn(|| lane(Lane::Beside, false));
        let mut done = lane(Lane::Devices, true);
        // A panic is one of ours, and ends in no row: it is counted below.
        done.extend(beside.join().unwrap_or_default());
        done
    });
    done.extend(lane(Lane::Alone, true));
    report(&done, start.elapsed());
    let count = |outcome: Outcome| done.iter().filter(|one| one.outcome == outcome).count();
    let (passed, left_out) = (count(Outcome::Passed), count(Outcome::LeftOut));
    let failed = tasks.len() - passed - left_out;
    println!("{passed} passed, {failed} failed, {left_out} left out");
    if failed > 0 {
        bail!("{failed} of {} tasks failed", tasks.len());
    }
    if left_out > 0 && context.pipeline {
        bail!("a pipeline must run everything, and {left_out} tasks need root");
    }
    Ok(())
}

/// Runs a task in full view, or out of sight: then all that it said is shown at its end.
fn one(context: &Context, task: &Task, seen: bool, shown: &Mutex<()>) -> Done {
    let began = Instant::now();
    let (mut work, mut outcome) = (Usage::default(), Outcome::LeftOut);
    for line in task.lines {
        if line.needs_root && !context.privileges.root {
            continue;
        }
        let told = call(context, task.name, line, seen, shown, &mut work);
        if outcome != Outcome::Failed {
            outcome = if told.as_ref().is_ok_and(|success| *success) {
                Outcome::Passed
            } else {
                Outcome::Failed
            };
        }
        if let Err(error) = told {
            println!("cargo ci {}: {error:#}", line.arguments);
        }
    }
    Done {
        name: task.name,
        outcome,
        time: began.elapsed(),
        work,
    }
}

fn call(
    context: &Context,
    name: &str,
    line: &Line,
    seen: bool,
    shown: &Mutex<()>,
    work: &mut Usage,
) -> Result<bool> {
    // The file of this very program, also when a build has put another in its place since.
    let mut step =
        Step::new(context, "/proc/self/exe").args(&line.arguments.split(' ').collect::<Vec<_>>());
    if context.pipeline {
        // Of use only to who builds again; each compilation is quicker without.
        step = step.env("CARGO_INCREMENTAL", "0");
    }
    if seen {
        println!("== cargo ci {}", line.arguments);
        return usage::wait(step.foreground()?, work);
    }
    let folder = context.target.join("all");
    fs::create_dir_all(&folder)?;
    let log = folder.join(name);
    let ended = usage::wait(step.background(&log)?, work);
    let said = fs::read(&log).with_context(|| log.display().to_string())?;
    let _one_at_a_time = shown.lock();
    let mut to = io::stdout().lock();
    writeln!(to, "== cargo ci {} (beside others)", line.arguments)?;
    to.write_all(&said)?;
    ended
}

fn report(done: &[Done], whole: Duration) {
    let mut rows: Vec<[String; 4]> = done
        .iter()
        .map(|one| {
            let outcome = match one.outcome {
                Outcome::Passed => "passed",
                Outcome::Failed => "FAILED",
                Outcome::LeftOut => "left out: needs root",
            };
            let (time, work) = (seconds(one.time), seconds(one.work.0));
            [one.name.to_owned(), outcome.to_owned(), time, work]
        })
        .collect();
    let work = done.iter().map(|one| one.work.0).sum();
    rows.push([
        "all".to_owned(),
        String::new(),
        seconds(whole),
        seconds(work),
    ]);
    let header = ["task", "result", "time", "user+sys"];
    println!("\n{}", table::render(header, &rows));
}

fn seconds(time: Duration) -> String {
    format!("{:6.1} s", time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::Parser as _;

    use super::*;
    use crate::Cli;

    #[test]
    fn every_line_is_a_task_with_options_that_it_has() {
        for task in TASKS.iter().chain(&NIGHTLY) {
            for line in task.lines {
                let words = line.arguments.split(' ');
                let parsed = Cli::try_parse_from(std::iter::once("cargo ci").chain(words));
                assert!(parsed.is_ok(), "{}: {parsed:?}", line.arguments);
                assert!(line.arguments.starts_with(task.name), "{}", line.arguments);
            }
        }
    }

    #[test]
    fn each_has_a_row_of_its_own() {
        for (names, number) in [(names(), TASKS.len()), (nightly(), NIGHTLY.len())] {
            assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), number);
        }
    }

    fn nightly() -> Vec<&'static str> {
        NIGHTLY.iter().map(|task| task.name).collect()
    }

    /// What makes loop devices and mounts, or says how long something takes, has nothing of the kind beside it.
    #[test]
    fn whoever_needs_root_has_its_lane() {
        for task in &TASKS {
            let needs_root = task.lines.iter().any(|line| line.needs_root);
            assert!(!needs_root || task.lane != Lane::Beside, "{}", task.name);
        }
        let alone: Vec<&Task> = TASKS.iter().filter(|it| it.lane == Lane::Alone).collect();
        assert!(alone.len() == 1 && alone[0].name == "bench");
    }
}
