//! How the chart starts a container: read from the plain manifests that it renders with both simulators. Text in, facts out.

use anyhow::{Context as _, Result};
use serde::Deserialize as _;
use serde_yaml_ng::{Deserializer, Value};

/// `cargo ci tidy` checks that it is what the chart renders.
const MANIFESTS: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../driver/deploy/manifests/synology-csi-sim.yaml"
);

/// A container of the chart.
#[derive(Clone, Debug)]
pub(crate) struct Container {
    /// NAME:TAG.
    pub(crate) image: String,
    /// Its arguments. `$(NODE_NAME)` stands for the node's name.
    pub(crate) args: Vec<String>,
    /// Its variables, but for the node's name.
    pub(crate) env: Vec<(String, String)>,
    /// USER:GROUP, as numbers.
    pub(crate) user: String,
    /// Its root cannot be written to.
    pub(crate) read_only: bool,
    /// What it may do.
    pub(crate) privileges: Privileges,
    /// It is in the node's own network.
    pub(crate) host_network: bool,
    /// What is mounted where.
    pub(crate) mounts: Vec<Mount>,
}

/// What a container may do.
#[derive(Clone, Debug)]
pub(crate) enum Privileges {
    /// Everything, with devices too.
    All,
    /// What an engine gives, less some.
    Fewer {
        /// Capabilities that it has not.
        drop: Vec<String>,
        /// A program in it can get more rights than whoever starts it.
        escalation: bool,
    },
}

/// A volume in a container.
#[derive(Clone, Debug)]
pub(crate) struct Mount {
    /// Where in the container.
    pub(crate) path: String,
    /// It cannot be written to.
    pub(crate) read_only: bool,
    /// What it is.
    pub(crate) volume: Volume,
}

/// A volume of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Volume {
    /// A directory of the node.
    Host(String),
    /// A directory that lives as long as the pod: its name.
    Empty(String),
    /// The same, in memory.
    Memory,
    /// Files of ConfigMaps and Secrets: its name.
    Files(String),
}

impl Container {
    /// Reads the container `name` of the pod that the object `kind` `object` makes.
    ///
    /// # Errors
    /// There is none, or it has another shape.
    pub(crate) fn read(kind: &str, object: &str, name: &str) -> Result<Self> {
        let text = std::fs::read_to_string(MANIFESTS).context(MANIFESTS)?;
        let objects: Result<Vec<Value>, _> = Deserializer::from_str(&text)
            .map(Value::deserialize)
            .collect();
        let objects = objects?;
        let named = |it: &&Value| it["kind"] == kind && it["metadata"]["name"] == object;
        let pod = &objects
            .iter()
            .find(named)
            .with_context(|| format!("the chart has no {kind} {object}"))?["spec"]["template"]["spec"];
        let mut containers = ["initContainers", "containers"]
            .into_iter()
            .flat_map(|list| sequence(&pod[list]));
        let container = containers
            .find(|it| it["name"] == name)
            .with_context(|| format!("the chart's {object} has no container {name}"))?;
        Self::of(pod, container)
    }

    fn of(pod: &Value, container: &Value) -> Result<Self> {
        let own = &container["securityContext"];
        let id = |key: &str| own[key].as_u64().or(pod["securityContext"][key].as_u64());
        let user = id("runAsUser").context("runAsUser")?;
        let env = sequence(&container["env"]).filter(|it| it["value"].is_string());
        let mounts = sequence(&container["volumeMounts"]).map(|mount| Mount::of(pod, mount));
        let privileges = if own["privileged"] == true {
            Privileges::All
        } else {
            Privileges::Fewer {
                drop: texts(&own["capabilities"]["drop"])?,
                escalation: own["allowPrivilegeEscalation"] != false,
            }
        };
        Ok(Self {
            image: text(&container["image"])?,
            args: texts(&container["args"])?,
            env: env
                .map(|it| Ok((text(&it["name"])?, text(&it["value"])?)))
                .collect::<Result<_>>()?,
            // Kubernetes, too, takes group 0 for a user that is named without one.
            user: format!("{user}:{}", id("runAsGroup").unwrap_or(0)),
            read_only: own["readOnlyRootFilesystem"] == true,
            privileges,
            host_network: pod["hostNetwork"] == true,
            mounts: mounts.collect::<Result<_>>()?,
        })
    }
}

impl Mount {
    fn of(pod: &Value, mount: &Value) -> Result<Self> {
        let name = text(&mount["name"])?;
        let volume = sequence(&pod["volumes"])
            .find(|volume| volume["name"] == mount["name"])
            .with_context(|| format!("no volume {name}"))?;
        let volume = if volume["hostPath"].is_mapping() {
            Volume::Host(text(&volume["hostPath"]["path"])?)
        } else if volume["emptyDir"]["medium"] == "Memory" {
            Volume::Memory
        } else if volume["emptyDir"].is_mapping() {
            Volume::Empty(name)
        } else {
            Volume::Files(name)
        };
        Ok(Self {
            path: text(&mount["mountPath"])?,
            read_only: mount["readOnly"] == true,
            volume,
        })
    }
}

fn sequence(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_sequence().into_iter().flatten()
}

fn texts(value: &Value) -> Result<Vec<String>> {
    sequence(value).map(text).collect()
}

fn text(value: &Value) -> Result<String> {
    let text = value
        .as_str()
        .with_context(|| format!("no text: {value:?}"))?;
    Ok(text.to_owned())
}
