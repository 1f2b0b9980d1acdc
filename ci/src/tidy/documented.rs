//! Checks that each flag, configuration key, parameter and metric of the driver is documented, and that each message quoted in
//! the troubleshooting pages exists in its source. No I/O.

use std::path::Path;

use super::source::File;
use crate::chart::example;

/// The pages that quote messages, in tables with the header `Message`. An ellipsis replaces the variable parts of a message.
const PAGES: [&str; 2] = ["driver/docs/tls.md", "driver/docs/troubleshooting.md"];
/// Pages for developers. They do not count as user documentation.
const FOR_DEVELOPERS: [&str; 3] = [
    "driver/docs/architecture.md",
    "driver/docs/design.md",
    "driver/docs/development.md",
];
/// The headers of tables that quote messages.
const MESSAGE_HEADS: [&str; 3] = ["Message", "Metric", "What"];
/// At least one quoted part of a message must be this long, to be found by a search.
const MIN_MESSAGE_LENGTH: usize = 8;

/// All undocumented names, and all quoted messages that do not exist.
pub(super) fn breaches(files: &[File]) -> Vec<String> {
    let mut found = undocumented(files);
    let driver_text = driver_text(files);
    for path in PAGES {
        match files.iter().find(|file| file.path == Path::new(path)) {
            Some(page) => found.extend(unknown_messages(page, &driver_text)),
            None => found.push(format!("{path}: does not exist")),
        }
    }
    found
}

fn undocumented(files: &[File]) -> Vec<String> {
    let is_documented = |word: &str| {
        let documents = files.iter().filter(|file| {
            file.path == Path::new("README.md")
                || (file.path.starts_with("driver/docs")
                    && file.is("md")
                    && !FOR_DEVELOPERS.iter().any(|it| file.path == Path::new(it)))
        });
        documents
            .into_iter()
            .any(|document| has_word(&document.text, word))
    };
    let words = files.iter().flat_map(words);
    words
        .filter(|(_, word)| !is_documented(word))
        .map(|(kind, word)| {
            format!("{kind} {word}: documented neither in README.md nor in driver/docs")
        })
        .collect()
}

/// The user-visible names in a source file of the driver: kind and name.
fn words(file: &File) -> Vec<(&'static str, String)> {
    let text = file.text.as_str();
    if file.path == Path::new("driver/src/config.rs") {
        let fields = |name: &str| {
            let body = text.split_once(&format!("pub struct {name} {{\n"));
            body.map_or_else(Vec::new, |(_, rest)| fields(rest))
        };
        let flags = fields("Args");
        let mut found: Vec<_> = flags
            .iter()
            .map(|flag| ("flag", format!("--{}", flag.replace('_', "-"))))
            .collect();
        let keys = [fields("Config"), fields("NasConfig")].concat();
        found.extend(keys.into_iter().map(|key| ("configuration", key)));
        found
    } else if file.path == Path::new(example::PARAMETERS) {
        let names = example::parameters(text).into_iter();
        names.map(|name| ("parameter", name.to_owned())).collect()
    } else if file.path == Path::new("driver/src/metrics.rs") {
        let lines = text.lines().take(file.tests_from().unwrap_or(usize::MAX));
        let names = lines.filter_map(|line| line.trim().strip_prefix('"')?.strip_suffix("\","));
        let is_name = |name: &&str| {
            name.contains('_') && name.bytes().all(|it| it.is_ascii_lowercase() || it == b'_')
        };
        names
            .filter(is_name)
            .map(|name| ("metric", name.to_owned()))
            .collect()
    } else {
        Vec::new()
    }
}

/// The names of a struct's fields. `body` starts after the opening brace.
fn fields(body: &str) -> Vec<String> {
    let lines = body.lines().take_while(|line| *line != "}");
    let named = lines.filter_map(|line| {
        let line = line.strip_prefix("    ")?;
        let (name, _) = line.strip_prefix("pub ").unwrap_or(line).split_once(": ")?;
        let is_name = name
            .bytes()
            .all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || it == b'_');
        is_name.then(|| name.to_owned())
    });
    named.collect()
}

/// Whether the text has this whole word. A unit may follow a metric's name.
fn has_word(text: &str, word: &str) -> bool {
    let inside = |letter: char| letter.is_alphanumeric() || letter == '_' || letter == '-';
    text.match_indices(word).any(|(at, _)| {
        let after = &text[at + word.len()..];
        let after = ["_seconds", "_total"]
            .into_iter()
            .find_map(|unit| after.strip_prefix(unit))
            .unwrap_or(after);
        !text[..at].ends_with(inside) && !after.starts_with(inside)
    })
}

/// The driver's sources without comments and tests, as one line.
fn driver_text(files: &[File]) -> String {
    let mut driver_text = String::new();
    let sources = files
        .iter()
        .filter(|file| file.path.starts_with("driver/src"));
    for file in sources.filter(|file| file.is("rs")) {
        let code = file
            .text
            .lines()
            .take(file.tests_from().unwrap_or(usize::MAX));
        for line in code.filter(|line| !line.trim().starts_with("//")) {
            // A trailing backslash continues a string on the next line.
            driver_text.push_str(line.trim_start().trim_end_matches('\\'));
        }
    }
    driver_text
}

/// The quoted messages of a page that are not in the driver's sources.
fn unknown_messages(page: &File, driver_text: &str) -> Vec<String> {
    let (mut found, mut rows, mut messages) = (Vec::new(), 0, false);
    for (number, line) in page.text.lines().enumerate() {
        let place = page.at(number);
        let Some((head, _)) = line
            .strip_prefix("| ")
            .and_then(|row| row.split_once(" | "))
        else {
            // The table has ended.
            messages = messages && line.starts_with('|');
            continue;
        };
        messages |= MESSAGE_HEADS.contains(&head);
        let pieces: Vec<&str> = head
            .split('`')
            .skip(1)
            .step_by(2)
            .flat_map(|quoted| quoted.split('…'))
            .map(str::trim)
            .filter(|piece| !piece.is_empty() && !is_code(piece))
            .collect();
        if !messages || pieces.is_empty() {
            continue;
        }
        rows += 1;
        for piece in pieces.iter().filter(|piece| !driver_text.contains(**piece)) {
            found.push(format!("{place}: the driver has no message `{piece}`"));
        }
        if pieces.iter().all(|piece| piece.len() < MIN_MESSAGE_LENGTH) {
            found.push(format!(
                "{place}: the quoted parts are too short to be found by a search"
            ));
        }
    }
    if rows == 0 {
        found.push(format!("{}: quotes no message", page.path.display()));
    }
    found
}

/// A DSM error code, which the source has as a number.
fn is_code(piece: &str) -> bool {
    piece.bytes().all(|it| it.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = "pub struct Args {\n    /// Where.\n    pub host_root: PathBuf,\n}\npub struct Config {\n    pub nas: Vec<NasConfig>,\n}\npub struct NasConfig {\n    pub url: Url,\n    password: Option<String>,\n}\n";

    fn tree(readme: &str, page: &str) -> Vec<File> {
        [
            ("README.md", readme),
            (PAGES[0], TLS_PAGE),
            (PAGES[1], page),
            ("driver/src/config.rs", CONFIG),
            (
                "driver/src/request/parameters.rs",
                "const KNOWN: &str =\n    \"location, fsType\";\n",
            ),
            (
                "driver/src/metrics.rs",
                "        registry.register_with_unit(\n            \"csi_rpc\",\n            \"CSI calls\",\n#[cfg(test)]\nmod tests {\n            \"csi_other\",\n",
            ),
            (
                "driver/src/error.rs",
                "// a comment only\n#[error(\"the NAS has \\\n    gone away\")]\n",
            ),
        ]
        .map(|(path, text)| File::new(path, text))
        .to_vec()
    }

    #[test]
    fn pages_for_developers_do_not_count() {
        for page in FOR_DEVELOPERS {
            let mut files = tree(&ALL.replace("location", ""), ROW);
            files.push(File::new(page, "location"));
            assert_eq!(breaches(&files).len(), 1, "{page}");
        }
    }

    const ALL: &str = "--host-root nas: url: password: location fsType csi_rpc_seconds{rpc,code}";
    const ROW: &str = "| Message | Do |\n|---|---|\n| `the NAS has gone away` | look for it |\n";
    const TLS_PAGE: &str = "| Shows | Do |\n|---|---|\n| `no message` | x |\n\n| Message | Do |\n|---|---|\n| `the NAS … gone away` `401` | x |\n";

    #[test]
    fn documented_names_and_existing_messages_are_no_breach() {
        assert_eq!(breaches(&tree(ALL, ROW)), Vec::<String>::new());
    }

    #[test]
    fn each_name_must_be_documented() {
        for word in ALL.split(' ') {
            let found = breaches(&tree(&ALL.replace(word, ""), ROW));
            assert_eq!(found.len(), 1, "{word}: {found:?}");
        }
        let found = breaches(&tree(&ALL.replace("fsType", "myfsType"), ROW));
        assert_eq!(
            found.len(),
            1,
            "a part of a word is not the word: {found:?}"
        );
    }

    #[test]
    fn each_quoted_message_must_exist() {
        for row in [
            "| `the NAS has come back` | x |\n",
            "| `the NAS … has come back` | x |\n",
            "| `a comment only` | x |\n",
            "| `the NAS has gone away` `and more` | x |\n",
            "| `the` | x |\n",
            "\nNothing\n",
        ] {
            let page = format!("| Message | Do |\n|---|---|\n{row}");
            let found = breaches(&tree(ALL, &page));
            assert_eq!(found.len(), 1, "{row}: {found:?}");
        }
        // Messages of Kubernetes are in italics.
        let other = format!("{ROW}| *waiting for a volume* | x |\n");
        assert!(breaches(&tree(ALL, &other)).is_empty());
        let without: Vec<File> = tree(ALL, ROW)
            .into_iter()
            .filter(|file| file.path != Path::new(PAGES[1]))
            .collect();
        assert_eq!(breaches(&without).len(), 1);
    }
}
