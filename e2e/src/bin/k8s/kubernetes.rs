//! A real Kubernetes: the cluster of the current kubeconfig, with our chart and its sidecars installed.

mod evidence;
mod install;
mod node_inspector;
mod object;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::harness::until::until_within;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod as PodObject};
use k8s_openapi::api::storage::v1::{StorageClass, VolumeAttachment};
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::api::{Api, AttachParams, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

use crate::co::{
    CLEAR_TIMEOUT, Claim, ClaimSeen, Class, Co, DRIVER, Half, Pod, PodSeen, Reclaim, VolumeSeen,
};
use install::{HOME, RELEASE};
use object::{CONTAINER, NAMESPACE};

/// The label of every object that the stories create.
const LABEL: &str = "synology-csi-stories=made";

/// How the driver is installed.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Path of `helm`.
    pub(crate) helm: PathBuf,
    /// The chart's folder.
    pub(crate) chart: PathBuf,
    /// Values files in addition to `values-sim.yaml`; the last one takes precedence.
    pub(crate) values: Vec<PathBuf>,
    /// An image with a shell, `dd`, `df`, `sha256sum` and `blockdev`.
    pub(crate) pod_image: String,
    /// A folder for helm's files.
    pub(crate) folder: PathBuf,
}

/// A cluster with the driver installed.
#[derive(Clone)]
pub(crate) struct Kubernetes {
    client: Client,
    settings: Settings,
}

impl Kubernetes {
    /// Installs the driver, a NAS and what the stories need.
    ///
    /// # Errors
    /// No cluster responds, it already has such a driver, or something does not start.
    pub(crate) async fn start(settings: Settings) -> Result<Self> {
        let client = Client::try_default().await?;
        let cluster = Self { client, settings };
        cluster.refuse_foreign_driver().await?;
        cluster.install().await?;
        Ok(cluster)
    }

    /// The version of Kubernetes.
    ///
    /// # Errors
    /// It does not respond.
    pub(crate) async fn version(&self) -> Result<String> {
        Ok(self.client.apiserver_version().await?.git_version)
    }

    /// API for objects in the stories' namespace.
    fn ours<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// API for objects in the driver's namespace.
    fn home<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), HOME)
    }

    /// API for cluster-scoped objects, or for all namespaces.
    fn all<K>(&self) -> Api<K>
    where
        K: Resource<Scope = ClusterResourceScope, DynamicType = ()>,
    {
        Api::all(self.client.clone())
    }

    /// The pods of a part of the release: `controller`, `node` or `dsm-sim`.
    async fn parts(&self, component: &str) -> Result<Vec<PodObject>> {
        let labels =
            format!("app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component={component}");
        let those = ListParams::default().labels(&labels);
        Ok(self.home().list(&those).await?.items)
    }

    /// The nodes that the driver runs on.
    async fn nodes_with_driver(&self) -> Result<BTreeSet<String>> {
        let pods = self.parts("node").await?;
        Ok(pods
            .into_iter()
            .filter_map(|pod| pod.spec?.node_name)
            .collect())
    }

    /// Deletes pods like a crash: with a grace period of one second, whatever they are doing.
    async fn end(&self, pods: Vec<PodObject>) -> Result<()> {
        ensure!(!pods.is_empty(), "no such pod");
        let at_once = DeleteParams {
            grace_period_seconds: Some(1),
            ..DeleteParams::default()
        };
        for pod in pods {
            ignore_not_found(
                self.home::<PodObject>()
                    .delete(&pod.name_any(), &at_once)
                    .await,
            )?;
        }
        Ok(())
    }

    /// Runs a script in a pod and returns its output. `pods` is the API of its namespace.
    async fn shell(&self, pods: &Api<PodObject>, pod: &str, script: &str) -> Result<String> {
        let how = AttachParams::default().container(CONTAINER);
        let mut process = pods.exec(pod, ["/bin/sh", "-c", script], &how).await?;
        let ended = process.take_status().context("a status")?;
        let mut out = process.stdout().context("stdout")?;
        let mut err = process.stderr().context("stderr")?;
        let (mut printed, mut complained) = (String::new(), String::new());
        // Both concurrently: an unread stream would block the other.
        let (read_out, read_err) = tokio::join!(
            out.read_to_string(&mut printed),
            err.read_to_string(&mut complained),
        );
        read_out?;
        read_err?;
        let status = ended.await.context("the connection was closed")?;
        ensure!(
            status.status.as_deref() == Some("Success"),
            "{script}: {} {complained}",
            status.message.unwrap_or_default()
        );
        Ok(printed.trim().to_owned())
    }

    /// Cordons a node and evicts all its pods except those of DaemonSets.
    ///
    /// # Errors
    /// The cluster refuses, or it takes longer than `timeout`.
    pub(crate) async fn drain(&self, node: &str, timeout: Duration) -> Result<()> {
        self.cordon(node, true).await?;
        let there = ListParams::default().fields(&format!("spec.nodeName={node}"));
        let evict = async || {
            let pods: Api<PodObject> = Api::all(self.client.clone());
            let mut remaining = Vec::new();
            for pod in pods.list(&there).await?.items {
                let owners = pod.owner_references();
                if owners.is_empty() || owners.iter().any(|owner| owner.kind == "DaemonSet") {
                    continue;
                }
                let name = pod.name_any();
                let space = pod.namespace().unwrap_or_default();
                let pods: Api<PodObject> = Api::namespaced(self.client.clone(), &space);
                match pods.evict(&name, &kube::api::EvictParams::default()).await {
                    // A disruption budget does not allow it now.
                    Err(kube::Error::Api(status)) if status.code == 429 => {}
                    evicted => ignore_not_found(evicted)?,
                }
                remaining.push(name);
            }
            Ok(remaining)
        };
        let empty = |remaining: &Vec<String>| remaining.is_empty();
        until_within(timeout, "the node is drained", evict, empty).await?;
        Ok(())
    }

    /// Makes a node unschedulable, or schedulable again.
    ///
    /// # Errors
    /// The cluster refuses.
    pub(crate) async fn cordon(&self, node: &str, shut: bool) -> Result<()> {
        let patch = Patch::Merge(json!({"spec": {"unschedulable": shut}}));
        self.all::<Node>()
            .patch(node, &PatchParams::default(), &patch)
            .await?;
        Ok(())
    }

    /// Creates a deployment of one such pod.
    ///
    /// # Errors
    /// The cluster refuses.
    pub(crate) async fn deploy(&self, pod: &Pod) -> Result<()> {
        let labels = json!({"deployment": pod.name});
        let deployment: Deployment = object::object(json!({
            "metadata": {"name": pod.name, "labels": story_labels()},
            "spec": {
                "replicas": 1,
                "strategy": {"type": "Recreate"},
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": object::pod_spec(pod, &self.settings.pod_image),
                },
            },
        }))?;
        ignore_exists(
            self.ours()
                .create(&PostParams::default(), &deployment)
                .await,
        )
    }

    /// The name and state of the running pod of a deployment.
    ///
    /// # Errors
    /// The cluster does not respond.
    pub(crate) async fn deployed(&self, name: &str) -> Result<Option<(String, PodSeen)>> {
        let labels = ListParams::default().labels(&format!("deployment={name}"));
        let pods = self.ours::<PodObject>().list(&labels).await?;
        let seen = pods
            .iter()
            .map(|pod| (pod.name_any(), object::pod_seen(pod)));
        Ok(seen.into_iter().find(|(_, seen)| seen.runs))
    }

    /// Deletes a deployment.
    ///
    /// # Errors
    /// The cluster refuses.
    pub(crate) async fn undeploy(&self, name: &str) -> Result<()> {
        ignore_not_found(
            self.ours::<Deployment>()
                .delete(name, &DeleteParams::background())
                .await,
        )
    }

    /// Deletes the stories' StorageClasses.
    ///
    /// # Errors
    /// The cluster refuses.
    pub(crate) async fn forget_classes(&self) -> Result<()> {
        self.delete_all::<StorageClass>(self.all()).await
    }

    async fn delete_all<K>(&self, api: Api<K>) -> Result<()>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
    {
        let made = ListParams::default().labels(LABEL);
        let how = DeleteParams::background();
        api.delete_collection(&how, &made).await?;
        Ok(())
    }
}

/// The label of the stories' objects, as a map.
fn story_labels() -> BTreeMap<String, String> {
    let mark = LABEL.split_once('=');
    mark.map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into_iter()
        .collect()
}

/// Ignores "already exists".
fn ignore_exists<T>(made: kube::Result<T>) -> Result<()> {
    match made {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        made => Ok(made.map(drop)?),
    }
}

/// Ignores "not found".
fn ignore_not_found<T>(deleted: kube::Result<T>) -> Result<()> {
    match deleted {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        deleted => Ok(deleted.map(drop)?),
    }
}

impl Co for Kubernetes {
    async fn nodes(&self) -> Result<Vec<String>> {
        let nodes = self.all::<Node>().list(&ListParams::default()).await?;
        // The driver runs on the control plane as well, but the stories' pods may not be allowed there.
        let closed: BTreeSet<String> = nodes
            .iter()
            .filter(|node| object::is_closed(node))
            .map(ResourceExt::name_any)
            .collect();
        let with_driver = self.nodes_with_driver().await?;
        Ok(with_driver.difference(&closed).cloned().collect())
    }

    async fn class(&self, class: &Class) -> Result<()> {
        let mut object: StorageClass = serde_yaml_ng::from_str(&class.text)?;
        object.labels_mut().extend(story_labels());
        ignore_exists(self.all().create(&PostParams::default(), &object).await)
    }

    async fn claim(&self, claim: &Claim) -> Result<()> {
        let mut object = object::claim(claim)?;
        object.metadata.labels = Some(story_labels());
        ignore_exists(self.ours().create(&PostParams::default(), &object).await)
    }

    async fn resize(&self, claim: &str, bytes: i64) -> Result<()> {
        let patch = Patch::Merge(json!({"spec": {"resources": object::request(bytes)}}));
        self.ours::<PersistentVolumeClaim>()
            .patch(claim, &PatchParams::default(), &patch)
            .await?;
        Ok(())
    }

    async fn see_claim(&self, claim: &str) -> Result<Option<ClaimSeen>> {
        let claim = self.ours().get_opt(claim).await?;
        claim.as_ref().map(object::claim_seen).transpose()
    }

    async fn unclaim(&self, claim: &str) -> Result<()> {
        let how = DeleteParams::background();
        ignore_not_found(
            self.ours::<PersistentVolumeClaim>()
                .delete(claim, &how)
                .await,
        )
    }

    async fn see_volumes(&self) -> Result<Vec<VolumeSeen>> {
        let every = ListParams::default();
        let attachments = self.all::<VolumeAttachment>().list(&every).await?;
        let volumes = self.all::<PersistentVolume>().list(&every).await?;
        Ok(object::volumes_seen(volumes.items, &attachments.items))
    }

    async fn set_reclaim(&self, volume: &str, reclaim: Reclaim) -> Result<()> {
        let policy = match reclaim {
            Reclaim::Delete => "Delete",
            Reclaim::Retain => "Retain",
        };
        let patch = Patch::Merge(json!({"spec": {"persistentVolumeReclaimPolicy": policy}}));
        self.all::<PersistentVolume>()
            .patch(volume, &PatchParams::default(), &patch)
            .await?;
        Ok(())
    }

    async fn start(&self, pod: &Pod) -> Result<()> {
        let mut object = object::pod(pod, &self.settings.pod_image)?;
        object.metadata.labels = Some(story_labels());
        ignore_exists(self.ours().create(&PostParams::default(), &object).await)
    }

    async fn see_pod(&self, pod: &str) -> Result<Option<PodSeen>> {
        let pod = self.ours().get_opt(pod).await?;
        Ok(pod.as_ref().map(object::pod_seen))
    }

    async fn stop(&self, pod: &str) -> Result<()> {
        let how = DeleteParams::default();
        ignore_not_found(self.ours::<PodObject>().delete(pod, &how).await)
    }

    async fn run(&self, pod: &str, script: &str) -> Result<String> {
        self.shell(&self.ours(), pod, script).await
    }

    async fn kill(&self, half: &Half) -> Result<()> {
        match half {
            Half::Controller => self.end(self.parts("controller").await?).await,
            Half::Node(node) => {
                let mut pods = self.parts("node").await?;
                pods.retain(|pod| {
                    pod.spec
                        .as_ref()
                        .is_some_and(|spec| spec.node_name.as_ref() == Some(node))
                });
                self.end(pods).await
            }
        }
    }

    async fn driver_is_up(&self) -> Result<bool> {
        let controller: Deployment = self.home().get(&format!("{RELEASE}-controller")).await?;
        let node: DaemonSet = self.home().get(&format!("{RELEASE}-node")).await?;
        let nodes = node.status.unwrap_or_default().desired_number_scheduled;
        let expected = controller.spec.and_then(|spec| spec.replicas).unwrap_or(1);
        let of = async |component, number: i32| {
            let pods = self.parts(component).await?;
            let ready = |pod: &PodObject| {
                let status = pod.status.clone().unwrap_or_default();
                let containers = status.container_statuses.unwrap_or_default();
                pod.metadata.deletion_timestamp.is_none()
                    && !containers.is_empty()
                    && containers.iter().all(|container| container.ready)
            };
            Ok::<_, anyhow::Error>(
                usize::try_from(number).is_ok_and(|number| number == pods.len())
                    && pods.iter().all(ready),
            )
        };
        Ok(of("controller", expected).await? && of("node", nodes).await?)
    }

    async fn restart_nas(&self) -> Result<()> {
        self.end(self.parts("dsm-sim").await?).await
    }

    async fn nas(&self, path: &str, body: Option<Value>) -> Result<Value> {
        let path = format!(
            "/api/v1/namespaces/{HOME}/services/http:{RELEASE}-dsm-sim:control/proxy/{path}"
        );
        let request = match body {
            None => http::Request::get(path).body(Vec::new()),
            Some(body) => http::Request::post(path)
                .header("content-type", "application/json")
                .body(body.to_string().into_bytes()),
        };
        Ok(self.client.request(request?).await?)
    }

    async fn leftovers(&self) -> Result<Vec<String>> {
        let mut leftovers = Vec::new();
        let every = ListParams::default();
        let made = ListParams::default().labels(LABEL);
        let name = |kind: &str, name: String| format!("{kind} {name}");
        for pod in self.ours::<PodObject>().list(&made).await? {
            leftovers.push(name("pod", pod.name_any()));
        }
        for claim in self.ours::<PersistentVolumeClaim>().list(&made).await? {
            leftovers.push(name("claim", claim.name_any()));
        }
        for volume in self.see_volumes().await? {
            leftovers.push(name("volume", volume.name));
        }
        for attachment in self.all::<VolumeAttachment>().list(&every).await? {
            if attachment.spec.attacher == DRIVER {
                leftovers.push(name("attachment", attachment.name_any()));
            }
        }
        let state = self.nas("state", None).await?;
        for kind in ["luns", "targets"] {
            let number = state[kind].as_array().context("a list")?.len();
            if number > 0 {
                leftovers.push(format!("{number} {kind} on the NAS"));
            }
        }
        leftovers.extend(self.left_on_nodes().await?);
        Ok(leftovers)
    }

    async fn clear(&self) -> Result<()> {
        for node in self.nodes_with_driver().await? {
            self.cordon(&node, false).await?;
        }
        self.delete_all::<Deployment>(self.ours()).await?;
        self.delete_all::<PodObject>(self.ours()).await?;
        self.delete_all::<PersistentVolumeClaim>(self.ours())
            .await?;
        for volume in self.see_volumes().await? {
            self.set_reclaim(&volume.name, Reclaim::Delete).await?;
        }
        let nothing = |leftovers: &Vec<String>| leftovers.is_empty();
        let poll = async || {
            Ok(self
                .leftovers()
                .await
                .unwrap_or_else(|error| vec![error.to_string()]))
        };
        until_within(CLEAR_TIMEOUT, "everything is cleared away", poll, nothing).await?;
        Ok(())
    }

    async fn evidence(&self, folder: &Path) -> Result<()> {
        self.write_evidence(folder).await
    }
}
