//! The `diff` and `record` subcommands, which talk to a real NAS: their flags and output.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use comfy_table::{Table, presets};
use dsm_sim::compare::{diff, record};
use dsm_sim::{TlsTrust, Upstream};
use url::Url;

/// How to verify the NAS's certificate.
#[derive(Args)]
struct TrustFlags {
    /// CA certificate of the NAS, in PEM form. Default: the CAs that this machine trusts
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,

    /// Accept any certificate: a man in the middle can read the password
    #[arg(long, conflicts_with = "ca_file")]
    insecure: bool,
}

impl TrustFlags {
    fn upstream(self, url: Url) -> Upstream {
        let trust = match self.ca_file {
            Some(path) => TlsTrust::File(path),
            None if self.insecure => TlsTrust::Insecure,
            None => TlsTrust::Platform,
        };
        Upstream { url, trust }
    }
}

#[derive(Args)]
pub(crate) struct Diff {
    /// URL of the NAS, as https://nas:5001
    #[arg(long, value_name = "URL")]
    nas: Url,

    /// Confirm what is sent: a login, read-only calls and a logout
    #[arg(long, required = true)]
    read_only: bool,

    /// Administrator account of the NAS, without two-factor authentication
    #[arg(long, value_name = "NAME")]
    account: String,

    /// File with the account's password
    #[arg(long, value_name = "FILE")]
    password_file: PathBuf,

    #[command(flatten)]
    trust: TrustFlags,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(crate) struct Record {
    /// URL of the NAS, as https://nas:5001
    #[arg(long, value_name = "URL")]
    upstream: Url,

    /// Listen address of the proxy (HTTP); port 0 takes any free port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:5000")]
    listen: SocketAddr,

    /// Directory for the exchanges, one file each; created if missing, and must be empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    #[command(flatten)]
    trust: TrustFlags,
}

/// Records until Ctrl-C.
pub(crate) fn record(task: Record) -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(io::stderr).init();
    let router = record::proxy(task.trust.upstream(task.upstream), &task.out)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(task.listen)
            .await
            .with_context(|| format!("cannot listen on {}", task.listen))?;
        writeln!(
            io::stdout(),
            "Listening at http://{}; exchanges are written to {}.",
            listener.local_addr()?,
            task.out.display()
        )?;
        tokio::select! {
            ended = axum::serve(listener, router) => ended?,
            stopped = tokio::signal::ctrl_c() => stopped?,
        }
        Ok(())
    })
}

/// Reads a password file, without its trailing line breaks.
pub(crate) fn password(path: &PathBuf) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read --password-file {}", path.display()))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// Exit code: 0 if nothing differs, 1 if something does, 2 if the comparison failed.
pub(crate) fn diff(task: Diff) -> ExitCode {
    match compare(task) {
        Ok(false) => ExitCode::SUCCESS,
        Ok(true) => ExitCode::from(1),
        Err(error) => {
            eprintln!("dsm-sim: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn compare(task: Diff) -> anyhow::Result<bool> {
    let password = password(&task.password_file)?;
    let nas = task.trust.upstream(task.nas);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let report = runtime.block_on(diff::diff(&nas, &task.account, &password))?;
    let mut out = io::stdout().lock();
    if task.json {
        serde_json::to_writer_pretty(&mut out, &report)?;
        writeln!(out)?;
    } else {
        write!(out, "{}", render(&report))?;
    }
    Ok(report.differs())
}

fn render(report: &diff::Report) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_FULL_CONDENSED)
        .set_header(["call", "difference: recorded is the NAS"]);
    let mut count = 0;
    for call in &report.calls {
        let lines: Vec<String> = call.differences.iter().map(ToString::to_string).collect();
        count += lines.len();
        let lines = if lines.is_empty() {
            "none".to_owned()
        } else {
            lines.join("\n")
        };
        table.add_row([&call.call, &lines]);
    }
    let notes = report.notes.join("\nnote: ");
    let notes = if notes.is_empty() {
        notes
    } else {
        format!("note: {notes}\n")
    };
    format!(
        "the NAS: {}\nsimulated: {}\n{table}\n{notes}{count} differences\n",
        report.nas.join(", "),
        report.simulated.join(", ")
    )
}
