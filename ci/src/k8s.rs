//! `cargo ci k8s`: end-to-end tests with claims, pods and sidecars, on the cluster of the kubeconfig, on one that kind creates,
//! or on a fake Kubernetes that makes the sidecars' and kubelets' calls on this machine.

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
    run::Cmd,
    testing::build_programs,
};
use cluster::{Cluster, ClusterOptions};

/// Arguments of `cargo ci k8s`.
#[derive(Debug, Default, Args)]
pub(crate) struct K8s {
    /// Only stories whose name contains this, for instance online/xfs; may be given several times
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    #[command(flatten)]
    create_args: CreateArgs,
    /// Run no story; save the node logs of the cluster that --keep has left, in target/k8s/logs
    #[arg(long, conflicts_with_all = ["create", "fake"])]
    export_logs: bool,
    /// Use a fake Kubernetes instead of a cluster (root)
    #[arg(long, alias = "stand-in")]
    fake: bool,
    /// A values file for the chart, in addition to values-sim.yaml; may be given several times
    #[arg(long, value_name = "FILE")]
    values: Vec<PathBuf>,
    /// The image of the stories' pods; needs a shell, dd, df, sha256sum and blockdev
    #[arg(long, value_name = "IMAGE")]
    pod_image: Option<String>,
    /// Leave the driver, and a cluster that was created, for inspection
    #[arg(long)]
    keep: bool,
}

/// Arguments for a cluster that is created for the stories.
#[derive(Debug, Default, Args)]
struct CreateArgs {
    /// Create a cluster first, and delete it afterwards; by default, use the cluster of KUBECONFIG
    #[arg(long, value_enum, conflicts_with = "fake")]
    create: Option<Create>,
    /// The image of kind's nodes, which determines the Kubernetes version; by default, kind's own choice
    #[arg(long, value_name = "IMAGE", requires = "create")]
    node_image: Option<String>,
    /// The base image for our images, as in `cargo ci images`
    #[arg(long, value_name = "IMAGE", requires = "create")]
    base: Option<String>,
    /// Let the kubelets accept cgroup v1, for a node image that supports it
    #[arg(long, requires = "create")]
    cgroup_v1: bool,
    /// Use the newest release of kind and of each sidecar instead of the pinned ones; needs skopeo
    #[arg(long, requires = "create")]
    newest: bool,
}

/// How to create a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Create {
    /// Three nodes in containers of the local Docker engine
    Kind,
}

/// Runs the stories.
///
/// # Errors
/// When something is missing, or a story fails.
pub(crate) fn run(context: &Context, k8s: &K8s) -> Result<()> {
    if k8s.fake {
        doctor::ready(context, Layer::Node)?;
        build_programs(context)?;
        return k8s.cmd(context).arg("--fake").run();
    }
    let go = Go::find(context).context("no Go, which is needed to build helm and kind")?;
    if k8s.export_logs {
        return Cluster::existing(context, &go)?.export_logs();
    }
    let options = ClusterOptions {
        newest: k8s.create_args.newest,
        image: k8s.create_args.node_image.as_deref(),
        base: k8s.create_args.base.as_deref(),
        cgroup_v1: k8s.create_args.cgroup_v1,
        keep: k8s.keep,
    };
    if k8s.create_args.create.is_some() {
        // Before anything is built.
        cluster::check_engine(context, &options)?;
    }
    let helm = chart::helm(context, &go)?;
    build_programs(context)?;
    let cmd = k8s
        .cmd(context)
        .arg("--helm")
        .arg(helm)
        .arg("--chart")
        .arg(context.root.join("driver/deploy/chart"));
    let Some(Create::Kind) = k8s.create_args.create else {
        return cmd.run();
    };
    let cmd = if k8s.create_args.newest {
        let values = context.target.join("k8s/newest.yaml");
        fs::create_dir_all(context.target.join("k8s"))?;
        newest::sidecars(context, &values)?;
        cmd.arg("--values").arg(values)
    } else {
        cmd
    };
    let cluster = Cluster::create(context, &go, &options)?;
    let result = cmd.env("KUBECONFIG", cluster.kubeconfig()).run();
    if result.is_err() {
        cluster.export_logs_after_failure();
    }
    let finished = cluster.finish();
    result.and(finished)
}

impl K8s {
    fn cmd(&self, context: &Context) -> Cmd {
        let program = context.target.join("debug/k8s");
        let mut cmd = Cmd::new(context, &program.to_string_lossy())
            .arg("--folder")
            .arg(context.target.join("k8s"));
        for only in &self.only {
            cmd = cmd.arg("--only").arg(only);
        }
        for values in &self.values {
            cmd = cmd.arg("--values").arg(values);
        }
        if let Some(image) = &self.pod_image {
            cmd = cmd.arg("--pod-image").arg(image);
        }
        if self.keep { cmd.arg("--keep") } else { cmd }
    }
}
