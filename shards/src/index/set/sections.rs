//! All indexes of a shard as sections of bytes: written beside later changes, and taken back at a start.
//!
//! Embeddings carry the fingerprint of their model: a loader with another model has them made anew.

use super::{Body, Defined, Entry, IndexDefinition, IndexKind, IndexSet, IndexSettings};
use crate::index::Units;
use crate::index::analyze::AnalyzerKind;
use crate::index::codec::{Corrupt, Reader, put_bytes, put_varint, put_varint_u64};
use crate::index::embed::{Model, built_in};
use crate::index::sections::{SectionOrder, seal};
use crate::index::text::TextIndex;
use crate::index::text::store::{Loader, SnapshotWriter};
use crate::index::vector::Metric;

const DEFINITIONS: u8 = 1;
const ENTRY: u8 = 2;
const TEXT: u8 = 3;
const END: u8 = 4;
/// Version 1 did not tell the model of embeddings, which was the one compiled in.
const VERSION: u8 = 2;
const VERSION_WITHOUT_MODEL: u8 = 1;

/// Writes all indexes as they were when it was made. The backlog must be empty then: snapshots drain it first.
pub struct SetWriter {
    ready: Vec<(IndexDefinition, bool)>,
    settings: IndexSettings,
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
            settings: self.settings,
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
                        IndexKind::Value => {}
                        IndexKind::Embedding => {
                            out.extend_from_slice(&self.settings.model().fingerprint().to_le_bytes());
                        }
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
        seal(out, start);
        true
    }
}

/// Takes the sections of a [`SetWriter`] back.
pub struct SetLoader {
    set: IndexSet,
    text: Option<Loader>,
    /// The model whose embeddings are stored.
    fingerprint: Option<u64>,
    ready: Vec<bool>,
    order: SectionOrder,
}

impl Default for SetLoader {
    fn default() -> Self {
        let order = SectionOrder::new(DEFINITIONS, END);
        Self { set: IndexSet::default(), text: None, fingerprint: None, ready: Vec::new(), order }
    }
}

impl SetLoader {
    /// A loader for a server with these settings.
    pub fn new(settings: IndexSettings) -> Self {
        let mut loader = Self::default();
        loader.set.configure(settings);
        loader
    }

    /// Takes the next section.
    ///
    /// # Errors
    /// The section is damaged, out of order or of another version.
    pub fn section(&mut self, bytes: &[u8]) -> Result<(), Corrupt> {
        let (kind, mut reader) = self.order.take(bytes)?;
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
            END => Ok(()),
            _ => Err(Corrupt("kind of section")),
        }
    }

    fn definitions(&mut self, reader: &mut Reader<'_>) -> Result<(), Corrupt> {
        let version = reader.u8()?;
        if !matches!(version, VERSION | VERSION_WITHOUT_MODEL) {
            return Err(Corrupt("version of the indexes"));
        }
        for _ in 0..reader.count(3)? {
            let path = reader.str()?.to_owned();
            let kind = match reader.str()? {
                "value" => IndexKind::Value,
                "text" => IndexKind::Text {
                    analyzer: AnalyzerKind::from_name(reader.str()?).ok_or(Corrupt("analyzer"))?,
                },
                "embedding" => {
                    self.fingerprint = match version {
                        VERSION => Some(reader.u64()?),
                        _ => Some(built_in().fingerprint()),
                    };
                    IndexKind::Embedding
                }
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
        Ok(())
    }

    /// The loaded indexes. Those that were being built are built anew.
    ///
    /// # Errors
    /// Something is missing.
    pub fn finish(mut self) -> Result<IndexSet, Corrupt> {
        if !self.order.is_complete() {
            return Err(Corrupt("missing section"));
        }
        for (entry, is_ready) in self.set.entries.iter_mut().zip(&self.ready) {
            entry.is_ready = *is_ready;
            match &mut entry.body {
                Body::Text => {}
                Body::Values(values) => values.finish_load(),
                Body::Vectors(vectors) => {
                    vectors.finish_load()?;
                    vectors.set_hnsw_from(self.set.settings.hnsw_from);
                }
            }
        }
        let model = self.fingerprint.map(|_| self.set.model());
        let is_outdated = self.text.as_ref().is_some_and(Loader::is_outdated);
        if is_outdated || (self.text.is_some() && model.map(Model::fingerprint) != self.fingerprint) {
            // The text index is an older version's, or the embeddings are another model's: made anew, and with them the text
            // that they stand beside.
            self.set.rebuild_text();
        } else if let Some(loader) = self.text {
            let text = loader.finish(model.map(|model| model as _))?;
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
