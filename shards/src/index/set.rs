//! All indexes of one shard: their definitions, their building, and keeping them up with the records.
//!
//! Value and vector indexes change with each record, in [`IndexSet::apply`]. Text is indexed later, by [`IndexSet::work`], from a backlog
//! of keys: a key stands in it once, however often it changes, and is read when its turn comes. A query notes
//! [`IndexSet::position`] when it arrives and may run once [`IndexSet::is_indexed`] says that everything up to there is in.
//! A shard without text or value indexes pays nothing. The engine bounds the backlog ([`IndexSet::backlog_len`]).

mod backlog;
mod definition;
mod sections;

use super::Units;
use super::embed::Model;
use super::text::{TextIndex, WHOLE};
use super::value::ValueIndex;
use super::value::ids::SharedIds;
use super::vector::{VECTOR_DIMENSIONS_MAX, VectorIndex};
use crate::mutants::{Mutant, is_on};
use backlog::Backlog;

pub use definition::{BuildState, Defined, IndexDefinition, IndexInfo, IndexKind, IndexSettings, whole_text};
pub use sections::{SetLoader, SetWriter};

/// Records looked at in one go while an index is built.
const SCAN_RECORDS: usize = 8;
/// Units of indexing after which as many go to merging: as many as the engine gives in one go, so that no step is long.
const MAINTENANCE_UNITS: u32 = 2048;

/// Lends the records of the shard.
pub trait DocumentSource {
    /// The current value of a key, a JSON token; `None` if it is absent.
    fn value(&self, key: &[u8]) -> Option<&[u8]>;

    /// Calls `each(key, value)` for about `limit` records after `cursor` (empty: from the start) and returns the next
    /// cursor; `None` at the end. A record that is there throughout a scan is seen at least once.
    fn scan(&self, cursor: &[u8], limit: usize, each: &mut dyn FnMut(&[u8], &[u8])) -> Option<Vec<u8>>;
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
    fn has_graph_work(&self) -> bool {
        matches!(&self.body, Body::Vectors(vectors) if vectors.has_work())
    }

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
    /// All records have been looked at; a long value among the last may still be under way.
    is_scanned: bool,
}

/// The indexes of one shard.
#[derive(Default)]
pub struct IndexSet {
    settings: IndexSettings,
    /// Numbers of the keys in value indexes.
    ids: SharedIds,
    entries: Vec<Entry>,
    text: Option<TextIndex>,
    build: Option<Build>,
    backlog: Backlog,
    /// The position of a change whose long value is half indexed.
    underway: Option<u64>,
    /// Changes applied so far.
    position: u64,
    /// Units of indexing that merging has not matched yet.
    debt: u32,
    generation: u64,
}

impl IndexSet {
    /// Takes the operator's settings, at the start. Loaded embeddings must be of their model.
    pub fn configure(&mut self, settings: IndexSettings) {
        self.settings = settings;
        for entry in &mut self.entries {
            if let Body::Vectors(vectors) = &mut entry.body {
                vectors.set_hnsw_from(settings.hnsw_from);
            }
        }
    }

    /// The model of embeddings.
    pub fn model(&self) -> &'static Model {
        self.settings.model()
    }

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
            IndexKind::Value => Body::Values(Box::new(ValueIndex::sharing(&definition.path, &self.ids))),
            IndexKind::Vector { dimensions, metric } => {
                if !(1..=VECTOR_DIMENSIONS_MAX).contains(&dimensions) {
                    return Defined::Conflict;
                }
                let mut vectors = VectorIndex::new(&definition.path, dimensions, metric);
                vectors.set_hnsw_from(self.settings.hnsw_from);
                Body::Vectors(Box::new(vectors))
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
        self.generation += 1;
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
        self.generation += 1;
        let mut entry = self.entries.remove(at);
        if let Body::Values(values) = &mut entry.body {
            values.release_ids();
        }
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
            self.underway = None;
        } else if entry.definition.kind == IndexKind::Embedding {
            self.rebuild_text();
        } else if let Some(text) = &mut self.text {
            text.drop_field(path);
        }
        true
    }

    /// Begins the text index anew, with or without vectors. Queries on it wait until it is built.
    fn rebuild_text(&mut self) {
        let model = self.model();
        let mut text = TextIndex::new();
        for entry in self.entries.iter_mut().filter(|entry| entry.definition.kind.is_text()) {
            entry.is_ready = false;
            match entry.definition.kind {
                IndexKind::Text { analyzer } => {
                    assert!(text.add_field(&entry.definition.path, analyzer), "a new index takes all fields");
                }
                _ => text.set_embedder(model),
            }
        }
        self.text = Some(text);
        self.underway = None;
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
                (Body::Text, Some(text)) if entry.definition.kind == IndexKind::Embedding => {
                    (text.documents(), text.bytes())
                }
                (Body::Text, Some(text)) => {
                    (text.documents_in(&entry.definition.path) as usize, text.bytes())
                }
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
        is_ready && (!is_text || position < self.indexed_before() || is_on(Mutant::SearchDoesNotWait))
    }

    /// Number of keys to be indexed.
    pub fn backlog_len(&self) -> usize {
        self.backlog.len() + usize::from(self.underway.is_some())
    }

    /// The position of the oldest change whose text is still to be indexed; beyond all if there is none.
    pub fn indexed_before(&self) -> u64 {
        self.underway.unwrap_or(u64::MAX).min(self.backlog.first_position())
    }

    /// Rises whenever an index is defined, dropped, begun anew or has become ready: what waits for an index may look again.
    pub fn generation(&self) -> u64 {
        self.generation
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

    /// The numbers of the keys in value indexes.
    pub(crate) fn document_ids(&self) -> &SharedIds {
        &self.ids
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
            || self.entries.iter().any(|entry| !entry.is_ready || entry.has_graph_work())
            || self.text.as_ref().is_some_and(|text| text.is_busy() || text.has_work())
    }

    /// Whether ended vectors wait for a graph in such numbers that writes should slow down to its speed.
    pub fn graphs_are_behind(&self) -> bool {
        self.entries.iter().any(|entry| matches!(&entry.body, Body::Vectors(vectors) if vectors.is_behind()))
    }

    /// Indexes the backlog, builds and merges until the budget is spent; true while there is more to do.
    pub fn work(&mut self, units: &mut Units, source: &dyn DocumentSource) -> bool {
        while units.left() {
            if self.pay(units) {
                continue;
            }
            let before = units.balance();
            if let Some(text) = self.text.as_mut().filter(|text| text.is_busy()) {
                if text.go_on(units) {
                    self.underway = None;
                }
            } else if let (Some((position, key)), Some(text)) = (self.backlog.pop(), &mut self.text) {
                let is_done = match source.value(&key) {
                    Some(value) => text.put_in_slices(&key, value, units),
                    None => {
                        text.remove(&key, units);
                        true
                    }
                };
                self.underway = (!is_done).then_some(position);
            } else if self.entries.iter().any(|entry| !entry.is_ready) {
                self.build_some(units, source);
            } else if self.maintain(units) {
                continue;
            } else {
                return false;
            }
            let spent = u32::try_from(before - units.balance()).unwrap_or(u32::MAX);
            self.debt = self.debt.saturating_add(spent.saturating_add(4));
            units.spend(4);
        }
        self.has_work()
    }

    /// Merging keeps pace with indexing, so that the number of parts stays small while writes pour in; true if some was due.
    fn pay(&mut self, units: &mut Units) -> bool {
        if self.debt < MAINTENANCE_UNITS {
            return false;
        }
        let Some(text) = self.text.as_mut().filter(|text| text.has_work()) else {
            self.debt = 0;
            return false;
        };
        let mut budget = Units::new(MAINTENANCE_UNITS);
        text.work(&mut budget);
        let paid = u64::try_from(i64::from(MAINTENANCE_UNITS) - budget.balance()).unwrap_or(0);
        self.debt = self.debt.saturating_sub(u32::try_from(paid).unwrap_or(u32::MAX));
        units.spend(paid);
        true
    }

    /// Goes on with merges and graphs, half and half; false if there is nothing to do.
    fn maintain(&mut self, units: &mut Units) -> bool {
        let text = self.text.as_mut().filter(|text| text.has_work());
        let graph = self.entries.iter_mut().find(|entry| entry.has_graph_work());
        let share = Units::new(u32::try_from(units.balance() / 2).unwrap_or(u32::MAX).max(1));
        let is_idle = text.is_none() && graph.is_none();
        if let Some(Entry { body: Body::Vectors(vectors), .. }) = graph {
            let mut budget = if text.is_some() { share } else { *units };
            let before = budget.balance();
            vectors.work(&mut budget);
            units.spend(u64::try_from(before - budget.balance()).unwrap_or(0));
        }
        if let Some(text) = text {
            text.work(units);
            self.debt = 0;
        }
        !is_idle
    }

    /// Goes on with the scan that builds what is not ready.
    fn build_some(&mut self, units: &mut Units, source: &dyn DocumentSource) {
        let Self { entries, text, build, .. } = self;
        let build = build.get_or_insert_with(|| {
            let waiting =
                entries.iter().filter(|entry| !entry.is_ready).map(|entry| entry.definition.clone());
            Build { cursor: Vec::new(), scanned: 0, targets: waiting.collect(), is_scanned: false }
        });
        let wants_text = build.targets.iter().any(|target| target.kind.is_text());
        let mut seen = 0;
        let mut look = |key: &[u8], value: &[u8]| {
            seen += 1;
            units.spend(16 + value.len() as u64 / 32);
            for entry in entries.iter_mut().filter(|entry| !entry.is_ready) {
                entry.apply(key, None, Some(value));
            }
            if let Some(text) = text.as_mut().filter(|_| wants_text) {
                text.put_in_slices(key, value, units);
            }
        };
        let next = match build.is_scanned {
            true => None,
            false => source.scan(&build.cursor, SCAN_RECORDS, &mut look),
        };
        build.scanned += seen;
        match next {
            Some(cursor) => build.cursor = cursor,
            None if text.as_ref().is_some_and(TextIndex::is_busy) => build.is_scanned = true,
            None => {
                for entry in entries.iter_mut().filter(|entry| build.targets.contains(&entry.definition)) {
                    entry.is_ready = true;
                }
                self.generation += 1;
                self.build = None;
            }
        }
    }
}

#[cfg(test)]
mod tests;
