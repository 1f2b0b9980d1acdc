//! Which crates the workspace may be made of: licences, sources, known faults. cargo-deny judges, by `.deny.toml`.
//!
//! Its database of faults lies where not every machine can look, so `.ci/run` judges the rest; the hosted pipeline asks it each week.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;

use crate::{context::Context, run::Step};

/// The release of cargo-deny that is built, and by its own Cargo.lock: about 100 s on two processors, once.
const VERSION: &str = "0.20.2";

/// Arguments of the judgement.
#[derive(Debug, Default, Args)]
pub(crate) struct Deny {
    /// Judge by RustSec's database of known faults, too, and nothing but its newest state (network)
    #[arg(long)]
    advisories: bool,
}

/// Judges every crate in Cargo.lock.
///
/// # Errors
/// When one may not be there, or cargo-deny or its database cannot be had.
pub(crate) fn run(context: &Context, deny: &Deny) -> Result<()> {
    let program = program(context)?;
    let mut step = Step::new(context, &program.to_string_lossy());
    step = step.args(&["--locked", "--config"]);
    step = step.arg(context.root.join(".deny.toml"));
    step = step.args(&["check", "--hide-inclusion-graph"]);
    if deny.advisories {
        step = step.arg("advisories");
    }
    step.args(&["licenses", "bans", "sources"]).show()
}

/// The pinned cargo-deny, built when it is missing. It stays with cargo's other files, so that a fresh clone finds it.
fn program(context: &Context) -> Result<PathBuf> {
    let folder = context.cargo.join(format!("cargo-ci/deny-{VERSION}"));
    let program = folder.join("bin/cargo-deny");
    if !program.is_file() {
        Step::new(context, "cargo install cargo-deny --locked --quiet")
            .args(&["--version", VERSION, "--root"])
            .arg(&folder)
            .env("CARGO_TARGET_DIR", context.target.join("cargo-deny"))
            .quiet(&format!("Building cargo-deny {VERSION}"))?;
    }
    let asked = Step::new(context, &program.to_string_lossy())
        .arg("--version")
        .output()?;
    ensure!(
        asked.stdout.trim() == format!("cargo-deny {VERSION}"),
        "{}: not cargo-deny {VERSION}: {}{}",
        program.display(),
        asked.stdout,
        asked.stderr
    );
    Ok(program)
}
