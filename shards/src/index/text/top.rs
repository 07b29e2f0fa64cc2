//! The best k hits seen so far, by score, ties by key.

use smallvec::SmallVec;
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Keys up to this length are held without an allocation: most of what is pushed is pushed out again, and a query of one rare
/// word takes a tenth longer with an allocation a hit.
const KEY_INLINE_BYTES: usize = 24;

/// A document's key.
pub type Key = SmallVec<[u8; KEY_INLINE_BYTES]>;

/// A document and its score. Hits compare by score and key alone.
#[derive(Clone, Debug)]
pub struct Hit {
    /// In units of 2^-24.
    pub score: i64,
    /// The document's key.
    pub key: Key,
    /// Part and document in the view that was searched.
    pub(crate) place: (u32, u32),
}

impl Hit {
    /// A hit of another shard.
    pub fn new(score: i64, key: &[u8]) -> Self {
        Self { score, key: key.into(), place: (u32::MAX, u32::MAX) }
    }
}

impl PartialEq for Hit {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Hit {}

impl Ord for Hit {
    /// Orders the better hit first: higher score, then lower key.
    fn cmp(&self, other: &Self) -> Ordering {
        other.score.cmp(&self.score).then_with(|| self.key.cmp(&other.key))
    }
}

impl PartialOrd for Hit {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// A hit that may still be pushed out. Ordered as [`Hit`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Candidate {
    score: i64,
    key: Key,
    place: (u32, u32),
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        other.score.cmp(&self.score).then_with(|| self.key.cmp(&other.key))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Keeps the best `limit` hits; the worst of them is on top of the heap.
#[derive(Clone, Debug)]
pub(crate) struct Top {
    heap: BinaryHeap<Candidate>,
    limit: usize,
}

impl Top {
    pub(crate) fn new(limit: usize) -> Self {
        Self { heap: BinaryHeap::with_capacity(limit.min(1024) + 1), limit }
    }

    /// A hit below this score cannot get in.
    #[inline]
    pub(crate) fn threshold(&self) -> i64 {
        if self.heap.len() < self.limit {
            i64::MIN
        } else {
            self.heap.peek().map_or(i64::MAX, |worst| worst.score)
        }
    }

    /// Whether a hit would get in.
    #[inline]
    pub(crate) fn admits(&self, score: i64, key: &[u8]) -> bool {
        if self.heap.len() < self.limit {
            return true;
        }
        self.heap
            .peek()
            .is_some_and(|worst| score > worst.score || (score == worst.score && *key < *worst.key))
    }

    /// Adds a hit that is admitted.
    pub(crate) fn push(&mut self, score: i64, key: &[u8], place: (u32, u32)) {
        if self.heap.len() == self.limit {
            self.heap.pop();
        }
        self.heap.push(Candidate { score, key: key.into(), place });
    }

    /// Where the hits so far stand, in no order.
    pub(crate) fn places(&self) -> impl Iterator<Item = (u32, u32)> {
        self.heap.iter().map(|hit| hit.place)
    }

    /// Forgets all hits.
    pub(crate) fn clear(&mut self) {
        self.heap.clear();
    }

    /// The hits, best first.
    pub(crate) fn into_sorted(self) -> Vec<Hit> {
        let sorted = self.heap.into_sorted_vec().into_iter();
        sorted.map(|Candidate { score, key, place }| Hit { score, key, place }).collect()
    }
}
