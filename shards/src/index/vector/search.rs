//! A search for the nearest vectors of one shard, a slice at a time, over the vectors of the moment at which it began.
//!
//! Where a graph serves most vectors, what it lacks is scanned first and the graph is walked then, so that a vector which
//! goes in meanwhile is met by one of the two. A walk that meets too much of the graph (a filter that few pass, or a wide
//! window) gives way to a flat scan, which misses nothing.

use super::VectorIndex;
use super::graph::Beam;
use super::hnsw::Hnsw;
use super::metric::{from_sortable, sortable};
use super::probe::Probe;
use super::slots::Pin;
use crate::index::text::top::{Hit, Top};
use crate::index::{ACCEPT_UNITS, Units};

/// A walk goes by the distance of so many of its best at least.
const FEW_MIN: usize = 10;
/// A walk pays only in a graph of so many nodes for each candidate that will be scored exactly;
const NODES_A_CANDIDATE: usize = 32;
/// and only while it meets no more than one node in so many: a flat scan costs less from there on.
const MET_SHARE: usize = 8;

/// How many of the scan's best are scored exactly.
pub fn rescored(limit: usize) -> usize {
    limit.saturating_mul(4).max(100)
}

/// A hit with the score that the scan gave it. Both are sortable forms of numbers; [`similarity_of`] tells the hit's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VectorHit {
    /// Closeness by the int8 copy.
    pub scanned: i64,
    /// Exact similarity and key.
    pub hit: Hit,
}

/// The similarity that a hit's score stands for.
pub fn similarity_of(score: i64) -> f64 {
    from_sortable(score)
}

/// See the module's head.
#[derive(Debug)]
pub struct VectorSearch {
    query: Vec<f32>,
    probe: Probe,
    pin: Pin,
    top: Top,
    limit: usize,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// What the graph lacks, after this moment.
    Queue {
        after: u64,
    },
    /// The graph of this generation.
    Walk {
        beam: Box<Beam>,
        generation: u64,
    },
    /// All, from this slot on.
    Flat {
        next: u32,
    },
    Done,
}

impl VectorSearch {
    /// A search for what ends as the best `limit`.
    ///
    /// # Errors
    /// The query's dimension is not the index's, or it has a number that is not finite.
    pub fn new(index: &VectorIndex, query: &[f32], limit: usize) -> Result<Self, String> {
        let dimensions = index.slots.dimensions;
        if query.len() != dimensions {
            let given = query.len();
            return Err(format!("the index holds vectors of {dimensions} numbers; this one has {given}"));
        }
        if query.iter().any(|number| !number.is_finite()) {
            return Err("a vector has finite numbers only".to_owned());
        }
        let served = index.in_graph();
        let stage = match &index.hnsw {
            Some(hnsw) if served / NODES_A_CANDIDATE >= rescored(limit) && served >= hnsw.queued() => {
                Stage::Queue { after: hnsw.queued_after() }
            }
            _ => Stage::Flat { next: 0 },
        };
        let (probe, pin, top) = (Probe::of_query(query), index.slots.pin(), Top::new(rescored(limit)));
        Ok(Self { query: query.to_vec(), probe, pin, top, limit, stage })
    }

    /// Goes on until the budget is spent; true when the search is complete. `accept` judges the records that would be hits.
    pub fn step(
        &mut self,
        index: &VectorIndex,
        units: &mut Units,
        accept: &mut dyn FnMut(&[u8]) -> bool,
    ) -> bool {
        while units.left() && !matches!(self.stage, Stage::Done) {
            match (&mut self.stage, &index.hnsw) {
                (Stage::Queue { .. }, Some(hnsw)) => self.scan_queue(index, hnsw, units, accept),
                (Stage::Walk { .. }, Some(hnsw)) => self.walk(index, hnsw, units, accept),
                (Stage::Flat { .. }, _) => self.scan(index, units, accept),
                // The graph is gone.
                (Stage::Queue { .. } | Stage::Walk { .. }, None) => self.scan_all(),
                (Stage::Done, _) => {}
            }
        }
        matches!(self.stage, Stage::Done)
    }

    fn scan_all(&mut self) {
        self.top.clear();
        self.stage = Stage::Flat { next: 0 };
    }

    fn scan_queue(
        &mut self,
        index: &VectorIndex,
        hnsw: &Hnsw,
        units: &mut Units,
        accept: &mut dyn FnMut(&[u8]) -> bool,
    ) {
        let Stage::Queue { mut after } = self.stage else { return };
        while units.left() {
            let Some(change) = hnsw.next_queued(after).filter(|change| change.moment <= self.pin.moment)
            else {
                return self.begin_walk(index, hnsw, units, accept);
            };
            after = change.moment;
            units.spend(1);
            if change.is_insert {
                self.offer(index, change.slot, units, accept);
            }
        }
        self.stage = Stage::Queue { after };
    }

    fn begin_walk(
        &mut self,
        index: &VectorIndex,
        hnsw: &Hnsw,
        units: &mut Units,
        accept: &mut dyn FnMut(&[u8]) -> bool,
    ) {
        let graph = hnsw.serving.as_ref();
        let start =
            graph.and_then(|graph| Some((graph, graph.descend(&index.slots, &self.probe, 0, units)?)));
        let Some((graph, start)) = start else { return self.scan_all() };
        let distance = self.probe.distance(index.slots.metric, graph.length_max());
        let few = self.limit.max(FEW_MIN);
        let mut beam =
            Beam::of_search(&index.slots, rescored(self.limit), few, distance, graph.nodes() / MET_SHARE);
        let moment = self.pin.moment;
        beam.start(start, &mut |slot| {
            index.slots.head(slot).is_visible(moment) && accept(index.slots.key(slot))
        });
        self.stage = Stage::Walk { beam: Box::new(beam), generation: hnsw.generation };
    }

    fn walk(
        &mut self,
        index: &VectorIndex,
        hnsw: &Hnsw,
        units: &mut Units,
        accept: &mut dyn FnMut(&[u8]) -> bool,
    ) {
        let Stage::Walk { beam, generation } = &mut self.stage else { return };
        let Some(graph) = hnsw.serving.as_ref().filter(|_| hnsw.generation == *generation) else {
            return self.scan_all();
        };
        let (slots, moment) = (&index.slots, self.pin.moment);
        let mut asked = 0;
        let is_done = beam.step(graph, slots, &self.probe, units, &mut |slot| {
            let is_visible = slots.head(slot).is_visible(moment);
            asked += u64::from(is_visible);
            is_visible && accept(slots.key(slot))
        });
        units.spend(asked * ACCEPT_UNITS);
        if !is_done {
            return;
        }
        if beam.gave_up() {
            return self.scan_all();
        }
        if let Stage::Walk { beam, .. } = std::mem::replace(&mut self.stage, Stage::Done) {
            let mut scanned: Vec<u32> = self.top.places().map(|(_, slot)| slot).collect();
            scanned.sort_unstable();
            for found in beam.into_sorted() {
                let key = slots.key(found.slot);
                // What went into the graph after it was scanned in the queue is met twice.
                if scanned.binary_search(&found.slot).is_err() && self.top.admits(found.closeness, key) {
                    self.top.push(found.closeness, key, (0, found.slot));
                }
            }
        }
    }

    fn scan(&mut self, index: &VectorIndex, units: &mut Units, accept: &mut dyn FnMut(&[u8]) -> bool) {
        let Stage::Flat { mut next } = self.stage else { return };
        let cost = 1 + index.slots.dimensions as u64 / 64;
        while units.left() && next < index.slots.count() {
            units.spend(cost);
            self.offer(index, next, units, accept);
            next += 1;
        }
        self.stage = if next < index.slots.count() { Stage::Flat { next } } else { Stage::Done };
    }

    #[inline]
    fn offer(
        &mut self,
        index: &VectorIndex,
        slot: u32,
        units: &mut Units,
        accept: &mut dyn FnMut(&[u8]) -> bool,
    ) {
        let slots = &index.slots;
        if !slots.head(slot).is_visible(self.pin.moment) {
            return;
        }
        let closeness = self.probe.closeness(slots, slot);
        if closeness >= self.top.threshold() && self.top.admits(closeness, slots.key(slot)) {
            units.spend(ACCEPT_UNITS);
            if accept(slots.key(slot)) {
                self.top.push(closeness, slots.key(slot), (0, slot));
            }
        }
    }

    /// The search's best with exact scores, best of the scan first. What [`merge_vector_hits`] takes.
    ///
    /// A record whose vector has changed since the search began is scored by its present one, and left out if it has none.
    pub fn into_hits(self, index: &VectorIndex) -> Vec<VectorHit> {
        let (slots, mut hits) = (&index.slots, Vec::new());
        for found in self.top.into_sorted() {
            let (mut slot, mut scanned) = (found.place.1, found.score);
            if !slots.head(slot).is_live() {
                let Some(present) = slots.find(&found.key) else { continue };
                (slot, scanned) = (present, self.probe.closeness(slots, present));
            }
            let similarity = slots.metric.similarity(&self.query, slots.floats(slot));
            hits.push(VectorHit { scanned, hit: Hit::new(sortable(similarity), &found.key) });
        }
        hits
    }
}

/// The best hits of all shards, by exact score among the globally best of the scans.
pub fn merge_vector_hits(lists: Vec<Vec<VectorHit>>, limit: usize) -> Vec<Hit> {
    let mut all: Vec<VectorHit> = lists.into_iter().flatten().collect();
    all.sort_unstable_by(|a, b| b.scanned.cmp(&a.scanned).then_with(|| a.hit.key.cmp(&b.hit.key)));
    all.truncate(rescored(limit));
    let mut hits: Vec<Hit> = all.into_iter().map(|found| found.hit).collect();
    hits.sort_unstable();
    hits.truncate(limit);
    hits
}
