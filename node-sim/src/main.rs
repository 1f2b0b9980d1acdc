//! `node-sim`: creates, shows and cleans up a host root. If it is run under the name `iscsiadm` or `multipathd`, it is that tool
//! of the host root.

use std::env;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use node_sim::initiator::host::Host;
use node_sim::initiator::multipathd::{self, State};
use node_sim::initiator::{iscsiadm, report};

/// Replaces open-iscsi on a host: an `iscsiadm` that attaches loop devices, with matching /sys and /etc/iscsi.
///
/// Run the program under test with DIR/bin first on its PATH, and make it read DIR/sys and DIR/etc/iscsi instead of /sys and
/// /etc/iscsi. /dev and /proc are the real ones. Attaching needs root and loop devices.
#[derive(Debug, Parser)]
#[command(name = "node-sim", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a host root, or update one.
    Init {
        /// The host root; created if missing.
        #[arg(long, value_name = "DIR")]
        root: PathBuf,
        /// The folder of targets that this host can reach (a NAS simulator's `targets`); more than one NAS: repeat.
        #[arg(long, value_name = "DIR", required = true)]
        targets: Vec<PathBuf>,
        /// Default: the existing name, or a new one.
        #[arg(long, value_name = "IQN")]
        initiator_name: Option<String>,
        /// How long iscsiadm waits for a stale lock of its database. Default: unchanged; for a new host root 30 s, as in
        /// open-iscsi.
        #[arg(long, value_name = "MILLISECONDS")]
        lock_wait: Option<u64>,
        /// A stale lock is never removed, as since open-iscsi 2.1.10; with --lock-wait.
        #[arg(long, requires = "lock_wait")]
        stays_locked: bool,
        /// The initiator has no name, as in an OS image (GenerateName=yes), until iscsid is started.
        #[arg(long, conflicts_with = "initiator_name")]
        unnamed: bool,
        /// The state of multipathd on this host. Default: unchanged; for a new host root not installed.
        #[arg(long, value_enum)]
        multipathd: Option<State>,
    },
    /// Listen on iscsid's socket in this network namespace and start iscsid on each connection, as systemd does. Starting it
    /// gives the initiator a name.
    Iscsid {
        /// The host root.
        #[arg(long, value_name = "DIR")]
        root: PathBuf,
    },
    /// Show sessions, their loop devices and files, and node records. Changes nothing.
    Status {
        /// The host root.
        #[arg(long, value_name = "DIR")]
        root: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Log out of all sessions and free all loop devices of this root, including those of killed commands. Records stay.
    Cleanup {
        /// The host root.
        #[arg(long, value_name = "DIR")]
        root: PathBuf,
    },
}

fn main() -> ExitCode {
    match env::current_exe() {
        Ok(program) if program.file_name().is_some_and(|name| name == "iscsiadm") => {
            as_tool(&program, "iscsiadm", iscsiadm::run)
        }
        Ok(program) if program.file_name().is_some_and(|name| name == "multipathd") => {
            as_tool(&program, "multipathd", multipathd::run)
        }
        Ok(program) => match run(Cli::parse().command, &program) {
            Ok(text) => {
                let _ = writeln!(io::stdout(), "{text}");
                ExitCode::SUCCESS
            }
            Err(error) => fail(&error.to_string()),
        },
        Err(error) => fail(&format!(
            "cannot determine the path of this program: {error}"
        )),
    }
}

/// A tool of the host. Takes the host root, the arguments, standard output and standard error; returns the exit status.
type Tool = fn(&Path, &[String], &mut dyn io::Write, &mut dyn io::Write) -> u8;

fn as_tool(program: &Path, name: &str, tool: Tool) -> ExitCode {
    // <root>/bin/<name>
    let Some(root) = program.parent().and_then(Path::parent) else {
        return fail(&format!(
            "this {name} is not in the bin folder of a host root"
        ));
    };
    let args: Result<Vec<String>, OsString> =
        env::args_os().skip(1).map(OsString::into_string).collect();
    match args {
        Ok(args) => {
            let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
            ExitCode::from(tool(root, &args, &mut out, &mut err))
        }
        Err(invalid) => {
            let _ = writeln!(io::stderr(), "{name}: not UTF-8: {}", invalid.display());
            // ISCSI_ERR_INVAL
            ExitCode::from(7)
        }
    }
}

/// The name of iscsid's abstract socket (open-iscsi/open-iscsi: usr/mgmt_ipc.c).
const ISCSID: &[u8] = b"ISCSIADM_ABSTRACT_NAMESPACE";

fn listen_for_iscsid(host: &Host) -> io::Result<String> {
    let socket = UnixListener::bind_addr(&SocketAddr::from_abstract_name(ISCSID)?)?;
    loop {
        // The client's request is not answered.
        drop(socket.accept()?);
        host.start_iscsid()?;
    }
}

fn run(command: Command, program: &Path) -> io::Result<String> {
    match command {
        Command::Init {
            root,
            targets,
            initiator_name,
            lock_wait,
            stays_locked,
            unnamed,
            multipathd,
        } => {
            let host = Host::init(&root, &targets, initiator_name.as_deref(), program)?;
            if unnamed {
                host.remove_initiator_name()?;
            }
            if let Some(state) = multipathd {
                host.set_multipathd(state, program)?;
            }
            if let Some(lock_wait) = lock_wait {
                host.set_lock_wait(lock_wait, stays_locked)?;
            }
            let bin = host.root().join("bin");
            Ok(format!(
                "Host root {} is ready; put {} first on PATH.",
                host.root().display(),
                bin.display()
            ))
        }
        Command::Iscsid { root } => listen_for_iscsid(&Host::at(&root)),
        Command::Status { root, json } => {
            let status = report::status(&Host::at(&root))?;
            if json {
                Ok(serde_json::to_string_pretty(&status)?)
            } else {
                Ok(status.table())
            }
        }
        Command::Cleanup { root } => match report::cleanup(&Host::at(&root))? {
            0 => Ok("Nothing to clean up.".to_owned()),
            1 => Ok("1 session logged out.".to_owned()),
            many => Ok(format!("{many} sessions logged out.")),
        },
    }
}

fn fail(text: &str) -> ExitCode {
    let _ = writeln!(io::stderr(), "node-sim: {text}");
    ExitCode::FAILURE
}
