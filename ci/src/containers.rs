//! The images as their chart starts them: builds them, then lets the tests start them by a Docker engine.

use std::{path::Path, process};

use anyhow::{Result, ensure};

use crate::{
    context::Context,
    doctor::{self, need::Layer},
    images::{
        self,
        engine::{Engine, Network},
    },
    run::Step,
    testing,
};

/// How the names of the tests' containers and networks begin; the process of the run that they belong to follows.
const OURS: &str = "synology-csi-tests-";

/// Builds the images, and tests them.
///
/// # Errors
/// When an image is not as it should be, or a test fails.
pub(crate) fn run(context: &Context) -> Result<()> {
    doctor::ready(context, Layer::Containers)?;
    images::prove(context)?;
    let engine = Engine::reach(context, Network::Own)?;
    let own = process::id();
    // Of runs that were killed. Whoever else tests at the same engine keeps what is theirs.
    sweep(&engine, |run| !is_alive(run))?;
    let test = test_program(context, &engine.runner()?);
    let step = engine.known_to(test).env("CONTAINERS_RUN", own.to_string());
    let tested = testing::run(context, step, &["--nocapture"]);
    let left = sweep(&engine, |run| run == own);
    tested?;
    let left = left?;
    ensure!(left.is_empty(), "the tests left {}", left.join(", "));
    Ok(())
}

/// Only the tests are started by `runner`: cargo may have to fetch something.
fn test_program(context: &Context, runner: &[String]) -> Step {
    let rest = "test --locked --workspace --test containers --no-fail-fast --";
    if runner.is_empty() {
        return Step::new(context, &format!("cargo {rest}"));
    }
    let words: Vec<&str> = rest.split(' ').collect();
    Step::new(context, "cargo --config")
        .arg(format!("target.'cfg(unix)'.runner = {runner:?}"))
        .args(&words)
}

/// Removes the containers and networks of those runs for which `of` is true; answers their names.
fn sweep(engine: &Engine<'_>, of: impl Fn(u32) -> bool) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for (list, remove) in [
        ("ps --all --format {{.Names}}", "rm --force --volumes"),
        ("network ls --format {{.Name}}", "network rm"),
    ] {
        let listed = engine.step(list).output()?;
        ensure!(listed.success, "{}", listed.stderr);
        let names = listed.stdout.lines();
        for name in names.filter(|name| run_of(name).is_some_and(&of)) {
            let gone = engine.step(remove).arg(name).output()?;
            ensure!(gone.success, "{}", gone.stderr);
            removed.push(name.to_owned());
        }
    }
    Ok(removed)
}

/// The run that a container or a network belongs to.
fn run_of(name: &str) -> Option<u32> {
    let number = name.strip_prefix(OURS)?.split('-').next()?;
    number.parse().ok()
}

fn is_alive(process: u32) -> bool {
    Path::new(&format!("/proc/{process}")).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_their_run() {
        assert_eq!(run_of("synology-csi-tests-41-1-nas"), Some(41));
        assert_eq!(run_of("synology-csi-tests-42-1"), Some(42));
        for other in [
            "bridge",
            "synology-csi-tests-x-1",
            "my-synology-csi-tests-1-1",
        ] {
            assert_eq!(run_of(other), None, "{other}");
        }
    }
    /// The example for work on the controller takes what `cargo ci images` builds here, and its controller finds its NAS.
    #[test]
    fn the_example_for_docker_compose_is_of_these_images() {
        let file = include_str!("../../driver/deploy/examples/compose/compose.yaml");
        let compose: serde_json::Value = serde_yaml_ng::from_str(file).unwrap();
        let services = compose["services"].as_object().unwrap();
        let ours: Vec<String> = images::tags().collect();
        for (name, service) in services {
            let image = service["image"].as_str().unwrap().to_owned();
            assert!(ours.contains(&image), "{name}: {image}");
        }
        let config = include_str!("../../driver/deploy/examples/compose/config.yaml");
        let config: serde_json::Value = serde_yaml_ng::from_str(config).unwrap();
        let host = config["nas"][0]["url"].as_str().unwrap();
        let host = host
            .strip_prefix("http://")
            .unwrap()
            .split(':')
            .next()
            .unwrap();
        assert!(services.contains_key(host), "{host}");
    }
}
