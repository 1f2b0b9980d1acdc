//! Counts test results, and the tests that were skipped.
//!
//! A test that cannot run on this machine appends `SKIP: <test>: <reason>` to the file named by `SKIP_LOG` and returns. libtest
//! counts it as passed, so skips are known only from that log.

use std::collections::BTreeSet;

use crate::doctor::machine::Privileges;

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Skip {
    pub(crate) test: String,
    /// What was missing.
    pub(crate) reason: String,
}

impl Skip {
    /// Whether a process with these privileges may skip this test. Without root, any test may be skipped. With root, only growth
    /// of a mounted ext4, and only if `CAP_SYS_RESOURCE` is missing.
    pub(crate) fn allowed(&self, privileges: Privileges) -> bool {
        !privileges.root || (self.reason.contains("CAP_SYS_RESOURCE") && !privileges.sys_resource)
    }
}

/// Parses the log. Repeated lines count once.
pub(crate) fn parse_log(text: &str) -> BTreeSet<Skip> {
    text.lines()
        .filter(|line| !line.trim().is_empty())
        .map(parse_line)
        .collect()
}

fn parse_line(line: &str) -> Skip {
    let rest = line.trim().strip_prefix("SKIP: ").unwrap_or(line);
    // A malformed line still counts: a skip must never be lost.
    let (test, reason) = rest.split_once(": ").unwrap_or((rest, "no reason given"));
    Skip {
        test: test.to_owned(),
        reason: reason.to_owned(),
    }
}

/// Totals over all test binaries of one run.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Includes skipped tests.
    pub(crate) passed: usize,
    pub(crate) failed: usize,
}

impl Counts {
    /// Adds a line such as `test result: ok. 3 passed; 1 failed; 0 ignored; …`. Ignores any other line.
    pub(crate) fn read(&mut self, line: &str) {
        let Some((_, result)) = line.split_once("test result: ") else {
            return;
        };
        self.passed += number_before(result, " passed");
        self.failed += number_before(result, " failed");
    }

    /// The summary line.
    pub(crate) fn line(self, skips: &BTreeSet<Skip>) -> String {
        let tests: BTreeSet<&str> = skips.iter().map(|skip| skip.test.as_str()).collect();
        let passed = self.passed.saturating_sub(tests.len());
        format!(
            "{passed} passed, {} failed, {} skipped",
            self.failed,
            tests.len()
        )
    }
}

fn number_before(text: &str, word: &str) -> usize {
    let before = text.split(word).next().unwrap_or_default();
    before
        .rsplit(|letter: char| !letter.is_ascii_digit())
        .next()
        .and_then(|digits| digits.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Privileges = Privileges {
        root: true,
        sys_admin: true,
        sys_resource: false,
    };

    #[test]
    fn a_log_is_read_line_by_line_and_repeats_count_once() {
        let log = "SKIP: node::grow_ext4: needs CAP_SYS_RESOURCE: the kernel asks\n\nSKIP: sanity: needs root\n\
                   SKIP: sanity: needs root\nSKIP: odd\n";
        let skips: Vec<(String, String)> = parse_log(log)
            .into_iter()
            .map(|skip| (skip.test, skip.reason))
            .collect();
        let want = [
            ("node::grow_ext4", "needs CAP_SYS_RESOURCE: the kernel asks"),
            ("odd", "no reason given"),
            ("sanity", "needs root"),
        ];
        assert_eq!(
            skips,
            want.map(|(test, reason)| (test.to_owned(), reason.to_owned()))
        );
    }

    #[test]
    fn root_may_only_skip_for_the_capability_it_lacks() {
        let skip = |reason: &str| Skip {
            test: "t".into(),
            reason: reason.into(),
        };
        assert!(skip("needs CAP_SYS_RESOURCE").allowed(ROOT));
        assert!(!skip("needs CAP_SYS_RESOURCE").allowed(Privileges {
            sys_resource: true,
            ..ROOT
        }));
        assert!(!skip("needs mkfs.xfs").allowed(ROOT));
        assert!(skip("needs root").allowed(Privileges {
            root: false,
            ..ROOT
        }));
    }

    #[test]
    fn results_add_up_with_colours_or_without() {
        let mut counts = Counts::default();
        counts.read("running 4 tests");
        counts.read("test result: ok. 13 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; finished in 0.2s");
        counts.read(
            "test result: \u{1b}[31mFAILED\u{1b}[m. 2 passed; 11 failed; 0 ignored; 0 measured",
        );
        assert_eq!(
            counts,
            Counts {
                passed: 15,
                failed: 11
            }
        );
        assert_eq!(
            counts.line(&parse_log("SKIP: a: x\nSKIP: a: y\n")),
            "14 passed, 11 failed, 1 skipped"
        );
    }
}
