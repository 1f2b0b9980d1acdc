//! A privileged pod on each node that inspects its host for what volumes have left there.

use anyhow::Result;
use e2e::harness::until::until_within;
use k8s_openapi::api::core::v1::Pod as PodObject;
use kube::api::{DeleteParams, PostParams};
use serde_json::json;

use super::object::{CONTAINER, object, pod_seen};
use super::{Kubernetes, ignore_exists, ignore_not_found};
use crate::co::{CLEAR_TIMEOUT, Co as _};

/// The folder of the chart's simulators on the host.
const SIMULATORS: &str = "/var/lib/synology-csi-sim";

/// A script that prints a line for each mount, loop device and session of a volume on the host. Mounts are those of the host's
/// process 1.
fn script() -> String {
    format!(
        "grep -E '(/dev| )/loop[0-9]+ ' /host/proc/1/mountinfo | cut -d ' ' -f 5 | grep -F csi | sed 's/^/mount /'; \
         grep -l '^{SIMULATORS}/nas/' /host/sys/block/loop*/loop/backing_file | sed 's/^/device /'; \
         find /host{SIMULATORS}/node/sys/class/iscsi_session/ -mindepth 1 -maxdepth 1 | sed 's/^/session /'"
    )
}

fn name(node: &str) -> String {
    format!("eyes-{node}")
}

impl Kubernetes {
    /// Starts one on each node, and waits until they run.
    pub(super) async fn start_inspectors(&self) -> Result<()> {
        let nodes = self.nodes().await?;
        for node in &nodes {
            let host =
                |path: &str| json!({"name": path.replace('/', ""), "hostPath": {"path": path}});
            let mount = |path: &str| json!({"name": path.replace('/', ""), "mountPath": format!("/host{path}"), "readOnly": true});
            let pod: PodObject = object(json!({
                "metadata": {"name": name(node)},
                "spec": {
                    "nodeName": node,
                    "hostPID": true,
                    "automountServiceAccountToken": false,
                    "terminationGracePeriodSeconds": 0,
                    "tolerations": [{"operator": "Exists"}],
                    "containers": [{
                        "name": CONTAINER,
                        "image": self.settings.pod_image,
                        "command": ["/bin/sh", "-c", "while :; do sleep 3600; done"],
                        "securityContext": {"privileged": true},
                        "volumeMounts": [mount("/proc"), mount("/sys"), mount(SIMULATORS)],
                    }],
                    "volumes": [host("/proc"), host("/sys"), host(SIMULATORS)],
                },
            }))?;
            ignore_exists(self.ours().create(&PostParams::default(), &pod).await)?;
        }
        for node in &nodes {
            let pods = self.ours::<PodObject>();
            let runs = async || Ok(pod_seen(&pods.get(&name(node)).await?).runs);
            until_within(CLEAR_TIMEOUT, "the inspector runs", runs, |runs| *runs).await?;
        }
        Ok(())
    }

    /// Describes what volumes have left on the nodes with an inspector.
    pub(super) async fn left_on_nodes(&self) -> Result<Vec<String>> {
        let mut leftovers = Vec::new();
        for pod in self
            .ours::<PodObject>()
            .list(&kube::api::ListParams::default())
            .await?
        {
            let Some(inspector) = pod.metadata.name.filter(|name| name.starts_with("eyes-")) else {
                continue;
            };
            let seen = self.shell(&self.ours(), &inspector, &script()).await?;
            leftovers.extend(seen.lines().map(|line| format!("{inspector}: {line}")));
        }
        Ok(leftovers)
    }

    /// Deletes the inspectors.
    ///
    /// # Errors
    /// The cluster refuses.
    pub(crate) async fn stop_inspectors(&self, nodes: &[String]) -> Result<()> {
        for node in nodes {
            let how = DeleteParams::default();
            ignore_not_found(self.ours::<PodObject>().delete(&name(node), &how).await)?;
        }
        Ok(())
    }
}
