//! The terms of a dictionary in byte order, for prefix and fuzzy queries: an `fst` set and what came since.
//!
//! May hold terms that live no more; the caller says which do. Rebuilt in slices when the new terms outgrow an eighth of
//! the set, so that a term costs one insertion into a B-tree and a few into builders over the life of the index.

use super::dictionary::FieldId;
use super::levenshtein::{Levenshtein, State};
use fst::{Automaton, IntoStreamer, Set, SetBuilder, Streamer};
use std::collections::BTreeSet;
use std::ops::Bound;

/// New terms below this number are not worth a rebuild.
const RECENT_MIN: usize = 4096;

#[derive(Default)]
pub(crate) struct Ordered {
    set: Set<Vec<u8>>,
    /// Terms since the set was built, or since the running build began.
    recent: BTreeSet<Box<[u8]>>,
    recent_bytes: usize,
    /// What the running build adds to the set.
    frozen: BTreeSet<Box<[u8]>>,
    build: Option<Build>,
}

struct Build {
    builder: SetBuilder<Vec<u8>>,
    /// The last key that was added.
    last: Vec<u8>,
}

impl std::fmt::Debug for Ordered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ordered").field("set", &self.set.len()).field("recent", &self.recent.len()).finish()
    }
}

fn key_of(field: FieldId, term: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(2 + term.len());
    key.extend_from_slice(&field.to_be_bytes());
    key.extend_from_slice(term);
    key
}

impl Ordered {
    pub(crate) fn insert(&mut self, field: FieldId, term: &[u8]) {
        let key = key_of(field, term).into_boxed_slice();
        self.recent_bytes += key.len();
        self.recent.insert(key);
    }

    pub(crate) fn has_work(&self) -> bool {
        self.build.is_some() || self.recent.len() > RECENT_MIN.max(self.set.len() / 8)
    }

    /// Goes on with the rebuild by about `units` terms, leaving out those that are not in use.
    pub(crate) fn work(&mut self, units: u32, in_use: impl Fn(FieldId, &[u8]) -> bool) {
        if !self.has_work() {
            return;
        }
        let build = self.build.get_or_insert_with(|| {
            self.frozen = std::mem::take(&mut self.recent);
            self.recent_bytes = 0;
            Build { builder: SetBuilder::memory(), last: Vec::new() }
        });
        let mut old = self.set.range().gt(&build.last).into_stream();
        let mut new = self.frozen.range::<[u8], _>((Bound::Excluded(&build.last[..]), Bound::Unbounded));
        let (mut left, mut right) = (old.next(), new.next());
        for _ in 0..units {
            let next: &[u8] = match (left, right) {
                (Some(l), Some(r)) => l.min(&r[..]),
                (Some(l), None) => l,
                (None, Some(r)) => r,
                (None, None) => {
                    self.finish();
                    return;
                }
            };
            build.last.clear();
            build.last.extend_from_slice(next);
            if in_use(u16::from_be_bytes([next[0], next[1]]), &next[2..]) {
                build.builder.insert(next).expect("keys come in order into memory");
            }
            if right.is_some_and(|r| r[..] == build.last[..]) {
                right = new.next();
            }
            if left == Some(&build.last[..]) {
                left = old.next();
            }
        }
    }

    fn finish(&mut self) {
        if let Some(build) = self.build.take() {
            self.set = build.builder.into_set();
            self.frozen = BTreeSet::new();
        }
    }

    /// The first `limit` terms with `prefix` for which `live` gives an id, in byte order.
    pub(crate) fn with_prefix(
        &self,
        field: FieldId,
        prefix: &[u8],
        limit: usize,
        live: impl Fn(&[u8]) -> Option<u32>,
    ) -> Vec<(Vec<u8>, u32)> {
        let from = key_of(field, prefix);
        let mut found = Vec::new();
        let mut stream = self.set.range().ge(&from).into_stream();
        while let Some(key) = stream.next() {
            if found.len() == limit || !key.starts_with(&from) {
                break;
            }
            found.extend(live(&key[2..]).map(|id| (key[2..].to_vec(), id)));
        }
        for tree in [&self.frozen, &self.recent] {
            let keys = tree.range::<[u8], _>((Bound::Included(&from[..]), Bound::Unbounded));
            let keys = keys.take_while(|key| key.starts_with(&from));
            found
                .extend(keys.filter_map(|key| live(&key[2..]).map(|id| (key[2..].to_vec(), id))).take(limit));
        }
        found.sort_unstable();
        found.dedup();
        found.truncate(limit);
        found
    }

    /// The `limit` terms nearest to `word` for which `live` gives an id, by (edits, bytes).
    pub(crate) fn near(
        &self,
        field: FieldId,
        word: &str,
        edits_max: u8,
        limit: usize,
        live: impl Fn(&[u8]) -> Option<u32>,
    ) -> Vec<(Vec<u8>, u8, u32)> {
        let automaton = Levenshtein::new(field, word, edits_max);
        let mut found: Vec<(u8, Vec<u8>, u32)> = Vec::new();
        let mut stream = self.set.search_with_state(&automaton).into_stream();
        while let Some((key, state)) = stream.next() {
            if let Some((edits, id)) = automaton.edits(&state).zip(live(&key[2..])) {
                found.push((edits, key[2..].to_vec(), id));
            }
        }
        for tree in [&self.frozen, &self.recent] {
            let from = field.to_be_bytes();
            let keys = tree.range::<[u8], _>((Bound::Included(&from[..]), Bound::Unbounded));
            for key in keys.take_while(|key| key.starts_with(&from)) {
                if let Some((edits, id)) =
                    run(&automaton, key).and_then(|edits| Some((edits, live(&key[2..])?)))
                {
                    found.push((edits, key[2..].to_vec(), id));
                }
            }
        }
        found.sort_unstable();
        found.dedup();
        found.truncate(limit);
        found.into_iter().map(|(edits, term, id)| (term, edits, id)).collect()
    }

    pub(crate) fn bytes(&self) -> usize {
        // A B-tree entry is a fat pointer, an allocation with its header, and a share of half-empty nodes.
        self.set.as_fst().size() + self.recent_bytes + (self.recent.len() + self.frozen.len()) * 48
    }
}

fn run(automaton: &Levenshtein, key: &[u8]) -> Option<u8> {
    let mut state: State = automaton.start();
    for byte in key {
        state = automaton.accept(&state, *byte);
        if !automaton.can_match(&state) {
            return None;
        }
    }
    automaton.edits(&Some(state).filter(|state| automaton.is_match(state))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn prefixes_and_neighbours_agree_with_a_scan(
            terms in prop::collection::btree_set("[abé]{1,5}", 0..60), dead in "[abé]{1,5}", word in "[abé]{1,5}", cut in 0usize..60, limit in 1usize..20,
        ) {
            let mut ordered = Ordered::default();
            let mut all: Vec<&String> = terms.iter().collect();
            all.sort_by_key(|term| xxhash_rust::xxh3::xxh3_64(term.as_bytes()));
            for (n, term) in all.iter().enumerate() {
                ordered.insert(3, term.as_bytes());
                if n == cut {
                    ordered.build = Some(Build { builder: SetBuilder::memory(), last: Vec::new() });
                    ordered.frozen = std::mem::take(&mut ordered.recent);
                }
                ordered.insert(2, b"aa");
                if n > cut {
                    ordered.work(1, |_, _| true);
                }
            }
            let live = |term: &[u8]| (term != dead.as_bytes()).then_some(7u32);
            let expected: Vec<(Vec<u8>, u32)> = terms.iter().filter(|t| t.starts_with(word.chars().next().unwrap()) && **t != dead)
                .map(|t| (t.clone().into_bytes(), 7)).take(limit).collect();
            let prefix = word.chars().next().unwrap().to_string();
            prop_assert_eq!(ordered.with_prefix(3, prefix.as_bytes(), limit, live), expected);
            for edits_max in 0..=2 {
                let mut near: Vec<(u8, Vec<u8>)> = terms.iter().filter(|t| **t != dead)
                    .map(|t| (super::super::levenshtein::distance(&word, t), t.clone().into_bytes())).filter(|(d, _)| *d <= edits_max).collect();
                near.sort();
                near.truncate(limit);
                let found: Vec<(u8, Vec<u8>)> = ordered.near(3, &word, edits_max, limit, live).into_iter().map(|(t, d, _)| (d, t)).collect();
                prop_assert_eq!(found, near);
            }
        }
    }
}
