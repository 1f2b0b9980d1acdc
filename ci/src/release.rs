//! What a tag `v…` publishes: the images for two kinds of processor under one name each, and the chart.
//!
//! ```text
//! push, on an amd64 and on an arm64 ─▶ REGISTRY/NAME:VERSION-amd64, …-arm64
//! join, when both have ended        ─▶ REGISTRY/NAME:VERSION, REGISTRY/charts/synology-csi:VERSION, all signed by digest
//! ```
//! Whoever calls it has logged in to the registry, and gives the signature its name (keyless: the run itself is the signer).

use std::{fmt::Write as _, fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Subcommand};

use crate::{
    chart,
    context::Context,
    doctor::{self, need::Layer},
    go::Go,
    images::{self, Images},
    run::Step,
};

/// The kinds of processor, as images name them.
const PROCESSORS: [&str; 2] = ["amd64", "arm64"];

/// Arguments of a release.
#[derive(Debug, Args)]
pub(crate) struct Release {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Builds this machine's images and pushes them
    Push {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        images: Images,
    },
    /// Gives the images of all processors one name, pushes the chart, and signs all of it with cosign
    Join {
        #[command(flatten)]
        place: Place,
        /// A file to which `version=…` and `registry=…` are added, for the jobs that follow
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
struct Place {
    /// Where to, e.g. ghcr.io/somebody
    #[arg(long, value_name = "HOST/PATH")]
    registry: String,
    /// The tag that is released; must name the version of the workspace and of the chart
    #[arg(long, value_name = "vN.N.N")]
    tag: String,
}

/// Publishes a part of a release.
///
/// # Errors
/// When versions differ, or something cannot be built, pushed or signed.
pub(crate) fn run(context: &Context, release: &Release) -> Result<()> {
    let chart = context.root.join("driver/deploy/chart/Chart.yaml");
    let chart = fs::read_to_string(&chart).with_context(|| chart.display().to_string())?;
    match &release.what {
        What::Push { place, images } => {
            let version = agreed(&place.tag, &chart)?;
            push(context, &place.registry(), version, images)
        }
        What::Join { place, output } => {
            let version = agreed(&place.tag, &chart)?;
            let registry = place.registry();
            join(context, &registry, version)?;
            let Some(output) = output else { return Ok(()) };
            let mut text = fs::read_to_string(output).unwrap_or_default();
            let _ = writeln!(text, "version={version}\nregistry={registry}");
            fs::write(output, text).with_context(|| output.display().to_string())
        }
    }
}

impl Place {
    /// Registries take no capitals; names of accounts may have some.
    fn registry(&self) -> String {
        self.registry.to_lowercase()
    }
}

/// The version, when the tag, the workspace and the chart agree upon it.
fn agreed<'a>(tag: &'a str, chart: &str) -> Result<&'a str> {
    let version = tag.strip_prefix('v').context("a tag begins with v")?;
    let ours = env!("CARGO_PKG_VERSION");
    ensure!(version == ours, "{tag}, but the workspace is {ours}");
    let chart: serde_json::Value = serde_yaml_ng::from_str(chart)?;
    for key in ["version", "appVersion"] {
        ensure!(
            chart[key] == version,
            "{tag}, but the chart's {key} is {}",
            chart[key]
        );
    }
    Ok(version)
}

/// `localhost/synology-csi:0.1.0` → `synology-csi`.
fn name(tag: &str) -> &str {
    let name = tag.rsplit('/').next().unwrap_or(tag);
    name.split(':').next().unwrap_or(name)
}

fn push(context: &Context, registry: &str, version: &str, built: &Images) -> Result<()> {
    let processor = match std::env::consts::ARCH {
        "x86_64" => PROCESSORS[0],
        "aarch64" => PROCESSORS[1],
        other => anyhow::bail!("there are no images for {other}"),
    };
    images::run(context, built)?;
    for tag in images::tags() {
        let target = format!("{registry}/{}:{version}-{processor}", name(&tag));
        Step::new(context, "docker tag")
            .arg(&tag)
            .arg(&target)
            .quiet(&format!("Naming {target}"))?;
        Step::new(context, "docker push --quiet")
            .arg(&target)
            .quiet(&format!("Pushing {target}"))?;
    }
    Ok(())
}

fn join(context: &Context, registry: &str, version: &str) -> Result<()> {
    let mut sums = String::new();
    for tag in images::tags() {
        let name = name(&tag);
        let target = format!("{registry}/{name}:{version}");
        let parts = PROCESSORS.map(|processor| format!("{target}-{processor}"));
        Step::new(context, "docker buildx imagetools create --tag")
            .arg(&target)
            .args(&parts)
            .quiet(&format!("Joining {target}"))?;
        let asked = Step::new(context, "docker buildx imagetools inspect --format")
            .arg("{{.Manifest.Digest}}")
            .arg(&target)
            .output()?;
        ensure!(asked.success, "{target}: {}", asked.stderr);
        let digest = digest(&asked.stdout).with_context(|| format!("{target} has no digest"))?;
        sign(context, &format!("{registry}/{name}@sha256:{digest}"))?;
        let _ = writeln!(sums, "{digest}  {registry}/{name}");
    }
    let digest = push_chart(context, registry, version)?;
    let chart = format!("{registry}/charts/synology-csi");
    sign(context, &format!("{chart}@sha256:{digest}"))?;
    let _ = writeln!(sums, "{digest}  {chart}");
    let file = context.target.join("published");
    fs::create_dir_all(&file)?;
    fs::write(file.join("checksums"), &sums)?;
    print!("{sums}");
    Ok(())
}

/// Packages the chart and pushes it; its digest.
fn push_chart(context: &Context, registry: &str, version: &str) -> Result<String> {
    doctor::ready(context, Layer::Chart)?;
    let go = Go::find(context).context("no Go")?;
    let helm = chart::helm(context, &go)?;
    let helm = helm.to_string_lossy();
    let folder = context.target.join("published");
    fs::create_dir_all(&folder)?;
    Step::new(context, &helm)
        .arg("package")
        .arg(context.root.join("driver/deploy/chart"))
        .arg("--destination")
        .arg(&folder)
        .quiet("Packaging the chart")?;
    let pushed = Step::new(context, &helm)
        .arg("push")
        .arg(folder.join(format!("synology-csi-{version}.tgz")))
        .arg(format!("oci://{registry}/charts"))
        .output()?;
    ensure!(pushed.success, "helm push: {}", pushed.stderr);
    let said = pushed.stdout + &pushed.stderr;
    digest(&said).with_context(|| format!("helm push tells no digest: {said}"))
}

fn sign(context: &Context, reference: &str) -> Result<()> {
    Step::new(context, "cosign sign --yes")
        .arg(reference)
        .quiet(&format!("Signing {reference}"))
}

/// The 64 digits after the first `sha256:`.
fn digest(said: &str) -> Option<String> {
    let (_, rest) = said.split_once("sha256:")?;
    let digits: String = rest.chars().take_while(char::is_ascii_hexdigit).collect();
    (digits.len() == 64).then_some(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_is_of_one_version() {
        let ours = env!("CARGO_PKG_VERSION");
        let tag = format!("v{ours}");
        let chart = format!("version: {ours}\nappVersion: \"{ours}\"\n");
        assert_eq!(agreed(&tag, &chart).unwrap(), ours);
        for (tag, chart) in [
            (ours.to_owned(), chart.clone()),
            ("v9.9.9".to_owned(), chart.clone()),
            (
                tag.clone(),
                chart.replace("appVersion: \"", "appVersion: \"1"),
            ),
            (tag.clone(), format!("appVersion: \"{ours}\"\n")),
        ] {
            assert!(agreed(&tag, &chart).is_err(), "{tag} {chart}");
        }
    }

    #[test]
    fn the_chart_of_this_workspace_can_be_released() {
        let chart = include_str!("../../driver/deploy/chart/Chart.yaml");
        let tag = concat!("v", env!("CARGO_PKG_VERSION"));
        assert!(agreed(tag, chart).is_ok());
    }

    #[test]
    fn names_are_those_of_the_images() {
        assert_eq!(name("localhost/dsm-sim:0.1.0"), "dsm-sim");
        let names: Vec<String> = images::tags().map(|tag| name(&tag).to_owned()).collect();
        assert_eq!(names, ["synology-csi", "dsm-sim", "node-sim"]);
    }

    #[test]
    fn digests_are_whole() {
        let whole = "a1".repeat(32);
        let said = format!("Pushed: ghcr.io/x/y:1\nDigest: sha256:{whole}\n");
        assert_eq!(digest(&said), Some(whole));
        assert_eq!(digest("Digest: sha256:a1b2\n"), None);
        assert_eq!(digest("nothing"), None);
    }
}
