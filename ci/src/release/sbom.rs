//! The SBOM of an image, as an SPDX 2.3 document.
//!
//! The images have no package database that a scanner could read, so the SBOM is generated from their inputs: the crates of the
//! program, from `cargo metadata` and Cargo.lock, and the Debian packages of the copied programs, per architecture, from the list
//! that `ci/images/collect` wrote. No I/O.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use serde::Deserialize;
use serde_json::{Value, json};

/// An image: the input of its SBOM.
#[derive(Debug)]
pub(super) struct Image<'a> {
    pub(super) name: &'a str,
    pub(super) version: &'a str,
    /// Digest of the multi-platform index, `sha256:…`.
    pub(super) digest: &'a str,
    /// Creation time, `2026-11-30T12:00:00Z`.
    pub(super) created: &'a str,
    /// The cargo package of its program.
    pub(super) package: &'a str,
    /// For each architecture, lines `NAME VERSION` with its Debian packages and the C library that is linked into its program.
    pub(super) debian: &'a [(&'a str, String)],
}

/// The output of `cargo metadata --format-version 1`.
#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Debug, Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<Kind>,
}

#[derive(Debug, Deserialize)]
struct Kind {
    /// `dev`, `build`, or `None` for a normal dependency.
    kind: Option<String>,
}

/// Generates the SPDX document. `metadata` is the output of `cargo metadata`, `lock` the text of Cargo.lock.
///
/// # Errors
/// When the metadata cannot be parsed, or lack the program.
pub(super) fn document(image: &Image<'_>, metadata: &str, lock: &str) -> Result<Value> {
    let metadata: Metadata = serde_json::from_str(metadata).context("cargo metadata")?;
    let checksums = checksums(lock);
    let hexadecimal = image.digest.trim_start_matches("sha256:");
    let mut packages = vec![json!({
        "SPDXID": "SPDXRef-image", "name": image.name, "versionInfo": image.version,
        "downloadLocation": "NOASSERTION", "filesAnalyzed": false, "primaryPackagePurpose": "CONTAINER",
        "checksums": [{"algorithm": "SHA256", "checksumValue": hexadecimal}],
        "licenseConcluded": "NOASSERTION", "licenseDeclared": "Apache-2.0", "copyrightText": "NOASSERTION",
    })];
    let mut relations = vec![relation("SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-image")];
    let program = metadata
        .packages
        .iter()
        .find(|package| package.name == image.package && package.source.is_none())
        .with_context(|| format!("the workspace has no package {}", image.package))?;
    relations.push(relation("SPDXRef-image", "CONTAINS", &program.reference()));
    let (crates, edges) = crates(&metadata, &program.id);
    packages.extend(crates.iter().map(|package| package.spdx(&checksums)));
    relations.extend(edges);
    for (processor, lines) in image.debian {
        for (name, version) in lines.lines().filter_map(|line| line.split_once(' ')) {
            if name == C_LIBRARY {
                packages.push(linked(processor, version));
                let reference = reference(&format!("{C_LIBRARY}-{processor}"));
                relations.push(relation(&program.reference(), "STATIC_LINK", &reference));
                continue;
            }
            let reference = reference(&format!("deb-{processor}-{name}"));
            relations.push(relation("SPDXRef-image", "CONTAINS", &reference));
            let purl_path = format!("deb/debian/{name}@{}", escaped(version));
            packages.push(json!({
                "SPDXID": reference, "name": name, "versionInfo": version,
                "downloadLocation": "NOASSERTION", "filesAnalyzed": false,
                "licenseConcluded": "NOASSERTION", "licenseDeclared": "NOASSERTION", "copyrightText": "NOASSERTION",
                "externalRefs": [purl(&format!("{purl_path}?arch={processor}&distro=bookworm"))],
            }));
        }
    }
    Ok(json!({
        "spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT",
        "name": format!("{}-{}", image.name, image.version),
        "documentNamespace": format!("https://spdx.org/spdxdocs/{}-{hexadecimal}", image.name),
        "creationInfo": {"created": image.created, "creators": [concat!("Tool: cargo-ci-", env!("CARGO_PKG_VERSION"))]},
        "packages": packages, "relationships": relations,
    }))
}

/// The name of the statically linked C library in the list of packages. No Debian package has this name.
const C_LIBRARY: &str = "glibc";

fn linked(processor: &str, version: &str) -> Value {
    json!({
        "SPDXID": reference(&format!("{C_LIBRARY}-{processor}")), "name": C_LIBRARY, "versionInfo": version,
        "downloadLocation": "NOASSERTION", "filesAnalyzed": false, "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "LGPL-2.1-or-later", "copyrightText": "NOASSERTION",
        "externalRefs": [purl(&format!("generic/{C_LIBRARY}@{}", escaped(version)))],
    })
}

/// The normal and build dependencies of a program, and the relationships between them. Without dev-dependencies.
fn crates<'a>(metadata: &'a Metadata, program: &'a str) -> (Vec<&'a Package>, Vec<Value>) {
    let packages: BTreeMap<&str, &Package> = metadata
        .packages
        .iter()
        .map(|package| (package.id.as_str(), package))
        .collect();
    let nodes: BTreeMap<&str, &Node> = metadata
        .resolve
        .nodes
        .iter()
        .map(|node| (node.id.as_str(), node))
        .collect();
    let (mut seen, mut waiting) = (BTreeSet::from([program]), vec![program]);
    let mut edges = Vec::new();
    while let Some(id) = waiting.pop() {
        let (Some(from), Some(node)) = (packages.get(id), nodes.get(id)) else {
            continue;
        };
        for dependency in &node.deps {
            let of = |kind: Option<&str>| {
                let mut kinds = dependency.dep_kinds.iter();
                kinds.any(|it| it.kind.as_deref() == kind)
            };
            let Some(to) = packages.get(dependency.pkg.as_str()) else {
                continue;
            };
            if of(None) {
                edges.push(relation(&from.reference(), "DEPENDS_ON", &to.reference()));
            } else if of(Some("build")) {
                let kind = "BUILD_DEPENDENCY_OF";
                edges.push(relation(&to.reference(), kind, &from.reference()));
            } else {
                continue;
            }
            if seen.insert(&dependency.pkg) {
                waiting.push(&dependency.pkg);
            }
        }
    }
    let found = seen.iter().filter_map(|id| packages.get(id).copied());
    (found.collect(), edges)
}

impl Package {
    fn reference(&self) -> String {
        reference(&format!("crate-{}-{}", self.name, self.version))
    }

    fn spdx(&self, checksums: &BTreeMap<(String, String), String>) -> Value {
        // Old manifests separate licenses by a slash.
        let license = self.license.as_deref().map(|it| it.replace('/', " OR "));
        let mut package = json!({
            "SPDXID": self.reference(), "name": self.name, "versionInfo": self.version,
            "downloadLocation": "NOASSERTION", "filesAnalyzed": false, "licenseConcluded": "NOASSERTION",
            "licenseDeclared": license.as_deref().unwrap_or("NOASSERTION"), "copyrightText": "NOASSERTION",
        });
        if self.source.is_some() {
            let purl_path = format!("cargo/{}@{}", self.name, escaped(&self.version));
            package["externalRefs"] = json!([purl(&purl_path)]);
        }
        if let Some(checksum) = checksums.get(&(self.name.clone(), self.version.clone())) {
            package["checksums"] = json!([{"algorithm": "SHA256", "checksumValue": checksum}]);
        }
        package
    }
}

/// The checksums in a Cargo.lock, by name and version.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let mut found = BTreeMap::new();
    for package in lock.split("[[package]]").skip(1) {
        let field = |name: &str| {
            let mut lines = package.lines().filter_map(|line| line.split_once(" = "));
            let value = lines.find(|(key, _)| *key == name).map(|(_, value)| value);
            value.map(|value| value.trim_matches('"').to_owned())
        };
        if let (Some(name), Some(version), Some(checksum)) =
            (field("name"), field("version"), field("checksum"))
        {
            found.insert((name, version), checksum);
        }
    }
    found
}

fn relation(from: &str, kind: &str, to: &str) -> Value {
    json!({"spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to})
}

/// An SPDX identifier. SPDX 2.3 allows letters, digits, periods and hyphens.
fn reference(name: &str) -> String {
    let fit = |letter: char| letter.is_ascii_alphanumeric() || letter == '.';
    let name: String = name
        .chars()
        .map(|it| if fit(it) { it } else { '-' })
        .collect();
    format!("SPDXRef-{name}")
}

fn purl(purl_path: &str) -> Value {
    json!({
        "referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": format!("pkg:{purl_path}"),
    })
}

/// Percent-encodes a version for a package URL.
fn escaped(version: &str) -> String {
    version.replace('+', "%2B").replace(':', "%3A")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = "version = 4\n\n[[package]]\nname = \"serde\"\nversion = \"1.0.0+x\"\nsource = \"registry\"\nchecksum = \"ab\"\n\n[[package]]\nname = \"driver\"\nversion = \"1.0.0\"\n";

    fn metadata() -> String {
        let package = |name: &str, version: &str, source: Option<&str>| json!({"id": name, "name": name, "version": version, "license": "MIT/Apache-2.0", "source": source});
        let dependency = |name: &str, kind: Option<&str>| json!({"name": name, "pkg": name, "dep_kinds": [{"kind": kind, "target": null}]});
        json!({
            "packages": [
                package("driver", "1.0.0", None), package("serde", "1.0.0+x", Some("registry")),
                package("cc", "2.0.0", Some("registry")), package("proptest", "3.0.0", Some("registry")),
            ],
            "resolve": {"nodes": [
                {"id": "driver", "deps": [dependency("serde", None), dependency("proptest", Some("dev"))]},
                {"id": "serde", "deps": [dependency("cc", Some("build"))]},
                {"id": "cc", "deps": []}, {"id": "proptest", "deps": []},
            ]},
        })
        .to_string()
    }

    fn made() -> Value {
        let image = Image {
            name: "synology-csi",
            version: "1.0.0",
            digest: "sha256:cd",
            created: "2026-11-30T12:00:00Z",
            package: "driver",
            debian: &[
                ("amd64", "libc6 2.36-9+deb12u1\n".to_owned()),
                ("arm64", "mount 1:2.38\nglibc 2.35\n".to_owned()),
            ],
        };
        document(&image, &metadata(), LOCK).unwrap()
    }

    fn package(document: &Value, reference: &str) -> Option<Value> {
        let packages = document["packages"].as_array().unwrap();
        let found = packages.iter().find(|it| it["SPDXID"] == reference);
        found.cloned()
    }

    #[test]
    fn the_linked_c_library_is_listed_but_not_as_a_debian_package() {
        let document = made();
        let library = package(&document, "SPDXRef-glibc-arm64").unwrap();
        assert_eq!(
            library["externalRefs"][0]["referenceLocator"],
            "pkg:generic/glibc@2.35"
        );
        let link = relation(
            "SPDXRef-crate-driver-1.0.0",
            "STATIC_LINK",
            "SPDXRef-glibc-arm64",
        );
        let relations = document["relationships"].as_array().unwrap();
        assert!(relations.contains(&link), "{relations:?}");
        assert!(package(&document, "SPDXRef-deb-arm64-glibc").is_none());
    }

    #[test]
    fn crates_and_debian_packages_are_listed_but_no_dev_dependencies() {
        let document = made();
        let serde = package(&document, "SPDXRef-crate-serde-1.0.0-x").unwrap();
        assert_eq!(serde["checksums"][0]["checksumValue"], "ab");
        assert_eq!(serde["licenseDeclared"], "MIT OR Apache-2.0");
        assert_eq!(
            serde["externalRefs"][0]["referenceLocator"],
            "pkg:cargo/serde@1.0.0%2Bx"
        );
        assert!(package(&document, "SPDXRef-crate-cc-2.0.0").is_some());
        assert!(package(&document, "SPDXRef-crate-proptest-3.0.0").is_none());
        let mount = package(&document, "SPDXRef-deb-arm64-mount").unwrap();
        assert_eq!(
            mount["externalRefs"][0]["referenceLocator"],
            "pkg:deb/debian/mount@1%3A2.38?arch=arm64&distro=bookworm"
        );
        assert!(package(&document, "SPDXRef-deb-amd64-mount").is_none());
    }

    #[test]
    fn every_identifier_is_unique_and_every_reference_resolves() {
        let document = made();
        let mut known = vec!["SPDXRef-DOCUMENT".to_owned()];
        for package in document["packages"].as_array().unwrap() {
            let reference = package["SPDXID"].as_str().unwrap().to_owned();
            assert!(!known.contains(&reference), "{reference} twice");
            known.push(reference);
        }
        for relation in document["relationships"].as_array().unwrap() {
            for end in ["spdxElementId", "relatedSpdxElement"] {
                assert!(
                    known.contains(&relation[end].as_str().unwrap().to_owned()),
                    "{relation}"
                );
            }
        }
    }
}
