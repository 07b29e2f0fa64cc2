//! Indexes a long value in slices, so that no step costs more than a short one's.
//!
//! The strings are taken out of the value at once (that is copying), then analysed piece by piece, then their postings are
//! appended to the tail term by term, under the number that the document will have. Only the last step makes it one of the
//! index's documents and takes the old one out, so a query sees either. Meanwhile nothing else may be put
//! ([`TextIndex::is_busy`]), and the dictionary's ids are held.

use super::super::codec::put_varint;
use super::super::extract::{STRING_GAP, Scalar, is_within};
use super::dictionary::FieldId;
use super::score::Norm;
use super::{TextIndex, shortest};
use crate::index::Units;
use std::collections::BTreeMap;
use std::ops::Bound;

/// Values from this length on are indexed in slices.
pub(super) const LARGE_BYTES_MIN: usize = 16 << 10;

/// A value that is being indexed.
#[derive(Debug)]
pub(super) struct Large {
    key: Vec<u8>,
    /// All strings of the value, one after another.
    text: String,
    /// Where each string is in `text`.
    strings: Vec<(usize, usize)>,
    /// (field, string) to be analysed, in order.
    tasks: Vec<(usize, usize)>,
    /// How far the analysis is: task, byte of its string, positions used in it.
    task: usize,
    at: usize,
    used: u32,
    fields: Vec<FieldState>,
    /// Positions by term, both in order.
    terms: BTreeMap<u32, Vec<u32>>,
    /// The last term whose postings are in the tail.
    pushed: Option<u32>,
    /// The terms as the document's record has them.
    record: Vec<u8>,
    norm: Norm,
}

#[derive(Clone, Copy, Debug, Default)]
struct FieldState {
    id: FieldId,
    length: u32,
    /// Where the positions of its next string begin.
    base: u32,
}

impl TextIndex {
    /// Whether a long value is half indexed: [`TextIndex::go_on`] first.
    pub fn is_busy(&self) -> bool {
        self.large.is_some()
    }

    /// As [`TextIndex::put`], but what does not fit the budget is left to [`TextIndex::go_on`]; true if all is done.
    pub fn put_in_slices(&mut self, key: &[u8], value: &[u8], units: &mut Units) -> bool {
        self.finish_large();
        if value.len() < self.large_bytes_min {
            self.put(key, value, units);
            return true;
        }
        self.begin_large(key, value, units);
        self.go_on(units)
    }

    /// Goes on with a long value until the budget is spent; true when it is a document of the index.
    pub fn go_on(&mut self, units: &mut Units) -> bool {
        let Some(mut large) = self.large.take() else { return true };
        while units.left() {
            if large.task < large.tasks.len() {
                self.analyse_piece(&mut large, units);
            } else if !self.push_terms(&mut large, units) {
                self.finish(&large, units);
                return true;
            }
        }
        self.large = Some(large);
        false
    }

    /// Completes what is half indexed: the next document needs the tail's next number.
    pub(super) fn finish_large(&mut self) {
        while !self.go_on(&mut Units::unlimited()) {}
    }

    fn begin_large(&mut self, key: &[u8], value: &[u8], units: &mut Units) {
        let mut large = Large {
            key: key.to_vec(),
            text: String::new(),
            strings: Vec::new(),
            tasks: Vec::new(),
            task: 0,
            at: 0,
            used: 0,
            fields: self
                .fields
                .iter()
                .map(|field| FieldState { id: field.id, ..FieldState::default() })
                .collect(),
            terms: BTreeMap::new(),
            pushed: None,
            record: Vec::new(),
            norm: Norm::default(),
        };
        let fields = &self.fields;
        self.scratch.walker.walk(value, |path, scalar| {
            let Scalar::String(text) = scalar else { return };
            let string = large.strings.len();
            for (n, field) in fields.iter().enumerate() {
                if !field.dropped && (field.id == 0 || is_within(path, field.path.as_bytes())) {
                    large.tasks.push((n, string));
                }
            }
            let start = large.text.len();
            large.text.push_str(text);
            large.strings.push((start, large.text.len()));
        });
        units.spend(value.len() as u64 / 16);
        self.dictionary.hold();
        self.large = Some(large);
    }

    fn analyse_piece(&mut self, large: &mut Large, units: &mut Units) {
        let Large { text, strings, tasks, task, at, used, fields, terms, .. } = large;
        let (n, string) = tasks[*task];
        let text = &text[strings[string].0..strings[string].1];
        let (field, state) = (&mut self.fields[n], &mut fields[n]);
        let end = field.analyzer.piece_end(text, *at);
        let base = state.base.saturating_add(*used);
        let dictionary = &mut self.dictionary;
        let mut count = 0;
        let taken = field.analyzer.analyze(&text[*at..end], |token| {
            if let Some(term) = dictionary.intern(field.id, token.term.as_bytes()) {
                terms.entry(term).or_default().push(base.saturating_add(token.position));
                state.length += 1;
                count += 1;
            }
        });
        units.spend((end - *at) as u64 + count * 8 + 16);
        *used = used.saturating_add(taken);
        *at = end;
        if end == text.len() {
            if *used > 0 {
                state.base = state.base.saturating_add(*used).saturating_add(STRING_GAP);
            }
            (*task, *at, *used) = (*task + 1, 0, 0);
        }
    }

    /// Appends the postings of some terms to the tail; false when all are there.
    fn push_terms(&mut self, large: &mut Large, units: &mut Units) -> bool {
        let tail = std::rc::Rc::clone(self.tail());
        let mut tail = tail.borrow_mut();
        let document = tail.documents();
        let length_min = shortest(large.fields.iter().map(|field| field.length));
        let from = large.pushed.map_or(Bound::Unbounded, Bound::Excluded);
        for (term, positions) in large.terms.range((from, Bound::Unbounded)) {
            if !units.left() {
                return true;
            }
            let dictionary = &mut self.dictionary;
            tail.push_posting(*term, (document, length_min), positions, &mut |term| dictionary.retain(term));
            put_varint(&mut large.record, term - large.pushed.unwrap_or(0));
            if dictionary.term(*term).0 == 0 {
                large.norm.add(positions.len() as u32);
            }
            large.pushed = Some(*term);
            units.spend(8 + positions.len() as u64);
        }
        false
    }

    /// Makes it a document in place of the one that the key had.
    fn finish(&mut self, large: &Large, units: &mut Units) {
        self.remove(&large.key, units);
        if !large.terms.is_empty() {
            let tail = std::rc::Rc::clone(self.tail());
            let mut tail = tail.borrow_mut();
            let document = tail.push_record(&large.key, &large.record);
            large.terms.keys().for_each(|term| self.dictionary.count_document(*term));
            for (field, state) in self.fields.iter_mut().zip(&large.fields) {
                if state.length > 0 {
                    let norm = (state.id == 0).then(|| large.norm.value());
                    tail.set_length(state.id, state.length, norm);
                    field.documents += 1;
                    field.total_length += u64::from(state.length);
                }
            }
            if let Some(embedder) = self.embedder {
                let mut texts = large.strings.iter().map(|(start, end)| &large.text[*start..*end]);
                tail.push_vector(&embedder.embed(&mut texts));
            }
            drop(tail);
            self.locate(&large.key, document);
            units.spend(large.terms.len() as u64);
        }
        self.dictionary.unhold();
        self.seal_if_full();
    }
}

#[cfg(test)]
mod tests {
    use super::super::search::{Model, Search, SearchHit};
    use super::super::{TextIndex, WHOLE};
    use crate::index::Units;
    use crate::index::analyze::AnalyzerKind;
    use crate::index::query::{CompiledQuery, parse};

    fn index(large_bytes_min: usize) -> TextIndex {
        let mut index = TextIndex::new();
        index.large_bytes_min = large_bytes_min;
        index.tail_documents_max = 7;
        assert!(index.add_field(WHOLE, AnalyzerKind::English));
        assert!(index.add_field("t", AnalyzerKind::Standard));
        index
    }

    fn hits(index: &TextIndex, text: &str) -> Vec<SearchHit> {
        let known = index.query_fields();
        let query = CompiledQuery::new(&parse(text, &|name| name == "t"), &known[..1], &known);
        let (view, stats) = index.pin(&query);
        let mut search = Search::new(view, &query, &stats, Model::Bm25, 1000).unwrap();
        assert!(search.step(&mut Units::unlimited(), &mut |_| true));
        search.into_hits()
    }

    #[test]
    fn slices_come_to_what_one_step_does() {
        let (mut whole, mut sliced) = (index(usize::MAX), index(1));
        let mut waited = 0;
        for n in 0..60usize {
            let words: Vec<String> =
                (0..40 + n * 5).map(|word| format!("word{} fox", word * n % 91)).collect();
            let value = format!("{{\"t\":\"{}\",\"u\":[\"the end\",\"\",\"{n}\"]}}", words.join(" "));
            let key = format!("k{}", n % 25);
            whole.put(key.as_bytes(), value.as_bytes(), &mut Units::unlimited());
            let before = hits(&sliced, "fox word7");
            let mut is_done = sliced.put_in_slices(key.as_bytes(), value.as_bytes(), &mut Units::new(50));
            while !is_done {
                waited += 1;
                assert!(sliced.is_busy());
                assert_eq!(
                    hits(&sliced, "fox word7"),
                    before,
                    "a query sees the old document until the new one is in"
                );
                sliced.work(&mut Units::new(200));
                is_done = sliced.go_on(&mut Units::new(50));
            }
            whole.work(&mut Units::new(5000));
            for text in ["fox word7", "\"fox word7\"", "t:fox end", "+word5 -word0", "word1*"] {
                assert_eq!(hits(&sliced, text), hits(&whole, text), "{text}");
            }
            assert_eq!(sliced.documents(), whole.documents());
        }
        assert!(waited > 60, "{waited}");
        assert!(!sliced.put_in_slices(b"k1", b"\"left half done\"", &mut Units::new(1)));
        sliced.put_in_slices(b"k2", b"\"another\"", &mut Units::unlimited());
        assert_eq!(hits(&sliced, "half").len(), 1, "the next document finishes the one before it");
    }
}
