//! The answer to a compound request (`SYNO.Entry.Request`): several calls in one HTTP request. Pure.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::call::Call;
use super::reply::{Code, DsmError, read as read_reply};

/// The answer of `SYNO.Entry.Request`.
#[derive(Debug, Deserialize)]
pub(crate) struct CompoundAnswer {
    result: Vec<Box<RawValue>>,
}

impl CompoundAnswer {
    /// The results, one after the other, each with its own envelope.
    pub(crate) fn into_results(self) -> impl Iterator<Item = Box<RawValue>> {
        self.result.into_iter()
    }
}

/// The results of calls that were sent in one request. There are fewer than calls when DSM stopped at one that failed.
#[derive(Debug)]
pub struct Results(Vec<Answered>);

/// The result of a call, whose type is not known yet.
#[derive(Debug)]
struct Answered {
    api: &'static str,
    method: &'static str,
    result: Result<Box<RawValue>, DsmError>,
}

impl Results {
    pub(crate) fn of(calls: &[Call], answer: CompoundAnswer) -> Self {
        let read = |(call, text): (&Call, Box<RawValue>)| {
            let (api, method) = (call.api, call.method);
            let result = read_reply::<Option<Box<RawValue>>>(api, method, text.get().as_bytes());
            Answered {
                api,
                method,
                result: result.map(Option::unwrap_or_default),
            }
        };
        let read = calls.iter().zip(answer.into_results()).map(read);
        // DSM may name the calls that it did not make, with a code of their own.
        let made = |answered: &Answered| {
            let refusal = answered.result.as_ref().err();
            refusal.and_then(DsmError::code) != Some(Code::STOPPED)
        };
        Self(read.take_while(made).collect())
    }

    /// The next result. `None`: the call was not made.
    ///
    /// # Errors
    /// [`DsmError`] of this call.
    pub fn take<T: DeserializeOwned>(&mut self) -> Option<Result<T, DsmError>> {
        if self.0.is_empty() {
            return None;
        }
        let Answered {
            api,
            method,
            result,
        } = self.0.remove(0);
        let garbled = |error: serde_json::Error| DsmError::Garbled {
            api,
            method,
            seen: error.to_string(),
        };
        Some(result.and_then(|data| serde_json::from_str(data.get()).map_err(garbled)))
    }

    /// No call was made beyond those whose results were taken.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn first_refusal(&self) -> Option<&DsmError> {
        self.0.iter().find_map(|one| one.result.as_ref().err())
    }

    /// Nothing but questions was answered.
    pub(crate) fn has_only_asked(&self) -> bool {
        let asks = |method: &str| matches!(method, "get" | "list");
        self.0
            .iter()
            .all(|one| asks(one.method) || one.result.is_err())
    }
}
