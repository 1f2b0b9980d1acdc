//! Rules for every workflow: pinned actions and images, least privilege, only our tasks. No I/O.
//!
//! The rules use both the parsed YAML and the lines of the text, which have the comments. Each `uses:` and `run:` in the parsed
//! YAML must also be found as a line, so that no YAML syntax can hide one.

mod publishing;

use anyhow::{Context as _, Result};
use serde_yaml_ng::{Mapping, Value};

use super::call::Call;

/// Comment above a task that is not part of `.ci/run`.
const REASON_PREFIX: &str = "# not in .ci/run: ";

/// Events that run code of pull requests with the repository's permissions.
const FORBIDDEN_EVENTS: [&str; 2] = ["pull_request_target", "workflow_run"];

/// The only allowed secret, which every run has anyway.
const SECRET: &str = "GITHUB_TOKEN";

/// All violations in a workflow. `rows` are the tasks of `.ci/run`.
///
/// # Errors
/// When it is not YAML, or not a workflow.
pub(super) fn breaches(text: &str, rows: &[&str]) -> Result<Vec<String>> {
    let workflow: Mapping = serde_yaml_ng::from_str(text).context("not a YAML object")?;
    let jobs = workflow
        .get("jobs")
        .and_then(Value::as_mapping)
        .context("it has no jobs")?;
    let lines: Vec<Line<'_>> = lines(text);
    let mut found = events(&workflow);
    found.extend(permissions(workflow.get("permissions")));
    found.extend(secrets(text));
    for line in &lines {
        found.extend(line.breach(rows));
    }
    for (name, job) in jobs {
        let name = name.as_str().unwrap_or_default();
        found.extend(
            job_breaches(job, &lines)
                .iter()
                .map(|breach| format!("job {name}: {breach}")),
        );
    }
    found.extend(publishing::breaches(jobs));
    Ok(found)
}

fn events(workflow: &Mapping) -> Vec<String> {
    let events = match workflow.get("on") {
        Some(Value::String(event)) => vec![event.as_str()],
        Some(Value::Sequence(events)) => events.iter().filter_map(Value::as_str).collect(),
        Some(Value::Mapping(events)) => events.keys().filter_map(Value::as_str).collect(),
        _ => return vec!["it does not name the events on which it runs".to_owned()],
    };
    let forbidden = events
        .iter()
        .filter(|event| FORBIDDEN_EVENTS.contains(event));
    forbidden
        .map(|event| format!("{event} runs code of pull requests with our permissions"))
        .collect()
}

/// Checks the top-level permissions, which must be read-only. A job that writes declares that itself.
fn permissions(top: Option<&Value>) -> Vec<String> {
    let Some(Value::Mapping(permissions)) = top else {
        return vec!["permissions: must be set at the top level, each by its name".to_owned()];
    };
    let wide = permissions
        .iter()
        .filter(|(_, level)| !matches!(level.as_str(), Some("read" | "none")));
    wide.map(|(name, _)| {
        format!(
            "permissions: {} at the top level must be read or none",
            name.as_str().unwrap_or_default()
        )
    })
    .collect()
}

fn secrets(text: &str) -> Vec<String> {
    let named = text.split("secrets.").skip(1);
    named
        .map(|rest| {
            rest.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
                .next()
                .unwrap_or_default()
        })
        .filter(|name| *name != SECRET)
        .map(|name| format!("it uses the secret {name}, but only {SECRET} is allowed"))
        .collect()
}

fn job_breaches(job: &Value, lines: &[Line<'_>]) -> Vec<String> {
    let mut found = Vec::new();
    if job.get("timeout-minutes").is_none() {
        found.push("it may run forever: set timeout-minutes".to_owned());
    }
    if let Some(level) = job.get("permissions").and_then(Value::as_str) {
        found.push(format!(
            "permissions: list each permission instead of {level}"
        ));
    }
    let container = job.get("container");
    let image = container.map(|container| container.get("image").unwrap_or(container));
    let services = job.get("services").and_then(Value::as_mapping);
    let others = services.into_iter().flat_map(Mapping::values);
    for image in image
        .into_iter()
        .chain(others.filter_map(|service| service.get("image")))
    {
        let image = image.as_str().unwrap_or_default();
        if !is_pinned_image(image) {
            found.push(format!("{image} is not pinned by its digest"));
        }
    }
    // A job can itself have `uses:`, for a reusable workflow.
    found.extend(step_breaches(job, lines));
    let steps = job.get("steps").and_then(Value::as_sequence);
    for step in steps.into_iter().flatten() {
        found.extend(step_breaches(step, lines));
    }
    found
}

fn step_breaches(step: &Value, lines: &[Line<'_>]) -> Vec<String> {
    let mut found = Vec::new();
    for key in ["uses", "run"] {
        let Some(value) = step.get(key).and_then(Value::as_str) else {
            continue;
        };
        if !lines
            .iter()
            .any(|line| line.key == key && line.value == value)
        {
            found.push(format!("`{key}: {}` must be one line", value.trim()));
        }
    }
    let uses = step.get("uses").and_then(Value::as_str).unwrap_or_default();
    let keeps = step
        .get("with")
        .and_then(|with| with.get("persist-credentials"));
    if uses.starts_with("actions/checkout@") && keeps != Some(&Value::Bool(false)) {
        found.push(
            "the checkout keeps its token on disk: set persist-credentials: false".to_owned(),
        );
    }
    found
}

/// A line with `uses:` or `run:`, and its comments.
#[derive(Debug)]
struct Line<'a> {
    number: usize,
    key: &'static str,
    value: &'a str,
    /// The comment at its end.
    comment: &'a str,
    /// The comment lines above it.
    above: Vec<&'a str>,
}

fn lines(text: &str) -> Vec<Line<'_>> {
    let mut found = Vec::new();
    let mut above = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with('#') {
            above.push(line);
            continue;
        }
        let above = std::mem::take(&mut above);
        let bare = line.strip_prefix("- ").unwrap_or(line);
        for key in ["uses", "run"] {
            if let Some(rest) = bare
                .strip_prefix(key)
                .and_then(|rest| rest.strip_prefix(": "))
            {
                let (value, comment) = rest.split_once(" #").unwrap_or((rest, ""));
                found.push(Line {
                    number: index + 1,
                    key,
                    value: value.trim(),
                    comment: comment.trim(),
                    above: above.clone(),
                });
            }
        }
    }
    found
}

impl Line<'_> {
    fn breach(&self, rows: &[&str]) -> Option<String> {
        let wrong = if self.key == "uses" {
            self.invalid_uses()
        } else {
            self.invalid_run(rows)
        };
        wrong.map(|wrong| format!("line {}: {wrong}", self.number))
    }

    fn invalid_uses(&self) -> Option<String> {
        let commit = self.value.split_once('@').map_or("", |(_, commit)| commit);
        if !is_hexadecimal(commit, 40) {
            return Some(format!(
                "{} is not pinned by a full commit hash",
                self.value
            ));
        }
        let version = self.comment.strip_prefix('v').unwrap_or_default();
        let is_version = version.starts_with(|first: char| first.is_ascii_digit());
        (!is_version).then(|| format!("{}: add its version as a comment `# vN.N.N`", self.value))
    }

    fn invalid_run(&self, rows: &[&str]) -> Option<String> {
        match Call::parse(self.value) {
            Err(why) => Some(why),
            Ok(Call::Task(task)) if !rows.contains(&task.as_str()) && !self.has_reason() => {
                Some(format!(
                    "{task} is not part of .ci/run: add a comment `{REASON_PREFIX}…` with the reason above it"
                ))
            }
            Ok(Call::Task(_) | Call::SetupCommand { .. }) => None,
        }
    }

    fn has_reason(&self) -> bool {
        self.above.iter().any(|line| {
            line.strip_prefix(REASON_PREFIX)
                .is_some_and(|why| why.len() > 10)
        })
    }
}

fn is_pinned_image(image: &str) -> bool {
    image
        .split_once("@sha256:")
        .is_some_and(|(_, digest)| is_hexadecimal(digest, 64))
}

fn is_hexadecimal(text: &str, length: usize) -> bool {
    text.len() == length
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests;
