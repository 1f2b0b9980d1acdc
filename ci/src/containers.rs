//! `cargo ci containers`: builds the images, then runs the tests that start them in a Docker engine as the chart would.

use std::{path::Path, process};

use anyhow::{Result, ensure};

use crate::{
    context::Context,
    doctor::{self, need::Layer},
    images::{
        self,
        engine::{Engine, Network},
    },
    run::Cmd,
    testing,
};

/// Prefix of the names of the tests' containers and networks. The PID of their `cargo ci` follows.
const OURS: &str = "synology-csi-tests-";

/// Builds the images, and tests them.
///
/// # Errors
/// When an image fails its checks, or a test fails.
pub(crate) fn run(context: &Context) -> Result<()> {
    doctor::ready(context, Layer::Containers)?;
    images::run_with_broken_image(context)?;
    let engine = Engine::connect_or_start(context, Network::Isolated)?;
    let own = process::id();
    // Left over from runs that were killed. Other runs on the same engine keep theirs.
    sweep(&engine, |run| !is_alive(run))?;
    let test = test_program(context, &engine.runner()?);
    let cmd = engine
        .with_docker_host(test)
        .env("CONTAINERS_RUN", own.to_string());
    let tested = testing::run(context, cmd, &["--nocapture"]);
    let leftover = sweep(&engine, |run| run == own);
    tested?;
    let leftover = leftover?;
    ensure!(
        leftover.is_empty(),
        "the tests left {}",
        leftover.join(", ")
    );
    Ok(())
}

/// Only the test program is started with `runner`; cargo is not, because it may have to download something.
fn test_program(context: &Context, runner: &[String]) -> Cmd {
    let rest = "test --locked --workspace --test containers --no-fail-fast --";
    if runner.is_empty() {
        return Cmd::new(context, &format!("cargo {rest}"));
    }
    let words: Vec<&str> = rest.split(' ').collect();
    Cmd::new(context, "cargo --config")
        .arg(format!("target.'cfg(unix)'.runner = {runner:?}"))
        .args(&words)
}

/// Removes the containers and networks of the selected runs, and returns their names.
fn sweep(engine: &Engine<'_>, selected: impl Fn(u32) -> bool) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for (list, remove) in [
        ("ps --all --format {{.Names}}", "rm --force --volumes"),
        ("network ls --format {{.Name}}", "network rm"),
    ] {
        let listed = engine.docker(list).output()?;
        ensure!(listed.success, "{}", listed.stderr);
        let names = listed.stdout.lines();
        for name in names.filter(|name| run_of(name).is_some_and(&selected)) {
            let output = engine.docker(remove).arg(name).output()?;
            ensure!(output.success, "{}", output.stderr);
            removed.push(name.to_owned());
        }
    }
    Ok(removed)
}

/// The PID of the run that a container or network belongs to.
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
    fn names_contain_the_pid_of_their_run() {
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

    /// The Compose example uses the images that `cargo ci images` builds, and its NAS URL names one of its services.
    #[test]
    fn the_compose_example_uses_our_images() {
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
