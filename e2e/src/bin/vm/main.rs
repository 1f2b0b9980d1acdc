//! `cargo ci vm`: the stories that need real iSCSI. On the host it boots VMs and prints their reports; in a VM it is the init
//! process, the suite, or the server through which the suite acts on the second node.

#![expect(
    clippy::print_stdout,
    reason = "a program that talks to its user on stdout"
)]

mod container;
mod host;
mod scene;
mod setup;
mod stories;
mod suite;
mod worker;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use e2e::harness::writer::Writer;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

/// Stories that need real iSCSI, in virtual machines with a stock Debian kernel.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo ci vm", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Boot the VMs, run the stories, print the results
    Run(Run),
    /// In a VM: the init process
    #[command(hide = true)]
    First,
    /// In a VM: the suite
    #[command(hide = true)]
    Suite {
        /// How the NAS exports LUNs: tgt or lio
        export: setup::Export,
        /// There is a second VM
        #[arg(long)]
        second: bool,
        /// [`Choice`] as JSON
        choice: String,
    },
    /// In the second VM: run commands for the first
    #[command(hide = true)]
    Serve {
        /// Address to listen on
        address: String,
    },
    /// In a VM: write and verify until SIGTERM
    #[command(hide = true)]
    Write {
        /// A file or device
        file: PathBuf,
        /// File for the progress
        progress: PathBuf,
    },
    /// In a VM: the SHA-256 of the first MiB, read from the disk
    #[command(hide = true)]
    Sum {
        /// A file or device
        file: PathBuf,
    },
    /// In a VM: write without syncing, and wait to be killed
    #[command(hide = true)]
    Dirty {
        /// A file or device
        file: PathBuf,
    },
    /// In a VM: run a program of this workspace in a container
    #[command(hide = true)]
    Contained {
        /// The program and its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// In a VM: a power cut
    #[command(hide = true)]
    Reset,
}

#[derive(Debug, Args)]
struct Run {
    #[command(flatten)]
    choice: Choice,
    /// Folder for the kernel, logs and results
    #[arg(long, value_name = "DIR")]
    folder: PathBuf,
    /// Boot a kernel other than Debian 12's: the newest of a Debian suite, for instance trixie or bookworm-backports, or one
    /// whose packages are unpacked in a folder (a path with a /, with boot/ and lib/modules/ in it)
    #[arg(long, value_name = "SUITE|DIR")]
    kernel: Option<String>,
    /// Do not try KVM
    #[arg(long)]
    no_kvm: bool,
    /// Boot once, print how long it took, and stop
    #[arg(long)]
    boot_only: bool,
}

/// Which stories to run.
#[derive(Clone, Debug, Args, Serialize, Deserialize)]
struct Choice {
    /// Only stories whose name contains this, for instance lio/chap, or / for all; may be repeated
    #[arg(long)]
    only: Vec<String>,
    /// Random schedules of the wrong-disk story, on each target
    #[arg(long, default_value_t = 100)]
    cases: u32,
    /// Seed of the random schedules; printed by each run
    #[arg(long)]
    seed: Option<u64>,
    /// Keep the logs of successful stories, too
    #[arg(long)]
    keep_logs: bool,
    /// The test program with the stories that use loop devices
    #[arg(long, value_name = "FILE")]
    node_tests: Option<PathBuf>,
}

impl Choice {
    /// Whether this story was selected.
    fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| name.contains(part))
    }
}

fn main() -> ExitCode {
    let done = match Cli::parse().role {
        Role::Run(run) => host::run(&run),
        Role::First => e2e::vm::guest::first(),
        Role::Suite {
            export,
            second,
            choice,
        } => {
            let setup = setup::Setup { export, second };
            block_on(async { suite::run(setup, &serde_json::from_str(&choice)?).await })
        }
        Role::Serve { address } => block_on(e2e::vm::remote::serve(&address)),
        Role::Write { file, progress } => block_on(write(&file, &progress)),
        Role::Sum { file } => {
            e2e::harness::tools::sha256(&file, scene::WRITTEN).map(|sum| println!("{sum}"))
        }
        Role::Dirty { file } => stories::dirty(&file),
        Role::Contained { words } => container::exec_in_container(&words),
        // Without syncing any file system.
        Role::Reset => std::fs::write("/proc/sysrq-trigger", "b").map_err(Into::into),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn write(file: &Path, progress: &Path) -> anyhow::Result<()> {
    let writer = Writer::start(file)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    while !writer.has_failed() {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = tick.tick() => std::fs::write(progress, writer.written().to_string())?,
        }
    }
    let outcome = match writer.stop() {
        Ok(()) => "stopped".to_owned(),
        Err(error) => format!("failed: {error:#}"),
    };
    Ok(std::fs::write(progress, outcome)?)
}

fn block_on(role: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(role)
}
