//! Runs csi-sanity's controller specs through the official driver, on NASes with several DSM releases and on either file system:
//! the result must not depend on the release, and every spec must pass.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use e2e::harness::process;
use serde::Serialize;
use serde_json::Value;

use crate::peer::{Kind, Peer};

const RELEASES: [&str; 4] = ["6.2", "7.0", "7.2", "7.4"];

const FILE_SYSTEMS: [&str; 2] = ["btrfs", "ext4"];

/// The result of csi-sanity.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    /// File system of the NAS's volume.
    file_system: &'static str,
    releases: [&'static str; 4],
    /// Number of specs that pass on each release.
    passed: Vec<String>,
    /// Number of specs that fail on each release.
    failed: Vec<String>,
}

/// The state by name of the spec.
type Specs = BTreeMap<String, String>;

/// Runs it on each release and on both file systems.
pub(crate) async fn compare(official: &Path, sanity: &Path) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    for file_system in FILE_SYSTEMS {
        outcomes.push(on(official, sanity, file_system).await?);
    }
    Ok(outcomes)
}

async fn on(official: &Path, sanity: &Path, file_system: &'static str) -> Result<Outcome> {
    let mut first: Option<Specs> = None;
    for dsm in RELEASES {
        let specs = run(official, sanity, dsm, file_system).await?;
        let known = first.get_or_insert_with(|| specs.clone());
        let differs: Vec<&String> = known
            .keys()
            .chain(specs.keys())
            .filter(|name| known.get(*name) != specs.get(*name))
            .collect();
        ensure!(
            differs.is_empty(),
            "DSM {dsm} differs from {} on {file_system}: {differs:?}",
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
        file_system,
        releases: RELEASES,
        passed,
        failed,
    })
}

async fn run(official: &Path, sanity: &Path, dsm: &'static str, fs: &str) -> Result<Specs> {
    let kind = Kind::Official(official.to_owned());
    let peer = Peer::start_on(&kind, dsm, fs).await?;
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
        // Node Service specs need a node, which does not exist here.
        "--ginkgo.skip=Node Service".to_owned(),
        "--ginkgo.seed=1".to_owned(),
        format!("--ginkgo.json-report={}", report.display()),
    ];
    let (_, output) = process::suite(sanity, args)?;
    let report = std::fs::read(&report)
        .with_context(|| format!("csi-sanity ended without a report: {output}"))?;
    let report: Value = serde_json::from_slice(&report)?;
    let specs = report[0]["SpecReports"].as_array().context("SpecReports")?;
    Ok(specs.iter().filter_map(spec).collect())
}

/// A released driver passes on a real NAS; if it fails here, dsm-sim differs from one.
pub(crate) fn check(outcomes: &[Outcome]) -> Result<()> {
    for outcome in outcomes {
        let failed = &outcome.failed;
        let on = outcome.file_system;
        ensure!(failed.is_empty(), "failed on {on}: {failed:?}");
    }
    Ok(())
}

/// Name and state of a spec that ran.
fn spec(report: &Value) -> Option<(String, String)> {
    let state = report["State"]
        .as_str()
        .filter(|state| *state != "skipped")?;
    let containers = report["ContainerHierarchyTexts"].as_array()?;
    let summary = containers
        .iter()
        .filter_map(Value::as_str)
        .chain(report["LeafNodeText"].as_str());
    Some((summary.collect::<Vec<_>>().join(" "), state.to_owned()))
}

impl Outcome {
    /// Human-readable summary.
    pub(crate) fn summary(&self) -> String {
        let mut summary = format!(
            "csi-sanity's controller part through the official driver on {}, the same on DSM {}: {} passed, {} failed",
            self.file_system,
            self.releases.join(", "),
            self.passed.len(),
            self.failed.len()
        );
        let passed = self.passed.iter().map(|name| ("passed", name));
        let failed = self.failed.iter().map(|name| ("failed", name));
        for (state, name) in passed.chain(failed) {
            summary.extend(["\n  ", state, ": ", name.as_str()]);
        }
        summary
    }
}
