//! Simulates the client of a `multipathd` that creates no maps: the output that a driver must understand then. Creating maps
//! needs device-mapper, which test beds with loop devices do not use; the VM has the real one.
//!
//! | state | what the client does | source |
//! |---|---|---|
//! | [`State::StoppedSilent`] | status 1, no output | multipath-tools 0.9.4, run |
//! | [`State::Stopped`] | status 1, `ERROR: failed to connect to multipathd` | opensvc/multipath-tools, `multipathd/uxclnt.c`, since 0.11 |
//! | [`State::StoppedBanner`] | the same after three lines about a missing configuration | Red Hat's device-mapper-multipath, in bug reports with `multipath -ll` |
//! | [`State::Hung`] | status 1, `timeout receiving packet` | 0.9.4, run with a stopped daemon |
//! | [`State::Excluding`] | runs; lists no path; `add path` is `blacklisted`, status 1 | 0.9.4, run with a `blacklist` |
//! | [`State::Failing`] | runs; lists no path; every `add` is `fail`, status 1 | 0.9.4; ASSUMED: as with a kernel without dm-multipath |

use std::io::{self, Write};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// State of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Not installed: there is no program.
    Absent,
    /// Installed but not running; the client prints nothing.
    StoppedSilent,
    /// Installed but not running; the client prints that it cannot connect.
    Stopped,
    /// As `Stopped`, after a banner about a missing configuration.
    StoppedBanner,
    /// Running, but it does not answer.
    Hung,
    /// Running, but its configuration excludes the disks.
    Excluding,
    /// Running, but it fails to create maps.
    Failing,
}

const CANNOT_CONNECT: &str = "ERROR: failed to connect to multipathd\n";
const BANNER: &str = "/etc/multipath.conf does not exist, blacklisting all devices.\n\
     You can run \"/sbin/mpathconf --enable\" to create\n\
     /etc/multipath.conf. See man mpathconf(8) for more details\n";

/// Runs `multipathd` in the state that was set for its host root. Returns the exit status.
pub fn run(
    state: io::Result<State>,
    args: &[String],
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let result = match state {
        Ok(state) => reply(state, args),
        Err(error) => (2, String::new(), format!("node-sim: {error}\n")),
    };
    let (status, stdout, stderr) = result;
    // Ignore write errors: the reader may be gone.
    let _: io::Result<()> = out.write_all(stdout.as_bytes());
    let _: io::Result<()> = err.write_all(stderr.as_bytes());
    status
}

/// Exit status, stdout and stderr.
fn reply(state: State, args: &[String]) -> (u8, String, String) {
    let to_stderr = |text: &str| (1, String::new(), text.to_owned());
    let to_stdout = |status, text: &str| (status, text.to_owned(), String::new());
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match (state, words.as_slice()) {
        (State::Absent | State::StoppedSilent, _) => to_stderr(""),
        (State::Stopped, _) => to_stderr(CANNOT_CONNECT),
        (State::StoppedBanner, _) => to_stderr(&format!("{BANNER}{CANNOT_CONNECT}")),
        (State::Hung, _) => to_stderr("timeout receiving packet\n"),
        (_, ["show", "daemon"]) => to_stdout(0, "pid 375 idle\n"),
        (_, ["show", "paths", "raw", "format", _]) => to_stdout(0, ""),
        (State::Excluding, ["add", "path", _]) => to_stdout(1, "blacklisted\n"),
        (
            _,
            [
                "add" | "resize" | "disablequeueing" | "restorequeueing",
                "path" | "map",
                _,
            ],
        ) => to_stdout(1, "fail\n"),
        (_, other) => to_stderr(&format!(
            "node-sim: multipathd command {:?} is not simulated\n",
            other.join(" ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_line(state: State, line: &str) -> (u8, String, String) {
        let args: Vec<String> = line.split(' ').map(str::to_owned).collect();
        reply(state, &args)
    }

    #[test]
    fn the_client_of_a_stopped_daemon_exits_with_1() {
        for (state, message) in [
            (State::StoppedSilent, ""),
            (State::Stopped, "failed to connect"),
            (State::StoppedBanner, "mpathconf --enable"),
            (State::Hung, "timeout receiving packet"),
        ] {
            let (status, out, stderr) = run_line(state, "show daemon");
            assert_eq!((status, out.as_str()), (1, ""), "{state:?}");
            assert!(stderr.contains(message), "{state:?}: {stderr}");
        }
    }

    #[test]
    fn a_running_daemon_replies_and_creates_nothing() {
        for (state, message) in [
            (State::Excluding, "blacklisted\n"),
            (State::Failing, "fail\n"),
        ] {
            assert_eq!(run_line(state, "show daemon").0, 0);
            assert_eq!(run_line(state, "show paths raw format %d").1, "");
            let (status, out, _) = run_line(state, "add path sdb");
            assert_eq!((status, out.as_str()), (1, message));
            assert_eq!(run_line(state, "add map 360").0, 1);
            assert!(run_line(state, "reconfigure").2.contains("reconfigure"));
        }
    }
}
