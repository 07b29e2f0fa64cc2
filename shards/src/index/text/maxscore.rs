//! Best documents of a disjunction of terms in one part: block-max MaxScore over windows of documents.
//!
//! In each window the terms are ordered by the most they can add there (the block maxima). Those which together cannot reach
//! the threshold are *non-essential*: a document must hold one of the others to get in. The essential terms' postings are
//! added up in an array, and the others are looked up for the documents that may still get in. A bound equal to the
//! threshold does not rule a document out, for ties go by key. Long queries add everything up without bounds.
//!
//! Where a single term is essential, its postings are judged as they come, and blocks of it that cannot reach the threshold
//! are passed over without being unpacked. Nothing is added up there, so such windows are wide: a block of the term as a whole.
//! Of its documents those that need another term to get in are scored only once that was found. A part whose bounds together do not reach it is not opened at all. A query of one
//! term goes by [`super::single`].
//!
//! Source: Turtle and Flood, "Query evaluation: strategies and optimizations" (1995); Ding and Suel, "Faster top-k document
//! retrieval using block-max indexes" (2011).

use super::cursor::{Cursor, END, Places};
use super::dictionary::FieldId;
use super::offering::Offering;
use super::part::{Lengths, Open};
use super::score::{Sieve, Weigher};
use super::segment::{BLOCK, SHORT_OPEN};
use super::single::{self, Primed};
use crate::index::Units;
use smallvec::SmallVec;

/// Documents in a window at most.
const WINDOW: u32 = 4096;
/// Documents in a window at most in which one term alone is essential: nothing is added up there.
const WIDE: u32 = 64 << 10;
/// Windows that are not tried wide at most, after a wide one had several essential terms.
const PAUSE_MAX: u32 = 16;
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
    lookup: Lookup,
    /// The documents of a window while there is no threshold.
    scored: Vec<(u32, i64)>,
}

/// Documents of at most a block, with their scores so far.
type Scored = SmallVec<[(u32, i64); BLOCK]>;

/// What it takes to look a block of documents up in a list; kept to be used again.
#[derive(Clone, Debug, Default)]
struct Lookup {
    places: Places,
    wanted: Vec<u32>,
    /// Of the documents wanted, in the list that they come from.
    frequencies: Vec<u32>,
    met: Vec<(u32, u32)>,
}

impl Sums {
    /// Forgets what was found of another query's terms.
    pub(super) fn begin(&mut self) {
        self.tables.clear();
    }

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
    /// Most that the term can add anywhere in the part.
    highest: i64,
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

/// Offers a part's documents from `from` on, until the budget is spent; returns where to go on, or [`END`].
pub(super) fn search(
    open: &Open<'_>,
    plan: &[TermPlan],
    from: u32,
    sums: &mut Sums,
    offering: &mut Offering<'_, '_, '_>,
) -> u32 {
    if let ([term], Open::Sealed(segment)) = (plan, open) {
        let Some(list) = segment.postings(term.id) else { return END };
        return single::search(&list, term, from, &mut sums.primed, offering);
    }
    let norms = open.norms();
    sums.tables.resize(plan.len(), ScoreTable::default());
    let terms = plan.iter().enumerate().filter_map(|(number, term)| {
        let mut cursor = open.cursor(term.id, false)?;
        cursor.advance(from);
        let lengths = open.lengths(term.field);
        let highest = term.weigher.bound(&cursor.bounds());
        Some(Term { cursor, weigher: term.weigher, lengths, norms, highest, bound: 0, number })
    });
    let mut terms: Vec<Term<'_>> = terms.collect();
    offering.units.spend(plan.len() as u64 * 8);
    let mut order: Vec<usize> = Vec::with_capacity(terms.len());
    let mut below: Vec<i64> = Vec::with_capacity(terms.len());
    let mut base = from;
    // One window is always done, so that a query whose opening takes the whole budget comes to its end too.
    let mut is_first = true;
    let mut wide = Wide::default();
    loop {
        let first = terms.iter().map(|term| term.cursor.document()).min().unwrap_or(END);
        base = base.max(first);
        if first == END || base >= open.documents() {
            return END;
        }
        if !offering.units.left() && !is_first {
            return base;
        }
        is_first = false;
        let threshold = offering.best.threshold();
        let mut end = wide.end(&mut terms, base, threshold).unwrap_or(0).min(open.documents());
        let mut essential = 0;
        if end > base {
            essential = partition(&mut terms, base, end, threshold, &mut order, &mut below);
            offering.units.spend(order.len() as u64 + u64::from((end - base) / WINDOW));
        }
        if end <= base || !wide.suits(order.len() - essential) {
            end = window_end(&mut terms, base, threshold).min(open.documents());
            essential = partition(&mut terms, base, end, threshold, &mut order, &mut below);
        }
        offering.units.spend(order.len() as u64 + 8);
        let (others, essentials) = order.split_at(essential);
        if let [single] = essentials {
            let below = &below[..others.len().min(below.len())];
            judge_single(&mut terms, *single, others, below, (base, end), &mut sums.lookup, offering);
        } else if !essentials.is_empty() {
            sums.prepare();
            for n in essentials {
                let term = &mut terms[*n];
                term.cursor.advance(base);
                offering.units.spend(accumulate(term, base, end, sums));
            }
            offer_sums(&mut terms, others, &below, base, sums, offering);
        }
        base = end;
    }
}

/// Whether windows are tried that are wider than sums are kept for: where one term alone is essential, a block of it is best
/// taken as a whole.
#[derive(Clone, Copy, Debug, Default)]
struct Wide {
    /// Windows until the next try.
    pause: u32,
    /// Of the next pause.
    next_pause: u32,
}

impl Wide {
    /// Where a wide window ends: with the block of the term that can add most; `None` if none is tried.
    fn end(&mut self, terms: &mut [Term<'_>], base: u32, threshold: i64) -> Option<u32> {
        if threshold == i64::MIN || terms.len() > CUTTING_TERMS_MAX {
            return None;
        }
        if self.pause > 0 {
            self.pause -= 1;
            return None;
        }
        let living = terms.iter_mut().filter(|term| term.cursor.document() != END);
        let lead = living.max_by_key(|term| term.highest)?;
        Some(lead.cursor.block_end(base).clamp(base.saturating_add(WINDOW_MIN), base.saturating_add(WIDE)))
    }

    /// Whether so many essential terms suit it; the next try comes later where they do not.
    fn suits(&mut self, essential: usize) -> bool {
        self.next_pause = if essential > 1 { (self.next_pause * 2).clamp(1, PAUSE_MAX) } else { 0 };
        self.pause = self.next_pause;
        essential <= 1
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

/// The most that a document of a part can score, the least number there is if the part has none of the terms; `None` if the
/// query has too many terms to tell.
pub(crate) fn bound_of(open: &Open<'_>, plan: &[TermPlan]) -> Option<i64> {
    let bounds = plan.iter().filter_map(|term| Some(term.weigher.bound(&open.bounds(term.id)?)));
    let sum = |sum: i64, bound: i64| sum.max(0) + bound;
    (plan.len() <= BOUNDED_TERMS_MAX).then(|| bounds.fold(i64::MIN, sum))
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
    order.clear();
    below.clear();
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
            (_, Lengths::Sealed(short, _)) if by_length.len() == TABLE_LENGTHS as usize => {
                for (document, frequency) in cursor.taken(taken) {
                    let length = short[document as usize];
                    let score = match frequency {
                        1 if length < SHORT_OPEN => by_length[usize::from(length)],
                        _ => weigher.by_length(f64::from(frequency), lengths.get(document)),
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

/// Completes the scores of at most a block of documents, which rise, with the terms that may still count, and offers those that
/// reach the threshold. The lists meet a whole block at once: looked up one by one, documents would cost several times as much.
fn complete(
    scored: &mut Scored,
    terms: &mut [Term<'_>],
    others: &[usize],
    below: &[i64],
    meeting: &mut Lookup,
    offering: &mut Offering<'_, '_, '_>,
) {
    let Lookup { places, wanted, met, .. } = meeting;
    for n in (0..others.len()).rev() {
        let needed = offering.best.threshold().saturating_sub(below[n]);
        scored.retain(|(_, score)| *score >= needed);
        if scored.is_empty() {
            return;
        }
        wanted.clear();
        wanted.extend(scored.iter().map(|(document, _)| *document));
        met.clear();
        let term = &mut terms[others[n]];
        term.cursor.meet(wanted, places, met);
        offering.units.spend(wanted.len() as u64 / 2 + met.len() as u64 + 4);
        for (at, frequency) in met.iter() {
            let (document, score) = &mut scored[*at as usize];
            *score += contribution(term.weigher, term.lengths, term.norms, *document, *frequency);
        }
    }
    let threshold = offering.best.threshold();
    for (document, score) in scored.iter().filter(|(_, score)| *score >= threshold) {
        offering.offer_whole(*document, *score);
    }
}

/// Offers the documents of a window in which one term alone is essential, block by block.
fn judge_single(
    terms: &mut [Term<'_>],
    single: usize,
    others: &[usize],
    below: &[i64],
    (base, end): (u32, u32),
    lookup: &mut Lookup,
    offering: &mut Offering<'_, '_, '_>,
) {
    let mut sieve = Sieve::new(terms[single].weigher);
    let mut alone = Sieve::new(terms[single].weigher);
    let rest = below.last().copied().unwrap_or(0);
    terms[single].cursor.advance(base);
    let mut scored = Scored::new();
    let mut passed = [0; BLOCK];
    loop {
        let term = &mut terms[single];
        let document = term.cursor.document();
        if document >= end {
            return;
        }
        let threshold = offering.best.threshold();
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
        let count = sieve.pass(documents, frequencies, lengths, &mut passed);
        let places = passed[..count].iter().map(|n| usize::from(*n));
        let Some((first, fewer)) = others.split_last() else {
            for n in places {
                let score = contribution(weigher, lengths, norms, documents[n], frequencies[n]);
                if score >= needed {
                    scored.push((documents[n], score));
                }
            }
            term.cursor.pass(taken);
            if threshold == i64::MIN {
                offering.offer_best_first(&mut scored);
            } else {
                complete(&mut scored, terms, &[], below, lookup, offering);
            }
            continue;
        };
        // Of the documents that may get in with the others' help, most do not have it: these are scored only where they may get
        // in without.
        let Lookup { places: table, wanted, frequencies: own, met } = lookup;
        wanted.clear();
        own.clear();
        for n in places {
            wanted.push(documents[n]);
            own.push(frequencies[n]);
        }
        term.cursor.pass(taken);
        let needed = threshold.saturating_sub(fewer.len().checked_sub(1).map_or(0, |n| below[n]));
        met.clear();
        let other = &mut terms[*first];
        other.cursor.meet(wanted, table, met);
        offering.units.spend(wanted.len() as u64 / 2 + met.len() as u64 + 4);
        alone.need(needed);
        let mut met = met.iter().peekable();
        for ((at, document), frequency) in (0..).zip(&*wanted).zip(&*own) {
            let more = match met.next_if(|(place, _)| *place == at) {
                Some((_, more)) => contribution(other.weigher, other.lengths, other.norms, *document, *more),
                None if alone.may(*document, *frequency, lengths) => 0,
                None => continue,
            };
            let score = contribution(weigher, lengths, norms, *document, *frequency) + more;
            if score >= needed {
                scored.push((*document, score));
            }
        }
        complete(&mut scored, terms, fewer, below, lookup, offering);
    }
}

/// Completes the sums of a window's documents where that may matter, offers them, and clears the sums.
fn offer_sums(
    terms: &mut [Term<'_>],
    others: &[usize],
    below: &[i64],
    base: u32,
    sums: &mut Sums,
    offering: &mut Offering<'_, '_, '_>,
) {
    let Sums { touched, scores, scored, lookup, .. } = sums;
    let is_open = offering.best.threshold() == i64::MIN && others.is_empty();
    let rest = below[..others.len().min(below.len())].last().copied().unwrap_or(0);
    let mut possible = Scored::new();
    for (word, bits) in touched.iter_mut().enumerate() {
        let mut bits = std::mem::take(bits);
        while bits != 0 {
            let at = word * 64 + bits.trailing_zeros() as usize;
            bits &= bits - 1;
            let score = std::mem::take(&mut scores[at]);
            if is_open {
                scored.push((base + at as u32, score));
            } else if score >= offering.best.threshold().saturating_sub(rest) {
                possible.push((base + at as u32, score));
            }
        }
        // A word has half as many documents as a block.
        if possible.len() > BLOCK / 2 {
            complete(&mut possible, terms, others, below, lookup, offering);
            possible.clear();
        }
    }
    complete(&mut possible, terms, others, below, lookup, offering);
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
