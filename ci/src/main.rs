//! Every chore of this workspace: `cargo ci TASK`. A laptop, the hosted pipeline and `.ci/run` call nothing else.
//!
//! Each task installs what it lacks (as root), or names it and stops before it has done half of its work.

#![expect(
    clippy::print_stdout,
    reason = "a program of chores talks to its user on stdout"
)]

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
mod plane;
mod release;
mod run;
mod skip;
mod table;
mod testing;
mod tidy;
mod vm;
mod workflows;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use context::Context;
use doctor::need::Layer;

/// Every chore of this workspace.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo ci")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// What each layer of tests needs, and what is missing here
    Doctor {
        /// The layer to judge
        #[arg(value_enum, default_value = "all")]
        layer: Layer,
        /// Install what is missing (Debian and Ubuntu packages, Go programs); packages need root
        #[arg(long)]
        install: bool,
    },
    /// Is the code formatted?
    Fmt {
        /// Format it
        #[arg(long)]
        fix: bool,
    },
    /// Clippy and rustdoc; a warning is an error
    Lint,
    /// Which crates the workspace may be made of: licences, sources, and with --advisories known faults
    Deny(deny::Deny),
    /// House rules: who may depend on whom, what lies where, nothing half-done; lists the assumptions
    Tidy,
    /// Is proto/csi.proto the CSI specification's?
    Spec,
    /// The Helm chart: lint, what comes of sets of values, the schemas of two releases of Kubernetes, the plain manifests
    Chart(chart::Chart),
    /// The hosted pipeline: actionlint, and whether it calls tasks that there are
    Workflows,
    /// Kubernetes' own storage suite on the cluster that KUBECONFIG names; with --check only whether its files fit it
    External(k8s_conformance::External),
    /// All tests; those that need root say so and are counted when there is none
    Test,
    /// The stories with block devices, file systems and mounts (root)
    Node,
    /// csi-sanity against the driver and both simulators (root)
    Sanity,
    /// The stories of claims, pods and sidecars: on a cluster, on one that kind makes, or on a stand-in
    K8s(k8s::K8s),
    /// A Python library and a browser, made by others, against dsm-sim; installs them
    Clients,
    /// Random requests against dsm-sim: it answers all, and what it refuses changes nothing
    Fuzz(fuzz::Fuzz),
    /// Sequences of calls and mishaps against the shipped driver, and a look at everything after each step
    Model(model::Model),
    /// The driver's processes die at each of their effects, in every call, and two controllers overlap at each of their requests:
    /// does it do any harm?
    Crash(crash::Crash),
    /// A matrix of what goes wrong while a volume grows, and what comes of it; as Markdown and as JSON
    Faults(faults::Faults),
    /// Stories of real iSCSI in virtual machines with a stock kernel; needs no root but for packages
    Vm(vm::Vm),
    /// Other drivers, unmodified, against dsm-sim: what they cost a NAS next to ours, as a table and as JSON
    Peers(peers::Peers),
    /// Do the properties catch bugs? Deliberate bugs in a copy of the driver, and who notices each; the copy is built for each
    Sabotage(mutation::Sabotage),
    /// DSM calls per CSI call, latency and memory, and how cost grows, as tables and as JSON (root for the node half)
    Bench(demo::Bench),
    /// Builds the images of the driver and both simulators, starts every program in them, and tells what is inside (root, where no
    /// Docker engine runs)
    Images(images::Images),
    /// What a tag publishes, for the hosted pipeline: archives of images, then what a registry is sent; publishes nothing itself
    Release(release::Release),
    /// Builds the images, then starts them as the chart does: a volume's life over TLS, restarts, rights (root)
    Containers,
    /// One volume's whole life, told in under 30 lines (root)
    Demo(demo::Demo),
    /// All that a pipeline has time for, with the time and the work of each: fmt, lint, deny, spec, chart, tidy, workflows, external (its
    /// check), test, model, crash, faults, sabotage (a sample), fuzz, clients, sanity, k8s (on the stand-in), peers, containers, vm, demo
    /// and bench (a sample)
    All,
    /// What takes hours: many sequences with a new seed, crashes and faults on devices, every deliberate bug, all stories of the virtual machines
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
        Task::Spec => go::spec(&context),
        Task::Chart(chart) => chart::run(&context, chart),
        Task::Workflows => workflows::run(&context),
        Task::External(external) => k8s_conformance::run(&context, external),
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
        Task::Sabotage(sabotage) => mutation::run(&context, sabotage),
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
