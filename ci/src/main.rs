//! The task runner of this workspace: `cargo ci TASK`. Developers, the hosted pipeline and `.ci/run` all use it.
//!
//! Each task first installs what is missing (as root), or names it and stops.

#![expect(clippy::print_stdout, reason = "a task runner prints to stdout")]

mod all;
mod chart;
mod check;
mod containers;
mod context;
mod crash;
mod demo;
mod deny;
mod doctor;
mod faults;
mod fuzz;
mod go;
mod images;
mod k8s;
mod k8s_conformance;
mod model;
mod mutation;
mod nightly;
mod peers;
mod release;
mod run;
mod skip;
mod spec;
mod table;
mod testbed;
mod testing;
mod tidy;
mod vm;
mod workflows;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use context::Context;
use doctor::need::Layer;

/// The tasks of this workspace.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo ci")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Check what a task needs, and what is missing on this machine
    Doctor {
        /// The task
        #[arg(value_enum, default_value = "all")]
        layer: Layer,
        /// Install what is missing (Debian and Ubuntu packages, Go programs); packages need root
        #[arg(long)]
        install: bool,
    },
    /// Check the formatting
    Fmt {
        /// Format the code
        #[arg(long)]
        fix: bool,
    },
    /// Run clippy and rustdoc; warnings are errors
    Lint,
    /// Check the licenses and sources of all crates, and with --advisories known vulnerabilities
    Deny(deny::Deny),
    /// Check the house rules: dependencies between crates, file layout, links, unfinished code; lists the assumptions
    Tidy,
    /// Compare proto/csi.proto with the CSI specification
    Spec,
    /// Check the Helm chart: lint, rendered values, the schemas of two Kubernetes releases, the plain manifests
    Chart(chart::Chart),
    /// Check the GitHub workflows: actionlint, existing tasks, pinned actions, permissions
    Workflows,
    /// Run Kubernetes' storage conformance suite on the cluster of KUBECONFIG; with --check, only validate its configuration
    #[command(alias = "external")]
    K8sConformance(k8s_conformance::K8sConformance),
    /// Run all tests; without root, those that need it are skipped and counted
    Test,
    /// Run the node tests with block devices, file systems and mounts (root)
    Node,
    /// Run csi-sanity against the driver and both simulators (root)
    Sanity,
    /// Run the Kubernetes stories (claims, pods, sidecars) on a cluster, on one made by kind, or on a fake Kubernetes
    K8s(k8s::K8s),
    /// Run third-party Python libraries and a browser against dsm-sim; installs them
    Clients,
    /// Fuzz dsm-sim: every request gets a reply, and refused requests change nothing
    Fuzz(fuzz::Fuzz),
    /// Run random sequences of CSI calls and faults against the driver, and check the invariants after each step
    Model(model::Model),
    /// Crash the driver at each side effect of every call, and interleave two controllers at each of their requests
    Crash(crash::Crash),
    /// Run the matrix of faults during volume expansion; prints Markdown and writes JSON
    Faults(faults::Faults),
    /// Run the stories with real iSCSI in virtual machines with a stock kernel; root is needed only to install packages
    Vm(vm::Vm),
    /// Compare other drivers, unmodified, with ours on dsm-sim: DSM calls per CSI call, as a table and as JSON
    Peers(peers::Peers),
    /// Mutation testing: put deliberate bugs into a copy of the driver, and show which search program finds each
    #[command(alias = "sabotage")]
    Mutants(mutation::Mutants),
    /// Measure DSM calls per CSI call, latency and memory, and how they grow, as tables and as JSON (root for the node part)
    Bench(demo::Bench),
    /// Build the images of the driver and both simulators, start every program in them, and list their contents (root, if no
    /// Docker engine runs)
    Images(images::Images),
    /// Build the artifacts of a release for the hosted pipeline: image archives, then OCI layouts; publishes nothing itself
    Release(release::Release),
    /// Build the images, then run them as the chart does: a volume's lifecycle over TLS, restarts, permissions (root)
    Containers,
    /// Show the lifecycle of one volume in under 30 lines (root)
    Demo(demo::Demo),
    /// Run every task of the pipeline, with the time of each: fmt, lint, deny, spec, chart, tidy, workflows, k8s-conformance
    /// (--check), test, model, crash, faults, mutants (a sample), fuzz, clients, sanity, k8s (on the fake Kubernetes), peers,
    /// containers, vm, demo and bench (a sample)
    All,
    /// Run the tasks that take hours: many sequences with a new seed, crashes and faults on devices, all mutants, all stories in
    /// virtual machines
    Nightly(nightly::Nightly),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = Context::read().and_then(|context| match &cli.task {
        Task::Doctor { layer, install } => doctor::run(&context, *layer, *install),
        Task::Fmt { fix } => check::fmt(&context, *fix),
        Task::Lint => check::lint(&context),
        Task::Deny(deny) => deny::run(&context, deny),
        Task::Tidy => tidy::run(&context),
        Task::Spec => spec::spec(&context),
        Task::Chart(chart) => chart::run(&context, chart),
        Task::Workflows => workflows::run(&context),
        Task::K8sConformance(args) => k8s_conformance::run(&context, args),
        Task::Test => testing::test(&context),
        Task::Node => testing::node(&context),
        Task::Sanity => testing::sanity(&context),
        Task::Fuzz(fuzz) => fuzz::run(&context, fuzz),
        Task::Clients => testing::clients(&context),
        Task::Model(model) => model::run(&context, model),
        Task::Crash(crash) => crash::run(&context, crash),
        Task::Faults(faults) => faults::run(&context, faults),
        Task::Vm(vm) => vm::run(&context, vm),
        Task::K8s(k8s) => k8s::run(&context, k8s),
        Task::Peers(peers) => peers::run(&context, peers),
        Task::Mutants(args) => mutation::run(&context, args),
        Task::Bench(bench) => demo::bench(&context, bench),
        Task::Images(images) => images::run(&context, images),
        Task::Release(release) => release::run(&context, release),
        Task::Containers => containers::run(&context),
        Task::Demo(demo) => demo::demo(&context, demo),
        Task::All => all::run(&context, &all::TASKS),
        Task::Nightly(nightly) => nightly::run(&context, nightly),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cargo ci: {error:#}");
            ExitCode::FAILURE
        }
    }
}
