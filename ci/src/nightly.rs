//! What takes hours, all of it or in parts: a hosted pipeline gives each part a machine.

use anyhow::{Result, bail};
use clap::Args;

use crate::{
    all::{self, NIGHTLY},
    context::Context,
};

/// Arguments of the long tasks.
#[derive(Debug, Default, Args)]
pub(crate) struct Nightly {
    /// Only this one: model, crash, faults, sabotage or vm; may be given several times
    #[arg(long, value_name = "TASK")]
    only: Vec<String>,
}

/// Runs them.
///
/// # Errors
/// When there is no such task, or one fails.
pub(crate) fn run(context: &Context, nightly: &Nightly) -> Result<()> {
    let known = |name: &&String| NIGHTLY.iter().any(|task| task.name() == *name);
    if let Some(unknown) = nightly.only.iter().find(|name| !known(name)) {
        let names: Vec<&str> = NIGHTLY.iter().map(all::Task::name).collect();
        bail!(
            "there is no {unknown:?} among the long tasks: {}",
            names.join(", ")
        );
    }
    let meant = |task: &&all::Task| {
        nightly.only.is_empty() || nightly.only.iter().any(|name| name == task.name())
    };
    let tasks: Vec<all::Task> = NIGHTLY.into_iter().filter(|task| meant(&task)).collect();
    all::run(context, &tasks)
}
