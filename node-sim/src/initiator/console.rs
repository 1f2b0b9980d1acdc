//! What a command says and how it ends: open-iscsi's exit codes, in our own words.
//! Source: `include/iscsi_err.h` and the section EXIT STATUS of the manual page of `iscsiadm`.

use std::fmt;
use std::io::{self, Write};

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// All done.
    Success = 0,
    /// Something went wrong that has no number of its own.
    Error = 1,
    /// The node database cannot be read or written.
    Database = 6,
    /// The command makes no sense.
    Invalid = 7,
    /// Nothing answers at the portal.
    ConnectTimeout = 8,
    /// The simulator itself failed, for instance to make a loop device.
    Internal = 9,
    /// Discovery gave up on the portal.
    PduTimeout = 11,
    /// There is a session already.
    SessionExists = 15,
    /// The target turned the login down and will do so again.
    FatalLogin = 19,
    /// Nothing found to work on.
    NoObjects = 21,
    /// No such session in sysfs.
    SysfsLookup = 22,
    /// The initiator did not prove itself.
    Authentication = 24,
}

impl Exit {
    fn reason(self) -> &'static str {
        match self {
            Exit::Success => "no error",
            Exit::Error => "error",
            Exit::Database => "node database failure",
            Exit::Invalid => "invalid argument",
            Exit::ConnectTimeout => "nobody answers at the portal",
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
    /// What the process answers.
    pub(crate) exit: Exit,
    /// What stderr says.
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

/// A file of the simulator that cannot be read or written.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::new(Exit::Internal, error.to_string())
    }
}

/// The two streams of the program. A reader that went away is nobody to tell.
pub(crate) struct Console<'a> {
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
}

impl<'a> Console<'a> {
    pub(crate) fn new(out: &'a mut dyn Write, err: &'a mut dyn Write) -> Self {
        Self { out, err }
    }

    /// A line on stdout.
    pub(crate) fn say(&mut self, line: impl fmt::Display) {
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
