//! A container orchestrator (CO) with our driver and a NAS, as the stories use it. [`Kubernetes`](crate::kubernetes::Kubernetes)
//! is a real one; [`FakeKubernetes`](crate::fake_kubernetes::FakeKubernetes) makes the calls of its sidecars and kubelets on this
//! machine.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::storage::v1::StorageClass;
use serde_json::Value;

/// The driver's name in these stories.
pub(crate) const DRIVER: &str = "csi.synology.com";

/// Timeout of [`Co::clear`].
pub(crate) const CLEAR_TIMEOUT: Duration = Duration::from_secs(60);

/// What happens to a volume when its claim is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reclaim {
    /// It is deleted, too.
    Delete,
    /// It is kept.
    Retain,
}

/// A StorageClass.
#[derive(Clone, Debug)]
pub(crate) struct Class {
    /// Its YAML, which is what a real cluster gets.
    pub(crate) text: String,
    pub(crate) name: String,
    /// Parameters for the driver.
    pub(crate) parameters: BTreeMap<String, String>,
    /// Reclaim policy of its volumes; default: Delete.
    pub(crate) reclaim: Reclaim,
}

impl Class {
    /// Parses the YAML of a StorageClass.
    ///
    /// # Errors
    /// It is not a StorageClass, not for our driver, or does not allow expansion.
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
            name: class
                .metadata
                .name
                .context("the StorageClass has no name")?,
            parameters: class.parameters.unwrap_or_default(),
            reclaim: match class.reclaim_policy.as_deref() {
                None | Some("Delete") => Reclaim::Delete,
                Some("Retain") => Reclaim::Retain,
                Some(other) => bail!("reclaimPolicy: {other}"),
            },
        })
    }
}

/// A PersistentVolumeClaim.
#[derive(Clone, Debug)]
pub(crate) struct Claim {
    pub(crate) name: String,
    pub(crate) class: String,
    /// The requested size, bytes.
    pub(crate) bytes: i64,
    /// Whether the pod gets a block device instead of a directory.
    pub(crate) block: bool,
}

/// The observed state of a claim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ClaimSeen {
    /// Its volume, once it is bound.
    pub(crate) volume: Option<String>,
    /// The size that it requests now, bytes.
    pub(crate) requested: i64,
    /// Its capacity, bytes: what a pod that uses it has. 0 before it is bound.
    pub(crate) capacity: i64,
    /// Its conditions and the state of its expansion, as Kubernetes names them (`FileSystemResizePending`,
    /// `ControllerResizeInfeasible`, …), each with its message.
    pub(crate) conditions: BTreeMap<String, String>,
}

/// The observed state of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VolumeSeen {
    pub(crate) name: String,
    /// The driver's volume id.
    pub(crate) handle: String,
    /// The nodes that it is attached to, is being attached to or is being detached from.
    pub(crate) nodes: BTreeSet<String>,
}

/// A pod with one container, which has a shell.
#[derive(Clone, Debug)]
pub(crate) struct Pod {
    pub(crate) name: String,
    /// The name of the claim that it uses.
    pub(crate) claim: String,
    /// Whether the claim is a block device.
    pub(crate) block: bool,
    /// The node that it must run on; any node by default.
    pub(crate) node: Option<String>,
    /// The shell script that it runs; `$V` is its volume, a directory or a device. By default it is idle.
    pub(crate) script: Option<&'static str>,
}

/// The observed state of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PodSeen {
    /// Its node, once it is scheduled.
    pub(crate) node: String,
    /// Whether it is running.
    pub(crate) runs: bool,
    /// How often its container was restarted, or has ended.
    pub(crate) restarts: i32,
}

/// A part of the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Half {
    /// The controller, with its sidecars.
    Controller,
    /// The plugin on the node of this name.
    Node(String),
}

/// A container orchestrator with our driver and a NAS. Each method requests something and does not wait for it, unless it says
/// so. All are idempotent: creating what exists or deleting what does not is no error.
pub(crate) trait Co {
    /// The names of its nodes, sorted; at least one.
    async fn nodes(&self) -> Result<Vec<String>>;

    /// Creates a StorageClass with `allowVolumeExpansion`.
    async fn class(&self, class: &Class) -> Result<()>;

    /// Creates a claim.
    async fn claim(&self, claim: &Claim) -> Result<()>;

    /// Changes a claim's requested size. As in Kubernetes, a size below the claim's capacity is refused.
    async fn resize(&self, claim: &str, bytes: i64) -> Result<()>;

    /// Reads a claim.
    async fn see_claim(&self, claim: &str) -> Result<Option<ClaimSeen>>;

    /// Deletes a claim.
    async fn unclaim(&self, claim: &str) -> Result<()>;

    /// Lists the driver's volumes.
    async fn see_volumes(&self) -> Result<Vec<VolumeSeen>>;

    /// Changes a volume's reclaim policy. If its claim is already deleted, it applies now.
    async fn set_reclaim(&self, volume: &str, reclaim: Reclaim) -> Result<()>;

    /// Starts a pod.
    async fn start(&self, pod: &Pod) -> Result<()>;

    /// Reads a pod; it exists until all of its mounts are gone.
    async fn see_pod(&self, pod: &str) -> Result<Option<PodSeen>>;

    /// Stops a pod.
    async fn stop(&self, pod: &str) -> Result<()>;

    /// Runs a shell script in a pod, and waits for its end; `$V` is its volume. Returns its trimmed output, or
    /// an error if it fails.
    async fn run(&self, pod: &str, script: &str) -> Result<String>;

    /// Kills a part of the driver; it is restarted automatically.
    async fn kill(&self, half: &Half) -> Result<()>;

    /// Whether all parts of the driver respond.
    async fn driver_is_up(&self) -> Result<bool>;

    /// Kills the NAS like a power cut; it is restarted automatically, and until then nothing listens at its address.
    async fn restart_nas(&self) -> Result<()>;

    /// Calls the NAS's control API: GET without a body, POST with one. An error while the NAS is down.
    async fn nas(&self, path: &str, body: Option<Value>) -> Result<Value>;

    /// Describes everything that a story has left behind except classes: claims, volumes, attachments, pods; LUNs and targets on
    /// the NAS; sessions, mounts and devices on nodes as far as they are visible.
    async fn leftovers(&self) -> Result<Vec<String>>;

    /// Deletes everything that stories have created, after one has failed, as far as possible within a minute.
    async fn clear(&self) -> Result<()>;

    /// Writes what is needed to debug a failed story (events, logs, objects) into one file each.
    async fn evidence(&self, folder: &Path) -> Result<()>;
}
