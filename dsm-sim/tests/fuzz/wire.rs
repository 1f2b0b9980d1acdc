//! The generators of parameter values.

use proptest::prelude::*;
use serde_json::{Value, json};

/// A parameter value before it is encoded. References to objects are resolved by the current state.
#[derive(Clone, Debug)]
pub(crate) enum Wire {
    /// Any bytes.
    Raw(Vec<u8>),
    /// JSON text.
    Json(Value),
    /// A character repeated many times.
    Long(char, usize),
    /// Nested arrays.
    Deep(usize),
    /// A LUN, target or snapshot that exists.
    Known(Known, Shape),
}

/// A reference to an existing object, by index.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Known {
    /// By uuid.
    Lun(usize),
    /// By name.
    LunName(usize),
    /// By number.
    Target(usize),
    /// By uuid.
    Snapshot(usize),
}

/// How a reference is encoded.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Shape {
    /// As it is.
    Bare,
    /// As a JSON string.
    Quoted,
    /// In an array of strings.
    Listed,
    /// In an array, as a number if it is one.
    Numbers,
}

impl Known {
    fn text(self, state: &Value) -> String {
        let (table, field, index) = match self {
            Self::Lun(index) => ("luns", "uuid", index),
            Self::LunName(index) => ("luns", "name", index),
            Self::Target(index) => ("targets", "target_id", index),
            Self::Snapshot(index) => ("snapshots", "uuid", index),
        };
        // Sort by name: uuids, and hence their order, differ in each run.
        let mut rows: Vec<&Value> = state[table].as_array().into_iter().flatten().collect();
        rows.sort_by_key(|row| row["name"].to_string());
        let Some(row) = rows.get(index % rows.len().max(1)) else {
            return "none".to_owned();
        };
        let found = &row[field];
        found
            .as_str()
            .map_or_else(|| found.to_string(), str::to_owned)
    }
}

impl Wire {
    /// A text as a JSON string, which the API always accepts.
    pub(crate) fn text(text: &str) -> Self {
        Self::Json(json!(text))
    }

    /// A reference as a JSON string.
    pub(crate) fn quoted(known: Known) -> Self {
        Self::Known(known, Shape::Quoted)
    }

    /// The encoded bytes.
    pub(crate) fn bytes(&self, state: &Value) -> Vec<u8> {
        match self {
            Self::Raw(bytes) => bytes.clone(),
            Self::Json(value) => value.to_string().into_bytes(),
            Self::Long(letter, times) => letter.to_string().repeat(*times).into_bytes(),
            Self::Deep(depth) => ["[".repeat(*depth), "]".repeat(*depth)]
                .concat()
                .into_bytes(),
            Self::Known(known, shape) => {
                let text = known.text(state);
                let written = match shape {
                    Shape::Bare => text,
                    Shape::Quoted => json!(text).to_string(),
                    Shape::Listed => json!([text]).to_string(),
                    Shape::Numbers => text
                        .parse::<u64>()
                        .map_or_else(|_| json!([text]), |number| json!([number]))
                        .to_string(),
                };
                written.into_bytes()
            }
        }
    }

    /// The value inside a compound: JSON if it is valid JSON, else a string.
    pub(crate) fn json(&self, state: &Value) -> Value {
        let text = String::from_utf8_lossy(&self.bytes(state)).into_owned();
        serde_json::from_str(&text).unwrap_or(Value::String(text))
    }
}

/// Any value.
pub(crate) fn wire() -> impl Strategy<Value = Wire> {
    let known = prop_oneof![
        (0..4_usize).prop_map(Known::Lun),
        (0..4_usize).prop_map(Known::LunName),
        (0..4_usize).prop_map(Known::Target),
        (0..4_usize).prop_map(Known::Snapshot),
    ];
    let shape = prop_oneof![
        Just(Shape::Bare),
        Just(Shape::Quoted),
        Just(Shape::Listed),
        Just(Shape::Numbers)
    ];
    prop_oneof![
        6 => (known, shape).prop_map(|(known, shape)| Wire::Known(known, shape)),
        3 => json_value().prop_map(Wire::Json),
        3 => word().prop_map(|word| Wire::Json(json!(word))),
        2 => word().prop_map(|word| Wire::Raw(word.into_bytes())),
        2 => proptest::collection::vec(any::<u8>(), 0..24).prop_map(Wire::Raw),
        1 => (any::<char>(), prop_oneof![Just(255_usize), Just(256), Just(70_000)])
            .prop_map(|(letter, times)| Wire::Long(letter, times)),
        1 => (0..2_000_usize).prop_map(Wire::Deep),
    ]
}

/// Strings with a meaning in some parameter, and edge cases.
fn word() -> impl Strategy<Value = String> {
    let words = [
        "",
        "a",
        "b",
        "c",
        "/volume1",
        "/volume2",
        "/volume1/../..",
        "BLUN",
        "BLUN_THICK",
        "THIN",
        "ADV",
        "FILE",
        "CINDER",
        "0",
        "1",
        "-1",
        "1.5",
        "1e300",
        "512",
        "1073741824",
        "18446744073709551615",
        "99999999999999999999",
        "9223372036854775807",
        "true",
        "false",
        "True",
        "null",
        "iqn.2000-01.com.synology:a",
        "iqn.",
        "all",
        "LUN",
        "admin",
        "{}",
        "[]",
        "[\"all\"]",
        "\"",
        "\"unfinished",
        "\\",
        "\u{0}",
        "é",
        "a/b",
        "../../etc/passwd",
        "%",
        "a;b&c=d",
        "[\"mapped_lun\",\"status\",\"allocated_size\",\"is_action_locked\"]",
        "[{\"dev_attrib\":\"emulate_tpu\",\"enable\":1}]",
    ];
    prop_oneof![
        4 => proptest::sample::select(words.map(str::to_owned).to_vec()),
        1 => any::<String>(),
    ]
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(word(), inner, 0..4)
                .prop_map(|fields| fields.into_iter().collect::<serde_json::Map<_, _>>().into()),
        ]
    })
}
