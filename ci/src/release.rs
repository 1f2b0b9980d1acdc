//! `cargo ci release`: builds what a tag `v…` publishes: multi-platform images for two architectures, the chart, and SBOMs.
//!
//! ```text
//! build, on amd64 and on arm64       ─▶ target/built    NAME.tar, NAME.packages
//! pack, when both have ended         ─▶ target/packed   NAME/, charts/synology-csi/ (OCI layouts), NAME.spdx.json, digests, version
//! ci/release/publish                 ─▶ a registry: only what was packed
//! ```
//! Everything that runs code of dependencies (build scripts, this program) runs in jobs that can neither publish nor sign:
//! `build` and `pack` access no registry. `publish` is a short script, so that the privileged job compiles nothing. It uses the
//! digests that `pack` has written.

mod oci;
mod sbom;

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Subcommand};
use serde_json::Value;

use crate::{
    chart,
    context::Context,
    doctor::{self, need::Layer},
    go::Go,
    images::{self, Images},
    run::Cmd,
};
use oci::Layout;
use sbom::Image;

/// The architectures, as OCI and as Rust name them.
const PROCESSORS: [(&str, &str); 2] = [("amd64", "x86_64"), ("arm64", "aarch64")];

/// The chart's repository in a registry.
const CHART: &str = "charts/synology-csi";

/// Arguments of a release.
#[derive(Debug, Args)]
pub(crate) struct Release {
    #[command(subcommand)]
    part: Part,
    /// The git tag; must match the version of the workspace and of the chart
    #[arg(long, global = true, value_name = "vN.N.N", default_value = "")]
    tag: String,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Build the images for this machine's architecture, as archives in target/built
    Build {
        #[command(flatten)]
        images: Images,
    },
    /// Combine the archives of all architectures into OCI layouts, in target/packed; publishes nothing
    Pack {
        /// Folder with the subfolders amd64 and arm64, each the output of `build` on such a machine
        #[arg(long, value_name = "FOLDER")]
        from: PathBuf,
    },
}

/// Runs `build` or `pack`.
///
/// # Errors
/// When versions differ, or something cannot be built or read.
pub(crate) fn run(context: &Context, release: &Release) -> Result<()> {
    let chart = context.root.join("driver/deploy/chart/Chart.yaml");
    let chart = fs::read_to_string(&chart).with_context(|| chart.display().to_string())?;
    let version = version_of_tag(&release.tag, &chart)?;
    match &release.part {
        Part::Build { images } => images::save(context, images, &context.target.join("built")),
        Part::Pack { from } => pack(context, &context.root.join(from), &chart, version),
    }
}

/// The version in a tag `vN.N.N`.
///
/// # Errors
/// When the workspace or the chart has another version.
fn version_of_tag<'a>(tag: &'a str, chart: &str) -> Result<&'a str> {
    let version = tag.strip_prefix('v').context("--tag must begin with v")?;
    let ours = env!("CARGO_PKG_VERSION");
    ensure!(
        version == ours,
        "--tag is {tag}, but the workspace's version is {ours}"
    );
    let chart: Value = serde_yaml_ng::from_str(chart)?;
    for key in ["version", "appVersion"] {
        ensure!(
            chart[key] == version,
            "--tag is {tag}, but the chart's {key} is {}",
            chart[key]
        );
    }
    Ok(version)
}

fn pack(context: &Context, from: &Path, chart: &str, version: &str) -> Result<()> {
    let folder = context.target.join("packed");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let metadata = metadata(context)?;
    let lock = fs::read_to_string(context.root.join("Cargo.lock"))?;
    let mut digests = String::new();
    for name in images::names() {
        let layout = Layout::create(folder.join(name))?;
        let (mut parts, mut debian) = (Vec::new(), Vec::new());
        for (processor, _) in PROCESSORS {
            let built = from.join(processor);
            parts.push(layout.image(context, &built.join(format!("{name}.tar")), processor)?);
            let packages = built.join(format!("{name}.packages"));
            let lines = fs::read_to_string(&packages);
            debian.push((
                processor,
                lines.with_context(|| packages.display().to_string())?,
            ));
        }
        let digest = layout.finish(&parts, version)?;
        let image = Image {
            name,
            version,
            digest: &digest,
            created: &parts[0].created,
            package: images::package(name),
            debian: &debian,
        };
        let document = sbom::document(&image, &metadata, &lock)?;
        fs::write(
            folder.join(format!("{name}.spdx.json")),
            document.to_string(),
        )?;
        let _ = writeln!(digests, "{digest} {name}");
    }
    let chart_yaml: Value = serde_yaml_ng::from_str(chart)?;
    let packaged = package_chart(context, version)?;
    let digest = Layout::create(folder.join(CHART))?.chart(&chart_yaml, &packaged, version)?;
    let _ = writeln!(digests, "{digest} {CHART}");
    fs::write(folder.join("digests"), &digests)?;
    fs::write(folder.join("version"), format!("{version}\n"))?;
    print!("{digests}");
    Ok(())
}

/// `cargo metadata` with the dependencies on all architectures.
fn metadata(context: &Context) -> Result<String> {
    let mut cmd = Cmd::new(context, "cargo metadata --locked --format-version 1");
    for (_, processor) in PROCESSORS {
        cmd = cmd
            .arg("--filter-platform")
            .arg(format!("{processor}-unknown-linux-gnu"));
    }
    let output = cmd.output()?;
    ensure!(output.success, "cargo metadata: {}", output.stderr);
    Ok(output.stdout)
}

/// Packages the chart with helm, and returns the path of the archive.
fn package_chart(context: &Context, version: &str) -> Result<PathBuf> {
    doctor::ready(context, Layer::Chart)?;
    let go = Go::find(context).context("no Go")?;
    let folder = context.target.join("packaged");
    fs::create_dir_all(&folder)?;
    Cmd::new(context, &chart::helm(context, &go)?.to_string_lossy())
        .arg("package")
        .arg(context.root.join("driver/deploy/chart"))
        .arg("--destination")
        .arg(&folder)
        .run_quietly("Packaging the chart")?;
    Ok(folder.join(format!("synology-csi-{version}.tgz")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tag_must_match_all_versions() {
        let ours = env!("CARGO_PKG_VERSION");
        let tag = format!("v{ours}");
        let chart = format!("version: {ours}\nappVersion: \"{ours}\"\n");
        assert_eq!(version_of_tag(&tag, &chart).unwrap(), ours);
        for (tag, chart) in [
            (ours.to_owned(), chart.clone()),
            ("v9.9.9".to_owned(), chart.clone()),
            (
                tag.clone(),
                chart.replace("appVersion: \"", "appVersion: \"1"),
            ),
            (tag.clone(), format!("appVersion: \"{ours}\"\n")),
        ] {
            assert!(version_of_tag(&tag, &chart).is_err(), "{tag} {chart}");
        }
    }

    #[test]
    fn the_chart_of_this_workspace_can_be_released() {
        let chart = include_str!("../../driver/deploy/chart/Chart.yaml");
        let tag = concat!("v", env!("CARGO_PKG_VERSION"));
        assert!(version_of_tag(tag, chart).is_ok());
    }

    #[test]
    fn each_image_has_a_program_of_the_workspace() {
        let names: Vec<&str> = images::names().collect();
        assert_eq!(names, ["synology-csi", "dsm-sim", "node-sim"]);
        let packages: Vec<&str> = names.iter().map(|name| images::package(name)).collect();
        assert_eq!(packages, ["driver", "dsm-sim", "node-sim"]);
    }

    /// Everything is copied by digest, so that modified bytes are an error. The tag comes last, and never moves.
    #[test]
    fn everything_is_published_by_digest() {
        let script = include_str!("../release/publish");
        let copies: Vec<&str> = script
            .lines()
            .filter(|line| line.contains("skopeo copy"))
            .collect();
        assert_eq!(copies.len(), 2, "{copies:?}");
        for copy in &copies {
            assert!(copy.contains(" --all --preserve-digests "), "{copy}");
        }
        assert!(
            copies[0].ends_with("\"docker://$place@$digest\""),
            "{}",
            copies[0]
        );
        assert!(copies[1].contains("\"docker://$place@$digest\" \"docker://$place:$version\""));
        for compiler in ["cargo", "rustc", "go ", "helm", "curl", "docker push"] {
            let commands = script.lines().filter(|line| !line.trim().starts_with('#'));
            assert!(
                !commands.collect::<String>().contains(compiler),
                "{compiler}"
            );
        }
    }
}
