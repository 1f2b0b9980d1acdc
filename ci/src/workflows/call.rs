//! One line that a workflow runs.

use clap::Parser as _;

use crate::Cli;

/// What may be run besides our own tasks, whether a job that may publish may run it, too, and why. Setting up is otherwise the tasks'
/// own work. A line of which nothing is known cannot run with rights: whatever compiles runs code of every dependency.
const SET_UP: [(&str, bool, &str); 4] = [
    (
        "rustup toolchain install stable --profile minimal --component clippy,rustfmt",
        false,
        "the runner's own Rust may be older than the workspace wants",
    ),
    (
        "docker login ghcr.io --username \"$GITHUB_ACTOR\" --password-stdin <<< \"$TOKEN\"",
        true,
        "the token is the pipeline's: a task of ours never holds one",
    ),
    (
        "sh ci/release/publish push packed \"$REGISTRY\"",
        true,
        "a script that compiles nothing: it copies by digest, and signs",
    ),
    (
        LAST,
        true,
        "the same script: it gives a version to what is signed and attested",
    ),
];

/// What makes something public, and stands behind whatever vouches for it.
pub(super) const LAST: &str = "sh ci/release/publish tag packed \"$REGISTRY\"";

/// Root, with the caller's PATH: as doctor advises it.
const AS_ROOT: &str = "sudo -E env \"PATH=$PATH\" ";

/// What a line is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// `cargo ci TASK`, with options that the task knows.
    Task(String),
    /// On the list of what may be run besides.
    SetUp {
        /// Where something may be published, too.
        with_rights: bool,
    },
}

impl Call {
    /// Reads a line.
    ///
    /// # Errors
    /// Why it may not stand in a workflow.
    pub(super) fn parse(line: &str) -> Result<Self, String> {
        if let Some((_, with_rights, _)) = SET_UP.iter().find(|(allowed, ..)| *allowed == line) {
            let with_rights = *with_rights;
            return Ok(Self::SetUp { with_rights });
        }
        let Some(arguments) = line
            .strip_prefix(AS_ROOT)
            .unwrap_or(line)
            .strip_prefix("cargo ci ")
        else {
            return Err(format!(
                "`{line}` is neither `cargo ci TASK` nor on the list of set-up lines in ci/src/workflows/call.rs"
            ));
        };
        // An expression would be put into the shell's text as it is, whatever it holds.
        if line.contains("${{") {
            return Err(format!(
                "`{line}` holds an expression: hand it over by `env:`"
            ));
        }
        let words = arguments
            .split_whitespace()
            .map(word)
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| {
                format!("`{line}` does more than to call a task with words and \"$NAMES\"")
            })?;
        let whole = std::iter::once("cargo ci").chain(words.iter().copied());
        if let Err(error) = Cli::try_parse_from(whole) {
            let told = error.to_string();
            let first = told.lines().next().unwrap_or_default();
            return Err(format!("`{line}`: {first}"));
        }
        let task = words.first().copied().unwrap_or_default();
        Ok(Self::Task(task.to_owned()))
    }
}

/// A word as a task would see it; a variable's value is not known, so its name stands for it. `None` when a shell would make
/// something else of it.
fn word(text: &str) -> Option<&str> {
    let plain = |text: &str| {
        text.chars()
            .all(|letter| letter.is_ascii_alphanumeric() || "-_./:=,@".contains(letter))
    };
    let name = text
        .strip_prefix("\"$")
        .and_then(|rest| rest.strip_suffix('"'));
    let word = name.unwrap_or(text);
    plain(word).then_some(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_are_those_that_there_are_with_the_options_that_they_have() {
        let task = |line: &str| Call::parse(line);
        assert_eq!(task("cargo ci lint"), Ok(Call::Task("lint".into())));
        assert_eq!(
            task("sudo -E env \"PATH=$PATH\" cargo ci fuzz --seconds 5"),
            Ok(Call::Task("fuzz".into()))
        );
        assert_eq!(
            task("cargo ci model --cases 2000 -- --twice"),
            Ok(Call::Task("model".into()))
        );
        for wrong in [
            "cargo ci lnit",
            "cargo ci lint --hard",
            "cargo ci fuzz --seconds many",
            "cargo ci",
        ] {
            assert!(task(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn nothing_else_is_run() {
        for wrong in [
            "cargo test",
            "cargo ci lint && curl example.org",
            "cargo ci lint; true",
            "cargo ci lint $EXTRA",
            "cargo ci lint > log",
            "sudo cargo ci lint",
            "rustup toolchain install nightly",
        ] {
            assert!(Call::parse(wrong).is_err(), "{wrong}");
        }
        for (line, with_rights, reason) in SET_UP {
            assert_eq!(Call::parse(line), Ok(Call::SetUp { with_rights }));
            assert!(reason.len() > 20, "{line}");
        }
    }

    #[test]
    fn values_come_by_the_environment() {
        assert!(Call::parse("cargo ci images --base \"$BASE\"").is_ok());
        let told = Call::parse("cargo ci images --base ${{ matrix.base }}").unwrap_err();
        assert!(told.contains("env:"), "{told}");
    }
}
