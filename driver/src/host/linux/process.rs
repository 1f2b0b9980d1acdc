//! Which processes run on the host, read from `/proc`. EFFECT.
//!
//! A process name is no proof of identity (see [`super::trust`]). But if no process has a name, its program does not run.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::daemon::{self, Daemon, PROC};
use super::nsenter::{self, Namespaces};
use crate::host::{HostError, ProcessScope};

/// The initial PID namespace, the ancestor of all others (`PROC_PID_INIT_INO`).
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

/// See [`Host::runs`](crate::host::Host::runs).
pub(super) fn is_running(
    program: &str,
    who: ProcessScope,
    namespaces: Namespaces,
) -> Result<bool, HostError> {
    match (check_visible(namespaces), who, namespaces) {
        (Ok(()), ..) => {}
        (Err(_), ProcessScope::Host, Namespaces::Own) => return Ok(false),
        (Err(problem), ..) => return Err(HostError::NoNamespaces { problem }),
    }
    for number in processes_named(Path::new(PROC), program)? {
        if who == ProcessScope::Host && !is_daemon(Path::new(PROC), number, program) {
            continue;
        }
        // A driver outside of containers is a process of the host itself, so any process counts as the host's.
        let counts = match (who, namespaces) {
            (ProcessScope::Any, _) | (ProcessScope::Host, Namespaces::Own) => true,
            (ProcessScope::Host, Namespaces::Init | Namespaces::Iscsid) => {
                daemon::is_of_host(number).map_err(|error| HostError::NoNamespaces {
                    problem: error.into_text(),
                })?
            }
        };
        if counts {
            return Ok(true);
        }
    }
    Ok(false)
}

/// See [`Host::wake_iscsid`](crate::host::Host::wake_iscsid).
pub(super) fn wake_iscsid(namespaces: Namespaces) -> Result<bool, HostError> {
    daemon::try_connect(Daemon::Iscsid, namespaces != Namespaces::Own).map_err(|error| {
        HostError::NoNamespaces {
            problem: error.into_text(),
        }
    })
}

/// Checks that this `/proc` shows all processes of the host. The error is the reason and the remedy.
fn check_visible(namespaces: Namespaces) -> Result<(), String> {
    match namespaces {
        Namespaces::Init | Namespaces::Iscsid => {
            nsenter::check_init_is_not_us(Path::new(PROC)).map_err(daemon::Unverified::into_text)
        }
        Namespaces::Own => match fs::read_link(Path::new(PROC).join("self/ns/pid")) {
            Ok(own) if own == Path::new(INITIAL_PID_NAMESPACE) => Ok(()),
            Ok(_) => Err(
                "the driver sees the processes of its own container only: give the pod hostPID: true"
                    .to_owned(),
            ),
            Err(error) => Err(format!("the driver's own process namespace cannot be read ({error})")),
        },
    }
}

/// How often a process with an empty command line is polled: it is starting or ending.
const POLLS: u32 = 50;
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// False for a client if the daemon's program is also its client: `multipathd show daemon`, `multipathd -k'show daemon'`. Each
/// volume that is being staged may have one, and an administrator may run some, too.
fn is_daemon(proc: &Path, number: u32, program: &str) -> bool {
    let folder = proc.join(number.to_string());
    for _ in 0..POLLS {
        match fs::read(folder.join("cmdline")) {
            Ok(line) if line.is_empty() => {}
            Ok(line) => return !is_client_command(&line),
            Err(error) => return !has_ended(&error),
        }
        // The name appears before the command line, and disappears after it.
        if !fs::read_to_string(folder.join("status")).is_ok_and(|it| is_alive(&it, program)) {
            return false;
        }
        #[expect(clippy::disallowed_methods, reason = "a condition with a bound")]
        std::thread::sleep(POLL_INTERVAL);
    }
    true
}

/// True if the first argument is a client command; the daemon itself has only options, if any.
fn is_client_command(line: &[u8]) -> bool {
    let mut words = line.split(|byte| *byte == 0).skip(1);
    let first = words.next().filter(|word| !word.is_empty());
    first.is_some_and(|word| !word.starts_with(b"-") || word.starts_with(b"-k"))
}

/// The ids of the running processes with this name.
fn processes_named(proc: &Path, program: &str) -> Result<Vec<u32>, HostError> {
    let failed = |source| HostError::Io {
        doing: format!("checking whether {program} runs"),
        source,
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(proc).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let Some(number) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let status = proc.join(&name).join("status");
        match fs::read_to_string(status) {
            Ok(status) if is_alive(&status, program) => found.push(number),
            Ok(_) => {}
            Err(gone) if has_ended(&gone) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(found)
}

/// True if the error means that the process ended between two reads.
fn has_ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(nix::errno::Errno::ESRCH as i32)
}

/// Parses `/proc/N/status`: true if the name matches and the state is neither zombie nor dead.
fn is_alive(status: &str, program: &str) -> bool {
    let field = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(value.trim())
    };
    let ended = field("State:").is_some_and(|state| state.starts_with(['Z', 'X', 'x']));
    field("Name:") == Some(program) && !ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_found_by_its_name_until_it_ends() {
        let proc = tempfile::tempdir().unwrap();
        for (number, status) in [
            ("7", "Name:\tiscsiadm\nState:\tS (sleeping)\n"),
            ("8", "Name:\tiscsiadm\nState:\tZ (zombie)\n"),
            ("9", "Name:\tiscsiadm2\nState:\tR (running)\n"),
            ("self", "Name:\tiscsiadm\nState:\tR (running)\n"),
        ] {
            fs::create_dir(proc.path().join(number)).unwrap();
            fs::write(proc.path().join(number).join("status"), status).unwrap();
        }
        // It ended after the directory was listed.
        fs::create_dir(proc.path().join("10")).unwrap();
        assert_eq!(processes_named(proc.path(), "iscsiadm").unwrap(), [7]);
        assert!(
            processes_named(proc.path(), "multipathd")
                .unwrap()
                .is_empty()
        );
        assert!(processes_named(&proc.path().join("none"), "iscsiadm").is_err());
    }

    #[test]
    fn a_client_of_the_daemon_is_not_the_daemon() {
        let proc = tempfile::tempdir().unwrap();
        let folder = proc.path().join("7");
        fs::create_dir(&folder).unwrap();
        let put = |file: &str, text: &str| fs::write(folder.join(file), text).unwrap();
        for (state, line, daemon) in [
            ("S (sleeping)", "multipathd show daemon", false),
            ("S (sleeping)", "multipathd -kshow daemon", false),
            ("S (sleeping)", "/sbin/multipathd -d -s", true),
            ("S (sleeping)", "multipathd", true),
            // The command line stays empty: unknown, so it counts as the daemon. A zombie does not.
            ("S (sleeping)", "", true),
            ("Z (zombie)", "", false),
        ] {
            put("status", &format!("Name:\tmultipathd\nState:\t{state}\n"));
            let end = if line.is_empty() { "" } else { "\0" };
            put("cmdline", &(line.replace(' ', "\0") + end));
            let is = is_daemon(proc.path(), 7, "multipathd");
            assert_eq!(is, daemon, "{state} {line}");
        }
        assert!(!is_daemon(proc.path(), 8, "multipathd"), "it has ended");
    }
}
