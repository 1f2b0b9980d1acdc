//! What the program does with a NAS that is not simulated: flags and words of `diff` and `record`.

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

/// Whom to believe.
#[derive(Args)]
struct TrustFlags {
    /// The authority, in PEM form, that vouches for the NAS; without it, whom this machine trusts
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,

    /// Believe any certificate: whoever sits between reads the password
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
    /// The NAS, as https://nas:5001
    #[arg(long, value_name = "URL")]
    nas: Url,

    /// Say that you know: a session is opened and ended, and nothing else but reading calls is sent
    #[arg(long, required = true)]
    read_only: bool,

    /// An account of the NAS, an administrator without a second factor
    #[arg(long, value_name = "NAME")]
    account: String,

    /// File with its password
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
    /// The NAS, as https://nas:5001
    #[arg(long, value_name = "URL")]
    upstream: Url,

    /// Where clients find the NAS instead, over HTTP; port 0 takes any free port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:5000")]
    listen: SocketAddr,

    /// Where exchanges are written, one file each; made when missing, and must be empty
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
            .with_context(|| format!("cannot listen at {}", task.listen))?;
        writeln!(
            io::stdout(),
            "The NAS answers at http://{}; what is said goes to {}.",
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

/// A file's text without the end of its line.
pub(crate) fn password(path: &PathBuf) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read --password-file {}", path.display()))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// Exits with 0 where nothing differs, 1 where something does, 2 where the NAS could not be asked.
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
        write!(out, "{}", text(&report))?;
    }
    Ok(report.differs())
}

fn text(report: &diff::Report) -> String {
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
