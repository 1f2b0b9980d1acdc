//! Reduces the output of `ginkgo -v` to one line per spec. In that output, each spec is between two separator lines: first its
//! result, then its name.
//!
//! ```text
//! ------------------------------
//! • [1.201 seconds]
//! External Storage [Driver: csi.synology.com] [Testpattern: …] volumes should store data
//! ```

/// The separator line between specs.
const SEPARATOR: &str = "------------------------------";
/// Common prefix of the names of all specs, which is not printed.
const NAME_PREFIX: &str = "External Storage ";

/// Ginkgo's words for failures.
const FAILURES: [&str; 5] = ["FAILED", "PANICKED", "TIMEDOUT", "INTERRUPTED", "ABORTED"];

/// The state of the parser.
#[derive(Debug, Default)]
pub(super) struct Progress {
    seen: usize,
    state: State,
}

#[derive(Debug, Default)]
enum State {
    /// Before the first separator, and after the last: every line is printed.
    #[default]
    Outside,
    /// After a separator: the result is next.
    AfterSeparator,
    /// After the result, which is printed with the name: the name is next.
    AfterResult(String),
    /// After the name: the lines of a failed spec are printed.
    Spec { failed: bool },
}

impl Progress {
    /// Parses the next line, and returns the line to print, if any.
    pub(super) fn read(&mut self, line: &str) -> Option<String> {
        if line == SEPARATOR {
            self.state = State::AfterSeparator;
            return None;
        }
        match &self.state {
            State::Outside => Some(line.to_owned()),
            State::AfterSeparator => match result(line) {
                Some(result) => {
                    self.state = State::AfterResult(result);
                    None
                }
                None if line.is_empty() => {
                    self.state = State::Outside;
                    Some(String::new())
                }
                // A node of the suite itself, such as SynchronizedBeforeSuite; or a skipped spec.
                None => {
                    let failed = FAILURES.iter().any(|word| line.contains(word));
                    self.state = State::Spec { failed };
                    failed.then(|| line.to_owned())
                }
            },
            State::AfterResult(result) => {
                self.seen += 1;
                let name = line.strip_prefix(NAME_PREFIX).unwrap_or(line);
                let printed = format!("{:3}  {result}  {name}", self.seen);
                let failed = !result.starts_with("passed");
                self.state = State::Spec { failed };
                Some(printed)
            }
            State::Spec { failed } => failed.then(|| line.to_owned()),
        }
    }
}

/// Parses `• [1.201 seconds]`, `• [FAILED] [0.001 seconds]`. `None` for skipped and pending specs.
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

    /// Output of ginkgo 2.28.1.
    const OUTPUT: &str = "\
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
    fn a_failure_before_the_first_spec_is_printed() {
        let output = "------------------------------\n[SynchronizedBeforeSuite] [FAILED] [0.1 seconds]\n\
                    [SynchronizedBeforeSuite]\n  no cluster answers";
        let mut progress = Progress::default();
        let printed: Vec<String> = output
            .lines()
            .filter_map(|line| progress.read(line))
            .collect();
        assert_eq!(printed.len(), 3, "{printed:?}");
        assert_eq!(printed[2], "  no cluster answers");
    }

    #[test]
    fn each_spec_is_a_line_and_failures_and_the_summary_are_printed_in_full() {
        let mut progress = Progress::default();
        let printed: Vec<String> = OUTPUT
            .lines()
            .filter_map(|line| progress.read(line))
            .collect();
        assert_eq!(
            printed.join("\n"),
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
