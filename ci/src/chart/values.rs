//! Checks that the chart's README describes each value with its default, and no value that does not exist. No I/O.
//!
//! A value is a row of a table with the header `Value`: path, default, meaning. `nas[].url` is a key of the elements of a list,
//! and `*` is a wildcard for one part of a path: `sidecars.*.image`.

use std::collections::BTreeSet;

use serde_json::Value;

/// The documentation of the values.
pub(super) const README: &str = "driver/deploy/chart/README.md";
/// The schema that helm validates values with.
pub(super) const SCHEMA: &str = "driver/deploy/chart/values.schema.json";
/// The defaults.
pub(super) const VALUES: &str = "driver/deploy/chart/values.yaml";

/// Definitions of the schema whose fields are defined by Kubernetes, or free-form. Such a value has one row for all its fields.
const WHOLE: [&str; 4] = ["parameters", "resources", "texts", "toleration"];
const REFERENCE: &str = "#/definitions/";

/// All problems of the README.
pub(super) fn breaches(readme: &str, schema: &Value, values: &Value) -> Vec<String> {
    let mut tree = Tree::default();
    tree.add(schema, &schema["definitions"], "");
    let mut wanted = tree.leaves.clone();
    defaults(values, "", &tree.leaves, &mut wanted);
    let known: BTreeSet<&String> = wanted.iter().chain(&tree.inner).collect();

    let rows = rows(readme);
    let mut found = Vec::new();
    for row in &rows {
        if !known.iter().any(|path| covers(&row.path, path)) {
            found.push(format!(
                "{README}:{}: describes {}, which is in neither {SCHEMA} nor {VALUES}",
                row.line, row.path
            ));
        }
        if let Some((documented, actual)) = row.wrong_default(values) {
            found.push(format!(
                "{README}:{}: says that the default of {} is {documented}, but in {VALUES} it is {actual}",
                row.line, row.path
            ));
        }
    }
    for path in &wanted {
        if !rows.iter().any(|row| covers(&row.path, path)) {
            found.push(format!(
                "{README}: does not describe {path}, which {SCHEMA} or {VALUES} has"
            ));
        }
    }
    found
}

/// The paths in a schema.
#[derive(Debug, Default)]
struct Tree {
    /// Paths of values.
    leaves: BTreeSet<String>,
    /// Paths of objects and lists that contain values.
    inner: BTreeSet<String>,
}

impl Tree {
    fn add(&mut self, schema: &Value, definitions: &Value, path: &str) {
        let Some(schema) = resolved(schema, definitions) else {
            self.leaves.insert(path.to_owned());
            return;
        };
        let items = &schema["items"];
        if let Some(properties) = schema["properties"].as_object() {
            self.inner.insert(path.to_owned());
            for (key, part) in properties {
                self.add(part, definitions, &join(path, key));
            }
        } else if resolved(items, definitions).is_some_and(|it| it["properties"].is_object()) {
            self.inner.insert(path.to_owned());
            self.add(items, definitions, &format!("{path}[]"));
        } else {
            self.leaves.insert(path.to_owned());
        }
    }
}

/// A schema, or the definition that it refers to; `None` for those of [`WHOLE`].
fn resolved<'a>(schema: &'a Value, definitions: &'a Value) -> Option<&'a Value> {
    let only = match schema["allOf"].as_array().map(Vec::as_slice) {
        Some([only]) => only,
        _ => schema,
    };
    match only["$ref"]
        .as_str()
        .and_then(|name| name.strip_prefix(REFERENCE))
    {
        Some(name) if WHOLE.contains(&name) => None,
        Some(name) => Some(&definitions[name]),
        None => Some(only),
    }
}

/// Collects the paths with a default. Objects whose fields are not in the schema count as values.
fn defaults(values: &Value, path: &str, leaves: &BTreeSet<String>, wanted: &mut BTreeSet<String>) {
    match values.as_object() {
        Some(parts) if !parts.is_empty() && !leaves.contains(path) => {
            for (key, part) in parts {
                defaults(part, &join(path, key), leaves, wanted);
            }
        }
        _ => {
            wanted.insert(path.to_owned());
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// A value in a table of the README.
#[derive(Debug)]
struct Row {
    line: usize,
    path: String,
    /// The text in backquotes, which is YAML; `None` if the default is described in words.
    default: Option<String>,
}

impl Row {
    /// If the default is wrong: the documented and the actual one.
    fn wrong_default(&self, values: &Value) -> Option<(String, String)> {
        let documented = self.default.as_ref()?;
        if self.path.contains(['*', '[']) {
            return None;
        }
        let actual = self.path.split('.').try_fold(values, |it, key| it.get(key));
        let actual = actual.unwrap_or(&Value::Null);
        let read: Option<Value> = serde_yaml_ng::from_str(documented).ok();
        (read.as_ref() != Some(actual)).then(|| (documented.clone(), actual.to_string()))
    }
}

fn rows(readme: &str) -> Vec<Row> {
    let (mut rows, mut is_table) = (Vec::new(), false);
    for (number, line) in readme.lines().enumerate() {
        is_table = line.starts_with('|') && (is_table || line.starts_with("| Value |"));
        let mut cells = line.trim_matches('|').split(" | ");
        let (Some(paths), true) = (cells.next(), is_table) else {
            continue;
        };
        let default = cells.next().and_then(|cell| quoted(cell).next());
        let all = quoted(paths).map(|path| Row {
            line: number + 1,
            path: path.to_owned(),
            default: default.map(str::to_owned),
        });
        rows.extend(all);
    }
    rows
}

/// The texts in backquotes.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// Whether a documented path, in which parts may be `*`, matches a path.
fn covers(documented: &str, path: &str) -> bool {
    let (documented, path) = (documented.split('.'), path.split('.'));
    documented.clone().count() == path.clone().count()
        && documented
            .zip(path)
            .all(|(documented, part)| documented == "*" || documented == part)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn found(rows: &str) -> Vec<String> {
        let schema = json!({
            "properties": {
                "name": {"type": "string"},
                "nas": {"type": "array", "items": {"$ref": "#/definitions/nas"}},
                "node": {"type": "object", "properties": {
                    "image": {"allOf": [{"$ref": "#/definitions/image"}], "description": "x"},
                    "resources": {"$ref": "#/definitions/resources"},
                }},
            },
            "definitions": {
                "nas": {"properties": {"url": {"type": "string"}}},
                "image": {"properties": {"tag": {"type": "string"}, "digest": {"type": "string"}}},
                "resources": {"properties": {"limits": {}}},
            },
        });
        let values = json!({
            "name": "", "nas": [],
            "node": {"image": {"tag": "v1"}, "resources": {"limits": {"cpu": 1}}},
        });
        let head = "| No value |\n|---|\n| `other` |\n\n| Value | Default | |\n|---|---|---|\n";
        breaches(&format!("{head}{rows}"), &schema, &values)
    }

    const ALL: &str = "| `name` | `\"\"` | x |\n| `nas` | `[]` | x |\n| `nas[].url` | required | x |\n\
                       | `node.image.*` | | x |\n| `node.resources` | `{limits: {cpu: 1}}` | x |\n";

    #[test]
    fn a_readme_with_all_values_has_no_problem() {
        assert_eq!(found(ALL), Vec::<String>::new());
        // Several in one row.
        let together = ALL.replace("`node.image.*`", "`node.image.tag`, `node.image.digest`");
        assert_eq!(found(&together), Vec::<String>::new());
    }

    #[test]
    fn each_missing_value_is_reported() {
        for (number, left_out) in ["name", "nas", "nas[].url", "node.image.digest"]
            .iter()
            .enumerate()
        {
            let lines = ALL.lines().enumerate();
            let rest: Vec<&str> = lines
                .filter(|(at, _)| *at != number)
                .map(|(_, it)| it)
                .collect();
            let found = found(&rest.join("\n"));
            assert!(
                found[0].starts_with(&format!("{README}: does not describe {left_out},")),
                "{found:?}"
            );
        }
    }

    #[test]
    fn unknown_values_and_wrong_defaults_are_reported_with_their_line() {
        let more = found(&format!("{ALL}| `node.colour` | | x |\n"));
        assert_eq!(more.len(), 1, "{more:?}");
        assert!(
            more[0].starts_with("driver/deploy/chart/README.md:12: describes node.colour,"),
            "{more:?}"
        );
        let other = found(&ALL.replace("`{limits: {cpu: 1}}`", "`{limits: {cpu: 2}}`"));
        assert_eq!(other.len(), 1, "{other:?}");
        assert!(
            other[0].contains(":11: says that the default of node.resources"),
            "{other:?}"
        );
    }
}
