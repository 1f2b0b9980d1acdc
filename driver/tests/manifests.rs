//! The flags and configurations in the plain manifests and in the chart are accepted by the driver's own parsers.

#![allow(
    clippy::unwrap_used,
    reason = "a test; clippy does not treat its helper functions as test code"
)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use clap::{CommandFactory as _, Parser as _};
use driver::config::{Args, ChapMode, Config, Mode};
use serde::Deserialize as _;
use serde_yaml_ng::Value;

/// Every object of every manifest, with its file.
fn objects() -> Vec<(PathBuf, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/manifests");
    let mut objects = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        for document in serde_yaml_ng::Deserializer::from_str(&text) {
            objects.push((path.clone(), Value::deserialize(document).unwrap()));
        }
    }
    objects
}

fn list(value: &Value) -> &[Value] {
    value.as_sequence().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The arguments of a container as its process sees them: `$(NAME)` is expanded, here to the variable's own name.
fn arguments(container: &Value) -> Vec<String> {
    let names = list(&container["env"]).iter().map(|it| text(&it["name"]));
    let known: HashMap<String, &str> = names.map(|name| (format!("$({name})"), name)).collect();
    let expand = |arg: &Value| {
        let plain = known.iter().fold(text(arg).to_owned(), |arg, (from, to)| {
            arg.replace(from, to)
        });
        assert!(!plain.contains("$("), "{plain}: no such variable in env");
        plain
    };
    list(&container["args"]).iter().map(expand).collect()
}

/// File and kind of each object with a driver container, and its parsed arguments.
fn drivers() -> Vec<(String, Args)> {
    let mut found = Vec::new();
    for (path, object) in objects() {
        for container in list(&object["spec"]["template"]["spec"]["containers"]) {
            if container["name"] != "driver" {
                continue;
            }
            let place = format!("{} {}", path.display(), text(&object["kind"]));
            let words = std::iter::once("synology-csi".to_owned()).chain(arguments(container));
            let args = Args::try_parse_from(words).unwrap_or_else(|no| panic!("{place}: {no}"));
            found.push((place, args));
        }
    }
    found
}

#[test]
fn the_driver_accepts_every_flag_of_the_manifests() {
    let drivers = drivers();
    let modes = |mode| drivers.iter().filter(|(_, args)| args.mode == mode).count();
    assert_eq!(
        (modes(Mode::Controller), modes(Mode::Node), drivers.len()),
        (2, 2, 4),
        "a Deployment and a DaemonSet in each of the two manifests: {drivers:?}"
    );
    for (place, args) in &drivers {
        assert_eq!(args.endpoint, Path::new("/csi/csi.sock"), "{place}");
        match args.mode {
            Mode::Controller => assert!(args.config.is_some(), "{place}: --config is needed"),
            Mode::Node => assert_eq!(args.node_id.as_deref(), Some("NODE_NAME"), "{place}"),
            Mode::All => panic!("{place}: a pod runs either the controller or the node service"),
        }
    }
}

/// The names of all flags that a template of the chart may pass to the driver, also those that depend on values.
fn flags_of(template: &str) -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/chart/templates");
    let text = std::fs::read_to_string(folder.join(template)).unwrap();
    let (_, driver) = text.split_once("        - name: driver\n").unwrap();
    let own = driver.split("        - name: ").next().unwrap();
    // A literal argument, or one built with printf.
    let starts = ["- --", "- {{ printf \"--"];
    let flags = own.lines().filter_map(|line| {
        let line = line.trim();
        starts
            .into_iter()
            .find_map(|start| line.strip_prefix(start))
    });
    flags
        .map(|flag| flag.split('=').next().unwrap().to_owned())
        .collect()
}

#[test]
fn the_driver_knows_every_flag_of_the_chart() {
    let command = Args::command();
    let known: Vec<&str> = command
        .get_arguments()
        .filter_map(clap::Arg::get_long)
        .collect();
    for template in ["controller.yaml", "node.yaml"] {
        let flags = flags_of(template);
        for seen in ["metrics-address", "driver-name", "log-level"] {
            assert!(flags.contains(&seen.to_owned()), "{flags:?}");
        }
        for flag in flags {
            assert!(known.contains(&flag.as_str()), "{template}: --{flag}");
        }
    }
}

#[test]
fn the_driver_reads_the_configurations_of_the_manifests() {
    let mut read = 0;
    for (path, object) in objects() {
        let Some(config) = object["data"]["config.yaml"].as_str() else {
            continue;
        };
        let config =
            Config::read(config).unwrap_or_else(|no| panic!("{}: {no}: {no:?}", path.display()));
        assert!(config.state_file.is_some(), "{}", path.display());
        assert!(config.chap_key_file.is_some(), "{}", path.display());
        read += 1;
    }
    assert_eq!(read, 2, "one in each of the two manifests");
}

#[test]
fn the_driver_knows_every_chap_mode_of_the_chart() {
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/chart/values.schema.json");
    let schema: Value = serde_yaml_ng::from_str(&std::fs::read_to_string(chart).unwrap()).unwrap();
    let words = list(&schema["properties"]["chap"]["properties"]["mode"]["enum"]);
    let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
    let read = words.iter().map(|word| {
        let nas = "{name: a, url: 'https://a', username: a, password: a}";
        let config = Config::read(&format!("nas: [{nas}]\nchap: {word}\n"));
        config.unwrap_or_else(|no| panic!("{word}: {no:?}")).chap
    });
    assert_eq!(
        read.collect::<Vec<_>>(),
        [ChapMode::Mutual, ChapMode::OneWay, ChapMode::Off]
    );
}
