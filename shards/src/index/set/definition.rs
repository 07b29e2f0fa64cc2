//! What an index is: kinds, definitions, and what LIST_INDEXES says of one.

use crate::index::analyze::AnalyzerKind;
use crate::index::embed::{Model, built_in};
use crate::index::text::WHOLE;
use crate::index::vector::{HNSW_FROM, Metric};

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
    pub(super) fn is_text(self) -> bool {
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

/// What the operator says about indexes; the same on all replicas.
#[derive(Clone, Copy, Debug)]
pub struct IndexSettings {
    /// Number of vectors in a shard from which on they are searched by a graph.
    pub hnsw_from: usize,
    /// The model of embeddings; `None` is the one compiled in.
    pub model: Option<&'static Model>,
}

impl Default for IndexSettings {
    fn default() -> Self {
        Self { hnsw_from: HNSW_FROM, model: None }
    }
}

impl IndexSettings {
    /// The model of embeddings.
    pub fn model(&self) -> &'static Model {
        self.model.unwrap_or_else(built_in)
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

/// The definition that the first SEARCH makes.
pub fn whole_text() -> IndexDefinition {
    IndexDefinition { path: WHOLE.to_owned(), kind: IndexKind::Text { analyzer: AnalyzerKind::English } }
}
