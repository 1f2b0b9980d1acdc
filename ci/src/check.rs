//! Formatting and lints.

use anyhow::Result;

use crate::{
    context::Context,
    doctor::{self, need::Layer},
    run::Step,
};

/// Is the code formatted? With `fix`, formats it.
///
/// # Errors
/// When it is not.
pub(crate) fn fmt(context: &Context, fix: bool) -> Result<()> {
    doctor::ready(context, Layer::Lint)?;
    let step = Step::new(context, "cargo fmt --all");
    if fix {
        step.show()
    } else {
        step.arg("--check").show()
    }
}

/// Clippy over everything, then the documentation; every warning is an error.
///
/// # Errors
/// When there is one.
pub(crate) fn lint(context: &Context) -> Result<()> {
    doctor::ready(context, Layer::Lint)?;
    Step::new(
        context,
        "cargo clippy --locked --workspace --all-targets --quiet -- -D warnings",
    )
    .show()?;
    Step::new(context, "cargo doc --locked --workspace --no-deps --quiet")
        .env("RUSTDOCFLAGS", "-D warnings")
        .show()
}
