//! Simulates the `multipathd` client in states in which the daemon creates no map, because a driver must handle these. Maps need
//! a device-mapper, which is not simulated; the VM tests use the real multipathd.
//!
//! | state | what the client does | source |
//! |---|---|---|
//! | [`State::StoppedSilent`] | status 1, no output | multipath-tools 0.9.4, run |
//! | [`State::Stopped`] | status 1, `ERROR: failed to connect to multipathd` | opensvc/multipath-tools, `multipathd/uxclnt.c`, since 0.11 |
//! | [`State::StoppedBanner`] | the same, after three lines about a missing configuration | Red Hat's device-mapper-multipath, in users' reports of `multipath -ll` |
//! | [`State::Hung`] | status 1, `timeout receiving packet` | 0.9.4, run with a stopped daemon |
//! | [`State::Excluding`] | runs; lists no path; `add path` is `blacklisted`, status 1 | 0.9.4, run with a `blacklist` |
//! | [`State::Failing`] | runs; lists no path; all commands that create something print `fail`, status 1 | 0.9.4; ASSUMED: as with a kernel without dm-multipath |

use std::io::{self, Write};
use std::path::Path;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::host::Host;

/// The state of multipathd. If it is not installed, there is no program either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Not installed.
    Absent,
    /// Installed and not running; the client prints nothing.
    StoppedSilent,
    /// Installed and not running; the client prints that it cannot connect.
    Stopped,
    /// Installed and not running; the client first prints lines about a missing configuration.
    StoppedBanner,
    /// It is running but does not answer.
    Hung,
    /// It is running, but its configuration excludes the disks.
    Excluding,
    /// It is running, but fails to create maps.
    Failing,
}

const NOT_CONNECTED: &str = "ERROR: failed to connect to multipathd\n";
const BANNER: &str = "/etc/multipath.conf does not exist, blacklisting all devices.\n\
     You can run \"/sbin/mpathconf --enable\" to create\n\
     /etc/multipath.conf. See man mpathconf(8) for more details\n";

/// Runs `multipathd` for the host root at `root`; returns the exit status.
pub fn run(root: &Path, args: &[String], out: &mut dyn Write, err: &mut dyn Write) -> u8 {
    let answer = match Host::at(root).multipathd() {
        Ok(state) => answer(state, args),
        Err(error) => (2, String::new(), format!("node-sim: {error}\n")),
    };
    let (status, stdout, stderr) = answer;
    // The reader may be gone.
    let _: io::Result<()> = out.write_all(stdout.as_bytes());
    let _: io::Result<()> = err.write_all(stderr.as_bytes());
    status
}

/// Exit status, standard output and standard error.
fn answer(state: State, args: &[String]) -> (u8, String, String) {
    let prints_error = |text: &str| (1, String::new(), text.to_owned());
    let prints = |status, text: &str| (status, text.to_owned(), String::new());
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match (state, words.as_slice()) {
        (State::Absent | State::StoppedSilent, _) => prints_error(""),
        (State::Stopped, _) => prints_error(NOT_CONNECTED),
        (State::StoppedBanner, _) => prints_error(&format!("{BANNER}{NOT_CONNECTED}")),
        (State::Hung, _) => prints_error("timeout receiving packet\n"),
        (_, ["show", "daemon"]) => prints(0, "pid 375 idle\n"),
        (_, ["show", "paths", "raw", "format", _]) => prints(0, ""),
        (State::Excluding, ["add", "path", _]) => prints(1, "blacklisted\n"),
        (
            _,
            [
                "add" | "resize" | "disablequeueing" | "restorequeueing",
                "path" | "map",
                _,
            ],
        ) => prints(1, "fail\n"),
        (_, other) => prints_error(&format!(
            "node-sim: unsupported multipathd command {:?}\n",
            other.join(" ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(state: State, line: &str) -> (u8, String, String) {
        let args: Vec<String> = line.split(' ').map(str::to_owned).collect();
        answer(state, &args)
    }

    #[test]
    fn the_client_exits_with_1_if_the_daemon_does_not_answer() {
        for (state, expected) in [
            (State::StoppedSilent, ""),
            (State::Stopped, "failed to connect"),
            (State::StoppedBanner, "mpathconf --enable"),
            (State::Hung, "timeout receiving packet"),
        ] {
            let (status, out, stderr) = ask(state, "show daemon");
            assert_eq!((status, out.as_str()), (1, ""), "{state:?}");
            assert!(stderr.contains(expected), "{state:?}: {stderr}");
        }
    }

    #[test]
    fn a_running_daemon_answers_and_creates_nothing() {
        for (state, expected) in [
            (State::Excluding, "blacklisted\n"),
            (State::Failing, "fail\n"),
        ] {
            assert_eq!(ask(state, "show daemon").0, 0);
            assert_eq!(ask(state, "show paths raw format %d").1, "");
            let (status, out, _) = ask(state, "add path sdb");
            assert_eq!((status, out.as_str()), (1, expected));
            assert_eq!(ask(state, "add map 360").0, 1);
            assert!(ask(state, "reconfigure").2.contains("reconfigure"));
        }
    }
}
