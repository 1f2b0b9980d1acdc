//! Generates strict JSON schemas from Kubernetes' OpenAPI document: one self-contained file per kind, in which unknown fields are
//! errors. The file names are those that kubeconform looks up: `deployment-apps-v1.json`.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Map, Value, json};

/// This file is written last. A folder without it is incomplete.
pub(super) const COMPLETE: &str = "complete";

const REFERENCE: &str = "#/definitions/";

/// Writes the schemas of all kinds into `folder`.
///
/// # Errors
/// When the document cannot be read or has another structure, or a file cannot be written.
pub(super) fn write(openapi: &Path, folder: &Path) -> Result<()> {
    let text = fs::read_to_string(openapi).with_context(|| openapi.display().to_string())?;
    let document: Value = serde_json::from_str(&text)?;
    let definitions = document["definitions"]
        .as_object()
        .context("no definitions")?;
    fs::create_dir_all(folder)?;
    let mut written = 0;
    for (name, definition) in definitions {
        if let Some(kind) = Kind::of(definition) {
            let schema = kind.schema(name, definitions);
            fs::write(folder.join(kind.file()), serde_json::to_string(&schema)?)?;
            written += 1;
        }
    }
    ensure!(
        written > 50,
        "only {written} kinds in {}",
        openapi.display()
    );
    fs::write(folder.join(COMPLETE), "")?;
    Ok(())
}

/// A kind of Kubernetes object.
#[derive(Debug)]
struct Kind {
    group: String,
    version: String,
    name: String,
}

impl Kind {
    /// The kind that a definition describes. `None` for types such as options, which belong to many groups and are not objects.
    fn of(definition: &Value) -> Option<Self> {
        let kinds = definition["x-kubernetes-group-version-kind"].as_array()?;
        let [only] = kinds.as_slice() else {
            return None;
        };
        let text = |key: &str| only[key].as_str().map(str::to_owned);
        let (group, version, name) = (text("group")?, text("version")?, text("kind")?);
        definition["properties"].get("metadata")?;
        Some(Self {
            group,
            version,
            name,
        })
    }

    fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// The file name. kubeconform uses the first part of the group.
    fn file(&self) -> String {
        let group = self.group.split('.').next().unwrap_or_default();
        let parts = [self.name.as_str(), group, self.version.as_str()];
        let parts = parts.iter().filter(|part| !part.is_empty());
        let name = parts.copied().collect::<Vec<_>>().join("-");
        format!("{}.json", name.to_lowercase())
    }

    fn schema(&self, name: &str, definitions: &Map<String, Value>) -> Value {
        let mut used = BTreeSet::new();
        collect_references(name, definitions, &mut used);
        let mut strict: Map<String, Value> = used
            .into_iter()
            .map(|name| (name.to_owned(), strict_definition(name, &definitions[name])))
            .collect();
        if let Some(own) = strict.get_mut(name) {
            own["required"] = json!(["apiVersion", "kind", "metadata"]);
            own["properties"]["apiVersion"] = json!({"const": self.api_version()});
            own["properties"]["kind"] = json!({"const": self.name});
        }
        json!({
            "$schema": "http://json-schema.org/draft-07/schema#",
            "$ref": format!("{REFERENCE}{name}"),
            "definitions": strict,
        })
    }
}

/// Collects the names of a definition and of all definitions that it refers to.
fn collect_references<'a>(
    name: &'a str,
    definitions: &'a Map<String, Value>,
    used: &mut BTreeSet<&'a str>,
) {
    if let Some(definition) = definitions.get(name)
        && used.insert(name)
    {
        references(definition, &mut |name| {
            collect_references(name, definitions, used);
        });
    }
}

fn references<'a>(value: &'a Value, each: &mut impl FnMut(&'a str)) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value.as_str().and_then(|text| text.strip_prefix(REFERENCE)) {
                    Some(name) if key == "$ref" => each(name),
                    Some(_) | None => references(value, each),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| references(value, each)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn strict_definition(name: &str, definition: &Value) -> Value {
    // These two may be strings or numbers, but the document only has string.
    if name.ends_with(".IntOrString") {
        return json!({"type": ["string", "integer"]});
    }
    if name.ends_with(".resource.Quantity") {
        return json!({"type": ["string", "number"]});
    }
    let mut definition = definition.clone();
    if definition.get("properties").is_some() && definition.get("additionalProperties").is_none() {
        definition["additionalProperties"] = json!(false);
    }
    definition
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document() -> Value {
        json!({
            "io.k8s.api.apps.v1.Deployment": {
                "properties": {"metadata": {"$ref": "#/definitions/Meta"}, "spec": {"$ref": "#/definitions/Spec"}},
                "x-kubernetes-group-version-kind": [{"group": "apps", "version": "v1", "kind": "Deployment"}],
            },
            "Meta": {"properties": {"name": {"type": "string"}}},
            "Spec": {"properties": {"again": {"$ref": "#/definitions/Spec"}, "port": {"$ref": "#/definitions/x.IntOrString"}}},
            "x.IntOrString": {"type": "string", "format": "int-or-string"},
            "NoKind": {"properties": {}},
            "Options": {
                "properties": {"metadata": {}},
                "x-kubernetes-group-version-kind": [{"group": "", "version": "v1", "kind": "O"}, {"group": "a", "version": "v1", "kind": "O"}],
            },
        })
    }

    #[test]
    fn a_schema_is_self_contained_and_strict() {
        let document = document();
        let definitions = document.as_object().unwrap();
        let name = "io.k8s.api.apps.v1.Deployment";
        let kind = Kind::of(&definitions[name]).unwrap();
        let schema = kind.schema(name, definitions);
        let inside = schema["definitions"].as_object().unwrap();
        assert_eq!(inside.len(), 4, "{inside:?}");
        assert_eq!(inside["Spec"]["additionalProperties"], json!(false));
        assert_eq!(inside[name]["properties"]["apiVersion"]["const"], "apps/v1");
        assert_eq!(
            inside["x.IntOrString"]["type"],
            json!(["string", "integer"])
        );
    }

    #[test]
    fn file_names_are_those_that_kubeconform_looks_up() {
        let file = |group: &str, name: &str| {
            let kind = Kind {
                group: group.to_owned(),
                version: "v1".to_owned(),
                name: name.to_owned(),
            };
            kind.file()
        };
        assert_eq!(file("", "Secret"), "secret-v1.json");
        assert_eq!(file("apps", "DaemonSet"), "daemonset-apps-v1.json");
        assert_eq!(
            file("rbac.authorization.k8s.io", "ClusterRole"),
            "clusterrole-rbac-v1.json"
        );
    }

    #[test]
    fn types_of_many_groups_or_without_metadata_are_no_kind() {
        let document = document();
        assert!(Kind::of(&document["Options"]).is_none());
        assert!(Kind::of(&document["NoKind"]).is_none());
    }
}
