//! `multipathd` as its client shows it, where it makes no map: what a driver has to understand without one. A daemon that makes maps
//! takes a device-mapper, which the loop plane does without; the VM has the real one.
//!
//! | state | what the client does | source |
//! |---|---|---|
//! | [`State::StoppedSilent`] | status 1 and no word | multipath-tools 0.9.4, run |
//! | [`State::Stopped`] | status 1, `ERROR: failed to connect to multipathd` | opensvc/multipath-tools, `multipathd/uxclnt.c`, since 0.11 |
//! | [`State::StoppedBanner`] | the same below three lines about a missing configuration | Red Hat's device-mapper-multipath, in people's reports of `multipath -ll` |
//! | [`State::Hung`] | status 1, `timeout receiving packet` | 0.9.4, run with a stopped daemon |
//! | [`State::Excluding`] | runs; lists no path; `add path` is `blacklisted`, status 1 | 0.9.4, run with a `blacklist` |
//! | [`State::Failing`] | runs; lists no path; all that it is asked to make is `fail`, status 1 | 0.9.4; ASSUMED: as with a kernel without dm-multipath |

use std::io::{self, Write};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// How the daemon is. Where none is installed, there is no program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Not installed.
    Absent,
    /// Installed and not running; the client says nothing.
    StoppedSilent,
    /// The same; the client says that it cannot connect.
    Stopped,
    /// The same, and a missing configuration comes first.
    StoppedBanner,
    /// It runs and does not answer.
    Hung,
    /// It runs, and its configuration excludes the disks.
    Excluding,
    /// It runs, and makes no map.
    Failing,
}

const UNREACHED: &str = "ERROR: failed to connect to multipathd\n";
const BANNER: &str = "/etc/multipath.conf does not exist, blacklisting all devices.\n\
     You can run \"/sbin/mpathconf --enable\" to create\n\
     /etc/multipath.conf. See man mpathconf(8) for more details\n";

/// Is the `multipathd` of a host root, in the state that was set there; returns the exit status.
pub fn run(
    state: io::Result<State>,
    args: &[String],
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> u8 {
    let said = match state {
        Ok(state) => answer(state, args),
        Err(wrong) => (2, String::new(), format!("node-sim: {wrong}\n")),
    };
    let (status, stdout, stderr) = said;
    // Nobody may be there to read it.
    let _: io::Result<()> = out.write_all(stdout.as_bytes());
    let _: io::Result<()> = err.write_all(stderr.as_bytes());
    status
}

/// Status, output and complaints.
fn answer(state: State, args: &[String]) -> (u8, String, String) {
    let complains = |text: &str| (1, String::new(), text.to_owned());
    let says = |status, text: &str| (status, text.to_owned(), String::new());
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match (state, words.as_slice()) {
        (State::Absent | State::StoppedSilent, _) => complains(""),
        (State::Stopped, _) => complains(UNREACHED),
        (State::StoppedBanner, _) => complains(&format!("{BANNER}{UNREACHED}")),
        (State::Hung, _) => complains("timeout receiving packet\n"),
        (_, ["show", "daemon"]) => says(0, "pid 375 idle\n"),
        (_, ["show", "paths", "raw", "format", _]) => says(0, ""),
        (State::Excluding, ["add", "path", _]) => says(1, "blacklisted\n"),
        (
            _,
            [
                "add" | "resize" | "disablequeueing" | "restorequeueing",
                "path" | "map",
                _,
            ],
        ) => says(1, "fail\n"),
        (_, other) => complains(&format!(
            "node-sim: a multipathd is not asked to {:?}\n",
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
    fn who_does_not_run_ends_with_1_whatever_its_client_says() {
        for (state, said) in [
            (State::StoppedSilent, ""),
            (State::Stopped, "failed to connect"),
            (State::StoppedBanner, "mpathconf --enable"),
            (State::Hung, "timeout receiving packet"),
        ] {
            let (status, out, complaint) = ask(state, "show daemon");
            assert_eq!((status, out.as_str()), (1, ""), "{state:?}");
            assert!(complaint.contains(said), "{state:?}: {complaint}");
        }
    }

    #[test]
    fn who_runs_answers_and_makes_nothing() {
        for (state, said) in [
            (State::Excluding, "blacklisted\n"),
            (State::Failing, "fail\n"),
        ] {
            assert_eq!(ask(state, "show daemon").0, 0);
            assert_eq!(ask(state, "show paths raw format %d").1, "");
            let (status, out, _) = ask(state, "add path sdb");
            assert_eq!((status, out.as_str()), (1, said));
            assert_eq!(ask(state, "add map 360").0, 1);
            assert!(ask(state, "reconfigure").2.contains("reconfigure"));
        }
    }
}
