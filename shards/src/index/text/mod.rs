//! The text index of one shard: documents in, postings, exact statistics and pinned views out.
//!
//! A document lives in exactly one *part*: the open tail, a tail waiting to be sealed, or a segment. An update kills the
//! old copy and appends a new one. Invariants: document counts, total lengths and document frequencies count the live
//! documents and nothing else, whatever the history; a pinned [`View`] sees neither later documents nor later deaths; the
//! layout of parts never shows in an answer. Everything longer than a document's own work happens in [`TextIndex::work`].

pub(crate) mod bitmap;
pub(crate) mod boolean;
mod bounds;
mod conjunction;
pub(crate) mod cursor;
pub(crate) mod dictionary;
mod field;
mod large;
mod levenshtein;
mod locations;
pub(crate) mod maxscore;
mod memory;
mod merge;
mod offering;
mod ordered;
mod part;
pub(crate) mod phrase;
pub mod score;
pub mod search;
pub(crate) mod segment;
mod single;
pub mod store;
mod tables;
pub(crate) mod tail;
pub(crate) mod top;
mod upkeep;
mod writer;

#[cfg(test)]
mod stored_tests;
#[cfg(test)]
mod tests;

use super::Units;
use super::analyze::{Analyzer, AnalyzerKind, NO_MEMO};
use super::extract::{STRING_GAP, Scalar, Walker, is_within};
use crate::ids::{KeyHash, hash_of};
use bitmap::Bitmap;
use dictionary::{Dictionary, FieldId};
use field::Field;
use locations::{Location, Locations};
use merge::{GONE, Merge};
use part::{Body, PartView};
use score::Norm;
use std::cell::RefCell;
use std::rc::Rc;
use tail::Tail;

/// Path of the field that is the whole value.
pub const WHOLE: &str = "*";

#[derive(Debug)]
struct Part {
    id: u32,
    body: Body,
    dead: Rc<Bitmap>,
    /// Being merged or relocated: no merge may take it.
    busy: bool,
}

/// Where the documents of a part that was merged away are now.
#[derive(Debug)]
struct Forward {
    from: u32,
    to: u32,
    documents: Vec<u32>,
}

/// Brings the locations of a new part's documents up to date.
#[derive(Debug)]
struct Relocation {
    part: u32,
    next: u32,
}

/// The text index of one shard.
pub struct TextIndex {
    fields: Vec<Field>,
    next_field: FieldId,
    dictionary: Dictionary,
    locations: Locations,
    parts: Parts,
    next_part: u32,
    merges: Vec<Merge>,
    /// Terms that went with ended merges, to be given back: each with the number of inputs that had it.
    gone: Vec<(u32, u32)>,
    relocations: Vec<Relocation>,
    embedder: Option<&'static dyn Embedder>,
    scratch: Scratch,
    spare: tables::Spare,
    /// The tail is sealed when it has this many documents.
    tail_documents_max: usize,
    /// A long value that is half indexed.
    large: Option<large::Large>,
    /// Values from this length on are indexed in slices.
    large_bytes_min: usize,
}

/// All parts, and the ways from those that were merged away.
#[derive(Debug, Default)]
struct Parts {
    /// The open tail is the last.
    list: Vec<Part>,
    forwards: Vec<Forward>,
}

/// Turns a document's strings into a vector of int8 with a fixed number of dimensions.
pub trait Embedder {
    /// Number of dimensions.
    fn dimensions(&self) -> usize;
    /// The vector of the strings of one value.
    fn embed(&self, texts: &mut dyn Iterator<Item = &str>) -> Vec<i8>;
}

#[derive(Default)]
struct Scratch {
    walker: Walker,
    pairs: Vec<u64>,
    lengths: Vec<(FieldId, u32, Option<f32>)>,
    positions: Vec<u32>,
    texts: Vec<String>,
}

impl std::fmt::Debug for TextIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextIndex")
            .field("documents", &self.locations.len())
            .field("parts", &self.parts.list.len())
            .finish()
    }
}

impl Default for TextIndex {
    fn default() -> Self {
        Self::new()
    }
}

impl TextIndex {
    /// An index without fields.
    pub fn new() -> Self {
        let mut index = Self {
            fields: Vec::new(),
            next_field: 1,
            dictionary: Dictionary::default(),
            locations: Locations::default(),
            parts: Parts::default(),
            next_part: 0,
            merges: Vec::new(),
            gone: Vec::new(),
            relocations: Vec::new(),
            embedder: None,
            scratch: Scratch::default(),
            spare: tables::Spare::default(),
            tail_documents_max: tail::DOCUMENTS_MAX,
            large: None,
            large_bytes_min: large::LARGE_BYTES_MIN,
        };
        index.open_tail();
        index
    }

    /// Adds a field. Documents that are in the index already must be put again to have it.
    ///
    /// False if 65,535 fields have been added in the life of the index.
    pub fn add_field(&mut self, path: &str, analyzer: AnalyzerKind) -> bool {
        let id = if path == WHOLE && !self.fields.iter().any(|field| field.id == 0) {
            0
        } else {
            let Some(next) = self.next_field.checked_add(1) else { return false };
            std::mem::replace(&mut self.next_field, next)
        };
        let analyzer = Analyzer::new(analyzer);
        self.fields.push(Field {
            id,
            path: path.to_owned(),
            analyzer,
            remembered_at: self.dictionary.freed(),
            documents: 0,
            total_length: 0,
            dropped: false,
        });
        true
    }

    /// Takes a field out of answers; its postings go as documents are put again.
    pub fn drop_field(&mut self, path: &str) {
        if let Some(field) = self.fields.iter_mut().find(|field| !field.dropped && field.path == path) {
            field.dropped = true;
        }
    }

    /// Keeps a vector with each document from now on. Documents that are there already must be put again.
    pub fn set_embedder(&mut self, embedder: &'static dyn Embedder) {
        assert!(self.locations.len() == 0, "vectors are kept from the first document on");
        self.embedder = Some(embedder);
    }

    /// Number of live documents that have a token in any field.
    pub fn documents(&self) -> usize {
        self.locations.len()
    }

    /// Number of live documents that have a token in the field of this path.
    pub fn documents_in(&self, path: &str) -> u64 {
        self.field(path).map_or(0, |field| field.documents)
    }

    /// Number of parts a query visits.
    pub fn parts(&self) -> usize {
        self.parts.list.len()
    }

    /// The live field of a path.
    fn field(&self, path: &str) -> Option<&Field> {
        self.fields.iter().find(|field| !field.dropped && field.path == path)
    }

    fn open_tail(&mut self) {
        let id = self.next_part;
        self.next_part += 1;
        let body = Body::Tail(Rc::default());
        self.parts.list.push(Part { id, body, dead: Rc::default(), busy: false });
    }

    fn tail(&self) -> &Rc<RefCell<Tail>> {
        match self.parts.list.last().map(|part| &part.body) {
            Some(Body::Tail(tail)) => tail,
            _ => unreachable!("the last part is the open tail"),
        }
    }

    /// Takes a key's document out; true if it had one. Costs its distinct terms; returns units through `units`.
    pub fn remove(&mut self, key: &[u8], units: &mut Units) -> bool {
        let parts = &self.parts;
        let found = self.locations.remove(hash_of(key), |location| parts.has_key(*location, key));
        let Some(location) = found else { return false };
        let place = self.parts.resolve(location);
        let at = self.parts.position(place.part);
        let (part, dictionary) = (&mut self.parts.list[at], &mut self.dictionary);
        part.body.with_record(place.document, |record| {
            for term in record.terms() {
                dictionary.uncount_document(term);
                units.spend(2);
            }
        });
        for field in &mut self.fields {
            let length = u64::from(part.body.length(field.id, place.document));
            field.documents -= u64::from(length > 0);
            field.total_length -= length;
        }
        Rc::make_mut(&mut part.dead).insert(place.document);
        for merge in &mut self.merges {
            merge.note_death(place.part, place.document);
        }
        true
    }

    /// Indexes `value` (a JSON token) under `key` in place of what was there.
    pub fn put(&mut self, key: &[u8], value: &[u8], units: &mut Units) {
        self.finish_large();
        self.remove(key, units);
        let mut scratch = std::mem::take(&mut self.scratch);
        self.tokenise(value, &mut scratch);
        units.spend(value.len() as u64 + scratch.pairs.len() as u64 * 12 + 64);
        if !scratch.pairs.is_empty() {
            self.append(key, &scratch);
        }
        scratch.pairs.clear();
        scratch.pairs.shrink_to(1 << 16);
        scratch.texts.clear();
        self.scratch = scratch;
        self.seal_if_full();
    }

    fn seal_if_full(&mut self) {
        if self.tail().borrow().is_full(self.tail_documents_max) {
            self.seal_tail();
        }
    }

    /// Fills `scratch` with the value's (term, position) pairs in order, and its lengths.
    fn tokenise(&mut self, value: &[u8], scratch: &mut Scratch) {
        let Self { fields, dictionary, embedder, .. } = self;
        let Scratch { walker, pairs, lengths, positions, texts } = scratch;
        pairs.clear();
        lengths.clear();
        positions.clear();
        positions.resize(fields.len(), 0);
        lengths.extend(fields.iter().map(|field| (field.id, 0, None)));
        fields.iter_mut().for_each(|field| field.remember_at(dictionary.freed()));
        walker.walk(value, |path, scalar| {
            let Scalar::String(text) = scalar else { return };
            for (n, field) in fields.iter_mut().enumerate() {
                if field.dropped || (field.id != 0 && !is_within(path, field.path.as_bytes())) {
                    continue;
                }
                let base = positions[n];
                let used = field.analyzer.analyze_with_memos(text, |token, memo| {
                    if *memo == NO_MEMO {
                        *memo = dictionary.intern(field.id, token.term.as_bytes()).unwrap_or(NO_MEMO);
                    }
                    if *memo != NO_MEMO {
                        let (term, position) = (*memo, base.saturating_add(token.position));
                        pairs.push(u64::from(term) << 32 | u64::from(position));
                        lengths[n].1 += 1;
                    }
                });
                if used > 0 {
                    positions[n] = base.saturating_add(used).saturating_add(STRING_GAP);
                }
            }
            if embedder.is_some() {
                texts.push(text.to_owned());
            }
        });
        pairs.sort_unstable();
        if let Some(whole) = fields.iter().position(|field| field.id == 0) {
            let only = fields.len() == 1;
            let mut norm = Norm::default();
            for group in pairs.chunk_by(|a, b| a >> 32 == b >> 32) {
                if only || dictionary.term((group[0] >> 32) as u32).0 == 0 {
                    norm.add(group.len() as u32);
                }
            }
            lengths[whole].2 = Some(norm.value());
        }
    }

    fn append(&mut self, key: &[u8], scratch: &Scratch) {
        let tail = Rc::clone(self.tail());
        let mut tail = tail.borrow_mut();
        let dictionary = &mut self.dictionary;
        for group in scratch.pairs.chunk_by(|a, b| a >> 32 == b >> 32) {
            dictionary.count_document((group[0] >> 32) as u32);
        }
        let length_min = shortest(scratch.lengths.iter().map(|(_, length, _)| *length));
        let document = tail.push(key, &scratch.pairs, length_min, |term| dictionary.retain(term));
        for (field, (id, length, norm)) in self.fields.iter_mut().zip(&scratch.lengths) {
            if *length > 0 {
                tail.set_length(*id, *length, *norm);
                field.documents += 1;
                field.total_length += u64::from(*length);
            }
        }
        if let Some(embedder) = self.embedder {
            tail.push_vector(&embedder.embed(&mut scratch.texts.iter().map(String::as_str)));
        }
        drop(tail);
        self.locate(key, document);
    }

    /// Notes where a key's newest document is.
    fn locate(&mut self, key: &[u8], document: u32) {
        let parts = &self.parts;
        let part = parts.list.last().expect("the last part is the open tail").id;
        let location = Location { part, document };
        self.locations.insert(hash_of(key), location, |location| parts.hash_at(*location));
    }

    /// Begins to seal the open tail and opens another.
    fn seal_tail(&mut self) {
        if self.tail().borrow().documents() == 0 {
            return;
        }
        let at = self.parts.list.len() - 1;
        self.begin_merge(&[at]);
        self.open_tail();
    }
}

/// The least length of a document in a field that it has tokens in.
fn shortest(lengths: impl Iterator<Item = u32>) -> u32 {
    lengths.filter(|length| *length > 0).min().unwrap_or(0)
}

impl Part {
    fn view(&self) -> PartView {
        PartView {
            id: self.id,
            body: self.body.clone(),
            documents: self.body.documents(),
            dead: Rc::clone(&self.dead),
        }
    }
}

impl Parts {
    /// Where the part with this id is in the list.
    fn position(&self, id: u32) -> usize {
        self.list.iter().rposition(|part| part.id == id).expect("only parts in the list are named")
    }

    /// Follows a location through merges to the part that holds the document now.
    fn resolve(&self, mut location: Location) -> Location {
        while let Some(forward) = self.forwards.iter().find(|forward| forward.from == location.part) {
            let document = forward.documents[location.document as usize];
            assert!(document != GONE, "a live document is carried over");
            location = Location { part: forward.to, document };
        }
        location
    }

    fn has_key(&self, location: Location, key: &[u8]) -> bool {
        let place = self.resolve(location);
        let part = &self.list[self.position(place.part)];
        part.body.with_record(place.document, |record| record.key() == key)
    }

    fn hash_at(&self, location: Location) -> KeyHash {
        let place = self.resolve(location);
        let part = &self.list[self.position(place.part)];
        part.body.with_record(place.document, |record| hash_of(record.key()))
    }

    fn moved_to(&self, location: Location, target: Location) -> bool {
        let forward =
            self.forwards.iter().find(|forward| forward.from == location.part && forward.to == target.part);
        forward.is_some_and(|forward| forward.documents[location.document as usize] == target.document)
    }
}
