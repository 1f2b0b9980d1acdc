//! Runs external programs, each under a lock and with a timeout. All programs of node-sim are started here.

use std::io;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::store::Lock;

/// Timeout of a program; milliseconds are normal.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Runs a program and returns its stdout. The lock is held until the program has ended, even if this process ends before.
///
/// # Errors
/// It cannot be started, fails (the error contains its stderr), or was killed after the timeout.
pub(crate) fn run(
    lock: &Lock,
    program: &str,
    args: &[&str],
    env: &[(&str, &str)],
) -> io::Result<String> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that starts programs"
    )]
    let mut command = Command::new(program);
    // Messages are parsed, so they must not be translated.
    command
        .args(args)
        .env("LC_ALL", "C")
        .envs(env.iter().copied())
        .stdin(lock.share()?)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let command_line = format!("{program} {}", redacted(args).join(" "));
    let child = command
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("{command_line}: {error}")))?;
    let pid = child.id();
    let (send, receive) = mpsc::channel();
    thread::spawn(move || send.send(child.wait_with_output()));
    let Ok(ended) = receive.recv_timeout(TIMEOUT) else {
        // Do not wait for it: a program that hangs in the kernel may survive even SIGKILL.
        let _ = i32::try_from(pid).map(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL));
        return Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("{command_line}: timed out after {} s", TIMEOUT.as_secs()),
        ));
    };
    let ended = ended?;
    if ended.status.success() {
        return Ok(String::from_utf8_lossy(&ended.stdout).into_owned());
    }
    Err(io::Error::other(format!(
        "{command_line}: {}",
        String::from_utf8_lossy(&ended.stderr).trim()
    )))
}

/// Polls a condition until it holds or the timeout is over. Returns whether it held.
///
/// # Errors
/// The condition could not be evaluated.
pub(crate) fn until(
    timeout: Duration,
    mut holds: impl FnMut() -> io::Result<bool>,
) -> io::Result<bool> {
    let end = Instant::now() + timeout;
    loop {
        if holds()? {
            return Ok(true);
        }
        if Instant::now() > end {
            return Ok(false);
        }
        #[expect(clippy::disallowed_methods, reason = "a condition with a bound")]
        thread::sleep(Duration::from_millis(20));
    }
}

/// The arguments for an error message, with the value of `--password` hidden.
fn redacted<'a>(args: &[&'a str]) -> Vec<&'a str> {
    let previous = std::iter::once("").chain(args.iter().copied());
    args.iter()
        .zip(previous)
        .map(|(arg, previous)| {
            if previous == "--password" {
                "********"
            } else {
                *arg
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_contains_the_command_without_its_password() {
        let dir = tempfile::tempdir().unwrap();
        let lock = Lock::take(&dir.path().join("lock")).unwrap();
        let error = run(&lock, "ls", &["--password", "hush", "/"], &[])
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("ls --password ******** /: "), "{error}");
        assert!(!error.contains("hush"), "{error}");
        assert_eq!(
            run(&lock, "printenv", &["A"], &[("A", "b")]).unwrap(),
            "b\n"
        );
        assert!(run(&lock, "no-such-program", &[], &[]).is_err());
    }
}
