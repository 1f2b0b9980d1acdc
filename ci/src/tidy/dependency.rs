//! Checks the dependencies between the crates of this workspace, in the output of `cargo metadata --no-deps`.

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// A crate, the crates that its code may depend on, and those that its tests may also depend on.
struct Rule {
    package: &'static str,
    code: &'static [&'static str],
    tests: &'static [&'static str],
}

/// The driver and the simulators do not depend on each other: no test could detect an error in code that both share.
const RULES: [Rule; 6] = [
    Rule {
        package: "ci",
        code: &[],
        tests: &[],
    },
    Rule {
        package: "driver",
        code: &["proto"],
        tests: &["dsm-sim", "node-sim"],
    },
    Rule {
        package: "dsm-sim",
        code: &["node-sim"],
        tests: &[],
    },
    Rule {
        package: "e2e",
        code: &["driver", "dsm-sim", "node-sim", "proto"],
        tests: &[],
    },
    Rule {
        package: "node-sim",
        code: &[],
        tests: &[],
    },
    Rule {
        package: "proto",
        code: &[],
        tests: &[],
    },
];

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    /// `null`, `dev` or `build`.
    kind: Option<String>,
    /// Set for crates of the workspace.
    path: Option<String>,
}

/// All forbidden dependencies.
///
/// # Errors
/// When the metadata cannot be parsed.
pub(super) fn breaches(metadata: &str) -> Result<Vec<String>> {
    let metadata: Metadata = serde_json::from_str(metadata).context("cargo metadata")?;
    Ok(metadata.packages.iter().flat_map(of_package).collect())
}

fn of_package(package: &Package) -> Vec<String> {
    let name = &package.name;
    let Some(rule) = RULES.iter().find(|rule| rule.package == name) else {
        return vec![format!(
            "crate {name}: has no rule in ci/src/tidy/dependency.rs"
        )];
    };
    let inside = package
        .dependencies
        .iter()
        .filter(|dependency| dependency.path.is_some());
    inside
        .filter(|dependency| !rule.allows(dependency))
        .map(|dependency| {
            let kind = dependency.kind.as_deref().unwrap_or("normal");
            format!(
                "crate {name}: must not have {} as a {kind} dependency",
                dependency.name
            )
        })
        .collect()
}

impl Rule {
    fn allows(&self, dependency: &Dependency) -> bool {
        let name = dependency.name.as_str();
        self.code.contains(&name)
            || (dependency.kind.as_deref() == Some("dev") && self.tests.contains(&name))
    }
}

#[cfg(test)]
mod tests {
    use super::breaches;

    #[track_caller]
    fn check(package: &str, dependency: &str, kind: &str, want: usize) {
        let json = format!(
            r#"{{"packages":[{{"name":"{package}","dependencies":[
                {{"name":"serde","kind":null,"path":null}},
                {{"name":"{dependency}","kind":{kind},"path":"/x"}}]}}]}}"#
        );
        assert_eq!(
            breaches(&json).unwrap().len(),
            want,
            "{package} -> {dependency} ({kind})"
        );
    }

    #[test]
    fn dependencies_point_one_way() {
        check("driver", "proto", "null", 0);
        check("driver", "dsm-sim", r#""dev""#, 0);
        check("driver", "dsm-sim", "null", 1);
        check("driver", "node-sim", r#""build""#, 1);
        check("dsm-sim", "node-sim", "null", 0);
        check("dsm-sim", "driver", r#""dev""#, 1);
        check("dsm-sim", "proto", "null", 1);
        check("node-sim", "dsm-sim", "null", 1);
        check("proto", "driver", "null", 1);
        check("e2e", "driver", "null", 0);
        check("e2e", "ci", "null", 1);
        check("newcomer", "proto", "null", 1);
    }
}
