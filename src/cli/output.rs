//! How results are printed: tables for people, JSON for programs.
//!
//! On a terminal a table keeps within its width and its header is bold (unless `NO_COLOR` is set); into a pipe or a file it goes with all
//! columns in full and without colours. A pipe that was closed is an error of its own kind, which `exit` takes as success.

use std::io::{self, IsTerminal, Write};

use comfy_table::{Attribute, Cell, ContentArrangement, Table};
use serde::Serialize;

/// See `--output`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Aligned columns.
    Table,
    /// One JSON document; streams write one per line.
    Json,
}

/// Where results go.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// What was asked for.
    pub format: Format,
}

impl Output {
    pub(super) fn new(format: Format) -> Self {
        Self { format }
    }

    /// Prints a value as JSON, or what `table` makes of it.
    pub fn print<T: Serialize>(self, value: &T, table: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
        let mut text = match self.format {
            Format::Json => serde_json::to_string_pretty(value)?,
            Format::Table => table(value),
        };
        if !text.ends_with('\n') && !text.is_empty() {
            text.push('\n');
        }
        write_out(&text)
    }

    /// Prints one line of a stream, at once.
    pub fn line<T: Serialize>(self, value: &T, line: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
        let text = match self.format {
            Format::Json => serde_json::to_string(value)?,
            Format::Table => line(value),
        };
        write_out(&format!("{text}\n"))
    }
}

/// To stdout, flushed.
pub fn write_out(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()?;
    Ok(())
}

/// Words for people, to stderr. Nobody can be told when that is closed.
pub fn say(text: &str) {
    _ = writeln!(io::stderr(), "{text}");
}

/// Rows with a header, without borders.
#[must_use]
pub fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = plain();
    let bold = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    table.set_header(header.iter().map(|title| {
        let cell = Cell::new(title.to_uppercase());
        if bold { cell.add_attribute(Attribute::Bold) } else { cell }
    }));
    for row in rows {
        table.add_row(row.into_iter().map(|text| if text.is_empty() { "-".to_owned() } else { text }));
    }
    finish(table)
}

/// Rows without a header.
#[must_use]
pub fn rows(rows: Vec<Vec<String>>) -> String {
    let mut table = plain();
    for row in rows {
        table.add_row(row);
    }
    finish(table)
}

/// Names and values below each other; empty values are left out.
#[must_use]
pub fn pairs(pairs: Vec<(&str, String)>) -> String {
    let mut table = plain();
    for (name, value) in pairs.into_iter().filter(|(_, value)| !value.is_empty()) {
        table.add_row([format!("{name}:"), value]);
    }
    finish(table)
}

fn plain() -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    if io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    } else {
        table.set_content_arrangement(ContentArrangement::Disabled).force_no_tty();
    }
    table
}

/// Without the space that the style leaves around each row.
fn finish(mut table: Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}
