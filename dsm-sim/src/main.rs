//! The `dsm-sim` program: command-line flags, and the `serve` subcommand.

mod cli;

use std::io::{self, IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use dsm_sim::{
    Builder, Certificate, Dsm, DsmSim, ExportKind, Https, Latency, Model, Settings, VolumeSpec,
};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Simulates the DSM Web API of a Synology NAS
///
/// Start it, then send it requests as you would to DSM:
///
///   dsm-sim serve --state-dir ./nas &
///
///   curl 'http://127.0.0.1:5000/webapi/query.cgi?api=SYNO.API.Info&version=1&method=query&query=all'
///
/// A second port, the control port, is for tests: faults, the journal of all calls, the clock, foreign LUNs.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run the simulated NAS until Ctrl-C or SIGTERM. Its state is durable: it survives a kill at any moment
    Serve(Box<Serve>),
    /// Send read-only calls to a NAS and print where the simulator's replies differ
    Diff(cli::Diff),
    /// Record the exchanges between a client and a NAS as a proxy, with secrets redacted
    Record(cli::Record),
    /// Print every assumption about DSM that has no evidence yet
    Assumptions,
}

#[derive(Args)]
#[command(after_help = settings_help())]
struct Serve {
    /// Listen address of the DSM Web API; port 0 takes any free port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:5000")]
    listen: SocketAddr,

    /// Listen address of the control port; GET / lists its endpoints
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:5080")]
    control: SocketAddr,

    /// Host name that the control port accepts in addition to IP addresses and localhost; repeatable. The port has no login, so
    /// requests for other names are refused to prevent DNS rebinding by a web page
    #[arg(long = "control-name", value_name = "NAME")]
    control_names: Vec<String>,

    /// Directory for state, LUN files and exports; created if missing
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,

    /// A volume, as PATH=FILESYSTEM:SIZE or PATH=FILESYSTEM:SIZE:STATUS, with btrfs or ext4 and any DSM volume status
    /// (attention, background, crashed …); repeatable
    #[arg(
        long = "volume",
        value_name = "VOLUME",
        default_value = "/volume1=btrfs:2TiB"
    )]
    volumes: Vec<VolumeSpec>,

    /// How LUNs become block devices: none; loop (node-sim's iscsiadm on this machine); or real iSCSI, by tgt (a private
    /// tgtd; needs the package tgt) or by lio (this kernel's target; needs root, configfs, target_core_mod). tgtd and kernel
    /// targets are removed on exit; after a kill -9 they stay until the next start, which reconciles them with the state
    #[arg(long, value_name = "KIND", default_value = "none")]
    export: ExportKind,

    /// Portal that targets listen on, as IP:PORT; comma-separated or repeatable. The Web API reports the port of the first
    #[arg(
        long = "portal",
        value_name = "ADDRESS",
        value_delimiter = ',',
        default_value = "127.0.0.1:3260"
    )]
    portals: Vec<SocketAddr>,

    /// Name of the administrator account; the control port can add more accounts
    #[arg(long, value_name = "NAME", default_value = "admin")]
    account: String,

    /// Base32 TOTP secret of the account (RFC 6238, 6 digits, 30 s); at least 128 bits
    #[arg(long, value_name = "SECRET")]
    otp_secret: Option<String>,

    /// File with the account's password; the default password is "admin"
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,

    /// DSM release: 6.2, 7.0 … 7.4; 6 and 7 mean 6.2 and 7.2
    #[arg(long, value_name = "VERSION", default_value = "7")]
    dsm: Dsm,

    /// NAS model, which limits the number of LUNs and targets; "unlimited" is no real model
    #[arg(long, value_name = "NAME", default_value = "DS923+")]
    model: Model,

    /// Latency profile: instant, or ds918 as measured on a DS918+
    #[arg(long, value_name = "TIMING", default_value = "instant")]
    latency: Latency,

    /// Seed for uuids and session ids: the same calls then get the same replies, byte for byte with --clock
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,

    /// Freeze the NAS's clock at this time, in milliseconds since 1970; POST /clock advances it
    #[arg(long, value_name = "MS")]
    clock: Option<u64>,

    /// Uptime of the NAS at start, in seconds, as SYNO.Core.System reports it
    #[arg(long, value_name = "SECONDS", default_value_t = 360_000)]
    uptime: u64,

    /// Enable CSRF protection: calls must carry the login's SynoToken
    #[arg(long)]
    csrf: bool,

    /// Refuse _sid in a form body, as jt measured on DSM 7.1.1
    #[arg(long)]
    strict_sid: bool,

    /// Change a setting, as NAME=VALUE; repeatable. Settings are listed below and explained in docs/knobs.md. PATCH /settings on
    /// the control port changes them later
    #[arg(long = "setting", value_name = "NAME=VALUE", value_parser = parse_setting)]
    settings: Vec<(String, Value)>,

    /// Also append the journal to this file, one JSON object per line. At 64 MiB it is rotated to FILE.1, which is overwritten
    #[arg(long, value_name = "FILE")]
    journal_file: Option<PathBuf>,

    /// Log level on stderr: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: String,

    #[command(flatten)]
    https: HttpsFlags,
}

/// Default of `--https`.
const DEFAULT_HTTPS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 5001);

#[derive(Args)]
#[command(next_help_heading = "HTTPS (off unless one of these is given)")]
struct HttpsFlags {
    /// Listen address of HTTPS, by default 127.0.0.1:5001; port 0 takes any free port
    #[arg(long, value_name = "ADDRESS")]
    https: Option<SocketAddr>,

    /// Directory of the generated certificate: ca.pem (for clients to trust), cert.pem and key.pem. They are created on the
    /// first start, by a private CA, for localhost, 127.0.0.1 and ::1. Default: the directory "tls" in --state-dir
    #[arg(long, value_name = "DIR", conflicts_with_all = ["tls_cert", "tls_key"])]
    tls_self_signed: Option<PathBuf>,

    /// Additional host name or address for the generated certificate; repeatable
    #[arg(long = "tls-name", value_name = "NAME", conflicts_with_all = ["tls_cert", "tls_key"])]
    tls_names: Vec<String>,

    /// Use this certificate chain, in PEM form, instead of a generated one
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// Private key of --tls-cert, in PEM form
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

impl HttpsFlags {
    fn into_https(self) -> Option<Https> {
        let enabled = self.https.is_some()
            || self.tls_self_signed.is_some()
            || self.tls_cert.is_some()
            || !self.tls_names.is_empty();
        let certificate = match self.tls_cert.zip(self.tls_key) {
            Some((cert, key)) => Certificate::Files { cert, key },
            None => Certificate::SelfSigned {
                dir: self.tls_self_signed,
                names: self.tls_names,
            },
        };
        enabled.then_some(Https {
            listen: self.https.unwrap_or(DEFAULT_HTTPS),
            certificate,
        })
    }
}

impl Serve {
    fn builder(self) -> anyhow::Result<Builder> {
        let password = match self.password_file {
            None => "admin".to_owned(),
            Some(path) => cli::password(&path)?,
        };
        let settings = Settings {
            csrf_protection: self.csrf,
            sid_in_form: !self.strict_sid,
            ..Settings::default()
        };
        let settings = settings
            .patched(self.settings.into_iter().collect())
            .context("--setting")?;
        let mut builder = DsmSim::builder()
            .listen(self.listen)
            .control(self.control)
            .control_names(self.control_names)
            .state_dir(self.state_dir)
            .volumes(self.volumes)
            .export(self.export)
            .portals(self.portals)
            .account(self.account, password)
            .dsm(self.dsm)
            .model(self.model)
            .latency(self.latency)
            .uptime(Duration::from_secs(self.uptime))
            .settings(settings);
        if let Some(seed) = self.seed {
            builder = builder.seed(seed);
        }
        if let Some(frozen_at) = self.clock {
            builder = builder.clock(frozen_at);
        }
        if let Some(secret) = self.otp_secret {
            builder = builder.otp_secret(secret);
        }
        if let Some(https) = self.https.into_https() {
            builder = builder.https(https);
        }
        if let Some(path) = self.journal_file {
            builder = builder.journal_file(path);
        }
        Ok(builder)
    }
}

/// Parses `NAME=VALUE`. The value is JSON or a bare word.
fn parse_setting(text: &str) -> Result<(String, Value), String> {
    let parsed = text.split_once('=').and_then(|(name, value)| {
        // A bare word is a string without quotes.
        let word = || {
            let letter = |c: char| c.is_ascii_alphabetic() || c == '_';
            let word = !value.is_empty() && value.chars().all(letter);
            word.then(|| Value::from(value))
        };
        let value = serde_json::from_str(value).ok().or_else(word)?;
        Some((name.to_owned(), value))
    });
    parsed.ok_or_else(|| "say NAME=true, NAME=false, NAME=NUMBER or NAME=WORD".to_owned())
}

/// Every setting with its default, for `--help`.
fn settings_help() -> String {
    let all = serde_json::to_value(Settings::default()).unwrap_or_default();
    let rows = all.as_object().into_iter().flatten();
    let rows: Vec<String> = rows
        .map(|(name, value)| format!("  {name}={value}"))
        .collect();
    let rows = rows.join("\n");
    format!("Settings for --setting, with their defaults:\n{rows}")
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Serve(task) => serve(*task),
        Task::Diff(task) => return cli::diff(task),
        Task::Record(task) => cli::record(task),
        Task::Assumptions => assumptions(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dsm-sim: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(task: Serve) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&task.log_level).with_context(|| {
        format!(
            "--log-level {}: use error, warn, info, debug or trace",
            task.log_level
        )
    })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    // Install the signal handlers before anything is started, so that an early signal still shuts down cleanly.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut terminate, mut interrupt) = {
        let _guard = runtime.enter();
        (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        )
    };
    let (model, export) = (task.model.name, task.export);
    let nas = runtime.block_on(task.builder()?.start())?;
    let exported = match export {
        ExportKind::None => "LUNs are not exported",
        ExportKind::Loop => "LUNs are exported to node-sim",
        ExportKind::Tgt => "LUNs are exported by tgtd",
        ExportKind::Lio => "LUNs are exported by the kernel",
    };
    let https = match (nas.https(), nas.ca_file()) {
        (Some(https), Some(ca)) => format!(" and {https} (trust {})", ca.display()),
        (Some(https), None) => format!(" and {https}"),
        (None, _) => String::new(),
    };
    writeln!(
        io::stdout(),
        "A simulated {model} listens at {}{https}, its control port at {}; {exported}.",
        nas.api(),
        nas.control()
    )?;
    runtime.block_on(async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    });
    tracing::info!("stopping");
    drop(nas);
    Ok(())
}

fn assumptions() -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    for assumption in dsm_sim::assumptions::all() {
        writeln!(
            out,
            "{}:{}: {}",
            assumption.file, assumption.line, assumption.text
        )?;
    }
    Ok(())
}
