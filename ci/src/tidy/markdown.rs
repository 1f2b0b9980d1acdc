//! A minimal Markdown parser for the checks: headings, prose, fenced code and inline code.

/// A fence: three or more backquotes, optionally with a language.
const FENCE: &str = "```";

/// The lines outside of fenced code, with their numbers from 0.
pub(super) fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    classified_lines(text)
        .filter_map(|(number, line, is_code)| (!is_code).then_some((number, line)))
}

/// The titles of the headings.
pub(super) fn headings(text: &str) -> impl Iterator<Item = &str> {
    prose(text).filter_map(|(_, line)| {
        let title = line.trim_start_matches('#');
        let depth = line.len() - title.len();
        let is_heading = (1..=6).contains(&depth) && title.starts_with(' ');
        is_heading.then(|| title.trim())
    })
}

/// The lines of fenced code, with their numbers from 0.
pub(super) fn fenced(text: &str) -> impl Iterator<Item = (usize, &str)> {
    classified_lines(text).filter_map(|(number, line, is_code)| is_code.then_some((number, line)))
}

/// All lines except fences, and whether each is in fenced code.
fn classified_lines(text: &str) -> impl Iterator<Item = (usize, &str, bool)> {
    let mut is_code = false;
    text.lines().enumerate().filter_map(move |(number, line)| {
        if line.trim_start().starts_with(FENCE) {
            is_code = !is_code;
            return None;
        }
        Some((number, line, is_code))
    })
}

/// The inline code of a line.
pub(super) fn code(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// A line without its inline code.
pub(super) fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_told_from_prose() {
        let text = "a `b` c\n```sh\nd\n```\n  ```\n  e\n  ```\nf\n";
        let lines = |of: &mut dyn Iterator<Item = (usize, &'static str)>| -> Vec<(usize, &str)> {
            of.collect()
        };
        assert_eq!(lines(&mut prose(text)), [(0, "a `b` c"), (7, "f")]);
        assert_eq!(lines(&mut fenced(text)), [(2, "d"), (5, "  e")]);
        assert_eq!(code("a `b` c `d`").collect::<Vec<_>>(), ["b", "d"]);
        assert_eq!(without_code("a `b` c"), "a  c");
    }
}
