//! The stories of claims, pods and sidecars: on the cluster that the kubeconfig names, on one that kind makes, or on a
//! stand-in that plays the sidecars' and kubelets' calls on this machine.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};

use crate::{
    chart,
    context::Context,
    doctor::{self, need::Layer},
    go::{Go, Pinned},
    images::{self, Images},
    run::Step,
    testing::build_programs,
};

const KIND: Pinned = Pinned {
    name: "kind",
    module: "sigs.k8s.io/kind",
    folder: ".",
    version: "v0.33.0",
};

/// The cluster that kind makes.
const CLUSTER: &str = "synology-csi";

/// Arguments of the stories.
#[derive(Debug, Default, Args)]
pub(crate) struct K8s {
    /// Only stories whose name contains this, for instance online/xfs; may be given several times
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Make a cluster first, and delete it afterwards; without it the one that KUBECONFIG names is used
    #[arg(long, value_enum, conflicts_with = "stand_in")]
    create: Option<Create>,
    /// The image of kind's nodes, which tells Kubernetes' version; kind's own choice by default
    #[arg(long, value_name = "IMAGE", requires = "create")]
    node_image: Option<String>,
    /// No cluster, but a stand-in for its sidecars and kubelets (root)
    #[arg(long)]
    stand_in: bool,
    /// A file with values for the chart besides values-sim.yaml; may be given several times
    #[arg(long, value_name = "FILE")]
    values: Vec<PathBuf>,
    /// What the stories' pods are: an image with a shell, dd, df, sha256sum and blockdev
    #[arg(long, value_name = "IMAGE")]
    pod_image: Option<String>,
    /// Leave the driver, and a cluster that was made, to look around
    #[arg(long)]
    keep: bool,
}

/// What can make a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Create {
    /// Three nodes in containers of the Docker engine that runs here
    Kind,
}

/// Tells the stories on a stand-in, for the pipeline.
///
/// # Errors
/// When one fails.
pub(crate) fn sample(context: &Context) -> Result<()> {
    let stand_in = K8s {
        stand_in: true,
        ..K8s::default()
    };
    run(context, &stand_in)
}

/// Tells the stories.
///
/// # Errors
/// When something is missing, or a story fails.
pub(crate) fn run(context: &Context, k8s: &K8s) -> Result<()> {
    if k8s.stand_in {
        doctor::ready(context, Layer::Node)?;
        build_programs(context, &[])?;
        return k8s.step(context).arg("--stand-in").show();
    }
    let go = Go::find(context).context("no Go, which helm is built with")?;
    let helm = chart::helm(context, &go)?;
    build_programs(context, &[])?;
    let step = k8s
        .step(context)
        .arg("--helm")
        .arg(helm)
        .arg("--chart")
        .arg(context.root.join("driver/deploy/chart"));
    let Some(Create::Kind) = k8s.create else {
        return step.show();
    };
    let cluster = Cluster::create(context, &go, k8s)?;
    step.env("KUBECONFIG", &cluster.kubeconfig).show()
}

impl K8s {
    fn step(&self, context: &Context) -> Step {
        let program = context.target.join("debug/k8s");
        let mut step = Step::new(context, &program.to_string_lossy())
            .arg("--folder")
            .arg(context.target.join("k8s"));
        for only in &self.only {
            step = step.arg("--only").arg(only);
        }
        for values in &self.values {
            step = step.arg("--values").arg(values);
        }
        if let Some(image) = &self.pod_image {
            step = step.arg("--pod-image").arg(image);
        }
        if self.keep { step.arg("--keep") } else { step }
    }
}

/// A cluster that kind has made.
struct Cluster<'a> {
    context: &'a Context,
    kind: PathBuf,
    kubeconfig: PathBuf,
    keep: bool,
}

impl<'a> Cluster<'a> {
    /// Makes one, with our images on its nodes.
    fn create(context: &'a Context, go: &Go, k8s: &K8s) -> Result<Self> {
        let engine = Step::new(context, "docker info").output()?;
        ensure!(
            engine.success,
            "kind makes its nodes in a Docker engine, and none runs here"
        );
        images::run(context, &Images::default())?;
        let kind = go.install(context, &KIND)?;
        let folder = context.target.join("k8s");
        // As its nodes' mounts say in e2e/k8s/kind.yaml.
        let nas = context.root.join("target/k8s/nas");
        fs::create_dir_all(&folder)?;
        let cluster = Self {
            context,
            kind,
            kubeconfig: folder.join("kubeconfig"),
            keep: k8s.keep,
        };
        cluster.delete()?;
        // The NAS of a cluster before has LUNs that nobody knows.
        if nas.exists() {
            fs::remove_dir_all(&nas)?;
        }
        fs::create_dir_all(&nas)?;
        let mut create = cluster.step("create");
        if let Some(image) = &k8s.node_image {
            create = create.arg("--image").arg(image);
        }
        create
            .arg("--config")
            .arg(context.root.join("e2e/k8s/kind.yaml"))
            .args(&["--wait", "180s"])
            .show()?;
        for image in images::tags() {
            cluster.load(&image)?;
        }
        Ok(cluster)
    }

    fn step(&self, what: &str) -> Step {
        Step::new(
            self.context,
            &format!("{} {what} cluster", self.kind.display()),
        )
        .args(&["--name", CLUSTER, "--kubeconfig"])
        .arg(&self.kubeconfig)
    }

    fn load(&self, image: &str) -> Result<()> {
        Step::new(
            self.context,
            &format!("{} load docker-image", self.kind.display()),
        )
        .arg(image)
        .args(&["--name", CLUSTER])
        .quiet(&format!("Loading {image}"))
    }

    fn delete(&self) -> Result<()> {
        self.step("delete").quiet("Deleting the cluster")
    }
}

impl Drop for Cluster<'_> {
    fn drop(&mut self) {
        if self.keep {
            println!(
                "The cluster stays: KUBECONFIG={}; kind delete cluster --name {CLUSTER} ends it",
                self.kubeconfig.display()
            );
        } else if let Err(error) = self.delete() {
            println!("The cluster {CLUSTER} could not be deleted: {error:#}");
        }
    }
}
