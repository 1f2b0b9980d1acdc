//! Runs programs with a deadline, kills them when they overrun it, and abandons a child that cannot be killed.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Child;
use tokio::time::timeout;
use tracing::warn;

use super::nsenter::{self, NamespaceOwner};
use crate::host::{Cmd, Exit, HostError};
use crate::in_flight;

/// How long to wait for a killed command to end.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);
/// Maximum of each of a command's output streams that is kept, in bytes.
pub(super) const OUTPUT_LIMIT: usize = 256 << 10;

/// Runs a command to its end or its deadline. The program is looked up in `search_path`, or runs in the namespaces of `owner`.
pub(super) async fn run(
    cmd: &Cmd,
    owner: Option<NamespaceOwner>,
    search_path: &[PathBuf],
) -> Result<Exit, HostError> {
    let mut child = spawn(cmd, owner, search_path).map_err(|source| HostError::NotStarted {
        program: cmd.program,
        source,
    })?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let finish = async { tokio::join!(child.wait(), read_capped(out), read_capped(err)) };
    if let Ok((status, stdout, stderr)) = timeout(cmd.deadline, finish).await {
        let status = status.map_err(|source| HostError::Io {
            doing: format!("waiting for {}", cmd.program),
            source,
        })?;
        let exit = Exit {
            status: number(status),
            stdout,
            stderr,
        };
        return match owner {
            Some(_) => exit_of_entered(cmd, exit),
            None => Ok(exit),
        };
    }
    kill(&child);
    if timeout(KILL_TIMEOUT, child.wait()).await.is_err() {
        abandon(cmd, child);
    }
    Err(HostError::DeadlineExceeded {
        what: cmd.to_string(),
        limit: cmd.deadline,
    })
}

/// Interprets the exit of a process that had to enter other namespaces first.
fn exit_of_entered(cmd: &Cmd, exit: Exit) -> Result<Exit, HostError> {
    let problem = || exit.stderr.trim_end().to_owned();
    match u8::try_from(exit.status) {
        Ok(nsenter::FAILED) => Err(HostError::NoNamespaces { problem: problem() }),
        Ok(nsenter::EXIT_NOT_FOUND) => Err(HostError::NotStarted {
            program: cmd.program,
            source: io::Error::new(io::ErrorKind::NotFound, problem()),
        }),
        _ => Ok(exit),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "this is the one place that starts programs, with a deadline"
)]
fn spawn(cmd: &Cmd, owner: Option<NamespaceOwner>, search_path: &[PathBuf]) -> io::Result<Child> {
    let search_path = std::env::join_paths(search_path).map_err(io::Error::other)?;
    let mut command = match owner {
        None => tokio::process::Command::new(cmd.program),
        Some(owner) => {
            // This program itself: it enters the namespaces and then calls exec(), so the process id stays the same.
            let mut command = tokio::process::Command::new("/proc/self/exe");
            command.args(nsenter::arguments(owner, cmd.program));
            command
        }
    };
    command
        .args(&cmd.args)
        .env_clear()
        .envs(environment(search_path))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Its own process group, so that a script's children are killed with it.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

/// Replaces this process with a program, like exec(3). Returns only on failure.
#[expect(
    clippy::disallowed_methods,
    reason = "the program replaces this process, which has a deadline"
)]
pub(super) fn exec(path: &Path, args: &[OsString], search_path: &str) -> io::Error {
    std::process::Command::new(path)
        .args(args)
        .env_clear()
        .envs(environment(search_path.into()))
        .exec()
}

/// The whole environment of a program. The driver's own environment must not leak, least of all into other namespaces, and some
/// tools take paths to read and write from it (`MKE2FS_CONFIG`, `BLKID_FILE`, `LIBMOUNT_FSTAB`).
fn environment(search_path: OsString) -> [(&'static str, OsString); 2] {
    // English messages, and unescaped non-ASCII paths: in plain C some tools escape them.
    [("PATH", search_path), ("LC_ALL", "C.UTF-8".into())]
}

fn kill(child: &Child) {
    if let Some(group) = child.id().and_then(|id| i32::try_from(id).ok()) {
        // It may have just ended: then there is nothing to kill.
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
}

/// Hands a child that cannot be killed to a task that holds the volume's lock until the child ends.
fn abandon(cmd: &Cmd, mut child: Child) {
    let lock = in_flight::current();
    warn!(program = cmd.program, command = %cmd, "a host command cannot be killed and is abandoned; its volume stays locked");
    tokio::spawn(async move {
        let _ = child.wait().await;
        drop(lock);
    });
}

/// Reads to the end and keeps the first [`OUTPUT_LIMIT`] bytes, so that the program never blocks on a full pipe.
async fn read_capped(pipe: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut pipe) = pipe else {
        return String::new();
    };
    let (mut kept, mut chunk) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = pipe.read(&mut chunk).await {
        let room = OUTPUT_LIMIT.saturating_sub(kept.len());
        kept.extend_from_slice(&chunk[..count.min(room)]);
    }
    String::from_utf8_lossy(&kept).into_owned()
}

fn number(status: ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::multipath;

    fn ended(program: &'static str, status: i32, stderr: &str) -> Result<Exit, HostError> {
        let exit = Exit {
            status,
            stderr: format!("{stderr}\n"),
            ..Exit::default()
        };
        exit_of_entered(&Cmd::new(program, 1), exit)
    }

    /// design.md#whose-namespaces-the-driver-enters
    #[test]
    fn a_missing_multipathd_is_not_an_error_but_an_unverified_one_is() {
        let daemon = |status, stderr| multipath::read_daemon(ended("multipathd", status, stderr));
        let missing = daemon(127, "nobody listens").unwrap();
        assert!(matches!(missing, multipath::Daemon::Missing));
        let unverified = daemon(125, "process 7 is in a pod").unwrap_err();
        assert!(
            matches!(&unverified, HostError::NoNamespaces { problem } if problem == "process 7 is in a pod"),
            "{unverified}"
        );
        let silent = daemon(1, "timeout receiving packet").unwrap();
        assert!(matches!(silent, multipath::Daemon::Silent(_)));
    }

    #[test]
    fn the_exit_status_of_the_program_itself_is_kept() {
        for status in [0, 1, 21, 124, 126, 137] {
            assert_eq!(ended("iscsiadm", status, "").unwrap().status, status);
        }
        assert!(matches!(
            ended("iscsiadm", 127, "iscsiadm is in none of"),
            Err(HostError::NotStarted {
                program: "iscsiadm",
                ..
            })
        ));
    }
}
