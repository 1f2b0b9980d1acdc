//! Plain text tables.

/// Columns are as wide as their widest cell, two spaces apart. No trailing spaces.
pub(crate) fn render<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let header = header.map(str::to_owned);
    let all = || std::iter::once(&header).chain(rows);
    let widths: Vec<usize> = (0..N)
        .map(|column| {
            all()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        format!("  {}\n", cells.join("  ").trim_end())
    };
    all().map(line).collect()
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
