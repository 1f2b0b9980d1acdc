//! What we tell the suite of our driver.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::source::Known;

/// `e2e/k8s/testdriver.yaml`.
#[derive(Debug)]
pub(super) struct Definition(Value);

impl Definition {
    /// Reads it.
    ///
    /// # Errors
    /// When it is no YAML.
    pub(super) fn parse(text: &str) -> Result<Self> {
        Ok(Self(serde_yaml_ng::from_str(text)?))
    }

    /// What the suite would not understand, or what it asks and we do not answer.
    pub(super) fn problems(&self, known: &Known) -> Vec<String> {
        let info = &self.0["DriverInfo"];
        let capabilities = &info["Capabilities"];
        let mut found = unknown(&self.0, &known.top, "key");
        found.extend(unknown(info, &known.info, "key of DriverInfo"));
        found.extend(unknown(capabilities, &known.capabilities, "capability"));
        for name in &known.capabilities {
            if !capabilities[name.as_str()].is_boolean() {
                found.push(format!("{name}: can the driver do that? true or false"));
            }
        }
        if info["Name"].as_str().is_none_or(str::is_empty) {
            found.push("DriverInfo.Name is missing".to_owned());
        }
        found
    }

    /// The file with the StorageClass, from the workspace's root.
    pub(super) fn class_file(&self) -> Option<&str> {
        self.0["StorageClass"]["FromFile"].as_str()
    }

    /// How many capabilities the driver has.
    pub(super) fn granted(&self) -> usize {
        let capabilities = self.0["DriverInfo"]["Capabilities"].as_object();
        capabilities.map_or(0, |all| {
            all.values()
                .filter(|value| **value == Value::Bool(true))
                .count()
        })
    }

    /// As the suite reads it: for volumes of its own StorageClass, or of one that the cluster has.
    ///
    /// # Errors
    /// When it is no object.
    pub(super) fn for_class(&self, existing: Option<&str>) -> Result<String> {
        let mut definition = self.0.clone();
        let object = definition.as_object_mut().context("it is no object")?;
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
        .map(|name| format!("{name}: the suite knows no such {what}"))
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
    fn a_good_one_has_no_problem() {
        let definition = Definition::parse(GOOD).unwrap();
        assert_eq!(definition.problems(&known()), Vec::<String>::new());
        assert_eq!(definition.granted(), 1);
        assert_eq!(definition.class_file(), Some("a.yaml"));
    }

    #[test]
    fn what_the_suite_would_ignore_is_a_problem() {
        check("StorageClass", "StorageClas", &["StorageClas"]);
        check("Name: x.example", "Name: x.example, Nam: y", &["Nam:"]);
        check("block: true", "blok: true, block: true", &["blok"]);
    }

    #[test]
    fn each_capability_is_decided() {
        check(", RWX: false", "", &["RWX"]);
        check("RWX: false", "RWX: perhaps", &["RWX"]);
        check("Name: x.example, ", "", &["Name"]);
    }

    #[test]
    fn volumes_are_of_the_class_that_is_asked_for() {
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
