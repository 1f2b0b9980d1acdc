//! `synology-csi`: reads its flags, serves CSI on a unix socket, ends on SIGTERM or SIGINT.

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser as _;
use driver::config::Args;
use driver::host::linux::enter;
use driver::server::Plugin;
use driver::telemetry;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tracing::error;

/// How long threads that hang in the kernel may hold up the end of the process.
const HUNG: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    if let Some(failed) = enter::run(std::env::args_os()) {
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
    let outcome = Runtime::new().map_err(Into::into).and_then(|runtime| {
        let outcome = runtime.block_on(run(&args));
        // A reading of a dead device cannot be recalled; the kernel ends it with the process.
        runtime.shutdown_timeout(HUNG);
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
