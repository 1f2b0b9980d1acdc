//! `cargo ci deny`: licenses, sources and known vulnerabilities of all crates, checked by cargo-deny as configured in
//! `.deny.toml`.
//!
//! Not every machine can reach the advisory database, so `.ci/run` checks the rest. The hosted pipeline checks advisories weekly.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;

use crate::{context::Context, run::Cmd};

/// The release of cargo-deny. It is built once, with its own Cargo.lock: about 100 s on two processors.
const VERSION: &str = "0.20.2";

/// Arguments of `cargo ci deny`.
#[derive(Debug, Default, Args)]
pub(crate) struct Deny {
    /// Also check the newest RustSec advisory database (network)
    #[arg(long)]
    advisories: bool,
}

/// Checks every crate in Cargo.lock.
///
/// # Errors
/// When a crate is denied, or cargo-deny or its database cannot be fetched.
pub(crate) fn run(context: &Context, deny: &Deny) -> Result<()> {
    let program = program(context)?;
    let mut cmd = Cmd::new(context, &program.to_string_lossy());
    cmd = cmd.args(&["--locked", "--config"]);
    cmd = cmd.arg(context.root.join(".deny.toml"));
    cmd = cmd.args(&["check", "--hide-inclusion-graph"]);
    if deny.advisories {
        cmd = cmd.arg("advisories");
    }
    cmd.args(&["licenses", "bans", "sources"]).run()
}

/// The pinned cargo-deny, built if missing. It is installed below `CARGO_HOME`, so that a fresh clone finds it.
fn program(context: &Context) -> Result<PathBuf> {
    let folder = context.cargo.join(format!("cargo-ci/deny-{VERSION}"));
    let program = folder.join("bin/cargo-deny");
    if !program.is_file() {
        Cmd::new(context, "cargo install cargo-deny --locked --quiet")
            .args(&["--version", VERSION, "--root"])
            .arg(&folder)
            .env("CARGO_TARGET_DIR", context.target.join("cargo-deny"))
            .run_quietly(&format!("Building cargo-deny {VERSION}"))?;
    }
    let output = Cmd::new(context, &program.to_string_lossy())
        .arg("--version")
        .output()?;
    ensure!(
        output.stdout.trim() == format!("cargo-deny {VERSION}"),
        "{}: not cargo-deny {VERSION}: {}{}",
        program.display(),
        output.stdout,
        output.stderr
    );
    Ok(program)
}
