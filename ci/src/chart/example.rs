//! Checks the manifests in `driver/deploy/examples`: whether the driver accepts their StorageClasses, and whether they refer to
//! each other correctly. The schemas check the rest.

use serde_json::Value;

use super::case::{name_of, value_at};

/// Below `driver/deploy`.
pub(super) const FOLDER: &str = "examples";
/// The StorageClass of the article that this project started from: the example for users, and the tested one.
pub(super) const ARTICLE: [&str; 2] = [
    "driver/deploy/examples/storageclass.yaml",
    "e2e/k8s/article.yaml",
];
/// Where the driver lists its parameters.
pub(crate) const PARAMETERS: &str = "driver/src/request/parameters.rs";
/// The provisioner of all classes.
const PROVISIONER: &str = "csi.synology.com";
/// The chart's default StorageClass.
const CHART_CLASS: &str = "synology";
/// Prefix of the parameters that the sidecars read, and the driver ignores.
const SIDECAR_PREFIX: &str = "csi.storage.k8s.io/";

/// The path of a file, and the objects in it.
pub(super) type Example = (String, Vec<Value>);

/// The StorageClass parameters in the driver's source. Empty if the list is not found.
pub(crate) fn parameters(source: &str) -> Vec<&str> {
    let rest = source.split_once("const KNOWN: &str =");
    let list = rest.and_then(|(_, it)| it.split('"').nth(1));
    list.unwrap_or_default()
        .split(", ")
        .filter(|name| !name.is_empty())
        .collect()
}

/// All problems of the examples.
pub(super) fn breaches(examples: &[Example], parameters: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    if parameters.is_empty() {
        found.push(format!("{PARAMETERS}: no parameters found in KNOWN"));
    }
    let classes = names(examples, "StorageClass");
    let claims = names(examples, "PersistentVolumeClaim");
    for (file, objects) in examples {
        if objects.is_empty() {
            found.push(format!("{file}: has no object"));
        }
        for object in objects {
            let name = name_of(object);
            let mut report = |problem: String| found.push(format!("{file}: {name}: {problem}"));
            if object["kind"] == "StorageClass" {
                if object["provisioner"] != PROVISIONER {
                    report(format!("its provisioner is not {PROVISIONER}"));
                }
                let given = object["parameters"].as_object().into_iter().flatten();
                for (key, _) in given {
                    if !key.starts_with(SIDECAR_PREFIX) && !parameters.contains(&key.as_str()) {
                        report(format!("the driver has no parameter {key}"));
                    }
                }
            }
            for claim in claims_in(object) {
                let class = claim["spec"]["storageClassName"]
                    .as_str()
                    .unwrap_or_default();
                if class != CHART_CLASS && !classes.contains(&class) {
                    report(format!("no example defines the StorageClass {class:?}"));
                }
            }
            for volume in value_at(object, "/spec/volumes")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
            {
                let claim = volume["persistentVolumeClaim"]["claimName"].as_str();
                if let Some(claim) = claim.filter(|claim| !claims.contains(claim)) {
                    report(format!("no example defines the claim {claim:?}"));
                }
            }
        }
    }
    found
}

/// An error message if the article's StorageClass in the examples differs from the tested one.
pub(super) fn article(example: &[Value], tested: &[Value]) -> Option<String> {
    (example.is_empty() || example != tested).then(|| {
        format!(
            "{}: differs from the StorageClass in {}, which is a verbatim copy of the article's",
            ARTICLE[0], ARTICLE[1]
        )
    })
}

/// A claim, or the claim templates of a StatefulSet.
fn claims_in(object: &Value) -> Vec<&Value> {
    if object["kind"] == "PersistentVolumeClaim" {
        return vec![object];
    }
    let templates = value_at(object, "/spec/volumeClaimTemplates").and_then(Value::as_array);
    templates.into_iter().flatten().collect()
}

fn names<'a>(examples: &'a [Example], kind: &str) -> Vec<&'a str> {
    let objects = examples.iter().flat_map(|(_, objects)| objects);
    let of_kind = objects.filter(|object| object["kind"] == kind);
    of_kind
        .filter_map(|object| object["metadata"]["name"].as_str())
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn class(parameters: &Value) -> Value {
        json!({"kind": "StorageClass", "metadata": {"name": "fast"}, "provisioner": PROVISIONER, "parameters": parameters})
    }

    fn claim(class: &str) -> Value {
        json!({"kind": "PersistentVolumeClaim", "metadata": {"name": "first"}, "spec": {"storageClassName": class}})
    }

    fn pod(claim: &str) -> Value {
        json!({"kind": "Pod", "metadata": {"name": "p"}, "spec": {"volumes": [
            {"name": "tmp", "emptyDir": {}}, {"name": "data", "persistentVolumeClaim": {"claimName": claim}},
        ]}})
    }

    fn set(class: &str) -> Value {
        json!({"kind": "StatefulSet", "metadata": {"name": "s"}, "spec": {"volumeClaimTemplates": [
            {"metadata": {"name": "data"}, "spec": {"storageClassName": class}},
        ]}})
    }

    #[track_caller]
    fn check(objects: Vec<Value>, want: &[&str]) {
        let found = breaches(&[("a.yaml".to_owned(), objects)], &["location", "type"]);
        assert_eq!(found.len(), want.len(), "{found:?}");
        for (breach, part) in found.iter().zip(want) {
            assert!(
                breach.starts_with("a.yaml: ") && breach.contains(part),
                "{breach}"
            );
        }
    }

    #[test]
    fn examples_with_correct_references_are_good() {
        let sidecars =
            json!({"location": "/volume1", "csi.storage.k8s.io/node-stage-secret-name": "x"});
        check(
            vec![
                class(&sidecars),
                claim("fast"),
                pod("first"),
                set("synology"),
            ],
            &[],
        );
    }

    #[test]
    fn wrong_parameters_and_references_are_reported_with_their_file() {
        check(
            vec![class(&json!({"locaton": "/volume1"}))],
            &["StorageClass/fast: the driver has no parameter locaton"],
        );
        let mut other = class(&json!({}));
        other["provisioner"] = json!("csi.san.synology.com");
        check(vec![other], &["provisioner"]);
        check(
            vec![claim("slow")],
            &["no example defines the StorageClass \"slow\""],
        );
        check(
            vec![set("slow")],
            &["StatefulSet/s: no example defines the StorageClass"],
        );
        check(
            vec![pod("second")],
            &["no example defines the claim \"second\""],
        );
        check(vec![], &["has no object"]);
    }

    #[test]
    fn parameters_are_read_from_the_source_however_it_is_wrapped() {
        assert_eq!(
            parameters("const KNOWN: &str = \"location, type\";"),
            ["location", "type"]
        );
        assert_eq!(
            parameters("const KNOWN: &str =\n    \"location, type\";"),
            ["location", "type"]
        );
        assert_eq!(
            breaches(&[], &parameters("const OTHER: &str = \"x\";")).len(),
            1
        );
    }

    #[test]
    fn the_articles_storage_class_must_equal_the_tested_one() {
        let (given, other) = ([class(&json!({}))], [class(&json!({"type": "BLUN"}))]);
        assert_eq!(article(&given, &given), None);
        assert!(article(&given, &other).is_some() && article(&[], &[]).is_some());
    }
}
