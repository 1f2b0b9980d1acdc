//! Parameters of a call, decoded as DSM does: JSON if the value is valid JSON, otherwise the raw text.
//! Source: dsm-web-api.md 1.2.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::nas::code::{Code, Refusal};

/// The parameters of one call, as raw strings.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Params(BTreeMap<String, String>);

impl Params {
    /// The value as received.
    pub(crate) fn raw(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub(crate) fn take(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    pub(crate) fn put(&mut self, name: &str, raw: impl Into<String>) {
        self.0.insert(name.to_owned(), raw.into());
    }

    /// All raw values, in order of name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The decoded value: JSON, or the raw text as a string.
    pub(crate) fn value(&self, name: &str) -> Option<Value> {
        self.raw(name)
            .map(|raw| serde_json::from_str(raw).unwrap_or_else(|_| Value::String(raw.to_owned())))
    }

    /// A string, quoted or raw.
    // ASSUMED: where DSM is not known to be strict, a bare number or word is taken as text: a LUN may be named 123 with or
    // without quotes.
    pub(crate) fn string(&self, name: &str) -> Option<String> {
        match self.value(name)? {
            Value::String(text) => Some(text),
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::Array(_)
            | Value::Object(_) => self.raw(name).map(str::to_owned),
        }
    }

    /// Whether any parameter is this text or number, or a list that contains it.
    pub(crate) fn contains_value(&self, text: &str) -> bool {
        let is = |value: &Value| match value {
            Value::String(found) => found == text,
            Value::Number(found) => found.to_string() == text,
            Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => false,
        };
        self.0
            .keys()
            .filter_map(|name| self.value(name))
            .any(|value| is(&value) || value.as_array().is_some_and(|items| items.iter().any(is)))
    }

    /// A required string.
    pub(crate) fn required(&self, name: &str) -> Result<String, Refusal> {
        self.string(name).ok_or_else(|| missing(name))
    }

    /// A non-negative integer; `wrong` is the code for anything else.
    // ASSUMED: a number in quotes is refused where a number is expected; no client is known to send one.
    pub(crate) fn number(&self, name: &str, wrong: Code) -> Result<Option<u64>, Refusal> {
        let Some(value) = self.value(name) else {
            return Ok(None);
        };
        value
            .as_u64()
            .map(Some)
            .ok_or_else(|| wrong.because(format!("{name}={value} is not a whole number")))
    }

    /// A boolean, false if missing.
    // ASSUMED: Python's `True` is true as well, as N4S4 sends it; any other text is false.
    pub(crate) fn boolean(&self, name: &str) -> bool {
        match self.value(name) {
            Some(Value::Bool(on)) => on,
            Some(Value::String(text)) => text.eq_ignore_ascii_case("true"),
            Some(Value::Null | Value::Number(_) | Value::Array(_) | Value::Object(_)) | None => {
                false
            }
        }
    }

    /// A JSON array of strings; any other type is refused with `wrong`. Entries that are not strings are skipped.
    pub(crate) fn strings(&self, name: &str, wrong: Code) -> Result<Option<Vec<String>>, Refusal> {
        match self.value(name) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(
                items
                    .iter()
                    .filter_map(Value::as_str)
                    .map(str::to_owned)
                    .collect(),
            )),
            Some(other) => Err(wrong.because(format!("{name}={other} is not an array"))),
        }
    }

    /// `additional`: the extra fields that the client requests from a list or get.
    pub(crate) fn additional(&self) -> Result<Additional, Refusal> {
        self.strings("additional", Code::BadShape)
            .map(|names| Additional(names.unwrap_or_default()))
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Params {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        Self(
            pairs
                .into_iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
        )
    }
}

/// The requested extra fields. Unknown names are ignored.
#[derive(Debug)]
pub(crate) struct Additional(Vec<String>);

impl Additional {
    /// Whether this field is requested.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|requested| requested == name)
    }
}

/// The refusal for a missing parameter.
// ASSUMED: 114 wherever nothing else was measured; 18990508 is known only from restore_snapshot.
pub(crate) fn missing(name: &str) -> Refusal {
    Code::MissingParameter.because(format!("{name} is missing"))
}

/// Strips one level of JSON quoting, which Cinder adds to `api`, `method`, `version` and `_sid`.
pub(crate) fn unquoted(raw: &str) -> String {
    serde_json::from_str::<String>(raw).unwrap_or_else(|_| raw.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn one(raw: &str) -> Params {
        Params::from_iter([("x", raw)])
    }

    #[test]
    fn strings_come_quoted_or_raw() {
        for (raw, want) in [
            ("\"k8s-csi-x\"", "k8s-csi-x"),
            ("k8s-csi-x", "k8s-csi-x"),
            ("", ""),
            ("\"\"", ""),
            ("123", "123"),
            ("true", "true"),
            ("\"3\"", "3"),
            ("\"unfinished", "\"unfinished"),
        ] {
            assert_eq!(one(raw).string("x").unwrap(), want, "{raw}");
        }
        assert_eq!(Params::default().string("x"), None);
    }

    #[test]
    fn value_distinguishes_a_bare_number_from_a_string() {
        assert_eq!(one("3").value("x"), Some(json!(3)));
        assert_eq!(one("\"3\"").value("x"), Some(json!("3")));
    }

    #[test]
    fn numbers_are_whole_and_bare() {
        assert_eq!(
            one("1073741824").number("x", Code::BadSize).unwrap(),
            Some(1 << 30)
        );
        for raw in ["\"5\"", "-1", "1.5", "five", ""] {
            assert_eq!(
                one(raw).number("x", Code::BadSize).unwrap_err().code,
                Code::BadSize as u32,
                "{raw}"
            );
        }
    }

    #[test]
    fn arrays_may_have_blanks_but_not_quotes() {
        assert_eq!(
            one("[\"a\", \"b\"]")
                .strings("x", Code::BadShape)
                .unwrap()
                .unwrap(),
            ["a", "b"]
        );
        assert_eq!(
            one("[\"a\",\"b\"]")
                .strings("x", Code::BadShape)
                .unwrap()
                .unwrap(),
            ["a", "b"]
        );
        assert_eq!(
            one("\"[\\\"a\\\"]\"")
                .strings("x", Code::BadShape)
                .unwrap_err()
                .code,
            18_990_517
        );
    }

    #[test]
    fn one_level_of_quoting_is_stripped() {
        assert_eq!(unquoted("\"SYNO.Core.ISCSI.LUN\""), "SYNO.Core.ISCSI.LUN");
        assert_eq!(unquoted("SYNO.Core.ISCSI.LUN"), "SYNO.Core.ISCSI.LUN");
        assert_eq!(unquoted("1"), "1");
    }
}
