//! A line for each spec while the suite runs, of the much that ginkgo says with `-v`: each spec stands between two rules, its result
//! first, then its name.
//!
//! ```text
//! ------------------------------
//! • [1.201 seconds]
//! External Storage [Driver: csi.synology.com] [Testpattern: …] volumes should store data
//! ```

/// What is on a line by itself between specs.
const RULE: &str = "------------------------------";
/// How the name of each of ours begins, which goes without saying.
const COMMON: &str = "External Storage ";

/// What ginkgo calls what did not pass and was not left out.
const BAD: [&str; 5] = ["FAILED", "PANICKED", "TIMEDOUT", "INTERRUPTED", "ABORTED"];

/// Where in ginkgo's words one is.
#[derive(Debug, Default)]
pub(super) struct Progress {
    seen: usize,
    within: Within,
}

#[derive(Debug, Default)]
enum Within {
    /// Before the first rule, and from the summary on: all of it is shown.
    #[default]
    Frame,
    /// Behind a rule: the result is next.
    Rule,
    /// Behind a result that is to be shown with the name that is next.
    Result(String),
    /// Behind the name: of what failed all is shown.
    Spec { failed: bool },
}

impl Progress {
    /// What is to be shown of the next line.
    pub(super) fn read(&mut self, line: &str) -> Option<String> {
        if line == RULE {
            self.within = Within::Rule;
            return None;
        }
        match &self.within {
            Within::Frame => Some(line.to_owned()),
            Within::Rule => match result(line) {
                Some(result) => {
                    self.within = Within::Result(result);
                    None
                }
                None if line.is_empty() => {
                    self.within = Within::Frame;
                    Some(String::new())
                }
                // A node of the suite itself, such as what is done before all specs; or one that was skipped.
                None => {
                    let failed = BAD.iter().any(|word| line.contains(word));
                    self.within = Within::Spec { failed };
                    failed.then(|| line.to_owned())
                }
            },
            Within::Result(result) => {
                self.seen += 1;
                let name = line.strip_prefix(COMMON).unwrap_or(line);
                let shown = format!("{:3}  {result}  {name}", self.seen);
                let failed = !result.starts_with("passed");
                self.within = Within::Spec { failed };
                Some(shown)
            }
            Within::Spec { failed } => failed.then(|| line.to_owned()),
        }
    }
}

/// `• [1.201 seconds]`, `• [FAILED] [0.001 seconds]`; what was skipped or is pending is no news.
fn result(line: &str) -> Option<String> {
    let rest = line.strip_prefix("• ")?;
    let mut words = rest
        .split(['[', ']'])
        .map(str::trim)
        .filter(|it| !it.is_empty());
    let first = words.next()?;
    let time = |text: &str| text.strip_suffix(" seconds").map(|it| format!("{it:>8} s"));
    match time(first) {
        Some(time) => Some(format!("passed {time}")),
        None => Some(format!(
            "{first} {}",
            words.find_map(time).unwrap_or_default()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As ginkgo 2.28.1 says it.
    const SAID: &str = "\
Will run 5 of 6 specs
------------------------------
[SynchronizedBeforeSuite] PASSED [0.031 seconds]
[SynchronizedBeforeSuite]
  noise
------------------------------
• [FAILED] [0.001 seconds]
External Storage [Driver: x] volumes [It] should fail [Slow]
/tmp/gk_test.go:9

  [FAILED] Expected
  In [It] at: /tmp/gk_test.go:9
------------------------------
P [PENDING]
External Storage [Driver: x] volumes pending
------------------------------
• [1.201 seconds]
External Storage [Driver: x] volumes should store data
/tmp/gk_test.go:8

  noise • [1.0 seconds]
------------------------------

Summarizing 1 Failure:
  [FAIL] External Storage [Driver: x] volumes [It] should fail [Slow]

Ran 2 of 6 Specs in 1.208 seconds
FAIL! -- 1 Passed | 1 Failed | 1 Pending | 1 Skipped
";

    #[test]
    fn what_fails_before_the_first_spec_is_shown() {
        let said = "------------------------------\n[SynchronizedBeforeSuite] [FAILED] [0.1 seconds]\n\
                    [SynchronizedBeforeSuite]\n  no cluster answers";
        let mut progress = Progress::default();
        let shown: Vec<String> = said
            .lines()
            .filter_map(|line| progress.read(line))
            .collect();
        assert_eq!(shown.len(), 3, "{shown:?}");
        assert_eq!(shown[2], "  no cluster answers");
    }

    #[test]
    fn each_spec_is_a_line_and_of_failures_and_of_the_summary_all_is_shown() {
        let mut progress = Progress::default();
        let shown: Vec<String> = SAID
            .lines()
            .filter_map(|line| progress.read(line))
            .collect();
        assert_eq!(
            shown.join("\n"),
            "\
Will run 5 of 6 specs
  1  FAILED    0.001 s  [Driver: x] volumes [It] should fail [Slow]
/tmp/gk_test.go:9

  [FAILED] Expected
  In [It] at: /tmp/gk_test.go:9
  2  passed    1.201 s  [Driver: x] volumes should store data

Summarizing 1 Failure:
  [FAIL] External Storage [Driver: x] volumes [It] should fail [Slow]

Ran 2 of 6 Specs in 1.208 seconds
FAIL! -- 1 Passed | 1 Failed | 1 Pending | 1 Skipped"
        );
    }
}
