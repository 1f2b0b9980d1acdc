//! The manifests in `driver/deploy/examples`: whether the driver would take their StorageClasses, and whether they fit together. Whether
//! Kubernetes would take them, the schemas say.

use serde_json::Value;

use super::case::{look, name_of};

/// Below `driver/deploy`.
pub(super) const FOLDER: &str = "examples";
/// The class of the article that this project was made from, as users have it and as it is tested.
pub(super) const ARTICLE: [&str; 2] = [
    "driver/deploy/examples/storageclass.yaml",
    "e2e/k8s/article.yaml",
];
/// Where the driver lists its parameters.
pub(crate) const PARAMETERS: &str = "driver/src/request/parameters.rs";
/// The provisioner of all classes.
const PROVISIONER: &str = "csi.synology.com";
/// The class that the chart makes when nobody tells it of others.
const OF_THE_CHART: &str = "synology";
/// Keys that the sidecars read, and the driver passes over.
const OF_THE_SIDECARS: &str = "csi.storage.k8s.io/";

/// A file, and the objects in it.
pub(super) type Example = (String, Vec<Value>);

/// The parameters of a StorageClass that the driver knows, by its source; none when the list is not where it was.
pub(crate) fn parameters(source: &str) -> Vec<&str> {
    let behind = source.split_once("const KNOWN: &str =");
    let list = behind.and_then(|(_, it)| it.split('"').nth(1));
    list.unwrap_or_default()
        .split(", ")
        .filter(|name| !name.is_empty())
        .collect()
}

/// Everything that is wrong with them.
pub(super) fn breaches(examples: &[Example], parameters: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    if parameters.is_empty() {
        found.push(format!("{PARAMETERS}: lists no parameters as KNOWN"));
    }
    let classes = names(examples, "StorageClass");
    let claims = names(examples, "PersistentVolumeClaim");
    for (file, objects) in examples {
        if objects.is_empty() {
            found.push(format!("{file}: holds no object"));
        }
        for object in objects {
            let name = name_of(object);
            let mut tell = |problem: String| found.push(format!("{file}: {name}: {problem}"));
            if object["kind"] == "StorageClass" {
                if object["provisioner"] != PROVISIONER {
                    tell(format!("its provisioner is not {PROVISIONER}"));
                }
                let given = object["parameters"].as_object().into_iter().flatten();
                for (key, _) in given {
                    if !key.starts_with(OF_THE_SIDECARS) && !parameters.contains(&key.as_str()) {
                        tell(format!("the driver knows no parameter {key}"));
                    }
                }
            }
            for claim in claims_in(object) {
                let class = claim["spec"]["storageClassName"]
                    .as_str()
                    .unwrap_or_default();
                if class != OF_THE_CHART && !classes.contains(&class) {
                    tell(format!("no example makes the StorageClass {class:?}"));
                }
            }
            for volume in look(object, "/spec/volumes")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
            {
                let claim = volume["persistentVolumeClaim"]["claimName"].as_str();
                if let Some(claim) = claim.filter(|claim| !claims.contains(claim)) {
                    tell(format!("no example makes the claim {claim:?}"));
                }
            }
        }
    }
    found
}

/// What differs between the article's class as users have it and as it is tested.
pub(super) fn article(example: &[Value], tested: &[Value]) -> Option<String> {
    (example.is_empty() || example != tested).then(|| {
        format!(
            "{}: not the StorageClass in {}, which is the article's word for word",
            ARTICLE[0], ARTICLE[1]
        )
    })
}

/// A claim, or those that a StatefulSet makes.
fn claims_in(object: &Value) -> Vec<&Value> {
    if object["kind"] == "PersistentVolumeClaim" {
        return vec![object];
    }
    let templates = look(object, "/spec/volumeClaimTemplates").and_then(Value::as_array);
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
    fn examples_that_fit_together_are_good() {
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
    fn what_does_not_fit_is_named_with_its_file() {
        check(
            vec![class(&json!({"locaton": "/volume1"}))],
            &["StorageClass/fast: the driver knows no parameter locaton"],
        );
        let mut other = class(&json!({}));
        other["provisioner"] = json!("csi.san.synology.com");
        check(vec![other], &["provisioner"]);
        check(
            vec![claim("slow")],
            &["no example makes the StorageClass \"slow\""],
        );
        check(
            vec![set("slow")],
            &["StatefulSet/s: no example makes the StorageClass"],
        );
        check(
            vec![pod("second")],
            &["no example makes the claim \"second\""],
        );
        check(vec![], &["holds no object"]);
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
    fn the_articles_class_is_the_one_that_is_tested() {
        let (given, other) = ([class(&json!({}))], [class(&json!({"type": "BLUN"}))]);
        assert_eq!(article(&given, &given), None);
        assert!(article(&given, &other).is_some() && article(&[], &[]).is_some());
    }
}
