//! Rules for workflows with a job that has write permissions: to publish, sign or attest.
//!
//! Compiling runs the build scripts of every dependency, with the permissions of the job. So only one job has write permissions.
//! It compiles nothing, takes the artifacts of other jobs, attests them by digest, and needs an approval (environment).

use serde_yaml_ng::{Mapping, Value};

use super::super::call::{Call, TAG_COMMAND};

/// The actions that the publishing job may use. As everywhere, each is pinned by its full commit hash.
const TRUSTED_ACTIONS: [&str; 4] = [
    "actions/checkout",
    "actions/download-artifact",
    "actions/attest",
    "sigstore/cosign-installer",
];

/// The permissions for publishing, signing and attesting.
const PUBLISHING_PERMISSIONS: [&str; 3] = ["packages", "id-token", "attestations"];

/// All violations in the jobs of a workflow that has a job with write permissions; none for other workflows.
pub(super) fn breaches(jobs: &Mapping) -> Vec<String> {
    let writers: Vec<(&str, &Value)> = named(jobs).filter(|(_, job)| may_write(job)).collect();
    let Some((publisher, job)) = writers.first() else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (name, _) in &writers[1..] {
        found.push(format!("job {name}: has write permissions in addition to job {publisher}: only one job publishes, the others pass artifacts to it"));
    }
    let violations = publisher_breaches(job);
    found.extend(violations.iter().map(|it| format!("job {publisher}: {it}")));
    for (name, job) in named(jobs).filter(|(_, job)| !may_write(job)) {
        if steps(job).any(|step| action(step) == "actions/cache") {
            found.push(format!("job {name}: what is published must not come from a cache, which other branches can write"));
        }
        let text = serde_yaml_ng::to_string(job).unwrap_or_default();
        if text.contains("secrets.") || text.contains("github.token") {
            found.push(format!(
                "job {name}: has a token, but runs code of every dependency"
            ));
        }
    }
    found
}

fn publisher_breaches(job: &Value) -> Vec<String> {
    let mut found = Vec::new();
    if job.get("environment").is_none() {
        found.push("it needs no approval: set environment".to_owned());
    }
    if job.get("needs").is_none() {
        found.push("it uses no artifact of another job: set needs".to_owned());
    }
    for key in ["container", "services", "strategy"] {
        if job.get(key).is_some() {
            found.push(format!("{key}: is not allowed with write permissions"));
        }
    }
    for right in PUBLISHING_PERMISSIONS {
        if job["permissions"][right] != "write" {
            found.push(format!(
                "{right}: write is missing, which publishing, signing and attesting need"
            ));
        }
    }
    for step in steps(job) {
        if let Some(line) = step.get("run").and_then(Value::as_str)
            && Call::parse(line)
                != (Ok(Call::SetupCommand {
                    may_have_rights: true,
                }))
        {
            found.push(format!(
                "`{line}` is not among the commands that may run with write permissions"
            ));
        }
        let action = action(step);
        if !action.is_empty() && !TRUSTED_ACTIONS.contains(&action) {
            found.push(format!(
                "{action} is not among the actions that may run with write permissions"
            ));
        }
    }
    found.extend(attestation_breaches(job));
    found
}

/// Checks the attestations: each artifact has a provenance, each image an SBOM, both for a digest that a previous step has
/// output; and the tag comes last.
fn attestation_breaches(job: &Value) -> Vec<String> {
    let (mut found, mut built, mut listed) = (Vec::new(), Vec::new(), Vec::new());
    for step in steps(job).filter(|step| action(step) == "actions/attest") {
        let with = &step["with"];
        let digest = with["subject-digest"].as_str().unwrap_or_default();
        if !digest.starts_with("${{ steps.") {
            found.push("it attests a digest that is not the output of a step".to_owned());
        }
        if with["push-to-registry"] != true {
            found.push(format!(
                "the attestation of {digest} is not attached: set push-to-registry"
            ));
        }
        match with.get("sbom-path") {
            Some(_) => listed.push(digest),
            None => built.push(digest),
        }
    }
    for digest in &listed {
        if !built.contains(digest) {
            found.push(format!("{digest} has no provenance"));
        }
    }
    if built.is_empty() || listed.is_empty() {
        found.push("provenance or SBOM is missing".to_owned());
    }
    let is_last = |step: &Value| step.get("run").is_some_and(|line| line == TAG_COMMAND);
    let after = steps(job).skip_while(|step| !is_last(step)).skip(1);
    if !steps(job).any(is_last) || after.count() > 0 {
        found.push(format!(
            "`{TAG_COMMAND}` must come last, so that everything with a tag is attested"
        ));
    }
    found
}

/// Whether a job has a write permission. `write-all` is refused elsewhere.
fn may_write(job: &Value) -> bool {
    let rights = job.get("permissions").and_then(Value::as_mapping);
    rights
        .into_iter()
        .flat_map(Mapping::values)
        .any(|level| !matches!(level.as_str(), Some("read" | "none")))
}

fn named(jobs: &Mapping) -> impl Iterator<Item = (&str, &Value)> {
    jobs.iter()
        .map(|(name, job)| (name.as_str().unwrap_or_default(), job))
}

fn steps(job: &Value) -> impl Iterator<Item = &Value> {
    job.get("steps")
        .and_then(Value::as_sequence)
        .into_iter()
        .flatten()
}

/// `actions/checkout@… ` → `actions/checkout`.
fn action(step: &Value) -> &str {
    let uses = step.get("uses").and_then(Value::as_str).unwrap_or_default();
    uses.split('@').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELEASE: &str = include_str!("../../../../.github/workflows/release.yml");

    fn violations(text: &str) -> Vec<String> {
        let workflow: Mapping = serde_yaml_ng::from_str(text).unwrap();
        breaches(workflow["jobs"].as_mapping().unwrap())
    }

    /// Expects a violation with this text after a replacement.
    #[track_caller]
    fn check(from: &str, to: &str, says: &str) {
        assert!(RELEASE.contains(from), "{from} is not there");
        let violations = violations(&RELEASE.replacen(from, to, 1));
        assert!(
            violations.iter().any(|it| it.contains(says)),
            "{violations:?}"
        );
    }

    const LOGIN: &str = "      - run: docker login";

    #[test]
    fn our_release_workflow_has_no_violation() {
        assert_eq!(violations(RELEASE), Vec::<String>::new());
        assert_eq!(violations("jobs: {a: {steps: []}}"), Vec::<String>::new());
    }

    #[test]
    fn the_publishing_job_compiles_nothing() {
        for line in [
            "cargo ci release pack --tag v1 --from x",
            "rustup toolchain install stable --profile minimal --component clippy,rustfmt",
            "make",
        ] {
            check(
                LOGIN,
                &format!("      - run: {line}\n{LOGIN}"),
                "may run with write permissions",
            );
        }
        check(
            LOGIN,
            &format!("      - uses: somebody/action@0 # v1\n{LOGIN}"),
            "somebody/action",
        );
        for more in ["container: {image: x}", "services: {a: {image: x}}"] {
            let to = format!("    environment: release\n    {more}\n");
            check("    environment: release\n", &to, "is not allowed");
        }
    }

    #[test]
    fn only_one_job_publishes_and_it_needs_approval() {
        for rights in ["{packages: write}", "{id-token: write}"] {
            let to = format!("  pack:\n    permissions: {rights}\n");
            check("  pack:\n", &to, "only one job publishes");
        }
        check("    environment: release\n", "", "set environment");
        check("    needs: pack\n", "", "set needs");
        for right in PUBLISHING_PERMISSIONS {
            check(
                &format!("      {right}: write\n"),
                "",
                &format!("{right}: write is missing"),
            );
        }
    }

    #[test]
    fn building_jobs_have_no_token_and_no_cache() {
        let steps = "  pack:\n    needs: build\n";
        check(
            steps,
            &format!("{steps}    env: {{T: '${{{{ secrets.GITHUB_TOKEN }}}}'}}\n"),
            "token",
        );
        check(
            steps,
            &format!("{steps}    env: {{T: '${{{{ github.token }}}}'}}\n"),
            "token",
        );
        let checkout = "      - uses: actions/checkout@";
        check(
            checkout,
            &format!("      - uses: actions/cache@0 # v1\n{checkout}"),
            "cache",
        );
    }

    #[test]
    fn everything_is_attested_by_digest_before_it_is_tagged() {
        check("          push-to-registry: true\n", "", "attached");
        check(
            "subject-digest: ${{ steps.push.outputs.synology-csi-digest }}",
            "subject-digest: ${{ github.ref_name }}",
            "not the output of a step",
        );
        let last = format!("      - run: {TAG_COMMAND}\n");
        check(&last, "", "must come last");
        let (before, _) = RELEASE.split_once(&last).unwrap();
        let push = "      - id: push\n";
        let moved = before.replace(push, &format!("{last}{push}"));
        assert!(violations(&moved).iter().any(|it| it.contains("come last")));
        let kept: Vec<&str> = RELEASE
            .lines()
            .filter(|line| !line.contains("sbom-path"))
            .collect();
        assert!(
            violations(&kept.join("\n"))
                .iter()
                .any(|it| it.contains("provenance or SBOM is missing"))
        );
    }

    /// Each image has a provenance and an SBOM, and the chart a provenance.
    #[test]
    fn everything_that_is_published_is_attested() {
        let count = |text: &str| RELEASE.matches(text).count();
        for name in crate::images::names() {
            assert_eq!(count(&format!("outputs.{name}-digest }}}}")), 2, "{name}");
            assert_eq!(count(&format!("sbom-path: packed/{name}.spdx.json")), 1);
        }
        assert_eq!(count("outputs.chart-digest }}"), 1);
    }
}
