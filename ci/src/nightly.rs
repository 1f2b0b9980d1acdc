//! `cargo ci nightly`: the tasks that take hours. The hosted pipeline runs each on its own machine with `--only`.

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    all::{self, NIGHTLY},
    context::Context,
};

/// Arguments of the nightly tasks.
#[derive(Debug, Default, Args)]
pub(crate) struct Nightly {
    /// Only this task: model, crash, faults, mutants or vm; may be given several times
    #[arg(long, value_name = "TASK")]
    only: Vec<String>,
}

/// Runs the selected tasks.
///
/// # Errors
/// When `--only` names an unknown task, or a task fails.
pub(crate) fn run(context: &Context, nightly: &Nightly) -> Result<()> {
    let known = |name: &&String| NIGHTLY.iter().any(|task| task.name() == *name);
    if let Some(unknown) = nightly.only.iter().find(|name| !known(name)) {
        let names: Vec<&str> = NIGHTLY.iter().map(all::Task::name).collect();
        bail!("{unknown:?} is not a nightly task: {}", names.join(", "));
    }
    let selected = |task: &&all::Task| {
        nightly.only.is_empty() || nightly.only.iter().any(|name| name == task.name())
    };
    let tasks: Vec<all::Task> = NIGHTLY.into_iter().filter(|task| selected(&task)).collect();
    all::run(context, &tasks)
}
