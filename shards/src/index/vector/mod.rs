//! Vector indexes: the clients' own vectors, found by a flat scan or a graph and scored exactly.
//!
//! Both ways go over int8 copies and keep the best [`rescored`] of a shard; those are scored again with the stored `f32`, in
//! `f64` and in one order, so every shard and every machine gets the same numbers. The router cuts to the globally best of
//! the scan before it ranks by exact scores ([`merge_vector_hits`]), which makes the answers of flat scans independent of the
//! number of shards. From a number of vectors on a graph ([`hnsw`]) leads the search; its answers are near, not equal.
//! A record's vector is all the numbers at the path; other counts of numbers than the index's dimension are not indexed.

mod graph;
mod hnsw;
pub mod kernel;
mod metric;
mod probe;
mod search;
mod slots;
mod snapshot;
#[cfg(test)]
mod tests;

pub use metric::Metric;
pub use search::{VectorHit, VectorSearch, merge_vector_hits, rescored, similarity_of};

use super::Units;
use super::extract::{Scalar, Walker};
use super::value::each_value;
use hnsw::{Change, Hnsw};
use slots::Slots;
use snapshot::{Loading, Writing};

/// Largest dimension.
pub const VECTOR_DIMENSIONS_MAX: usize = 4096;
/// From so many vectors in a shard on they are searched by a graph, unless the operator says otherwise.
pub const HNSW_FROM: usize = 1_000_000;
/// Ended vectors that may wait for the graph before writes slow down, however few vectors there are.
const LINGERING_MAX: usize = 65_536;

/// The vectors of one path in one shard.
#[derive(Debug)]
pub struct VectorIndex {
    path: Vec<u8>,
    slots: Slots,
    hnsw: Option<Hnsw>,
    /// A graph is made when there are so many vectors.
    hnsw_from: usize,
    walker: Walker,
    numbers: Vec<f32>,
    /// While a snapshot is written the graph rests.
    writing: Option<Writing>,
    loading: Option<Loading>,
}

impl VectorIndex {
    /// An empty index of the vectors at an escaped path.
    pub fn new(path: &str, dimensions: usize, metric: Metric) -> Self {
        assert!((1..=VECTOR_DIMENSIONS_MAX).contains(&dimensions), "definitions are checked");
        Self {
            path: path.as_bytes().to_vec(),
            slots: Slots::new(dimensions, metric),
            hnsw: None,
            hnsw_from: HNSW_FROM,
            walker: Walker::default(),
            numbers: Vec::new(),
            writing: None,
            loading: None,
        }
    }

    /// Sets the number of vectors from which on a graph is kept; replicas of a shard must have the same.
    ///
    /// A graph that is there stays while at least half as many vectors are.
    pub fn set_hnsw_from(&mut self, vectors: usize) {
        self.hnsw_from = vectors;
        if self.slots.live() < vectors / 2 && self.hnsw.take().is_some() {
            // What the graph still needed can go; done at the start, before there is traffic.
            let ended = |slot: &u32| self.slots.head(*slot).is_used() && !self.slots.head(*slot).is_live();
            let ended: Vec<u32> = (0..self.slots.count()).filter(ended).collect();
            ended.into_iter().for_each(|slot| self.slots.release(slot));
        }
        self.begin_graph();
    }

    /// Number of vectors.
    pub fn entries(&self) -> usize {
        self.slots.live()
    }

    /// Bytes of memory, about.
    pub fn memory_bytes(&self) -> usize {
        self.slots.memory_bytes() + self.hnsw.as_ref().map_or(0, Hnsw::memory_bytes)
    }

    /// A record has changed to `new`, a JSON token or absent. The same vector again is no change.
    pub fn apply(&mut self, key: &[u8], new: Option<&[u8]>) {
        let mut numbers = std::mem::take(&mut self.numbers);
        numbers.clear();
        if let Some(value) = new {
            let limit = self.slots.dimensions + 1;
            each_value(&mut self.walker, value, &self.path, |scalar| {
                if let Scalar::Number(token) = scalar
                    && numbers.len() < limit
                {
                    numbers.push(token.parse::<f32>().unwrap_or(f32::INFINITY));
                }
            });
        }
        let is_vector =
            numbers.len() == self.slots.dimensions && numbers.iter().all(|number| number.is_finite());
        self.set(key, is_vector.then_some(&numbers));
        self.numbers = numbers;
    }

    /// Sets the vector of a key, or takes it away.
    fn set(&mut self, key: &[u8], vector: Option<&[f32]>) {
        let before = self.slots.find(key);
        if let (Some(slot), Some(vector)) = (before, vector)
            && self.slots.floats(slot) == vector
        {
            return;
        }
        if let Some(slot) = before {
            self.slots.remove(slot);
            match &mut self.hnsw {
                Some(hnsw) => hnsw.note(Change { moment: self.slots.moment, slot, is_insert: false }),
                None => self.slots.release(slot),
            }
        }
        if let Some(vector) = vector {
            let slot = self.slots.insert(key, vector);
            match &mut self.hnsw {
                Some(hnsw) => hnsw.note(Change { moment: self.slots.moment, slot, is_insert: true }),
                None => self.begin_graph(),
            }
        }
    }

    fn begin_graph(&mut self) {
        if self.hnsw.is_none() && self.slots.live() >= self.hnsw_from {
            self.hnsw = Some(Hnsw::begin(&self.slots));
        }
    }

    /// Whether [`VectorIndex::work`] has something to do.
    pub fn has_work(&self) -> bool {
        self.writing.is_none() && self.hnsw.as_ref().is_some_and(Hnsw::has_work)
    }

    /// Goes on with the graph until the budget is spent.
    pub fn work(&mut self, units: &mut Units) {
        if let (Some(hnsw), None) = (&mut self.hnsw, &self.writing) {
            hnsw.work(&mut self.slots, units);
        }
    }

    /// Whether so many ended vectors wait for the graph that writes should slow down to its speed.
    pub fn is_behind(&self) -> bool {
        self.slots.lingering() > LINGERING_MAX.max(self.slots.live())
    }

    /// Vectors that searches find by a graph.
    pub fn in_graph(&self) -> usize {
        self.hnsw.as_ref().map_or(0, Hnsw::served)
    }
}
