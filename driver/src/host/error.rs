//! [`HostError`]: why an operation on the node's machine failed, with its gRPC code and metrics label.

use std::borrow::Cow;
use std::io;
use std::time::Duration;

use tonic::Code;

/// Why an operation on this machine failed. It may have had partial effects, so no code is final (design.md#final-codes).
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The program could not be started.
    #[error("{program} could not be started; is it installed on this node?")]
    NotStarted {
        /// The program.
        program: &'static str,
        /// The error of the spawn.
        #[source]
        source: io::Error,
    },
    /// The namespaces in which the program must run cannot be entered.
    #[error("the host's namespaces cannot be entered: {problem}")]
    NoNamespaces {
        /// The reason and the remedy.
        problem: String,
    },
    /// It exceeded its deadline and may still run: the volume stays locked until it has ended.
    #[error("{what} did not end within {limit:?}; it was given up and may still run")]
    DeadlineExceeded {
        /// The command or the file operation.
        what: String,
        /// The deadline.
        limit: Duration,
    },
    /// The program returned an error.
    #[error("{program} failed with exit status {status}: {said}")]
    Failed {
        /// The program.
        program: &'static str,
        /// Its exit status.
        status: i32,
        /// Its output, see [`Exit::output_line`](super::Exit::output_line).
        said: String,
    },
    /// The path does not exist.
    #[error("{path} does not exist")]
    Absent {
        /// The path.
        path: String,
    },
    /// A system call failed.
    #[error("{doing}")]
    Io {
        /// The operation, as a gerund: `reading /dev/sdb`.
        doing: String,
        /// The error of the system call.
        #[source]
        source: io::Error,
    },
    /// The lock of open-iscsi's database seems stale, but a process may still hold it.
    #[error(
        "it has been locked for {seconds} s, and {seen}; if none is running on the node: rm {path}"
    )]
    Locked {
        /// The lock file.
        path: String,
        /// How long it did not change, in seconds.
        seconds: u64,
        /// Why the driver did not remove it.
        seen: String,
    },
    /// The output or the content cannot be parsed.
    #[error("cannot parse {what}: {seen:?}")]
    Unparsable {
        /// The program or file.
        what: String,
        /// The text that cannot be parsed.
        seen: String,
    },
}

impl HostError {
    /// The gRPC code for the CO: never a final one.
    pub fn code(&self) -> Code {
        match self {
            Self::DeadlineExceeded { .. } => Code::Aborted,
            Self::NotStarted { .. }
            | Self::NoNamespaces { .. }
            | Self::Failed { .. }
            | Self::Absent { .. }
            | Self::Locked { .. }
            | Self::Io { .. }
            | Self::Unparsable { .. } => Code::Unavailable,
        }
    }

    /// The exit status or a fixed word, as a label for metrics.
    pub fn label(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Failed { status, .. } => return Cow::Owned(status.to_string()),
            Self::NotStarted { .. } | Self::NoNamespaces { .. } | Self::Absent { .. } => {
                "not_started"
            }
            Self::DeadlineExceeded { .. } => "overran",
            Self::Locked { .. } => "locked",
            Self::Io { .. } | Self::Unparsable { .. } => "lost",
        })
    }

    /// True if a system call failed with `EIO`.
    pub fn is_io(&self) -> bool {
        let eio = nix::errno::Errno::EIO as i32;
        matches!(self, Self::Io { source, .. } if source.raw_os_error() == Some(eio))
    }

    /// True if a system call failed with `EBUSY`: the device or the mount is in use.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::ResourceBusy)
    }
}

/// Turns [`HostError::Absent`] into `None`.
///
/// # Errors
/// Every other error.
pub fn if_present<T>(result: Result<T, HostError>) -> Result<Option<T>, HostError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(HostError::Absent { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
