//! A container orchestrator with our driver and a NAS on it, as the stories use it. [`Kubernetes`](crate::kubernetes) is a
//! real one; [`StandIn`](crate::stand_in) plays the calls of its sidecars and kubelets on this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::Value;

/// The driver's name in these stories.
pub(crate) const DRIVER: &str = "csi.synology.com";

/// How long [`Co::clear`] tries.
pub(crate) const CLEARS: Duration = Duration::from_secs(60);

/// What happens to a volume when its claim goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reclaim {
    /// It goes, too.
    Delete,
    /// It stays.
    Retain,
}

/// A StorageClass.
#[derive(Clone, Debug)]
pub(crate) struct Class {
    /// As it is written, in YAML: what a real one gets.
    pub(crate) text: String,
    /// Its name.
    pub(crate) name: String,
    /// For the driver.
    pub(crate) parameters: BTreeMap<String, String>,
    /// For its volumes; Delete unless it says otherwise.
    pub(crate) reclaim: Reclaim,
}

impl Class {
    /// Reads one.
    ///
    /// # Errors
    /// It is none, or not one of ours, or its claims cannot grow.
    pub(crate) fn read(text: &str) -> Result<Self> {
        let class: StorageClass = serde_yaml_ng::from_str(text)?;
        ensure!(
            class.provisioner == DRIVER,
            "provisioner: {}",
            class.provisioner
        );
        ensure!(
            class.allow_volume_expansion == Some(true),
            "allowVolumeExpansion is not true"
        );
        Ok(Self {
            text: text.to_owned(),
            name: class.metadata.name.context("a StorageClass has a name")?,
            parameters: class.parameters.unwrap_or_default(),
            reclaim: match class.reclaim_policy.as_deref() {
                None | Some("Delete") => Reclaim::Delete,
                Some("Retain") => Reclaim::Retain,
                Some(other) => bail!("reclaimPolicy: {other}"),
            },
        })
    }
}

/// A claim.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    /// Its name.
    pub(crate) name: String,
    /// Its StorageClass.
    pub(crate) class: String,
    /// What it asks for, bytes.
    pub(crate) bytes: i64,
    /// The pod gets a device instead of a directory.
    pub(crate) block: bool,
}

/// What a CO says about a claim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClaimSeen {
    /// Its volume, once it has one.
    pub(crate) volume: Option<String>,
    /// What it asks for now, bytes.
    pub(crate) asked: i64,
    /// What it has: for a pod that uses it, bytes. 0 before it is bound.
    pub(crate) capacity: i64,
    /// Its conditions, and where its expansion stands, in the words of Kubernetes (`FileSystemResizePending`,
    /// `ControllerResizeInfeasible`, …), each with its message.
    pub(crate) conditions: BTreeMap<String, String>,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VolumeSeen {
    /// Its name.
    pub(crate) name: String,
    /// The driver's handle.
    pub(crate) handle: String,
    /// The nodes that it is attached to, or is on its way to or from.
    pub(crate) nodes: BTreeSet<String>,
}

/// A pod with one container, which has a shell.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    /// Its name.
    pub(crate) name: String,
    /// The claim that it uses.
    pub(crate) claim: String,
    /// The claim is a device.
    pub(crate) block: bool,
    /// Where it has to run; anywhere by default.
    pub(crate) node: Option<String>,
    /// What it does all the time, in its shell; `$V` is its volume, a directory or a device. Nothing by default.
    pub(crate) works: Option<&'static str>,
}

/// What a CO says about a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PodSeen {
    /// Its node, once it has one.
    pub(crate) node: String,
    /// It runs.
    pub(crate) runs: bool,
    /// How often its container was started again, or has ended.
    pub(crate) restarts: i32,
}

/// A part of the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    /// With the sidecars.
    Controller,
    /// On the node of this name.
    Node(String),
}

/// A container orchestrator with our driver and a NAS on it. Each method asks for something and does not wait until it is so;
/// where it says more, it says so. What is there already, or not there any more, is no error.
pub(crate) trait Co {
    /// The names of its nodes, in order; at least one.
    async fn nodes(&self) -> Result<Vec<String>>;

    /// Makes a StorageClass with `allowVolumeExpansion`.
    async fn class(&self, class: &Class) -> Result<()>;

    /// Makes a claim.
    async fn claim(&self, claim: &Claim) -> Result<()>;

    /// Edits a claim's size. Refused, like Kubernetes does, when it would be smaller than what the claim has.
    async fn resize(&self, claim: &str, bytes: i64) -> Result<()>;

    /// Looks at a claim.
    async fn see_claim(&self, claim: &str) -> Result<Option<ClaimSeen>>;

    /// Deletes a claim.
    async fn unclaim(&self, claim: &str) -> Result<()>;

    /// Looks at the driver's volumes.
    async fn see_volumes(&self) -> Result<Vec<VolumeSeen>>;

    /// Says anew what happens to a volume when its claim goes, or now if it has gone.
    async fn set_reclaim(&self, volume: &str, reclaim: Reclaim) -> Result<()>;

    /// Starts a pod.
    async fn start(&self, pod: &Pod) -> Result<()>;

    /// Looks at a pod; it is there until all of its mounts have gone.
    async fn see_pod(&self, pod: &str) -> Result<Option<PodSeen>>;

    /// Stops a pod.
    async fn stop(&self, pod: &str) -> Result<()>;

    /// Runs a script in a pod's shell, to its end; `$V` is its volume. Answers what it prints, without white space around it;
    /// an error when it fails.
    async fn run(&self, pod: &str, script: &str) -> Result<String>;

    /// Kills a part of the driver; it comes back by itself.
    async fn kill(&self, half: &Half) -> Result<()>;

    /// All parts of the driver answer.
    async fn driver_is_up(&self) -> Result<bool>;

    /// Kills the NAS, as a power cut does; it comes back by itself, and until then nothing listens at its address.
    async fn restart_nas(&self) -> Result<()>;

    /// Asks the NAS at its control port: GET without a body, POST with one. An error while it is away.
    async fn nas(&self, knob: &str, body: Option<Value>) -> Result<Value>;

    /// Everything that a story has left behind but classes, in words: claims, volumes, attachments, pods; LUNs and targets on the NAS; on nodes sessions, mounts and devices as far as they can be seen.
    async fn leftovers(&self) -> Result<Vec<String>>;

    /// Removes all that stories have made, after one has failed; as far as that goes in a minute.
    async fn clear(&self) -> Result<()>;

    /// Writes down what one needs to find out why a story failed (events, logs, objects), a file each.
    async fn evidence(&self, folder: &Path) -> Result<()>;
}
