//! The one place of node-sim's tests that starts programs, and the one that counts what could not be tested.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write as _;
use std::process::Command;

/// A program, to be started.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place of these tests that starts programs"
)]
pub(crate) fn program(name: impl AsRef<OsStr>) -> Command {
    Command::new(name)
}

/// Says that a test cannot run here, and why.
#[expect(
    clippy::disallowed_methods,
    reason = "SKIP_LOG counts what a run could not test; read once per skipped test"
)]
pub(crate) fn skip(test: &str, needs: &str) {
    let line = format!("SKIP: {test}: needs {needs}\n");
    eprint!("{line}");
    if let Ok(log) = std::env::var("SKIP_LOG") {
        File::options()
            .create(true)
            .append(true)
            .open(log)
            .unwrap()
            .write_all(line.as_bytes())
            .unwrap();
    }
}
