//! Output and exit codes of `iscsiadm`. The codes are open-iscsi's, the texts are ours.
//! Source: `include/iscsi_err.h` and the section EXIT STATUS of the manual page of `iscsiadm`.

use std::fmt;
use std::io::{self, Write};

/// The exit code of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Success.
    Success = 0,
    /// An error without a specific code.
    Error = 1,
    /// The node database cannot be read or written.
    Database = 6,
    /// Invalid command line or parameter.
    Invalid = 7,
    /// No process listens on the portal.
    ConnectTimeout = 8,
    /// The simulator itself failed, for instance to attach a loop device.
    Internal = 9,
    /// Discovery gave up on the portal.
    PduTimeout = 11,
    /// There already is a session.
    SessionExists = 15,
    /// The target refused the login permanently.
    FatalLogin = 19,
    /// No matching records or sessions.
    NoObjects = 21,
    /// sysfs has no such session.
    SysfsLookup = 22,
    /// CHAP authentication failed.
    Authentication = 24,
}

impl Exit {
    fn reason(self) -> &'static str {
        match self {
            Exit::Success => "no error",
            Exit::Error => "error",
            Exit::Database => "node database failure",
            Exit::Invalid => "invalid argument",
            Exit::ConnectTimeout => "the portal does not answer",
            Exit::Internal => "internal error of the simulator",
            Exit::PduTimeout => "no answer from the portal",
            Exit::SessionExists => "session exists already",
            Exit::FatalLogin => "the target refuses the login",
            Exit::NoObjects => "nothing found",
            Exit::SysfsLookup => "not in sysfs",
            Exit::Authentication => "the target refuses these credentials",
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} - {}", *self as u8, self.reason())
    }
}

/// A command, or a step of one, that failed.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Failure {
    /// The exit code of the process.
    pub(crate) exit: Exit,
    /// The text on standard error.
    pub(crate) text: String,
}

impl Failure {
    pub(crate) fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self {
            exit,
            text: text.into(),
        }
    }

    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self::new(Exit::Invalid, text)
    }
}

/// An I/O error on a file of the simulator.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::new(Exit::Internal, error.to_string())
    }
}

/// Standard output and standard error. Write errors are ignored, as the reader may be gone.
pub(crate) struct Console<'a> {
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
}

impl<'a> Console<'a> {
    pub(crate) fn new(out: &'a mut dyn Write, err: &'a mut dyn Write) -> Self {
        Self { out, err }
    }

    /// A line on stdout.
    pub(crate) fn print(&mut self, line: impl fmt::Display) {
        let _ = writeln!(self.out, "{line}");
    }

    /// A line on stderr.
    pub(crate) fn warn(&mut self, line: impl fmt::Display) {
        let _ = writeln!(self.err, "iscsiadm: {line}");
    }
}

impl fmt::Debug for Console<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").finish_non_exhaustive()
    }
}
