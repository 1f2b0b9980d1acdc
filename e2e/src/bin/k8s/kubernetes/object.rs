//! Builds the objects that are sent to Kubernetes, and parses those that are read from it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod as PodObject};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::co::{Claim, ClaimSeen, DRIVER, Pod, PodSeen, VolumeSeen};

/// The namespace of the stories' claims and pods.
pub(super) const NAMESPACE: &str = "synology-csi-stories";
/// The name of a pod's container.
pub(super) const CONTAINER: &str = "shell";
/// The path of a pod's volume.
pub(super) const VOLUME: &str = "/volume";
/// The script of a pod without a workload.
const IDLE: &str = "while :; do sleep 3600; done";

/// Converts JSON into Kubernetes' own type of an object.
///
/// # Errors
/// It does not match the type.
pub(super) fn object<T: DeserializeOwned>(written: Value) -> Result<T> {
    Ok(serde_json::from_value(written)?)
}

pub(super) fn claim(claim: &Claim) -> Result<PersistentVolumeClaim> {
    object(json!({
        "metadata": {"name": claim.name},
        "spec": {
            "storageClassName": claim.class,
            "accessModes": ["ReadWriteOnce"],
            "volumeMode": if claim.block { "Block" } else { "Filesystem" },
            "resources": request(claim.bytes),
        },
    }))
}

/// `resources` that request this many bytes.
pub(super) fn request(bytes: i64) -> Value {
    json!({"requests": {"storage": bytes.to_string()}})
}

/// A pod's `spec`.
pub(super) fn pod_spec(pod: &Pod, image: &str) -> Value {
    let place = json!([{"name": "volume", "mountPath": VOLUME, "devicePath": VOLUME}]);
    let mut container = json!({
        "name": CONTAINER,
        "image": image,
        "command": ["/bin/sh", "-c", pod.script.unwrap_or(IDLE)],
        "env": [{"name": "V", "value": VOLUME}],
    });
    let (field, other) = if pod.block {
        ("volumeDevices", "mountPath")
    } else {
        ("volumeMounts", "devicePath")
    };
    container[field] = place;
    if let Some(place) = container[field][0].as_object_mut() {
        place.remove(other);
    }
    let mut spec = json!({
        "containers": [container],
        "volumes": [{"name": "volume", "persistentVolumeClaim": {"claimName": pod.claim}}],
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        // The first process of a container ignores SIGTERM by default.
        "terminationGracePeriodSeconds": 1,
    });
    if let Some(node) = &pod.node {
        spec["nodeSelector"] = json!({"kubernetes.io/hostname": node});
    }
    spec
}

pub(super) fn pod(pod: &Pod, image: &str) -> Result<PodObject> {
    object(json!({"metadata": {"name": pod.name}, "spec": pod_spec(pod, image)}))
}

pub(super) fn claim_seen(claim: &PersistentVolumeClaim) -> Result<ClaimSeen> {
    let spec = claim.spec.clone().unwrap_or_default();
    let status = claim.status.clone().unwrap_or_default();
    let storage = |quantities: Option<&BTreeMap<String, Quantity>>| {
        quantities
            .and_then(|all| all.get("storage"))
            .map_or(Ok(0), bytes)
    };
    let requests = spec.resources.and_then(|resources| resources.requests);
    let mut conditions: BTreeMap<String, String> = status
        .conditions
        .into_iter()
        .flatten()
        .filter(|condition| condition.status == "True")
        .map(|condition| (condition.type_, condition.message.unwrap_or_default()))
        .collect();
    // The state of an expansion is reported per resource, without a message.
    for state in status
        .allocated_resource_statuses
        .into_iter()
        .flatten()
        .map(|(_, state)| state)
    {
        conditions.entry(state).or_default();
    }
    Ok(ClaimSeen {
        volume: spec.volume_name.filter(|name| !name.is_empty()),
        requested: storage(requests.as_ref())?,
        capacity: storage(status.capacity.as_ref())?,
        conditions,
    })
}

pub(super) fn pod_seen(pod: &PodObject) -> PodSeen {
    let status = pod.status.clone().unwrap_or_default();
    let container = status
        .container_statuses
        .and_then(|mut all| all.pop())
        .unwrap_or_default();
    PodSeen {
        node: pod
            .spec
            .as_ref()
            .and_then(|spec| spec.node_name.clone())
            .unwrap_or_default(),
        // A pod that is being deleted is not running, whatever its container reports.
        runs: container.ready && pod.metadata.deletion_timestamp.is_none(),
        restarts: container.restart_count,
    }
}

/// Whether pods must tolerate the node explicitly: a control plane, or a node that is being drained.
pub(super) fn is_closed(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    taints.is_some_and(|all| all.iter().any(|taint| taint.effect != "PreferNoSchedule"))
}

/// The driver's volumes; `attachments` are all of the cluster.
pub(super) fn volumes_seen(
    volumes: Vec<PersistentVolume>,
    attachments: &[VolumeAttachment],
) -> Vec<VolumeSeen> {
    let ours = volumes.into_iter().filter_map(|volume| {
        let name = volume.metadata.name?;
        let csi = volume.spec?.csi.filter(|csi| csi.driver == DRIVER)?;
        let nodes: BTreeSet<String> = attachments
            .iter()
            .filter(|one| one.spec.source.persistent_volume_name.as_ref() == Some(&name))
            .map(|one| one.spec.node_name.clone())
            .collect();
        Some(VolumeSeen {
            name,
            handle: csi.volume_handle,
            nodes,
        })
    });
    ours.collect()
}

/// Bytes of a quantity, rounded down.
fn bytes(quantity: &Quantity) -> Result<i64> {
    let text = &quantity.0;
    let end = text
        .find(|letter: char| !letter.is_ascii_digit())
        .unwrap_or(text.len());
    let number: i64 = text[..end].parse().with_context(|| text.clone())?;
    let scale = match &text[end..] {
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        // The API server uses this suffix for sizes that are not whole bytes.
        "m" => return Ok(number / 1000),
        unit => bail!("{text}: unit {unit}"),
    };
    number.checked_mul(scale).context("too large")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_bytes() {
        let of = |text: &str| bytes(&Quantity(text.to_owned())).ok();
        assert_eq!(of("1073741824"), Some(1 << 30));
        assert_eq!(of("3Gi"), Some(3 << 30));
        assert_eq!(of("1500M"), Some(1_500_000_000));
        assert_eq!(of("1500m"), Some(1));
        assert_eq!(of("1.5Gi"), None);
        assert_eq!(of("99999999Ti"), None);
        assert_eq!(of(""), None);
    }

    #[test]
    fn a_claim_reports_the_state_of_its_expansion() {
        let claim: PersistentVolumeClaim = object(json!({
            "metadata": {"name": "a"},
            "spec": {"volumeName": "pvc-1", "resources": {"requests": {"storage": "2Gi"}}},
            "status": {
                "capacity": {"storage": "1Gi"},
                "allocatedResourceStatuses": {"storage": "ControllerResizeInfeasible"},
                "conditions": [
                    {"type": "Resizing", "status": "True", "message": "full"},
                    {"type": "FileSystemResizePending", "status": "False"},
                ],
            },
        }))
        .unwrap();
        let seen = claim_seen(&claim).unwrap();
        assert_eq!(seen.volume.as_deref(), Some("pvc-1"));
        assert_eq!((seen.requested, seen.capacity), (2 << 30, 1 << 30));
        let expected = [("ControllerResizeInfeasible", ""), ("Resizing", "full")];
        assert_eq!(
            seen.conditions,
            expected.map(|(a, b)| (a.to_owned(), b.to_owned())).into()
        );
    }

    #[test]
    fn a_control_plane_takes_no_pods() {
        let node = |taints: Value| {
            object::<Node>(json!({"metadata": {"name": "n"}, "spec": {"taints": taints}})).unwrap()
        };
        let taint = |effect: &str| json!([{"key": "k", "effect": effect}]);
        assert!(is_closed(&node(taint("NoSchedule"))));
        assert!(is_closed(&node(taint("NoExecute"))));
        assert!(!is_closed(&node(taint("PreferNoSchedule"))));
        assert!(!is_closed(&node(Value::Null)));
    }

    #[test]
    fn a_pod_gets_a_directory_or_a_device() {
        let mut with_node = Pod {
            name: "p".to_owned(),
            claim: "c".to_owned(),
            block: false,
            node: Some("n".to_owned()),
            script: None,
        };
        let spec = pod_spec(&with_node, "busybox");
        let container = &spec["containers"][0];
        assert_eq!(
            container["volumeMounts"],
            json!([{"name": "volume", "mountPath": "/volume"}])
        );
        assert_eq!(spec["nodeSelector"]["kubernetes.io/hostname"], "n");
        with_node.block = true;
        assert_eq!(
            pod_spec(&with_node, "busybox")["containers"][0]["volumeDevices"],
            json!([{"name": "volume", "devicePath": "/volume"}])
        );
        assert!(pod(&with_node, "busybox").is_ok());
    }
}
