//! Searching in two phases: [`TextIndex::pin`] counts, [`Search`] scores with everybody's counts.
//!
//! Phase 1 pins a [`View`] and returns integers, [`Stats`], which the router adds up over the shards. Phase 2 takes the
//! sums and finds the shard's best hits; those of all shards merged are what one shard with all documents would find,
//! score for score. A view stays valid for as long as it is held and costs the memory of what has been replaced since.

use super::boolean::{Plan, Scorer};
use super::conjunction::{self, Conjunction};
use super::cursor::END;
use super::dictionary::FieldId;
use super::maxscore::{self, TermPlan};
use super::offering::{Accept, Best, Offering};
use super::part::PartView;
use super::score::{Weigher, bm25_idf, cosine_idf, document_weight};
use super::tables::{Held, Spare, Tables};
use super::top::Hit;
use super::{TextIndex, WHOLE};
use crate::index::codec::{Corrupt, Reader, put_bytes, put_varint_u64};
use crate::index::query::compile::Clause;
use crate::index::query::{CompiledQuery, QueryField};
use crate::index::{ACCEPT_UNITS, Units};
use std::collections::BTreeMap;

pub use super::top::{Hit as SearchHit, Key as HitKey};

/// Figures of one field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FieldStats {
    /// Live documents with at least one token in the field.
    pub documents: u64,
    /// Tokens in them.
    pub total_length: u64,
}

/// A term that a prefix or fuzzy word stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExpandedTerm {
    /// Edits from the word; 0 for prefixes.
    pub edits: u8,
    /// The term.
    pub term: Vec<u8>,
    /// Live documents with it.
    pub document_frequency: u64,
}

/// What a shard, or all of them, know about a query's terms. Numbered as the compiled query is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// By field of the query.
    pub fields: Vec<FieldStats>,
    /// Live documents with the term, by leaf of the query.
    pub document_frequencies: Vec<u64>,
    /// By expansion: the first terms by (edits, bytes).
    pub expansions: Vec<Vec<ExpandedTerm>>,
}

const STATS_VERSION: u8 = 1;

impl Stats {
    /// Adds another shard's figures for the same query.
    ///
    /// # Errors
    /// The figures belong to another query, or a sum overflows.
    pub fn merge(&mut self, other: &Self, query: &CompiledQuery) -> Result<(), Corrupt> {
        let same = self.fields.len() == other.fields.len()
            && self.document_frequencies.len() == other.document_frequencies.len()
            && self.expansions.len() == other.expansions.len()
            && self.expansions.len() == query.expansions.len();
        if !same {
            return Err(Corrupt("statistics of another query"));
        }
        let add = |sum: &mut u64, more: u64| -> Result<(), Corrupt> {
            *sum = sum.checked_add(more).ok_or(Corrupt("statistics overflow"))?;
            Ok(())
        };
        for (sum, more) in self.fields.iter_mut().zip(&other.fields) {
            add(&mut sum.documents, more.documents)?;
            add(&mut sum.total_length, more.total_length)?;
        }
        for (sum, more) in self.document_frequencies.iter_mut().zip(&other.document_frequencies) {
            add(sum, *more)?;
        }
        for ((sum, more), expansion) in
            self.expansions.iter_mut().zip(&other.expansions).zip(&query.expansions)
        {
            let mut terms: BTreeMap<(u8, &[u8]), u64> = BTreeMap::new();
            for term in sum.iter().chain(more) {
                add(terms.entry((term.edits, &term.term)).or_default(), term.document_frequency)?;
            }
            let merged = terms.into_iter().take(expansion.limit());
            *sum = merged
                .map(|((edits, term), document_frequency)| ExpandedTerm {
                    edits,
                    term: term.to_vec(),
                    document_frequency,
                })
                .collect();
        }
        Ok(())
    }

    /// Writes the figures for another thread or node.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(STATS_VERSION);
        put_varint_u64(out, self.fields.len() as u64);
        for field in &self.fields {
            put_varint_u64(out, field.documents);
            put_varint_u64(out, field.total_length);
        }
        put_varint_u64(out, self.document_frequencies.len() as u64);
        for frequency in &self.document_frequencies {
            put_varint_u64(out, *frequency);
        }
        put_varint_u64(out, self.expansions.len() as u64);
        for terms in &self.expansions {
            put_varint_u64(out, terms.len() as u64);
            for term in terms {
                out.push(term.edits);
                put_bytes(out, &term.term);
                put_varint_u64(out, term.document_frequency);
            }
        }
    }

    /// Reads what [`Stats::encode`] wrote.
    ///
    /// # Errors
    /// The bytes are something else.
    pub fn decode(bytes: &[u8]) -> Result<Self, Corrupt> {
        let mut reader = Reader::new(bytes);
        if reader.u8()? != STATS_VERSION {
            return Err(Corrupt("version of statistics"));
        }
        let mut stats = Self::default();
        for _ in 0..reader.count(2)? {
            stats
                .fields
                .push(FieldStats { documents: reader.varint_u64()?, total_length: reader.varint_u64()? });
        }
        for _ in 0..reader.count(1)? {
            stats.document_frequencies.push(reader.varint_u64()?);
        }
        for _ in 0..reader.count(1)? {
            let mut terms = Vec::new();
            for _ in 0..reader.count(3)? {
                let (edits, term) = (reader.u8()?, reader.bytes()?.to_vec());
                terms.push(ExpandedTerm { edits, term, document_frequency: reader.varint_u64()? });
            }
            stats.expansions.push(terms);
        }
        if !reader.is_empty() { Err(Corrupt("bytes after statistics")) } else { Ok(stats) }
    }
}

/// A shard's documents as they were when the query was counted.
#[derive(Clone, Debug)]
pub struct View {
    pub(crate) parts: Vec<PartView>,
    fields: Vec<Option<FieldId>>,
    leaves: Vec<Option<u32>>,
    expansions: Vec<BTreeMap<Vec<u8>, u32>>,
    spare: Spare,
}

impl View {
    /// Bytes that the view may keep alive at most: the sum of its parts.
    pub fn bytes_held_max(&self) -> usize {
        self.parts.iter().map(|part| part.body.bytes()).sum()
    }
}

/// Which similarity to score by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// BM25.
    Bm25,
    /// lnc.ltc cosine over the whole value; for queries compiled by [`CompiledQuery::words`].
    Cosine,
}

impl TextIndex {
    /// The fields that queries can name.
    pub fn query_fields(&self) -> Vec<QueryField> {
        let live = self.fields.iter().filter(|field| !field.dropped);
        live.map(|field| QueryField { path: field.path.clone(), analyzer: field.analyzer.kind() }).collect()
    }

    /// The field of the whole value, if there is one.
    pub fn whole_field(&self) -> Option<QueryField> {
        let field = self.field(WHOLE)?;
        Some(QueryField { path: field.path.clone(), analyzer: field.analyzer.kind() })
    }

    /// Phase 1: pins what is there and counts the query's terms in it.
    pub fn pin(&self, query: &CompiledQuery) -> (View, Stats) {
        let fields: Vec<_> = query.fields.iter().map(|field| self.field(&field.path)).collect();
        let mut stats = Stats::default();
        stats.fields.extend(fields.iter().map(|field| match field {
            Some(field) => FieldStats { documents: field.documents, total_length: field.total_length },
            None => FieldStats::default(),
        }));
        let leaves: Vec<Option<u32>> = query
            .leaves
            .iter()
            .map(|leaf| self.dictionary.find(fields[leaf.field]?.id, &leaf.term))
            .collect();
        let count = |id: &Option<u32>| id.map_or(0, |id| u64::from(self.dictionary.document_frequency(id)));
        stats.document_frequencies.extend(leaves.iter().map(count));
        let mut expansions = Vec::new();
        for expansion in &query.expansions {
            let mut ids = BTreeMap::new();
            let mut terms = Vec::new();
            if let Some(field) = fields[expansion.field] {
                let found: Vec<(Vec<u8>, u8, u32)> = if expansion.edits == 0 {
                    let found =
                        self.dictionary.with_prefix(field.id, expansion.word.as_bytes(), expansion.limit());
                    found.into_iter().map(|(term, id)| (term, 0, id)).collect()
                } else {
                    self.dictionary.near(field.id, &expansion.word, expansion.edits, expansion.limit())
                };
                for (term, edits, id) in found {
                    ids.insert(term.clone(), id);
                    terms.push(ExpandedTerm { edits, term, document_frequency: count(&Some(id)) });
                }
            }
            expansions.push(ids);
            stats.expansions.push(terms);
        }
        let mut parts = Vec::with_capacity(self.parts.list.len());
        let views = self.parts.list.iter().map(super::Part::view);
        parts.extend(views.filter(|part| part.documents > part.dead.count()));
        let fields = fields.iter().map(|field| field.map(|field| field.id)).collect();
        let spare = self.spare.clone();
        (View { parts, fields, leaves, expansions, spare }, stats)
    }
}

/// Phase 2: finds the best hits of one shard, a slice at a time.
#[derive(Debug)]
pub struct Search {
    view: View,
    plan: Prepared,
    best: Best,
    held: Held,
    /// The parts in the order in which they are searched, each with what its documents cannot exceed; empty before the first
    /// step.
    order: Vec<(i64, u32)>,
    /// Whether every document is judged as it comes, because a hit was refused in the end.
    is_judging: bool,
    /// The hits, when they were judged in the end and none was refused.
    judged: Option<Vec<Hit>>,
    /// Position in `order`.
    part: usize,
    next: u32,
}

#[derive(Debug)]
enum Prepared {
    Disjunction(Vec<TermPlan>),
    /// The same query in both forms: the tree scores single documents.
    Conjunction(Conjunction, Plan),
    Tree(Plan),
}

impl Search {
    /// A search for the best `limit` (`offset + top_k`) hits of `view`, with the figures of all shards.
    ///
    /// # Errors
    /// The figures belong to another query.
    pub fn new(
        view: View,
        query: &CompiledQuery,
        stats: &Stats,
        model: Model,
        limit: usize,
    ) -> Result<Self, Corrupt> {
        let same = stats.fields.len() == query.fields.len()
            && stats.document_frequencies.len() == query.leaves.len()
            && stats.expansions.len() == query.expansions.len();
        if !same {
            return Err(Corrupt("statistics of another query"));
        }
        let preparing = Preparing { view: &view, query, stats };
        let plan = match model {
            Model::Cosine => Prepared::Disjunction(preparing.cosine()),
            Model::Bm25 => match preparing.disjunction() {
                Some(terms) => Prepared::Disjunction(terms),
                None => {
                    let plan = preparing.plan(&query.root);
                    match Conjunction::of(&plan) {
                        Some(conjunction) => Prepared::Conjunction(conjunction, plan),
                        None => Prepared::Tree(plan),
                    }
                }
            },
        };
        Ok(Self {
            held: view.spare.take(),
            view,
            plan,
            best: Best::new(limit),
            order: Vec::new(),
            is_judging: false,
            judged: None,
            part: 0,
            next: 0,
        })
    }

    /// Goes on until the budget is spent; true when the search is complete.
    ///
    /// `accept` judges the documents that would be hits: the place for filters.
    pub fn step(&mut self, units: &mut Units, accept: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        self.run(units, &mut Some(accept))
    }

    /// As [`Search::step`], for an `accept` that hardly ever refuses: it judges the hits in the end, and only where it refuses
    /// one the search begins again and has every document judged that comes.
    pub fn step_trusting(&mut self, units: &mut Units, accept: &mut dyn FnMut(&[u8]) -> bool) -> bool {
        if self.is_judging {
            return self.run(units, &mut Some(accept));
        }
        if !self.run(units, &mut None) {
            return false;
        }
        let hits = self.best.hits(&self.view.parts);
        units.spend(hits.len() as u64 * ACCEPT_UNITS);
        if hits.iter().all(|hit| accept(&hit.key)) {
            self.judged = Some(hits);
            return true;
        }
        self.best.clear();
        (self.is_judging, self.part, self.next) = (true, 0, 0);
        false
    }

    fn run(&mut self, units: &mut Units, accept: &mut Accept<'_>) -> bool {
        let Self { view, plan, best, held, order, part, next, .. } = self;
        let Tables { sums, meeting } = &mut held.tables;
        if order.is_empty() {
            *order = plan.order(view, units);
        }
        while units.left() {
            let Some((bound, here)) = order.get(*part).copied() else { return true };
            if bound < best.threshold() {
                // And so are all that follow.
                *part = order.len();
                return true;
            }
            let (parts, seen) = (&view.parts[..], &view.parts[here as usize]);
            let open = &seen.body.open(seen.documents);
            let mut offering = Offering {
                parts,
                part: here,
                open,
                dead: &seen.dead,
                best: &mut *best,
                units: &mut *units,
                accept: &mut *accept,
            };
            *next = match plan {
                Prepared::Disjunction(terms) => maxscore::search(open, terms, *next, sums, &mut offering),
                Prepared::Conjunction(plan, _) => {
                    conjunction::search(open, plan, *next, meeting, &mut offering)
                }
                Prepared::Tree(plan) => run_tree(plan, *next, &mut offering),
            };
            if *next == END {
                *part += 1;
                *next = 0;
            }
        }
        *part == order.len()
    }

    /// The scores of documents of one part, given in ascending order; `None` for those that do not match.
    pub(crate) fn score_documents(&self, part: u32, documents: &[u32]) -> Vec<Option<i64>> {
        let Some(seen) = self.view.parts.get(part as usize) else { return vec![None; documents.len()] };
        let open = seen.body.open(seen.documents);
        match &self.plan {
            Prepared::Disjunction(terms) => maxscore::score_documents(&open, terms, documents),
            Prepared::Conjunction(_, plan) | Prepared::Tree(plan) => {
                let mut scorer = Scorer::new(plan, &open, documents.first().copied().unwrap_or(0), END);
                let mut score = |document: &u32| {
                    scorer.advance(*document);
                    (scorer.document() == *document).then(|| scorer.score())
                };
                documents.iter().map(&mut score).collect()
            }
        }
    }

    /// The hits so far, best first; the search stays usable for [`Search::score_documents`].
    pub(crate) fn take_hits(&mut self) -> Vec<Hit> {
        let hits = self.judged.take().unwrap_or_else(|| self.best.hits(&self.view.parts));
        self.best.clear();
        hits
    }

    /// The hits, best first. What [`merge_hits`] takes.
    pub fn into_hits(mut self) -> Vec<Hit> {
        self.judged.take().unwrap_or_else(|| self.best.hits(&self.view.parts))
    }
}

impl Prepared {
    /// The parts of a view, those first in which the best documents may be: they bring the threshold up.
    fn order(&self, view: &View, units: &mut Units) -> Vec<(i64, u32)> {
        let bound = |part: &PartView| {
            let open = part.body.open(part.documents);
            match self {
                Self::Disjunction(terms) => maxscore::bound_of(&open, terms).unwrap_or(i64::MAX),
                Self::Conjunction(conjunction, _) => conjunction.bound_of(&open),
                Self::Tree(_) => i64::MAX,
            }
        };
        units.spend(view.parts.len() as u64 * 2);
        // Parts without any of the terms are not looked at again.
        let mut order: Vec<(i64, u32)> = Vec::with_capacity(view.parts.len());
        order.extend(view.parts.iter().map(bound).zip(0..).filter(|(bound, _)| *bound > i64::MIN));
        // Of equal bounds the larger part, and then the older one: what is searched first does not change what is found.
        order.sort_by_key(|(bound, part)| std::cmp::Reverse((*bound, view.parts[*part as usize].documents)));
        order
    }
}

/// Offers the matches of one window of documents; returns where the next begins, or [`END`].
fn run_tree(plan: &Plan, from: u32, offering: &mut Offering<'_, '_, '_>) -> u32 {
    let (open, dead) = (offering.open, offering.dead);
    // Opening the lists anew for each window costs, so where they are thin the windows are wide.
    let documents = open.documents();
    let postings = plan.postings(open).max(1);
    let window = u64::from(documents) * TREE_WINDOW_POSTINGS / postings;
    let window = u32::try_from(window).unwrap_or(u32::MAX).max(TREE_WINDOW_MIN);
    let end = from.saturating_add(window).min(documents);
    let mut scorer = Scorer::new(plan, open, from, end);
    offering.units.spend(64 + postings * u64::from(end - from) / u64::from(documents.max(1)) / 4);
    loop {
        let document = scorer.document();
        if document >= end {
            return if end == documents { END } else { end };
        }
        if !dead.contains(document) {
            let score = scorer.score();
            offering.offer_whole(document, score);
        }
        offering.units.spend(8);
        scorer.advance(document + 1);
    }
}

/// Postings that a tree of clauses may come across between two looks at the budget, about.
const TREE_WINDOW_POSTINGS: u64 = 8192;
/// Documents in such a window at least.
const TREE_WINDOW_MIN: u32 = 1024;

/// The best hits of all shards: each list best first, as [`Search::into_hits`] gives it.
pub fn merge_hits(lists: Vec<Vec<Hit>>, offset: usize, top_k: usize) -> Vec<Hit> {
    let mut all: Vec<Hit> = lists.into_iter().flatten().collect();
    all.sort_unstable();
    all.into_iter().skip(offset).take(top_k).collect()
}

struct Preparing<'a> {
    view: &'a View,
    query: &'a CompiledQuery,
    stats: &'a Stats,
}

impl Preparing<'_> {
    fn idf(&self, field: usize, document_frequency: u64) -> f64 {
        bm25_idf(self.stats.fields[field].documents, document_frequency)
    }

    fn weigher(&self, field: usize, weight: f64) -> Weigher {
        let stats = &self.stats.fields[field];
        Weigher::bm25(weight, stats.documents, stats.total_length)
    }

    /// A term on this shard, if it has it.
    fn term(&self, leaf: usize, boost: f64) -> Option<TermPlan> {
        let field = self.query.leaves[leaf].field;
        let weight = boost * self.idf(field, self.stats.document_frequencies[leaf]);
        let weigher = self.weigher(field, weight);
        Some(TermPlan { id: self.view.leaves[leaf]?, field: self.view.fields[field]?, weigher })
    }

    /// The neighbours of a fuzzy word as terms: the highest document frequency among them counts for all, and each edit
    /// takes its share of the word's length off the boost.
    fn fuzzy(&self, expansion: usize, boost: f64) -> Vec<TermPlan> {
        let terms = &self.stats.expansions[expansion];
        let sought = &self.query.expansions[expansion];
        let highest = terms.iter().map(|term| term.document_frequency).max().unwrap_or(0);
        let idf = self.idf(sought.field, highest);
        let length = sought.word.chars().count();
        let plans = terms.iter().filter_map(|term| {
            let shorter = String::from_utf8_lossy(&term.term).chars().count().min(length).max(1);
            let closeness = (1.0 - f64::from(term.edits) / shorter as f64).max(0.1);
            let id = *self.view.expansions[expansion].get(&term.term)?;
            let weigher = self.weigher(sought.field, boost * closeness * idf);
            Some(TermPlan { id, field: self.view.fields[sought.field]?, weigher })
        });
        plans.collect()
    }

    /// The whole query as terms any of which may match, if it is that.
    fn disjunction(&self) -> Option<Vec<TermPlan>> {
        let single = std::slice::from_ref(&self.query.root);
        let clauses = match &self.query.root {
            Clause::Bool { must, should, must_not } if must.is_empty() && must_not.is_empty() => &should[..],
            _ => single,
        };
        let mut plans = Vec::new();
        for clause in clauses {
            match clause {
                Clause::Term { leaf, boost } => plans.extend(self.term(*leaf, *boost)),
                Clause::Expansion { expansion, boost } if self.query.expansions[*expansion].edits > 0 => {
                    plans.extend(self.fuzzy(*expansion, *boost));
                }
                _ => return None,
            }
        }
        Some(plans)
    }

    fn plan(&self, clause: &Clause) -> Plan {
        let all = |clauses: &[Clause]| clauses.iter().map(|clause| self.plan(clause)).collect::<Vec<Plan>>();
        match clause {
            Clause::Nothing => Plan::Nothing,
            Clause::Term { leaf, boost } => self.term(*leaf, *boost).map_or(Plan::Nothing, Plan::Term),
            Clause::Phrase { terms, slop, boost } => self.phrase(terms, *slop, *boost),
            Clause::Expansion { expansion, boost } if self.query.expansions[*expansion].edits > 0 => {
                let should = self.fuzzy(*expansion, *boost).into_iter().map(Plan::Term).collect();
                Plan::Bool { must: Vec::new(), should, must_not: Vec::new() }
            }
            Clause::Expansion { expansion, boost } => {
                let ids = &self.view.expansions[*expansion];
                let terms = &self.stats.expansions[*expansion];
                let ids = terms.iter().filter_map(|term| ids.get(&term.term).copied()).collect();
                Plan::Constant { ids, score: *boost }
            }
            Clause::Bool { must, should, must_not } => {
                Plan::Bool { must: all(must), should: all(should), must_not: all(must_not) }
            }
        }
    }

    /// The phrase's weight is the sum of its terms' idf, as in Lucene.
    fn phrase(&self, terms: &[(usize, u32)], slop: u32, boost: f64) -> Plan {
        let field = self.query.leaves[terms[0].0].field;
        let idf: f64 =
            terms.iter().map(|(leaf, _)| self.idf(field, self.stats.document_frequencies[*leaf])).sum();
        let here = terms.iter().map(|(leaf, offset)| Some((self.view.leaves[*leaf]?, *offset)));
        match (here.collect::<Option<Vec<_>>>(), self.view.fields[field]) {
            (Some(terms), Some(id)) => {
                Plan::Phrase { terms, slop, field: id, weigher: self.weigher(field, boost * idf) }
            }
            _ => Plan::Nothing,
        }
    }

    /// The query side of lnc.ltc: (1 + ln tf) ln(1 + N / df), normalised over all terms of the query, here or not.
    fn cosine(&self) -> Vec<TermPlan> {
        let single = std::slice::from_ref(&self.query.root);
        let clauses = match &self.query.root {
            Clause::Bool { should, .. } => &should[..],
            _ => single,
        };
        let mut weights = Vec::new();
        let mut squares = 0.0;
        for clause in clauses {
            if let Clause::Term { leaf, boost } = clause {
                let documents = self.stats.fields[self.query.leaves[*leaf].field].documents;
                let idf = cosine_idf(documents, self.stats.document_frequencies[*leaf]);
                let weight = document_weight(*boost as u32) * idf;
                squares += weight * weight;
                weights.push((*leaf, weight));
            }
        }
        let norm = squares.sqrt();
        let plans = weights.into_iter().filter(|(_, weight)| *weight > 0.0).filter_map(|(leaf, weight)| {
            let field = self.view.fields[self.query.leaves[leaf].field]?;
            Some(TermPlan { id: self.view.leaves[leaf]?, field, weigher: Weigher::cosine(weight / norm) })
        });
        plans.collect()
    }
}
