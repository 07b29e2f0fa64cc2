//! Queries that ask for every one of some terms and phrases: the rarest list leads, the others are looked up.
//!
//! Over each block of the leader the block maxima bound what any document there can score; a range that cannot reach the
//! threshold is passed over without being unpacked, and so are the positions of a document whose frequencies alone rule it
//! out. A bound equal to the threshold does not rule a document out, for ties go by key. Without phrases a whole block of
//! the leader meets the other lists at once. Scores are those of [`super::boolean`], which takes every query that is not of
//! this form.

use super::boolean::Plan;
use super::bounds::{ANY_BOUNDS, Bounds, NO_BOUNDS, Pair};
use super::cursor::{Cursor, END, Places};
use super::dictionary::FieldId;
use super::maxscore::{TermPlan, contribution};
use super::offering::Offering;
use super::part::{Lengths, Open};
use super::phrase::Occurrences;
use super::score::{PairSieve, Weigher};
use super::segment::BLOCK;
use crate::index::Units;
use smallvec::SmallVec;

/// Phrases of more terms are bounded by their highest frequency and least length alone.
const FINE_TERMS_MAX: usize = 8;

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

    /// Whether two terms of one field are all that counts.
    fn is_pair(&self) -> bool {
        let &[first, second] = &self.required[..] else { return false };
        first.field == second.field && self.phrases.is_empty() && self.optional.is_empty()
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
    /// `None` for a term that counts only as part of a phrase.
    weigher: Option<Weigher>,
    lengths: Lengths<'a>,
    /// Over the range that is looked at, for a term of a phrase.
    bounds: Bounds,
}

/// Documents of a block of the leader that the other lists have met so far; kept to be used again.
#[derive(Clone, Debug, Default)]
pub(super) struct Meeting {
    places: Places,
    documents: Vec<u32>,
    frequencies: Vec<u32>,
    scores: Vec<i64>,
    met: Vec<(u32, u32)>,
    /// For two terms of one field, and nothing else that counts: which documents need not be scored.
    sieve: Option<PairSieve>,
}

impl Meeting {
    /// Forgets what was found of another query's terms.
    pub(super) fn begin(&mut self) {
        self.sieve = None;
    }
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
    /// The end of the range whose bound was found last.
    bounded_to: u32,
}

/// Offers a part's documents from `from` on, until the budget is spent; returns where to go on, or [`END`].
pub(super) fn search(
    open: &Open<'_>,
    plan: &Conjunction,
    from: u32,
    meeting: &mut Meeting,
    offering: &mut Offering<'_, '_, '_>,
) -> u32 {
    offering.units.spend(plan.required.len() as u64 * 8);
    let Some(mut opened) = Opened::new(plan, open, from) else { return END };
    if plan.is_pair() && meeting.sieve.is_none() {
        let weigher = |n: usize| plan.required[n].weigher;
        meeting.sieve =
            weigher(0).zip(weigher(1)).and_then(|(first, second)| PairSieve::new([first, second]));
    }
    match plan.phrases.is_empty() {
        true => search_blocks(&mut opened, meeting, offering),
        false => search_documents(&mut opened, offering),
    }
}

/// Goes from block to block of the leader; for plans without phrases.
fn search_blocks(
    opened: &mut Opened<'_, '_>,
    meeting: &mut Meeting,
    offering: &mut Offering<'_, '_, '_>,
) -> u32 {
    // One block is always looked at, so that a query whose opening takes the whole budget comes to its end too.
    let mut is_first = true;
    loop {
        let document = opened.document();
        if document >= offering.open.documents() {
            return END;
        }
        if !offering.units.left() && !is_first {
            return document;
        }
        is_first = false;
        let threshold = offering.best.threshold();
        if threshold > i64::MIN {
            let possible = opened.first_possible(document, threshold, offering);
            if possible > document {
                opened.lead_to(possible);
                continue;
            }
        }
        opened.meet_block(meeting, threshold, offering.units);
        if threshold == i64::MIN && opened.optional.is_empty() && opened.excluded.is_empty() {
            let met = meeting.documents.iter().copied().zip(meeting.scores.iter().copied());
            offering.offer_best_first(&mut met.collect::<SmallVec<[(u32, i64); BLOCK]>>());
            continue;
        }
        for n in 0..meeting.documents.len() {
            let (document, score) = (meeting.documents[n], meeting.scores[n]);
            if score + opened.optional_bound >= offering.best.threshold()
                && !offering.dead.contains(document)
                && let Some(score) = opened.complete(document, score)
            {
                offering.offer_whole(document, score);
            }
        }
    }
}

/// Goes from document to document of the leader.
fn search_documents(opened: &mut Opened<'_, '_>, offering: &mut Offering<'_, '_, '_>) -> u32 {
    let mut bounded_to = 0;
    // One document is always looked at, so that a query whose opening takes the whole budget comes to its end too.
    let mut is_first = true;
    loop {
        let document = opened.document();
        if document >= offering.open.documents() {
            return END;
        }
        if !offering.units.left() && !is_first {
            return document;
        }
        is_first = false;
        offering.units.spend(opened.required.len() as u64 * 2);
        let threshold = offering.best.threshold();
        if threshold > i64::MIN && document >= bounded_to {
            let possible = opened.first_possible(document, threshold, offering);
            bounded_to = opened.bounded_to;
            if possible > document {
                opened.lead_to(possible);
                continue;
            }
        }
        if let Some(further) = opened.disagreement(document) {
            opened.lead_to(further);
            continue;
        }
        if !offering.dead.contains(document)
            && let Some(score) = opened.score(document, threshold, offering.units)
        {
            offering.offer_whole(document, score);
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
                .map(|weigher| weigher.bound(&ANY_BOUNDS))
                .sum(),
            bounded_to: 0,
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

    /// The first document from `document` on whose range may hold one that reaches the threshold; [`END`] if there is none.
    /// Ranges that cannot get in are passed over by their bounds alone: nothing of them is unpacked.
    fn first_possible(&mut self, document: u32, threshold: i64, offering: &mut Offering<'_, '_, '_>) -> u32 {
        let mut possible = document;
        loop {
            let (end, bound) = self.bound_from(possible);
            self.bounded_to = end;
            if bound >= threshold {
                return possible;
            }
            if end >= offering.open.documents() {
                return END;
            }
            offering.units.spend(self.required.len() as u64);
            possible = end;
        }
    }

    /// The end of a range that begins with `document`, and the most that any document in it can score.
    fn bound_from(&mut self, document: u32) -> (u32, i64) {
        let leader = &mut self.required[self.order[0]];
        let (last, bounds) = leader.cursor.block_bounds(document);
        let end = last + 1;
        let mut sum = self.optional_bound + leader.weigher.map_or(0, |weigher| weigher.bound(&bounds));
        leader.bounds = bounds;
        for n in &self.order[1..] {
            let leg = &mut self.required[*n];
            let found = match leg.weigher {
                Some(weigher) => leg.cursor.bound_until(document, end, weigher),
                None => leg.cursor.bounds_until(document, end).map(|bounds| {
                    leg.bounds = bounds;
                    0
                }),
            };
            match found {
                Some(bound) => sum += bound,
                // The next posting of the term lies behind the range.
                None => return (end, i64::MIN),
            }
        }
        for words in &self.phrases {
            let of = |(at, _): &(usize, u32)| self.required[*at].bounds;
            let bounds: SmallVec<[Bounds; 4]> = words.plan.terms.iter().map(of).collect();
            sum += words.plan.bound(&bounds);
        }
        (end, sum)
    }

    /// Finds the documents that all required lists hold among what is left of the leader's block, with their scores, and
    /// moves the leader behind the block. Some that do not reach the threshold are left out.
    fn meet_block(&mut self, meeting: &mut Meeting, threshold: i64, units: &mut Units) {
        let Self { required, order, norms, .. } = self;
        let Meeting { places, documents, frequencies, scores, met, sieve } = meeting;
        let leader = &mut required[order[0]];
        let taken = leader.cursor.take_below(END);
        let (block, block_frequencies) = leader.cursor.run(taken);
        documents.clear();
        documents.extend_from_slice(block);
        frequencies.clear();
        frequencies.extend_from_slice(block_frequencies);
        leader.cursor.pass(taken);
        scores.clear();
        scores.resize(documents.len(), 0);
        units.spend(documents.len() as u64);
        for n in &order[1..] {
            let leg = &mut required[*n];
            met.clear();
            leg.cursor.meet(documents, places, met);
            units.spend(met.len() as u64 + 8);
            if let (Lengths::Sealed(short, _), Some(sieve)) = (leg.lengths, sieve.as_mut()) {
                sieve.need(threshold);
                // The sieve knows the terms as the query names them.
                let is_swapped = order[0] > *n;
                met.retain(|(at, frequency)| {
                    let at = *at as usize;
                    let mut pair = [frequencies[at], *frequency];
                    if is_swapped {
                        pair.reverse();
                    }
                    sieve.may(pair, short[documents[at] as usize])
                });
            }
            for (kept, (at, frequency)) in met.iter().enumerate() {
                let at = *at as usize;
                let document = documents[at];
                (documents[kept], frequencies[kept]) = (document, frequencies[at]);
                scores[kept] = scores[at] + leg.contribution(norms, document, *frequency);
            }
            documents.truncate(met.len());
        }
        let leader = &required[order[0]];
        for ((score, document), frequency) in scores.iter_mut().zip(&*documents).zip(&*frequencies) {
            *score += leader.contribution(norms, *document, *frequency);
        }
    }

    /// A document's whole score from that of its required terms; `None` if it is excluded. Documents rise from call to call.
    fn complete(&mut self, document: u32, mut score: i64) -> Option<i64> {
        for cursor in &mut self.excluded {
            cursor.advance(document);
            if cursor.document() == document {
                return None;
            }
        }
        for leg in &mut self.optional {
            leg.cursor.advance(document);
            if leg.cursor.document() == document {
                let frequency = leg.cursor.frequency();
                score += leg.contribution(self.norms, document, frequency);
            }
        }
        Some(score)
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
            if leg.weigher.is_some() {
                let frequency = leg.cursor.frequency();
                score += leg.contribution(self.norms, document, frequency);
            }
        }
        let Self { required, phrases, .. } = self;
        let mut possible = self.optional_bound;
        for words in phrases.iter() {
            let length = words.lengths.get(document);
            possible += words.plan.bound_of_one(
                words.plan.terms.iter().map(|(at, _)| required[*at].cursor.frequency()),
                length,
            );
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
        self.complete(document, score)
    }
}

impl Leg<'_> {
    /// What the term adds to a document; nothing if it counts only as part of a phrase.
    #[inline]
    fn contribution(&self, norms: &[f32], document: u32, frequency: u32) -> i64 {
        let add = |weigher| contribution(weigher, self.lengths, norms, document, frequency);
        self.weigher.map_or(0, add)
    }
}

impl PhrasePlan {
    /// The most that the phrase can add to a document of this length, by how often it holds each of the terms.
    fn bound_of_one(&self, frequencies: impl Iterator<Item = u32>, length: u32) -> i64 {
        let (mut least, mut sum) = (u32::MAX, 0u32);
        for frequency in frequencies {
            least = least.min(frequency);
            sum = sum.saturating_add(frequency);
        }
        // A sloppy match may share all positions but the one that moves on.
        let frequency = if self.slop > 0 { sum } else { least };
        self.weigher.bound(&Bounds::of(frequency, length, 0.0))
    }

    /// The most that the phrase can add where its terms have these bounds.
    fn bound(&self, terms: &[Bounds]) -> i64 {
        let frequencies_max = terms.iter().map(Bounds::frequency_max);
        let length_from =
            |frequency| terms.iter().map(|bounds| bounds.length_from(frequency)).max().unwrap_or(u32::MAX);
        if self.slop > 0 {
            let sum = frequencies_max.fold(0, u32::saturating_add);
            return self.weigher.bound(&Bounds::of(sum, length_from(1), 0.0));
        }
        let most = frequencies_max.min().unwrap_or(0);
        if terms.len() > FINE_TERMS_MAX {
            return self.weigher.bound(&Bounds::of(most, length_from(1), 0.0));
        }
        // A phrase stands in a document no more often than its rarest term: where it stands so often, each term does, in a
        // document that is no shorter than the shortest with the term so often.
        let mut bounds = NO_BOUNDS;
        let steps = terms.iter().flat_map(Bounds::pairs).map(|pair| pair.frequency.min(most));
        for frequency in steps {
            bounds.widen_by(Pair { frequency, length: length_from(frequency) });
        }
        self.weigher.bound(&bounds)
    }
}

impl Conjunction {
    /// The most that a document of a part can score; the least there is if a required term is not in it.
    pub(crate) fn bound_of(&self, open: &Open<'_>) -> i64 {
        let bounds = |term: &Required| open.bounds(term.id);
        let Some(bounds) = self.required.iter().map(bounds).collect::<Option<SmallVec<[Bounds; 4]>>>() else {
            return i64::MIN;
        };
        let terms = self.required.iter().zip(&bounds);
        let required = terms.map(|(term, bounds)| term.weigher.map_or(0, |weigher| weigher.bound(bounds)));
        let phrase = |phrase: &PhrasePlan| {
            let of = |(at, _): &(usize, u32)| bounds[*at];
            phrase.bound(&phrase.terms.iter().map(of).collect::<SmallVec<[Bounds; 4]>>())
        };
        let optional = self.optional.iter().map(|term| term.weigher.bound(&ANY_BOUNDS));
        required.sum::<i64>() + self.phrases.iter().map(phrase).sum::<i64>() + optional.sum::<i64>()
    }
}
