//! Makes a search's hits speak of one version of each record, though records change while it runs.
//!
//! A view is pinned, the records are not: filters, values and snippets read them as they are. So a hit whose record has
//! changed since the search arrived is scored again by its present value, with the figures of the search, and judged by the filter once
//! more; where it no longer matches it is left out. What a client gets is then one version's score, value and snippet.
//! Records that have not changed, nearly all of them, cost one comparison of versions.

use super::running::{Task, task_of};
use crate::gather::search::Ask;
use crate::index::Units;
use crate::index::embed::Model;
use crate::index::extract::Walker;
use crate::index::filter::Filter;
use crate::index::filter_set::{FilterPlan, FilterSet, Verdict};
use crate::index::hybrid::Candidate;
use crate::index::query::{CompiledQuery, QueryField};
use crate::index::set::IndexSet;
use crate::index::text::TextIndex;
use crate::index::text::search::{SearchHit, Stats};
use crate::index::vector::VectorHit;
use std::rc::Rc;

/// Values that a filter is asked about before bitmaps are made for it.
const CHECKS_BEFORE_SETS: u32 = 256;
/// Units of scoring one record by itself, beside its value's bytes.
const RESCORE_UNITS: u64 = 512;

/// The filter of a search, and what the value indexes know of it.
pub(super) struct Judge {
    pub(super) filter: Filter,
    checks: u32,
    sets: Sets,
    /// The sets speak for records that were written up to this entry.
    upto: u64,
    walker: Walker,
}

enum Sets {
    Untried,
    Building(FilterPlan),
    Ready(FilterSet),
    Useless,
}

impl Judge {
    pub(super) fn new(filter: Filter) -> Self {
        let (upto, walker) = (0, Walker::default());
        Self { filter, checks: 0, sets: Sets::Untried, upto, walker }
    }

    /// Makes bitmaps once many values were looked at; false while they are being made. `now` is the last
    /// entry applied.
    pub(super) fn prepare(&mut self, indexes: &IndexSet, now: u64, units: &mut Units) -> bool {
        if matches!(self.sets, Sets::Untried) && self.checks >= CHECKS_BEFORE_SETS {
            self.upto = now;
            self.sets = FilterPlan::new(&self.filter, indexes).map_or(Sets::Useless, Sets::Building);
        }
        if let Sets::Building(plan) = &mut self.sets
            && !plan.step(indexes, units)
        {
            return false;
        }
        if let Sets::Building(plan) = std::mem::replace(&mut self.sets, Sets::Useless) {
            self.sets = plan.finish(&self.filter, indexes).map_or(Sets::Useless, Sets::Ready);
        }
        true
    }

    /// Whether a record, written by such an entry, meets the filter.
    pub(super) fn accepts(&mut self, key: &[u8], value: &[u8], entry: u64, indexes: &IndexSet) -> bool {
        if let Sets::Ready(set) = &self.sets
            && entry <= self.upto
        {
            match set.judge(key, indexes) {
                Verdict::Meets => return true,
                Verdict::Fails => return false,
                Verdict::Unknown => {}
            }
        }
        self.checks += 1;
        self.filter.matches(value, &mut self.walker)
    }
}

/// What it takes to score a record by itself as the search scored all of them.
pub(super) struct Scorer {
    pub(super) ask: Ask,
    pub(super) queries: Rc<[CompiledQuery]>,
    pub(super) stats: Vec<Stats>,
    pub(super) fields: Vec<QueryField>,
    pub(super) model: &'static Model,
}

impl Scorer {
    /// The scores of a value; `None` if it does not match.
    fn score(&self, key: &[u8], value: &[u8], units: &mut Units) -> Option<Candidate> {
        units.spend(RESCORE_UNITS + value.len() as u64);
        let mut index = TextIndex::new();
        if self.ask.scoring.has_embedding() {
            index.set_embedder(self.model);
        }
        for field in &self.fields {
            assert!(index.add_field(&field.path, field.analyzer), "a new index takes all fields");
        }
        let free = &mut Units::unlimited();
        index.put(key, value, free);
        let views = self.queries.iter().map(|query| index.pin(query).0).collect::<Vec<_>>();
        let task = task_of(&views, &self.queries, &self.stats, &self.ask, self.model).ok()?;
        let mut all = |_: &[u8]| true;
        match task {
            Task::Text(mut search) => {
                search.step(free, &mut all);
                search.into_hits().first().map(alone)
            }
            Task::Embedding(mut search) => {
                search.step(free, &mut all);
                search.into_hits().first().map(alone)
            }
            Task::Hybrid(mut search) => {
                search.step(free, &mut all);
                search.into_candidates().into_iter().next()
            }
            Task::Vector { .. } | Task::Fetch(_) | Task::Settle(_) => None,
        }
    }

    /// The score of a value in a search with one score; `None` if it does not match.
    pub(super) fn score_one(&self, key: &[u8], value: &[u8], units: &mut Units) -> Option<i64> {
        self.score(key, value, units).and_then(|found| found.bm25)
    }
}

/// A hit with one score, which stands where a candidate has that of BM25.
fn alone(hit: &SearchHit) -> Candidate {
    Candidate { key: hit.key[..].into(), bm25: Some(hit.score), similarity: None }
}

/// The hits of a search, and how many of them were looked at.
pub(super) struct Settling {
    pub(super) hits: Hits,
    pub(super) next: usize,
    pub(super) scorer: Option<Rc<Scorer>>,
}

/// Hits of all kinds.
pub(super) enum Hits {
    Text(Vec<SearchHit>),
    Hybrid(Vec<Candidate>),
    Vector(Vec<VectorHit>),
}

impl Hits {
    fn key(&self, number: usize) -> Option<&[u8]> {
        match self {
            Self::Text(hits) => hits.get(number).map(|hit| &*hit.key),
            Self::Hybrid(hits) => hits.get(number).map(|hit| &*hit.key),
            Self::Vector(hits) => hits.get(number).map(|found| &*found.hit.key),
        }
    }

    fn remove(&mut self, number: usize) {
        match self {
            Self::Text(hits) => drop(hits.remove(number)),
            Self::Hybrid(hits) => drop(hits.remove(number)),
            Self::Vector(hits) => drop(hits.remove(number)),
        }
    }

    fn replace(&mut self, number: usize, found: Candidate) {
        match self {
            Self::Text(hits) => hits[number] = SearchHit::new(found.bm25.unwrap_or(0), &found.key),
            Self::Hybrid(hits) => hits[number] = found,
            // Their scores are of the present vectors already.
            Self::Vector(_) => {}
        }
    }
}

/// A record that has changed, as it is now.
pub(super) struct Changed<'a> {
    pub(super) value: &'a [u8],
}

impl Settling {
    /// Looks at the next hits until the budget is spent; true when all are settled. `find` tells of a key: `Err` if its
    /// record is gone, `Ok(None)` if it is as the search found it.
    pub(super) fn step<'a>(
        &mut self,
        units: &mut Units,
        judge: &mut Option<Judge>,
        find: impl Fn(&[u8]) -> Result<Option<Changed<'a>>, ()>,
    ) -> bool {
        while units.left() {
            let Some(key) = self.hits.key(self.next) else {
                if let Hits::Text(hits) = &mut self.hits {
                    hits.sort_unstable();
                }
                return true;
            };
            units.spend(4);
            let settled = match find(key) {
                Ok(None) => {
                    self.next += 1;
                    continue;
                }
                Err(()) => None,
                Ok(Some(Changed { value })) => {
                    let passes =
                        judge.as_mut().is_none_or(|judge| judge.filter.matches(value, &mut judge.walker));
                    let key = key.to_vec();
                    let unscored = || Candidate { key: key.as_slice().into(), bm25: None, similarity: None };
                    match &self.scorer {
                        _ if !passes => None,
                        Some(scorer) => scorer.score(&key, value, units),
                        None => Some(unscored()),
                    }
                }
            };
            match settled {
                Some(found) => {
                    self.hits.replace(self.next, found);
                    self.next += 1;
                }
                None => self.hits.remove(self.next),
            }
        }
        false
    }
}
