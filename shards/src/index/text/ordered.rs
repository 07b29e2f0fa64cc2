//! The terms of a dictionary in byte order, for prefix and fuzzy queries: a few runs of `fst` sets and what came since.
//!
//! May hold terms that live no more, and one in several places; the caller says which live. New terms gather in a small
//! B-tree, which is then made a run in slices, together with those runs that are not much larger than it: so there are few
//! runs, each several times as large as the next, and a term goes through about three builders for each of them over the
//! life of the index (a log-structured merge).

use super::dictionary::FieldId;
use super::levenshtein::{Levenshtein, State};
use fst::set::Stream;
use fst::{Automaton, IntoStreamer, Set, SetBuilder, Streamer};
use std::collections::BTreeSet;
use std::ops::Bound;

/// So many new terms are made a run: queries look at each of them.
const RECENT_MAX: usize = 2048;
/// A run that is less than so many times as large as what is built goes into it.
const RATIO: usize = 4;
/// Terms of one set. Its builder remembers up to 20,000 nodes, each with an allocation, and is given back whole: with all of
/// them that took two milliseconds and more.
const PIECE_MAX: usize = 4096;

pub(crate) struct Ordered {
    /// Each more than [`RATIO`] times as large as the next, about.
    runs: Vec<Run>,
    /// Terms since the running build began, or since the last one.
    recent: BTreeSet<Box<[u8]>>,
    recent_bytes: usize,
    /// What the running build adds to the sets.
    frozen: BTreeSet<Box<[u8]>>,
    build: Option<Build>,
    /// What was built last, and goes a little at a time: to free many thousand terms at once takes long.
    retired: BTreeSet<Box<[u8]>>,
    /// [`PIECE_MAX`], but in tests.
    piece_max: usize,
}

impl Default for Ordered {
    fn default() -> Self {
        Self {
            runs: Vec::new(),
            recent: BTreeSet::new(),
            recent_bytes: 0,
            frozen: BTreeSet::new(),
            build: None,
            retired: BTreeSet::new(),
            piece_max: PIECE_MAX,
        }
    }
}

/// Terms in order, in one set behind the other.
#[derive(Default)]
struct Run {
    pieces: Vec<Set<Vec<u8>>>,
    /// By piece: none of its terms is higher, and all of the next are.
    ends: Vec<Box<[u8]>>,
    terms: usize,
}

impl Run {
    /// The first piece that may hold a term after this one.
    fn piece_after(&self, term: &[u8]) -> usize {
        self.ends.partition_point(|end| **end <= *term)
    }

    fn bytes(&self) -> usize {
        let pieces: usize = self.pieces.iter().map(|piece| piece.as_fst().size()).sum();
        pieces + self.ends.iter().map(|end| end.len() + 16).sum::<usize>()
    }
}

struct Build {
    /// Of the next piece.
    builder: Option<SetBuilder<Vec<u8>>>,
    /// Terms in it.
    count: usize,
    run: Run,
    /// The runs from here on become one.
    from: usize,
    /// The last key that was looked at.
    last: Vec<u8>,
}

impl Build {
    fn end_piece(&mut self) {
        let Some(builder) = self.builder.take().filter(|_| self.count > 0) else { return };
        self.run.pieces.push(builder.into_set());
        self.run.ends.push(self.last[..].into());
        self.run.terms += std::mem::take(&mut self.count);
    }
}

/// One of the runs of a build, and its next key.
struct Source<'s> {
    run: &'s Run,
    /// The next piece.
    piece: usize,
    stream: Option<Stream<'s>>,
    head: Option<Vec<u8>>,
}

impl<'s> Source<'s> {
    fn new(run: &'s Run, after: &[u8]) -> Self {
        let piece = run.piece_after(after);
        let stream = run.pieces.get(piece).map(|set| set.range().gt(after).into_stream());
        let mut source = Self { run, piece: piece + 1, stream, head: Some(Vec::new()) };
        source.step();
        source
    }

    fn step(&mut self) {
        while let Some(stream) = &mut self.stream {
            if let Some(key) = stream.next() {
                return key.clone_into(self.head.get_or_insert_default());
            }
            self.stream = self.run.pieces.get(self.piece).map(|set| set.stream());
            self.piece += 1;
        }
        self.head = None;
    }
}

impl std::fmt::Debug for Ordered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let runs: Vec<usize> = self.runs.iter().map(|run| run.terms).collect();
        f.debug_struct("Ordered").field("runs", &runs).field("recent", &self.recent.len()).finish()
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
        self.build.is_some() || self.recent.len() > RECENT_MAX || !self.retired.is_empty()
    }

    fn begin(&mut self) -> Build {
        self.frozen = std::mem::take(&mut self.recent);
        self.recent_bytes = 0;
        let (mut from, mut size) = (self.runs.len(), self.frozen.len());
        while from > 0 && self.runs[from - 1].terms < size * RATIO {
            from -= 1;
            size += self.runs[from].terms;
        }
        Build { builder: None, count: 0, run: Run::default(), from, last: Vec::new() }
    }

    /// Goes on with a build by about `units` terms, leaving out those that are not in use.
    pub(crate) fn work(&mut self, units: u32, in_use: impl Fn(FieldId, &[u8]) -> bool) {
        if !self.has_work() {
            return;
        }
        if !self.retired.is_empty() {
            (0..units).for_each(|_| _ = self.retired.pop_first());
            return;
        }
        let mut build = match self.build.take() {
            Some(build) => build,
            None => return self.build = Some(self.begin()),
        };
        // To make a builder and to give it back take long enough to be all that is done.
        if build.count >= self.piece_max {
            build.end_piece();
        } else if build.builder.is_none() {
            build.builder = Some(SetBuilder::memory());
        } else if self.add_some(&mut build, units, in_use) {
            return self.finish(build);
        }
        self.build = Some(build);
    }

    /// Adds about `units` terms to what is built; true when all are in.
    fn add_some(&self, build: &mut Build, units: u32, in_use: impl Fn(FieldId, &[u8]) -> bool) -> bool {
        let Build { builder, count, from, last, .. } = build;
        let builder = builder.as_mut().expect("a builder was made before");
        let mut sources: Vec<Source<'_>> =
            self.runs[*from..].iter().map(|run| Source::new(run, last)).collect();
        let mut new = self.frozen.range::<[u8], _>((Bound::Excluded(&last[..]), Bound::Unbounded));
        let mut newest = new.next();
        for _ in 0..units {
            if *count >= self.piece_max {
                return false;
            }
            let oldest = sources.iter().filter_map(|source| source.head.as_deref()).min();
            let Some(next) = oldest.into_iter().chain(newest.map(|key| &key[..])).min() else { return true };
            next.clone_into(last);
            if in_use(u16::from_be_bytes([last[0], last[1]]), &last[2..]) {
                builder.insert(&*last).expect("keys come in order into memory");
                *count += 1;
            }
            if newest.is_some_and(|key| key[..] == last[..]) {
                newest = new.next();
            }
            for source in sources.iter_mut().filter(|source| source.head.as_ref() == Some(&*last)) {
                source.step();
            }
        }
        false
    }

    fn finish(&mut self, mut build: Build) {
        build.end_piece();
        self.runs.truncate(build.from);
        if build.run.terms > 0 {
            self.runs.push(build.run);
        }
        self.retired = std::mem::take(&mut self.frozen);
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
        for run in &self.runs {
            let mut left = limit;
            let first = run.ends.partition_point(|end| **end < *from);
            'run: for piece in &run.pieces[first..] {
                let mut stream = piece.range().ge(&from).into_stream();
                while let Some(key) = stream.next() {
                    if left == 0 || !key.starts_with(&from) {
                        break 'run;
                    }
                    if let Some(id) = live(&key[2..]) {
                        found.push((key[2..].to_vec(), id));
                        left -= 1;
                    }
                }
            }
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
        for piece in self.runs.iter().flat_map(|run| &run.pieces) {
            let mut stream = piece.search_with_state(&automaton).into_stream();
            while let Some((key, state)) = stream.next() {
                if let Some((edits, id)) = automaton.edits(&state).zip(live(&key[2..])) {
                    found.push((edits, key[2..].to_vec(), id));
                }
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
        let runs: usize = self.runs.iter().map(Run::bytes).sum();
        runs + self.recent_bytes + (self.recent.len() + self.frozen.len() + self.retired.len()) * 48
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

    #[test]
    fn what_was_built_goes_a_little_at_a_time() {
        let mut ordered = Ordered::default();
        (0..=RECENT_MAX).for_each(|n| ordered.insert(0, format!("{n:05}").as_bytes()));
        while ordered.retired.is_empty() {
            assert!(ordered.has_work(), "a build ends with what it retires");
            ordered.work(64, |_, _| true);
        }
        assert_eq!((ordered.retired.len(), ordered.runs[0].terms), (RECENT_MAX + 1, RECENT_MAX + 1));
        ordered.work(64, |_, _| true);
        assert_eq!(ordered.retired.len(), RECENT_MAX + 1 - 64, "as many as were asked for");
        while ordered.has_work() {
            ordered.work(64, |_, _| true);
        }
        assert!(ordered.retired.is_empty() && ordered.bytes() < ordered.runs[0].bytes() + 48);
    }

    proptest! {
        #[test]
        fn prefixes_and_neighbours_agree_with_a_scan(
            terms in prop::collection::btree_set("[abé]{1,5}", 0..60), dead in "[abé]{1,5}", word in "[abé]{1,5}", cut in 0usize..60, limit in 1usize..20,
        ) {
            let mut ordered = Ordered { piece_max: limit % 5 + 1, ..Ordered::default() };
            let mut all: Vec<&String> = terms.iter().collect();
            all.sort_by_key(|term| xxhash_rust::xxh3::xxh3_64(term.as_bytes()));
            for (n, term) in all.iter().enumerate() {
                ordered.insert(3, term.as_bytes());
                if n % (cut + 1) == cut {
                    while ordered.build.is_some() {
                        ordered.work(1, |_, _| true);
                    }
                    ordered.build = Some(ordered.begin());
                }
                ordered.insert(2, b"aa");
                if ordered.build.is_some() && n % 3 > 0 {
                    ordered.work(1, |_, _| true);
                }
            }
            prop_assert!(ordered.runs.is_sorted_by(|a, b| a.terms > b.terms), "{:?}", ordered);
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
