//! Runs programs. The only place in this crate that does: each program runs under a lock and has a deadline.

use std::io;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::store::Lock;

/// Deadline of a program; milliseconds are normal.
const DEADLINE: Duration = Duration::from_secs(20);

/// Runs a program to completion and returns its standard output. The lock is held until the program has ended, even if this
/// process ends before.
///
/// # Errors
/// It cannot be started, fails (the error has its standard error), or overran its deadline and was killed.
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
    // Messages are matched, so they must not be translated.
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
    let Ok(output) = receive.recv_timeout(DEADLINE) else {
        // Do not wait for it: a program that hangs in the kernel may survive even SIGKILL.
        let _ = i32::try_from(pid).map(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL));
        return Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!(
                "{command_line}: did not end within {} s",
                DEADLINE.as_secs()
            ),
        ));
    };
    let output = output?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(io::Error::other(format!(
        "{command_line}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    )))
}

/// Polls `holds` until it returns true or the deadline is over. Returns false after the deadline.
///
/// # Errors
/// Those of `holds`.
pub(crate) fn until(
    deadline: Duration,
    mut holds: impl FnMut() -> io::Result<bool>,
) -> io::Result<bool> {
    let end = Instant::now() + deadline;
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

/// The arguments for an error message, with the value of `--password` masked.
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
    fn an_error_has_the_command_without_its_password() {
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
