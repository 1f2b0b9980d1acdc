//! The stories of claims, pods and sidecars: on the cluster that the kubeconfig names, on one that kind makes, or on a
//! stand-in that plays the sidecars' and kubelets' calls on this machine.

mod cluster;
mod devices;
mod engine;
mod newest;
pub(crate) mod nodes;

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};

use crate::{
    chart,
    context::Context,
    doctor::{self, need::Layer},
    go::Go,
    run::Step,
    testing::build_programs,
};
use cluster::{Cluster, Wanted};

/// Arguments of the stories.
#[derive(Debug, Default, Args)]
pub(crate) struct K8s {
    /// Only stories whose name contains this, for instance online/xfs; may be given several times
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    #[command(flatten)]
    made: Made,
    /// Tell no story, but keep the nodes' logs of the cluster that --keep has left, in target/k8s/logs
    #[arg(long, conflicts_with_all = ["create", "stand_in"])]
    export_logs: bool,
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

/// Arguments of a cluster that is made for the stories.
#[derive(Debug, Default, Args)]
struct Made {
    /// Make a cluster first, and delete it afterwards; without it the one that KUBECONFIG names is used
    #[arg(long, value_enum, conflicts_with = "stand_in")]
    create: Option<Create>,
    /// The image of kind's nodes, which tells Kubernetes' version; kind's own choice by default
    #[arg(long, value_name = "IMAGE", requires = "create")]
    node_image: Option<String>,
    /// What our images on it are built upon, as for `cargo ci images`
    #[arg(long, value_name = "IMAGE", requires = "create")]
    base: Option<String>,
    /// The node image was made for cgroup v1: let its kubelets take it
    #[arg(long, requires = "create")]
    cgroup_v1: bool,
    /// The newest release of kind and of each sidecar instead of those that are pinned; needs skopeo
    #[arg(long, requires = "create")]
    newest: bool,
}

/// What can make a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Create {
    /// Three nodes in containers of the Docker engine that runs here
    Kind,
}

/// Tells the stories.
///
/// # Errors
/// When something is missing, or a story fails.
pub(crate) fn run(context: &Context, k8s: &K8s) -> Result<()> {
    if k8s.stand_in {
        doctor::ready(context, Layer::Node)?;
        build_programs(context)?;
        return k8s.step(context).arg("--stand-in").show();
    }
    let go = Go::find(context).context("no Go, which helm and kind are built with")?;
    if k8s.export_logs {
        return Cluster::left(context, &go)?.export_logs();
    }
    let wanted = Wanted {
        newest: k8s.made.newest,
        image: k8s.made.node_image.as_deref(),
        base: k8s.made.base.as_deref(),
        cgroup_v1: k8s.made.cgroup_v1,
        keep: k8s.keep,
    };
    if k8s.made.create.is_some() {
        // Before anything is built.
        cluster::judge(context, &wanted)?;
    }
    let helm = chart::helm(context, &go)?;
    build_programs(context)?;
    let step = k8s
        .step(context)
        .arg("--helm")
        .arg(helm)
        .arg("--chart")
        .arg(context.root.join("driver/deploy/chart"));
    let Some(Create::Kind) = k8s.made.create else {
        return step.show();
    };
    let step = if k8s.made.newest {
        let values = context.target.join("k8s/newest.yaml");
        fs::create_dir_all(context.target.join("k8s"))?;
        newest::sidecars(context, &values)?;
        step.arg("--values").arg(values)
    } else {
        step
    };
    let cluster = Cluster::create(context, &go, &wanted)?;
    let told = step.env("KUBECONFIG", cluster.kubeconfig()).show();
    if told.is_err() {
        cluster.failed();
    }
    let finished = cluster.finish();
    told.and(finished)
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
