//! Checks that the commands in Markdown files exist: each `cargo ci TASK` and `cargo demo`, in code blocks and in the text, must
//! be a task with valid options. No I/O.

use clap::{Parser as _, error::ErrorKind};

use super::{markdown, source::File};
use crate::Cli;

/// Prefixes of such commands, and the arguments that each implies.
const PREFIXES: [(&str, &[&str]); 2] = [("cargo ci", &[]), ("cargo demo", &["demo"])];
/// What may precede them.
const AS_ROOT: [&str; 2] = ["sudo -E env \"PATH=$PATH\" ", "sudo "];
/// Words that end the task's arguments.
const TERMINATORS: [&str; 6] = ["#", "&&", "&", "|", ";", ">"];

/// All commands that do not parse.
pub(super) fn breaches(files: &[File]) -> Vec<String> {
    let mut found = Vec::new();
    for file in files.iter().filter(|file| file.is("md")) {
        let fenced_commands =
            markdown::fenced(&file.text).map(|(number, line)| (number, line.trim(), true));
        let inline_commands = markdown::prose(&file.text)
            .flat_map(|(number, line)| markdown::code(line).map(move |code| (number, code, false)));
        for (number, command, is_complete) in fenced_commands.chain(inline_commands) {
            if let Some(why) = parse_error(command, is_complete) {
                found.push(format!("{}: `{command}`: {why}", file.at(number)));
            }
        }
    }
    found
}

/// Why a command does not parse; `None` if it does, or if it is another program's. A command in the text (not `is_complete`) may
/// lack required arguments.
fn parse_error(command: &str, is_complete: bool) -> Option<String> {
    let command = AS_ROOT
        .iter()
        .find_map(|root| command.strip_prefix(root))
        .unwrap_or(command);
    let (rest, first) = PREFIXES.iter().find_map(|(begins, first)| {
        let rest = command.strip_prefix(begins)?;
        // `cargo cinema` is a different command.
        (rest.is_empty() || rest.starts_with(' ')).then_some((rest, *first))
    })?;
    let words = rest.split_whitespace();
    let words = words.take_while(|word| !TERMINATORS.contains(word));
    let words: Vec<&str> = words.filter(|word| *word != "…").collect();
    let arguments: Vec<&str> = first.iter().copied().chain(words).collect();
    // `cargo ci` alone names the program, `cargo ci TASK` any task.
    let task = arguments.first()?;
    if is_placeholder(task) {
        return None;
    }
    // A number is also valid where a name is expected.
    let filled = arguments
        .iter()
        .map(|word| if is_placeholder(word) { "1" } else { word });
    match Cli::try_parse_from(std::iter::once("cargo ci").chain(filled)) {
        Ok(_) => None,
        Err(error) if is_allowed(error.kind(), is_complete) => None,
        Err(error) => {
            let message = error.to_string();
            Some(message.lines().next().unwrap_or_default().to_owned())
        }
    }
}

fn is_allowed(kind: ErrorKind, is_complete: bool) -> bool {
    let needs_more = [
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
        ErrorKind::MissingRequiredArgument,
    ];
    kind == ErrorKind::DisplayHelp || (!is_complete && needs_more.contains(&kind))
}

/// Whether a word is a placeholder: TASK, FILE, N, `<task>`.
fn is_placeholder(word: &str) -> bool {
    let is_bracketed = word.starts_with('<') && word.ends_with('>');
    is_bracketed
        || word
            .chars()
            .all(|letter| letter.is_ascii_uppercase() || letter == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        breaches(&[
            File::new("docs/a.md", text),
            File::new("a.rs", "`cargo ci nothing`"),
        ])
    }

    #[test]
    fn existing_commands_are_no_breach() {
        for text in [
            "`cargo ci lint`, `cargo ci vm --only lio/chap` and `cargo ci`",
            "`cargo ci TASK --help`, `cargo ci --help`, `cargo ci bench --help`",
            "`cargo ci model --cases N -- --help`, `cargo ci mutants … --list`",
            "```\nsudo -E env \"PATH=$PATH\" cargo demo --fs xfs    # a comment\n  cargo ci fuzz --seconds 5 | tail\n```",
            "`cargo ci <task>`, `cargo ci release pack` and `cargo ci release`",
            "`cargo cinema` and `cargo test` and cargo ci nothing",
        ] {
            assert_eq!(found(text), Vec::<String>::new(), "{text}");
        }
    }

    #[test]
    fn unknown_commands_are_reported_with_their_line() {
        for parse_error in [
            "cargo ci lnit",
            "cargo ci lint --hard",
            "cargo ci fuzz --seconds many",
            "sudo cargo ci sanitary",
            "cargo demo --fs ntfs",
            "cargo ci --version",
        ] {
            for text in [
                format!("\nsee `{parse_error}`"),
                format!("```\n{parse_error}\n```"),
            ] {
                let found = found(&text);
                assert_eq!(found.len(), 1, "{text}");
                assert!(
                    found[0].starts_with(&format!("docs/a.md:2: `{parse_error}`: error: ")),
                    "{found:?}"
                );
            }
        }
    }

    #[test]
    fn commands_in_code_blocks_must_be_complete() {
        assert_eq!(found("```\ncargo ci release pack\n```").len(), 1);
        assert_eq!(
            found("```\ncargo ci release pack --from FOLDER\n```").len(),
            0
        );
    }
}
