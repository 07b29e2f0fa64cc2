//! Where the documents go that a search of the postings comes across: the best of them stay, by score, ties by key.
//!
//! A key lies elsewhere in memory, and most documents that come among the best are pushed out again. So what is kept of a
//! document is its score and its place: keys are looked at when equal scores compete for the last places, and for the hits in
//! the end. Which documents stay is the same as if each were compared by score and key at once.

use super::bitmap::Bitmap;
use super::part::{Open, PartView};
use super::top::{Hit, Key};
use crate::index::{ACCEPT_UNITS, Units};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Judges the documents that would be hits; `None` takes all.
pub(crate) type Accept<'a> = Option<&'a mut dyn FnMut(&[u8]) -> bool>;

/// A document that may be a hit.
#[derive(Clone, Copy, Debug)]
struct Found {
    score: i64,
    /// Part and document.
    place: (u32, u32),
}

/// The best documents so far of a search over some parts, which are given with each call and must be the same.
#[derive(Clone, Debug)]
pub(crate) struct Best {
    limit: usize,
    /// The best scores, as many as hits are wanted; the least on top.
    scores: BinaryHeap<Reverse<i64>>,
    /// All documents with these scores, and some that were pushed out since.
    found: Vec<Found>,
    /// With this score only lower keys than this one get in.
    bar: Option<(i64, Key)>,
}

impl Best {
    pub(crate) fn new(limit: usize) -> Self {
        let scores = BinaryHeap::with_capacity(limit.min(1024) + 1);
        Self { limit, scores, found: Vec::with_capacity(limit.min(1024) * 2 + SPARE), bar: None }
    }

    /// Most hits that are kept.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// A document below this score cannot get in.
    #[inline]
    pub(crate) fn threshold(&self) -> i64 {
        if self.scores.len() < self.limit {
            i64::MIN
        } else {
            self.scores.peek().map_or(i64::MAX, |least| least.0)
        }
    }

    /// Whether a document with this score may get in, as far as its key is known to matter.
    #[inline]
    fn may_enter<'k>(&self, score: i64, key: impl FnOnce() -> &'k [u8]) -> bool {
        match &self.bar {
            Some((barred, bar)) if *barred == score => *key() < bar[..],
            _ => true,
        }
    }

    /// Adds a document that reaches the threshold.
    #[inline]
    fn add(&mut self, score: i64, place: (u32, u32), parts: &[PartView]) {
        if self.scores.len() < self.limit {
            self.scores.push(Reverse(score));
        } else if let Some(mut least) = self.scores.peek_mut().filter(|least| score > least.0) {
            least.0 = score;
        }
        self.found.push(Found { score, place });
        if self.found.len() >= self.limit.saturating_mul(2) + SPARE {
            self.thin(parts);
        }
    }

    /// Forgets what was pushed out.
    #[cold]
    fn thin(&mut self, parts: &[PartView]) {
        let threshold = self.threshold();
        self.found.retain(|found| found.score >= threshold);
        let ties = self.found.iter().filter(|found| found.score == threshold).count();
        let above = self.found.len() - ties;
        let room = self.limit - above.min(self.limit);
        if ties <= room {
            return;
        }
        let mut keyed: Vec<(Key, Found)> = Vec::with_capacity(ties);
        self.found.retain(|found| {
            let is_above = found.score > threshold;
            if !is_above {
                keyed.push((key_of(parts, found.place), *found));
            }
            is_above
        });
        keyed.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        keyed.truncate(room);
        self.found.extend(keyed.iter().map(|(_, found)| *found));
        self.bar = keyed.pop().map(|(key, _)| (threshold, key));
    }

    /// The hits so far, best first.
    pub(crate) fn hits(&mut self, parts: &[PartView]) -> Vec<Hit> {
        self.thin(parts);
        let hit =
            |found: &Found| Hit { score: found.score, key: key_of(parts, found.place), place: found.place };
        let mut hits: Vec<Hit> = self.found.iter().map(hit).collect();
        hits.sort_unstable();
        hits
    }

    /// Forgets all documents.
    pub(crate) fn clear(&mut self) {
        self.scores.clear();
        self.found.clear();
        self.bar = None;
    }
}

/// Documents that are kept beyond twice as many as hits are wanted.
const SPARE: usize = 32;

fn key_of(parts: &[PartView], (part, document): (u32, u32)) -> Key {
    parts[part as usize].body.with_record(document, |record| record.key().into())
}

/// Where hits go, and what they are judged by.
pub(super) struct Offering<'a, 'o, 'f> {
    /// All parts of the search.
    pub(super) parts: &'a [PartView],
    /// The one that is open.
    pub(super) part: u32,
    pub(super) open: &'a Open<'o>,
    pub(super) dead: &'a Bitmap,
    pub(super) best: &'a mut Best,
    pub(super) units: &'a mut Units,
    pub(super) accept: &'a mut Accept<'f>,
}

impl Offering<'_, '_, '_> {
    /// Offers documents whose scores are complete, the best of them first: while there is no threshold, most would come and be
    /// pushed out again.
    pub(super) fn offer_best_first(&mut self, scored: &mut [(u32, i64)]) {
        let limit = self.best.limit();
        let by_score = |a: &(u32, i64), b: &(u32, i64)| b.1.cmp(&a.1);
        let best = if scored.len() > limit && limit > 0 {
            scored.select_nth_unstable_by(limit - 1, by_score);
            limit
        } else {
            scored.len()
        };
        scored[..best].sort_unstable_by(by_score);
        for (document, score) in scored.iter() {
            self.offer_whole(*document, *score);
        }
    }

    /// Offers a document whose score is complete.
    #[inline]
    pub(super) fn offer_whole(&mut self, document: u32, score: i64) {
        if score < self.best.threshold() || self.dead.contains(document) {
            return;
        }
        if !self.best.may_enter(score, || self.open.key(document)) {
            return;
        }
        if let Some(accept) = &mut *self.accept {
            self.units.spend(ACCEPT_UNITS);
            if !accept(self.open.key(document)) {
                return;
            }
        }
        self.best.add(score, (self.part, document), self.parts);
    }
}

#[cfg(test)]
mod tests {
    use super::super::part::Body;
    use super::super::tail::Tail;
    use super::*;
    use proptest::prelude::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    proptest! {
        /// Documents in any order, most of them with equal scores, in two parts.
        #[test]
        fn the_best_are_those_of_a_sort(limit in 0usize..40, documents in prop::collection::vec((0i64..6, any::<u16>(), 0u32..2), 0..600)) {
            let mut tails = [Tail::default(), Tail::default()];
            let (mut all, mut places) = (Vec::new(), Vec::new());
            for (n, (score, key, part)) in documents.iter().enumerate() {
                let key = format!("{key}.{n}");
                let document = tails[*part as usize].push_record(key.as_bytes(), &[]);
                places.push((*score, (*part, document)));
                all.push(Hit::new(*score, key.as_bytes()));
            }
            let parts = tails.map(|tail| {
                let documents = tail.documents();
                PartView { id: 0, body: Body::Tail(Rc::new(RefCell::new(tail))), documents, dead: Rc::default() }
            });
            let mut best = Best::new(limit);
            for (score, place) in places {
                let body = parts[place.0 as usize].body.clone();
                let may_enter = body.with_record(place.1, |record| best.may_enter(score, || record.key()));
                if score >= best.threshold() && may_enter {
                    best.add(score, place, &parts);
                }
            }
            all.sort();
            all.truncate(limit);
            prop_assert_eq!(best.hits(&parts), all.clone());
            prop_assert_eq!(best.hits(&parts), all, "and once more");
        }
    }
}
