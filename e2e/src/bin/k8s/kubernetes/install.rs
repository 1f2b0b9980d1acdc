//! Helm: our chart with `values-sim.yaml` onto the cluster, and off it again.

use anyhow::{Context as _, Result, ensure};
use e2e::harness::process;
use e2e::harness::until::until;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Namespace, Pod as PodObject, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, StorageClass};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Resource, ResourceExt as _};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::object::{NAMESPACE, object};
use super::{Kubernetes, gone_is_well, there_is_well};
use crate::co::DRIVER;

/// The driver's namespace.
pub(super) const HOME: &str = "synology-csi";
/// The release's name, and what the names of its objects begin with.
pub(super) const RELEASE: &str = "synology-csi";
/// How long everything may take to come up: images are fetched.
const COMES_UP: &str = "8m";

/// What the stories want besides `values-sim.yaml`: a volume of the NAS that is soon full.
const VALUES: &str = "\
sim:
  dsmSim:
    volumes: ['/volume1=btrfs:2TiB', '/volume2=ext4:4GiB']
";

impl Kubernetes {
    /// Somebody's volumes may hang on it.
    pub(super) async fn refuse_a_driver_of_somebody(&self) -> Result<()> {
        let there = self.all::<CSIDriver>().get_opt(DRIVER).await?;
        let ours = there.is_none_or(|driver| {
            driver.annotations().get("meta.helm.sh/release-namespace") == Some(&HOME.to_owned())
        });
        ensure!(
            ours && self.see_nothing().await?,
            "this cluster has a {DRIVER} that is in use: the stories want a cluster without one, and end by removing theirs"
        );
        Ok(())
    }

    /// No volume of the driver is there.
    async fn see_nothing(&self) -> Result<bool> {
        let volumes = self.all().list(&ListParams::default()).await?;
        Ok(super::object::volumes_seen(volumes.items, &[]).is_empty())
    }

    pub(super) async fn install(&self) -> Result<()> {
        for name in [HOME, NAMESPACE] {
            self.make_namespace(name).await?;
        }
        let own = self.settings.folder.join("values.yaml");
        std::fs::write(&own, VALUES)?;
        let mut files = vec![self.settings.chart.join("values-sim.yaml"), own];
        files.extend(self.settings.values.iter().cloned());
        let mut args = ["upgrade", "--install", "--namespace", HOME]
            .map(str::to_owned)
            .to_vec();
        args.extend(["--wait", "--timeout", COMES_UP, RELEASE].map(str::to_owned));
        args.push(self.settings.chart.display().to_string());
        for file in files {
            args.extend(["--values".to_owned(), file.display().to_string()]);
        }
        let helm = self.settings.helm.display().to_string();
        let said = tokio::task::spawn_blocking(move || process::run(&helm, args)).await?;
        said.context("installing the chart")?;
        self.start_inspectors().await
    }

    /// Takes the driver off the cluster.
    ///
    /// # Errors
    /// Helm's.
    pub(crate) async fn uninstall(&self) -> Result<()> {
        let helm = self.settings.helm.display().to_string();
        let args = [
            "uninstall",
            RELEASE,
            "--namespace",
            HOME,
            "--wait",
            "--timeout",
            COMES_UP,
        ];
        let said = tokio::task::spawn_blocking(move || process::run(&helm, args)).await?;
        said.context("uninstalling the chart").map(drop)
    }

    /// What is left of the release, and of volumes on nodes, in words.
    ///
    /// # Errors
    /// The cluster does not answer.
    pub(crate) async fn left_after_uninstall(&self) -> Result<Vec<String>> {
        let mut left = self.left_on_nodes().await?;
        left.extend(names(self.home::<PodObject>()).await?);
        left.extend(names(self.home::<Deployment>()).await?);
        left.extend(names(self.home::<DaemonSet>()).await?);
        left.extend(names(self.home::<ConfigMap>()).await?);
        left.extend(names(self.home::<Secret>()).await?);
        left.extend(names(self.home::<Service>()).await?);
        left.extend(names(self.home::<ServiceAccount>()).await?);
        left.extend(names(self.home::<Role>()).await?);
        left.extend(names(self.home::<RoleBinding>()).await?);
        left.extend(names(self.home::<Lease>()).await?);
        left.extend(names(self.all::<ClusterRole>()).await?);
        left.extend(names(self.all::<ClusterRoleBinding>()).await?);
        left.extend(names(self.all::<StorageClass>()).await?);
        left.extend(names(self.all::<CSIDriver>()).await?);
        for node in self.all::<CSINode>().list(&ListParams::default()).await? {
            if node.spec.drivers.iter().any(|driver| driver.name == DRIVER) {
                left.push(format!("the driver on {}", node.name_any()));
            }
        }
        Ok(left)
    }

    /// Removes the namespaces, too.
    ///
    /// # Errors
    /// The cluster refuses.
    pub(crate) async fn leave(&self) -> Result<()> {
        for name in [NAMESPACE, HOME] {
            let how = DeleteParams::background();
            gone_is_well(self.all::<Namespace>().delete(name, &how).await)?;
        }
        Ok(())
    }

    /// Its pods may do what they must: the nodes' mount for others, and look at their host.
    async fn make_namespace(&self, name: &str) -> Result<()> {
        let labels = json!({"pod-security.kubernetes.io/enforce": "privileged"});
        let space: Namespace = object(json!({"metadata": {"name": name, "labels": labels}}))?;
        let spaces = self.all::<Namespace>();
        there_is_well(spaces.create(&PostParams::default(), &space).await)?;
        let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
        spaces.patch(name, &PatchParams::default(), &patch).await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), name);
        let look = async || Ok(accounts.get_opt("default").await?.is_some());
        until("the namespace has its account", look, |there| *there).await?;
        Ok(())
    }
}

/// The names of a kind's objects that are the release's.
async fn names<K>(api: Api<K>) -> Result<Vec<String>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let of_release = ListParams::default().labels(&format!("app.kubernetes.io/instance={RELEASE}"));
    let listed = api.list(&of_release).await?;
    let name = |object: &K| format!("{} {}", K::kind(&()), object.name_any());
    Ok(listed.iter().map(name).collect())
}
