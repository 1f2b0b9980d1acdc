//! Why the machine did not do something.

use std::borrow::Cow;
use std::io;
use std::time::Duration;

use tonic::Code;

/// Why this machine did not do something. Nobody knows how far it came, so no code is final (design.md#final-codes).
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The program could not be started.
    #[error("{program} could not be started; is it installed on this node?")]
    NotStarted {
        /// The program.
        program: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The namespaces that the program belongs into cannot be entered.
    #[error("the host's namespaces cannot be entered: {problem}")]
    NoNamespaces {
        /// Why, and what to do.
        problem: String,
    },
    /// It took too long and may still run: the volume stays locked until it has ended.
    #[error("{what} did not end within {limit:?}; it was given up and may still run")]
    Overran {
        /// The command or the reading.
        what: String,
        /// How long it had.
        limit: Duration,
    },
    /// The program ended with an error.
    #[error("{program} failed with exit status {status}: {said}")]
    Failed {
        /// The program.
        program: &'static str,
        /// Its exit status.
        status: i32,
        /// What it said about it.
        said: String,
    },
    /// There is nothing at the path.
    #[error("{path} does not exist")]
    Absent {
        /// The path.
        path: String,
    },
    /// The system refused.
    #[error("{doing}")]
    Io {
        /// What was being done.
        doing: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The lock of open-iscsi's database stands still, and may still be somebody's.
    #[error(
        "it has been locked for {seconds} s, and {seen}; when none is at work on the node: rm {path}"
    )]
    Locked {
        /// The lock.
        path: String,
        /// How long it was watched.
        seconds: u64,
        /// Why it was not removed.
        seen: String,
    },
    /// What came back makes no sense.
    #[error("{what} is not understood: {seen:?}")]
    Garbled {
        /// The program or file.
        what: String,
        /// What came back.
        seen: String,
    },
}

impl HostError {
    /// The code that the CO acts upon: never a final one.
    pub fn code(&self) -> Code {
        match self {
            Self::Overran { .. } => Code::Aborted,
            Self::NotStarted { .. }
            | Self::NoNamespaces { .. }
            | Self::Failed { .. }
            | Self::Absent { .. }
            | Self::Locked { .. }
            | Self::Io { .. }
            | Self::Garbled { .. } => Code::Unavailable,
        }
    }

    /// A word or exit status for metrics.
    pub fn label(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Failed { status, .. } => return Cow::Owned(status.to_string()),
            Self::NotStarted { .. } | Self::NoNamespaces { .. } | Self::Absent { .. } => {
                "not_started"
            }
            Self::Overran { .. } => "overran",
            Self::Locked { .. } => "locked",
            Self::Io { .. } | Self::Garbled { .. } => "lost",
        })
    }

    /// True when the system said EIO.
    pub fn is_io(&self) -> bool {
        let eio = nix::errno::Errno::EIO as i32;
        matches!(self, Self::Io { source, .. } if source.raw_os_error() == Some(eio))
    }

    /// True when somebody else has claimed the device or the mount.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::ResourceBusy)
    }
}

/// Turns "nothing there" into `None`.
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
