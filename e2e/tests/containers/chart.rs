//! How the chart starts a container, parsed from the plain manifests that it renders with both simulators. No I/O.

use anyhow::{Context as _, Result};
use serde::Deserialize as _;
use serde_yaml_ng::{Deserializer, Value};

/// `cargo ci tidy` checks that these are what the chart renders.
const MANIFESTS: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../driver/deploy/manifests/synology-csi-sim.yaml"
);

/// A container of the chart.
#[derive(Clone, Debug)]
pub(crate) struct Container {
    /// NAME:TAG.
    pub(crate) image: String,
    /// Its arguments. `$(NODE_NAME)` is a placeholder for the node's name.
    pub(crate) args: Vec<String>,
    /// Its environment variables, except the node's name.
    pub(crate) env: Vec<(String, String)>,
    /// USER:GROUP, numeric.
    pub(crate) user: String,
    /// Whether its root file system is read-only.
    pub(crate) read_only: bool,
    /// Its privileges.
    pub(crate) privileges: Privileges,
    /// Whether it is in the host's network namespace.
    pub(crate) host_network: bool,
    /// Its volume mounts.
    pub(crate) mounts: Vec<Mount>,
}

/// A container's privileges.
#[derive(Clone, Debug)]
pub(crate) enum Privileges {
    /// Privileged: everything, including devices.
    All,
    /// The engine's defaults, with restrictions.
    Fewer {
        /// Dropped capabilities.
        drop: Vec<String>,
        /// Whether a program in it can gain privileges.
        escalation: bool,
    },
}

/// A volume mount of a container.
#[derive(Clone, Debug)]
pub(crate) struct Mount {
    /// The path in the container.
    pub(crate) path: String,
    /// Whether it is read-only.
    pub(crate) read_only: bool,
    /// The volume.
    pub(crate) volume: Volume,
}

/// A volume of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Volume {
    /// A directory of the node (hostPath).
    Host(String),
    /// A directory that lives as long as the pod (emptyDir): its name.
    Empty(String),
    /// The same, in memory.
    Memory,
    /// Files of ConfigMaps and Secrets: its name.
    Files(String),
}

impl Container {
    /// Parses the container `name` of the pod in the object `kind` `object`.
    ///
    /// # Errors
    /// There is no such container, or it has another shape.
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
            // Kubernetes, too, uses group 0 if only a user is set.
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
