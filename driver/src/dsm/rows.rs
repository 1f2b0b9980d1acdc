//! Lists of DSM, parsed row by row: an unreadable row, of somebody else's LUN for instance, does not hide the others. Pure.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeOwned, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::call::Call;
use super::reply::DsmError;

/// All rows of a list.
#[derive(Debug)]
pub struct Rows<T> {
    /// The readable rows.
    pub readable: Vec<T>,
    /// The unreadable rows.
    pub unreadable: Vec<UnreadableRow>,
}

/// A row of an unexpected shape. It may be anything: code that looks for something in the list must check whether this row could
/// be it.
#[derive(Clone, Debug)]
pub struct UnreadableRow {
    row: Value,
    why: String,
}

impl UnreadableRow {
    /// A field, if it is a string.
    pub fn text(&self, field: &str) -> Option<&str> {
        self.row.get(field)?.as_str()
    }

    /// `text` occurs anywhere in it.
    pub fn mentions(&self, text: &str) -> bool {
        self.row.to_string().contains(text)
    }

    /// For messages: its name or key, and why it cannot be read.
    pub fn seen(&self) -> String {
        let name = ["name", "iqn", "uuid", "volume_path"]
            .iter()
            .find_map(|field| self.text(field));
        format!(
            "the row of {:?} cannot be read ({})",
            name.unwrap_or("an unknown name"),
            self.why
        )
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Rows<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(OneByOne(PhantomData))
    }
}

/// Parses one row at a time: a `Value` takes many times the memory of its text, and only one exists at a time.
struct OneByOne<T>(PhantomData<T>);

impl<'de, T: DeserializeOwned> Visitor<'de> for OneByOne<T> {
    type Value = Rows<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of rows")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Rows<T>, A::Error> {
        let mut rows = Rows {
            readable: Vec::new(),
            unreadable: Vec::new(),
        };
        while let Some(row) = list.next_element::<Value>()? {
            match T::deserialize(&row) {
                Ok(parsed) => rows.readable.push(parsed),
                Err(error) => rows.unreadable.push(UnreadableRow {
                    row,
                    why: error.to_string(),
                }),
            }
        }
        Ok(rows)
    }
}

impl<T> Rows<T> {
    /// The readable rows, if no unreadable row could be of interest.
    ///
    /// # Errors
    /// [`DsmError::Garbled`]: an unreadable row of `list` `could_be` of interest. Unknown is not absent.
    pub fn complete(
        self,
        list: &Call,
        could_be: impl Fn(&UnreadableRow) -> bool,
    ) -> Result<Vec<T>, DsmError> {
        match self.unreadable.iter().find(|row| could_be(row)) {
            Some(row) => Err(DsmError::Garbled {
                api: list.api,
                method: list.method,
                seen: row.seen(),
            }),
            None => Ok(self.readable),
        }
    }
}

/// Deserializes a string whose possible values are not fully known: any JSON value is accepted.
pub(super) fn any_string<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::String(word) => word,
        Value::Null => String::new(),
        other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
            other.to_string()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Deserialize)]
    struct Row {
        name: String,
        size: u64,
    }

    #[test]
    fn an_unreadable_row_hides_no_other() {
        let rows: Rows<Row> = serde_json::from_str(
            r#"[{"name":"a","size":1},{"name":"b"},null,{"name":"c","size":-1},{"name":"d","size":4}]"#,
        )
        .unwrap();
        let names: Vec<&str> = rows.readable.iter().map(|row| row.name.as_str()).collect();
        assert_eq!(names, ["a", "d"]);
        assert_eq!(rows.unreadable.len(), 3);
        assert!(rows.unreadable[0].seen().contains("\"b\""));
        let list = Call::new("A", 1, "list");
        let error = rows
            .complete(&list, |row| row.text("name").is_none_or(|name| name == "x"))
            .unwrap_err();
        assert!(error.to_string().contains("unknown name"), "{error}");
    }

    #[test]
    fn a_malformed_list_is_not_an_empty_list() {
        for text in ["null", "{}", "1", r#""""#] {
            assert!(serde_json::from_str::<Rows<Row>>(text).is_err(), "{text}");
        }
    }
}
