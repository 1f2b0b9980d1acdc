//! A call of the DSM Web API as a value, without I/O.

use std::fmt;

use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::reply::{self, Code, DsmError};

/// One call: API, version, method and parameters.
///
/// Every value is JSON: APIs with `requestFormat: JSON` (all of `SYNO.Core.*`) decode it, and a quoted string can never be
/// taken for a number or an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// For instance `SYNO.Core.ISCSI.LUN`.
    pub api: &'static str,
    /// A version that both DSM 6 and DSM 7 support.
    pub version: u8,
    /// For instance `set`.
    pub method: &'static str,
    params: Vec<(&'static str, Param)>,
    class: RequestClass,
}

/// The API of LUNs.
pub(super) const LUN_API: &str = "SYNO.Core.ISCSI.LUN";

/// Which limit a request counts against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestClass {
    /// Everything that the NAS does concurrently.
    Common,
    /// Requests that create a LUN: the NAS does them one at a time.
    Creates,
}

impl RequestClass {
    /// The class of a call.
    pub(super) fn of(api: &str, method: &str) -> Self {
        // ASSUMED: clones queue up with creates; both take the lock under which DSM creates a LUN.
        let creates = matches!(method, "create" | "clone" | "clone_snapshot");
        if api == LUN_API && creates {
            Self::Creates
        } else {
            Self::Common
        }
    }
}

/// The value of a parameter, as the JSON text that is sent.
#[derive(Clone)]
enum Param {
    Plain(Value),
    Secret(SecretString),
}

impl Param {
    fn json(&self) -> String {
        match self {
            Self::Plain(value) => value.to_string(),
            Self::Secret(text) => text.expose_secret().to_owned(),
        }
    }
}

impl PartialEq for Param {
    fn eq(&self, other: &Self) -> bool {
        self.json() == other.json()
    }
}

impl fmt::Debug for Param {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain(value) => write!(f, "{value}"),
            Self::Secret(_) => f.write_str("***"),
        }
    }
}

impl Call {
    /// A call without parameters.
    pub fn new(api: &'static str, version: u8, method: &'static str) -> Self {
        Self {
            api,
            version,
            method,
            params: Vec::new(),
            class: RequestClass::of(api, method),
        }
    }

    /// Which request limit it counts against; a compound with a create counts as a create.
    pub(super) fn class(&self) -> RequestClass {
        self.class
    }

    /// Adds a parameter.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Serialize) -> Self {
        self.params.push((name, Param::Plain(json!(value))));
        self
    }

    /// Adds a parameter that `Debug` does not show.
    #[must_use]
    pub fn with_secret(mut self, name: &'static str, value: &SecretString) -> Self {
        let text = json!(value.expose_secret()).to_string();
        self.params.push((name, Param::Secret(text.into())));
        self
    }

    /// Parses the result of this call in the reply to a compound request. `None`: there is none.
    ///
    /// # Errors
    /// [`DsmError::Garbled`] if there is none; else see [`reply::read`].
    pub(super) fn result<T: DeserializeOwned>(
        &self,
        text: Option<Box<RawValue>>,
    ) -> Result<T, DsmError> {
        let (api, method) = (self.api, self.method);
        let text = text.ok_or_else(|| DsmError::Garbled {
            api,
            method,
            seen: "no result in a compound reply".to_owned(),
        })?;
        reply::read(api, method, text.get().as_bytes())
    }

    /// The error as if DSM had refused this call with `code`.
    pub(super) fn refused(&self, code: Code) -> DsmError {
        DsmError::Refused {
            api: self.api,
            method: self.method,
            code,
        }
    }

    /// The form fields to send. They hold secrets: for logs use the `Debug` text of a call.
    pub fn form(&self) -> Vec<(&'static str, String)> {
        let mut fields = vec![
            ("api", self.api.to_owned()),
            ("version", self.version.to_string()),
            ("method", self.method.to_owned()),
        ];
        fields.extend(
            self.params
                .iter()
                .map(|(name, value)| (*name, value.json())),
        );
        fields
    }

    /// A compound request (`SYNO.Entry.Request` v1 `request`): calls are carried out in order, up to the first one that fails.
    /// Source: N4S4 `synology_api` and DSM's own pages.
    pub fn sequence(calls: &[Self]) -> Self {
        Self::compound(calls, true)
    }

    /// Like [`Call::sequence`], but DSM continues after a call that fails.
    pub fn each(calls: &[Self]) -> Self {
        Self::compound(calls, false)
    }

    fn compound(calls: &[Self], stop: bool) -> Self {
        let compound: Vec<Value> = calls.iter().map(Self::in_compound).collect();
        let mut whole = Self::new("SYNO.Entry.Request", 1, "request")
            .with("stop_when_error", stop)
            .with("mode", "sequential");
        if calls.iter().any(|call| call.class == RequestClass::Creates) {
            whole.class = RequestClass::Creates;
        }
        let compound = json!(compound);
        let secret = calls
            .iter()
            .flat_map(|call| &call.params)
            .any(|(_, value)| matches!(value, Param::Secret(_)));
        whole.params.push((
            "compound",
            if secret {
                Param::Secret(compound.to_string().into())
            } else {
                Param::Plain(compound)
            },
        ));
        whole
    }

    fn in_compound(&self) -> Value {
        let mut object = json!({"api": self.api, "version": self.version, "method": self.method});
        for (name, value) in &self.params {
            object[*name] = match value {
                Param::Plain(value) => value.clone(),
                // `with_secret` has encoded a string.
                Param::Secret(text) => {
                    serde_json::from_str(text.expose_secret()).unwrap_or_default()
                }
            };
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
    fn secrets_are_sent_and_not_shown() {
        let call = Call::new("A", 1, "set")
            .with("user", "alice")
            .with_secret("password", &"pla\"nted".into());
        assert_eq!(call.form()[4], ("password", r#""pla\"nted""#.to_owned()));
        let both = Call::sequence(&[call.clone(), Call::new("A", 1, "list")]);
        let sent: Value = serde_json::from_str(&both.form().pop().unwrap().1).unwrap();
        assert_eq!(
            (&sent[0]["password"], &sent[1]["method"]),
            (&json!("pla\"nted"), &json!("list"))
        );
        for call in [call, both] {
            let shown = format!("{call:?}");
            assert!(!shown.contains("nted") && shown.contains("***"), "{shown}");
        }
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
