//! Checks that the targets of relative links in Markdown files exist, including the heading after a `#`; and that paths in inline
//! code, such as `ci/src/tidy.rs`, exist. No I/O.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path, PathBuf},
};

use super::{markdown, source::File};

/// The folders of our crates.
const FOLDERS: [&str; 6] = ["ci", "driver", "dsm-sim", "e2e", "node-sim", "proto"];

/// All broken links, and all paths that do not exist.
pub(super) fn breaches(files: &[File]) -> Vec<String> {
    let by_path: BTreeMap<&Path, &File> = files.iter().map(|it| (it.path.as_path(), it)).collect();
    let folders: BTreeSet<&Path> = files
        .iter()
        .flat_map(|it| it.path.ancestors().skip(1))
        .collect();
    let mut found = Vec::new();
    let exists = |path: &Path| by_path.contains_key(path) || folders.contains(path);
    for file in files.iter().filter(|file| file.is("md")) {
        for (line, path) in paths(&file.text) {
            if !exists(Path::new(path.trim_end_matches('/'))) {
                found.push(format!("{}: there is no {path}", file.at(line)));
            }
        }
        for (line, target) in links(&file.text) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let place = file.at(line);
            let (path, anchor) = match target.split_once('#') {
                Some((path, anchor)) => (path, Some(anchor)),
                None => (target.as_str(), None),
            };
            let target_path = if path.is_empty() {
                Some(file.path.clone())
            } else {
                resolve(&file.path, path)
            };
            let Some(target_path) = target_path else {
                found.push(format!(
                    "{place}: the link {target} points outside of the repository"
                ));
                continue;
            };
            let Some(anchor) = anchor else {
                if !exists(&target_path) {
                    found.push(format!(
                        "{place}: the link {target}: there is no {}",
                        target_path.display()
                    ));
                }
                continue;
            };
            match by_path.get(target_path.as_path()) {
                None => found.push(format!(
                    "{place}: the link {target}: there is no {}",
                    target_path.display()
                )),
                Some(page) if !anchors(&page.text).contains(anchor) => found.push(format!(
                    "{place}: the link {target}: no heading of {} gives #{anchor}",
                    target_path.display()
                )),
                Some(_) => {}
            }
        }
    }
    found
}

/// The path that a link in a file points to; `None` if it is outside of the tree.
fn resolve(file: &Path, link: &str) -> Option<PathBuf> {
    let mut path = file.parent()?.to_owned();
    for part in Path::new(link).components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            Component::ParentDir => {
                if !path.pop() {
                    return None;
                }
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(path)
}

/// The paths in inline code that start with one of our folders, with their line numbers.
fn paths(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-".contains(letter);
    let is_ours = move |code: &&str| {
        let folder = code.split_once('/').map_or("", |(folder, _)| folder);
        FOLDERS.contains(&folder) && code.chars().all(is_plain)
    };
    markdown::prose(text)
        .flat_map(|(number, line)| markdown::code(line).map(move |code| (number, code)))
        .filter(move |(_, code)| is_ours(code))
}

/// The targets of all links, with their line numbers.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    for (number, line) in markdown::prose(text) {
        let line = markdown::without_code(line);
        let inline = line
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split_once(')'));
        let mut targets: Vec<&str> = inline.map(|(target, _)| target).collect();
        if line.starts_with('[')
            && let Some((_, target)) = line.split_once("]: ")
        {
            targets.push(target);
        }
        // A title may follow.
        let targets = targets
            .into_iter()
            .filter_map(|it| it.split_whitespace().next());
        links.extend(targets.map(|target| (number, target.trim_matches(['<', '>']).to_owned())));
    }
    links
}

/// The anchors of a page: GitHub's slugs of its headings.
pub(super) fn anchors(text: &str) -> BTreeSet<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut anchors = BTreeSet::new();
    for title in markdown::headings(text) {
        let slug = anchor(title);
        let times = seen.entry(slug.clone()).or_default();
        anchors.insert(match *times {
            0 => slug,
            more => format!("{slug}-{more}"),
        });
        *times += 1;
    }
    anchors
}

/// GitHub's slug of a heading: lower case, hyphens for spaces, no punctuation.
pub(super) fn anchor(title: &str) -> String {
    let letters = title.chars().flat_map(char::to_lowercase);
    letters
        .filter_map(|letter| match letter {
            ' ' => Some('-'),
            '-' | '_' => Some(letter),
            letter => letter.is_alphanumeric().then_some(letter),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# What works, and what `does not`\n\n## The same\n\n## The same\n\n```\n# no heading\n```\n";

    #[track_caller]
    fn check(line: &str, want: &[&str]) {
        let files = [
            File::new("docs/a.md", line),
            File::new("docs/page.md", PAGE),
            File::new("LICENSE", ""),
            File::new("ci/src/main.rs", ""),
            File::new(".github/workflows/ci.yml", ""),
        ];
        let found = breaches(&files);
        assert_eq!(found.len(), want.len(), "{found:?}");
        for (breach, want) in found.iter().zip(want) {
            assert!(breach.contains(want), "{breach}");
        }
    }

    #[test]
    fn existing_targets_are_no_breach() {
        for line in [
            "[x](page.md) and [y](./page.md#the-same) and [z](../LICENSE)",
            "[`code`](page.md#the-same-1)",
            "[x](page.md#what-works-and-what-does-not)",
            "[folder](../.github/workflows) [up](../docs/page.md)",
            "# Here\n[x](#here)",
            "[x](https://example.org/a#b) <mailto:a@b>",
            "`[x](nowhere.md)`\n```\n[x](nowhere.md)\n```",
            "[x]: page.md",
            "`ci/src/main.rs`, `ci/src/`, `pkg/other/repo.go`, `ci/src/*.rs`\n```\nci/src/none.rs\n```",
        ] {
            check(line, &[]);
        }
    }

    #[test]
    fn broken_links_are_reported_with_their_line() {
        check(
            "\n[x](pages.md)",
            &["docs/a.md:2: the link pages.md: there is no docs/pages.md"],
        );
        check(
            "[x](page.md#another)",
            &["no heading of docs/page.md gives #another"],
        );
        check("[x](page.md#no-heading)", &["#no-heading"]);
        check("[x](page.md#the-same-2)", &["#the-same-2"]);
        check("[x](#here)", &["no heading of docs/a.md gives #here"]);
        check("[x](../../LICENSE)", &["points outside of the repository"]);
        check(
            "[x](nowhere.md#a) [y](/etc/passwd)",
            &["there is no docs/nowhere.md", "points outside"],
        );
        check("[x]: nowhere.md", &["there is no docs/nowhere.md"]);
        check(
            "\n`ci/src/none.rs`",
            &["docs/a.md:2: there is no ci/src/none.rs"],
        );
    }
}
