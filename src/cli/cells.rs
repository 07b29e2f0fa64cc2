//! Tables on a terminal: one look for all subcommands.
//!
//! Text from a server is drawn without control characters.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, Table};
use serde_json::Value;

/// A narrower terminal is not believed, in columns.
const COLUMNS_MIN: u16 = 40;
/// Width of a table for a terminal that is not believed, in columns.
const COLUMNS_ASSUMED: u16 = 120;

/// An empty table with these columns.
pub(super) fn table(names: &[&str], coloured: bool) -> Table {
    let mut table = Table::new();
    if coloured {
        table.enforce_styling();
    }
    table.load_preset(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    if table.width().is_none_or(|columns| columns < COLUMNS_MIN) {
        // A terminal that does not say how wide it is, or says what cannot be read in.
        table.set_width(COLUMNS_ASSUMED);
    }
    table.set_header(names);
    table
}

/// A cell in a colour, where colours are wanted.
pub(super) fn tinted(cell: Cell, coloured: bool, colour: Color) -> Cell {
    if coloured { cell.fg(colour) } else { cell }
}

/// A number, to the right.
pub(super) fn number(number: usize) -> Cell {
    Cell::new(number).set_alignment(CellAlignment::Right)
}

/// A value, to the right.
pub(super) fn right(value: &Value) -> Cell {
    Cell::new(text(value)).set_alignment(CellAlignment::Right)
}

/// A value as a cell shows it.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.chars().filter(|c| !c.is_control()).collect(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}
