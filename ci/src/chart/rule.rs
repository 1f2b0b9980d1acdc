//! Rules for all objects that the chart renders, whatever the values: unique names, pinned images, least privilege, no leaked
//! Secrets.

use std::collections::BTreeSet;

use serde_json::Value;

use super::case::{name_of, value_at};

/// The only privileged container: kind and name suffix of its object, and its name.
const PRIVILEGED: (&str, &str, &str) = ("DaemonSet/", "-node", "driver");
/// The object whose pods must meet the restricted Pod Security Standard: kind and name suffix.
const RESTRICTED: (&str, &str) = ("Deployment/", "-controller");

/// The driver's minimum length of a CHAP key, in bytes.
const MIN_KEY_BYTES: usize = 32;

/// All violations in these objects, rendered for a release in `namespace`.
pub(super) fn breaches(objects: &[Value], namespace: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut names = BTreeSet::new();
    for object in objects {
        let name = name_of(object);
        let place = object["metadata"]["namespace"].as_str();
        if !names.insert((name.clone(), place)) {
            found.push(format!("{name}: defined twice"));
        }
        // CHAP Secrets may be in other namespaces, and so are the Roles that allow reading them.
        let is_role_for_chap = name.starts_with("Role") && name.contains("-chap-");
        if place.is_some_and(|place| place != namespace) && !is_role_for_chap {
            found.push(format!("{name}: not in the release's namespace"));
        }
        if reads_any_secret(object) {
            found.push(format!(
                "{name}: allows reading Secrets without naming them"
            ));
        }
        if let Some(pod) = value_at(object, "/spec/template") {
            found.extend(pod_breaches(&name, object, pod));
            if !is(&name, RESTRICTED.0, RESTRICTED.1) && mounts_secret(&pod["spec"]) {
                found.push(format!(
                    "{name}: only the controller's pods may use Secrets"
                ));
            }
        }
    }
    found.extend(leaked_keys(objects));
    found
}

/// Whether a pod uses a Secret, as a volume or in an environment variable.
fn mounts_secret(pod: &Value) -> bool {
    let of_secret = |volume: &Value| {
        let sources = list(&volume["projected"]["sources"]);
        volume.get("secret").is_some() || sources.iter().any(|it| it.get("secret").is_some())
    };
    let reads_secret = |container: &Value| {
        let one = |it: &Value| it["valueFrom"].get("secretKeyRef").is_some();
        let all = |it: &Value| it.get("secretRef").is_some();
        list(&container["env"]).iter().any(one) || list(&container["envFrom"]).iter().any(all)
    };
    list(&pod["volumes"]).iter().any(of_secret)
        || ["containers", "initContainers"]
            .iter()
            .flat_map(|containers| list(&pod[containers]))
            .any(reads_secret)
}

/// CHAP keys that occur outside of their Secret, plain or in base64.
fn leaked_keys(objects: &[Value]) -> Vec<String> {
    let is_secret = |object: &Value| object["kind"] == "Secret";
    let mut found = Vec::new();
    for secret in objects.iter().filter(|it| is_secret(it)) {
        let name = name_of(secret);
        if !name.contains("-chap-") {
            continue;
        }
        let written = secret["data"].as_object().into_iter().flatten();
        for encoded in written.filter_map(|(_, value)| value.as_str()) {
            let key = decoded(encoded).unwrap_or_default();
            if key.len() < MIN_KEY_BYTES {
                found.push(format!("{name}: contains an invalid key"));
                continue;
            }
            let leaks = |text: &str| text.contains(encoded) || text.contains(&key);
            for object in objects.iter().filter(|it| !is_secret(it)) {
                if any_text(object, &leaks) {
                    found.push(format!("{}: contains the key of {name}", name_of(object)));
                }
            }
        }
    }
    found
}

fn any_text(value: &Value, matches: &impl Fn(&str) -> bool) -> bool {
    match value {
        Value::String(text) => matches(text),
        Value::Array(elements) => elements.iter().any(|element| any_text(element, matches)),
        Value::Object(fields) => fields
            .iter()
            .any(|(key, value)| matches(key) || any_text(value, matches)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Decodes base64; `None` if it is not base64, or not UTF-8.
fn decoded(base64: &str) -> Option<String> {
    let digit = |byte: u8| {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        Some(u32::from(digit))
    };
    let (mut bytes, mut buffer, mut bits) = (Vec::new(), 0_u32, 0);
    for byte in base64.trim_end_matches('=').bytes() {
        buffer = buffer << 6 | digit(byte)?;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push(u8::try_from(buffer >> bits & 0xff).ok()?);
        }
    }
    String::from_utf8(bytes).ok()
}

fn pod_breaches(name: &str, object: &Value, pod: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let selector = value_at(object, "/spec/selector/matchLabels").and_then(Value::as_object);
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
        let mut report = |problem: &str| found.push(format!("{name} {who}: {problem}"));
        if !is_pinned(container["image"].as_str().unwrap_or_default()) {
            report("its image has no tag, or the tag latest");
        }
        for mount in list(&container["volumeMounts"]) {
            if !volumes.contains(mount["name"].as_str().unwrap_or_default()) {
                report(&format!(
                    "mounts {}, which is not a volume of the pod",
                    mount["name"]
                ));
            }
        }
        let security = &container["securityContext"];
        if security["privileged"] == true {
            let (kind, end, container) = PRIVILEGED;
            if !(is(name, kind, end) && who == container) {
                report("is privileged");
            }
        } else if !has_no_privilege(security) || !is_confined(spec, security) {
            report("has more privileges than it needs");
        }
    }
    if is(name, RESTRICTED.0, RESTRICTED.1) && !is_restricted(spec) {
        found.push(format!(
            "{name}: violates the restricted Pod Security Standard"
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

/// Whether the container or its pod sets the runtime's default seccomp profile.
fn is_confined(pod: &Value, container: &Value) -> bool {
    let profile = |security: &Value| security["seccompProfile"]["type"].clone();
    let own = profile(container);
    let effective = if own.is_null() {
        profile(&pod["securityContext"])
    } else {
        own
    };
    effective == "RuntimeDefault"
}

/// Whether a Role allows access to Secrets without naming them.
fn reads_any_secret(role: &Value) -> bool {
    let unrestricted = |rule: &Value| {
        list(&rule["resources"])
            .iter()
            .any(|it| it == "secrets" || it == "*")
            && list(&rule["resourceNames"]).is_empty()
    };
    list(&role["rules"]).iter().any(unrestricted)
}

/// The pod-level part of the restricted Pod Security Standard. The container-level part is [`has_no_privilege`].
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
    fn a_good_pod_violates_no_rule() {
        assert_eq!(breaches(&[controller()], "ns"), Vec::<String>::new());
    }

    #[test]
    fn each_violation_is_reported() {
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
                format!("{pod}/containers/0/securityContext/seccompProfile"),
                json!({"type": "Unconfined"}),
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

    #[test]
    fn roles_must_name_the_secrets_they_read() {
        let role = |rule: Value| json!({"kind": "Role", "metadata": {"name": "x", "namespace": "ns"}, "rules": [rule]});
        let found = |rule: Value| breaches(&[role(rule)], "ns").len();
        assert_eq!(
            found(json!({"resources": ["secrets"], "resourceNames": ["a"]})),
            0
        );
        assert_eq!(found(json!({"resources": ["persistentvolumes"]})), 0);
        assert_eq!(found(json!({"resources": ["secrets"]})), 1);
        assert_eq!(
            found(json!({"resources": ["secrets"], "resourceNames": []})),
            1
        );
        assert_eq!(found(json!({"resources": ["*"]})), 1);
    }

    #[test]
    fn each_use_of_a_secret_is_detected() {
        for (path, value) in [
            ("volumes/0", json!({"secret": {}})),
            (
                "volumes/0",
                json!({"projected": {"sources": [{"secret": {}}]}}),
            ),
            (
                "containers/0/env",
                json!([{"valueFrom": {"secretKeyRef": {}}}]),
            ),
            ("containers/0/envFrom", json!([{"secretRef": {}}])),
        ] {
            let mut pod = controller()["spec"]["template"]["spec"].clone();
            assert!(!mounts_secret(&pod));
            let (parent, key) = path.rsplit_once('/').unwrap();
            let parent = pod.pointer_mut(&format!("/{parent}")).unwrap();
            match key.parse::<usize>() {
                Ok(number) => parent[number] = value,
                Err(_) => parent[key] = value,
            }
            assert!(mounts_secret(&pod), "{path}");
        }
    }

    #[test]
    fn a_key_outside_of_its_secret_is_reported() {
        let secret = json!({
            "kind": "Secret", "metadata": {"name": "x-chap-key", "namespace": "ns"},
            "data": {"key": "YS1wbGFudGVkLWtleS1vZi10aGlydHktdHdvLWJ5dGVzIQ=="},
        });
        let map = |text: &str| json!({"kind": "ConfigMap", "metadata": {"name": "x", "namespace": "ns"}, "data": {"config.yaml": text}});
        let found = |text: &str| breaches(&[secret.clone(), map(text)], "ns").len();
        assert_eq!(found("chap: mutual"), 0);
        assert_eq!(found("key: a-planted-key-of-thirty-two-bytes!"), 1);
        assert_eq!(
            found("key: YS1wbGFudGVkLWtleS1vZi10aGlydHktdHdvLWJ5dGVzIQ=="),
            1
        );
        let mut short = secret.clone();
        short["data"]["key"] = json!("c2hvcnQ=");
        assert_eq!(breaches(&[short], "ns").len(), 1);
    }
}
