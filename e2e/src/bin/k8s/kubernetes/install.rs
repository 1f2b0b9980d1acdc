//! Installs our chart with `values-sim.yaml` on the cluster with helm, and uninstalls it.

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
use super::{Kubernetes, ignore_exists, ignore_not_found};
use crate::co::DRIVER;

/// The driver's namespace.
pub(super) const HOME: &str = "synology-csi";
/// The release's name, and the prefix of its objects' names.
pub(super) const RELEASE: &str = "synology-csi";
/// Timeout until everything is up, including image pulls.
const INSTALL_TIMEOUT: &str = "8m";

/// Values that the stories need in addition to `values-sim.yaml`: a small volume on the NAS that is quickly full.
const VALUES: &str = "\
sim:
  dsmSim:
    volumes: ['/volume1=btrfs:2TiB', '/volume2=ext4:4GiB']
";

impl Kubernetes {
    /// Refuses a cluster with a foreign driver, because volumes may depend on it.
    pub(super) async fn refuse_foreign_driver(&self) -> Result<()> {
        let existing = self.all::<CSIDriver>().get_opt(DRIVER).await?;
        let ours = existing.is_none_or(|driver| {
            driver.annotations().get("meta.helm.sh/release-namespace") == Some(&HOME.to_owned())
        });
        ensure!(
            ours && self.has_no_volumes().await?,
            "this cluster has a {DRIVER} that is in use: the stories need a cluster without one, because they uninstall the driver at the end"
        );
        Ok(())
    }

    /// Whether the driver has no volumes.
    async fn has_no_volumes(&self) -> Result<bool> {
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
        args.extend(["--wait", "--timeout", INSTALL_TIMEOUT, RELEASE].map(str::to_owned));
        args.push(self.settings.chart.display().to_string());
        for file in files {
            args.extend(["--values".to_owned(), file.display().to_string()]);
        }
        let helm = self.settings.helm.display().to_string();
        let output = tokio::task::spawn_blocking(move || process::run(&helm, args)).await?;
        output.context("installing the chart")?;
        self.start_inspectors().await
    }

    /// Uninstalls the driver from the cluster.
    ///
    /// # Errors
    /// helm failed.
    pub(crate) async fn uninstall(&self) -> Result<()> {
        let helm = self.settings.helm.display().to_string();
        let args = [
            "uninstall",
            RELEASE,
            "--namespace",
            HOME,
            "--wait",
            "--timeout",
            INSTALL_TIMEOUT,
        ];
        let output = tokio::task::spawn_blocking(move || process::run(&helm, args)).await?;
        output.context("uninstalling the chart").map(drop)
    }

    /// Describes what is left of the release, and of volumes on nodes.
    ///
    /// # Errors
    /// The cluster does not respond.
    pub(crate) async fn left_after_uninstall(&self) -> Result<Vec<String>> {
        let mut leftovers = self.left_on_nodes().await?;
        leftovers.extend(names(self.home::<PodObject>()).await?);
        leftovers.extend(names(self.home::<Deployment>()).await?);
        leftovers.extend(names(self.home::<DaemonSet>()).await?);
        leftovers.extend(names(self.home::<ConfigMap>()).await?);
        leftovers.extend(names(self.home::<Secret>()).await?);
        leftovers.extend(names(self.home::<Service>()).await?);
        leftovers.extend(names(self.home::<ServiceAccount>()).await?);
        leftovers.extend(names(self.home::<Role>()).await?);
        leftovers.extend(names(self.home::<RoleBinding>()).await?);
        leftovers.extend(names(self.home::<Lease>()).await?);
        leftovers.extend(names(self.all::<ClusterRole>()).await?);
        leftovers.extend(names(self.all::<ClusterRoleBinding>()).await?);
        leftovers.extend(names(self.all::<StorageClass>()).await?);
        leftovers.extend(names(self.all::<CSIDriver>()).await?);
        for node in self.all::<CSINode>().list(&ListParams::default()).await? {
            if node.spec.drivers.iter().any(|driver| driver.name == DRIVER) {
                leftovers.push(format!("the driver on {}", node.name_any()));
            }
        }
        Ok(leftovers)
    }

    /// Deletes the namespaces, too.
    ///
    /// # Errors
    /// The cluster refuses.
    pub(crate) async fn delete_namespaces(&self) -> Result<()> {
        for name in [NAMESPACE, HOME] {
            let how = DeleteParams::background();
            ignore_not_found(self.all::<Namespace>().delete(name, &how).await)?;
        }
        Ok(())
    }

    /// Creates a namespace that allows privileged pods: the node plugin mounts for others, and the inspectors read their host.
    async fn make_namespace(&self, name: &str) -> Result<()> {
        let labels = json!({"pod-security.kubernetes.io/enforce": "privileged"});
        let space: Namespace = object(json!({"metadata": {"name": name, "labels": labels}}))?;
        let spaces = self.all::<Namespace>();
        ignore_exists(spaces.create(&PostParams::default(), &space).await)?;
        let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
        spaces.patch(name, &PatchParams::default(), &patch).await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), name);
        let poll = async || Ok(accounts.get_opt("default").await?.is_some());
        until("the namespace has its account", poll, |existing| *existing).await?;
        Ok(())
    }
}

/// The names of the release's objects of a kind.
async fn names<K>(api: Api<K>) -> Result<Vec<String>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let of_release = ListParams::default().labels(&format!("app.kubernetes.io/instance={RELEASE}"));
    let listed = api.list(&of_release).await?;
    let name = |object: &K| format!("{} {}", K::kind(&()), object.name_any());
    Ok(listed.iter().map(name).collect())
}
