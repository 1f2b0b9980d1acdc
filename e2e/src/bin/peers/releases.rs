//! csi-sanity's controller part through the official driver, on NASes of several releases of DSM: what it finds must not
//! depend on the release.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use e2e::process;
use serde::Serialize;
use serde_json::Value;

use crate::peer::{Kind, Peer};

const RELEASES: [&str; 4] = ["6.2", "7.0", "7.2", "7.4"];

/// What csi-sanity found.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    releases: [&'static str; 4],
    /// Specs that pass on each release.
    passed: Vec<String>,
    /// Specs that fail on each release.
    failed: Vec<String>,
}

/// State by name of the spec.
type Specs = BTreeMap<String, String>;

/// Runs it on each release.
pub(crate) async fn compare(official: &Path, sanity: &Path) -> Result<Outcome> {
    let mut first: Option<Specs> = None;
    for dsm in RELEASES {
        let specs = run(official, sanity, dsm).await?;
        let known = first.get_or_insert_with(|| specs.clone());
        let differs: Vec<&String> = known
            .keys()
            .chain(specs.keys())
            .filter(|name| known.get(*name) != specs.get(*name))
            .collect();
        ensure!(
            differs.is_empty(),
            "DSM {dsm} differs from {}: {differs:?}",
            RELEASES[0]
        );
    }
    let specs = first.context("no release")?;
    let with = |state: &str| {
        let state = state.to_owned();
        specs
            .iter()
            .filter(move |spec| *spec.1 == state)
            .map(|spec| spec.0.clone())
    };
    let (passed, failed) = (with("passed").collect::<Vec<_>>(), with("failed").collect());
    ensure!(!passed.is_empty(), "nothing passed: {specs:?}");
    Ok(Outcome {
        releases: RELEASES,
        passed,
        failed,
    })
}

async fn run(official: &Path, sanity: &Path, dsm: &'static str) -> Result<Specs> {
    let kind = Kind::Official(official.to_owned());
    let peer = Peer::start(&kind, dsm).await?;
    let folder = peer.folder();
    let path = |name: &str| folder.join(name).display().to_string();
    let parameters: Vec<String> = kind
        .parameters()
        .iter()
        .map(|(name, value)| format!("{name}: {value}\n"))
        .collect();
    std::fs::write(folder.join("parameters.yaml"), parameters.concat())?;
    let report = folder.join("report.json");
    let args = [
        format!("--csi.endpoint=unix://{}", peer.socket.display()),
        format!("--csi.stagingdir={}", path("staging")),
        format!("--csi.mountdir={}", path("mount")),
        format!("--csi.testvolumeparameters={}", path("parameters.yaml")),
        "--ginkgo.focus=\\[Controller Server\\]".to_owned(),
        // Calls of the node half belong to a node, which is not there.
        "--ginkgo.skip=Node Service".to_owned(),
        "--ginkgo.seed=1".to_owned(),
        format!("--ginkgo.json-report={}", report.display()),
    ];
    let (_, said) = process::suite(sanity, args)?;
    let report = std::fs::read(&report)
        .with_context(|| format!("csi-sanity ended without a report: {said}"))?;
    let report: Value = serde_json::from_slice(&report)?;
    let specs = report[0]["SpecReports"].as_array().context("SpecReports")?;
    Ok(specs.iter().filter_map(spec).collect())
}

/// Name and state of a spec that ran.
fn spec(report: &Value) -> Option<(String, String)> {
    let state = report["State"]
        .as_str()
        .filter(|state| *state != "skipped")?;
    let containers = report["ContainerHierarchyTexts"].as_array()?;
    let words = containers
        .iter()
        .filter_map(Value::as_str)
        .chain(report["LeafNodeText"].as_str());
    Some((words.collect::<Vec<_>>().join(" "), state.to_owned()))
}

impl Outcome {
    /// For people.
    pub(crate) fn words(&self) -> String {
        let mut words = format!(
            "csi-sanity's controller part through the official driver, the same on DSM {}: {} passed, {} failed",
            self.releases.join(", "),
            self.passed.len(),
            self.failed.len()
        );
        let passed = self.passed.iter().map(|name| ("passed", name));
        let failed = self.failed.iter().map(|name| ("failed", name));
        for (state, name) in passed.chain(failed) {
            words.extend(["\n  ", state, ": ", name.as_str()]);
        }
        words
    }
}
