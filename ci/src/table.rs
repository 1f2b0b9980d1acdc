//! Plain text tables.

use comfy_table::{Table, presets};

/// Columns as wide as their widest cell, without borders and trailing spaces.
pub(crate) fn render<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(header)
        .add_rows(rows);
    let lines = table.lines();
    let lines: Vec<String> = lines
        .map(|line| format!(" {}\n", line.trim_end()))
        .collect();
    lines.concat()
}

#[cfg(test)]
mod tests {
    use super::render;

    #[test]
    fn columns_line_up_and_lines_do_not_trail() {
        let rows = [
            ["ok".to_owned(), "root".to_owned()],
            ["missing".to_owned(), "µ".to_owned()],
        ];
        assert_eq!(
            render(["state", "what"], &rows),
            "  state    what\n  ok       root\n  missing  µ\n"
        );
    }
}
