//! Best documents of a disjunction of terms in one part: block-max MaxScore over windows of documents.
//!
//! In each window the terms are ordered by the most they can add there (the block maxima). Those which together cannot reach
//! the threshold are *non-essential*: a document must hold one of the others to get in. The essential terms' postings are
//! added up in an array, and the others are looked up for the documents that may still get in. A bound equal to the
//! threshold does not rule a document out, for ties go by key. Long queries add everything up without bounds.
//!
//! Where a single term is essential, its postings are judged as they come, and blocks of it that cannot reach the threshold
//! are passed over without being unpacked. A part whose bounds together do not reach it is not opened at all. A query of one
//! term goes by [`super::single`].
//!
//! Source: Turtle and Flood, "Query evaluation: strategies and optimizations" (1995); Ding and Suel, "Faster top-k document
//! retrieval using block-max indexes" (2011).

use super::bitmap::Bitmap;
use super::cursor::{Cursor, END};
use super::dictionary::FieldId;
use super::part::{Lengths, Open};
use super::score::{Sieve, Weigher};
use super::segment::{BLOCK, Packed};
use super::single::{self, Primed};
use super::top::Top;
use crate::index::{ACCEPT_UNITS, Units};
use smallvec::SmallVec;

/// Documents in a window at most.
const WINDOW: u32 = 4096;
/// Windows end where a block does, so that the bounds of one block are those of the window; but not before so many documents.
const WINDOW_MIN: u32 = 1024;
/// Queries with more terms would have their windows cut into too many pieces.
const CUTTING_TERMS_MAX: usize = 4;
/// Queries with more terms are added up without bounds: sorting the terms would cost more than it saves.
const BOUNDED_TERMS_MAX: usize = 64;

/// A term of the query on this shard.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TermPlan {
    pub(crate) id: u32,
    pub(crate) field: FieldId,
    pub(crate) weigher: Weigher,
}

/// Sums of one window, to be used again; zero between windows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sums {
    scores: Vec<i64>,
    touched: Vec<u64>,
    tables: Vec<ScoreTable>,
    primed: Primed,
    /// The documents of a window while there is no threshold.
    scored: Vec<(u32, i64)>,
}

impl Sums {
    fn prepare(&mut self) {
        if self.scores.is_empty() {
            self.scores.resize(WINDOW as usize, 0);
            self.touched.resize(WINDOW as usize / 64, 0);
        }
    }
}

/// What a term adds to documents that hold it once, by their length. Most postings are such, and looking up is cheaper than
/// dividing.
#[derive(Clone, Debug, Default)]
struct ScoreTable {
    /// Empty until so many postings have been seen that filling it is worth it.
    by_length: Vec<i64>,
    seen: u64,
}

/// Lengths that fit a byte.
const TABLE_LENGTHS: u32 = 256;

impl ScoreTable {
    /// The scores by length, or nothing while too few postings have been seen.
    fn after(&mut self, postings: u64, weigher: Weigher) -> &[i64] {
        self.seen += postings;
        if self.by_length.is_empty() && self.seen > u64::from(TABLE_LENGTHS) * 4 && !weigher.is_cosine() {
            self.by_length.extend((0..TABLE_LENGTHS).map(|length| weigher.by_length(1.0, length)));
        }
        &self.by_length
    }
}

struct Term<'a> {
    cursor: Cursor<'a>,
    weigher: Weigher,
    lengths: Lengths<'a>,
    norms: &'a [f32],
    /// Most that the term can add in the current window.
    bound: i64,
    /// Position in the plan.
    number: usize,
}

impl Term<'_> {
    /// The first document from `document` on whose block can add `needed`; `end` if there is none below it.
    fn first_possible(&mut self, mut document: u32, end: u32, needed: i64, units: &mut Units) -> u32 {
        while document < end {
            units.spend(1);
            let (last, bounds) = self.cursor.block_bounds(document);
            if self.weigher.bound(&bounds) >= needed {
                return document;
            }
            document = last + 1;
        }
        end
    }

    #[inline]
    fn contribution(&mut self) -> i64 {
        let frequency = self.cursor.frequency();
        contribution(self.weigher, self.lengths, self.norms, self.cursor.document(), frequency)
    }
}

/// What a term adds to a document.
#[inline]
pub(crate) fn contribution(
    weigher: Weigher,
    lengths: Lengths<'_>,
    norms: &[f32],
    document: u32,
    frequency: u32,
) -> i64 {
    if weigher.is_cosine() {
        weigher.by_norm(frequency, norms.get(document as usize).copied().unwrap_or(0.0))
    } else {
        weigher.by_length(f64::from(frequency), lengths.get(document))
    }
}

/// Offers a part's documents from `from` on to `top`, until the budget is spent; returns where to go on, or [`END`].
#[allow(clippy::too_many_arguments)] // One call; a struct of these would be taken apart at once.
pub(crate) fn search(
    open: &Open<'_>,
    dead: &Bitmap,
    plan: &[TermPlan],
    (part, from): (u32, u32),
    top: &mut Top,
    sums: &mut Sums,
    units: &mut Units,
    accept: &mut dyn FnMut(&[u8]) -> bool,
) -> u32 {
    if bound_of(open, plan).is_some_and(|bound| bound < top.threshold()) {
        units.spend(plan.len() as u64 * 2 + 1);
        return END;
    }
    if let ([term], Open::Sealed(segment)) = (plan, open) {
        let Some(list) = segment.postings(term.id) else { return END };
        let mut offering = Offering { part, open, dead, top, units, accept };
        return single::search(&list, term, from, &mut sums.primed, &mut offering);
    }
    let norms = open.norms();
    sums.tables.resize(plan.len(), ScoreTable::default());
    let terms = plan.iter().enumerate().filter_map(|(number, term)| {
        let mut cursor = open.cursor(term.id, false)?;
        cursor.advance(from);
        let lengths = open.lengths(term.field);
        Some(Term { cursor, weigher: term.weigher, lengths, norms, bound: 0, number })
    });
    let mut terms: Vec<Term<'_>> = terms.collect();
    units.spend(plan.len() as u64 * 8);
    let mut order: Vec<usize> = Vec::with_capacity(terms.len());
    let mut below: Vec<i64> = Vec::with_capacity(terms.len());
    let mut base = from;
    // One window is always done, so that a query whose opening takes the whole budget comes to its end too.
    let mut is_first = true;
    loop {
        let first = terms.iter().map(|term| term.cursor.document()).min().unwrap_or(END);
        base = base.max(first);
        if first == END || base >= open.documents() {
            return END;
        }
        if !units.left() && !is_first {
            return base;
        }
        is_first = false;
        let end = window_end(&mut terms, base, top.threshold()).min(open.documents());
        order.clear();
        below.clear();
        let essential = partition(&mut terms, base, end, top.threshold(), &mut order, &mut below);
        units.spend(order.len() as u64 + 8);
        let mut offering =
            Offering { part, open, dead, top: &mut *top, units: &mut *units, accept: &mut *accept };
        let (others, essentials) = order.split_at(essential);
        if let [single] = essentials {
            let below = &below[..others.len().min(below.len())];
            judge_single(&mut terms, *single, others, below, (base, end), &mut offering);
        } else if !essentials.is_empty() {
            sums.prepare();
            for n in essentials {
                let term = &mut terms[*n];
                term.cursor.advance(base);
                offering.units.spend(accumulate(term, base, end, sums));
            }
            offer_sums(&mut terms, others, &below, base, sums, &mut offering);
        }
        base = end;
    }
}

/// Where the window that begins with `base` ends.
fn window_end(terms: &mut [Term<'_>], base: u32, threshold: i64) -> u32 {
    let mut end = base.saturating_add(WINDOW);
    if threshold > i64::MIN && terms.len() <= CUTTING_TERMS_MAX {
        for term in terms.iter_mut() {
            if term.cursor.document() < end {
                end = end.min(term.cursor.block_end(base).max(base.saturating_add(WINDOW_MIN)));
            }
        }
    }
    end
}

/// The most that a document of a part can score; `None` if the query has too many terms to tell.
pub(crate) fn bound_of(open: &Open<'_>, plan: &[TermPlan]) -> Option<i64> {
    let bound = |term: &TermPlan| open.bounds(term.id).map_or(0, |bounds| term.weigher.bound(&bounds));
    (plan.len() <= BOUNDED_TERMS_MAX).then(|| plan.iter().map(bound).sum())
}

/// Orders the terms of a window by bound; returns the number of non-essential ones. `below[n]` is the most that the first
/// `n + 1` can add together.
fn partition(
    terms: &mut [Term<'_>],
    base: u32,
    end: u32,
    threshold: i64,
    order: &mut Vec<usize>,
    below: &mut Vec<i64>,
) -> usize {
    if threshold == i64::MIN || terms.len() > BOUNDED_TERMS_MAX {
        order.extend((0..terms.len()).filter(|n| terms[*n].cursor.document() < end));
        return 0;
    }
    for (n, term) in terms.iter_mut().enumerate() {
        if let Some(bound) = term.cursor.bound_until(base, end, term.weigher) {
            term.bound = bound;
            order.push(n);
        }
    }
    order.sort_unstable_by_key(|n| (terms[*n].bound, *n));
    let mut sum = 0;
    let mut essential = 0;
    for n in order.iter() {
        sum += terms[*n].bound;
        below.push(sum);
        essential += usize::from(sum < threshold);
    }
    essential
}

/// Adds a term's postings below `end` to the sums; returns how many there were.
fn accumulate(term: &mut Term<'_>, base: u32, end: u32, sums: &mut Sums) -> u64 {
    let (weigher, lengths, norms) = (term.weigher, term.lengths, term.norms);
    let cursor = &mut term.cursor;
    let Sums { scores, touched, tables, .. } = sums;
    let table = &mut tables[term.number];
    let mut count = 0;
    while cursor.document() < end {
        let taken = cursor.take_below(end);
        count += taken.len() as u64;
        let by_length = table.after(taken.len() as u64, weigher);
        let mut add = |document: u32, score: i64| {
            let at = (document - base) as usize;
            scores[at] += score;
            touched[at / 64] |= 1 << (at % 64);
        };
        match (weigher, lengths) {
            (Weigher::Cosine { .. }, _) => {
                for (document, frequency) in cursor.taken(taken) {
                    add(document, contribution(weigher, lengths, norms, document, frequency));
                }
            }
            (_, Lengths::Packed(Packed::One(lengths))) if by_length.len() == TABLE_LENGTHS as usize => {
                for (document, frequency) in cursor.taken(taken) {
                    let length = lengths[document as usize];
                    let score = match frequency {
                        1 => by_length[usize::from(length)],
                        _ => weigher.by_length(f64::from(frequency), u32::from(length)),
                    };
                    add(document, score);
                }
            }
            _ => {
                for (document, frequency) in cursor.taken(taken) {
                    add(document, weigher.by_length(f64::from(frequency), lengths.get(document)));
                }
            }
        }
        cursor.pass(taken);
    }
    count
}

/// Where hits go, and what they are judged by.
pub(super) struct Offering<'a, 'o> {
    pub(super) part: u32,
    pub(super) open: &'a Open<'o>,
    pub(super) dead: &'a Bitmap,
    pub(super) top: &'a mut Top,
    pub(super) units: &'a mut Units,
    pub(super) accept: &'a mut dyn FnMut(&[u8]) -> bool,
}

impl Offering<'_, '_> {
    /// Completes a document's score with the terms that may still count, and offers it.
    #[inline]
    fn offer(
        &mut self,
        document: u32,
        mut score: i64,
        terms: &mut [Term<'_>],
        others: &[usize],
        below: &[i64],
    ) {
        let threshold = self.top.threshold();
        for n in (0..others.len()).rev() {
            if score + below[n] < threshold {
                return;
            }
            let term = &mut terms[others[n]];
            term.cursor.advance(document);
            self.units.spend(1);
            if term.cursor.document() == document {
                score += term.contribution();
            }
        }
        self.offer_whole(document, score);
    }

    /// Offers documents whose scores are complete, the best of them first: while there is no threshold, each hit that comes
    /// and is pushed out again costs a look at its key.
    pub(super) fn offer_best_first(&mut self, scored: &mut [(u32, i64)]) {
        let limit = self.top.limit();
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
        if score < self.top.threshold() || self.dead.contains(document) {
            return;
        }
        let key = self.open.key(document);
        if self.top.admits(score, key) && {
            self.units.spend(ACCEPT_UNITS);
            (self.accept)(key)
        } {
            self.top.push(score, key, (self.part, document));
        }
    }
}

/// Offers the documents of a window in which one term alone is essential, block by block.
fn judge_single(
    terms: &mut [Term<'_>],
    single: usize,
    others: &[usize],
    below: &[i64],
    (base, end): (u32, u32),
    offering: &mut Offering<'_, '_>,
) {
    let mut sieve = Sieve::new(terms[single].weigher);
    let rest = below.last().copied().unwrap_or(0);
    terms[single].cursor.advance(base);
    let mut scored: SmallVec<[(u32, i64); BLOCK]> = SmallVec::new();
    loop {
        let term = &mut terms[single];
        let document = term.cursor.document();
        if document >= end {
            return;
        }
        let threshold = offering.top.threshold();
        let from = term.first_possible(document, end, threshold.saturating_sub(rest), offering.units);
        if from >= end {
            // The cursor stays behind: nothing is unpacked that the next window may pass over too.
            return;
        }
        if from > document {
            term.cursor.advance(from);
            continue;
        }
        let taken = term.cursor.take_below(end);
        offering.units.spend(taken.len() as u64);
        let (weigher, lengths, norms) = (term.weigher, term.lengths, term.norms);
        scored.clear();
        let needed = threshold.saturating_sub(rest);
        sieve.need(needed);
        let (documents, frequencies) = term.cursor.run(taken);
        sieve.pass(documents, frequencies, lengths, |document, frequency| {
            let score = contribution(weigher, lengths, norms, document, frequency);
            if score >= needed {
                scored.push((document, score));
            }
        });
        term.cursor.pass(taken);
        if others.is_empty() && threshold == i64::MIN {
            offering.offer_best_first(&mut scored);
            continue;
        }
        for (document, score) in &scored {
            offering.offer(*document, *score, terms, others, below);
        }
    }
}

/// Completes the sums of a window's documents where that may matter, offers them, and clears the sums.
fn offer_sums(
    terms: &mut [Term<'_>],
    others: &[usize],
    below: &[i64],
    base: u32,
    sums: &mut Sums,
    offering: &mut Offering<'_, '_>,
) {
    let Sums { touched, scores, scored, .. } = sums;
    let is_open = offering.top.threshold() == i64::MIN && others.is_empty();
    for (word, bits) in touched.iter_mut().enumerate() {
        let mut bits = std::mem::take(bits);
        while bits != 0 {
            let at = word * 64 + bits.trailing_zeros() as usize;
            bits &= bits - 1;
            let score = std::mem::take(&mut scores[at]);
            if is_open {
                scored.push((base + at as u32, score));
            } else {
                offering.offer(base + at as u32, score, terms, others, below);
            }
        }
    }
    offering.offer_best_first(scored);
    scored.clear();
}

/// The scores of documents given in ascending order; `None` where no term matches.
pub(crate) fn score_documents(open: &Open<'_>, plan: &[TermPlan], documents: &[u32]) -> Vec<Option<i64>> {
    let mut scores = vec![None; documents.len()];
    for term in plan {
        let Some(mut cursor) = open.cursor(term.id, false) else { continue };
        let (lengths, norms) = (open.lengths(term.field), open.norms());
        for (score, document) in scores.iter_mut().zip(documents) {
            cursor.advance(*document);
            if cursor.document() == *document {
                let frequency = cursor.frequency();
                *score.get_or_insert(0) += contribution(term.weigher, lengths, norms, *document, frequency);
            }
        }
    }
    scores
}
