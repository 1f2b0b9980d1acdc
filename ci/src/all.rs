//! `cargo ci all`: runs a list of tasks and prints the wall-clock and CPU time of each.
//!
//! ```text
//! Devices      in sequence: tasks with mounts, loop devices or Docker engines, which mostly wait
//! Background   in sequence, in parallel to Devices: tasks that compute and share no state with others
//! Exclusive    when both have ended: benchmarks
//! ```
//! Each task is a child process: this program with the task's arguments, as one would type them.

mod usage;

use std::{
    fs,
    io::{self, Write as _},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{context::Context, run::Cmd, table};
use usage::Usage;

/// The arguments after `cargo ci`.
#[derive(Debug)]
struct Invocation {
    arguments: &'static str,
    /// Skipped without root.
    needs_root: bool,
}

/// Which other tasks a task may run in parallel to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Group {
    Devices,
    Background,
    Exclusive,
}

/// One row of the result table.
#[derive(Debug)]
pub(crate) struct Task {
    name: &'static str,
    group: Group,
    invocations: &'static [Invocation],
}

impl Task {
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }
}

const fn unprivileged(arguments: &'static str) -> Invocation {
    Invocation {
        arguments,
        needs_root: false,
    }
}

const fn root(arguments: &'static str) -> Invocation {
    Invocation {
        arguments,
        needs_root: true,
    }
}

macro_rules! task {
    ($name:literal, $group:ident, $($invocation:expr),+) => {
        Task { name: $name, group: Group::$group, invocations: &[$($invocation),+] }
    };
}

/// The tasks of every pipeline run. `mutants` tries only the first few, `model` runs twice in memory to check that it is
/// deterministic.
pub(crate) const TASKS: [Task; 22] = [
    task!("fmt", Background, unprivileged("fmt")),
    task!("lint", Background, unprivileged("lint")),
    task!("deny", Background, unprivileged("deny")),
    task!("spec", Background, unprivileged("spec")),
    task!("chart", Background, unprivileged("chart")),
    // After chart, which installs the helm that tidy renders the plain manifests with.
    task!("tidy", Background, unprivileged("tidy")),
    task!("workflows", Background, unprivileged("workflows")),
    task!(
        "k8s-conformance",
        Background,
        unprivileged("k8s-conformance --check")
    ),
    task!("crash", Background, unprivileged("crash")),
    task!("faults", Background, unprivileged("faults")),
    task!("mutants", Background, unprivileged("mutants --sample 4")),
    task!("fuzz", Background, unprivileged("fuzz")),
    task!("clients", Background, unprivileged("clients")),
    task!("peers", Background, unprivileged("peers")),
    task!("test", Devices, unprivileged("test")),
    task!(
        "model",
        Devices,
        unprivileged("model --cases 2000 -- --twice"),
        root("model --cases 500 --real")
    ),
    task!("sanity", Devices, root("sanity")),
    task!("k8s", Devices, root("k8s --fake")),
    task!("containers", Devices, root("containers")),
    task!("vm", Devices, unprivileged("vm")),
    task!("demo", Devices, root("demo")),
    task!("bench", Exclusive, root("bench --sample")),
];

/// The tasks that take hours. Each run uses a new seed, which the programs print.
pub(crate) const NIGHTLY: [Task; 5] = [
    task!(
        "model",
        Devices,
        unprivileged("model --cases 100000 --new-seed"),
        root("model --cases 5000 --new-seed --real")
    ),
    task!("crash", Devices, root("crash --testbed real")),
    task!("faults", Devices, root("faults --testbed real")),
    task!("mutants", Devices, unprivileged("mutants")),
    // Newer kernels, too: that of Debian 12's current backports, and Debian 13's.
    task!(
        "vm",
        Devices,
        unprivileged("vm --only / --cases 1000"),
        unprivileged("vm --only / --kernel bookworm-backports"),
        unprivileged("vm --only / --kernel trixie")
    ),
];

/// The names of the tasks of `.ci/run`.
pub(crate) fn names() -> Vec<&'static str> {
    TASKS.iter().map(|task| task.name).collect()
}

/// The result of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    Skipped,
}

#[derive(Debug)]
struct TaskResult {
    name: &'static str,
    outcome: Outcome,
    time: Duration,
    cpu_time: Usage,
}

/// Runs all tasks of a list, even after one has failed.
///
/// # Errors
/// When a task failed; in a pipeline, also when one was skipped.
pub(crate) fn run(context: &Context, tasks: &[Task]) -> Result<()> {
    let start = Instant::now();
    let output_lock = Mutex::new(());
    let group = |group: Group, foreground: bool| -> Vec<TaskResult> {
        let of_lane = tasks.iter().filter(|task| task.group == group);
        of_lane
            .map(|task| run_task(context, task, foreground, &output_lock))
            .collect()
    };
    let mut results = thread::scope(|scope| {
        let beside = scope.spawn(|| group(Group::Background, false));
        let mut results = group(Group::Devices, true);
        // If this thread panicked, its tasks have no result and count as failed below.
        results.extend(beside.join().unwrap_or_default());
        results
    });
    results.extend(group(Group::Exclusive, true));
    report(&results, start.elapsed());
    let count = |outcome: Outcome| {
        results
            .iter()
            .filter(|result| result.outcome == outcome)
            .count()
    };
    let (passed, skipped) = (count(Outcome::Passed), count(Outcome::Skipped));
    let failed = tasks.len() - passed - skipped;
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    if failed > 0 {
        bail!("{failed} of {} tasks failed", tasks.len());
    }
    if skipped > 0 && context.pipeline {
        bail!("a pipeline must run every task, but {skipped} tasks need root");
    }
    Ok(())
}

/// Runs a task. In the background, its output is printed when it ends.
fn run_task(
    context: &Context,
    task: &Task,
    foreground: bool,
    output_lock: &Mutex<()>,
) -> TaskResult {
    let start = Instant::now();
    let (mut cpu_time, mut outcome) = (Usage::default(), Outcome::Skipped);
    for invocation in task.invocations {
        if invocation.needs_root && !context.privileges.root {
            continue;
        }
        let passed = run_invocation(
            context,
            task.name,
            invocation,
            foreground,
            output_lock,
            &mut cpu_time,
        );
        if outcome != Outcome::Failed {
            outcome = if passed.as_ref().is_ok_and(|success| *success) {
                Outcome::Passed
            } else {
                Outcome::Failed
            };
        }
        if let Err(error) = passed {
            println!("cargo ci {}: {error:#}", invocation.arguments);
        }
    }
    TaskResult {
        name: task.name,
        outcome,
        time: start.elapsed(),
        cpu_time,
    }
}

fn run_invocation(
    context: &Context,
    name: &str,
    invocation: &Invocation,
    foreground: bool,
    output_lock: &Mutex<()>,
    cpu_time: &mut Usage,
) -> Result<bool> {
    // The running executable, even if a build has replaced the file since.
    let mut cmd = Cmd::new(context, "/proc/self/exe")
        .args(&invocation.arguments.split(' ').collect::<Vec<_>>());
    if context.pipeline {
        // Useful only for rebuilds; a single build is faster without.
        cmd = cmd.env("CARGO_INCREMENTAL", "0");
    }
    if foreground {
        println!("== cargo ci {}", invocation.arguments);
        return usage::wait(cmd.spawn()?, cpu_time);
    }
    let folder = context.target.join("all");
    fs::create_dir_all(&folder)?;
    let log = folder.join(name);
    let passed = usage::wait(cmd.spawn_to_log(&log)?, cpu_time);
    let output = fs::read(&log).with_context(|| log.display().to_string())?;
    let _one_at_a_time = output_lock.lock();
    let mut to = io::stdout().lock();
    writeln!(
        to,
        "== cargo ci {} (in the background)",
        invocation.arguments
    )?;
    to.write_all(&output)?;
    passed
}

fn report(results: &[TaskResult], total: Duration) {
    let mut rows: Vec<[String; 4]> = results
        .iter()
        .map(|result| {
            let outcome = match result.outcome {
                Outcome::Passed => "passed",
                Outcome::Failed => "FAILED",
                Outcome::Skipped => "skipped: needs root",
            };
            let (time, cpu_time) = (seconds(result.time), seconds(result.cpu_time.0));
            [result.name.to_owned(), outcome.to_owned(), time, cpu_time]
        })
        .collect();
    let cpu_time = results.iter().map(|result| result.cpu_time.0).sum();
    rows.push([
        "all".to_owned(),
        String::new(),
        seconds(total),
        seconds(cpu_time),
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
    fn every_invocation_parses() {
        for task in TASKS.iter().chain(&NIGHTLY) {
            for invocation in task.invocations {
                let words = invocation.arguments.split(' ');
                let parsed = Cli::try_parse_from(std::iter::once("cargo ci").chain(words));
                assert!(parsed.is_ok(), "{}: {parsed:?}", invocation.arguments);
                assert!(
                    invocation.arguments.starts_with(task.name),
                    "{}",
                    invocation.arguments
                );
            }
        }
    }

    #[test]
    fn task_names_are_unique() {
        for (names, number) in [(names(), TASKS.len()), (nightly(), NIGHTLY.len())] {
            assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), number);
        }
    }

    fn nightly() -> Vec<&'static str> {
        NIGHTLY.iter().map(|task| task.name).collect()
    }

    /// Tasks with loop devices and mounts, and benchmarks, never run in parallel to each other.
    #[test]
    fn tasks_that_need_root_are_not_in_the_background() {
        for task in &TASKS {
            let needs_root = task
                .invocations
                .iter()
                .any(|invocation| invocation.needs_root);
            assert!(
                !needs_root || task.group != Group::Background,
                "{}",
                task.name
            );
        }
        let alone: Vec<&Task> = TASKS
            .iter()
            .filter(|it| it.group == Group::Exclusive)
            .collect();
        assert!(alone.len() == 1 && alone[0].name == "bench");
    }
}
