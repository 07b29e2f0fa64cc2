//! What a text index does beside requests, in slices: merging segments, pointing what moved to its new place, giving terms
//! back that nothing has any more, and keeping the dictionary in order.
//!
//! Content never changes here: what a search finds is the same before and after.

use super::locations::Location;
use super::merge::Merge;
use super::part::{Body, PartView};
use super::{Forward, Part, Relocation, TextIndex};
use crate::ids::hash_of;
use crate::index::Units;
use std::rc::Rc;

/// This many segments of one size class become one.
const MERGE_WIDTH: usize = 4;
/// Merges that may run at once.
const MERGES_MAX: usize = 4;
/// A merge makes no segment larger than this.
const SEGMENT_BYTES_MAX: usize = 1 << 30;
/// Terms of the dictionary tidied between two looks at the budget,
const DICTIONARY_TERMS: u32 = 32;
/// and what each of them costs: most go through a builder of ordered terms, about half a microsecond.
const DICTIONARY_UNITS: u64 = 16;
/// Size classes are powers of [`MERGE_WIDTH`] above this.
const CLASS_BYTES_MIN: usize = 256 << 10;

impl TextIndex {
    /// Whether [`TextIndex::work`] has something to do.
    pub fn has_work(&self) -> bool {
        !self.merges.is_empty()
            || !self.gone.is_empty()
            || !self.relocations.is_empty()
            || self.dictionary.has_work()
            || self.next_merge().is_some()
    }

    /// Goes on with sealing, merging and tidying until the budget is spent or nothing is left to do.
    pub fn work(&mut self, units: &mut Units) {
        while units.left() {
            if !self.gone.is_empty() {
                self.release_gone(units);
            } else if let Some(at) = self.smallest_merge() {
                self.step_merge(at, units);
            } else if !self.relocations.is_empty() {
                self.relocate(units);
            } else if self.dictionary.has_work() {
                self.dictionary.work(DICTIONARY_TERMS);
                units.spend(u64::from(DICTIONARY_TERMS) * DICTIONARY_UNITS);
            } else if self.merges.len() < MERGES_MAX {
                match self.next_merge() {
                    Some(parts) => self.begin_merge(&parts),
                    None => return,
                }
            }
            if self.merges.len() < MERGES_MAX
                && let Some(parts) = self.next_merge()
            {
                self.begin_merge(&parts);
            }
        }
    }

    /// Merges the parts at these positions from now on.
    pub(super) fn begin_merge(&mut self, at: &[usize]) {
        let views: Vec<PartView> = at.iter().map(|at| self.parts.list[*at].view()).collect();
        for at in at {
            self.parts.list[*at].busy = true;
        }
        self.merges.push(Merge::new(&views, self.embedder.map_or(0, |embedder| embedder.dimensions())));
    }

    /// The running merge with the fewest documents: small ones free queries from parts soonest.
    fn smallest_merge(&self) -> Option<usize> {
        let size =
            |merge: &Merge| -> u64 { merge.inputs.iter().map(|input| u64::from(input.documents())).sum() };
        (0..self.merges.len()).min_by_key(|at| size(&self.merges[*at]))
    }

    fn step_merge(&mut self, at: usize, units: &mut Units) {
        let parts = &self.parts.list;
        let is_dead = |id: u32, document: u32| {
            parts.iter().rfind(|part| part.id == id).is_some_and(|part| part.dead.contains(document))
        };
        if !self.merges[at].step(units, &mut self.dictionary, is_dead) {
            return;
        }
        let mut merge = self.merges.remove(at);
        self.gone.append(&mut merge.gone);
        let (segment, dead, forwards) = merge.finish();
        let id = self.next_part;
        self.next_part += 1;
        let first = self.parts.position(forwards[0].0);
        let empty = segment.documents() == 0;
        self.parts.list[first] =
            Part { id, body: Body::Sealed(Rc::new(segment)), dead: Rc::new(dead), busy: true };
        self.parts.list.retain(|part| !forwards.iter().any(|forward| forward.0 == part.id));
        if empty {
            // Nobody points to any of the inputs' documents.
            self.parts.list.retain(|part| part.id != id);
            return;
        }
        self.parts.forwards.extend(forwards.into_iter().map(|(from, documents)| Forward {
            from,
            to: id,
            documents,
        }));
        self.relocations.push(Relocation { part: id, next: 0 });
    }

    /// Gives back terms that no part has any more.
    fn release_gone(&mut self, units: &mut Units) {
        let count = self.gone.len().min(64);
        for (id, holders) in self.gone.drain(self.gone.len() - count..) {
            (0..holders).for_each(|_| self.dictionary.release(id));
        }
        units.spend(count as u64 * 8);
    }

    /// Points the locations of a merged part's documents to it, so that the forwards can go.
    fn relocate(&mut self, units: &mut Units) {
        let Some(relocation) = self.relocations.last() else { return };
        let (id, from) = (relocation.part, relocation.next);
        let parts = &self.parts;
        let at = parts.position(id);
        let body = parts.list[at].body.clone();
        let mut document = from;
        while document < body.documents() && units.left() {
            let target = Location { part: id, document };
            if !parts.list[at].dead.contains(document) {
                let hash = body.with_record(document, |record| hash_of(record.key()));
                let same = |location: &Location| parts.moved_to(*location, target);
                if let Some(location) = self.locations.find_mut(hash, same) {
                    *location = target;
                }
            }
            document += 1;
            units.spend(4);
        }
        if document < body.documents() {
            self.relocations.last_mut().expect("it was there above").next = document;
            return;
        }
        self.relocations.pop();
        self.parts.forwards.retain(|forward| forward.to != id);
        self.parts.list[at].busy = false;
    }

    /// The positions of the parts to merge next: a size class that is full, or a part with many dead.
    fn next_merge(&self) -> Option<Vec<usize>> {
        let free = |part: &Part| !part.busy && matches!(part.body, Body::Sealed(_));
        let rotten = self.parts.list.iter().position(|part| {
            free(part) && part.dead.count() >= 64 && part.dead.count() * 3 > part.body.documents()
        });
        if let Some(at) = rotten {
            return Some(vec![at]);
        }
        let mut classes: Vec<(u32, usize, usize)> = Vec::new();
        for (at, part) in self.parts.list.iter().enumerate().filter(|(_, part)| free(part)) {
            let bytes = part.body.bytes();
            let class = (bytes / CLASS_BYTES_MIN).checked_ilog(MERGE_WIDTH).map_or(0, |class| class + 1);
            classes.push((class, at, bytes));
        }
        classes.sort_unstable();
        let full =
            classes.chunk_by(|a, b| a.0 == b.0).filter(|class| class.len() >= MERGE_WIDTH).find(|class| {
                class[..MERGE_WIDTH].iter().map(|(_, _, bytes)| bytes).sum::<usize>() <= SEGMENT_BYTES_MAX
            })?;
        Some(full[..MERGE_WIDTH].iter().map(|(_, at, _)| *at).collect())
    }
}
