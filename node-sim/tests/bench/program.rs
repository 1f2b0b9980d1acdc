//! The only place in node-sim's tests that starts programs, and that reports skipped tests.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write as _;
use std::process::Command;

/// A command for a program, not started yet.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place of these tests that starts programs"
)]
pub(crate) fn program(name: impl AsRef<OsStr>) -> Command {
    Command::new(name)
}

/// Reports that a test is skipped, and what it needs.
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
