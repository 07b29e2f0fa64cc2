//! What the demo shows once the text is loaded: searches, a write that is found at once, an index, the server's figures.
//!
//! A step that this server cannot do is named and passed over; a step that fails or gives a wrong answer makes the demo fail.

use super::corpus::{Corpus, Name};
use crate::cli::hits::{Look, hit_table};
use crate::fatal::Fatal;
use comfy_table::{ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use serde_json::{Map, Value};
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};
use strand_client::{Client, Code, Error, Hit, IndexKind, IndexQuery, SearchOptions};

/// The stage: a client, and where the output goes.
pub(super) struct Show<'a> {
    pub(super) client: &'a mut Client,
    coloured: bool,
    troubles: Vec<String>,
}

/// One search to show.
struct Search {
    title: &'static str,
    kind: Kind,
    query: &'static str,
}

#[derive(Clone, Copy)]
enum Kind {
    Text,
    Semantic(&'static str),
    Hybrid(&'static str),
}

const fn search(title: &'static str, kind: Kind, query: &'static str) -> Search {
    Search { title, kind, query }
}

/// For the dictionaries.
const LARGE: &[Search] = &[
    search("Words, best first", Kind::Text, "large wild animal hunting at night"),
    search("A phrase", Kind::Text, "\"body of water\""),
    search("Must and must not", Kind::Text, "+musical +instrument -stringed"),
    search("A prefix, and a word with a typing error", Kind::Text, "astronom* telescpe~1"),
    search("Similar by TF-IDF", Kind::Semantic("tfidf"), "someone who repairs shoes"),
    search("Similar by word embeddings", Kind::Semantic("embedding"), "a doctor who treats children"),
    search("Words and similarity together", Kind::Hybrid("embedding"), "fear of narrow places"),
];

/// For the entries that come with Strand.
const SMALL: &[Search] = &[
    search("Words, best first", Kind::Text, "soft silvery metal"),
    search("A phrase", Kind::Text, "\"capital of\" france"),
    search("Must and must not", Kind::Text, "+metal -radioactive"),
    search("A prefix, and a word with a typing error", Kind::Text, "radioact* elepant~1"),
    search("Similar by TF-IDF", Kind::Semantic("tfidf"), "bird that cannot fly"),
    search("Similar by word embeddings", Kind::Semantic("embedding"), "large wild cat"),
    search("Words and similarity together", Kind::Hybrid("embedding"), "gas used in lamps"),
];

/// Repetitions behind a median.
const REPETITIONS: usize = 20;
/// Longest time spent on repeating one search, or on looking for fresh writes.
const REPEAT_TIME_MAX: Duration = Duration::from_secs(3);
/// Longest wait for indexes to be built.
const BUILD_TIME_MAX: Duration = Duration::from_secs(45);
/// Writes that are looked for right after their acknowledgement.
const FRESH_WRITES: usize = 200;

impl<'a> Show<'a> {
    pub(super) fn new(client: &'a mut Client) -> Self {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { client, coloured: io::stdout().is_terminal() && !no_color, troubles: Vec::new() }
    }

    pub(super) fn say(&self, text: &str) {
        // A reader that has gone away is no failure of the demo.
        let _ = writeln!(io::stdout().lock(), "{text}");
    }

    pub(super) fn title(&self, text: &str) {
        let (bold, end) = if self.coloured { ("\x1b[1;36m", "\x1b[0m") } else { ("", "") };
        self.say(&format!("\n{bold}{text}{end}"));
    }

    /// Everything, one after another.
    pub(super) fn all(&mut self, corpus: &Corpus) -> Result<(), Error> {
        self.build()?;
        let searches = if corpus.name == Name::Shipped { SMALL } else { LARGE };
        for search in searches {
            self.search(search)?;
        }
        self.fresh_writes()?;
        self.index_queries(corpus)?;
        self.figures()
    }

    pub(super) fn stopping(&self) {
        self.say("\nStopping the server and removing its data.");
    }

    /// Says whether all went well.
    pub(super) fn end(&self) -> Result<(), Fatal> {
        if self.troubles.is_empty() {
            return Ok(());
        }
        Err(Fatal::Failed(format!("Not everything went well: {}.", self.troubles.join("; "))))
    }

    /// Makes a text index and waits until it is built, which searches would also do by themselves.
    fn build(&mut self) -> Result<(), Error> {
        self.title("Indexing the text");
        let begin = Instant::now();
        self.client.create_index("text", &IndexKind::Text { analyzer: None })?;
        while begin.elapsed() < BUILD_TIME_MAX && !self.is_built()? {
            std::thread::sleep(Duration::from_millis(50));
        }
        let listed = begin.elapsed();
        self.client.search("the first search waits for what is left", &SearchOptions::default())?;
        self.say(&format!(
            "Index ready after {:.2} s, first search answered after {:.2} s.",
            listed.as_secs_f64(),
            begin.elapsed().as_secs_f64()
        ));
        Ok(())
    }

    fn is_built(&mut self) -> Result<bool, Error> {
        let listed = self.client.list_indexes()?;
        let indexes = listed.as_array().map(Vec::as_slice).unwrap_or_default();
        Ok(!indexes.iter().any(|index| index["state"].as_str() == Some("building")))
    }

    fn search(&mut self, search: &Search) -> Result<(), Error> {
        let what = match search.kind {
            Kind::Text => "SEARCH".to_owned(),
            Kind::Semantic(model) => format!("SEMANTIC_SEARCH model={model}"),
            Kind::Hybrid(model) => format!("HYBRID_SEARCH model={model}"),
        };
        self.title(&format!("{}: {what} {}", search.title, search.query));
        let hits = match self.ask(search) {
            Ok(hits) => hits,
            Err(error) if is_absent(&error) => {
                self.say(&format!("This server cannot do that: {error}"));
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let mut times = Vec::with_capacity(REPETITIONS);
        let start = Instant::now();
        while times.is_empty() || (times.len() < REPETITIONS && start.elapsed() < REPEAT_TIME_MAX) {
            let begin = Instant::now();
            self.ask(search)?;
            times.push(begin.elapsed());
        }
        times.sort_unstable();
        let keys: Vec<&str> = hits.iter().map(|hit| hit.key.as_str()).collect();
        let values = if keys.is_empty() { Map::new() } else { self.client.bulk_get(&keys)? };
        self.say(&hit_table(&hits, &words_and_text(&values), search.query, &self.look()));
        let (middle, slowest) = (millis(times[times.len() / 2]), millis(times[times.len() - 1]));
        self.say(&format!("{} hits; median of {} {middle}, slowest {slowest}", hits.len(), times.len()));
        if hits.is_empty() {
            self.troubles.push(format!("{} found nothing", search.title));
        }
        Ok(())
    }

    fn ask(&mut self, search: &Search) -> Result<Vec<Hit>, Error> {
        let options = SearchOptions::default().top_k(5);
        match search.kind {
            Kind::Text => self.client.search(search.query, &options),
            Kind::Semantic(model) => self.client.semantic_search(search.query, &options.model(model)),
            Kind::Hybrid(model) => self.client.hybrid_search(search.query, &options.model(model)),
        }
    }

    /// Without a width of its own a table asks the terminal; in a pipe there is none.
    fn look(&self) -> Look {
        Look { coloured: self.coloured, width: (!io::stdout().is_terminal()).then_some(120) }
    }

    /// Writes documents with a word of their own and looks for each at once.
    fn fresh_writes(&mut self) -> Result<(), Error> {
        self.title("A write is found by the next search");
        let mut times = Vec::with_capacity(FRESH_WRITES);
        let mut found = 0;
        let start = Instant::now();
        while times.len() < FRESH_WRITES && start.elapsed() < REPEAT_TIME_MAX {
            let n = times.len();
            let (key, word) = (format!("demo:fresh:{n}"), format!("zyx{n}qua"));
            let begin = Instant::now();
            self.client.set(&key, &serde_json::json!({"text": format!("a note about {word}")}))?;
            let hits = self.client.search(&word, &SearchOptions::default().top_k(1))?;
            times.push(begin.elapsed());
            found += usize::from(hits.first().is_some_and(|hit| hit.key == key));
        }
        times.sort_unstable();
        let count = times.len();
        self.say(&format!(
            "{found} of {count} new documents were found by the search right after their SET."
        ));
        let (middle, slowest) = (millis(times[count / 2]), millis(times[count - 1]));
        self.say(&format!("Write and search together: median {middle}, slowest {slowest}"));
        if found < count {
            self.troubles.push(format!("{} acknowledged writes were not found", count - found));
        }
        Ok(())
    }

    fn index_queries(&mut self, corpus: &Corpus) -> Result<(), Error> {
        self.title("Indexes on fields");
        for field in ["topic", "size"] {
            let begin = Instant::now();
            self.client.create_index(field, &IndexKind::Value)?;
            self.say(&format!("CREATE_INDEX {field}: {}", millis(begin.elapsed())));
        }
        let (topic, prefix) = match corpus.name {
            Name::Wordnet => ("noun.animal", "noun."),
            Name::Gcide => ("Q", "Q"),
            Name::Shipped => ("animal", "p"),
        };
        self.index_query("topic", IndexQuery::value(topic), &format!("topic = {topic}"))?;
        self.index_query("topic", IndexQuery::prefix(prefix), &format!("topic begins with {prefix}"))?;
        self.index_query(
            "size",
            IndexQuery::gte(2).and_lt(4).descending(true),
            "2 <= size < 4, greatest first",
        )
    }

    fn index_query(&mut self, field: &str, query: IndexQuery, told: &str) -> Result<(), Error> {
        let begin = Instant::now();
        let mut keys = Vec::new();
        let mut count = 0;
        for found in self.client.query_index(field, query) {
            let found = found?;
            if count < 3 {
                keys.push(found.key);
            }
            count += 1;
        }
        let elapsed = begin.elapsed();
        if count == 0 {
            self.troubles.push(format!("no key was found by {told}"));
        }
        let examples = if keys.is_empty() { String::new() } else { format!(", such as {}", keys.join(", ")) };
        self.say(&format!("QUERY_INDEX {told}: {count} keys in {}{examples}", millis(elapsed)));
        Ok(())
    }

    fn figures(&mut self) -> Result<(), Error> {
        self.title("INFO");
        let info = self.client.info()?;
        let mut table = Table::new();
        table.load_preset(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header(["figure", "value"]);
        let mut rows = Vec::new();
        flatten("", &info, &mut rows);
        for (name, value) in rows {
            table.add_row([name, value]);
        }
        self.say(&table.to_string());
        Ok(())
    }
}

/// Whether an error says that this server has no such model or feature.
fn is_absent(error: &Error) -> bool {
    let codes = [Code::NoSuchIndex, Code::UnsupportedInMode, Code::UnknownCommand];
    codes.into_iter().any(|code| error.is(code))
}

/// The values, each as its words and its text, for the snippets.
fn words_and_text(values: &Map<String, Value>) -> Map<String, Value> {
    let shown = |value: &Value| {
        let words: Vec<&str> =
            value["words"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        Value::String(format!("{}: {}", words.join(", "), value["text"].as_str().unwrap_or_default()))
    };
    values.iter().map(|(key, value)| (key.clone(), shown(value))).collect()
}

/// Depth and number of figures that are shown.
const FIGURES_MAX: usize = 40;

/// Single figures of nested objects, by their path; lists (a figure a shard) are left to INFO itself.
fn flatten(path: &str, value: &Value, rows: &mut Vec<(String, String)>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flatten(&path, member, rows);
            }
        }
        Value::Array(_) | Value::Null => {}
        _ if rows.len() >= FIGURES_MAX => {}
        Value::String(text) => rows.push((path.to_owned(), text.clone())),
        other => rows.push((path.to_owned(), other.to_string())),
    }
}

fn millis(elapsed: Duration) -> String {
    format!("{:.2} ms", elapsed.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn figures_are_named_by_their_path() {
        let mut rows = Vec::new();
        flatten("", &json!({"a": {"b": 1, "list": [1]}, "c": "x", "n": null}), &mut rows);
        assert_eq!(rows, [("a.b".to_owned(), "1".to_owned()), ("c".to_owned(), "x".to_owned())]);
    }
}
