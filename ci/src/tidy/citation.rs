//! Checks that cited sections exist: of the design as `design.md#one-login`, of the DSM reference as `dsm-web-api.md 4.10` or
//! `dsm-web-api-2.md B.1`; and that each decision of the design is cited by a test. No I/O.

use std::{collections::BTreeSet, path::Path};

use super::{
    link::{anchor, anchors},
    markdown,
    source::File,
};

const DESIGN: &str = "driver/docs/design.md";
/// The chapter whose sections must be cited by tests.
const DECISIONS: &str = "## Choices";
/// The documents of the DSM reference, with numbered sections.
const NUMBERED: [&str; 2] = ["dsm-web-api.md", "dsm-web-api-2.md"];
/// In two parts, so that this file does not cite anything.
const ANCHOR: &str = concat!("design", ".md#");

/// All citations of missing sections, and all decisions that no test cites.
pub(super) fn breaches(files: &[File]) -> Vec<String> {
    let Some(design) = files.iter().find(|file| file.path == Path::new(DESIGN)) else {
        return vec![format!("{DESIGN}: does not exist")];
    };
    let anchors: BTreeSet<String> = anchors(&design.text);
    let mut tested = BTreeSet::new();
    let mut found = Vec::new();
    for file in files {
        let tests_from = file.tests_from().unwrap_or(usize::MAX);
        for (number, line) in file.text.lines().enumerate() {
            for cited in design_cited(line) {
                if !anchors.contains(cited) {
                    found.push(format!(
                        "{}: {DESIGN} has no section #{cited}",
                        file.at(number)
                    ));
                } else if number >= tests_from {
                    tested.insert(cited.to_owned());
                }
            }
        }
    }
    let decisions = decisions(&design.text).map(anchor);
    found.extend(
        decisions
            .filter(|choice| !tested.contains(choice))
            .map(|choice| format!("{DESIGN}#{choice}: no test cites it")),
    );
    found.extend(NUMBERED.iter().flat_map(|name| unnumbered(files, name)));
    found
}

/// Citations of missing sections of a numbered document.
fn unnumbered(files: &[File], name: &str) -> Vec<String> {
    let Some(document) = files.iter().find(|file| file.path.ends_with(name)) else {
        return vec![format!("{name}: does not exist")];
    };
    let numbers: BTreeSet<&str> = markdown::headings(&document.text)
        .filter_map(number)
        .collect();
    let lines = files.iter().flat_map(|file| {
        let lines = file.text.lines().enumerate();
        lines.map(move |(number, line)| (file, number, line))
    });
    lines
        .flat_map(|(file, at, line)| sections_cited(line, name).map(move |cited| (file, at, cited)))
        .filter(|(_, _, cited)| !numbers.contains(cited))
        .map(|(file, at, cited)| format!("{}: {name} has no section {cited}", file.at(at)))
        .collect()
}

/// The sections of the design that tests must cite: those of level 4.
fn decisions(design: &str) -> impl Iterator<Item = &str> {
    let inside = design.split_once(DECISIONS).map_or("", |(_, rest)| rest);
    let inside = inside.split("\n## ").next().unwrap_or_default();
    inside.lines().filter_map(|line| line.strip_prefix("#### "))
}

/// The number at the start of a heading, such as `4.10` or `B.1`.
fn number(heading: &str) -> Option<&str> {
    let first = heading.split(' ').next()?.trim_end_matches('.');
    is_number(first).then_some(first)
}

fn is_number(word: &str) -> bool {
    let parts: Vec<&str> = word.split('.').collect();
    let digits = |part: &&str| !part.is_empty() && part.bytes().all(|it| it.is_ascii_digit());
    let letter = |part: &&str| part.len() == 1 && part.as_bytes()[0].is_ascii_uppercase();
    match parts.as_slice() {
        [first] => digits(first) || letter(first),
        [first, second] => (digits(first) || letter(first)) && digits(second),
        _ => false,
    }
}

/// The anchors that a line cites, after the file name and after each following `, #` or ` and #`.
fn design_cited(line: &str) -> impl Iterator<Item = &str> {
    let behind = line
        .match_indices(ANCHOR)
        .map(|(at, _)| &line[at + ANCHOR.len()..]);
    behind.flat_map(|rest| {
        std::iter::successors(Some(rest), |rest| {
            let rest = &rest[slug(rest).len()..];
            [", #", " and #"]
                .iter()
                .find_map(|link| rest.strip_prefix(link))
        })
        .map(slug)
    })
}

fn slug(text: &str) -> &str {
    let end = text.find(|it: char| !it.is_ascii_alphanumeric() && it != '-');
    &text[..end.unwrap_or(text.len())]
}

/// The section numbers after the file name: `4.2`, `section 11`, `2 and 11.1`, `15, and 4.2`.
fn sections_cited<'a>(line: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    let behind = line
        .match_indices(name)
        .map(|(at, _)| &line[at + name.len()..]);
    let cited = behind.flat_map(|rest| {
        let words = rest.split(' ').skip(1);
        let words = words.map(|word| {
            (
                word,
                word.trim_end_matches([',', ':', ';', ')', '.', '`', '(', '*']),
            )
        });
        let cites = |(word, bare): &(&str, &str)| {
            let ends = word.len() > bare.len() && !word.ends_with(',');
            (
                matches!(*bare, "section" | "sections" | "and" | "to") || is_number(bare),
                ends,
            )
        };
        let mut over = false;
        words
            .take_while(move |word| {
                let (belongs, ends) = cites(word);
                let taken = belongs && !over;
                over |= ends;
                taken
            })
            .map(|(_, bare)| bare)
            .filter(|bare| is_number(bare))
            .collect::<Vec<_>>()
    });
    cited.collect::<Vec<_>>().into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Design\n\n## Choices\n\n### Names\n\n#### One login\n\n#### The owner's mark\n\n## Fencing\n\n#### Not a choice\n";

    fn tree(rest: &[File]) -> Vec<String> {
        let reference = "## 4. LUNs\n### 4.10 Snapshots\n## 11. Behaviours\n";
        let mut files = vec![
            File::new(DESIGN, TEXT),
            File::new("dsm-sim/docs/dsm-web-api.md", reference),
            File::new("dsm-sim/docs/dsm-web-api-2.md", "### B.1 Facts\n"),
            File::new(
                "driver/src/x/tests.rs",
                &format!("/// {ANCHOR}one-login, #the-owners-mark"),
            ),
        ];
        files.extend_from_slice(rest);
        breaches(&files)
    }

    #[test]
    fn existing_sections_may_be_cited() {
        let cites = format!(
            "// ({ANCHOR}one-login and #fencing).\n// {}",
            [
                "dsm-web-api.md 4 and 4.10. 99",
                "dsm-web-api.md section 11: 3 of 8",
                "dsm-web-api-2.md B.1."
            ]
            .join("\n// ")
        );
        assert_eq!(tree(&[File::new("driver/src/a.rs", &cites)]), [""; 0]);
    }

    #[test]
    fn missing_sections_are_reported_with_their_line() {
        let cites = format!(
            "\n// {ANCHOR}one-login and #two-logins\n// dsm-web-api.md 4, and 4.11\n// dsm-web-api-2.md B.2"
        );
        assert_eq!(
            tree(&[File::new("driver/src/a.rs", &cites)]),
            [
                "driver/src/a.rs:2: driver/docs/design.md has no section #two-logins",
                "driver/src/a.rs:3: dsm-web-api.md has no section 4.11",
                "driver/src/a.rs:4: dsm-web-api-2.md has no section B.2",
            ]
        );
    }

    #[test]
    fn only_citations_in_tests_count() {
        let more = TEXT.replace("#### One", "#### Untested: or not?\n\n#### One");
        let files = [
            File::new(DESIGN, &more),
            File::new("dsm-sim/docs/dsm-web-api.md", ""),
            File::new("dsm-sim/docs/dsm-web-api-2.md", ""),
            File::new(
                "driver/src/a.rs",
                &format!(
                    "// {ANCHOR}untested-or-not\n\n#[cfg(test)]\nmod tests {{\n    /// {ANCHOR}one-login and #the-owners-mark\n"
                ),
            ),
        ];
        assert_eq!(
            breaches(&files),
            [format!("{DESIGN}#untested-or-not: no test cites it")]
        );
    }
}
