//! Checks source files (length, unfinished code, local paths, bare sleeps, unlocked cargo commands), and lists the assumptions.
//! No I/O.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Maximum number of lines of a source file.
const MAX_LINES: usize = 600;

/// Marks of unfinished code. In two parts, so that this file does not match.
const UNFINISHED: [&str; 4] = [
    concat!("to", "do!("),
    concat!("unimple", "mented!("),
    concat!("db", "g!("),
    concat!("#[ig", "nore"),
];

/// Home directories.
const HOME_DIRECTORIES: [&str; 3] = [
    concat!("/ho", "me/"),
    concat!("/Us", "ers/"),
    concat!("/ro", "ot/"),
];

/// cargo subcommands that resolve dependencies. We always call them with `--locked`.
const RESOLVING_COMMANDS: [&str; 8] = [
    "bench", "build", "clippy", "doc", "install", "metadata", "run", "test",
];

const ASSUMED: &str = concat!("// ASSU", "MED");
const START: &str = concat!("Command", "::new(");
const SLEEP: &str = concat!("sle", "ep(");
/// Comment that justifies a sleep in a test.
const SLEEP_REASON: &str = "// sleep:";

/// A text file of the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct File {
    /// Relative to the root.
    pub(super) path: PathBuf,
    pub(super) text: String,
}

impl File {
    #[cfg(test)]
    pub(super) fn new(path: &str, text: &str) -> Self {
        Self {
            path: path.into(),
            text: text.into(),
        }
    }

    pub(super) fn is(&self, extension: &str) -> bool {
        self.path
            .extension()
            .is_some_and(|found| found == extension)
    }

    pub(super) fn at(&self, line: usize) -> String {
        format!("{}:{}", self.path.display(), line + 1)
    }

    /// The first line of test code, from 0; all lines after it are test code, too. `None` if there is none.
    pub(super) fn tests_from(&self) -> Option<usize> {
        if self
            .path
            .components()
            .any(|part| part.as_os_str() == "tests")
            || self.path.ends_with("tests.rs")
        {
            return Some(0);
        }
        let lines: Vec<&str> = self.text.lines().collect();
        lines.windows(2).position(|pair| {
            pair[0] == "#[cfg(test)]"
                && pair[1]
                    .trim_start_matches("pub(crate) ")
                    .starts_with("mod ")
                && pair[1].ends_with('{')
        })
    }
}

/// All violations in one file.
pub(super) fn breaches(file: &File, root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in file.text.lines().enumerate() {
        if contains_local_path(line, root) {
            found.push(format!(
                "{}: contains a path of a developer's machine",
                file.at(number)
            ));
        }
    }
    if (file.is("rs") || file.is("go")) && file.text.lines().count() > MAX_LINES {
        found.push(format!(
            "{}: longer than {MAX_LINES} lines",
            file.path.display()
        ));
    }
    if file.is("rs") {
        found.extend(rust_breaches(file));
    }
    if file.path.starts_with("ci/src") || file.path.starts_with(".cargo") {
        found.extend(unlocked(file));
    }
    found
}

/// Calls of cargo without `--locked`, in strings and in aliases.
fn unlocked(file: &File) -> Vec<String> {
    let tests_from = file.tests_from().unwrap_or(usize::MAX);
    let mut found = Vec::new();
    for (number, line) in file.text.lines().enumerate().take(tests_from) {
        let begins = |start: &str| code_of(line).split('"').any(|text| text.starts_with(start));
        let resolves = |task: &str| {
            let alias = file.is("toml") && begins(&format!("{task} "));
            alias || begins(&format!("cargo {task} "))
        };
        if RESOLVING_COMMANDS.iter().any(|task| resolves(task)) && !line.contains("--locked") {
            found.push(format!(
                "{}: call cargo with --locked, so that it uses the versions in Cargo.lock",
                file.at(number)
            ));
        }
    }
    found
}

fn contains_local_path(line: &str, root: &Path) -> bool {
    // A workspace at / or /src would match everything.
    let root = root.to_string_lossy();
    HOME_DIRECTORIES.iter().any(|home| line.contains(home))
        || (root.matches('/').count() > 1 && line.contains(root.as_ref()))
}

fn rust_breaches(file: &File) -> Vec<String> {
    let tests_from = file.tests_from().unwrap_or(usize::MAX);
    let mut found = Vec::new();
    let mut reason_above = false;
    for (number, line) in file.text.lines().enumerate() {
        let code = code_of(line);
        for mark in UNFINISHED {
            if code.contains(mark) {
                found.push(format!("{}: {mark} marks unfinished code", file.at(number)));
            }
        }
        let reason = line.contains(SLEEP_REASON);
        if number >= tests_from && calls(code, SLEEP) && !reason && !reason_above {
            found.push(format!("{}: a bare sleep in a test; wait for a condition, or give the reason after `{SLEEP_REASON}`", file.at(number)));
        }
        reason_above = reason || (reason_above && code.trim().is_empty());
    }
    found
}

/// The line without its comment. A `//` right after a colon is part of a URL.
pub(super) fn code_of(line: &str) -> &str {
    let comment = line
        .match_indices("//")
        .find(|(at, _)| !line[..*at].ends_with(':'));
    comment.map_or(line, |(at, _)| &line[..at])
}

/// Whether the code contains `name` as a whole word.
fn calls(code: &str, name: &str) -> bool {
    let inside_word = |letter: char| letter.is_alphanumeric() || letter == '_';
    code.match_indices(name)
        .any(|(at, _)| !code[..at].ends_with(inside_word))
}

/// Each crate may start programs in only one source file, and its tests in one other, so that each start has its timeout, tracing
/// span and log line.
pub(super) fn command_breaches(files: &[File]) -> Vec<String> {
    let mut places: BTreeMap<(String, bool), Vec<&File>> = BTreeMap::new();
    for file in files
        .iter()
        .filter(|file| file.is("rs") && file.text.lines().any(|line| calls(code_of(line), START)))
    {
        let package = file
            .path
            .components()
            .next()
            .map(|part| part.as_os_str().to_string_lossy().into_owned());
        let in_tests = file
            .path
            .components()
            .nth(1)
            .is_some_and(|part| part.as_os_str() == "tests");
        places
            .entry((package.unwrap_or_default(), in_tests))
            .or_default()
            .push(file);
    }
    let mut found = Vec::new();
    for ((package, in_tests), files) in places {
        let home = Path::new("driver/src/host/linux/command.rs");
        if package == "driver" && !in_tests {
            let others = files.iter().filter(|file| file.path != home);
            found.extend(others.map(|file| {
                format!(
                    "{}: only {} may start programs",
                    file.path.display(),
                    home.display()
                )
            }));
        } else if files.len() > 1 {
            let names: Vec<String> = files
                .iter()
                .map(|file| file.path.display().to_string())
                .collect();
            found.push(format!(
                "{package}: programs are started in {} files: {}",
                files.len(),
                names.join(", ")
            ));
        }
    }
    found
}

/// The assumptions in one file, as `file:line: sentence`. The first sentence after the mark may span several comment lines.
pub(super) fn assumed(file: &File) -> Vec<String> {
    if !file.is("rs") {
        return Vec::new();
    }
    let lines: Vec<&str> = file.text.lines().collect();
    let marks = lines
        .iter()
        .enumerate()
        .filter_map(|(number, line)| Some((number, line.split_once(ASSUMED)?.1)));
    marks
        .map(|(number, first)| {
            format!(
                "{}: {}",
                file.at(number),
                sentence(first, &lines[number + 1..])
            )
        })
        .collect()
}

fn sentence(first: &str, following: &[&str]) -> String {
    let mut text = first.trim_start_matches([':', ' ']).to_owned();
    for line in following {
        let Some(more) = line
            .trim()
            .strip_prefix("//")
            .filter(|_| !line.contains(ASSUMED) && !text.ends_with('.'))
        else {
            break;
        };
        text.push(' ');
        text.push_str(more.trim());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(path: &str, text: &str, want: &[&str]) {
        let found = breaches(&File::new(path, text), Path::new("/srv/build/clone"));
        assert_eq!(found.len(), want.len(), "{found:?}");
        for (breach, start) in found.iter().zip(want) {
            assert!(
                breach.starts_with(start),
                "{breach} does not start with {start}"
            );
        }
    }

    #[test]
    fn unfinished_code_is_found_in_code_only() {
        for mark in UNFINISHED {
            check(
                "driver/src/a.rs",
                &format!("fn a() {{\n    {mark}\n}}\n"),
                &["driver/src/a.rs:2"],
            );
            check("driver/src/a.rs", &format!("// not {mark}\n"), &[]);
            check("driver/a.md", mark, &[]);
        }
    }

    #[test]
    fn sleeps_in_tests_need_a_reason() {
        let pause = format!("tokio::time::{SLEEP}second).await;\n");
        check("e2e/tests/node.rs", &pause, &["e2e/tests/node.rs:1"]);
        check(
            "driver/src/node/tests.rs",
            &pause,
            &["driver/src/node/tests.rs:1"],
        );
        check("driver/src/a.rs", &pause, &[]);
        check(
            "driver/src/a.rs",
            &format!("#[cfg(test)]\nmod tests {{\n{pause}}}\n"),
            &["driver/src/a.rs:3"],
        );
        check(
            "e2e/tests/node.rs",
            &format!("{SLEEP_REASON} the writer's pace\n// and more\n{pause}"),
            &[],
        );
        check("e2e/tests/node.rs", &format!("let no_{SLEEP}) = 1;\n"), &[]);
    }

    #[test]
    fn long_files_and_local_paths_are_found() {
        check("driver/src/a.rs", &"// x\n".repeat(MAX_LINES), &[]);
        check(
            "driver/src/a.rs",
            &"// x\n".repeat(MAX_LINES + 1),
            &["driver/src/a.rs: longer"],
        );
        check("README.md", &"x\n".repeat(MAX_LINES + 1), &[]);
        for home in HOME_DIRECTORIES {
            check("README.md", &format!("see {home}me/x"), &["README.md:1"]);
        }
        check(
            "proto/dsm/lun_get.json",
            "\"source\": \"/srv/build/clone/x\"",
            &["proto/dsm/lun_get.json:1"],
        );
    }

    #[test]
    fn programs_are_started_in_one_file_per_crate() {
        let start = format!("let it = {START}\"x\");\n");
        let of = |paths: &[&str]| {
            let files: Vec<File> = paths.iter().map(|path| File::new(path, &start)).collect();
            command_breaches(&files)
        };
        assert!(
            of(&[
                "driver/src/host/linux/command.rs",
                "ci/src/run.rs",
                "e2e/src/run.rs",
                "dsm-sim/tests/kill.rs"
            ])
            .is_empty()
        );
        assert_eq!(of(&["driver/src/node.rs"]).len(), 1);
        assert_eq!(of(&["node-sim/src/a.rs", "node-sim/src/b.rs"]).len(), 1);
        assert!(of(&["node-sim/src/a.rs", "node-sim/tests/b.rs"]).is_empty());
        assert!(
            command_breaches(&[File::new("driver/src/a.rs", &format!("// {start}"))]).is_empty()
        );
    }

    #[test]
    fn assumptions_are_listed_with_their_line() {
        let text = format!(
            "fn a() {{\n    {ASSUMED}: locks clear\n    // at once.\n    // More.\n}}\n{ASSUMED} no colon\n"
        );
        let found = assumed(&File::new("dsm-sim/src/lun.rs", &text));
        assert_eq!(
            found,
            [
                "dsm-sim/src/lun.rs:2: locks clear at once.",
                "dsm-sim/src/lun.rs:6: no colon"
            ]
        );
    }

    #[test]
    fn a_url_is_not_a_comment() {
        assert_eq!(
            code_of("let a = \"http://x\"; // y"),
            "let a = \"http://x\"; "
        );
        assert_eq!(code_of("/// doc"), "");
    }

    #[test]
    fn cargo_must_be_called_with_locked() {
        let found = |path: &str, text: &str| breaches(&File::new(path, text), Path::new("/")).len();
        let build = "Cmd::new(context, \"cargo build --workspace\")";
        assert_eq!(found("ci/src/a.rs", build), 1);
        assert_eq!(
            found("ci/src/a.rs", &build.replace("build", "build --locked")),
            0
        );
        assert_eq!(found("ci/src/a.rs", &build.replace("build", "fmt")), 0);
        assert_eq!(found("ci/src/a.rs", &format!("// {build}")), 0);
        assert_eq!(
            found(".cargo/config.toml", "ci = \"run --quiet -p ci --\""),
            1
        );
        assert_eq!(
            found(".cargo/config.toml", "ci = \"run --locked -p ci --\""),
            0
        );
    }
}
