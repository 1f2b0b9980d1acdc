//! Parses a `run:` line of a workflow: a task of ours, or one of the allowed setup commands.

use clap::Parser as _;

use crate::Cli;

/// The commands that may be run besides our tasks: command, whether the publishing job may run it, and the reason. Everything
/// else is set up by the tasks themselves. A command that compiles must not run in the publishing job, because it runs code of
/// every dependency.
const SETUP_COMMANDS: [(&str, bool, &str); 4] = [
    (
        "rustup toolchain install stable --profile minimal --component clippy,rustfmt",
        false,
        "the runner's Rust may be older than the workspace needs",
    ),
    (
        "docker login ghcr.io --username \"$GITHUB_ACTOR\" --password-stdin <<< \"$TOKEN\"",
        true,
        "the token belongs to the pipeline: our tasks never get one",
    ),
    (
        "sh ci/release/publish push packed \"$REGISTRY\"",
        true,
        "a script that compiles nothing: it copies by digest and signs",
    ),
    (
        TAG_COMMAND,
        true,
        "the same script: it tags what is signed and attested",
    ),
];

/// The command that publishes the version tags. It must come after all signatures and attestations.
pub(super) const TAG_COMMAND: &str = "sh ci/release/publish tag packed \"$REGISTRY\"";

/// Prefix that runs a task as root with the caller's PATH, as doctor recommends.
const AS_ROOT: &str = "sudo -E env \"PATH=$PATH\" ";

/// A valid `run:` line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Call {
    /// `cargo ci TASK`, with valid options.
    Task(String),
    /// One of [`SETUP_COMMANDS`].
    SetupCommand {
        /// Also allowed in the publishing job.
        may_have_rights: bool,
    },
}

impl Call {
    /// Parses a line.
    ///
    /// # Errors
    /// The reason why it is not allowed.
    pub(super) fn parse(line: &str) -> Result<Self, String> {
        if let Some((_, may_have_rights, _)) =
            SETUP_COMMANDS.iter().find(|(allowed, ..)| *allowed == line)
        {
            let may_have_rights = *may_have_rights;
            return Ok(Self::SetupCommand { may_have_rights });
        }
        let Some(arguments) = line
            .strip_prefix(AS_ROOT)
            .unwrap_or(line)
            .strip_prefix("cargo ci ")
        else {
            return Err(format!(
                "`{line}` is neither `cargo ci TASK` nor one of SETUP_COMMANDS in ci/src/workflows/call.rs"
            ));
        };
        // GitHub would insert the expression's value into the shell script unescaped.
        if line.contains("${{") {
            return Err(format!(
                "`{line}` contains an expression: pass it through `env:`"
            ));
        }
        let words = arguments
            .split_whitespace()
            .map(word)
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| {
                format!("`{line}` may have only plain words and \"$NAMES\" as arguments")
            })?;
        let whole = std::iter::once("cargo ci").chain(words.iter().copied());
        if let Err(error) = Cli::try_parse_from(whole) {
            let message = error.to_string();
            let first = message.lines().next().unwrap_or_default();
            return Err(format!("`{line}`: {first}"));
        }
        let task = words.first().copied().unwrap_or_default();
        Ok(Self::Task(task.to_owned()))
    }
}

/// An argument as the task sees it. The value of a variable is unknown, so its name is used instead. `None` if a shell would
/// expand it to something else.
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
    fn only_existing_tasks_and_options_are_accepted() {
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
    fn other_commands_are_refused() {
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
        for (line, may_have_rights, reason) in SETUP_COMMANDS {
            assert_eq!(
                Call::parse(line),
                Ok(Call::SetupCommand { may_have_rights })
            );
            assert!(reason.len() > 20, "{line}");
        }
    }

    #[test]
    fn expressions_must_be_passed_through_the_environment() {
        assert!(Call::parse("cargo ci images --base \"$BASE\"").is_ok());
        let message = Call::parse("cargo ci images --base ${{ matrix.base }}").unwrap_err();
        assert!(message.contains("env:"), "{message}");
    }
}
