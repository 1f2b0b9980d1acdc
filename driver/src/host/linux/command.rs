//! Running programs: deadline, kill, and what becomes of a child that does not die.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Child;
use tokio::time::timeout;
use tracing::warn;

use super::exec::environment;
use super::nsenter::{self, Whose};
use crate::host::{Cmd, Exit, HostError};
use crate::in_flight;

/// How long a killed command has to go.
const KILL_TIMEOUT: Duration = Duration::from_secs(2);
/// As much of a command's output as is kept.
pub(super) const OUTPUT_LIMIT: usize = 256 << 10;

/// Runs a command to its end or its deadline; in the namespaces of `whose`, if it is another's.
/// It is looked for in `search`.
pub(super) async fn run(
    cmd: &Cmd,
    whose: Option<Whose>,
    search: &[PathBuf],
) -> Result<Exit, HostError> {
    let mut child = spawn(cmd, whose, search).map_err(|source| HostError::NotStarted {
        program: cmd.program,
        source,
    })?;
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let finish = async { tokio::join!(child.wait(), keep(out), keep(err)) };
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
        return match whose {
            Some(_) => entered(cmd, exit),
            None => Ok(exit),
        };
    }
    kill(&child);
    if timeout(KILL_TIMEOUT, child.wait()).await.is_err() {
        abandon(cmd, child);
    }
    Err(HostError::Overran {
        what: cmd.to_string(),
        limit: cmd.deadline,
    })
}

/// What a process that had to enter other namespaces first has come to.
fn entered(cmd: &Cmd, exit: Exit) -> Result<Exit, HostError> {
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
fn spawn(cmd: &Cmd, whose: Option<Whose>, search: &[PathBuf]) -> io::Result<Child> {
    let search = std::env::join_paths(search).map_err(io::Error::other)?;
    let mut command = match whose {
        None => tokio::process::Command::new(cmd.program),
        Some(whose) => {
            // This program itself: it enters, and the other takes its place under the same process number.
            let mut command = tokio::process::Command::new("/proc/self/exe");
            command.args(nsenter::arguments(whose, cmd.program));
            command
        }
    };
    command
        .args(&cmd.args)
        .env_clear()
        .envs(environment(search))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Its own group: a script's children go with it.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
}

fn kill(child: &Child) {
    if let Some(group) = child.id().and_then(|id| i32::try_from(id).ok()) {
        // It may have ended in this moment; then there is nobody to kill.
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
}

/// Leaves a child that does not die to a task that holds the volume's lock until it does.
fn abandon(cmd: &Cmd, mut child: Child) {
    let lock = in_flight::current();
    warn!(program = cmd.program, command = %cmd, "a host command cannot be killed and is abandoned; its volume stays locked");
    tokio::spawn(async move {
        let _ = child.wait().await;
        drop(lock);
    });
}

/// Reads to the end and keeps the beginning, so that a talkative program never waits for us.
async fn keep(pipe: Option<impl AsyncRead + Unpin>) -> String {
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
        entered(&Cmd::new(program, 1), exit)
    }

    /// design.md#whose-namespaces-the-driver-enters
    #[test]
    fn without_multipathd_there_is_one_path_and_a_pretender_is_an_error() {
        let daemon = |status, stderr| multipath::read_daemon(ended("multipathd", status, stderr));
        let missing = daemon(127, "nobody listens").unwrap();
        assert!(matches!(missing, multipath::Daemon::Missing));
        let pretends = daemon(125, "process 7 is in a pod").unwrap_err();
        assert!(
            matches!(&pretends, HostError::NoNamespaces { problem } if problem == "process 7 is in a pod"),
            "{pretends}"
        );
        let silent = daemon(1, "timeout receiving packet").unwrap();
        assert!(matches!(silent, multipath::Daemon::Silent(_)));
    }

    #[test]
    fn what_the_program_itself_says_is_kept() {
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
