//! Vector indexes: the clients' own vectors, found by a flat scan and scored exactly.
//!
//! The scan goes over int8 copies and keeps the best [`rescored`] of a shard; those are scored again with the stored `f32`, in
//! `f64` and in one order, so every shard and every machine gets the same numbers. The router cuts to the globally best of
//! the scan before it ranks by exact scores ([`merge_vector_hits`]), which makes answers independent of the number of
//! shards. A record's vector is all the numbers at the path; other counts of numbers than the index's dimension are not indexed.

use super::codec::{Corrupt, Reader, put_bytes, put_varint, put_varint_u64};
use super::embed::{dot, square};
use super::extract::{Scalar, Walker};
use super::text::score::to_fixed;
use super::text::top::{Hit, Top};
use super::value::each_value;
use super::{ACCEPT_UNITS, Units};
use crate::ids::hash_of;
use hashbrown::HashTable;
use std::collections::BTreeMap;

/// Largest dimension.
pub const VECTOR_DIMENSIONS_MAX: usize = 4096;
const QUERY_MAX: f64 = 2047.0;
const DOCUMENT_MAX: f64 = 127.0;
const _: () = assert!(VECTOR_DIMENSIONS_MAX * 2047 * 127 <= i32::MAX as usize);

/// How vectors are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Cosine of the angle.
    Cosine,
    /// Dot product.
    Dot,
    /// 1 / (1 + squared Euclidean distance).
    L2,
}

impl Metric {
    /// The metric of a name in the protocol.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "cosine" => Some(Self::Cosine),
            "dot" => Some(Self::Dot),
            "l2" => Some(Self::L2),
            _ => None,
        }
    }

    /// The name in the protocol.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cosine => "cosine",
            Self::Dot => "dot",
            Self::L2 => "l2",
        }
    }

    /// The score of vectors with this dot product and these squared lengths.
    fn score(self, dot: f64, query_square: f64, document_square: f64) -> i64 {
        let score = match self {
            Self::Cosine => {
                let lengths = (query_square * document_square).sqrt();
                if lengths > 0.0 { dot / lengths } else { 0.0 }
            }
            Self::Dot => dot,
            Self::L2 => 1.0 / (1.0 + (query_square + document_square - 2.0 * dot).max(0.0)),
        };
        if score < 0.0 { -to_fixed(-score) } else { to_fixed(score) }
    }
}

/// How many of the scan's best are scored exactly.
pub fn rescored(limit: usize) -> usize {
    limit.saturating_mul(4).max(100)
}

/// The vectors of one path in one shard. Slots are never moved, so that a scan in slices misses nothing.
#[derive(Debug)]
pub struct VectorIndex {
    path: Vec<u8>,
    dimensions: usize,
    metric: Metric,
    keys: Vec<Option<Box<[u8]>>>,
    by_key: HashTable<u32>,
    free: Vec<u32>,
    floats: Vec<f32>,
    bytes: Vec<i8>,
    /// What a byte is worth, by slot.
    scales: Vec<f32>,
    walker: Walker,
    /// While a snapshot is written: slots that changed since it began, as they were.
    frozen: Option<Frozen>,
}

/// A key and its vector.
type Stored = (Box<[u8]>, Vec<f32>);

#[derive(Debug)]
struct Frozen {
    slots: usize,
    changed: BTreeMap<u32, Option<Stored>>,
}

const SECTION_VERSION: u8 = 1;

impl VectorIndex {
    /// An empty index of the vectors at an escaped path.
    pub fn new(path: &str, dimensions: usize, metric: Metric) -> Self {
        assert!((1..=VECTOR_DIMENSIONS_MAX).contains(&dimensions), "definitions are checked");
        Self {
            path: path.as_bytes().to_vec(),
            dimensions,
            metric,
            keys: Vec::new(),
            by_key: HashTable::new(),
            free: Vec::new(),
            floats: Vec::new(),
            bytes: Vec::new(),
            scales: Vec::new(),
            walker: Walker::default(),
            frozen: None,
        }
    }

    /// Number of vectors.
    pub fn entries(&self) -> usize {
        self.by_key.len()
    }

    /// Bytes of memory.
    pub fn memory_bytes(&self) -> usize {
        let keys: usize = self.keys.iter().flatten().map(|key| key.len() + 16).sum();
        keys + self.keys.capacity() * 16
            + self.floats.capacity() * 4
            + self.bytes.capacity()
            + self.by_key.allocation_size()
    }

    /// A record has changed to `new`, a JSON token or absent.
    pub fn apply(&mut self, key: &[u8], new: Option<&[u8]>) {
        let mut vector = Vec::new();
        if let Some(value) = new {
            let limit = self.dimensions + 1;
            each_value(&mut self.walker, value, &self.path, |scalar| {
                if let Scalar::Number(token) = scalar
                    && vector.len() < limit
                {
                    vector.push(token.parse::<f32>().unwrap_or(f32::INFINITY));
                }
            });
        }
        if vector.len() == self.dimensions && vector.iter().all(|number| number.is_finite()) {
            self.insert(key, &vector);
        } else {
            self.remove(key);
        }
    }

    fn find(&self, key: &[u8]) -> Option<u32> {
        self.by_key.find(hash_of(key).0, |slot| self.keys[*slot as usize].as_deref() == Some(key)).copied()
    }

    /// Remembers a slot for the snapshot being written, before it changes.
    fn keep(&mut self, slot: u32) {
        let Some(frozen) = &mut self.frozen else { return };
        let at = slot as usize;
        if at < frozen.slots && !frozen.changed.contains_key(&slot) {
            let floats = &self.floats[at * self.dimensions..][..self.dimensions];
            let before = self.keys[at].clone().map(|key| (key, floats.to_vec()));
            frozen.changed.insert(slot, before);
        }
    }

    fn insert(&mut self, key: &[u8], vector: &[f32]) {
        let slot = match self.find(key) {
            Some(slot) => slot,
            None => {
                let slot = self.free.pop().unwrap_or_else(|| {
                    self.keys.push(None);
                    self.floats.resize(self.floats.len() + self.dimensions, 0.0);
                    self.bytes.resize(self.bytes.len() + self.dimensions, 0);
                    self.scales.push(0.0);
                    u32::try_from(self.keys.len() - 1).expect("a shard has fewer than 2^32 records")
                });
                self.keep(slot);
                self.keys[slot as usize] = Some(key.into());
                let keys = &self.keys;
                let hash_at = |slot: &u32| keys[*slot as usize].as_deref().map_or(0, |key| hash_of(key).0);
                self.by_key.insert_unique(hash_of(key).0, slot, hash_at);
                slot
            }
        };
        self.keep(slot);
        let range = slot as usize * self.dimensions..(slot as usize + 1) * self.dimensions;
        self.floats[range.clone()].copy_from_slice(vector);
        let largest = vector.iter().fold(0.0f64, |largest, number| largest.max(f64::from(number.abs())));
        let factor = if largest > 0.0 { DOCUMENT_MAX / largest } else { 0.0 };
        for (byte, number) in self.bytes[range].iter_mut().zip(vector) {
            *byte = (f64::from(*number) * factor).round() as i8;
        }
        self.scales[slot as usize] = (largest / DOCUMENT_MAX) as f32;
    }

    fn remove(&mut self, key: &[u8]) {
        let Some(slot) = self.find(key) else { return };
        self.keep(slot);
        if let Ok(entry) = self.by_key.find_entry(hash_of(key).0, |other| *other == slot) {
            entry.remove();
        }
        self.keys[slot as usize] = None;
        self.free.push(slot);
    }

    /// From now on [`VectorIndex::write_section`] writes the index as it is now.
    pub fn begin_snapshot(&mut self) {
        self.frozen = Some(Frozen { slots: self.keys.len(), changed: BTreeMap::new() });
    }

    /// Forgets what the snapshot needed.
    pub fn end_snapshot(&mut self) {
        self.frozen = None;
    }

    /// Writes vectors from slot `from` on until `units` are spent; returns where to go on.
    pub fn write_section(&self, from: u32, units: &mut Units, out: &mut Vec<u8>) -> Option<u32> {
        out.push(SECTION_VERSION);
        put_varint(out, self.dimensions as u32);
        let (slots, changed) = match &self.frozen {
            Some(frozen) => (frozen.slots, Some(&frozen.changed)),
            None => (self.keys.len(), None),
        };
        let mut written = Vec::new();
        let (mut slot, mut count) = (from, 0u64);
        while (slot as usize) < slots && (units.left() || slot == from) {
            let at = slot as usize;
            let entry = match changed.and_then(|changed| changed.get(&slot)) {
                Some(before) => before.as_ref().map(|(key, floats)| (&key[..], &floats[..])),
                None => self.keys[at]
                    .as_deref()
                    .map(|key| (key, &self.floats[at * self.dimensions..][..self.dimensions])),
            };
            if let Some((key, floats)) = entry {
                put_bytes(&mut written, key);
                written.extend(floats.iter().flat_map(|number| number.to_le_bytes()));
                count += 1;
            }
            units.spend(4 + self.dimensions as u64 / 8);
            slot += 1;
        }
        put_varint_u64(out, count);
        out.extend_from_slice(&written);
        ((slot as usize) < slots).then_some(slot)
    }

    /// Adds the vectors of one written section.
    ///
    /// # Errors
    /// The bytes are no section of an index of this dimension.
    pub fn load_section(&mut self, bytes: &[u8]) -> Result<(), Corrupt> {
        let mut reader = Reader::new(bytes);
        if reader.u8()? != SECTION_VERSION || reader.varint()? as usize != self.dimensions {
            return Err(Corrupt("version of a vector section"));
        }
        for _ in 0..reader.count(1 + self.dimensions * 4)? {
            let key = reader.bytes()?;
            let vector = (0..self.dimensions)
                .map(|_| Ok(f32::from_bits(reader.u32()?)))
                .collect::<Result<Vec<f32>, Corrupt>>()?;
            if vector.iter().any(|number| !number.is_finite()) {
                return Err(Corrupt("vector"));
            }
            self.insert(key, &vector);
        }
        if reader.is_empty() { Ok(()) } else { Err(Corrupt("bytes after a vector section")) }
    }
}

/// A hit with the score that the scan gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VectorHit {
    /// By the int8 copy, in units of 2^-24.
    pub scanned: i64,
    /// Exact score and key.
    pub hit: Hit,
}

/// A scan for the nearest vectors of one shard, a slice at a time.
#[derive(Debug)]
pub struct VectorSearch {
    query: Vec<f32>,
    coarse: Vec<i16>,
    coarse_scale: f64,
    query_square: f64,
    next: usize,
    top: Top,
}

impl VectorSearch {
    /// A scan for what ends as the best `limit`.
    ///
    /// # Errors
    /// The query's dimension is not the index's, or it has a number that is not finite.
    pub fn new(index: &VectorIndex, query: &[f32], limit: usize) -> Result<Self, &'static str> {
        if query.len() != index.dimensions || query.iter().any(|number| !number.is_finite()) {
            return Err("the vector must have the index's dimension and finite numbers");
        }
        let largest = query.iter().fold(0.0f64, |largest, number| largest.max(f64::from(number.abs())));
        let factor = if largest > 0.0 { QUERY_MAX / largest } else { 0.0 };
        let coarse = query.iter().map(|number| (f64::from(*number) * factor).round() as i16).collect();
        let query_square = query.iter().map(|number| f64::from(*number) * f64::from(*number)).sum();
        let coarse_scale = largest / QUERY_MAX;
        Ok(Self {
            query: query.to_vec(),
            coarse,
            coarse_scale,
            query_square,
            next: 0,
            top: Top::new(rescored(limit)),
        })
    }

    /// Goes on until the budget is spent; true when the scan is complete.
    pub fn step(
        &mut self,
        index: &VectorIndex,
        units: &mut Units,
        accept: &mut dyn FnMut(&[u8]) -> bool,
    ) -> bool {
        let dimensions = index.dimensions;
        while units.left() {
            let Some(key) = index.keys.get(self.next) else { return true };
            let slot = self.next;
            self.next += 1;
            units.spend(1 + dimensions as u64 / 64);
            let Some(key) = key else { continue };
            let bytes = &index.bytes[slot * dimensions..][..dimensions];
            let scale = f64::from(index.scales[slot]);
            let product = f64::from(dot(&self.coarse, bytes)) * scale * self.coarse_scale;
            let length = f64::from(square(bytes)) * scale * scale;
            let score = index.metric.score(product, self.query_square, length);
            if score >= self.top.threshold() && self.top.admits(score, key) {
                units.spend(ACCEPT_UNITS);
                if accept(key) {
                    self.top.push(score, key, (0, slot as u32));
                }
            }
        }
        self.next >= index.keys.len()
    }

    /// The scan's best with exact scores, best of the scan first. What [`merge_vector_hits`] takes.
    pub fn into_hits(self, index: &VectorIndex) -> Vec<VectorHit> {
        let mut hits = Vec::new();
        for scanned in self.top.into_sorted() {
            let slot = scanned.place.1 as usize;
            if index.keys[slot].as_deref() != Some(&*scanned.key) {
                continue;
            }
            let floats = &index.floats[slot * index.dimensions..][..index.dimensions];
            let (mut product, mut length) = (0.0f64, 0.0f64);
            for (left, right) in self.query.iter().zip(floats) {
                product += f64::from(*left) * f64::from(*right);
                length += f64::from(*right) * f64::from(*right);
            }
            let score = index.metric.score(product, self.query_square, length);
            hits.push(VectorHit { scanned: scanned.score, hit: Hit::new(score, &scanned.key) });
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn find(shards: &[VectorIndex], query: &[f32], limit: usize, budget: u32) -> Vec<Hit> {
        let lists = shards.iter().map(|index| {
            let mut search = VectorSearch::new(index, query, limit).unwrap();
            while !search.step(index, &mut Units::new(budget), &mut |_| true) {}
            search.into_hits(index)
        });
        merge_vector_hits(lists.collect(), limit)
    }

    fn json(vector: &[f32]) -> String {
        format!("{{\"v\":{vector:?}}}")
    }

    proptest! {
        #[test]
        fn scans_agree_with_a_model_over_any_shards(
            operations in prop::collection::vec((0u8..60, prop::collection::vec(-8.0f32..8.0, 4), 0u8..5), 0..150),
            query in prop::collection::vec(-8.0f32..8.0, 4), metric in 0usize..3, limit in 1usize..8,
        ) {
            let metric = [Metric::Cosine, Metric::Dot, Metric::L2][metric];
            let mut single = [VectorIndex::new("v", 4, metric)];
            let mut shards: Vec<VectorIndex> = (0..3).map(|_| VectorIndex::new("v", 4, metric)).collect();
            let mut model: BTreeMap<u8, Vec<f32>> = BTreeMap::new();
            let mut snapshot = None;
            let half = operations.len() / 2;
            for (n, (key, vector, action)) in operations.into_iter().enumerate() {
                if n == half {
                    single[0].begin_snapshot();
                    snapshot = Some(model.clone());
                }
                let value = match action { 0 => None, 1 => Some("{\"v\":[1,2]}".to_owned()), _ => Some(json(&vector)) };
                if action > 1 { model.insert(key, vector); } else { model.remove(&key); }
                single[0].apply(&[key], value.as_deref().map(str::as_bytes));
                shards[usize::from(key) % 3].apply(&[key], value.as_deref().map(str::as_bytes));
            }
            let square: f64 = query.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
            let mut expected: Vec<Hit> = model.iter().map(|(key, vector)| {
                let product = vector.iter().zip(&query).map(|(a, b)| f64::from(*b) * f64::from(*a)).sum();
                let length = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
                Hit::new(metric.score(product, square, length), &[*key])
            }).collect();
            expected.sort();
            expected.truncate(limit);
            prop_assert_eq!(&find(&single, &query, limit, 1_000_000), &expected);
            prop_assert_eq!(&find(&shards, &query, limit, 3), &expected);
            if let Some(then) = snapshot {
                let mut loaded = VectorIndex::new("v", 4, metric);
                let mut from = Some(0);
                while let Some(slot) = from {
                    let mut out = Vec::new();
                    from = single[0].write_section(slot, &mut Units::new(9), &mut out);
                    loaded.load_section(&out).unwrap();
                    out[0] ^= 1;
                    prop_assert!(loaded.load_section(&out).is_err());
                }
                prop_assert_eq!(loaded.entries(), then.len());
                for (key, vector) in then {
                    let slot = loaded.find(&[key]).unwrap() as usize;
                    prop_assert_eq!(&loaded.floats[slot * 4..][..4], &vector[..]);
                }
            }
        }
    }

    #[test]
    fn long_vectors_do_not_overflow() {
        let mut index = VectorIndex::new("v", VECTOR_DIMENSIONS_MAX, Metric::Dot);
        let vector = vec![3.0e38f32; VECTOR_DIMENSIONS_MAX];
        index.apply(b"k", Some(json(&vector).as_bytes()));
        let hits = find(std::slice::from_ref(&index), &vector, 1, 1000);
        assert_eq!(hits.len(), 1);
        assert!(hits[0].score > 0);
    }
}
