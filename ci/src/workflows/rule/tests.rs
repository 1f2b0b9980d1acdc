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

/// What is wrong after a replacement that has an effect.
#[track_caller]
fn told(from: &str, to: &str) -> Vec<String> {
    let text = GOOD.replace(from, to);
    assert_ne!(text, GOOD, "{from} is not there");
    breaches(&text, &["lint"]).unwrap()
}

/// Expects one breach that says this.
#[track_caller]
fn check(from: &str, to: &str, says: &str) {
    let told = told(from, to);
    assert!(told.len() == 1 && told[0].contains(says), "{told:?}");
}

#[test]
fn a_good_one_has_none() {
    assert_eq!(breaches(GOOD, &["lint"]).unwrap(), Vec::<String>::new());
}

#[test]
fn actions_are_named_by_commit_and_version() {
    let commit = "@0123456789abcdef0123456789abcdef01234567";
    check(commit, "@v7", "whole commit");
    check(commit, "@0123456", "whole commit");
    check(commit, "", "whole commit");
    check(" # v7.0.1", "", "which version");
    check("# v7.0.1", "# the newest", "which version");
}

#[test]
fn images_are_named_by_digest() {
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
fn lines_call_tasks_of_ours() {
    check("cargo ci lint", "cargo clippy", "neither");
    check("cargo ci lint", "cargo ci lnit", "lnit");
}

#[test]
fn what_the_pipeline_here_leaves_out_has_a_reason() {
    check(
        "      # not in .ci/run: the images are large\n",
        "",
        "no part of .ci/run",
    );
    check("the images are large", "so", "no part of .ci/run");
    check(
        "# not in .ci/run: the images are large",
        "# the images are large",
        "no part of .ci/run",
    );
    // A reason is for the line below it, and for no other.
    check(
        "images are large\n",
        "images are large\n      - run: cargo ci lint\n",
        "no part of .ci/run",
    );
}

#[test]
fn no_form_of_yaml_hides_anything() {
    let block = told("- run: cargo ci lint", "- run: |\n          cargo ci lint");
    assert!(block[1].contains("must be one line"), "{block:?}");
    let flow = told("- run: cargo ci lint", "- {run: cargo clippy}");
    assert!(flow[0].contains("must be one line"), "{flow:?}");
    let quoted = told("- run: cargo ci lint", "- \"run\": cargo clippy");
    assert!(quoted[0].contains("must be one line"), "{quoted:?}");
    let whole = told(
        "jobs:",
        "jobs:\n  other: {timeout-minutes: 5, uses: o/r/.github/workflows/a.yml@main}",
    );
    assert!(whole[0].contains("must be one line"), "{whole:?}");
}

#[test]
fn rights_are_said_and_few() {
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
fn strangers_get_no_rights() {
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
fn the_only_secret_is_the_runs_own() {
    let with = |secret: &str| {
        format!("timeout-minutes: 30\n    env: {{T: \"${{{{ secrets.{secret} }}}}\"}}")
    };
    check("timeout-minutes: 30", &with("KEY"), "KEY");
    assert!(told("timeout-minutes: 30", &with(SECRET)).is_empty());
}

#[test]
fn jobs_end() {
    check("    timeout-minutes: 30\n", "", "for ever");
}
