//! `cargo ci test`, `node`, `sanity` and `clients`: runs tests, counts skips, and builds the programs that tests start.

use std::path::PathBuf;
use std::{fs, process};

use anyhow::{Context as _, Result, bail};

use crate::{
    context::Context,
    doctor::{self, need::Layer},
    go,
    run::Cmd,
    skip::{self, Counts},
};

/// All tests of the workspace. Without root, those that need it are skipped and counted.
///
/// # Errors
/// When a test fails, or is skipped without need, or something required is missing.
pub(crate) fn test(context: &Context) -> Result<()> {
    if !context.privileges.root {
        println!(
            "Not root: tests that need block devices and mounts are skipped and counted at the end."
        );
    }
    doctor::ready(context, Layer::Test)?;
    // These have their own tasks: csi-sanity takes minutes, third-party clients need many packages, images need a Docker engine.
    let rest = ["conforms_with", "outsider_", "contained_"].map(|part| ["--skip", part]);
    let tests = Cmd::new(context, "cargo test --locked --workspace --no-fail-fast --");
    run(context, tests, rest.as_flattened())
}

/// The node tests with block devices.
///
/// # Errors
/// See [`test()`]; root is required.
pub(crate) fn node(context: &Context) -> Result<()> {
    doctor::ready(context, Layer::Node)?;
    run(context, test_binary(context, "node"), &[])
}

/// csi-sanity, and the controller tests again, on a NAS with other users' LUNs and targets.
///
/// # Errors
/// See [`test()`]; root and Go are required.
pub(crate) fn sanity(context: &Context) -> Result<()> {
    doctor::ready(context, Layer::Sanity)?;
    run(context, test_binary(context, "sanity"), &["--nocapture"])?;
    let stories = test_binary(context, "controller").env("E2E_NAS", "shared");
    run(context, stories, &[])
}

/// Third-party clients against dsm-sim: two Python libraries and a browser.
///
/// # Errors
/// See [`test()`]; or when a library cannot be downloaded.
pub(crate) fn clients(context: &Context) -> Result<()> {
    doctor::ready(context, Layer::Clients)?;
    python(context)?;
    run(context, test_binary(context, "clients"), &["--nocapture"])
}

/// A Python virtual environment with the libraries.
fn python(context: &Context) -> Result<PathBuf> {
    let folder = context.tools().join("python");
    let python = folder.join("bin/python");
    // Written last, when the installation is complete.
    let installed = folder.join(LIBRARIES.join(","));
    if !installed.is_file() {
        Cmd::new(context, "virtualenv --clear --quiet")
            .arg(&folder)
            .run_quietly("Making a Python environment")?;
        Cmd::new(context, &python.to_string_lossy())
            .args(&[
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
            ])
            .args(&LIBRARIES)
            .run_quietly(&format!("Installing {}", LIBRARIES.join(", ")))?;
        fs::write(&installed, "")?;
    }
    Ok(python)
}

/// Builds all programs.
///
/// # Errors
/// When one does not compile.
pub(crate) fn build_programs(context: &Context) -> Result<()> {
    Cmd::new(context, "cargo build --locked --workspace --bins")
        .run_quietly("Building the driver, the simulators and the harness")
}

/// Builds only these programs, optimized: each takes a minute of CPU time. `--workspace` selects the same features as everywhere:
/// otherwise half of all crates would be built twice.
///
/// # Errors
/// When one does not compile.
pub(crate) fn build_optimized(context: &Context, programs: &[&str]) -> Result<()> {
    let bins = programs.iter().flat_map(|name| ["--bin", name]);
    Cmd::new(context, "cargo build --locked --release --workspace")
        .args(&bins.collect::<Vec<_>>())
        .run_quietly(&format!("Building {}", programs.join(", ")))
}

/// The programs that every search program of e2e may start.
pub(crate) const STARTED_PROGRAMS: [&str; 4] = ["synology-csi", "dsm-sim", "node-sim", "janitor"];

/// The tested releases of N4S4's and of Home Assistant's library.
const LIBRARIES: [&str; 2] = ["synology-api==0.9.4", "py-synologydsm-api==2.11.0"];

/// `cargo test` for one test binary.
fn test_binary(context: &Context, name: &str) -> Cmd {
    let line = format!("cargo test --locked --workspace --test {name} --no-fail-fast --");
    Cmd::new(context, &line)
}

/// Builds all programs, runs a `cargo test … --` with `more` appended, and counts the results.
///
/// # Errors
/// When a test fails, or is skipped without need, or when no test ran.
pub(crate) fn run(context: &Context, cmd: Cmd, more: &[&str]) -> Result<()> {
    build_programs(context)?;
    // One log per process, because others may run tests at the same time.
    let log = context.target.join(format!("skips-{}.log", process::id()));
    fs::write(&log, "").with_context(|| format!("{}: was it made by root?", log.display()))?;
    let mut cmd = cmd
        .arg("--color")
        .arg(if context.terminal { "always" } else { "never" });
    cmd = cmd.args(more).env("SKIP_LOG", &log);
    if let Some(sanity) = go::installed_sanity(context) {
        cmd = cmd.env("CSI_SANITY", sanity);
    }
    let python = context.tools().join("python/bin/python");
    if python.is_file() {
        cmd = cmd.env("CLIENTS_PYTHON", python);
    }
    let mut counts = Counts::default();
    let passed = cmd.tee(|line| counts.read(line))?;
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
        bail!("{forbidden} tests were skipped that can run as root");
    }
    if counts.passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}
