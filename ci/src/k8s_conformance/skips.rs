//! The specs of the suite to skip, each with a reason.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use regex::Regex;
use serde::Deserialize;

/// Minimum length of a reason, in bytes: a sentence, not a word.
const MIN_REASON_LENGTH: usize = 30;

/// One entry of `e2e/k8s/skips.yaml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Skip {
    /// A regular expression for the names of specs.
    pub(super) pattern: String,
    /// Why these specs do not test the driver.
    reason: String,
}

/// # Errors
/// When it is not YAML, or an entry has unknown or missing keys.
pub(super) fn parse(text: &str) -> Result<Vec<Skip>> {
    Ok(serde_yaml_ng::from_str(text)?)
}

/// Entries without a reason, duplicates, and invalid patterns.
pub(super) fn problems(skips: &[Skip]) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for Skip { pattern, reason } in skips {
        if reason.trim().len() < MIN_REASON_LENGTH {
            found.push(format!("{pattern}: skipped without a reason"));
        }
        if !seen.insert(pattern) {
            found.push(format!("{pattern}: skipped twice"));
        }
        if Regex::new(pattern).map_or(true, |all| all.is_match("")) {
            found.push(format!(
                "{pattern}: no valid pattern, or it matches everything"
            ));
        }
    }
    found
}

/// Patterns that match none of these specs.
///
/// # Errors
/// When a pattern is not a valid regular expression.
pub(super) fn unused(skips: &[Skip], specs: &[&str]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for Skip { pattern, .. } in skips {
        let regex = Regex::new(pattern).with_context(|| pattern.clone())?;
        if !specs.iter().any(|spec| regex.is_match(spec)) {
            found.push(pattern.clone());
        }
    }
    Ok(found)
}

/// The number of passed specs in the suite's last line: `SUCCESS! -- 98 Passed | 0 Failed | …`.
pub(super) fn passed(line: &str) -> Option<usize> {
    let (_, counts) = line.split_once("! -- ")?;
    counts.split_once(" Passed")?.0.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const REASON: &str = "the kubelet cannot be stopped there";

    fn skip(pattern: &str, reason: &str) -> Skip {
        Skip {
            pattern: pattern.to_owned(),
            reason: reason.to_owned(),
        }
    }

    #[test]
    fn a_skip_has_exactly_a_pattern_and_a_reason() {
        let text = format!("- {{pattern: a, reason: {REASON}}}\n");
        assert!(problems(&parse(&text).unwrap()).is_empty());
        assert!(parse("- {pattern: a}\n").is_err());
        assert!(parse("- {pattern: a, reason: b, until: c}\n").is_err());
    }

    #[test]
    fn bad_skips_are_reported() {
        let check = |skips: &[Skip], says: &str| {
            let found = problems(skips);
            assert!(found.len() == 1 && found[0].contains(says), "{found:?}");
        };
        check(&[skip("a", "flaky")], "reason");
        check(&[skip("a", REASON), skip("a", REASON)], "twice");
        check(&[skip("(", REASON)], "no valid pattern");
        check(&[skip(".*", REASON)], "everything");
    }

    #[test]
    fn a_skip_that_matches_no_spec_is_unused() {
        let skips = [
            skip(r"\[Disruptive\]", REASON),
            skip("gone in this release", REASON),
        ];
        let specs = ["External Storage subPath [Disruptive] while kubelet is down"];
        assert_eq!(unused(&skips, &specs).unwrap(), ["gone in this release"]);
    }

    #[test]
    fn the_last_line_has_the_number_of_passed_specs() {
        let line = "SUCCESS! -- 98 Passed | 0 Failed | 0 Pending | 7302 Skipped";
        assert_eq!(passed(line), Some(98));
        assert_eq!(passed("FAIL! -- 3 Passed | 1 Failed"), Some(3));
        assert_eq!(passed("Ran 98 of 7400 Specs in 1.0 seconds"), None);
    }
}
