//! A text field of an index: what it covers, how it is analysed, and its figures.
//!
//! The analyzer remembers the ids of terms by their words, which is most of what indexing a frequent word would cost. An id may be
//! given back and stand for another term later, so what is remembered is forgotten as soon as one was.

use super::dictionary::FieldId;
use crate::index::analyze::Analyzer;

/// A text field: what it covers and how it is analysed.
#[derive(Clone, Debug)]
pub(super) struct Field {
    pub(super) id: FieldId,
    /// [`WHOLE`](super::WHOLE) or an escaped path.
    pub(super) path: String,
    pub(super) analyzer: Analyzer,
    /// The analyzer remembers ids of terms that were right when so many had been given back.
    pub(super) remembered_at: u64,
    /// Live documents with at least one token.
    pub(super) documents: u64,
    /// Tokens in them.
    pub(super) total_length: u64,
    pub(super) dropped: bool,
}

impl Field {
    /// Forgets the ids that its analyzer remembers if some were given back since.
    pub(super) fn remember_at(&mut self, freed: u64) {
        if self.remembered_at != freed {
            self.remembered_at = freed;
            self.analyzer.forget_memos();
        }
    }
}
