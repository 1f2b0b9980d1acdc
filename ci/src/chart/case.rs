//! A test case of the chart: a file in `driver/deploy/tests` with values and expectations on the rendered objects.
//!
//! ```yaml
//! about: why one would set these values
//! files: [values-talos.yaml]     # values files of the chart, before `values`
//! bare: true                     # without driver/deploy/manifests/values.yaml
//! values: {controller: {replicas: 2}}
//! there: {synology-csi-chap-key: {key: a2V5}}    # existing Secrets of the cluster; if omitted, helm renders without a cluster
//! refused: text                  # helm fails with this text in its error message; or
//! expect:
//!   - in: Deployment/synology-csi-controller
//!     at: /spec/template/spec/containers/driver/args    # "/" in a key is ~1; an element of a list is its number or name
//!     has: --mode=controller     # is, has or hasNot; if omitted, it must exist
//!   - in: PodDisruptionBudget/synology-csi-controller
//!     absent: true
//! ```

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use serde_json::Value;

/// A test case.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Case {
    /// For readers of the file.
    about: String,
    /// Values files of the chart.
    #[serde(default)]
    pub(super) files: Vec<String>,
    /// Without the values of the plain manifest.
    #[serde(default)]
    pub(super) bare: bool,
    #[serde(default = "nothing")]
    pub(super) values: Value,
    /// Existing Secrets in the release's namespace, as name and data. `None`: helm renders without a cluster.
    pub(super) there: Option<BTreeMap<String, Value>>,
    /// Part of helm's error message, if helm must fail.
    pub(super) refused: Option<String>,
    #[serde(default)]
    expect: Vec<Expectation>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Expectation {
    /// `Kind/name`.
    #[serde(rename = "in")]
    object: String,
    #[serde(default)]
    at: String,
    is: Option<Value>,
    has: Option<Value>,
    has_not: Option<Value>,
    #[serde(default)]
    absent: bool,
}

fn nothing() -> Value {
    Value::Object(serde_json::Map::new())
}

/// All cases in a folder, sorted by file name.
///
/// # Errors
/// When a file cannot be read, or is not a valid case.
pub(super) fn read_all(folder: &Path) -> Result<Vec<(String, Case)>> {
    let mut cases = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let name = path.file_stem().unwrap_or_default();
        let case = read(&fs::read_to_string(&path)?).with_context(|| path.display().to_string())?;
        cases.push((name.to_string_lossy().into_owned(), case));
    }
    cases.sort_by(|left, right| left.0.cmp(&right.0));
    Ok(cases)
}

fn read(text: &str) -> Result<Case> {
    let case: Case = serde_yaml_ng::from_str(text)?;
    ensure!(
        !case.about.is_empty(),
        "about: describe the purpose of the case"
    );
    ensure!(
        case.refused.is_some() == case.expect.is_empty(),
        "a case needs either `refused` or `expect`"
    );
    Ok(case)
}

impl Case {
    /// Number of expectations.
    pub(super) fn expectations(&self) -> usize {
        self.expect.len() + usize::from(self.refused.is_some())
    }

    /// The expectations that are not met.
    pub(super) fn check(&self, objects: &[Value]) -> Vec<String> {
        self.expect
            .iter()
            .filter_map(|expectation| expectation.problem(objects))
            .collect()
    }
}

impl Expectation {
    fn problem(&self, objects: &[Value]) -> Option<String> {
        let place = format!("{} {}", self.object, self.at);
        let object = objects.iter().find(|object| name_of(object) == self.object);
        let found = object.and_then(|object| value_at(object, &self.at));
        let Some(found) = found else {
            return (!self.absent).then(|| format!("{place}: not there"));
        };
        let problem = |what: &str| Some(format!("{place}: {what}; it is {found}"));
        if self.absent {
            return problem("should not be there");
        }
        if let Some(is) = self.is.as_ref().filter(|is| *is != found) {
            return problem(&format!("should be {is}"));
        }
        if let Some(part) = self.has.as_ref().filter(|part| !contains(found, part)) {
            return problem(&format!("should have {part}"));
        }
        if let Some(part) = self.has_not.as_ref().filter(|part| contains(found, part)) {
            return problem(&format!("should not have {part}"));
        }
        None
    }
}

/// `Kind/name`.
pub(super) fn name_of(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    format!(
        "{}/{}",
        text(&object["kind"]),
        text(&object["metadata"]["name"])
    )
}

/// The value at a path such as `/spec/containers/driver/args`.
pub(super) fn value_at<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('/').skip(1).try_fold(value, |value, part| {
        match (value.as_array(), part.parse()) {
            (Some(elements), Ok(number)) => elements.get::<usize>(number),
            (Some(elements), Err(_)) => elements.iter().find(|element| element["name"] == part),
            (None, _) => value.get(part.replace("~1", "/")),
        }
    })
}

fn contains(whole: &Value, part: &Value) -> bool {
    match (whole, part) {
        (Value::Array(elements), part) => elements.contains(part),
        (Value::String(text), Value::String(part)) => text.contains(part.as_str()),
        (Value::Object(fields), Value::String(key)) => fields.contains_key(key),
        (other, part) => other == part,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn problems(expect: &str) -> Vec<String> {
        let objects = [json!({
            "kind": "Deployment",
            "metadata": {"name": "a", "annotations": {"x.io/y": "z"}},
            "spec": {"replicas": 2, "containers": [{"name": "driver", "args": ["--a", "--b"]}]},
        })];
        let case = format!("about: x\nexpect:\n  - {{in: Deployment/a, {expect}}}\n");
        read(&case).unwrap().check(&objects)
    }

    #[test]
    fn met_expectations_are_no_problem() {
        for met in [
            "at: /spec/replicas, is: 2",
            "at: /spec/containers/driver/args, has: --a",
            "at: /spec/containers/0/args, hasNot: --c",
            "at: /metadata/annotations/x.io~1y, is: z",
            "at: /metadata/annotations/x.io~1y, has: z",
            "at: /spec/containers/driver",
            "at: /spec/containers/other, absent: true",
        ] {
            assert_eq!(problems(met), Vec::<String>::new(), "{met}");
        }
    }

    #[test]
    fn unmet_expectations_are_problems() {
        for missed in [
            "at: /spec/replicas, is: 3",
            "at: /spec/replicas, absent: true",
            "at: /spec/containers/driver/args, has: --c",
            "at: /spec/containers/driver/args, hasNot: --a",
            "at: /spec/strategy",
        ] {
            assert_eq!(problems(missed).len(), 1, "{missed}");
        }
    }

    #[test]
    fn a_case_without_expectations_or_with_unknown_keys_is_invalid() {
        assert!(read("about: x\nvalues: {}\n").is_err());
        assert!(read("about: x\nrefused: y\nexpects: []\n").is_err());
        assert!(read("about: ''\nrefused: y\n").is_err());
        assert!(read("about: x\nrefused: y\n").is_ok());
    }
}
