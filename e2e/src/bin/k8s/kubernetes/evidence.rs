//! Collects what is needed to debug a failed story: events, logs and objects.

use std::path::Path;

use anyhow::Result;
use k8s_openapi::api::core::v1::{
    Event, PersistentVolume, PersistentVolumeClaim, Pod as PodObject,
};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::api::{Api, ListParams, LogParams};
use kube::{Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Kubernetes;
use super::install::HOME;
use super::object::NAMESPACE;
use crate::co::Co as _;

impl Kubernetes {
    pub(super) async fn write_evidence(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder)?;
        self.events(folder).await?;
        objects::<PodObject>(folder, "pods", self.ours()).await?;
        objects::<PodObject>(folder, "driver-pods", self.home()).await?;
        objects::<PersistentVolumeClaim>(folder, "claims", self.ours()).await?;
        objects::<PersistentVolume>(folder, "volumes", self.all()).await?;
        objects::<VolumeAttachment>(folder, "attachments", self.all()).await?;
        self.logs(folder).await?;
        for path in ["state", "journal"] {
            let text = match self.nas(path, None).await {
                Ok(value) => serde_json::to_string_pretty(&value)?,
                Err(error) => format!("{error:#}"),
            };
            std::fs::write(folder.join(format!("nas-{path}.json")), text)?;
        }
        Ok(())
    }

    /// One line per event, the oldest first.
    async fn events(&self, folder: &Path) -> Result<()> {
        let mut lines = Vec::new();
        for space in [NAMESPACE, HOME] {
            let events: Api<Event> = Api::namespaced(self.client.clone(), space);
            for event in events.list(&ListParams::default()).await? {
                let object = event.involved_object;
                lines.push(format!(
                    "{} {} {}/{} {}: {}",
                    event
                        .last_timestamp
                        .map_or_else(String::new, |time| time.0.to_string()),
                    event.type_.unwrap_or_default(),
                    object.kind.unwrap_or_default(),
                    object.name.unwrap_or_default(),
                    event.reason.unwrap_or_default(),
                    event.message.unwrap_or_default(),
                ));
            }
        }
        lines.sort();
        Ok(std::fs::write(folder.join("events"), lines.join("\n"))?)
    }

    /// The log of each of the driver's containers, and of its previous instance.
    async fn logs(&self, folder: &Path) -> Result<()> {
        let pods = self.home::<PodObject>();
        for pod in pods.list(&ListParams::default()).await? {
            let name = pod.name_any();
            let containers = pod.spec.map(|spec| spec.containers).unwrap_or_default();
            for (container, previous) in containers
                .iter()
                .flat_map(|container| [(container, false), (container, true)])
            {
                let how = LogParams {
                    container: Some(container.name.clone()),
                    previous,
                    timestamps: true,
                    ..LogParams::default()
                };
                // Most have no previous instance.
                let Ok(log) = pods.logs(&name, &how).await else {
                    continue;
                };
                let which = if previous { "-before" } else { "" };
                let file = format!("{name}-{}{which}.log", container.name);
                std::fs::write(folder.join(file), log)?;
            }
        }
        Ok(())
    }
}

async fn objects<K>(folder: &Path, name: &str, api: Api<K>) -> Result<()>
where
    K: Resource + Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    let listed = api.list(&ListParams::default()).await?.items;
    let text = serde_json::to_string_pretty(&listed)?;
    Ok(std::fs::write(folder.join(format!("{name}.json")), text)?)
}
