//! `dsm-sim`: the simulator as a program.

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

/// A Synology NAS seen from its Web API, without a NAS.
///
/// Start it, then talk to it as to DSM:
///
///   dsm-sim serve --state-dir ./nas &
///
///   curl 'http://127.0.0.1:5000/webapi/query.cgi?api=SYNO.API.Info&version=1&method=query&query=all'
///
/// A second port has knobs for tests: faults, the journal of all calls, the clock, LUNs of somebody else.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run the NAS until Ctrl-C or SIGTERM. State is durable: kill it at any moment and start it again
    Serve(Box<Serve>),
    /// Ask a NAS what it can be asked without changing it, and tell where the simulator would answer otherwise
    Diff(cli::Diff),
    /// Stand between a client and a NAS, and write down what they say, without secrets
    Record(cli::Record),
    /// Print every guess about DSM that no evidence backs yet
    Assumptions,
}

#[derive(Args)]
#[command(after_help = switches_help())]
struct Serve {
    /// Where the DSM Web API listens; port 0 takes any free port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:5000")]
    listen: SocketAddr,

    /// Where the control port listens: GET / on it lists the knobs
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:5080")]
    control: SocketAddr,

    /// A name under which the control port may be asked, besides addresses and localhost; may be given several times. It has
    /// no login, so no other name is answered: a web page could have made it lead there
    #[arg(long = "control-name", value_name = "NAME")]
    control_names: Vec<String>,

    /// Folder for state, LUN files and exports; made when missing
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,

    /// A volume, as PATH=FILESYSTEM:SIZE or PATH=FILESYSTEM:SIZE:STATUS, with btrfs or ext4 and any word of DSM's
    /// (attention, background, crashed …); may be given several times
    #[arg(
        long = "volume",
        value_name = "VOLUME",
        default_value = "/volume1=btrfs:2TiB"
    )]
    volumes: Vec<VolumeSpec>,

    /// How LUNs become block devices: none; loop (node-sim's iscsiadm on this machine); or real iSCSI, by tgt (a tgtd of
    /// its own; needs the package tgt) or by lio (this kernel's target; needs root, configfs, target_core_mod). What
    /// tgtd or the kernel was given is taken back at the end; after a kill -9 it lives on until the next start, which
    /// makes it follow the state again
    #[arg(long, value_name = "KIND", default_value = "none")]
    export: ExportKind,

    /// Where targets listen: IP:PORT, several with commas or by giving it several times. The first one's port is what the
    /// Web API tells
    #[arg(
        long = "portal",
        value_name = "ADDRESS",
        value_delimiter = ',',
        default_value = "127.0.0.1:3260"
    )]
    portals: Vec<SocketAddr>,

    /// The account, an administrator; the control port takes more
    #[arg(long, value_name = "NAME", default_value = "admin")]
    account: String,

    /// The base32 secret of the account's second factor (RFC 6238, 6 digits, 30 s); at least 128 bits
    #[arg(long, value_name = "SECRET")]
    otp_secret: Option<String>,

    /// File with the account's password; without it the password is "admin"
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,

    /// The release of DSM: 6.2, 7.0 … 7.4; 6 and 7 mean 6.2 and 7.2
    #[arg(long, value_name = "VERSION", default_value = "7")]
    dsm: Dsm,

    /// The model, which decides how many LUNs and targets fit; "unlimited" is none that can be bought
    #[arg(long, value_name = "NAME", default_value = "DS923+")]
    model: Model,

    /// How long calls take: instant, or ds918 as measured on a DS918+
    #[arg(long, value_name = "TIMING", default_value = "instant")]
    latency: Latency,

    /// Draw uuids and session ids from this seed: the same calls then have the same answers, byte for byte with --clock
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,

    /// Let the NAS's clock stand still at this moment until POST /clock moves it: milliseconds since 1970
    #[arg(long, value_name = "MS")]
    clock: Option<u64>,

    /// How many seconds the NAS has been up when this starts; SYNO.Core.System tells it
    #[arg(long, value_name = "SECONDS", default_value_t = 360_000)]
    uptime: u64,

    /// Switch CSRF protection on: calls must carry the login's SynoToken
    #[arg(long)]
    csrf: bool,

    /// Refuse _sid in a form body, as jt measured on DSM 7.1.1
    #[arg(long)]
    strict_sid: bool,

    /// Turn a switch, as NAME=VALUE: they are listed below, and explained in docs/knobs.md; PATCH /settings on the control port
    /// turns them later; may be given several times
    #[arg(long = "setting", value_name = "SWITCH", value_parser = switch)]
    switches: Vec<(String, Value)>,

    /// Also append the journal to this file, one JSON object a line. At 64 MiB it is renamed to FILE.1, in the place of the one
    /// before, and begins anew
    #[arg(long, value_name = "FILE")]
    journal_file: Option<PathBuf>,

    /// What is logged on stderr: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: String,

    #[command(flatten)]
    https: HttpsFlags,
}

/// Where HTTPS listens unless told otherwise.
const HTTPS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 5001);

#[derive(Args)]
#[command(next_help_heading = "HTTPS (off unless one of these is given)")]
struct HttpsFlags {
    /// Answer HTTPS here too, 127.0.0.1:5001 unless told otherwise; port 0 takes any free port
    #[arg(long, value_name = "ADDRESS")]
    https: Option<SocketAddr>,

    /// Where the certificate is kept: ca.pem (for clients to trust), cert.pem and key.pem. They are made on the first start,
    /// by a private CA, for localhost, 127.0.0.1 and ::1. Without this it is the folder "tls" in --state-dir
    #[arg(long, value_name = "DIR", conflicts_with_all = ["tls_cert", "tls_key"])]
    tls_self_signed: Option<PathBuf>,

    /// A name or address besides those that the made certificate is for; may be given several times
    #[arg(long = "tls-name", value_name = "NAME", conflicts_with_all = ["tls_cert", "tls_key"])]
    tls_names: Vec<String>,

    /// A certificate of your own in PEM form, with its chain
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// Its key in PEM form
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
}

impl HttpsFlags {
    fn asked(self) -> Option<Https> {
        let asked = self.https.is_some()
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
        asked.then_some(Https {
            listen: self.https.unwrap_or(HTTPS),
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
            .patched(self.switches.into_iter().collect())
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
        if let Some(moment) = self.clock {
            builder = builder.clock(moment);
        }
        if let Some(secret) = self.otp_secret {
            builder = builder.otp_secret(secret);
        }
        if let Some(https) = self.https.asked() {
            builder = builder.https(https);
        }
        if let Some(path) = self.journal_file {
            builder = builder.journal_file(path);
        }
        Ok(builder)
    }
}

/// `NAME=VALUE`, the value in JSON, or a bare word.
fn switch(text: &str) -> Result<(String, Value), String> {
    let parsed = text.split_once('=').and_then(|(name, value)| {
        // A word is a text without quotes.
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

/// Every switch, as it is unless it is turned.
fn switches_help() -> String {
    let all = serde_json::to_value(Settings::default()).unwrap_or_default();
    let rows = all.as_object().into_iter().flatten();
    let rows: Vec<String> = rows
        .map(|(name, value)| format!("  {name}={value}"))
        .collect();
    let rows = rows.join("\n");
    format!("Switches for --setting, and what they are unless they are turned:\n{rows}")
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
            "--log-level {}: say error, warn, info, debug or trace",
            task.log_level
        )
    })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    // Signals are caught before anything is started, so that an early one still ends it cleanly.
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
        "A simulated {model} answers at {}{https}, its control port at {}; {exported}.",
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
