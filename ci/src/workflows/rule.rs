//! What holds for every workflow. Reads nothing: text in, breaches out.
//!
//! A rule looks at two things: the objects that the text means, and its lines, for comments are no part of the objects. What the
//! objects call must be found in a line, so that no form of YAML hides anything.

mod publishing;

use anyhow::{Context as _, Result};
use serde_yaml_ng::{Mapping, Value};

use super::call::Call;

/// Beside a task that `.ci/run` leaves out.
const REASON: &str = "# not in .ci/run: ";

/// Events that run a stranger's code with the rights of the repository.
const FORBIDDEN_EVENTS: [&str; 2] = ["pull_request_target", "workflow_run"];

/// The only secret, which every run has anyway.
const SECRET: &str = "GITHUB_TOKEN";

/// What is wrong with a workflow; `rows` are the tasks of `.ci/run`.
///
/// # Errors
/// When it is no YAML, or no workflow at all.
pub(super) fn breaches(text: &str, rows: &[&str]) -> Result<Vec<String>> {
    let workflow: Mapping = serde_yaml_ng::from_str(text).context("no YAML object")?;
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
        _ => return vec!["it says not on which events it runs".to_owned()],
    };
    let forbidden = events
        .iter()
        .filter(|event| FORBIDDEN_EVENTS.contains(event));
    forbidden
        .map(|event| format!("{event} runs a stranger's code with our rights"))
        .collect()
}

/// For all jobs: nothing but reading. A job that writes says so itself.
fn permissions(top: Option<&Value>) -> Vec<String> {
    let Some(Value::Mapping(permissions)) = top else {
        return vec!["permissions: must be said at the top, each by its name".to_owned()];
    };
    let wide = permissions
        .iter()
        .filter(|(_, level)| !matches!(level.as_str(), Some("read" | "none")));
    wide.map(|(name, _)| {
        format!(
            "permissions: {} is more than every job needs",
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
        .map(|name| format!("it uses the secret {name}, and may use only {SECRET}"))
        .collect()
}

fn job_breaches(job: &Value, lines: &[Line<'_>]) -> Vec<String> {
    let mut found = Vec::new();
    if job.get("timeout-minutes").is_none() {
        found.push("it may run for ever: set timeout-minutes".to_owned());
    }
    if let Some(level) = job.get("permissions").and_then(Value::as_str) {
        found.push(format!("permissions: {level} names nothing"));
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
            found.push(format!("{image} is not named by its digest"));
        }
    }
    // A job can be another workflow.
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
        found.push("the checkout leaves its token behind: persist-credentials: false".to_owned());
    }
    found
}

/// A `uses:` or a `run:`, and what stands beside it.
#[derive(Debug)]
struct Line<'a> {
    number: usize,
    key: &'static str,
    value: &'a str,
    /// At its end.
    comment: &'a str,
    /// On the lines before it.
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
            self.unpinned()
        } else {
            self.unfit(rows)
        };
        wrong.map(|wrong| format!("line {}: {wrong}", self.number))
    }

    fn unpinned(&self) -> Option<String> {
        let commit = self.value.split_once('@').map_or("", |(_, commit)| commit);
        if !is_hexadecimal(commit, 40) {
            return Some(format!("{} is not named by a whole commit", self.value));
        }
        let version = self.comment.strip_prefix('v').unwrap_or_default();
        let told = version.starts_with(|first: char| first.is_ascii_digit());
        (!told).then(|| format!("{}: which version is that? Say `# vN.N.N`", self.value))
    }

    fn unfit(&self, rows: &[&str]) -> Option<String> {
        match Call::parse(self.value) {
            Err(why) => Some(why),
            Ok(Call::Task(task)) if !rows.contains(&task.as_str()) && !self.has_reason() => Some(
                format!("{task} is no part of .ci/run: say `{REASON}…` above it, and why"),
            ),
            Ok(Call::Task(_) | Call::SetUp { .. }) => None,
        }
    }

    fn has_reason(&self) -> bool {
        self.above
            .iter()
            .any(|line| line.strip_prefix(REASON).is_some_and(|why| why.len() > 10))
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
