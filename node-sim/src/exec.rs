//! The one place that starts programs: each on behalf of the holder of a lock, each with a deadline.

use std::io;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::store::Lock;

/// Longest that a program may take; milliseconds are normal.
const DEADLINE: Duration = Duration::from_secs(20);

/// Runs a program to its end and answers what it printed. The lock is held until it has ended, even if we end before.
///
/// # Errors
/// It cannot be started, reports failure (the error holds what it said), or overran its deadline and was killed.
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
    // Messages are looked at, so they must not be translated.
    command
        .args(args)
        .env("LC_ALL", "C")
        .envs(env.iter().copied())
        .stdin(lock.share()?)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let said = format!("{program} {}", shown(args).join(" "));
    let child = command
        .spawn()
        .map_err(|wrong| io::Error::new(wrong.kind(), format!("{said}: {wrong}")))?;
    let pid = child.id();
    let (send, receive) = mpsc::channel();
    thread::spawn(move || send.send(child.wait_with_output()));
    let Ok(ended) = receive.recv_timeout(DEADLINE) else {
        // Not waited for: a program that hangs in the kernel may outlive even this.
        let _ = i32::try_from(pid).map(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL));
        return Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("{said}: no end after {} s", DEADLINE.as_secs()),
        ));
    };
    let ended = ended?;
    if ended.status.success() {
        return Ok(String::from_utf8_lossy(&ended.stdout).into_owned());
    }
    Err(io::Error::other(format!(
        "{said}: {}",
        String::from_utf8_lossy(&ended.stderr).trim()
    )))
}

/// Asks again and again until it holds, or the deadline is over; answers whether it held.
///
/// # Errors
/// Asking failed.
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

/// The arguments as an error may show them: without what follows `--password`.
fn shown<'a>(args: &[&'a str]) -> Vec<&'a str> {
    let before = std::iter::once("").chain(args.iter().copied());
    args.iter()
        .zip(before)
        .map(|(arg, before)| {
            if before == "--password" {
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
    fn a_failure_is_told_with_the_command_and_without_its_password() {
        let dir = tempfile::tempdir().unwrap();
        let lock = Lock::take(&dir.path().join("lock")).unwrap();
        let wrong = run(&lock, "ls", &["--password", "hush", "/"], &[])
            .unwrap_err()
            .to_string();
        assert!(wrong.starts_with("ls --password ******** /: "), "{wrong}");
        assert!(!wrong.contains("hush"), "{wrong}");
        assert_eq!(
            run(&lock, "printenv", &["A"], &[("A", "b")]).unwrap(),
            "b\n"
        );
        assert!(run(&lock, "no-such-program", &[], &[]).is_err());
    }
}
