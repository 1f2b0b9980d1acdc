//! Everything, one after the other, with the time each task took.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::{
    chart, check, containers, context::Context, crash, deny, external, faults, fuzz, go, k8s,
    model, peers, sabotage, show, table, testing, tidy, vm, workflows,
};

/// A task: its name, whether it is of any use without root, and what it does.
type Task = (&'static str, bool, fn(&Context) -> Result<()>);

const TASKS: [Task; 22] = [
    ("fmt", false, |context| check::fmt(context, false)),
    ("lint", false, check::lint),
    ("deny", false, |context| {
        deny::run(context, &deny::Deny::default())
    }),
    ("tidy", false, tidy::run),
    ("spec", false, go::spec),
    ("chart", false, |context| {
        chart::run(context, &chart::Chart::default())
    }),
    ("workflows", false, workflows::run),
    ("external", false, external::check),
    ("test", false, testing::test),
    ("model", false, model::sample),
    ("crash", false, |context| {
        crash::run(context, &crash::Crash::default())
    }),
    ("faults", false, |context| {
        faults::run(context, &faults::Faults::default())
    }),
    ("sabotage", false, sabotage::sample),
    ("fuzz", false, |context| {
        fuzz::run(context, &fuzz::Fuzz::default())
    }),
    ("clients", false, testing::clients),
    ("sanity", true, testing::sanity),
    ("k8s", true, k8s::sample),
    ("peers", false, |context| {
        peers::run(context, &peers::Peers::default())
    }),
    ("bench", true, show::bench_sample),
    ("containers", true, containers::run),
    ("vm", false, |context| vm::run(context, &vm::Vm::default())),
    ("demo", true, |context| {
        show::demo(context, &show::Demo::default())
    }),
];

/// The names of all of them.
pub(crate) fn names() -> Vec<&'static str> {
    TASKS.iter().map(|(name, ..)| *name).collect()
}

/// Runs every task, also after one has failed.
///
/// # Errors
/// When one failed; in a pipeline also when one was left out.
pub(crate) fn run(context: &Context) -> Result<()> {
    let mut rows = Vec::new();
    let (mut passed, mut failed, mut left_out) = (0, 0, 0);
    let start = Instant::now();
    for (name, needs_root, task) in TASKS {
        println!("== cargo ci {name}");
        let began = Instant::now();
        let result = if needs_root && !context.privileges.root {
            left_out += 1;
            "left out: needs root".to_owned()
        } else if let Err(error) = task(context) {
            failed += 1;
            println!("{error:#}");
            "FAILED".to_owned()
        } else {
            passed += 1;
            "passed".to_owned()
        };
        rows.push([name.to_owned(), result, seconds(began.elapsed())]);
    }
    rows.push(["all".to_owned(), String::new(), seconds(start.elapsed())]);
    println!("\n{}", table::render(["task", "result", "time"], &rows));
    println!("{passed} passed, {failed} failed, {left_out} left out");
    if failed > 0 {
        bail!("{failed} of {} tasks failed", TASKS.len());
    }
    if left_out > 0 && context.pipeline {
        bail!("a pipeline must run everything, and {left_out} tasks need root");
    }
    Ok(())
}

fn seconds(time: Duration) -> String {
    format!("{:6.1} s", time.as_secs_f64())
}
