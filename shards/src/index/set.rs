//! All indexes of one shard: their definitions, their building, and keeping them up with the records.
//!
//! Value and vector indexes change with each record, in [`IndexSet::apply`]. Text is indexed later, by [`IndexSet::work`], from a backlog
//! of keys: a key stands in it once, however often it changes, and is read when its turn comes. A query notes
//! [`IndexSet::position`] when it arrives and may run once [`IndexSet::is_indexed`] says that everything up to there is in.
//! A shard without text or value indexes pays nothing. The engine bounds the backlog ([`IndexSet::backlog_len`]).

use super::Units;
use super::analyze::AnalyzerKind;
use super::codec::{Corrupt, Reader, put_bytes, put_varint, put_varint_u64};
use super::embed::built_in;
use super::text::store::{Loader, SnapshotWriter};
use super::text::{TextIndex, WHOLE};
use super::value::ValueIndex;
use super::vector::{Metric, VECTOR_DIMENSIONS_MAX, VectorIndex};
use crate::ids::hash_of;
use hashbrown::HashTable;
use std::collections::VecDeque;
use std::rc::Rc;

/// Records looked at in one go while an index is built.
const SCAN_RECORDS: usize = 8;
/// Units of indexing after which as many go to merging.
const MAINTENANCE_UNITS: u32 = 8192;

/// Lends the records of the shard.
pub trait DocumentSource {
    /// The current value of a key, a JSON token; `None` if it is absent.
    fn value(&self, key: &[u8]) -> Option<&[u8]>;

    /// Calls `each(key, value)` for about `limit` records after `cursor` (empty: from the start) and returns the next
    /// cursor; `None` at the end. A record that is there throughout a scan is seen at least once.
    fn scan(&self, cursor: &[u8], limit: usize, each: &mut dyn FnMut(&[u8], &[u8])) -> Option<Vec<u8>>;
}

/// What kind of index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexKind {
    /// Ordered values.
    Value,
    /// Words.
    Text {
        /// How they are made.
        analyzer: AnalyzerKind,
    },
    /// Built-in word embeddings of the whole value; kept with the text of the whole value, which it implies.
    Embedding,
    /// Vectors of the clients.
    Vector {
        /// Numbers in a vector.
        dimensions: usize,
        /// How they are compared.
        metric: Metric,
    },
}

impl IndexKind {
    /// Whether the text index holds it.
    fn is_text(self) -> bool {
        matches!(self, Self::Text { .. } | Self::Embedding)
    }

    /// The name in the protocol.
    pub fn name(self) -> &'static str {
        match self {
            Self::Value => "value",
            Self::Text { .. } => "text",
            Self::Embedding => "embedding",
            Self::Vector { .. } => "vector",
        }
    }
}

/// A definition: what CREATE_INDEX says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexDefinition {
    /// An escaped path, or `*` for the text of the whole value.
    pub path: String,
    /// Its kind.
    pub kind: IndexKind,
}

/// Whether an index can answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuildState {
    /// Not yet: so many records of the shard have been looked at.
    Building {
        /// Records seen by the scan.
        scanned: u64,
    },
    /// All records are in, or in the backlog.
    Ready,
}

/// A line of LIST_INDEXES, for one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexInfo {
    /// What it is.
    pub definition: IndexDefinition,
    /// Whether it can answer.
    pub state: BuildState,
    /// Entries, or documents of the text index.
    pub entries: u64,
    /// Bytes of memory; fields of text share theirs, so each states the whole.
    pub bytes: u64,
}

/// How a new definition met those that are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defined {
    /// It is new and will be built.
    Created,
    /// It was there already, the same.
    Same,
    /// The path has an index of this kind with another definition, or the shard can take no more.
    Conflict,
}

/// Most indexes in a shard.
pub const INDEXES_MAX: usize = 256;

struct Entry {
    definition: IndexDefinition,
    is_ready: bool,
    body: Body,
}

/// What an entry holds itself.
enum Body {
    /// Nothing: it is part of the text index.
    Text,
    Values(Box<ValueIndex>),
    Vectors(Box<VectorIndex>),
}

impl Entry {
    fn apply(&mut self, key: &[u8], old: Option<&[u8]>, new: Option<&[u8]>) {
        match &mut self.body {
            Body::Text => {}
            Body::Values(values) => values.apply(key, old, new),
            Body::Vectors(vectors) => vectors.apply(key, new),
        }
    }
}

/// The scan that builds the indexes that are not ready.
struct Build {
    cursor: Vec<u8>,
    scanned: u64,
    /// Definitions that came after it began wait for the next one.
    targets: Vec<IndexDefinition>,
}

/// Keys to be indexed, in order of their first change.
#[derive(Default)]
struct Backlog {
    queue: VecDeque<(u64, Rc<[u8]>)>,
    keys: HashTable<Rc<[u8]>>,
}

impl Backlog {
    fn push(&mut self, key: &[u8], position: u64) {
        let hash = hash_of(key).0;
        if self.keys.find(hash, |known| **known == *key).is_some() {
            return;
        }
        let key: Rc<[u8]> = key.into();
        self.keys.insert_unique(hash, Rc::clone(&key), |other| hash_of(other).0);
        self.queue.push_back((position, key));
    }

    fn pop(&mut self) -> Option<Rc<[u8]>> {
        let (_, key) = self.queue.pop_front()?;
        if let Ok(entry) = self.keys.find_entry(hash_of(&key).0, |known| **known == *key) {
            entry.remove();
        }
        Some(key)
    }
}

/// The indexes of one shard.
#[derive(Default)]
pub struct IndexSet {
    entries: Vec<Entry>,
    text: Option<TextIndex>,
    build: Option<Build>,
    backlog: Backlog,
    /// Changes applied so far.
    position: u64,
    /// Units of indexing that merging has not matched yet.
    debt: u32,
}

impl IndexSet {
    /// Defines an index; it is built by [`IndexSet::work`].
    pub fn define(&mut self, definition: IndexDefinition) -> Defined {
        let same_slot = |entry: &&Entry| {
            entry.definition.path == definition.path && entry.definition.kind.name() == definition.kind.name()
        };
        if let Some(entry) = self.entries.iter().find(same_slot) {
            return if entry.definition == definition { Defined::Same } else { Defined::Conflict };
        }
        if self.entries.len() == INDEXES_MAX {
            return Defined::Conflict;
        }
        let body = match definition.kind {
            IndexKind::Value => Body::Values(Box::new(ValueIndex::new(&definition.path))),
            IndexKind::Vector { dimensions, metric } => {
                if !(1..=VECTOR_DIMENSIONS_MAX).contains(&dimensions) {
                    return Defined::Conflict;
                }
                Body::Vectors(Box::new(VectorIndex::new(&definition.path, dimensions, metric)))
            }
            IndexKind::Text { analyzer } => {
                if !self.text.get_or_insert_default().add_field(&definition.path, analyzer) {
                    return Defined::Conflict;
                }
                Body::Text
            }
            IndexKind::Embedding => {
                if definition.path != WHOLE {
                    return Defined::Conflict;
                }
                if !self
                    .entries
                    .iter()
                    .any(|entry| entry.definition.path == WHOLE && entry.definition.kind.name() == "text")
                {
                    self.define(whole_text());
                }
                Body::Text
            }
        };
        let is_embedding = definition.kind == IndexKind::Embedding;
        self.entries.push(Entry { definition, is_ready: false, body });
        if is_embedding {
            self.rebuild_text();
        }
        Defined::Created
    }

    /// Drops an index; false if there is none.
    pub fn drop_index(&mut self, path: &str, kind_name: &str) -> bool {
        let same = |entry: &Entry| entry.definition.path == path && entry.definition.kind.name() == kind_name;
        let Some(at) = self.entries.iter().position(same) else { return false };
        let entry = self.entries.remove(at);
        if let Some(build) = &mut self.build {
            build.targets.retain(|target| *target != entry.definition);
        }
        if !entry.definition.kind.is_text() {
            return true;
        }
        if path == WHOLE && kind_name == "text" {
            // Embeddings lie with the text of the whole value.
            self.drop_index(WHOLE, "embedding");
        }
        if !self.entries.iter().any(|entry| entry.definition.kind.is_text()) {
            self.text = None;
            self.backlog = Backlog::default();
        } else if entry.definition.kind == IndexKind::Embedding {
            self.rebuild_text();
        } else if let Some(text) = &mut self.text {
            text.drop_field(path);
        }
        true
    }

    /// Begins the text index anew, with or without vectors. Queries on it wait until it is built.
    fn rebuild_text(&mut self) {
        let mut text = TextIndex::new();
        for entry in self.entries.iter_mut().filter(|entry| entry.definition.kind.is_text()) {
            entry.is_ready = false;
            match entry.definition.kind {
                IndexKind::Text { analyzer } => {
                    assert!(text.add_field(&entry.definition.path, analyzer), "a new index takes all fields");
                }
                _ => text.set_embedder(built_in()),
            }
        }
        self.text = Some(text);
        self.build = None;
    }

    /// The definitions, in order of creation.
    pub fn definitions(&self) -> impl Iterator<Item = &IndexDefinition> {
        self.entries.iter().map(|entry| &entry.definition)
    }

    /// What LIST_INDEXES says of this shard.
    pub fn list(&self) -> Vec<IndexInfo> {
        let scanned = |definition: &IndexDefinition| {
            let build = self.build.as_ref().filter(|build| build.targets.contains(definition));
            build.map_or(0, |build| build.scanned)
        };
        let info = |entry: &Entry| {
            let (entries, bytes) = match (&entry.body, &self.text) {
                (Body::Values(values), _) => (values.entries(), values.bytes()),
                (Body::Vectors(vectors), _) => (vectors.entries(), vectors.memory_bytes()),
                (Body::Text, Some(text)) => (text.documents(), text.bytes()),
                (Body::Text, None) => (0, 0),
            };
            let state = match entry.is_ready {
                true => BuildState::Ready,
                false => BuildState::Building { scanned: scanned(&entry.definition) },
            };
            IndexInfo {
                definition: entry.definition.clone(),
                state,
                entries: entries as u64,
                bytes: bytes as u64,
            }
        };
        self.entries.iter().map(info).collect()
    }

    /// A record has changed. `old` and `new` are JSON tokens, or absent.
    pub fn apply(&mut self, key: &[u8], old: Option<&[u8]>, new: Option<&[u8]>) {
        self.position += 1;
        for entry in &mut self.entries {
            entry.apply(key, old, new);
        }
        if self.text.is_some() {
            self.backlog.push(key, self.position);
        }
    }

    /// How many changes have been applied: what a query notes on arrival.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Whether text is indexed up to `position`, and the index of `path` and this kind can answer.
    pub fn is_indexed(&self, position: u64, path: &str, kind_name: &str) -> bool {
        let find =
            |entry: &&Entry| entry.definition.path == path && entry.definition.kind.name() == kind_name;
        let entry = self.entries.iter().find(find);
        let is_ready = entry.is_some_and(|entry| entry.is_ready);
        let is_text = entry.is_some_and(|entry| entry.definition.kind.is_text());
        let behind = self.backlog.queue.front().is_some_and(|(first, _)| *first <= position);
        is_ready && (!is_text || !behind)
    }

    /// Number of keys to be indexed.
    pub fn backlog_len(&self) -> usize {
        self.backlog.queue.len()
    }

    /// The text index, once there is a text field.
    pub fn text(&self) -> Option<&TextIndex> {
        self.text.as_ref()
    }

    /// The value index of a path.
    pub fn values(&self, path: &str) -> Option<&ValueIndex> {
        self.entries.iter().filter(|entry| entry.definition.path == path).find_map(|entry| {
            match &entry.body {
                Body::Values(values) => Some(&**values),
                _ => None,
            }
        })
    }

    /// The vector index of a path.
    pub fn vectors(&self, path: &str) -> Option<&VectorIndex> {
        self.entries.iter().filter(|entry| entry.definition.path == path).find_map(|entry| {
            match &entry.body {
                Body::Vectors(vectors) => Some(&**vectors),
                _ => None,
            }
        })
    }

    /// Whether [`IndexSet::work`] has something to do.
    pub fn has_work(&self) -> bool {
        self.backlog_len() > 0
            || self.entries.iter().any(|entry| !entry.is_ready)
            || self.text.as_ref().is_some_and(TextIndex::has_work)
    }

    /// Indexes the backlog, builds and merges until the budget is spent; true while there is more to do.
    pub fn work(&mut self, units: &mut Units, source: &dyn DocumentSource) -> bool {
        while units.left() {
            let before = units.balance();
            if let (Some(key), Some(text)) = (self.backlog.pop(), &mut self.text) {
                match source.value(&key) {
                    Some(value) => text.put(&key, value, units),
                    None => {
                        text.remove(&key, units);
                    }
                }
            } else if self.entries.iter().any(|entry| !entry.is_ready) {
                self.build_some(units, source);
            } else {
                let Some(text) = self.text.as_mut().filter(|text| text.has_work()) else { return false };
                text.work(units);
                self.debt = 0;
                continue;
            }
            let spent = u32::try_from(before - units.balance()).unwrap_or(u32::MAX);
            self.debt = self.debt.saturating_add(spent.saturating_add(4));
            units.spend(4);
            self.pay(units);
        }
        self.has_work()
    }

    /// Merging keeps pace with indexing, so that the number of parts stays small while writes pour in.
    fn pay(&mut self, units: &mut Units) {
        if self.debt < MAINTENANCE_UNITS {
            return;
        }
        let share = std::mem::take(&mut self.debt);
        if let Some(text) = self.text.as_mut().filter(|text| text.has_work()) {
            let mut budget = Units::new(share);
            text.work(&mut budget);
            units.spend(u64::try_from(i64::from(share) - budget.balance()).unwrap_or(0));
        }
    }

    /// Goes on with the scan that builds what is not ready.
    fn build_some(&mut self, units: &mut Units, source: &dyn DocumentSource) {
        let Self { entries, text, build, .. } = self;
        let build = build.get_or_insert_with(|| {
            let waiting =
                entries.iter().filter(|entry| !entry.is_ready).map(|entry| entry.definition.clone());
            Build { cursor: Vec::new(), scanned: 0, targets: waiting.collect() }
        });
        let wants_text = build.targets.iter().any(|target| target.kind.is_text());
        let mut seen = 0;
        let next = source.scan(&build.cursor, SCAN_RECORDS, &mut |key, value| {
            seen += 1;
            units.spend(16 + value.len() as u64 / 32);
            for entry in entries.iter_mut().filter(|entry| !entry.is_ready) {
                entry.apply(key, None, Some(value));
            }
            if let Some(text) = text.as_mut().filter(|_| wants_text) {
                text.put(key, value, units);
            }
        });
        build.scanned += seen;
        match next {
            Some(cursor) => build.cursor = cursor,
            None => {
                for entry in entries.iter_mut().filter(|entry| build.targets.contains(&entry.definition)) {
                    entry.is_ready = true;
                }
                self.build = None;
            }
        }
    }
}

const DEFINITIONS: u8 = 1;
const ENTRY: u8 = 2;
const TEXT: u8 = 3;
const END: u8 = 4;
const VERSION: u8 = 1;

/// Writes all indexes as they were when it was made. The backlog must be empty then: snapshots drain it first.
pub struct SetWriter {
    ready: Vec<(IndexDefinition, bool)>,
    stage: WriterStage,
    text: Option<SnapshotWriter>,
}

enum WriterStage {
    Definitions,
    Entry { index: usize, from: Place },
    Text,
    Done,
}

/// How far an entry has been written.
enum Place {
    Start,
    After(Box<[u8]>),
    Slot(u32),
}

impl IndexSet {
    /// Pins the indexes for a snapshot. [`IndexSet::end_snapshot`] must follow, and no index may be defined or dropped
    /// in between: the engine holds such commands back.
    pub fn begin_snapshot(&mut self) -> SetWriter {
        assert!(self.backlog_len() == 0, "a snapshot drains the backlog first");
        for entry in &mut self.entries {
            match &mut entry.body {
                Body::Text => {}
                Body::Values(values) => values.begin_snapshot(),
                Body::Vectors(vectors) => vectors.begin_snapshot(),
            }
        }
        SetWriter {
            ready: self.entries.iter().map(|entry| (entry.definition.clone(), entry.is_ready)).collect(),
            stage: WriterStage::Definitions,
            text: self.text.as_mut().map(TextIndex::begin_snapshot),
        }
    }

    /// Lets go of what the snapshot held.
    pub fn end_snapshot(&mut self, writer: SetWriter) {
        for entry in &mut self.entries {
            match &mut entry.body {
                Body::Text => {}
                Body::Values(values) => values.end_snapshot(),
                Body::Vectors(vectors) => vectors.end_snapshot(),
            }
        }
        if let (Some(text), Some(writer)) = (&mut self.text, writer.text) {
            text.end_snapshot(writer);
        }
    }
}

impl SetWriter {
    /// Appends the next section to `out` (nothing, if the budget went into preparing one); false after the last.
    pub fn next_section(&mut self, set: &mut IndexSet, units: &mut Units, out: &mut Vec<u8>) -> bool {
        let start = out.len();
        match std::mem::replace(&mut self.stage, WriterStage::Done) {
            WriterStage::Definitions => {
                out.extend_from_slice(&[DEFINITIONS, VERSION]);
                put_varint_u64(out, self.ready.len() as u64);
                for (definition, is_ready) in &self.ready {
                    put_bytes(out, definition.path.as_bytes());
                    put_bytes(out, definition.kind.name().as_bytes());
                    match definition.kind {
                        IndexKind::Value | IndexKind::Embedding => {}
                        IndexKind::Text { analyzer } => put_bytes(out, analyzer.name().as_bytes()),
                        IndexKind::Vector { dimensions, metric } => {
                            put_varint_u64(out, dimensions as u64);
                            put_bytes(out, metric.name().as_bytes());
                        }
                    }
                    out.push(u8::from(*is_ready));
                }
                self.stage = WriterStage::Entry { index: 0, from: Place::Start };
            }
            WriterStage::Entry { index, from } => {
                let Some(entry) = set.entries.get(index) else {
                    self.stage = WriterStage::Text;
                    return true;
                };
                let next = match (&entry.body, from) {
                    (Body::Text, _) => None,
                    (Body::Values(values), from) => {
                        out.push(ENTRY);
                        put_varint(out, index as u32);
                        let after = if let Place::After(after) = from { after } else { Box::default() };
                        values.write_section(&after, units, out).map(Place::After)
                    }
                    (Body::Vectors(vectors), from) => {
                        out.push(ENTRY);
                        put_varint(out, index as u32);
                        let slot = if let Place::Slot(slot) = from { slot } else { 0 };
                        vectors.write_section(slot, units, out).map(Place::Slot)
                    }
                };
                self.stage = match next {
                    Some(from) => WriterStage::Entry { index, from },
                    None => WriterStage::Entry { index: index + 1, from: Place::Start },
                };
            }
            WriterStage::Text => {
                out.push(TEXT);
                let more = match (&mut self.text, &mut set.text) {
                    (Some(writer), Some(text)) => writer.next_section(text, units, out),
                    _ => false,
                };
                if more {
                    self.stage = WriterStage::Text;
                    if out.len() == start + 1 {
                        out.truncate(start);
                    }
                } else {
                    out.truncate(start);
                    out.push(END);
                }
            }
            WriterStage::Done => return false,
        }
        if out.len() > start {
            let checksum = crc32c::crc32c(&out[start..]);
            out.extend_from_slice(&checksum.to_le_bytes());
        }
        true
    }
}

/// Takes the sections of a [`SetWriter`] back.
#[derive(Default)]
pub struct SetLoader {
    set: IndexSet,
    text: Option<Loader>,
    ready: Vec<bool>,
    is_begun: bool,
    is_complete: bool,
}

impl SetLoader {
    /// Takes the next section.
    ///
    /// # Errors
    /// The section is damaged, out of order or of another version.
    pub fn section(&mut self, bytes: &[u8]) -> Result<(), Corrupt> {
        let Some((body, checksum)) = bytes.split_last_chunk::<4>() else {
            return Err(Corrupt("short section"));
        };
        if crc32c::crc32c(body) != u32::from_le_bytes(*checksum) {
            return Err(Corrupt("checksum of a section"));
        }
        let mut reader = Reader::new(body);
        let kind = reader.u8()?;
        if self.is_complete || (kind == DEFINITIONS) == self.is_begun {
            return Err(Corrupt("order of sections"));
        }
        match kind {
            DEFINITIONS => self.definitions(&mut reader),
            ENTRY => {
                let index = reader.varint()? as usize;
                let entry = self.set.entries.get_mut(index).ok_or(Corrupt("number of an index"))?;
                let section = reader.take(reader.left())?;
                match &mut entry.body {
                    Body::Text => Err(Corrupt("kind of an index")),
                    Body::Values(values) => values.load_section(section),
                    Body::Vectors(vectors) => vectors.load_section(section),
                }
            }
            TEXT => self.text.get_or_insert_default().section(reader.take(reader.left())?),
            END => {
                self.is_complete = true;
                Ok(())
            }
            _ => Err(Corrupt("kind of section")),
        }
    }

    fn definitions(&mut self, reader: &mut Reader<'_>) -> Result<(), Corrupt> {
        if reader.u8()? != VERSION {
            return Err(Corrupt("version of the indexes"));
        }
        for _ in 0..reader.count(3)? {
            let path = reader.str()?.to_owned();
            let kind = match reader.str()? {
                "value" => IndexKind::Value,
                "text" => IndexKind::Text {
                    analyzer: AnalyzerKind::from_name(reader.str()?).ok_or(Corrupt("analyzer"))?,
                },
                "embedding" => IndexKind::Embedding,
                "vector" => IndexKind::Vector {
                    dimensions: usize::try_from(reader.varint_u64()?).map_err(|_| Corrupt("dimensions"))?,
                    metric: Metric::from_name(reader.str()?).ok_or(Corrupt("metric"))?,
                },
                _ => return Err(Corrupt("kind of index")),
            };
            let is_ready = reader.u8()? == 1;
            if self.set.define(IndexDefinition { path, kind }) != Defined::Created {
                return Err(Corrupt("index defined twice"));
            }
            self.ready.push(is_ready);
        }
        self.is_begun = true;
        Ok(())
    }

    /// The loaded indexes. Those that were being built are built anew.
    ///
    /// # Errors
    /// Something is missing.
    pub fn finish(mut self) -> Result<IndexSet, Corrupt> {
        if !self.is_complete {
            return Err(Corrupt("missing section"));
        }
        for (entry, is_ready) in self.set.entries.iter_mut().zip(&self.ready) {
            entry.is_ready = *is_ready;
            if let Body::Values(values) = &mut entry.body {
                values.finish_load();
            }
        }
        if let Some(loader) = self.text {
            let has_vectors =
                self.set.entries.iter().any(|entry| entry.definition.kind == IndexKind::Embedding);
            let text = loader.finish(if has_vectors { Some(built_in()) } else { None })?;
            let known = text.query_fields();
            let defined = |entry: &Entry| match entry.definition.kind {
                IndexKind::Text { analyzer } => known
                    .iter()
                    .any(|field| field.path == entry.definition.path && field.analyzer == analyzer),
                _ => true,
            };
            if !self.set.entries.iter().all(defined) {
                return Err(Corrupt("fields of the text index"));
            }
            self.set.text = Some(text);
        } else if self.set.text.is_some() {
            return Err(Corrupt("missing text index"));
        }
        Ok(self.set)
    }
}

/// The definition that the first SEARCH makes.
pub fn whole_text() -> IndexDefinition {
    IndexDefinition { path: WHOLE.to_owned(), kind: IndexKind::Text { analyzer: AnalyzerKind::English } }
}

#[cfg(test)]
mod tests {
    use super::super::query::{CompiledQuery, parse};
    use super::super::text::search::{Model, Search};
    use super::*;
    use std::collections::BTreeMap;

    #[derive(Default)]
    struct Records(BTreeMap<Vec<u8>, Vec<u8>>);

    impl DocumentSource for Records {
        fn value(&self, key: &[u8]) -> Option<&[u8]> {
            self.0.get(key).map(|value| &value[..])
        }

        fn scan(&self, cursor: &[u8], limit: usize, each: &mut dyn FnMut(&[u8], &[u8])) -> Option<Vec<u8>> {
            let page: Vec<_> =
                self.0.range(cursor.to_vec()..).filter(|(key, _)| &key[..] != cursor).take(limit).collect();
            page.iter().for_each(|(key, value)| each(key, value));
            (page.len() == limit).then(|| page[limit - 1].0.clone())
        }
    }

    impl Records {
        fn set(&mut self, set: &mut IndexSet, key: &str, value: Option<&str>) {
            let old = self.0.remove(key.as_bytes());
            set.apply(key.as_bytes(), old.as_deref(), value.map(str::as_bytes));
            if let Some(value) = value {
                self.0.insert(key.as_bytes().to_vec(), value.as_bytes().to_vec());
            }
        }
    }

    fn search(set: &IndexSet, text: &str) -> Vec<String> {
        let index = set.text().unwrap();
        let fields = index.query_fields();
        let query = CompiledQuery::new(&parse(text, &|_| false), &fields[..1], &fields);
        let (view, stats) = index.pin(&query);
        let mut search = Search::new(view, &query, &stats, Model::Bm25, 100).unwrap();
        assert!(search.step(&mut Units::unlimited(), &mut |_| true));
        search.into_hits().into_iter().map(|hit| String::from_utf8(hit.key.to_vec()).unwrap()).collect()
    }

    fn value_definition(path: &str) -> IndexDefinition {
        IndexDefinition { path: path.to_owned(), kind: IndexKind::Value }
    }

    #[test]
    fn indexes_are_built_online_and_keep_up() {
        let (mut records, mut set) = (Records::default(), IndexSet::default());
        for n in 0..200 {
            records.set(
                &mut set,
                &format!("k{n:03}"),
                Some(&format!("{{\"n\":{n},\"t\":\"word{n} common\"}}")),
            );
        }
        assert!(!set.has_work() && set.backlog_len() == 0, "nothing is indexed before it is asked for");
        assert_eq!(set.define(whole_text()), Defined::Created);
        assert_eq!(set.define(whole_text()), Defined::Same);
        assert_eq!(set.define(value_definition("n")), Defined::Created);
        let vectors = IndexDefinition {
            path: "n".to_owned(),
            kind: IndexKind::Vector { dimensions: 1, metric: Metric::Dot },
        };
        assert_eq!(set.define(vectors), Defined::Created);
        assert_eq!(
            set.define(IndexDefinition { path: WHOLE.to_owned(), kind: IndexKind::Embedding }),
            Defined::Created
        );
        let other =
            IndexDefinition { kind: IndexKind::Text { analyzer: AnalyzerKind::Standard }, ..whole_text() };
        assert_eq!(set.define(other), Defined::Conflict);
        let mut turns = 0;
        while set.work(&mut Units::new(300), &records) {
            // Writes go on while the indexes are built.
            turns += 1;
            if turns <= 20 {
                records.set(
                    &mut set,
                    &format!("k{:03}", turns * 7),
                    (turns % 2 == 0).then_some("{\"n\":-1,\"t\":\"late common\"}"),
                );
                let position = set.position();
                assert!(!set.is_indexed(position, WHOLE, "text"));
            }
        }
        assert!(turns > 20);
        assert!(set.is_indexed(set.position(), WHOLE, "text") && set.is_indexed(0, "n", "value"));
        assert_eq!(search(&set, "common").len(), records.0.len().min(100));
        assert_eq!(search(&set, "late").len(), 10);
        let entries = set.values("n").unwrap().entries();
        assert_eq!(entries, records.0.len());
        assert!(
            set.list().iter().all(|info| info.state == BuildState::Ready && info.entries == entries as u64)
        );

        // A snapshot holds all of it, though records change while it is written.
        let mut writer = set.begin_snapshot();
        let expected = search(&set, "late word3 word50");
        let mut sections: Vec<Vec<u8>> = Vec::new();
        for n in 0.. {
            let mut section = Vec::new();
            if !writer.next_section(&mut set, &mut Units::new(200), &mut section) {
                break;
            }
            sections.extend((!section.is_empty()).then_some(section));
            records.set(&mut set, &format!("k{:03}", n % 200), Some("{\"n\":[7,8],\"t\":\"after\"}"));
            set.work(&mut Units::new(500), &records);
        }
        set.end_snapshot(writer);
        let mut loader = SetLoader::default();
        sections.iter().for_each(|section| loader.section(section).unwrap());
        let loaded = loader.finish().unwrap();
        assert_eq!(search(&loaded, "late word3 word50"), expected);
        assert_eq!(loaded.values("n").unwrap().entries(), entries);
        assert_eq!(loaded.vectors("n").unwrap().entries(), entries);
        for at in 0..sections.len() {
            let mut loader = SetLoader::default();
            let mut damaged = sections.clone();
            let middle = damaged[at].len() / 2;
            damaged[at][middle] ^= 4;
            assert!(damaged.iter().try_for_each(|section| loader.section(section)).is_err());
        }

        assert!(
            set.drop_index(WHOLE, "text") && set.drop_index("n", "value") && !set.drop_index("n", "value")
        );
        records.set(&mut set, "k1", None);
        assert!(set.text().is_none() && set.backlog_len() == 0 && !set.has_work());
    }

    #[test]
    fn a_field_added_later_is_built_for_old_documents_too() {
        let (mut records, mut set) = (Records::default(), IndexSet::default());
        set.define(whole_text());
        for n in 0..100 {
            records.set(
                &mut set,
                &format!("k{n}"),
                Some(&format!("{{\"t\":\"Running{n}\",\"u\":\"runs\"}}")),
            );
        }
        while set.work(&mut Units::new(5000), &records) {}
        let kind = IndexKind::Text { analyzer: AnalyzerKind::Keyword };
        set.define(IndexDefinition { path: "t".to_owned(), kind });
        assert!(!set.is_indexed(0, "t", "text") && set.is_indexed(set.position(), WHOLE, "text"));
        while set.work(&mut Units::new(5000), &records) {}
        let index = set.text().unwrap();
        let fields = index.query_fields();
        let query =
            CompiledQuery::new(&parse("t:Running7 t:running8", &|name| name == "t"), &fields[..1], &fields);
        let (_, stats) = index.pin(&query);
        assert_eq!(stats.document_frequencies, [1, 0]);
        assert_eq!(stats.fields[0].documents, 100);
    }
}
