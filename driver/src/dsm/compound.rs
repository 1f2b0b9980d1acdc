//! The answer to a compound request (`SYNO.Entry.Request`): several calls in one HTTP request. Pure.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::call::Call;
use super::reply::{Code, DsmError, read as read_reply};

/// The reply of `SYNO.Entry.Request`.
#[derive(Debug, Deserialize)]
pub(crate) struct CompoundAnswer {
    result: Vec<Box<RawValue>>,
}

impl CompoundAnswer {
    /// The results in order, each with its own envelope.
    pub(crate) fn into_results(self) -> impl Iterator<Item = Box<RawValue>> {
        self.result.into_iter()
    }
}

/// The results of calls that were sent in one request. Fewer than calls if DSM stopped at one that failed.
#[derive(Debug)]
pub struct Results(Vec<RawResult>);

/// The unparsed result of a call.
#[derive(Debug)]
struct RawResult {
    api: &'static str,
    method: &'static str,
    result: Result<Box<RawValue>, DsmError>,
}

impl Results {
    pub(crate) fn of(calls: &[Call], answer: CompoundAnswer) -> Self {
        let read = |(call, text): (&Call, Box<RawValue>)| {
            let (api, method) = (call.api, call.method);
            let result = read_reply::<Option<Box<RawValue>>>(api, method, text.get().as_bytes());
            RawResult {
                api,
                method,
                result: result.map(Option::unwrap_or_default),
            }
        };
        let read = calls.iter().zip(answer.into_results()).map(read);
        // DSM may return a special code for calls that it did not carry out.
        let carried_out = |raw: &RawResult| {
            let refusal = raw.result.as_ref().err();
            refusal.and_then(DsmError::code) != Some(Code::STOPPED)
        };
        Self(read.take_while(carried_out).collect())
    }

    /// Takes the next result. `None`: the call was not carried out.
    ///
    /// # Errors
    /// [`DsmError`] of this call.
    pub fn take<T: DeserializeOwned>(&mut self) -> Option<Result<T, DsmError>> {
        if self.0.is_empty() {
            return None;
        }
        let RawResult {
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

    /// No results are left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn first_refusal(&self) -> Option<&DsmError> {
        self.0.iter().find_map(|one| one.result.as_ref().err())
    }

    /// Only reads were carried out.
    pub(crate) fn has_only_reads(&self) -> bool {
        let is_read = |method: &str| matches!(method, "get" | "list");
        self.0
            .iter()
            .all(|one| is_read(one.method) || one.result.is_err())
    }
}
