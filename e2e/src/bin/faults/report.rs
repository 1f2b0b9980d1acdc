//! The matrix as Markdown, JSON and a terminal table.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use comfy_table::{Table, presets};
use e2e::model::step::Kind;
use serde::Serialize;

use crate::case::{CaseResult, Failure};
use crate::fault::{self, ExpandMode, Fault};

/// A cell that cannot be run on a test bed.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LeftOut {
    pub(crate) fault: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) way: ExpandMode,
    pub(crate) reason: String,
}

/// All results of a run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) plane: &'static str,
    pub(crate) cells: Vec<CaseResult>,
    pub(crate) left_out: Vec<LeftOut>,
    pub(crate) failures: Vec<Failure>,
}

impl Report {
    /// The number of leftovers in all cells together.
    pub(crate) fn leftovers(&self) -> usize {
        self.cells.iter().map(|line| line.leftovers.len()).sum()
    }

    /// Writes the Markdown and the JSON file into a folder.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        let context = || folder.display().to_string();
        fs::create_dir_all(folder).with_context(context)?;
        let name = |end: &str| folder.join(format!("{}.{end}", self.plane));
        let json = serde_json::to_vec_pretty(self)?;
        fs::write(name("json"), json).with_context(context)?;
        fs::write(name("md"), self.markdown()).with_context(context)
    }

    fn markdown(&self) -> String {
        let mut text = format!(
            "# What goes wrong while a volume grows ({})\n\n",
            self.plane
        );
        text.push_str(
            "| fault | kind | online/offline | outcome | code | message | ms | leftovers |\n",
        );
        text.push_str("|---|---|---|---|---|---|--:|--:|\n");
        for line in &self.cells {
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} | {} |",
                line.fault,
                line.kind,
                line.way.name(),
                line.outcome.name(),
                line.code,
                flat(&line.message),
                line.ms,
                line.leftovers.len()
            );
        }
        let _ = writeln!(text, "\nLeft out: {}.", self.left_out.len());
        for cell in &self.left_out {
            let (kind, way) = (cell.kind, cell.way.name());
            let _ = writeln!(text, "- {}, {kind}, {way}: {}", cell.fault, cell.reason);
        }
        for failure in &self.failures {
            let _ = writeln!(
                text,
                "- FAILED: {}: {}",
                failure.cell,
                flat(&failure.reason)
            );
        }
        text
    }

    /// Faults by kinds: the outcome online and offline.
    pub(crate) fn table(&self, faults: &[Fault]) -> Table {
        let mut table = Table::new();
        table.load_style(presets::UTF8_HORIZONTAL_ONLY);
        let mut header = vec!["fault".to_owned()];
        header.extend(Kind::ALL.map(|kind| kind.content().name().to_owned()));
        table.set_header(header);
        for fault in faults {
            let mut row = vec![fault.name.to_owned()];
            row.extend(Kind::ALL.map(|kind| self.both(fault, kind)));
            table.add_row(row);
        }
        table
    }

    fn both(&self, fault: &Fault, kind: Kind) -> String {
        let words = fault::ExpandMode::ALL.map(|way| self.word(fault, kind, way));
        if words.iter().all(|word| word == "-") {
            return "-".to_owned();
        }
        words.join(" / ")
    }

    fn word(&self, fault: &Fault, kind: Kind, way: ExpandMode) -> String {
        let kind = kind.content().name();
        let same =
            |name: &str, of: &str, on: ExpandMode| name == fault.name && of == kind && on == way;
        let results = self.cells.iter();
        if let Some(line) = { results }.find(|line| same(line.fault, line.kind, line.way)) {
            return line.outcome.name().to_owned();
        }
        let failed = format!("{}, {kind}, {}", fault.name, way.name());
        if self.failures.iter().any(|failure| failure.cell == failed) {
            return "FAILED".to_owned();
        }
        let out = self.left_out.iter();
        if { out }.any(|cell| same(cell.fault, cell.kind, cell.way)) {
            return "left out".to_owned();
        }
        "-".to_owned()
    }
}

/// One line that does not break a Markdown table.
fn flat(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::flat;

    #[test]
    fn a_message_stays_in_its_cell() {
        assert_eq!(flat("a | b\n  c"), "a \\| b c");
    }
}
