//! Snippets: the stretch of a text with most of the query's words, and where they stand in it.
//!
//! Offsets are bytes of the unescaped text and always at character boundaries.

use super::analyze::{Analyzer, AnalyzerKind, TERM_BYTES_MAX};
use super::extract::{Scalar, Walker, is_within};
use super::query::{CompiledQuery, QueryField};
use super::text::WHOLE;
use super::text::search::Stats;
use std::collections::{BTreeMap, BTreeSet};

/// Longest text that is looked at for one snippet, in bytes, so that it takes less than a millisecond; later matches are passed over.
const TEXT_BYTES_MAX: usize = 32 << 10;

/// A stretch of one string of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snippet {
    /// Escaped path of the string; empty for a value that is a string.
    pub path: String,
    /// The stretch.
    pub text: String,
    /// Byte ranges of matching words in it, in order.
    pub matches: Vec<(usize, usize)>,
}

impl Snippet {
    /// The text with `before` and `after` around each match.
    pub fn marked(&self, before: &str, after: &str) -> String {
        let mut marked =
            String::with_capacity(self.text.len() + self.matches.len() * (before.len() + after.len()));
        let mut at = 0;
        for (start, end) in &self.matches {
            marked.push_str(&self.text[at..*start]);
            marked.push_str(before);
            marked.push_str(&self.text[*start..*end]);
            marked.push_str(after);
            at = *end;
        }
        marked.push_str(&self.text[at..]);
        marked
    }
}

/// Marks the words of one query in values.
#[derive(Debug)]
pub struct Highlighter {
    fields: Vec<Marked>,
    walker: Walker,
    length_max: usize,
}

#[derive(Debug)]
struct Marked {
    path: String,
    analyzer: Analyzer,
    terms: BTreeMap<Vec<u8>, usize>,
}

impl Highlighter {
    /// For a compiled query with its gathered figures (which name what prefixes and fuzzy words stand for); snippets have at
    /// most about `length_max` bytes.
    pub fn new(query: &CompiledQuery, stats: &Stats, length_max: usize) -> Self {
        let mut fields: Vec<Marked> = Vec::new();
        let mut number = 0;
        let mut add = |field: &QueryField, term: &[u8]| {
            let at = fields.iter().position(|known| known.path == field.path).unwrap_or_else(|| {
                let (path, analyzer) = (field.path.clone(), Analyzer::for_query(field.analyzer));
                fields.push(Marked { path, analyzer, terms: BTreeMap::new() });
                fields.len() - 1
            });
            fields[at].terms.entry(term.to_vec()).or_insert(number);
            number += 1;
        };
        let wanted = query.wanted_leaves();
        for leaf in wanted.iter().map(|leaf| &query.leaves[*leaf]) {
            add(&query.fields[leaf.field], &leaf.term);
        }
        for (expansion, terms) in query.expansions.iter().zip(&stats.expansions) {
            terms.iter().for_each(|term| add(&query.fields[expansion.field], &term.term));
        }
        Self { fields, walker: Walker::default(), length_max }
    }

    /// The best snippet of a value (a JSON token): most distinct words, then most words, then first.
    pub fn snippet(&mut self, value: &[u8]) -> Option<Snippet> {
        let Self { fields, walker, length_max } = self;
        let mut best: Option<((usize, usize), Snippet)> = None;
        let mut seen_bytes = 0;
        walker.walk(value, |path, scalar| {
            let Scalar::String(text) = scalar else { return };
            if seen_bytes >= TEXT_BYTES_MAX {
                return;
            }
            let text = &text[..text.floor_char_boundary(TEXT_BYTES_MAX - seen_bytes)];
            seen_bytes += text.len();
            let mut found: BTreeMap<usize, (usize, usize)> = BTreeMap::new();
            for field in fields.iter_mut() {
                if field.path != WHOLE && !is_within(path, field.path.as_bytes()) {
                    continue;
                }
                let Marked { analyzer, terms, .. } = field;
                let is_keyword = analyzer.kind() == AnalyzerKind::Keyword;
                analyzer.analyze(text, |token| {
                    if let Some(number) = terms
                        .get(token.term.as_bytes())
                        .filter(|_| !is_keyword || token.end <= TERM_BYTES_MAX)
                    {
                        found.entry(token.start).or_insert((token.end, *number));
                    }
                });
            }
            if let Some((value, stretch)) = best_stretch(text, &found, *length_max)
                && best.as_ref().is_none_or(|(other, _)| value > *other)
            {
                let path = String::from_utf8_lossy(path).into_owned();
                best = Some((value, cut(path, text, &found, stretch)));
            }
        });
        best.map(|(_, snippet)| snippet)
    }
}

/// The window of matches with most distinct words, then most words: (distinct, words) and its byte range.
fn best_stretch(
    text: &str,
    found: &BTreeMap<usize, (usize, usize)>,
    length_max: usize,
) -> Option<((usize, usize), (usize, usize))> {
    let matches: Vec<(usize, usize, usize)> =
        found.iter().map(|(start, (end, number))| (*start, *end, *number)).collect();
    let mut best: Option<((usize, usize), (usize, usize))> = None;
    for (n, first) in matches.iter().enumerate() {
        let inside = matches[n..].iter().take_while(|other| other.1 - first.0 <= length_max);
        let mut distinct = BTreeSet::new();
        let mut count = 0;
        let mut end = first.1;
        for other in inside.take(64) {
            distinct.insert(other.2);
            count += 1;
            end = end.max(other.1);
        }
        let value = (distinct.len(), count.max(1));
        if best.is_none_or(|(other, _)| value > other) {
            best = Some((value, (first.0, end)));
        }
    }
    // Fill the rest of the length with the text around, a third of it before.
    best.map(|(value, (start, end))| {
        let spare = length_max.saturating_sub(end - start);
        let from = text.floor_char_boundary(start.saturating_sub(spare / 3));
        let to =
            text.floor_char_boundary((end + (spare - (start - from).min(spare))).min(text.len())).max(end);
        (value, (from, to))
    })
}

/// Cuts a stretch out, at spaces where that loses no match.
fn cut(
    path: String,
    text: &str,
    found: &BTreeMap<usize, (usize, usize)>,
    (from, to): (usize, usize),
) -> Snippet {
    let first = found.range(from..).next().map_or(from, |(start, _)| *start);
    let mut start = from;
    if from > 0
        && let Some(space) = text[from..first.max(from)].find(char::is_whitespace)
    {
        let after = text[from + space..].chars().next().map_or(0, char::len_utf8);
        start = from + space + after;
    }
    let last = found
        .range(..to)
        .filter(|(_, (end, _))| *end <= to)
        .map(|(_, (end, _))| *end)
        .max()
        .unwrap_or(start)
        .max(start);
    let mut end = to;
    if to < text.len()
        && let Some(space) = text[last..to].rfind(char::is_whitespace)
    {
        end = last + space;
    }
    let inside = found.range(start..end).filter(|(_, (stop, _))| *stop <= end);
    let matches = inside.map(|(begin, (stop, _))| (begin - start, stop - start)).collect();
    Snippet { path, text: text[start..end].to_owned(), matches }
}

#[cfg(test)]
mod tests {
    use super::super::query::parse;
    use super::*;
    use proptest::prelude::*;

    fn highlighter(query: &str, length_max: usize) -> Highlighter {
        let field = QueryField { path: WHOLE.to_owned(), analyzer: AnalyzerKind::English };
        let query = CompiledQuery::new(&parse(query, &|_| false), std::slice::from_ref(&field), &[]);
        Highlighter::new(&query, &Stats::default(), length_max)
    }

    fn check(query: &str, value: &str, length_max: usize, expected: &str) {
        let snippet = highlighter(query, length_max).snippet(value.as_bytes());
        assert_eq!(snippet.map_or(String::new(), |snippet| snippet.marked("[", "]")), expected);
    }

    #[test]
    fn snippets_by_example() {
        check("running", "\"He ran; she runs. Running!\"", 100, "He ran; she [runs]. [Running]!");
        check("größe café", "\"Die Größe der Cafés: ein Café\"", 100, "Die [Größe] der [Cafés]: ein [Café]");
        check("whale", "{\"a\":\"no\",\"b\":[\"a \\u00e9t\\u00e9 whale\\n\"]}", 100, "a été [whale]\n");
        let long = format!(
            "\"{} needle in {} needle and thread {}\"",
            "hay ".repeat(50),
            "hay ".repeat(50),
            "hay ".repeat(50)
        );
        check("needle thread", &long, 40, "hay  [needle] and [thread] hay hay hay");
        check("+cat -dog", "\"cat and dog\"", 100, "[cat] and dog");
        check("absent", "\"text\"", 100, "");
    }

    proptest! {
        #[test]
        fn offsets_are_right_in_any_text(text in "[aéß😀 .]{0,80}", query in "[aéß]{1,2} [aé]{1}", length_max in 0usize..60) {
            let value = serde_json::to_string(&text).unwrap();
            if let Some(snippet) = highlighter(&query, length_max).snippet(value.as_bytes()) {
                prop_assert!(text.contains(&snippet.text));
                prop_assert!(!snippet.matches.is_empty());
                let mut before = 0;
                for (start, end) in &snippet.matches {
                    prop_assert!(before <= *start && start < end);
                    prop_assert!(snippet.text.get(*start..*end).is_some());
                    before = *end;
                }
            }
        }
    }
}
