//! Search hits as a table: rank, key, scores, and the part of the value that the search was about. Shared by `cli` and `demo`.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{
    Attribute, Cell, CellAlignment, Color, ColumnConstraint, ContentArrangement, Table, Width,
};
use serde_json::{Map, Value};
use strand_client::Hit;

/// How a table of hits looks.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Look {
    /// Whether it may have colours.
    pub(super) coloured: bool,
    /// Width in columns, where the terminal is not to be asked.
    pub(super) width: Option<u16>,
}

/// Longest snippet in characters.
const SNIPPET_LETTERS: usize = 120;
/// Longest key that is shown whole, in columns.
const KEY_COLUMNS: u16 = 32;

/// A column's name and its figure in a hit.
type Score = (&'static str, fn(&Hit) -> Option<f64>);

const SCORES: [Score; 3] =
    [("score", |hit| hit.score), ("bm25", |hit| hit.bm25), ("similarity", |hit| hit.similarity)];

/// Draws the hits. `values` holds what the keys are about, as far as it is known.
pub(super) fn hit_table(hits: &[Hit], values: &Map<String, Value>, query: &str, look: &Look) -> String {
    let columns = SCORES.iter().filter(|(_, of)| hits.iter().any(|hit| of(hit).is_some()));
    let columns: Vec<&Score> = columns.collect();
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    if let Some(width) = look.width {
        table.set_width(width);
    }
    let names = ["#", "key"].into_iter().chain(columns.iter().map(|(name, _)| *name)).chain(["text"]);
    table.set_header(names.map(|name| styled(Cell::new(name), look, None, true)));
    for (rank, hit) in hits.iter().enumerate() {
        let own = hit.value.as_ref().and_then(|raw| serde_json::from_str(raw.get()).ok());
        let text = own
            .as_ref()
            .or_else(|| values.get(&hit.key))
            .map(|value| snippet(value, query))
            .unwrap_or_default();
        let mut row = vec![Cell::new(rank + 1).set_alignment(CellAlignment::Right)];
        row.push(styled(Cell::new(&hit.key), look, Some(Color::Cyan), false));
        row.extend(columns.iter().map(|(_, of)| {
            let shown = of(hit).map(|score| format!("{score:.4}")).unwrap_or_default();
            Cell::new(shown).set_alignment(CellAlignment::Right)
        }));
        row.push(Cell::new(text));
        table.add_row(row);
    }
    if let Some(column) = table.column_mut(1) {
        column.set_constraint(ColumnConstraint::UpperBoundary(Width::Fixed(KEY_COLUMNS)));
    }
    table.to_string()
}

fn styled(cell: Cell, look: &Look, colour: Option<Color>, bold: bool) -> Cell {
    if !look.coloured {
        return cell;
    }
    let cell = if bold { cell.add_attribute(Attribute::Bold) } else { cell };
    match colour {
        Some(colour) => cell.fg(colour),
        None => cell,
    }
}

/// The part of a value's text that begins shortly before the first word of the query, on one line.
pub(super) fn snippet(value: &Value, query: &str) -> String {
    let mut text = String::new();
    gather(value, &mut text);
    let letters: Vec<char> = text.split_whitespace().collect::<Vec<_>>().join(" ").chars().collect();
    if letters.len() <= SNIPPET_LETTERS {
        return letters.into_iter().collect();
    }
    let lower: String =
        letters.iter().map(|letter| letter.to_lowercase().next().unwrap_or(*letter)).collect();
    let words = query.split(|letter: char| !letter.is_alphanumeric()).filter(|word| word.chars().count() > 2);
    let first = words.filter_map(|word| lower.find(&word.to_lowercase())).min();
    let first = first.map_or(0, |at| lower[..at].chars().count());
    let start = first.saturating_sub(SNIPPET_LETTERS / 3).min(letters.len() - SNIPPET_LETTERS);
    let end = start + SNIPPET_LETTERS;
    let middle: String = letters[start..end].iter().collect();
    let mark = |cut: bool| if cut { "…" } else { "" };
    format!("{}{}{}", mark(start > 0), middle.trim(), mark(end < letters.len()))
}

/// Every text inside a value, with blanks between.
fn gather(value: &Value, text: &mut String) {
    match value {
        Value::String(part) => {
            text.push_str(part);
            text.push_str("  ");
        }
        Value::Array(items) => items.iter().for_each(|item| gather(item, text)),
        Value::Object(members) => members.values().for_each(|member| gather(member, text)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn snippets_show_where_the_query_is() {
        assert_eq!(snippet(&json!({"a": "short\n text", "n": 1}), "x"), "short text");
        let long = json!(format!("{} the Quick fox {}", "é ".repeat(100), "b ".repeat(100)));
        let shown = snippet(&long, "\"quick\" nothing");
        assert!(shown.contains("Quick fox") && shown.starts_with('…') && shown.ends_with('…'), "{shown}");
        assert!(snippet(&long, "absent").starts_with('é'));
        // Letters whose lower case has another length must not shift the cut out of the text.
        assert!(!snippet(&json!(format!("{} end", "İ".repeat(300))), "end").is_empty());
    }

    #[test]
    fn only_scores_that_exist_have_a_column() {
        let hit = |score, similarity| Hit {
            key: "k".into(),
            score,
            similarity,
            bm25: None,
            value: None,
            highlight: None,
        };
        let look = Look { coloured: false, width: Some(80) };
        let table = hit_table(&[hit(Some(1.5), None)], &Map::new(), "", &look);
        assert!(table.contains("1.5000") && !table.contains("similarity"), "{table}");
        let table = hit_table(&[hit(None, Some(0.25))], &Map::new(), "", &look);
        assert!(table.contains("0.2500") && !table.contains("score"), "{table}");
    }
}
