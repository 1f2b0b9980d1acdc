//! What holds for everything that the chart renders, whatever the values.

use std::collections::BTreeSet;

use serde_json::Value;

use super::case::{look, name_of};

/// How the kind and name of the one object begin and end whose pods have a container with privileges: this one.
const PRIVILEGED: (&str, &str, &str) = ("DaemonSet/", "-node", "driver");
/// And of the one whose pods are held to the strictest of the Pod Security Standards.
const RESTRICTED: (&str, &str) = ("Deployment/", "-controller");

/// Everything that is wrong with these objects, rendered for a release in `namespace`.
pub(super) fn breaches(objects: &[Value], namespace: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut names = BTreeSet::new();
    for object in objects {
        let name = name_of(object);
        let place = object["metadata"]["namespace"].as_str();
        if !names.insert((name.clone(), place)) {
            found.push(format!("{name}: there are two"));
        }
        // Secrets with CHAP names lie with those who use them, and so do the roles to read them.
        if place.is_some_and(|place| place != namespace) && !name.contains("-chap-") {
            found.push(format!("{name}: in another namespace than the release"));
        }
        if let Some(pod) = look(object, "/spec/template") {
            found.extend(pod_breaches(&name, object, pod));
        }
    }
    found
}

fn pod_breaches(name: &str, object: &Value, pod: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let selector = look(object, "/spec/selector/matchLabels").and_then(Value::as_object);
    let labels = &pod["metadata"]["labels"];
    let is_selected = selector.is_some_and(|selector| {
        !selector.is_empty() && selector.iter().all(|(key, value)| labels[key] == *value)
    });
    if !is_selected {
        found.push(format!("{name}: does not select its own pods"));
    }
    let spec = &pod["spec"];
    let volumes: BTreeSet<&str> = list(&spec["volumes"])
        .iter()
        .filter_map(|volume| volume["name"].as_str())
        .collect();
    for container in list(&spec["containers"])
        .iter()
        .chain(list(&spec["initContainers"]))
    {
        let who = container["name"].as_str().unwrap_or_default();
        let mut tell = |problem: &str| found.push(format!("{name} {who}: {problem}"));
        if !is_pinned(container["image"].as_str().unwrap_or_default()) {
            tell("its image has no tag, or one that moves");
        }
        for mount in list(&container["volumeMounts"]) {
            if !volumes.contains(mount["name"].as_str().unwrap_or_default()) {
                tell(&format!("mounts {}, which is no volume", mount["name"]));
            }
        }
        let security = &container["securityContext"];
        if security["privileged"] == true {
            let (kind, end, container) = PRIVILEGED;
            if !(is(name, kind, end) && who == container) {
                tell("is privileged");
            }
        } else if !has_no_privilege(security) {
            tell("has more rights than it needs");
        }
    }
    if is(name, RESTRICTED.0, RESTRICTED.1) && !is_restricted(spec) {
        found.push(format!(
            "{name}: the strictest Pod Security Standard would not admit it"
        ));
    }
    found
}

fn is(name: &str, start: &str, end: &str) -> bool {
    name.starts_with(start) && name.ends_with(end)
}

fn is_pinned(image: &str) -> bool {
    let name = image.rsplit('/').next().unwrap_or_default();
    name.contains('@')
        || name
            .split_once(':')
            .is_some_and(|(_, tag)| !tag.is_empty() && tag != "latest")
}

fn has_no_privilege(security: &Value) -> bool {
    security["allowPrivilegeEscalation"] == false
        && security["readOnlyRootFilesystem"] == true
        && security["capabilities"]["drop"] == serde_json::json!(["ALL"])
        && security["capabilities"].get("add").is_none()
}

/// What the pod as a whole has to say; what its containers have to say is [`has_no_privilege`].
fn is_restricted(spec: &Value) -> bool {
    let security = &spec["securityContext"];
    let shares = ["hostNetwork", "hostPID", "hostIPC"];
    let of_host = |volume: &Value| volume.get("hostPath").is_some();
    security["runAsNonRoot"] == true
        && security["runAsUser"] != 0
        && security["seccompProfile"]["type"] == "RuntimeDefault"
        && shares.iter().all(|share| spec[share] != true)
        && !list(&spec["volumes"]).iter().any(of_host)
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn controller() -> Value {
        json!({
            "kind": "Deployment",
            "metadata": {"name": "synology-csi-controller", "namespace": "ns"},
            "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b", "c": "d"}}, "spec": {
                "securityContext": {"runAsNonRoot": true, "runAsUser": 1, "seccompProfile": {"type": "RuntimeDefault"}},
                "volumes": [{"name": "socket", "emptyDir": {}}],
                "containers": [{
                    "name": "driver", "image": "localhost:5000/x:1", "volumeMounts": [{"name": "socket"}],
                    "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}},
                }],
            }}},
        })
    }

    #[test]
    fn a_good_pod_breaks_no_rule() {
        assert_eq!(breaches(&[controller()], "ns"), Vec::<String>::new());
    }

    #[test]
    fn each_rule_is_seen_to_be_broken() {
        let pod = "/spec/template/spec";
        for (path, value) in [
            ("/metadata/namespace".to_owned(), json!("other")),
            ("/spec/template/metadata/labels/a".to_owned(), json!("x")),
            (format!("{pod}/hostPID"), json!(true)),
            (format!("{pod}/securityContext/runAsNonRoot"), json!(false)),
            (format!("{pod}/volumes/0/hostPath"), json!({"path": "/"})),
            (format!("{pod}/volumes/0/name"), json!("other")),
            (
                format!("{pod}/containers/0/image"),
                json!("localhost:5000/x"),
            ),
            (format!("{pod}/containers/0/image"), json!("x:latest")),
            (
                format!("{pod}/containers/0/securityContext/privileged"),
                json!(true),
            ),
            (
                format!("{pod}/containers/0/securityContext/capabilities/add"),
                json!(["SYS_ADMIN"]),
            ),
        ] {
            let mut bad = controller();
            let (parent, key) = path.rsplit_once('/').unwrap();
            bad.pointer_mut(parent).unwrap()[key] = value;
            assert_eq!(breaches(&[bad], "ns").len(), 1, "{path}");
        }
        assert_eq!(breaches(&[controller(), controller()], "ns").len(), 1);
    }
}
