//! `node-sim`: makes, shows and clears a host root; and, under the name `iscsiadm`, is the host's `iscsiadm`.

use std::env;
use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use node_sim::initiator::host::Host;
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
            as_iscsiadm(&program)
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

fn as_iscsiadm(program: &Path) -> ExitCode {
    // <root>/bin/iscsiadm
    let Some(root) = program.parent().and_then(Path::parent) else {
        return fail("this iscsiadm is not in the bin folder of a host root");
    };
    let args: Result<Vec<String>, OsString> =
        env::args_os().skip(1).map(OsString::into_string).collect();
    match args {
        Ok(args) => ExitCode::from(iscsiadm::run(
            root,
            &args,
            &mut io::stdout().lock(),
            &mut io::stderr().lock(),
        )),
        Err(odd) => {
            let _ = writeln!(io::stderr(), "iscsiadm: not UTF-8: {}", odd.display());
            // ISCSI_ERR_INVAL
            ExitCode::from(7)
        }
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
        } => {
            let host = Host::init(&root, &targets, initiator_name.as_deref(), program)?;
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
