//! The documents nearest to a query's vector: a flat scan over the int8 vectors of a pinned view.

use crate::index::text::score::to_fixed;
use crate::index::text::search::{SearchHit, View};
use crate::index::text::top::Top;
use crate::index::vector::kernel::Kernel;
use crate::index::{ACCEPT_UNITS, Units};

/// Documents scanned between two looks at the budget.
const DOCUMENTS_A_STEP: u32 = 256;

/// Cosine of a query and a document in units of 2^-24; `None` if either has no known word.
pub fn similarity(query: &[i16], document: &[i8]) -> Option<i64> {
    let query_square: i64 = query.iter().map(|value| i64::from(*value) * i64::from(*value)).sum();
    scaled(Kernel::detect(), query, (query_square as f64).sqrt(), document)
}

#[inline]
fn scaled(kernel: Kernel, query: &[i16], query_length: f64, document: &[i8]) -> Option<i64> {
    if query.len() != document.len() {
        return None;
    }
    let (dot, square) = kernel.dot_and_square(query, document);
    let length = f64::from(square).sqrt() * query_length;
    if length == 0.0 {
        return None;
    }
    let cosine = f64::from(dot) / length;
    Some(if cosine < 0.0 { -to_fixed(-cosine) } else { to_fixed(cosine) })
}

/// A scan for the nearest documents of one shard, a slice at a time.
#[derive(Debug)]
pub struct EmbeddingSearch {
    kernel: Kernel,
    view: View,
    query: Vec<i16>,
    query_length: f64,
    top: Top,
    part: usize,
    next: u32,
}

impl EmbeddingSearch {
    /// A scan of `view` for the best `limit` documents.
    pub fn new(view: View, query: Vec<i16>, limit: usize) -> Self {
        let query_square: i64 = query.iter().map(|value| i64::from(*value) * i64::from(*value)).sum();
        let query_length = (query_square as f64).sqrt();
        Self { kernel: Kernel::detect(), view, query, query_length, top: Top::new(limit), part: 0, next: 0 }
    }

    /// Goes on until the budget is spent; true when the scan is complete. `accept` judges the documents that would be hits.
    pub fn step(&mut self, units: &mut Units, accept: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        let Self { kernel, view, query, query_length, top, part, next } = self;
        let dimensions = query.len();
        while units.left() {
            let Some(seen) = view.parts.get(*part) else { return true };
            let open = seen.body.open(seen.documents);
            let vectors = open.vectors();
            let documents = seen.documents.min((vectors.len() / dimensions.max(1)) as u32);
            let end = documents.min(next.saturating_add(DOCUMENTS_A_STEP));
            for document in *next..end {
                let vector = &vectors[document as usize * dimensions..][..dimensions];
                let Some(score) = scaled(*kernel, query, *query_length, vector) else { continue };
                if score < top.threshold() || seen.dead.contains(document) {
                    continue;
                }
                let key = open.key(document);
                if top.admits(score, key) {
                    units.spend(ACCEPT_UNITS);
                    if accept(key) {
                        top.push(score, key, (*part as u32, document));
                    }
                }
            }
            units.spend(u64::from(DOCUMENTS_A_STEP) * 2);
            *next = end;
            if end == documents {
                *part += 1;
                *next = 0;
            }
        }
        *part == view.parts.len()
    }

    /// The hits, best first.
    pub fn into_hits(self) -> Vec<SearchHit> {
        self.top.into_sorted()
    }

    /// The hits so far, best first; the scan stays usable for [`EmbeddingSearch::score_at`].
    pub(crate) fn take_hits(&mut self) -> Vec<SearchHit> {
        std::mem::replace(&mut self.top, Top::new(0)).into_sorted()
    }

    /// The similarity of the document at a place of the view.
    pub(crate) fn score_at(&self, (part, document): (u32, u32)) -> Option<i64> {
        let seen = self.view.parts.get(part as usize)?;
        let open = seen.body.open(seen.documents);
        let dimensions = self.query.len();
        let start = document as usize * dimensions;
        scaled(self.kernel, &self.query, self.query_length, open.vectors().get(start..start + dimensions)?)
    }
}
