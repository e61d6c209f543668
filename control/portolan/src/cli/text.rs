//! Text for people: aligned columns, durations, sums.

use std::fmt::Write;

use anstyle::{AnsiColor, Style};

/// Something is as it should be.
pub(super) const GOOD: Style = AnsiColor::Green.on_default();
/// Something wants attention.
pub(super) const WARN: Style = AnsiColor::Yellow.on_default();
/// Something does not work.
pub(super) const BAD: Style = AnsiColor::Red.on_default();
/// Headings.
pub(super) const HEAD: Style = Style::new().bold();
/// Less important than the rest.
pub(super) const FAINT: Style = Style::new().dimmed();

/// A column: its heading, and where its cells stand.
#[derive(Clone, Copy, Debug)]
pub(super) enum Column {
    /// Words.
    Left(&'static str),
    /// Numbers.
    Right(&'static str),
}

impl Column {
    fn heading(self) -> &'static str {
        match self {
            Self::Left(heading) | Self::Right(heading) => heading,
        }
    }
}

/// One field of a row.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// With a style.
    pub(super) fn styled(text: impl AsRef<str>, style: Style) -> Self {
        Self { text: clean(text.as_ref()), style }
    }

    fn width(&self) -> usize {
        // Names, addresses and numbers: every character takes one column.
        self.text.chars().count()
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::styled(text, Style::new())
    }
}

/// Rows under headings, two spaces between columns.
#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(super) fn new(columns: impl Into<Vec<Column>>) -> Self {
        Self { columns: columns.into(), rows: Vec::new() }
    }

    /// Adds a row: one cell for each column.
    pub(super) fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        debug_assert_eq!(N, self.columns.len(), "a cell for each column");
        self.rows.push(cells.into());
    }

    /// As text that ends with a line feed.
    pub(super) fn render(&self) -> String {
        let heading = |column: &Column| Cell::styled(column.heading(), HEAD);
        let head: Vec<Cell> = self.columns.iter().map(heading).collect();
        let lines = || std::iter::once(&head).chain(&self.rows);
        let width = |at: usize| lines().map(|row| row[at].width()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let mut text = String::new();
        for row in lines() {
            let line = self.line(row, &widths);
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    fn line(&self, row: &[Cell], widths: &[usize]) -> String {
        let mut line = String::new();
        let mut gap = 0;
        for ((cell, column), width) in row.iter().zip(&self.columns).zip(widths) {
            let fill = width - cell.width();
            let (before, after) = match column {
                Column::Left(_) => (0, fill),
                Column::Right(_) => (fill, 0),
            };
            // Padding stands outside of the style, so that trailing blanks can be cut.
            let blanks = " ".repeat(gap + before);
            line.push_str(&blanks);
            line.push_str(&paint(&cell.text, cell.style));
            gap = after + 2;
        }
        line
    }
}

/// Text in a style.
pub(super) fn paint(text: &str, style: Style) -> String {
    if text.is_empty() { String::new() } else { format!("{style}{text}{style:#}") }
}

/// A heading and indented lines below it; nothing without lines.
pub(super) fn section(heading: &str, lines: &[String], style: Style) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let mut text = format!("\n{}\n", paint(heading, HEAD));
    for line in lines {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {}", paint(&clean(line), style));
    }
    text
}

/// Text without control characters: what others wrote into objects must not command the terminal.
pub(super) fn clean(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            clean.extend(character.escape_default());
        } else {
            clean.push(character);
        }
    }
    clean
}

/// `42s`, `5m 3s`, `3h 12m`, `4d 3h`.
pub(super) fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

/// `340 µs`, `1.2 ms`, `2.3 s`.
pub(super) fn microseconds(time: u64) -> String {
    match time {
        0..1_000 => format!("{time} µs"),
        1_000..1_000_000 => format!("{:.1} ms", time as f64 / 1e3),
        _ => format!("{:.1} s", time as f64 / 1e6),
    }
}

/// The text; a dash if there is none.
pub(super) fn or_dash(text: &str) -> Cell {
    if text.is_empty() { Cell::styled("-", FAINT) } else { text.into() }
}

/// With commas between.
pub(super) fn join<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

/// `1 backend`, `2 backends`.
pub(super) fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// Text as it is without colours.
#[cfg(test)]
pub(super) fn plain(text: &str) -> String {
    anstream::adapter::strip_str(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_whatever_their_colours_and_lines_end_with_their_text() {
        let mut table = Table::new([Column::Left("NAME"), Column::Right("N"), Column::Left("NOTE")]);
        table.row([Cell::styled("a", GOOD), "10".into(), "".into()]);
        table.row(["longer-name".into(), Cell::styled("7", BAD), "übel".into()]);
        let coloured = table.render();
        assert!(coloured.contains("\u{1b}[32ma\u{1b}[0m"), "{coloured:?}");
        assert_eq!(plain(&coloured), "NAME          N  NOTE\na            10\nlonger-name   7  übel\n");
    }

    #[test]
    fn control_characters_reach_no_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\nc\u{9b}"), "a\\u{1b}[2Jb\\nc\\u{9b}");
    }

    #[test]
    fn durations_have_two_units_at_most() {
        let texts = [0, 59, 60, 3599, 3600, 86_399, 86_400, 900_000].map(duration);
        assert_eq!(texts, ["0s", "59s", "1m 0s", "59m 59s", "1h 0m", "23h 59m", "1d 0h", "10d 10h"]);
        assert_eq!([999, 1_000, 1_250_000].map(microseconds), ["999 µs", "1.0 ms", "1.2 s"]);
    }
}
