//! `cargo ci k8s`: the stories of claims, pods and sidecars, on any Kubernetes that the kubeconfig names, or on a stand-in that
//! plays the calls of its sidecars and kubelets.

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

/// The stories of claims and pods.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo ci k8s", max_term_width = 100)]
struct Cli {
    /// Only stories whose name contains this, for instance online/xfs; may be given several times
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Where evidence of what failed is kept
    #[arg(long, value_name = "DIR")]
    folder: PathBuf,
    /// No cluster, but a stand-in for its sidecars and kubelets (root)
    #[arg(long)]
    stand_in: bool,
    /// The program helm
    #[arg(long, value_name = "PROGRAM")]
    helm: Option<PathBuf>,
    /// The chart's folder
    #[arg(long, value_name = "DIR")]
    chart: Option<PathBuf>,
    /// A file with values besides values-sim.yaml; may be given several times
    #[arg(long, value_name = "FILE")]
    values: Vec<PathBuf>,
    /// What the stories' pods are: an image with a shell, dd, df, sha256sum and blockdev
    #[arg(long, value_name = "IMAGE", default_value = "busybox:1.37")]
    pod_image: String,
    /// Leave the driver on the cluster
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let told = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(Into::into)
        .and_then(|runtime| LocalSet::new().block_on(&runtime, tell(cli)));
    match told {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("k8s: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn tell(cli: Cli) -> Result<()> {
    std::fs::create_dir_all(&cli.folder)?;
    // Whoever speaks TLS here takes this one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    if cli.stand_in {
        let stand_in = FakeKubernetes::start().await?;
        return suite::run(stand_in, &stories::of_every_co(), &cli.only, &cli.folder).await;
    }
    let settings = Settings {
        helm: cli.helm.context("--helm: where the program helm is")?,
        chart: cli.chart.context("--chart: where the chart is")?,
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
