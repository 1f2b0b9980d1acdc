//! The rows of a list, read one by one: a row of an unknown shape, of somebody else's LUN for instance, hides no other. Pure.

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
    /// Those that could be read.
    pub fit: Vec<T>,
    /// Those that could not.
    pub unfit: Vec<UnreadableRow>,
}

/// A row that is not as it should be. It may be anybody's: who looks for something in the list has to ask whether it could be that.
#[derive(Clone, Debug)]
pub struct UnreadableRow {
    row: Value,
    why: String,
}

impl UnreadableRow {
    /// A field, if it is there and a text.
    pub fn text(&self, field: &str) -> Option<&str> {
        self.row.get(field)?.as_str()
    }

    /// `text` stands anywhere in it.
    pub fn mentions(&self, text: &str) -> bool {
        self.row.to_string().contains(text)
    }

    /// What is known of it: its name or key, and what does not fit.
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

/// Reads rows one after the other: a tree of values takes many times the room of its row, and there is one at a time.
struct OneByOne<T>(PhantomData<T>);

impl<'de, T: DeserializeOwned> Visitor<'de> for OneByOne<T> {
    type Value = Rows<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of rows")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Rows<T>, A::Error> {
        let mut rows = Rows {
            fit: Vec::new(),
            unfit: Vec::new(),
        };
        while let Some(row) = list.next_element::<Value>()? {
            match T::deserialize(&row) {
                Ok(fit) => rows.fit.push(fit),
                Err(error) => rows.unfit.push(UnreadableRow {
                    row,
                    why: error.to_string(),
                }),
            }
        }
        Ok(rows)
    }
}

impl<T> Rows<T> {
    /// The rows in which everything is that is looked for.
    ///
    /// # Errors
    /// [`DsmError::Garbled`]: a row of `list` that cannot be read `could_be` what is looked for. Unknown is not absent.
    pub fn unless(
        self,
        list: &Call,
        could_be: impl Fn(&UnreadableRow) -> bool,
    ) -> Result<Vec<T>, DsmError> {
        match self.unfit.iter().find(|row| could_be(row)) {
            Some(doubt) => Err(DsmError::Garbled {
                api: list.api,
                method: list.method,
                seen: doubt.seen(),
            }),
            None => Ok(self.fit),
        }
    }
}

/// A word of a vocabulary that nobody knows whole: whatever DSM writes there is a word.
pub(super) fn word<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
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
    fn an_unfit_row_hides_no_other() {
        let rows: Rows<Row> = serde_json::from_str(
            r#"[{"name":"a","size":1},{"name":"b"},null,{"name":"c","size":-1},{"name":"d","size":4}]"#,
        )
        .unwrap();
        let names: Vec<&str> = rows.fit.iter().map(|row| row.name.as_str()).collect();
        assert_eq!(names, ["a", "d"]);
        assert_eq!(rows.unfit.len(), 3);
        assert!(rows.unfit[0].seen().contains("\"b\""));
        let list = Call::new("A", 1, "list");
        let error = rows
            .unless(&list, |row| row.text("name").is_none_or(|name| name == "x"))
            .unwrap_err();
        assert!(error.to_string().contains("unknown name"), "{error}");
    }

    #[test]
    fn a_list_that_is_none_is_no_empty_list() {
        for text in ["null", "{}", "1", r#""""#] {
            assert!(serde_json::from_str::<Rows<Row>>(text).is_err(), "{text}");
        }
    }
}
