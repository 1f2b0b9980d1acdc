//! `cargo ci vm`: the stories of real iSCSI. Outside it boots machines and prints what they report; inside it is the first
//! process, the suite, or the second node's hands.

#![expect(
    clippy::print_stdout,
    reason = "a program that talks to its user on stdout"
)]

mod container;
mod host;
mod scene;
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

/// The stories of real iSCSI, in virtual machines with a stock Debian kernel.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo ci vm", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Boot the machines, run the stories, print what came of them
    Run(Run),
    /// Inside: the first process
    #[command(hide = true)]
    First,
    /// Inside: the suite
    #[command(hide = true)]
    Suite {
        /// How the NAS exports: tgt or lio
        export: scene::Export,
        /// There is a second machine
        #[arg(long)]
        second: bool,
        /// [`Choice`] as JSON
        choice: String,
    },
    /// Inside the second machine: do what the first asks
    #[command(hide = true)]
    Serve {
        /// Where to listen
        address: String,
    },
    /// Inside: write and verify until SIGTERM
    #[command(hide = true)]
    Write {
        /// A file or device
        file: PathBuf,
        /// Where to say how far it has come
        progress: PathBuf,
    },
    /// Inside: the SHA-256 of the first MiB, read from the disk
    #[command(hide = true)]
    Sum {
        /// A file or device
        file: PathBuf,
    },
    /// Inside: write without syncing, and wait for the end
    #[command(hide = true)]
    Dirty {
        /// A file or device
        file: PathBuf,
    },
    /// Inside: become a program of this workspace in a container
    #[command(hide = true)]
    Contained {
        /// The program and its arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Inside: a power cut
    #[command(hide = true)]
    Reset,
}

#[derive(Debug, Args)]
struct Run {
    #[command(flatten)]
    choice: Choice,
    /// Where kernel, logs and results are kept
    #[arg(long, value_name = "DIR")]
    folder: PathBuf,
    /// Boot another kernel than Debian 12's: the newest of a suite of Debian's, for instance trixie or bookworm-backports, or one
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

/// What to tell.
#[derive(Clone, Debug, Args, Serialize, Deserialize)]
struct Choice {
    /// Only stories whose name contains this, for instance lio/chap, and / for all; may be given several times
    #[arg(long)]
    only: Vec<String>,
    /// Random schedules of the wrong-disk story, on each target
    #[arg(long, default_value_t = 100)]
    cases: u32,
    /// Where random schedules begin; printed by each run
    #[arg(long)]
    seed: Option<u64>,
    /// Keep the logs of stories that went well, too
    #[arg(long)]
    keep_logs: bool,
    /// The test program with the stories of the loop plane
    #[arg(long, value_name = "FILE")]
    node_tests: Option<PathBuf>,
}

impl Choice {
    /// This story is to be told.
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
            let cast = suite::Cast { export, second };
            block_on(async { suite::run(cast, &serde_json::from_str(&choice)?).await })
        }
        Role::Serve { address } => block_on(e2e::vm::remote::serve(&address)),
        Role::Write { file, progress } => block_on(write(&file, &progress)),
        Role::Sum { file } => {
            e2e::harness::tools::sha256(&file, scene::WRITTEN).map(|sum| println!("{sum}"))
        }
        Role::Dirty { file } => stories::dirty(&file),
        Role::Contained { words } => container::become_program(&words),
        // No file system is synced.
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
    let said = match writer.stop() {
        Ok(()) => "stopped".to_owned(),
        Err(error) => format!("failed: {error:#}"),
    };
    Ok(std::fs::write(progress, said)?)
}

fn block_on(role: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(role)
}
