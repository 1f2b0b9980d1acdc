//! Compares the shapes of two replies: the same keys, JSON types and codes. Other values may differ.

use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value};

/// Keys whose values are part of the shape.
const EXACT: [&str; 3] = ["success", "code", "import_errno"];

/// One difference between a recorded reply and a simulated one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Difference {
    /// JSON path: `.data.lun.size`, `.data.luns[0].name`.
    pub at: String,
    /// Kind of the difference.
    #[serde(flatten)]
    pub kind: Kind,
}

/// Kind of a difference. The only values in it are codes and versions, so that a report contains no private data.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Kind {
    /// A key that is only in the recorded reply.
    Missing,
    /// A key that is only in the simulated reply.
    Additional,
    /// The JSON type differs. Integers and floats are different types.
    Type {
        /// The recorded type.
        recorded: &'static str,
        /// The simulated type.
        simulated: &'static str,
    },
    /// A value that clients depend on differs.
    Value {
        /// The recorded value.
        recorded: String,
        /// The simulated value.
        simulated: String,
    },
    /// Only one of the two has rows, so that the shape of a row cannot be compared.
    Rows {
        /// Number of recorded rows.
        recorded: usize,
        /// Number of simulated rows.
        simulated: usize,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = &self.at;
        match &self.kind {
            Kind::Missing => write!(f, "{at} is recorded and not simulated"),
            Kind::Additional => write!(f, "{at} is simulated and not recorded"),
            Kind::Type {
                recorded,
                simulated,
            } => write!(f, "{at}: recorded {recorded}, simulated {simulated}"),
            Kind::Value {
                recorded,
                simulated,
            } => write!(f, "{at}: recorded {recorded}, simulated {simulated}"),
            Kind::Rows {
                recorded,
                simulated,
            } => write!(f, "{at}: recorded {recorded} rows, simulated {simulated}"),
        }
    }
}

/// All differences between the shapes of two replies.
pub fn compare(recorded: &Value, simulated: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    values("", recorded, simulated, &mut found);
    found
}

fn values(at: &str, recorded: &Value, simulated: &Value, found: &mut Vec<Difference>) {
    match (recorded, simulated) {
        (Value::Object(recorded), Value::Object(simulated)) => {
            objects(at, recorded, simulated, found);
        }
        (Value::Array(recorded), Value::Array(simulated)) => rows(at, recorded, simulated, found),
        _ => {
            let (recorded, simulated) = (type_of(recorded), type_of(simulated));
            if recorded != simulated {
                found.push(Difference {
                    at: at.to_owned(),
                    kind: Kind::Type {
                        recorded,
                        simulated,
                    },
                });
            }
        }
    }
}

fn objects(
    at: &str,
    recorded: &Map<String, Value>,
    simulated: &Map<String, Value>,
    found: &mut Vec<Difference>,
) {
    let mut names: Vec<&String> = recorded.keys().chain(simulated.keys()).collect();
    names.sort();
    names.dedup();
    for name in names {
        let at = format!("{at}.{name}");
        let kind = match (recorded.get(name), simulated.get(name)) {
            // A code that is a string may be private, for instance an OTP code.
            (Some(recorded), Some(simulated))
                if EXACT.contains(&name.as_str())
                    && !recorded.is_string()
                    && !simulated.is_string() =>
            {
                if recorded == simulated {
                    continue;
                }
                Kind::Value {
                    recorded: recorded.to_string(),
                    simulated: simulated.to_string(),
                }
            }
            (Some(recorded), Some(simulated)) => {
                values(&at, recorded, simulated, found);
                continue;
            }
            (Some(_), None) => Kind::Missing,
            (None, _) => Kind::Additional,
        };
        found.push(Difference { at, kind });
    }
}

/// Rows of a table share one shape, but each result of a compound has its own: a row without a recorded counterpart is compared
/// with the first one.
fn rows(at: &str, recorded: &[Value], simulated: &[Value], found: &mut Vec<Difference>) {
    if recorded.is_empty() != simulated.is_empty() {
        found.push(Difference {
            at: at.to_owned(),
            kind: Kind::Rows {
                recorded: recorded.len(),
                simulated: simulated.len(),
            },
        });
    }
    for (index, simulated) in simulated.iter().enumerate() {
        if let Some(recorded) = recorded.get(index).or(recorded.first()) {
            values(&format!("{at}[{index}]"), recorded, simulated, found);
        }
    }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a fraction",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_kind_of_difference_is_found() {
        for (recorded, simulated, count) in [
            (json!({"a": 1}), json!({"a": 2}), 0),
            (json!({"a": 1}), json!({"a": "1"}), 1),
            (json!({"a": 1}), json!({"a": 1.5}), 1),
            (json!({"a": 1}), json!({}), 1),
            (json!({}), json!({"a": 1}), 1),
            (json!([{"a": 1}]), json!([{"a": 1}, {"b": 1}]), 2),
            (json!([]), json!([1]), 1),
            (
                json!({"error": {"code": 1}}),
                json!({"error": {"code": 2}}),
                1,
            ),
            (json!({"code": "123456"}), json!({"code": "654321"}), 0),
            (json!({"a": null}), json!({"a": []}), 1),
        ] {
            let found = compare(&recorded, &simulated);
            assert_eq!(found.len(), count, "{recorded} {simulated}: {found:?}");
        }
    }
}
