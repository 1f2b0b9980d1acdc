//! What holds where a job may write: publish, sign, attest.
//!
//! Whatever compiles runs the build scripts of every dependency, with the rights of its job. So one job has rights, runs nothing that
//! compiles, takes what others have made, vouches for it by its digest, and somebody lets it begin.

use serde_yaml_ng::{Mapping, Value};

use super::super::call::{Call, LAST};

/// The actions that may run with rights. Each comes by its whole commit, as everywhere.
const TRUSTED: [&str; 4] = [
    "actions/checkout",
    "actions/download-artifact",
    "actions/attest",
    "sigstore/cosign-installer",
];

/// The rights that publishing, signing and vouching take.
const RIGHTS: [&str; 3] = ["packages", "id-token", "attestations"];

/// What is wrong with the jobs of a workflow that has one with rights. One without is judged elsewhere.
pub(super) fn breaches(jobs: &Mapping) -> Vec<String> {
    let writers: Vec<(&str, &Value)> = named(jobs).filter(|(_, job)| may_write(job)).collect();
    let Some((publisher, job)) = writers.first() else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for (name, _) in &writers[1..] {
        found.push(format!("job {name}: may write beside job {publisher}: one job publishes, and others hand on what they made"));
    }
    let told = publisher_breaches(job);
    found.extend(told.iter().map(|it| format!("job {publisher}: {it}")));
    for (name, job) in named(jobs).filter(|(_, job)| !may_write(job)) {
        if steps(job).any(|step| action(step) == "actions/cache") {
            found.push(format!("job {name}: what is published must not come out of a cache, which other branches fill"));
        }
        let text = serde_yaml_ng::to_string(job).unwrap_or_default();
        if text.contains("secrets.") || text.contains("github.token") {
            found.push(format!(
                "job {name}: is handed a token, and runs code of every dependency"
            ));
        }
    }
    found
}

fn publisher_breaches(job: &Value) -> Vec<String> {
    let mut found = Vec::new();
    if job.get("environment").is_none() {
        found.push("nobody lets it begin: name an environment".to_owned());
    }
    if job.get("needs").is_none() {
        found.push("it takes nothing that another job has made: needs".to_owned());
    }
    for key in ["container", "services", "strategy"] {
        if job.get(key).is_some() {
            found.push(format!("{key}: has no place beside its rights"));
        }
    }
    for right in RIGHTS {
        if job["permissions"][right] != "write" {
            found.push(format!(
                "without {right}: write, what it publishes is not vouched for"
            ));
        }
    }
    for step in steps(job) {
        if let Some(line) = step.get("run").and_then(Value::as_str)
            && Call::parse(line) != (Ok(Call::SetUp { with_rights: true }))
        {
            found.push(format!(
                "`{line}` is not among what may run with its rights"
            ));
        }
        let action = action(step);
        if !action.is_empty() && !TRUSTED.contains(&action) {
            found.push(format!(
                "{action} is not among the actions that may run with its rights"
            ));
        }
    }
    found.extend(vouching(job));
    found
}

/// Each thing has a provenance, each image a list of what is inside, both by a digest that was told by what pushed it; the tag comes last.
fn vouching(job: &Value) -> Vec<String> {
    let (mut found, mut built, mut listed) = (Vec::new(), Vec::new(), Vec::new());
    for step in steps(job).filter(|step| action(step) == "actions/attest") {
        let with = &step["with"];
        let digest = with["subject-digest"].as_str().unwrap_or_default();
        if !digest.starts_with("${{ steps.") {
            found.push("it vouches for what no step has told the digest of".to_owned());
        }
        if with["push-to-registry"] != true {
            found.push(format!(
                "what is said of {digest} is not attached: push-to-registry"
            ));
        }
        match with.get("sbom-path") {
            Some(_) => listed.push(digest),
            None => built.push(digest),
        }
    }
    for digest in &listed {
        if !built.contains(digest) {
            found.push(format!("nothing says where {digest} was built"));
        }
    }
    if built.is_empty() || listed.is_empty() {
        found.push("it attests not where things were built, or not what is inside".to_owned());
    }
    let is_last = |step: &Value| step.get("run").is_some_and(|line| line == LAST);
    let after = steps(job).skip_while(|step| !is_last(step)).skip(1);
    if !steps(job).any(is_last) || after.count() > 0 {
        found.push(format!(
            "`{LAST}` must come last: what has a tag is attested"
        ));
    }
    found
}

/// Rights in one word, `write-all`, are refused everywhere.
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

    fn told(text: &str) -> Vec<String> {
        let workflow: Mapping = serde_yaml_ng::from_str(text).unwrap();
        breaches(workflow["jobs"].as_mapping().unwrap())
    }

    /// Expects a breach that says this after a replacement.
    #[track_caller]
    fn check(from: &str, to: &str, says: &str) {
        assert!(RELEASE.contains(from), "{from} is not there");
        let told = told(&RELEASE.replacen(from, to, 1));
        assert!(told.iter().any(|it| it.contains(says)), "{told:?}");
    }

    const LOGIN: &str = "      - run: docker login";

    #[test]
    fn ours_has_no_breach() {
        assert_eq!(told(RELEASE), Vec::<String>::new());
        assert_eq!(told("jobs: {a: {steps: []}}"), Vec::<String>::new());
    }

    #[test]
    fn whoever_has_rights_compiles_nothing() {
        for line in [
            "cargo ci release pack --tag v1 --from x",
            "rustup toolchain install stable --profile minimal --component clippy,rustfmt",
            "make",
        ] {
            check(
                LOGIN,
                &format!("      - run: {line}\n{LOGIN}"),
                "may run with its rights",
            );
        }
        check(
            LOGIN,
            &format!("      - uses: somebody/action@0 # v1\n{LOGIN}"),
            "somebody/action",
        );
        for more in ["container: {image: x}", "services: {a: {image: x}}"] {
            let to = format!("    environment: release\n    {more}\n");
            check("    environment: release\n", &to, "has no place");
        }
    }

    #[test]
    fn one_job_has_rights_and_somebody_lets_it_begin() {
        for rights in ["{packages: write}", "{id-token: write}"] {
            let to = format!("  pack:\n    permissions: {rights}\n");
            check("  pack:\n", &to, "one job publishes");
        }
        check("    environment: release\n", "", "environment");
        check("    needs: pack\n", "", "needs");
        for right in RIGHTS {
            check(&format!("      {right}: write\n"), "", right);
        }
    }

    #[test]
    fn what_is_built_has_no_token_and_comes_from_no_cache() {
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
    fn everything_is_vouched_for_by_its_digest_before_it_has_a_tag() {
        check("          push-to-registry: true\n", "", "attached");
        check(
            "subject-digest: ${{ steps.push.outputs.synology-csi-digest }}",
            "subject-digest: ${{ github.ref_name }}",
            "told the digest",
        );
        let last = format!("      - run: {LAST}\n");
        check(&last, "", "must come last");
        let (before, _) = RELEASE.split_once(&last).unwrap();
        let push = "      - id: push\n";
        let moved = before.replace(push, &format!("{last}{push}"));
        assert!(told(&moved).iter().any(|it| it.contains("come last")));
        let kept: Vec<&str> = RELEASE
            .lines()
            .filter(|line| !line.contains("sbom-path"))
            .collect();
        assert!(
            told(&kept.join("\n"))
                .iter()
                .any(|it| it.contains("what is inside"))
        );
    }

    /// Each image has both, and the chart says where it was packed.
    #[test]
    fn nothing_that_is_published_is_forgotten() {
        let count = |text: &str| RELEASE.matches(text).count();
        for name in crate::images::names() {
            assert_eq!(count(&format!("outputs.{name}-digest }}}}")), 2, "{name}");
            assert_eq!(count(&format!("sbom-path: packed/{name}.spdx.json")), 1);
        }
        assert_eq!(count("outputs.chart-digest }}"), 1);
    }
}
