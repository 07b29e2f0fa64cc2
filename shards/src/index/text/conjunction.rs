//! Queries that ask for every one of some terms and phrases: the rarest list leads, the others are looked up.
//!
//! Over each block of the leader the block maxima bound what any document there can score; a range that cannot reach the
//! threshold is passed over without being unpacked, and so are the positions of a document whose frequencies alone rule it
//! out. A bound equal to the threshold does not rule a document out, for ties go by key. Scores are those of
//! [`super::boolean`], which takes every query that is not of this form.

use super::bitmap::Bitmap;
use super::boolean::Plan;
use super::bounds::{ANY_BOUNDS, Bounds, CLASSES, NO_BOUNDS};
use super::cursor::{Cursor, END};
use super::dictionary::FieldId;
use super::maxscore::{TermPlan, contribution};
use super::part::{Lengths, Open};
use super::phrase::Occurrences;
use super::score::Weigher;
use super::top::Top;
use crate::index::{ACCEPT_UNITS, Units};

/// What every hit holds, and what goes beside it.
#[derive(Clone, Debug)]
pub(crate) struct Conjunction {
    required: Vec<Required>,
    phrases: Vec<PhrasePlan>,
    optional: Vec<TermPlan>,
    excluded: Vec<TermPlan>,
}

#[derive(Clone, Copy, Debug)]
struct Required {
    id: u32,
    field: FieldId,
    /// `None` for a term that counts only as part of a phrase.
    weigher: Option<Weigher>,
    wants_positions: bool,
}

#[derive(Clone, Debug)]
struct PhrasePlan {
    /// Positions among the required terms, and places in the phrase.
    terms: Vec<(usize, u32)>,
    slop: u32,
    field: FieldId,
    weigher: Weigher,
}

impl Conjunction {
    /// The plan in this form, if it has it: required terms and phrases, optional and excluded terms.
    pub(crate) fn of(plan: &Plan) -> Option<Self> {
        let single = std::slice::from_ref(plan);
        let (must, should, must_not) = match plan {
            Plan::Bool { must, should, must_not } if must.is_empty() && should.len() == 1 => {
                (&should[..], &[][..], &must_not[..])
            }
            Plan::Bool { must, should, must_not } => (&must[..], &should[..], &must_not[..]),
            _ => (single, &[][..], &[][..]),
        };
        let mut made = Self {
            required: Vec::new(),
            phrases: Vec::new(),
            optional: terms(should)?,
            excluded: terms(must_not)?,
        };
        for clause in must {
            match clause {
                Plan::Term(term) => made.required.push(Required {
                    id: term.id,
                    field: term.field,
                    weigher: Some(term.weigher),
                    wants_positions: false,
                }),
                Plan::Phrase { terms, slop, field, weigher } => {
                    made.add_phrase(terms, *slop, *field, *weigher);
                }
                _ => return None,
            }
        }
        (!made.required.is_empty()).then_some(made)
    }

    fn add_phrase(&mut self, terms: &[(u32, u32)], slop: u32, field: FieldId, weigher: Weigher) {
        let first = self.required.len();
        let mut places = Vec::with_capacity(terms.len());
        for (id, offset) in terms {
            let known = self.required[first..].iter().position(|required| required.id == *id);
            let at = known.map_or(self.required.len(), |known| first + known);
            if known.is_none() {
                self.required.push(Required { id: *id, field, weigher: None, wants_positions: true });
            }
            places.push((at, *offset));
        }
        self.phrases.push(PhrasePlan { terms: places, slop, field, weigher });
    }
}

/// Clauses that are terms, or cannot match; `None` if there is another.
fn terms(clauses: &[Plan]) -> Option<Vec<TermPlan>> {
    let term = |clause: &Plan| match clause {
        Plan::Term(term) => Some(Some(*term)),
        Plan::Nothing => Some(None),
        _ => None,
    };
    clauses
        .iter()
        .map(term)
        .collect::<Option<Vec<Option<TermPlan>>>>()
        .map(|terms| terms.into_iter().flatten().collect())
}

/// A term opened on a part.
struct Leg<'a> {
    cursor: Cursor<'a>,
    weigher: Option<Weigher>,
    lengths: Lengths<'a>,
    /// Over the range that is looked at.
    bounds: Bounds,
}

/// A phrase opened on a part.
struct Words<'a, 'p> {
    plan: &'p PhrasePlan,
    lengths: Lengths<'a>,
    occurrences: Occurrences,
}

struct Opened<'a, 'p> {
    required: Vec<Leg<'a>>,
    /// Positions of the required terms, rarest first.
    order: Vec<usize>,
    phrases: Vec<Words<'a, 'p>>,
    optional: Vec<Leg<'a>>,
    excluded: Vec<Cursor<'a>>,
    norms: &'a [f32],
    /// Most that the optional terms can add.
    optional_bound: i64,
}

/// Offers a part's documents from `from` on to `top`, until the budget is spent; returns where to go on, or [`END`].
#[allow(clippy::too_many_arguments)] // One call; a struct of these would be taken apart at once.
pub(crate) fn search(
    open: &Open<'_>,
    dead: &Bitmap,
    plan: &Conjunction,
    (part, from): (u32, u32),
    top: &mut Top,
    units: &mut Units,
    accept: &mut dyn FnMut(&[u8]) -> bool,
) -> u32 {
    units.spend(plan.required.len() as u64 * 8);
    let Some(mut opened) = Opened::new(plan, open, from) else { return END };
    let mut bounded_to = 0;
    // One document is always looked at, so that a query whose opening takes the whole budget comes to its end too.
    let mut is_first = true;
    loop {
        let document = opened.document();
        if document >= open.documents() {
            return END;
        }
        if !units.left() && !is_first {
            return document;
        }
        is_first = false;
        units.spend(plan.required.len() as u64 * 2);
        let threshold = top.threshold();
        if threshold > i64::MIN && document >= bounded_to {
            // Ranges that cannot get in are passed over by their bounds alone: nothing of them is unpacked.
            let mut possible = document;
            loop {
                let (end, bound) = opened.bound_from(possible);
                bounded_to = end;
                if bound >= threshold || end >= open.documents() {
                    possible = if bound >= threshold { possible } else { END };
                    break;
                }
                units.spend(plan.required.len() as u64);
                possible = end;
            }
            if possible > document {
                opened.lead_to(possible);
                continue;
            }
        }
        if let Some(further) = opened.disagreement(document) {
            opened.lead_to(further);
            continue;
        }
        if !dead.contains(document)
            && let Some(score) = opened.score(document, threshold, units)
            && score >= threshold
        {
            let key = open.key(document);
            if top.admits(score, key) && {
                units.spend(ACCEPT_UNITS);
                accept(key)
            } {
                top.push(score, key, (part, document));
            }
        }
        opened.lead_to(document + 1);
    }
}

impl<'a, 'p> Opened<'a, 'p> {
    /// `None` if a required term is not in the part.
    fn new(plan: &'p Conjunction, open: &'a Open<'_>, from: u32) -> Option<Self> {
        let leg = |id: u32, field: FieldId, weigher: Option<Weigher>, wants_positions: bool| {
            let cursor = open.cursor(id, wants_positions)?;
            Some(Leg { cursor, weigher, lengths: open.lengths(field), bounds: ANY_BOUNDS })
        };
        let required =
            plan.required.iter().map(|term| leg(term.id, term.field, term.weigher, term.wants_positions));
        let required = required.collect::<Option<Vec<Leg<'a>>>>()?;
        let mut order: Vec<usize> = (0..required.len()).collect();
        order.sort_by_key(|n| required[*n].cursor.count());
        let optional: Vec<Leg<'a>> = plan
            .optional
            .iter()
            .filter_map(|term| leg(term.id, term.field, Some(term.weigher), false))
            .collect();
        let phrases = plan.phrases.iter().map(|plan| Words {
            plan,
            lengths: open.lengths(plan.field),
            occurrences: Occurrences::new(plan.terms.len()),
        });
        let mut opened = Self {
            order,
            phrases: phrases.collect(),
            optional_bound: optional
                .iter()
                .filter_map(|leg| leg.weigher)
                .map(|weigher| weigher.bound(ANY_BOUNDS))
                .sum(),
            optional,
            excluded: plan.excluded.iter().filter_map(|term| open.cursor(term.id, false)).collect(),
            norms: open.norms(),
            required,
        };
        opened.lead_to(from);
        Some(opened)
    }

    /// The document that the leader stands on.
    fn document(&self) -> u32 {
        self.required[self.order[0]].cursor.document()
    }

    fn lead_to(&mut self, document: u32) {
        let leader = self.order[0];
        self.required[leader].cursor.advance(document);
    }

    /// The end of a range that begins with `document`, and the most that any document in it can score.
    fn bound_from(&mut self, document: u32) -> (u32, i64) {
        let leader = self.order[0];
        let (last, bounds) = self.required[leader].cursor.block_bounds(document);
        let end = last + 1;
        self.required[leader].bounds = bounds;
        let mut sum = self.optional_bound;
        for n in &self.order[1..] {
            let leg = &mut self.required[*n];
            match leg.cursor.bounds_until(document, end) {
                Some(bounds) => leg.bounds = bounds,
                // The next posting of the term lies behind the range.
                None => return (end, i64::MIN),
            }
        }
        for leg in &self.required {
            sum += leg.weigher.map_or(0, |weigher| weigher.bound(leg.bounds));
        }
        for words in &self.phrases {
            let of = |(at, _): &(usize, u32)| self.required[*at].bounds;
            sum += words.plan.bound(words.plan.terms.iter().map(of));
        }
        (end, sum)
    }

    /// Brings the other required terms to `document`; the document that one of them stands on instead, if it does.
    fn disagreement(&mut self, document: u32) -> Option<u32> {
        for n in &self.order[1..] {
            let cursor = &mut self.required[*n].cursor;
            cursor.advance(document);
            if cursor.document() > document {
                return Some(cursor.document());
            }
        }
        None
    }

    /// The score of the document that all required terms stand on; `None` if it is no hit or cannot reach `threshold`.
    fn score(&mut self, document: u32, threshold: i64, units: &mut Units) -> Option<i64> {
        let mut score = 0;
        for leg in &mut self.required {
            if let Some(weigher) = leg.weigher {
                score += contribution(weigher, leg.lengths, self.norms, document, leg.cursor.frequency());
            }
        }
        let Self { required, phrases, .. } = self;
        let mut possible = self.optional_bound;
        for words in phrases.iter() {
            let length = words.lengths.get(document);
            let of =
                |(at, _): &(usize, u32)| Bounds::of(required[*at].cursor.frequency(), length, f32::INFINITY);
            possible += words.plan.bound(words.plan.terms.iter().map(of));
        }
        if score + possible < threshold {
            return None;
        }
        for cursor in &mut self.excluded {
            cursor.advance(document);
            if cursor.document() == document {
                return None;
            }
        }
        for words in phrases {
            for (n, (at, offset)) in words.plan.terms.iter().enumerate() {
                words.occurrences.read(n, &mut required[*at].cursor, *offset);
                units.spend(1 + u64::from(required[*at].cursor.frequency()) / 4);
            }
            let frequency = words.occurrences.frequency(words.plan.slop);
            if frequency == 0.0 {
                return None;
            }
            score += words.plan.weigher.by_length(frequency, words.lengths.get(document));
        }
        for leg in &mut self.optional {
            leg.cursor.advance(document);
            if let Some(weigher) = leg.weigher.filter(|_| leg.cursor.document() == document) {
                score += contribution(weigher, leg.lengths, self.norms, document, leg.cursor.frequency());
            }
        }
        Some(score)
    }
}

impl PhrasePlan {
    /// The most that the phrase can add where its terms have these bounds.
    fn bound(&self, terms: impl Iterator<Item = Bounds>) -> i64 {
        let (mut least, mut sum) = (u32::MAX, 0u32);
        // A phrase stands in a document no more often than its rarest term, so a class of the phrase takes in that class
        // of each term and those above it.
        let mut lengths_min = [0; CLASSES];
        for bounds in terms {
            least = least.min(bounds.frequency_max);
            sum = sum.saturating_add(bounds.frequency_max);
            for (class, length) in lengths_min.iter_mut().enumerate() {
                *length = (*length).max(bounds.length_from(class));
            }
        }
        if self.slop > 0 {
            // A sloppy match may share all positions but the one that moves on.
            return self.weigher.bound(Bounds {
                frequency_max: sum,
                lengths_min: [lengths_min[0]; CLASSES],
                ..NO_BOUNDS
            });
        }
        self.weigher.bound(Bounds { frequency_max: least, lengths_min, ..NO_BOUNDS })
    }
}
