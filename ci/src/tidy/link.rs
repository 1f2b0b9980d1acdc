//! Whether the relative links in Markdown files lead somewhere: to a file or folder of the tree and, behind a `#`, to a heading in it.
//! Text in, breaches out.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path, PathBuf},
};

use super::{markdown, source::File};

/// Every link that leads nowhere.
pub(super) fn breaches(files: &[File]) -> Vec<String> {
    let by_path: BTreeMap<&Path, &File> = files.iter().map(|it| (it.path.as_path(), it)).collect();
    let folders: BTreeSet<&Path> = files
        .iter()
        .flat_map(|it| it.path.ancestors().skip(1))
        .collect();
    let mut found = Vec::new();
    for file in files.iter().filter(|file| file.is("md")) {
        for (line, target) in links(&file.text) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let place = file.at(line);
            let (path, anchor) = match target.split_once('#') {
                Some((path, anchor)) => (path, Some(anchor)),
                None => (target.as_str(), None),
            };
            let there = if path.is_empty() {
                Some(file.path.clone())
            } else {
                joined(&file.path, path)
            };
            let Some(there) = there else {
                found.push(format!(
                    "{place}: the link {target} leads out of the repository"
                ));
                continue;
            };
            let Some(anchor) = anchor else {
                if !by_path.contains_key(there.as_path()) && !folders.contains(there.as_path()) {
                    found.push(format!(
                        "{place}: the link {target}: there is no {}",
                        there.display()
                    ));
                }
                continue;
            };
            match by_path.get(there.as_path()) {
                None => found.push(format!(
                    "{place}: the link {target}: there is no {}",
                    there.display()
                )),
                Some(page) if !anchors(&page.text).contains(anchor) => found.push(format!(
                    "{place}: the link {target}: no heading of {} gives #{anchor}",
                    there.display()
                )),
                Some(_) => {}
            }
        }
    }
    found
}

/// Where a link in a file leads; `None`: out of the tree.
fn joined(file: &Path, link: &str) -> Option<PathBuf> {
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

/// The targets of all links, with the numbers of their lines.
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
        // A title may stand behind it.
        let targets = targets
            .into_iter()
            .filter_map(|it| it.split_whitespace().next());
        links.extend(targets.map(|target| (number, target.trim_matches(['<', '>']).to_owned())));
    }
    links
}

/// What a link may name of a page: its headings as GitHub writes them in an address.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut anchors = BTreeSet::new();
    for (_, line) in markdown::prose(text) {
        let title = line.trim_start_matches('#');
        let depth = line.len() - title.len();
        if !(1..=6).contains(&depth) || !title.starts_with(' ') {
            continue;
        }
        let slug = slug(title.trim());
        let times = seen.entry(slug.clone()).or_default();
        anchors.insert(match *times {
            0 => slug,
            more => format!("{slug}-{more}"),
        });
        *times += 1;
    }
    anchors
}

fn slug(title: &str) -> String {
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
            File::new(".github/workflows/ci.yml", ""),
        ];
        let found = breaches(&files);
        assert_eq!(found.len(), want.len(), "{found:?}");
        for (breach, want) in found.iter().zip(want) {
            assert!(breach.contains(want), "{breach}");
        }
    }

    #[test]
    fn links_that_lead_somewhere() {
        for line in [
            "[x](page.md) and [y](./page.md#the-same) and [z](../LICENSE)",
            "[`code`](page.md#the-same-1)",
            "[x](page.md#what-works-and-what-does-not)",
            "[folder](../.github/workflows) [up](../docs/page.md)",
            "# Here\n[x](#here)",
            "[x](https://example.org/a#b) <mailto:a@b>",
            "`[x](nowhere.md)`\n```\n[x](nowhere.md)\n```",
            "[x]: page.md",
        ] {
            check(line, &[]);
        }
    }

    #[test]
    fn links_that_lead_nowhere_are_named_with_their_line() {
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
        check("[x](../../LICENSE)", &["leads out of the repository"]);
        check(
            "[x](nowhere.md#a) [y](/etc/passwd)",
            &["there is no docs/nowhere.md", "leads out"],
        );
        check("[x]: nowhere.md", &["there is no docs/nowhere.md"]);
    }
}
