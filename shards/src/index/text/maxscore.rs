//! Best documents of a disjunction of terms in one part: block-max MaxScore over windows of documents.
//!
//! In each window the terms are ordered by the most they can add there (the block maxima). Those which together cannot reach
//! the threshold are *non-essential*: a document must hold one of the others to get in. The essential terms' postings are
//! added up in an array, and the others are looked up for the documents that may still get in. A bound equal to the
//! threshold does not rule a document out, for ties go by key. Long queries add everything up without bounds.
//!
//! Source: Turtle and Flood, "Query evaluation: strategies and optimizations" (1995); Ding and Suel, "Faster top-k document
//! retrieval using block-max indexes" (2011).

use super::bitmap::Bitmap;
use super::cursor::{Cursor, END};
use super::dictionary::FieldId;
use super::part::{Lengths, Open};
use super::score::Weigher;
use super::segment::Packed;
use super::top::Top;
use crate::index::{ACCEPT_UNITS, Units};

/// Documents in a window.
const WINDOW: u32 = 4096;
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
#[derive(Clone, Debug)]
pub(crate) struct Sums {
    scores: Vec<i64>,
    touched: Vec<u64>,
}

impl Default for Sums {
    fn default() -> Self {
        Self { scores: vec![0; WINDOW as usize], touched: vec![0; WINDOW as usize / 64] }
    }
}

struct Term<'a> {
    cursor: Cursor<'a>,
    weigher: Weigher,
    lengths: Lengths<'a>,
    norms: &'a [f32],
    /// Most that the term can add in the current window.
    bound: i64,
}

impl Term<'_> {
    #[inline]
    fn contribution(&self) -> i64 {
        contribution(self.weigher, self.lengths, self.norms, self.cursor.document(), self.cursor.frequency())
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
    let norms = open.norms();
    let terms = plan.iter().filter_map(|term| {
        let mut cursor = open.cursor(term.id, false)?;
        cursor.advance(from);
        Some(Term { cursor, weigher: term.weigher, lengths: open.lengths(term.field), norms, bound: 0 })
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
        let end = base.saturating_add(WINDOW).min(open.documents());
        order.clear();
        below.clear();
        let essential = partition(&mut terms, base, end, top.threshold(), &mut order, &mut below);
        units.spend(order.len() as u64 + 8);
        for n in &order[essential..] {
            let term = &mut terms[*n];
            term.cursor.advance(base);
            units.spend(accumulate(term, base, end, sums));
        }
        if essential < order.len() {
            offer(
                &mut terms,
                &order[..essential],
                &below,
                (part, base),
                open,
                dead,
                top,
                sums,
                units,
                accept,
            );
        }
        base = end;
    }
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
        if let Some(bounds) = term.cursor.bounds_until(base, end) {
            term.bound = term.weigher.bound(bounds);
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
    match (weigher, lengths) {
        (Weigher::Cosine { .. }, _) => add_all(cursor, base, end, sums, |document, frequency| {
            weigher.by_norm(frequency, norms.get(document as usize).copied().unwrap_or(0.0))
        }),
        (_, Lengths::Packed(Packed::One(lengths))) => {
            add_all(cursor, base, end, sums, |document, frequency| {
                weigher.by_length(f64::from(frequency), u32::from(lengths[document as usize]))
            })
        }
        (_, Lengths::Packed(Packed::Two(lengths))) => {
            add_all(cursor, base, end, sums, |document, frequency| {
                weigher.by_length(f64::from(frequency), u32::from(lengths[document as usize]))
            })
        }
        _ => add_all(cursor, base, end, sums, |document, frequency| {
            weigher.by_length(f64::from(frequency), lengths.get(document))
        }),
    }
}

#[inline]
fn add_all(
    cursor: &mut Cursor<'_>,
    base: u32,
    end: u32,
    sums: &mut Sums,
    score: impl Fn(u32, u32) -> i64,
) -> u64 {
    let mut count = 0;
    while cursor.document() < end {
        let taken = cursor.take_below(end);
        for (document, frequency) in cursor.taken(taken) {
            let at = (document - base) as usize;
            sums.scores[at] += score(document, frequency);
            sums.touched[at / 64] |= 1 << (at % 64);
        }
        count += taken.len() as u64;
        cursor.pass(taken);
    }
    count
}

/// Completes the sums of a window's documents where that may matter, offers them, and clears the sums.
#[allow(clippy::too_many_arguments)] // As above.
fn offer(
    terms: &mut [Term<'_>],
    others: &[usize],
    below: &[i64],
    (part, base): (u32, u32),
    open: &Open<'_>,
    dead: &Bitmap,
    top: &mut Top,
    sums: &mut Sums,
    units: &mut Units,
    accept: &mut dyn FnMut(&[u8]) -> bool,
) {
    for word in 0..sums.touched.len() {
        let mut bits = std::mem::take(&mut sums.touched[word]);
        while bits != 0 {
            let at = word * 64 + bits.trailing_zeros() as usize;
            bits &= bits - 1;
            let mut score = std::mem::take(&mut sums.scores[at]);
            let document = base + at as u32;
            let threshold = top.threshold();
            let mut possible = true;
            for n in (0..others.len()).rev() {
                if score + below[n] < threshold {
                    possible = false;
                    break;
                }
                let term = &mut terms[others[n]];
                term.cursor.advance(document);
                units.spend(1);
                if term.cursor.document() == document {
                    score += term.contribution();
                }
            }
            if possible && score >= threshold && !dead.contains(document) {
                let key = open.key(document);
                if top.admits(score, key) && {
                    units.spend(ACCEPT_UNITS);
                    accept(key)
                } {
                    top.push(score, key, (part, document));
                }
            }
        }
    }
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
                *score.get_or_insert(0) +=
                    contribution(term.weigher, lengths, norms, *document, cursor.frequency());
            }
        }
    }
    scores
}
