//! Replies for people: pretty JSON, tables of hits and indexes, errors with what to do.
//!
//! Tables and colours are for terminals; into a pipe goes the result as JSON, one line each. NO_COLOR turns colours off. A
//! reader that has gone away ends the output and is no failure.

use super::json::pretty;
use crate::cli::hits::{Look, hit_table};
use comfy_table::{ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use serde_json::{Map, Value};
use std::io::{self, IsTerminal, Write};
use std::time::Duration;
use strand_client::{Command, Hit, Reply, Retry, ServerError, codec};

/// Where output goes and how it looks.
pub(super) struct Printer {
    raw: bool,
    terminal: bool,
    coloured: bool,
    coloured_errors: bool,
    closed: bool,
}

impl Printer {
    pub(super) fn new(raw: bool) -> Self {
        let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let terminal = io::stdout().is_terminal() && !raw;
        let coloured_errors = colours && io::stderr().is_terminal();
        Self { raw, terminal, coloured: colours && terminal, coloured_errors, closed: false }
    }

    /// Whether replies are printed as they came.
    pub(super) fn is_raw(&self) -> bool {
        self.raw
    }

    pub(super) fn has_tables(&self) -> bool {
        self.terminal
    }

    pub(super) fn is_coloured(&self) -> bool {
        self.coloured
    }

    /// Whether nobody reads the output any more.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// One line, or several, to stdout.
    pub(super) fn line(&mut self, text: &str) {
        if writeln!(io::stdout().lock(), "{text}").is_err() {
            self.closed = true;
        }
    }

    /// An error and what to do about it, to stderr.
    pub(super) fn failure(&self, error: &str, advice: &str) {
        let (red, end) = if self.coloured_errors { ("\x1b[31m", "\x1b[0m") } else { ("", "") };
        let advice = if advice.is_empty() { String::new() } else { format!("\n{advice}") };
        // Nothing is left to tell an error of stderr to.
        let _ = writeln!(io::stderr().lock(), "{red}error: {error}{end}{advice}");
    }

    /// An error reply.
    pub(super) fn refusal(&self, error: &ServerError) {
        let advice = match error.retry {
            Retry::Never => "",
            Retry::Safe => "Nothing was changed; it may be sent again.",
            Retry::SameSeq => "It may have taken effect; look before sending it again.",
        };
        self.failure(&format!("{}: {}", error.code.as_str(), error.message), advice);
    }

    /// A result that is not a list of hits.
    pub(super) fn success(&mut self, command: &Command, reply: &Reply, elapsed: Option<Duration>) {
        if !self.terminal {
            self.line(reply.result_text());
            return;
        }
        let table =
            command.name().eq_ignore_ascii_case("LIST_INDEXES").then(|| object_table(reply)).flatten();
        let mut text = table.unwrap_or_else(|| pretty(reply.result_text(), self.coloured));
        let mut notes = Vec::new();
        if !reply.found() {
            notes.push("no such key".to_owned());
        }
        notes.extend(reply.version().map(|version| format!("version {version}")));
        notes.extend(reply.cursor().map(|cursor| format!("more with cursor={cursor}")));
        notes.extend(elapsed.map(milliseconds));
        text += &self.dim(&format!("  ({})", notes.join(", ")));
        self.line(&text);
    }

    /// Hits of a search, with the values they are about.
    pub(super) fn hits(
        &mut self,
        command: &Command,
        hits: &[Hit],
        values: &Map<String, Value>,
        elapsed: Option<Duration>,
    ) {
        let query = member_text(command, "query");
        if !hits.is_empty() {
            self.line(&hit_table(hits, values, &query, &Look { coloured: self.coloured, ..Look::default() }));
        }
        let count = if hits.len() == 1 { "1 hit".to_owned() } else { format!("{} hits", hits.len()) };
        let timing = elapsed.map(|elapsed| format!(" in {}", milliseconds(elapsed))).unwrap_or_default();
        let note = self.dim(&format!("{count}{timing}"));
        self.line(&note);
    }

    fn dim(&self, text: &str) -> String {
        if self.coloured { format!("\x1b[2m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// The hits in a reply, when its command was a search.
pub(super) fn hits_of(command: &Command, reply: &Reply) -> Option<Vec<Hit>> {
    let searches = ["SEARCH", "SEMANTIC_SEARCH", "HYBRID_SEARCH"];
    searches
        .iter()
        .any(|name| command.name().eq_ignore_ascii_case(name))
        .then(|| reply.result().ok())
        .flatten()
}

fn milliseconds(elapsed: Duration) -> String {
    format!("{:.2} ms", elapsed.as_secs_f64() * 1e3)
}

/// A text member of a command, or nothing.
fn member_text(command: &Command, name: &str) -> String {
    let mut line = Vec::new();
    codec::encode(command, None, None, &mut line);
    let members: Value = serde_json::from_slice(&line).unwrap_or_default();
    members[name].as_str().unwrap_or_default().to_owned()
}

/// A list of objects as a table with a column a member; none when the result is something else.
fn object_table(reply: &Reply) -> Option<String> {
    let rows: Vec<Map<String, Value>> = reply.result().ok()?;
    let columns: Vec<String> = rows.first()?.keys().cloned().collect();
    let mut table = Table::new();
    table
        .load_preset(UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic)
        .set_header(&columns);
    for row in &rows {
        table.add_row(columns.iter().map(|column| match row.get(column) {
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
            None => String::new(),
        }));
    }
    Some(table.to_string() + "\n")
}
