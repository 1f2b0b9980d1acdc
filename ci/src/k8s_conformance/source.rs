//! Reads the keys and capabilities that the suite knows from its Go source.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

/// The keys that a definition may have.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Top-level keys.
    pub(super) top: BTreeSet<String>,
    /// Keys of `DriverInfo`.
    pub(super) info: BTreeSet<String>,
    /// Keys of `DriverInfo.Capabilities`.
    pub(super) capabilities: BTreeSet<String>,
}

impl Known {
    /// Parses `external/external.go` and `framework/testdriver.go`.
    ///
    /// # Errors
    /// When their structure has changed.
    pub(super) fn read(external: &str, framework: &str) -> Result<Self> {
        let known = Self {
            top: fields(external, "driverDefinition"),
            info: fields(framework, "DriverInfo"),
            capabilities: capabilities(framework),
        };
        ensure!(
            !known.top.is_empty() && !known.info.is_empty() && !known.capabilities.is_empty(),
            "the structure of the suite's source has changed: see ci/src/k8s_conformance/source.rs"
        );
        Ok(known)
    }
}

/// The names of a struct's direct fields, which gofmt indents once.
fn fields(source: &str, name: &str) -> BTreeSet<String> {
    let head = format!("type {name} struct {{");
    source
        .lines()
        .skip_while(|line| *line != head)
        .skip(1)
        .take_while(|line| *line != "}")
        .filter_map(|line| line.strip_prefix('\t'))
        .filter(|line| line.starts_with(|first: char| first.is_ascii_uppercase()))
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

/// `CapBlock Capability = "block"` → `block`.
fn capabilities(source: &str) -> BTreeSet<String> {
    source
        .lines()
        .filter(|line| line.trim_start().starts_with("Cap"))
        .filter_map(|line| line.split_once(" Capability = \"")?.1.split_once('"'))
        .map(|(name, _)| name.to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXTERNAL: &str = "type other struct {\n\tNo int\n}\n\ntype driverDefinition struct {\n\t// Words.\n\tDriverInfo x.DriverInfo\n\n\
                            \tStorageClass struct {\n\t\tFromName bool\n\t}\n}\n\nvar Late int\n";
    const FRAMEWORK: &str = "const (\n\tCapBlock    Capability = \"block\" // raw\n\tCapFsGroup Capability = \"fsGroup\"\n)\n\n\
                             type DriverInfo struct {\n\tName string\n}\n";

    #[test]
    fn fields_and_capabilities_are_found() {
        let known = Known::read(EXTERNAL, FRAMEWORK).unwrap();
        let set = |names: &[&str]| {
            names
                .iter()
                .map(|&name| name.to_owned())
                .collect::<BTreeSet<_>>()
        };
        assert_eq!(known.top, set(&["DriverInfo", "StorageClass"]));
        assert_eq!(known.info, set(&["Name"]));
        assert_eq!(known.capabilities, set(&["block", "fsGroup"]));
    }

    #[test]
    fn source_with_another_structure_is_an_error() {
        assert!(Known::read(EXTERNAL, "package framework\n").is_err());
        assert!(Known::read("package external\n", FRAMEWORK).is_err());
    }
}
