//! The error table: every way in which an RPC can fail, its message and its gRPC code.
//!
//! A *final* code (any but ABORTED, UNAVAILABLE, CANCELLED, DEADLINE_EXCEEDED) tells the CO that nothing is in progress and that
//! it may forget the object. So a variant with a final code is constructed only if the effect provably did not happen or was
//! rolled back; everything else is UNAVAILABLE or ABORTED (design.md#final-codes). Source of the codes: CSI specification v1.12,
//! the error tables of the RPCs.

use std::fmt::Write as _;

use tonic::{Code, Status};

use crate::dsm::DsmError;
use crate::host::HostError;
use crate::volume::Bytes;

/// Why an RPC failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A required field is absent.
    #[error("{field} is missing: {remedy}")]
    Missing {
        /// The field, as the CSI specification spells it.
        field: &'static str,
        /// How to fix it.
        remedy: String,
    },
    /// A field has a value that is not allowed.
    #[error("{field} {} is not accepted: {remedy}", quoted(value))]
    Invalid {
        /// The field, as the CSI specification spells it; a key in brackets.
        field: String,
        /// The rejected value.
        value: String,
        /// How to fix it.
        remedy: String,
    },
    /// A key of the call's secrets is absent, unknown or has an invalid value. The message never contains the value.
    #[error("{} is not accepted: {remedy}", truncated(field.clone(), MAX_VALUE))]
    BadSecret {
        /// The key, in brackets.
        field: String,
        /// How to fix it.
        remedy: String,
    },
    /// The peer does not accept the call's secrets, and nothing was created.
    #[error("{what}: {seen}; {remedy}")]
    Unauthenticated {
        /// What was refused.
        what: String,
        /// What was seen.
        seen: String,
        /// How to fix it.
        remedy: String,
    },
    /// The volume does not exist: confirmed, not assumed (design.md#unknown-is-not-absent).
    #[error("volume {} does not exist: {seen}", quoted(volume))]
    NoSuchVolume {
        /// The handle.
        volume: String,
        /// What was seen.
        seen: String,
    },
    /// This is not a valid node id.
    #[error("node {} does not exist: {remedy}", quoted(node))]
    NoSuchNode {
        /// The id.
        node: String,
        /// How to fix it.
        remedy: &'static str,
    },
    /// This volume is not mounted at the path.
    #[error("volume {} is not at {}: {seen}", quoted(volume), quoted(path))]
    NotMounted {
        /// The handle.
        volume: String,
        /// The path.
        path: String,
        /// What was seen.
        seen: String,
    },
    /// The object exists, but does not match the request.
    #[error("{what} exists already and differs: {seen}; asked for {asked}")]
    Incompatible {
        /// The object.
        what: String,
        /// Its actual state.
        seen: String,
        /// The requested state.
        asked: String,
    },
    /// The current size is above the limit, or no size fits the range.
    #[error("no size fits capacity_range (required_bytes {required}{}): {seen}", and_limit(*.limit))]
    OutOfRange {
        /// `required_bytes`.
        required: Bytes,
        /// `limit_bytes`; `None` where there is none.
        limit: Option<Bytes>,
        /// Why no size fits.
        seen: String,
    },
    /// The current state does not allow it; an administrator has to act.
    #[error("{what}: {seen}; {remedy}")]
    Refused {
        /// What was refused.
        what: String,
        /// What was seen.
        seen: String,
        /// How to fix it.
        remedy: String,
    },
    /// The NAS has no room (space, LUNs or targets), and nothing was created.
    #[error("{what}")]
    Exhausted {
        /// What there is no room for.
        what: String,
        /// DSM's reply.
        #[source]
        source: DsmError,
    },
    /// Free space on the NAS would fall below the configured minimum, and nothing was created.
    #[error("{what}: {seen}; {remedy}")]
    Full {
        /// What there is no room for.
        what: String,
        /// How much space is free.
        seen: String,
        /// How to fix it.
        remedy: String,
    },
    /// Another operation on the same volume is in progress.
    #[error("an operation on volume {volume:?} is in progress: try again later")]
    Busy {
        /// The handle, or the name while there is no handle.
        volume: String,
    },
    /// The NAS or the node has not finished with the object.
    #[error("{what} is not ready: {seen}; try again later")]
    NotReady {
        /// The object.
        what: String,
        /// What was seen.
        seen: String,
    },
    /// `starting_token` was not issued by this driver.
    #[error("starting_token {} is not a token of this driver: list again from the start", quoted(.0))]
    BadToken(String),
    /// The NAS did not do it, or it is unknown whether it did.
    #[error("{doing}")]
    Dsm {
        /// What was being attempted.
        doing: String,
        /// The underlying error.
        #[source]
        source: DsmError,
    },
    /// The effect was requested, but reading it back did not show it.
    #[error("{what} could not be verified: {seen}; try again later")]
    Unverified {
        /// The effect.
        what: String,
        /// What was seen.
        seen: String,
    },
    /// This machine did not do it, or it is unknown whether it did.
    #[error("{doing}")]
    Host {
        /// What was being attempted.
        doing: String,
        /// The underlying error.
        #[source]
        source: HostError,
    },
    /// The task that ran the operation panicked; its effects are unknown.
    #[error(
        "the operation on volume {volume:?} broke off: this is a bug in the driver; its log says more; try again"
    )]
    Panicked {
        /// The handle, or the name while there is no handle.
        volume: String,
    },
}

/// Adds what was being attempted to an error of the NAS or of this machine.
pub(crate) trait Context<T>: Sized {
    fn with_context(self, doing: impl FnOnce() -> String) -> Result<T, Error>;

    fn context(self, doing: impl Into<String>) -> Result<T, Error> {
        self.with_context(|| doing.into())
    }
}

impl<T> Context<T> for Result<T, DsmError> {
    fn with_context(self, doing: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| Error::Dsm {
            doing: doing(),
            source,
        })
    }
}

impl<T> Context<T> for Result<T, HostError> {
    fn with_context(self, doing: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|source| {
            // The remedy for a locked database must not be buried behind the operation that needed it.
            let doing = if matches!(source, HostError::Locked { .. }) {
                "using open-iscsi's database".to_owned()
            } else {
                doing()
            };
            Error::Host { doing, source }
        })
    }
}

fn and_limit(limit: Option<Bytes>) -> String {
    limit.map_or_else(String::new, |limit| format!(", limit_bytes {limit}"))
}

impl Error {
    /// The gRPC code that the CO acts on.
    pub fn code(&self) -> Code {
        match self {
            Self::Missing { .. } | Self::Invalid { .. } | Self::BadSecret { .. } => {
                Code::InvalidArgument
            }
            Self::Unauthenticated { .. } => Code::Unauthenticated,
            Self::NoSuchVolume { .. } | Self::NoSuchNode { .. } | Self::NotMounted { .. } => {
                Code::NotFound
            }
            Self::Incompatible { .. } => Code::AlreadyExists,
            Self::OutOfRange { .. } => Code::OutOfRange,
            Self::Refused { .. } => Code::FailedPrecondition,
            Self::Exhausted { .. } | Self::Full { .. } => Code::ResourceExhausted,
            Self::Busy { .. } | Self::NotReady { .. } | Self::BadToken(_) => Code::Aborted,
            Self::Dsm { .. } | Self::Unverified { .. } | Self::Panicked { .. } => Code::Unavailable,
            Self::Host { source, .. } => source.code(),
        }
    }

    /// The code is final: nothing is in progress, and the CO may forget the object.
    pub fn is_final(&self) -> bool {
        !matches!(
            self.code(),
            Code::Aborted | Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded
        )
    }

    /// The whole error chain in one line: what was being attempted, then each cause.
    ///
    /// If the NAS is inaccessible (see [`DsmError::is_inaccessible`]) the order is reversed: that cause is what needs fixing,
    /// whatever was being attempted.
    pub fn chain(&self) -> String {
        let Self::Dsm { doing, source } = self else {
            return with_causes(self);
        };
        if !source.is_inaccessible() {
            return with_causes(self);
        }
        let text = with_causes(source);
        match text.split_once("; ") {
            Some((cause, more)) => format!("{cause} (met while {doing}); {more}"),
            None => format!("{text} (met while {doing})"),
        }
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Self::new(error.code(), truncated(error.chain(), MAX_MESSAGE))
    }
}

/// In characters. A status is sent in HTTP headers, for which clients allow 16 KiB or less; beyond that the caller would see a
/// broken connection instead of the code. A character may take 12 bytes there.
const MAX_MESSAGE: usize = 1000;
/// In characters; more of a value is not helpful.
const MAX_VALUE: usize = 200;

/// The value in quotes, truncated if it is very long.
fn quoted(value: &str) -> String {
    format!("{:?}", truncated(value.to_owned(), MAX_VALUE))
}

fn truncated(mut text: String, characters: usize) -> String {
    if let Some((end, _)) = text.char_indices().nth(characters) {
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn dsm() -> DsmError {
        DsmError::Refused {
            api: "SYNO.Core.ISCSI.LUN",
            method: "create",
            code: crate::dsm::Code::NO_SPACE,
        }
    }

    /// One row per variant, with the entry of the specification's error tables that it implements. design.md#final-codes
    #[test]
    #[expect(
        clippy::too_many_lines,
        reason = "a table has as many rows as there are variants"
    )]
    fn the_error_table() {
        let text = || "x".to_owned();
        let rows = [
            // Error Scheme: a REQUIRED field is absent.
            (
                Error::Missing {
                    field: "name",
                    remedy: text(),
                },
                Code::InvalidArgument,
            ),
            (
                Error::Invalid {
                    field: text(),
                    value: text(),
                    remedy: text(),
                },
                Code::InvalidArgument,
            ),
            (
                Error::BadSecret {
                    field: text(),
                    remedy: text(),
                },
                Code::InvalidArgument,
            ),
            // Error Scheme: "does not carry secrets that are valid for authentication".
            (
                Error::Unauthenticated {
                    what: text(),
                    seen: text(),
                    remedy: text(),
                },
                Code::Unauthenticated,
            ),
            // "Volume does not exist"; "Node does not exist".
            (
                Error::NoSuchVolume {
                    volume: text(),
                    seen: text(),
                },
                Code::NotFound,
            ),
            (
                Error::NoSuchNode {
                    node: text(),
                    remedy: "x",
                },
                Code::NotFound,
            ),
            (
                Error::NotMounted {
                    volume: text(),
                    path: text(),
                    seen: text(),
                },
                Code::NotFound,
            ),
            // "Volume already exists but is incompatible".
            (
                Error::Incompatible {
                    what: text(),
                    seen: text(),
                    asked: text(),
                },
                Code::AlreadyExists,
            ),
            // "Unsupported capacity_range".
            (
                Error::OutOfRange {
                    required: Bytes(2),
                    limit: Some(Bytes(1)),
                    seen: text(),
                },
                Code::OutOfRange,
            ),
            // "Volume in use"; "Volume published to another node".
            (
                Error::Refused {
                    what: text(),
                    seen: text(),
                    remedy: text(),
                },
                Code::FailedPrecondition,
            ),
            (
                Error::Exhausted {
                    what: text(),
                    source: dsm(),
                },
                Code::ResourceExhausted,
            ),
            (
                Error::Full {
                    what: text(),
                    seen: text(),
                    remedy: text(),
                },
                Code::ResourceExhausted,
            ),
            // "Operation pending for volume"; "Invalid starting_token".
            (Error::Busy { volume: text() }, Code::Aborted),
            (
                Error::NotReady {
                    what: text(),
                    seen: text(),
                },
                Code::Aborted,
            ),
            (Error::BadToken(text()), Code::Aborted),
            // Not final: an effect may exist.
            (
                Error::Dsm {
                    doing: text(),
                    source: dsm(),
                },
                Code::Unavailable,
            ),
            (
                Error::Unverified {
                    what: text(),
                    seen: text(),
                },
                Code::Unavailable,
            ),
            (Error::Panicked { volume: text() }, Code::Unavailable),
            (
                Error::Host {
                    doing: text(),
                    source: HostError::DeadlineExceeded {
                        what: text(),
                        limit: Duration::from_secs(1),
                    },
                },
                Code::Aborted,
            ),
        ];
        for (error, code) in rows {
            assert_eq!(error.code(), code, "{error:?}");
            assert_eq!(Status::from(error).code(), code);
        }
    }

    #[test]
    fn a_status_fits_into_a_header() {
        let long = "\u{10ffff}".repeat(100_000);
        for error in [
            Error::NoSuchVolume {
                volume: long.clone(),
                seen: "ids have a form".to_owned(),
            },
            Error::Invalid {
                field: "name".to_owned(),
                value: long.clone(),
                remedy: "choose another".to_owned(),
            },
            Error::Refused {
                what: long.clone(),
                seen: long.clone(),
                remedy: long,
            },
        ] {
            assert!(Status::from(error).message().len() < 5000);
        }
        let error = Error::NoSuchVolume {
            volume: "v".repeat(300),
            seen: "ids have a form".to_owned(),
        };
        assert!(
            error
                .to_string()
                .ends_with("vvv…\" does not exist: ids have a form"),
            "{error}"
        );
    }

    #[test]
    fn a_status_contains_the_whole_error_chain() {
        let error = Error::Dsm {
            doing: "creating LUN csi-a".to_owned(),
            source: dsm(),
        };
        assert_eq!(
            Status::from(error).message(),
            "creating LUN csi-a: DSM refuses SYNO.Core.ISCSI.LUN.create with code 18990002 (no free space on the volume)"
        );
        // If the login fails, its remedy comes first.
        let error = Error::Dsm {
            doing: "creating LUN csi-a".to_owned(),
            source: DsmError::Login {
                account: "csi".to_owned(),
                code: crate::dsm::Code::PERMISSION_DENIED,
                next: Some(crate::dsm::reply::NextTry {
                    at: 1_767_225_600,
                    restart: true,
                }),
            },
        };
        let text = Status::from(error).message().to_owned();
        let remedy = text.find("group administrators").unwrap();
        assert!(remedy < 150, "{text}");
        assert!(
            text.contains("(met while creating LUN csi-a); next try at"),
            "{text}"
        );
        assert!(text.ends_with("component=controller"), "{text}");
    }
}
