//! Whether the commands in Markdown files exist: each `cargo ci TASK` and `cargo demo`, in a line of its own or in the text, names a task
//! with options that the task has. Text in, breaches out.

use clap::{Parser as _, error::ErrorKind};

use super::{markdown, source::File};
use crate::Cli;

/// How such a command begins, and what it is a short form of.
const BEGINNINGS: [(&str, &[&str]); 2] = [("cargo ci", &[]), ("cargo demo", &["demo"])];
/// What may stand before it.
const AS_ROOT: [&str; 2] = ["sudo -E env \"PATH=$PATH\" ", "sudo "];
/// Ends what the task sees.
const ENDS: [&str; 6] = ["#", "&&", "&", "|", ";", ">"];

/// Every command that nobody can type.
pub(super) fn breaches(files: &[File]) -> Vec<String> {
    let mut found = Vec::new();
    for file in files.iter().filter(|file| file.is("md")) {
        let typed = markdown::fenced(&file.text).map(|(number, line)| (number, line.trim(), true));
        let named = markdown::prose(&file.text)
            .flat_map(|(number, line)| markdown::code(line).map(move |code| (number, code, false)));
        for (number, command, is_whole) in typed.chain(named) {
            if let Some(why) = wrong(command, is_whole) {
                found.push(format!("{}: `{command}`: {why}", file.at(number)));
            }
        }
    }
    found
}

/// Why a command cannot be typed; `None` for those that can, and for other programs'. One that is named in the text may lack what it needs.
fn wrong(command: &str, is_whole: bool) -> Option<String> {
    let command = AS_ROOT
        .iter()
        .find_map(|root| command.strip_prefix(root))
        .unwrap_or(command);
    let (behind, first) = BEGINNINGS.iter().find_map(|(begins, first)| {
        let behind = command.strip_prefix(begins)?;
        // `cargo cinema` is another command.
        (behind.is_empty() || behind.starts_with(' ')).then_some((behind, *first))
    })?;
    let words = behind.split_whitespace();
    let words = words.take_while(|word| !ENDS.contains(word));
    let words: Vec<&str> = words.filter(|word| *word != "…").collect();
    let arguments: Vec<&str> = first.iter().copied().chain(words).collect();
    // `cargo ci`, the program; `cargo ci TASK`, any of them.
    let task = arguments.first()?;
    if is_placeholder(task) {
        return None;
    }
    // A number is a good name, too.
    let filled = arguments
        .iter()
        .map(|word| if is_placeholder(word) { "1" } else { word });
    match Cli::try_parse_from(std::iter::once("cargo ci").chain(filled)) {
        Ok(_) => None,
        Err(error) if is_told(error.kind(), is_whole) => None,
        Err(error) => {
            let told = error.to_string();
            Some(told.lines().next().unwrap_or_default().to_owned())
        }
    }
}

fn is_told(kind: ErrorKind, is_whole: bool) -> bool {
    let needs_more = [
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand,
        ErrorKind::MissingRequiredArgument,
    ];
    kind == ErrorKind::DisplayHelp || (!is_whole && needs_more.contains(&kind))
}

/// Stands for what the reader has to put there: TASK, FILE, N, `<task>`.
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
    fn commands_that_exist() {
        for text in [
            "`cargo ci lint`, `cargo ci vm --only lio/chap` and `cargo ci`",
            "`cargo ci TASK --help`, `cargo ci --help`, `cargo ci bench --help`",
            "`cargo ci model --cases N -- --help`, `cargo ci sabotage … --list`",
            "```\nsudo -E env \"PATH=$PATH\" cargo demo --fs xfs    # a comment\n  cargo ci fuzz --seconds 5 | tail\n```",
            "`cargo ci <task>`, `cargo ci release pack` and `cargo ci release`",
            "`cargo cinema` and `cargo test` and cargo ci nothing",
        ] {
            assert_eq!(found(text), Vec::<String>::new(), "{text}");
        }
    }

    #[test]
    fn commands_that_do_not_are_named_with_their_line() {
        for wrong in [
            "cargo ci lnit",
            "cargo ci lint --hard",
            "cargo ci fuzz --seconds many",
            "sudo cargo ci sanitary",
            "cargo demo --fs ntfs",
            "cargo ci --version",
        ] {
            for text in [format!("\nsee `{wrong}`"), format!("```\n{wrong}\n```")] {
                let found = found(&text);
                assert_eq!(found.len(), 1, "{text}");
                assert!(
                    found[0].starts_with(&format!("docs/a.md:2: `{wrong}`: error: ")),
                    "{found:?}"
                );
            }
        }
    }

    #[test]
    fn a_line_to_be_typed_is_whole() {
        assert_eq!(found("```\ncargo ci release pack\n```").len(), 1);
        assert_eq!(
            found("```\ncargo ci release pack --from FOLDER\n```").len(),
            0
        );
    }
}
