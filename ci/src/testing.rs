//! The tests: all of them, or the layers that need root.

use std::path::PathBuf;
use std::{fs, process};

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
    // The conformance suite takes minutes, other people's programs are many packages, images take an engine: each has a task of its own.
    let rest = ["conforms_with", "outsider_", "contained_"].map(|part| ["--skip", part]);
    let tests = Step::new(context, "cargo test --locked --workspace --no-fail-fast --");
    run(context, tests, rest.as_flattened())
}

/// The stories with block devices.
///
/// # Errors
/// See [`test()`]; root is indispensable.
pub(crate) fn node(context: &Context) -> Result<()> {
    doctor::ready(context, Layer::Node)?;
    run(context, one(context, "node"), &[])
}

/// csi-sanity, and the controller's stories once more, told on a NAS that others use, too.
///
/// # Errors
/// See [`test()`]; root and Go are indispensable.
pub(crate) fn sanity(context: &Context) -> Result<()> {
    doctor::ready(context, Layer::Sanity)?;
    run(context, one(context, "sanity"), &["--nocapture"])?;
    let stories = one(context, "controller").env("E2E_NAS", "shared");
    run(context, stories, &[])
}

/// Other people's programs against dsm-sim: two Python libraries and a browser.
///
/// # Errors
/// See [`test()`]; or a library cannot be fetched.
pub(crate) fn clients(context: &Context) -> Result<()> {
    doctor::ready(context, Layer::Clients)?;
    python(context)?;
    run(context, one(context, "clients"), &["--nocapture"])
}

/// A Python of its own with the libraries in it.
fn python(context: &Context) -> Result<PathBuf> {
    let folder = context.tools().join("python");
    let python = folder.join("bin/python");
    // The last thing that an installation makes.
    let installed = folder.join(LIBRARIES.join(","));
    if !installed.is_file() {
        Step::new(context, "virtualenv --clear --quiet")
            .arg(&folder)
            .quiet("Making a Python environment")?;
        Step::new(context, &python.to_string_lossy())
            .args(&[
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
            ])
            .args(&LIBRARIES)
            .quiet(&format!("Installing {}", LIBRARIES.join(", ")))?;
        fs::write(&installed, "")?;
    }
    Ok(python)
}

/// Builds all programs.
///
/// # Errors
/// When one does not compile.
pub(crate) fn build_programs(context: &Context) -> Result<()> {
    Step::new(context, "cargo build --locked --workspace --bins")
        .quiet("Building the driver, the simulators and the harness")
}

/// Builds these programs with optimization, and no others: each takes a minute of a processor. Features are those of the whole
/// workspace: with others, half of all crates would be built twice.
///
/// # Errors
/// When one does not compile.
pub(crate) fn build_optimized(context: &Context, programs: &[&str]) -> Result<()> {
    let bins = programs.iter().flat_map(|name| ["--bin", name]);
    Step::new(context, "cargo build --locked --release --workspace")
        .args(&bins.collect::<Vec<_>>())
        .quiet(&format!("Building {}", programs.join(", ")))
}

/// What the harness starts, whichever of its programs.
pub(crate) const STARTED: [&str; 4] = ["synology-csi", "dsm-sim", "node-sim", "janitor"];

/// The releases of N4S4's and of Home Assistant's library that are tested with.
const LIBRARIES: [&str; 2] = ["synology-api==0.9.4", "py-synologydsm-api==2.11.0"];

/// One program of tests.
fn one(context: &Context, name: &str) -> Step {
    let line = format!("cargo test --locked --workspace --test {name} --no-fail-fast --");
    Step::new(context, &line)
}

/// Builds everything, runs a `cargo test` that ends with `--` with `more` after that, and counts.
///
/// # Errors
/// When one fails, when one is skipped that could have run, or when none ran.
pub(crate) fn run(context: &Context, step: Step, more: &[&str]) -> Result<()> {
    build_programs(context)?;
    // Others may run tests at the same time.
    let log = context.target.join(format!("skips-{}.log", process::id()));
    fs::write(&log, "").with_context(|| format!("{}: was it made by root?", log.display()))?;
    let mut step = step
        .arg("--color")
        .arg(if context.terminal { "always" } else { "never" });
    step = step.args(more).env("SKIP_LOG", &log);
    if let Some(sanity) = go::installed_sanity(context) {
        step = step.env("CSI_SANITY", sanity);
    }
    let python = context.tools().join("python/bin/python");
    if python.is_file() {
        step = step.env("CLIENTS_PYTHON", python);
    }
    let mut counts = Counts::default();
    let passed = step.tee(|line| counts.read(line))?;
    let skips = skip::parse_log(&fs::read_to_string(&log)?);
    fs::remove_file(&log)?;
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
