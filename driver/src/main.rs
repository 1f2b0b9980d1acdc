//! `synology-csi`: parses flags, serves CSI on a unix socket, shuts down on SIGTERM or SIGINT.

use std::io;
use std::num::NonZero;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::Parser as _;
use driver::config::Args;
use driver::host::linux::nsenter;
use driver::server::Plugin;
use driver::telemetry;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tracing::error;

/// Tokio worker threads. The driver is I/O-bound, so a large node needs no more.
const WORKERS: usize = 4;
/// Concurrent sysfs/procfs reads and DNS lookups; each is short.
const BLOCKING_THREADS: usize = 16;
/// How long threads that hang in the kernel may delay process exit.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    if let Some(failed) = nsenter::subcommand::run(std::env::args_os()) {
        return failed;
    }
    let args = Args::parse();
    if let Err(problem) = telemetry::start(&args.log_level, args.log_format) {
        eprintln!(
            "synology-csi: --log-level {:?} is not a level or filter: {problem}",
            args.log_level
        );
        return ExitCode::FAILURE;
    }
    let outcome = runtime().map_err(Into::into).and_then(|runtime| {
        let outcome = runtime.block_on(run(&args));
        // A read from a dead device cannot be cancelled; the kernel ends it with the process.
        runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
        outcome
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            error!(problem = chain(problem.as_ref()), "cannot serve");
            ExitCode::FAILURE
        }
    }
}

/// Bounded, so that a burst of calls does not start hundreds of threads. Operations that may hang use dedicated threads.
fn runtime() -> io::Result<Runtime> {
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    Builder::new_multi_thread()
        .worker_threads(processors.min(WORKERS))
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()
}

async fn run(args: &Args) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    Plugin::new(args)?.serve(&args.endpoint, stop).await
}

fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source())
        .map(|cause| format!(": {cause}"));
    std::iter::once(error.to_string()).chain(causes).collect()
}
