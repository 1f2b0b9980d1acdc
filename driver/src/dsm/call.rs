//! A call of the DSM Web API as a value, without I/O.

use serde::Serialize;
use serde_json::{Value, json};

/// One call: API, version, method and parameters.
///
/// Every value is JSON: APIs with `requestFormat: JSON` (all of `SYNO.Core.*`) decode it, and a quoted string can never be
/// taken for a number or an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// For instance `SYNO.Core.ISCSI.LUN`.
    pub api: &'static str,
    /// One that DSM 6 and DSM 7 both offer.
    pub version: u8,
    /// For instance `set`.
    pub method: &'static str,
    params: Vec<(&'static str, Value)>,
}

impl Call {
    /// A call without parameters.
    pub fn new(api: &'static str, version: u8, method: &'static str) -> Self {
        Self {
            api,
            version,
            method,
            params: Vec::new(),
        }
    }

    /// Adds a parameter.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Serialize) -> Self {
        self.params.push((name, json!(value)));
        self
    }

    /// The form fields to send.
    pub fn form(&self) -> Vec<(&'static str, String)> {
        let mut fields = vec![
            ("api", self.api.to_owned()),
            ("version", self.version.to_string()),
            ("method", self.method.to_owned()),
        ];
        fields.extend(
            self.params
                .iter()
                .map(|(name, value)| (*name, value.to_string())),
        );
        fields
    }

    /// Several calls in one request: `SYNO.Entry.Request` v1 `request`, one after the other, up to the first that fails.
    /// Source: N4S4 `synology_api` and DSM's own pages.
    pub fn sequence(calls: &[Self]) -> Self {
        let compound: Vec<Value> = calls.iter().map(Self::in_compound).collect();
        Self::new("SYNO.Entry.Request", 1, "request")
            .with("stop_when_error", true)
            .with("mode", "sequential")
            .with("compound", compound)
    }

    fn in_compound(&self) -> Value {
        let mut object = json!({"api": self.api, "version": self.version, "method": self.method});
        for (name, value) in &self.params {
            object[*name] = value.clone();
        }
        object
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_json() {
        let call = Call::new("SYNO.Core.ISCSI.LUN", 1, "set")
            .with("uuid", "6f1c")
            .with("new_size", 2_147_483_648_u64);
        let form: Vec<String> = call
            .form()
            .into_iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        assert_eq!(
            form.join("&"),
            "api=SYNO.Core.ISCSI.LUN&version=1&method=set&uuid=\"6f1c\"&new_size=2147483648"
        );
    }

    #[test]
    fn a_sequence_is_one_call() {
        let inner = Call::new("SYNO.Core.ISCSI.Target", 1, "delete").with("target_id", "3");
        let form = Call::sequence(&[inner]).form();
        let compound = &form.iter().find(|(name, _)| *name == "compound").unwrap().1;
        assert_eq!(
            serde_json::from_str::<Value>(compound).unwrap(),
            json!([{"api": "SYNO.Core.ISCSI.Target", "version": 1, "method": "delete", "target_id": "3"}])
        );
    }
}
