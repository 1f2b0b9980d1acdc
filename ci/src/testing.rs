//! The tests: all of them, or the layers that need root.

use std::fs;

use anyhow::{Context as _, Result, bail};

use crate::{
    context::Context,
    doctor::{self, need::Layer},
    go,
    run::Step,
    skip::{self, Counts},
};

/// Every test of the workspace. Without root, those that need it say so and are counted.
///
/// # Errors
/// When one fails, when one is skipped that could have run, or when something indispensable is missing.
pub(crate) fn test(context: &Context) -> Result<()> {
    if !context.privileges.root {
        println!(
            "Not root: tests that need block devices and mounts are skipped and counted at the end."
        );
    }
    doctor::ready(context, Layer::Test)?;
    // The conformance suite takes minutes and has a task of its own.
    let rest = ["--skip", "conforms_with"];
    run(context, "cargo test --workspace --no-fail-fast --", &rest)
}

/// The stories with block devices.
///
/// # Errors
/// See [`test()`]; root is indispensable.
pub(crate) fn node(context: &Context) -> Result<()> {
    doctor::ready(context, Layer::Node)?;
    run(
        context,
        "cargo test --workspace --test node --no-fail-fast --",
        &[],
    )
}

/// csi-sanity.
///
/// # Errors
/// See [`test()`]; root and Go are indispensable.
pub(crate) fn sanity(context: &Context) -> Result<()> {
    doctor::ready(context, Layer::Sanity)?;
    run(
        context,
        "cargo test --workspace --test sanity --no-fail-fast --",
        &["--nocapture"],
    )
}

/// Builds all programs, the whole workspace at once: a part of it would be built with other features, and twice.
///
/// # Errors
/// When one does not compile.
pub(crate) fn build_programs(context: &Context, profile: &[&str]) -> Result<()> {
    Step::new(context, "cargo build --workspace --bins")
        .args(profile)
        .quiet("Building the driver, the simulators and the harness")
}

fn run(context: &Context, command: &str, more: &[&str]) -> Result<()> {
    build_programs(context, &[])?;
    let log = context.target.join("skips.log");
    fs::write(&log, "").with_context(|| format!("{}: was it made by root?", log.display()))?;
    let mut step = Step::new(context, command)
        .arg("--color")
        .arg(if context.terminal { "always" } else { "never" });
    step = step.args(more).env("SKIP_LOG", &log);
    if let Some(sanity) = go::installed_sanity(context) {
        step = step.env("CSI_SANITY", sanity);
    }
    let mut counts = Counts::default();
    let passed = step.tee(|line| counts.read(line))?;
    let skips = skip::parse_log(&fs::read_to_string(&log)?);
    let forbidden = skips
        .iter()
        .filter(|skip| !skip.allowed(context.privileges))
        .count();
    for skip in &skips {
        let verdict = if skip.allowed(context.privileges) {
            "skipped"
        } else {
            "SKIPPED, but could have run as root"
        };
        println!("{verdict}: {}: {}", skip.test, skip.reason);
    }
    println!("{}", counts.line(&skips));
    if !passed {
        bail!("a test failed");
    }
    if forbidden > 0 {
        bail!("{forbidden} skipped that root must be able to run");
    }
    if counts.passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}
