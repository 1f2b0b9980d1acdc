//! Exit codes and output of a command. The codes are those of open-iscsi, the messages are not.
//! Source: `include/iscsi_err.h` and the section EXIT STATUS of the manual page of `iscsiadm`.

use std::fmt;
use std::io::{self, Write};

/// Exit code of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Success.
    Success = 0,
    /// An error without a code of its own.
    Error = 1,
    /// The node database cannot be read or written.
    Database = 6,
    /// Invalid command line.
    Invalid = 7,
    /// The portal does not accept a connection.
    ConnectTimeout = 8,
    /// The simulator itself failed, for instance to create a loop device.
    Internal = 9,
    /// The portal did not answer a discovery.
    PduTimeout = 11,
    /// The session already exists.
    SessionExists = 15,
    /// The target refused the login; retries are pointless.
    FatalLogin = 19,
    /// No matching record, session or portal.
    NoObjects = 21,
    /// The session does not exist in sysfs.
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
            Exit::SessionExists => "session already exists",
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

/// Error of a command or of one of its steps.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct Failure {
    /// Exit code of the process.
    pub(crate) exit: Exit,
    /// Message for stderr.
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

/// A file of the simulator cannot be read or written.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::new(Exit::Internal, error.to_string())
    }
}

/// stdout and stderr of the program. Write errors are ignored: the reader may be gone.
pub(crate) struct Console<'a> {
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
}

impl<'a> Console<'a> {
    pub(crate) fn new(out: &'a mut dyn Write, err: &'a mut dyn Write) -> Self {
        Self { out, err }
    }

    /// Prints a line on stdout.
    pub(crate) fn print(&mut self, line: impl fmt::Display) {
        let _ = writeln!(self.out, "{line}");
    }

    /// Prints a line on stderr.
    pub(crate) fn warn(&mut self, line: impl fmt::Display) {
        let _ = writeln!(self.err, "iscsiadm: {line}");
    }
}

impl fmt::Debug for Console<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").finish_non_exhaustive()
    }
}
