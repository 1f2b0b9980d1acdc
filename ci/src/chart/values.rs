//! Whether the chart's README describes each value that there is, with its default, and none that is not. Text in, breaches out.
//!
//! A value is a row of a table under the head `Value`: its path, its default, its meaning. `nas[].url` is a key of the elements of a list, and
//! `*` stands for one part of a path: `sidecars.*.image`.

use std::collections::BTreeSet;

use serde_json::Value;

/// Where it all stands.
pub(super) const README: &str = "driver/deploy/chart/README.md";
/// What helm judges values by.
pub(super) const SCHEMA: &str = "driver/deploy/chart/values.schema.json";
/// The defaults.
pub(super) const VALUES: &str = "driver/deploy/chart/values.yaml";

/// Definitions of the schema whose parts are Kubernetes' own, or free: such a value is described as a whole.
const WHOLE: [&str; 4] = ["parameters", "resources", "texts", "toleration"];
const REFERENCE: &str = "#/definitions/";

/// What is wrong with the README.
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
        if let Some((told, is)) = row.wrong_default(values) {
            found.push(format!(
                "{README}:{}: says that the default of {} is {told}, but in {VALUES} it is {is}",
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

/// The paths of a schema.
#[derive(Debug, Default)]
struct Tree {
    /// Those of values.
    leaves: BTreeSet<String>,
    /// Those of objects and lists whose parts are values.
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

/// A schema, or the definition that it refers to; `None` for one that is described as a whole.
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

/// The paths of what has a default; objects of which the schema knows no parts are values.
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

/// A value as the README has it.
#[derive(Debug)]
struct Row {
    line: usize,
    path: String,
    /// In backquotes, as YAML; none where it is told in words.
    default: Option<String>,
}

impl Row {
    /// What the row says, and how it is.
    fn wrong_default(&self, values: &Value) -> Option<(String, String)> {
        let told = self.default.as_ref()?;
        if self.path.contains(['*', '[']) {
            return None;
        }
        let is = self.path.split('.').try_fold(values, |it, key| it.get(key));
        let is = is.unwrap_or(&Value::Null);
        let read: Option<Value> = serde_yaml_ng::from_str(told).ok();
        (read.as_ref() != Some(is)).then(|| (told.clone(), is.to_string()))
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

/// What stands in backquotes.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// The path is meant by one in which parts may be `*`.
fn covers(told: &str, path: &str) -> bool {
    let (told, path) = (told.split('.'), path.split('.'));
    told.clone().count() == path.clone().count()
        && told
            .zip(path)
            .all(|(told, part)| told == "*" || told == part)
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
    fn a_readme_with_all_values_is_good() {
        assert_eq!(found(ALL), Vec::<String>::new());
        // Several in one row.
        let together = ALL.replace("`node.image.*`", "`node.image.tag`, `node.image.digest`");
        assert_eq!(found(&together), Vec::<String>::new());
    }

    #[test]
    fn each_value_that_is_left_out_is_named() {
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
    fn a_value_that_is_none_and_a_default_that_is_another_are_found_with_their_line() {
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
