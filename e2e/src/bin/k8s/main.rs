//! `cargo ci k8s`: stories with claims, pods and sidecars, on the Kubernetes of the current kubeconfig, or on a fake one that
//! makes the calls of its sidecars and kubelets.

#![expect(
    clippy::print_stdout,
    reason = "a program that talks to its user on stdout"
)]

mod co;
mod fake_kubernetes;
mod kubernetes;
mod scene;
mod stories;
mod suite;
mod times;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;
use tokio::task::LocalSet;

use fake_kubernetes::FakeKubernetes;
use kubernetes::{Kubernetes, Settings};

/// Stories with claims and pods.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo ci k8s", max_term_width = 100)]
struct Cli {
    /// Only stories whose name contains this, for instance online/xfs; may be repeated
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Folder for the evidence of failed stories
    #[arg(long, value_name = "DIR")]
    folder: PathBuf,
    /// No cluster, but a fake that makes the calls of its sidecars and kubelets (root)
    #[arg(long, alias = "stand-in")]
    fake: bool,
    /// Path of helm
    #[arg(long, value_name = "PROGRAM")]
    helm: Option<PathBuf>,
    /// Path of the chart's folder
    #[arg(long, value_name = "DIR")]
    chart: Option<PathBuf>,
    /// A values file in addition to values-sim.yaml; may be repeated
    #[arg(long, value_name = "FILE")]
    values: Vec<PathBuf>,
    /// Image of the stories' pods: with a shell, dd, df, sha256sum and blockdev
    #[arg(long, value_name = "IMAGE", default_value = "busybox:1.37")]
    pod_image: String,
    /// Do not uninstall the driver at the end
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(Into::into)
        .and_then(|runtime| LocalSet::new().block_on(&runtime, run(cli)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("k8s: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<()> {
    std::fs::create_dir_all(&cli.folder)?;
    // The TLS provider of the Kubernetes client.
    let _ = rustls::crypto::ring::default_provider().install_default();
    if cli.fake {
        let fake = FakeKubernetes::start().await?;
        return suite::run(fake, &stories::of_every_co(), &cli.only, &cli.folder).await;
    }
    let settings = Settings {
        helm: cli.helm.context("--helm: the path of helm")?,
        chart: cli.chart.context("--chart: the path of the chart")?,
        values: cli.values,
        pod_image: cli.pod_image,
        folder: cli.folder.clone(),
    };
    let cluster = Kubernetes::start(settings).await?;
    println!("Kubernetes {}", cluster.version().await?);
    let mut stories = stories::of_every_co();
    if !cli.keep {
        stories.extend(stories::of_kubernetes());
    }
    suite::run(cluster, &stories, &cli.only, &cli.folder).await
}
