//! `cargo ci fmt` and `cargo ci lint`.

use anyhow::Result;

use crate::{
    context::Context,
    doctor::{self, need::Layer},
    run::Cmd,
};

/// Checks the formatting; with `fix`, formats the code.
///
/// # Errors
/// When the code is not formatted.
pub(crate) fn fmt(context: &Context, fix: bool) -> Result<()> {
    doctor::ready(context, Layer::Lint)?;
    let cmd = Cmd::new(context, "cargo fmt --all");
    if fix {
        cmd.run()
    } else {
        cmd.arg("--check").run()
    }
}

/// Runs clippy, then rustdoc, on the whole workspace.
///
/// # Errors
/// When either reports a warning.
pub(crate) fn lint(context: &Context) -> Result<()> {
    doctor::ready(context, Layer::Lint)?;
    Cmd::new(
        context,
        "cargo clippy --locked --workspace --all-targets --quiet -- -D warnings",
    )
    .run()?;
    Cmd::new(context, "cargo doc --locked --workspace --no-deps --quiet")
        .env("RUSTDOCFLAGS", "-D warnings")
        .run()
}
