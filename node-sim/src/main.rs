//! `node-sim`: makes, shows and clears a host root; and, under the names `iscsiadm` and `multipathd`, is the host's.

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

/// Stands in for open-iscsi on a host: an `iscsiadm` that attaches loop devices, and the /sys and /etc/iscsi to go with it.
///
/// A program under test gets DIR/bin first on its PATH and reads DIR/sys and DIR/etc/iscsi instead of /sys and /etc/iscsi;
/// /dev and /proc are the real ones. Attaching needs root and loop devices.
#[derive(Debug, Parser)]
#[command(name = "node-sim", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a host root, or bring one up to date.
    Init {
        /// The host root; made when missing.
        #[arg(long, value_name = "DIR")]
        root: PathBuf,
        /// The folder of targets that this host can reach (a NAS simulator's `targets`); more than one NAS: repeat.
        #[arg(long, value_name = "DIR", required = true)]
        targets: Vec<PathBuf>,
        /// Default: the one it has, or a new one of its own.
        #[arg(long, value_name = "IQN")]
        initiator_name: Option<String>,
        /// How long iscsiadm waits for the lock of its database that somebody who was killed has left. Default: what it was, and
        /// 30 s as open-iscsi.
        #[arg(long, value_name = "MILLISECONDS")]
        lock_wait: Option<u64>,
        /// Such a lock stays, as since open-iscsi 2.1.10; with --lock-wait.
        #[arg(long, requires = "lock_wait")]
        stays_locked: bool,
        /// The initiator has no name, as in an image (GenerateName=yes), until iscsid is called.
        #[arg(long, conflicts_with = "initiator_name")]
        unnamed: bool,
        /// How multipathd is on this host. Default: as it was, and not installed.
        #[arg(long, value_enum)]
        multipathd: Option<State>,
    },
    /// Listen where iscsid does, in this network namespace, and start it for whoever calls, as systemd does: the initiator gets a name.
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
        /// For machines.
        #[arg(long)]
        json: bool,
    },
    /// Log out of everything and free all loop devices of this root, also what killed commands have left. Records stay.
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
            as_tool(&program, "multipathd", |root, args, out, err| {
                multipathd::run(Host::at(root).multipathd(), args, out, err)
            })
        }
        Ok(program) => match run(Cli::parse().command, &program) {
            Ok(text) => {
                let _ = writeln!(io::stdout(), "{text}");
                ExitCode::SUCCESS
            }
            Err(wrong) => fail(&wrong.to_string()),
        },
        Err(wrong) => fail(&format!("cannot tell my own name: {wrong}")),
    }
}

/// A tool of the host: its root, its arguments, and where it writes.
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
        Err(odd) => {
            let _ = writeln!(io::stderr(), "{name}: not UTF-8: {}", odd.display());
            // ISCSI_ERR_INVAL
            ExitCode::from(7)
        }
    }
}

/// Where iscsid listens (open-iscsi/open-iscsi: usr/mgmt_ipc.c).
const ISCSID: &[u8] = b"ISCSIADM_ABSTRACT_NAMESPACE";

fn listen_for_iscsid(host: &Host) -> io::Result<String> {
    let socket = UnixListener::bind_addr(&SocketAddr::from_abstract_name(ISCSID)?)?;
    loop {
        // What the caller asks is answered by nobody.
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
                host.unname()?;
            }
            if let Some(state) = multipathd {
                host.set_multipathd(state, program)?;
            }
            if let Some(lock_wait) = lock_wait {
                host.set_patience(lock_wait, stays_locked)?;
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
