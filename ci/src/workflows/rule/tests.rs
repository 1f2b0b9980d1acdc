use super::*;

const GOOD: &str = r"
on: {push: {}, pull_request: {}}
permissions:
  contents: read
jobs:
  lint:
    runs-on: ubuntu-24.04
    timeout-minutes: 30
    container:
      image: rust:1@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
    steps:
      - uses: actions/checkout@0123456789abcdef0123456789abcdef01234567 # v7.0.1
        with:
          persist-credentials: false
      - run: cargo ci lint
      # not in .ci/run: the images are large
      - run: cargo ci images
";

/// The violations after a replacement in the good workflow.
#[track_caller]
fn violations(from: &str, to: &str) -> Vec<String> {
    let text = GOOD.replace(from, to);
    assert_ne!(text, GOOD, "{from} is not there");
    breaches(&text, &["lint"]).unwrap()
}

/// Expects exactly one violation, with this text, after a replacement.
#[track_caller]
fn check(from: &str, to: &str, says: &str) {
    let violations = violations(from, to);
    assert!(
        violations.len() == 1 && violations[0].contains(says),
        "{violations:?}"
    );
}

#[test]
fn a_good_workflow_has_no_violations() {
    assert_eq!(breaches(GOOD, &["lint"]).unwrap(), Vec::<String>::new());
}

#[test]
fn actions_are_pinned_by_commit_with_their_version() {
    let commit = "@0123456789abcdef0123456789abcdef01234567";
    check(commit, "@v7", "full commit hash");
    check(commit, "@0123456", "full commit hash");
    check(commit, "", "full commit hash");
    check(" # v7.0.1", "", "add its version");
    check("# v7.0.1", "# the newest", "add its version");
}

#[test]
fn images_are_pinned_by_digest() {
    check(
        "@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        "",
        "digest",
    );
    check(
        "    steps:",
        "    services: {db: {image: \"postgres:18\"}}\n    steps:",
        "postgres:18",
    );
}

#[test]
fn lines_must_call_our_tasks() {
    check("cargo ci lint", "cargo clippy", "neither");
    check("cargo ci lint", "cargo ci lnit", "lnit");
}

#[test]
fn tasks_that_are_not_in_ci_run_need_a_reason() {
    check(
        "      # not in .ci/run: the images are large\n",
        "",
        "not part of .ci/run",
    );
    check("the images are large", "so", "not part of .ci/run");
    check(
        "# not in .ci/run: the images are large",
        "# the images are large",
        "not part of .ci/run",
    );
    // A reason applies only to the line below it.
    check(
        "images are large\n",
        "images are large\n      - run: cargo ci lint\n",
        "not part of .ci/run",
    );
}

#[test]
fn yaml_syntax_cannot_hide_a_command() {
    let block = violations("- run: cargo ci lint", "- run: |\n          cargo ci lint");
    assert!(block[1].contains("must be one line"), "{block:?}");
    let flow = violations("- run: cargo ci lint", "- {run: cargo clippy}");
    assert!(flow[0].contains("must be one line"), "{flow:?}");
    let quoted = violations("- run: cargo ci lint", "- \"run\": cargo clippy");
    assert!(quoted[0].contains("must be one line"), "{quoted:?}");
    let whole = violations(
        "jobs:",
        "jobs:\n  other: {timeout-minutes: 5, uses: o/r/.github/workflows/a.yml@main}",
    );
    assert!(whole[0].contains("must be one line"), "{whole:?}");
}

#[test]
fn permissions_are_explicit_and_minimal() {
    check(
        "permissions:\n  contents: read",
        "env:\n  A: b",
        "permissions",
    );
    check("contents: read", "contents: write", "contents");
    check(
        "permissions:\n  contents: read",
        "permissions: read-all",
        "permissions",
    );
    check(
        "    timeout-minutes: 30",
        "    timeout-minutes: 30\n    permissions: write-all",
        "write-all",
    );
    check(
        "          persist-credentials: false",
        "          fetch-depth: 1",
        "token",
    );
}

#[test]
fn pull_requests_get_no_permissions() {
    for event in FORBIDDEN_EVENTS {
        check("pull_request: {}", &format!("{event}: {{}}"), event);
        check(
            "on: {push: {}, pull_request: {}}",
            &format!("on: {event}"),
            event,
        );
        check(
            "on: {push: {}, pull_request: {}}",
            &format!("on: [{event}]"),
            event,
        );
    }
    check("on: {push: {}, pull_request: {}}", "name: x", "events");
}

#[test]
fn only_github_token_is_allowed() {
    let with = |secret: &str| {
        format!("timeout-minutes: 30\n    env: {{T: \"${{{{ secrets.{secret} }}}}\"}}")
    };
    check("timeout-minutes: 30", &with("KEY"), "KEY");
    assert!(violations("timeout-minutes: 30", &with(SECRET)).is_empty());
}

#[test]
fn jobs_must_have_a_timeout() {
    check("    timeout-minutes: 30\n", "", "forever");
}
