//! Logging setup: one span per RPC, one line per finished RPC, details in fields. Secrets have types that do not print their
//! value.

use std::future::Future;
use std::io::IsTerminal as _;
use std::time::Instant;

use tonic::{Code, Response, Status};
use tracing::{Instrument as _, info, info_span, warn};
use tracing_subscriber::EnvFilter;

use crate::error::Error;
use crate::metrics;

/// The format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Human-readable.
    Text,
    /// One JSON object per line.
    Json,
}

/// Starts logging to standard error. `level` is a level or a filter such as `info,driver::dsm=trace`.
///
/// # Errors
/// `level` is invalid, or logging was already started.
pub fn start(
    level: &str,
    format: LogFormat,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    // A bare level applies to this driver only; below WARN the HTTP libraries are just noise.
    let bare = level.parse::<tracing::Level>().is_ok();
    let filter = if bare {
        format!("warn,driver={level},synology_csi={level}")
    } else {
        level.to_owned()
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_new(filter)?)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    }
}

/// Logs and counts an operation that ended after its caller had given up: nothing else reports its outcome. The span identifies
/// it.
pub fn log_late_completion(error: Option<&Error>) {
    let code = error.map_or(Code::Ok, Error::code);
    metrics::of_process().late_completion(code);
    match error {
        None => info!(code = "OK", "finished after its caller had given up"),
        Some(error) => {
            warn!(?code, error = %error.chain(), "finished after its caller had given up");
        }
    }
}

/// Runs the body of one RPC in its span, logs the outcome and converts its error to a gRPC status.
///
/// # Errors
/// The body's error, with the code from the error table.
pub async fn rpc<T>(
    rpc: &'static str,
    volume_id: &str,
    body: impl Future<Output = Result<T, Error>>,
) -> Result<Response<T>, Status> {
    let span = info_span!("rpc", rpc, volume_id);
    async {
        let (started, timer) = (Instant::now(), metrics::of_process().rpc(rpc));
        let outcome = body.await;
        timer.ended(outcome.as_ref().map_or_else(Error::code, |_| Code::Ok));
        let elapsed = started.elapsed();
        match outcome {
            Ok(reply) => {
                info!(code = "OK", ?elapsed, "finished");
                Ok(Response::new(reply))
            }
            Err(error) => {
                warn!(code = ?error.code(), ?elapsed, error = %error.chain(), "finished");
                Err(error.into())
            }
        }
    }
    .instrument(span)
    .await
}
