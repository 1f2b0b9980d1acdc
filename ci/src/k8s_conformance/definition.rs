//! The test driver definition, which tells the suite the driver's name, capabilities and StorageClass.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::source::Known;

/// `e2e/k8s/testdriver.yaml`.
#[derive(Debug)]
pub(super) struct Definition(Value);

impl Definition {
    /// # Errors
    /// When it is not YAML.
    pub(super) fn parse(text: &str) -> Result<Self> {
        Ok(Self(serde_yaml_ng::from_str(text)?))
    }

    /// Unknown keys, and missing capabilities.
    pub(super) fn problems(&self, known: &Known) -> Vec<String> {
        let info = &self.0["DriverInfo"];
        let capabilities = &info["Capabilities"];
        let mut found = unknown(&self.0, &known.top, "key");
        found.extend(unknown(info, &known.info, "key of DriverInfo"));
        found.extend(unknown(capabilities, &known.capabilities, "capability"));
        for name in &known.capabilities {
            if !capabilities[name.as_str()].is_boolean() {
                found.push(format!("{name}: the capability must be true or false"));
            }
        }
        if info["Name"].as_str().is_none_or(str::is_empty) {
            found.push("DriverInfo.Name is missing".to_owned());
        }
        found
    }

    /// The StorageClass manifest, relative to the workspace's root.
    pub(super) fn class_file(&self) -> Option<&str> {
        self.0["StorageClass"]["FromFile"].as_str()
    }

    /// Number of capabilities that the driver has.
    pub(super) fn granted(&self) -> usize {
        let capabilities = self.0["DriverInfo"]["Capabilities"].as_object();
        capabilities.map_or(0, |all| {
            all.values()
                .filter(|value| **value == Value::Bool(true))
                .count()
        })
    }

    /// The definition as JSON, with its own StorageClass or an existing one of the cluster.
    ///
    /// # Errors
    /// When the definition is not an object.
    pub(super) fn for_class(&self, existing: Option<&str>) -> Result<String> {
        let mut definition = self.0.clone();
        let object = definition
            .as_object_mut()
            .context("the definition is not an object")?;
        if let Some(class) = existing {
            let class = serde_json::json!({"FromExistingClassName": class});
            object.insert("StorageClass".to_owned(), class);
        }
        Ok(serde_json::to_string_pretty(&definition)?)
    }
}

fn unknown(object: &Value, known: &BTreeSet<String>, what: &str) -> Vec<String> {
    let names = object
        .as_object()
        .into_iter()
        .flat_map(serde_json::Map::keys);
    names
        .filter(|name| !known.contains(*name))
        .map(|name| format!("{name}: the suite has no such {what}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "StorageClass: {FromFile: a.yaml}\n\
                        DriverInfo: {Name: x.example, Capabilities: {block: true, RWX: false}}\n";

    fn known() -> Known {
        let set = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Known {
            top: set(&["DriverInfo", "StorageClass"]),
            info: set(&["Name", "Capabilities"]),
            capabilities: set(&["block", "RWX"]),
        }
    }

    #[track_caller]
    fn check(from: &str, to: &str, says: &[&str]) {
        let text = GOOD.replace(from, to);
        assert_ne!(text, GOOD, "{from} is not there");
        let found = Definition::parse(&text).unwrap().problems(&known());
        assert_eq!(found.len(), says.len(), "{found:?}");
        for (found, says) in found.iter().zip(says) {
            assert!(found.contains(says), "{found}");
        }
    }

    #[test]
    fn a_good_definition_has_no_problem() {
        let definition = Definition::parse(GOOD).unwrap();
        assert_eq!(definition.problems(&known()), Vec::<String>::new());
        assert_eq!(definition.granted(), 1);
        assert_eq!(definition.class_file(), Some("a.yaml"));
    }

    #[test]
    fn unknown_keys_are_problems() {
        check("StorageClass", "StorageClas", &["StorageClas"]);
        check("Name: x.example", "Name: x.example, Nam: y", &["Nam:"]);
        check("block: true", "blok: true, block: true", &["blok"]);
    }

    #[test]
    fn each_capability_must_be_true_or_false() {
        check(", RWX: false", "", &["RWX"]);
        check("RWX: false", "RWX: perhaps", &["RWX"]);
        check("Name: x.example, ", "", &["Name"]);
    }

    #[test]
    fn the_storage_class_can_be_replaced_by_an_existing_one() {
        let class = |existing| {
            let text = Definition::parse(GOOD).unwrap().for_class(existing);
            let again: Value = serde_json::from_str(&text.unwrap()).unwrap();
            assert_eq!(again["DriverInfo"]["Name"], "x.example");
            again["StorageClass"].clone()
        };
        assert_eq!(class(None), serde_json::json!({"FromFile": "a.yaml"}));
        assert_eq!(
            class(Some("b")),
            serde_json::json!({"FromExistingClassName": "b"})
        );
        assert!(Definition::parse("[]").unwrap().for_class(None).is_err());
    }
}
