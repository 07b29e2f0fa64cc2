//! Searches under way in a shard: what they scan, and how they are given their slices.
//!
//! A search that takes longer than one slice goes round with the others, so that a short one never waits for a long one to
//! end. Bounded: all slices of one call together, by work units; what a fetch gathers, by the longest result. Never waits
//! for indexing and never touches the log.

use super::internal;
use super::settle::{Changed, Hits, Judge, Scorer, Settling};
use crate::batch::{ReplyKind, RequestHead};
use crate::command::answer::Failure;
use crate::command::context::is_over;
use crate::command::items;
use crate::command::record::{Malformed, Record, flag};
use crate::effect::Effects;
use crate::gather::search::{self as ask, Ask, Fate, Scoring};
use crate::gather::{RESULT_BYTES_MAX, write_too_large};
use crate::ids::{Millis, hash_of};
use crate::index::Units;
use crate::index::embed::Model;
use crate::index::embed::search::EmbeddingSearch;
use crate::index::extract::Walker;
use crate::index::filter::Filter;
use crate::index::highlight::Highlighter;
use crate::index::hybrid::{HybridSearch, SimilaritySearch, encode_candidates};
use crate::index::query::{CompiledQuery, QueryField};
use crate::index::set::IndexSet;
use crate::index::text::search::{Model as Weighting, Search, Stats, View};
use crate::index::vector::VectorSearch;
use crate::shard::Shard;
use crate::shard::outbox::{Waiter, reply_failure};
use crate::shard::reads::push_part;
use crate::state::Record as StoredRecord;
use std::rc::Rc;

/// Units of one slice of one search.
const SLICE_UNITS: u32 = 4096;
/// Units of all slices of one call.
const SLICES_UNITS: u32 = 8192;
/// Longest snippet, in bytes, about.
const SNIPPET_BYTES_MAX: usize = 200;
/// What stands before and after a matching word in a snippet.
const MARKS: (&str, &str) = ("<em>", "</em>");

/// What was pinned for a search when its query was counted.
pub(super) struct Pinned {
    /// By query: the parts of one index at one time.
    pub(super) views: Vec<View>,
    pub(super) queries: Rc<[CompiledQuery]>,
    /// The text fields that the queries were made for.
    pub(super) fields: Vec<QueryField>,
    /// Index of the last entry that was applied when the search came: what it wrote was surely seen.
    pub(super) seen: u64,
    pub(super) ask: Ask,
    pub(super) filter: Option<Filter>,
    pub(super) deadline: Millis,
    /// Once the query was scored, if snippets are wanted.
    pub(super) highlighter: Option<Highlighter>,
    /// Once the query was scored.
    pub(super) scorer: Option<Rc<Scorer>>,
}

/// A search that has its figures.
pub(super) struct Running {
    task: Task,
    judge: Option<Judge>,
    scorer: Option<Rc<Scorer>>,
    seen: u64,
    pub(super) waiter: Waiter,
    /// The index to be told, when the search may be stale.
    stale_at: Option<u64>,
}

#[allow(clippy::large_enum_variant, reason = "a bounded number is under way, and most are of the large kind")]
pub(super) enum Task {
    Text(Search),
    Embedding(EmbeddingSearch),
    Hybrid(Box<HybridSearch>),
    Vector {
        path: String,
        search: Option<VectorSearch>,
    },
    /// All is scored; hits whose record has changed meanwhile are scored again.
    Settle(Settling),
    Fetch(Box<Fetch>),
}

/// Values and snippets of the merged hits.
pub(super) struct Fetch {
    keys: Vec<u8>,
    /// Bytes of `keys` that are done.
    done: usize,
    with_values: bool,
    highlighter: Option<Highlighter>,
    out: Vec<u8>,
}

impl Pinned {
    /// The search over what is pinned, with the figures of all shards.
    fn task(&mut self, stats: &[u8], model: &'static Model) -> Result<Task, Malformed> {
        let stats = ask::read_all_stats(stats)?;
        if stats.len() != self.queries.len() {
            return Err(Malformed("figures of another number of queries"));
        }
        let task = task_of(&self.views, &self.queries, &stats, &self.ask, model)?;
        if self.ask.highlight {
            self.highlighter = Some(Highlighter::new(&self.queries[0], &stats[0], SNIPPET_BYTES_MAX));
        }
        let (ask, queries, fields) = (self.ask.clone(), Rc::clone(&self.queries), self.fields.clone());
        self.scorer = Some(Rc::new(Scorer { ask, queries, stats, fields, model }));
        Ok(task)
    }
}

/// The search of what was asked over one view for each query.
pub(super) fn task_of(
    views: &[View],
    queries: &[CompiledQuery],
    stats: &[Stats],
    ask: &Ask,
    model: &Model,
) -> Result<Task, Malformed> {
    let limit = ask.limit as usize;
    let text = |n: usize, weighting: Weighting| {
        Search::new(views[n].clone(), &queries[n], &stats[n], weighting, limit)
            .map_err(|corrupt| Malformed(corrupt.0))
    };
    let embedding = || EmbeddingSearch::new(views[0].clone(), model.embed_query(&ask.query), limit);
    Ok(match &ask.scoring {
        Scoring::Bm25 => Task::Text(text(0, Weighting::Bm25)?),
        Scoring::Cosine => Task::Text(text(0, Weighting::Cosine)?),
        Scoring::Embedding => Task::Embedding(embedding()),
        Scoring::Hybrid { has_embedding, .. } => {
            let similarity = match has_embedding {
                true => SimilaritySearch::Embedding(embedding()),
                false => SimilaritySearch::Cosine(text(1, Weighting::Cosine)?),
            };
            Task::Hybrid(Box::new(HybridSearch::new(text(0, Weighting::Bm25)?, similarity)))
        }
        Scoring::Vector { .. } => return Err(Malformed("vectors are found in one call")),
    })
}

impl Shard {
    /// The second call of a search scores the pinned view, the third fetches from it.
    pub(in crate::shard) fn score(
        &mut self,
        router: u8,
        head: &RequestHead,
        record: &Record<'_>,
        effects: &mut Effects,
    ) {
        let number = record.argument.unwrap_or(u64::MAX);
        let model = self.searches.indexes.model();
        let Some(pinned) = self.searches.views.get_mut(&number) else {
            return reply_failure(effects, router, head.token, Failure::Timeout { unknown: false });
        };
        let task = match record.value.split_first() {
            Some((&ask::SCORE, stats)) => pinned.task(stats, model),
            Some((&ask::FETCH, keys)) => Ok(Task::Fetch(Box::new(Fetch {
                keys: keys.to_vec(),
                done: 0,
                with_values: pinned.ask.with_values,
                highlighter: pinned.highlighter.take(),
                out: Vec::new(),
            }))),
            _ => Err(Malformed("an unknown call of a search")),
        };
        let is_last = !pinned.ask.fetches() || matches!(task, Ok(Task::Fetch(_)) | Err(_));
        let judge = pinned.filter.clone().map(Judge::new);
        let (scorer, seen) = (pinned.scorer.clone(), pinned.seen);
        if is_last {
            self.searches.views.remove(&number);
        }
        match task {
            Err(malformed) => internal(router, head, malformed, effects),
            Ok(task) => {
                let stale_at = self.stale_at().filter(|_| record.has(flag::LOCAL));
                let waiter = Waiter::client(router, head, false);
                self.begin_running(Running { task, judge, scorer, seen, waiter, stale_at }, effects);
            }
        }
    }

    /// Begins to search the vectors of a path; the index is there and the query fits it.
    pub(super) fn begin_vectors(
        &mut self,
        path: String,
        search: VectorSearch,
        filter: Option<Filter>,
        (waiter, stale_at): (Waiter, Option<u64>),
        effects: &mut Effects,
    ) {
        let (task, judge) = (Task::Vector { path, search: Some(search) }, filter.map(Judge::new));
        let seen = self.applied;
        self.begin_running(Running { task, judge, scorer: None, seen, waiter, stale_at }, effects);
    }

    /// Most searches end within their first slice, and then at once.
    fn begin_running(&mut self, running: Running, effects: &mut Effects) {
        self.run_slice(running, SLICE_UNITS, effects);
    }

    /// Gives the searches under way their slices, in turn.
    pub(super) fn run_searches(&mut self, effects: &mut Effects) {
        let mut left = i64::from(SLICES_UNITS);
        for _ in 0..self.searches.running.len() {
            let Some(running) = self.searches.running.pop_front().filter(|_| left > 0) else { return };
            left -= self.run_slice(running, SLICE_UNITS, effects);
            if left <= 0 {
                return;
            }
        }
    }

    /// Goes on with one search and answers if it has ended; the units that it took.
    fn run_slice(&mut self, mut running: Running, units: u32, effects: &mut Effects) -> i64 {
        let (now, last) = (self.read_time(), self.applied);
        let (keys, indexes) = (&self.state.keys, &self.searches.indexes);
        let mut budget = Units::new(units);
        let Running { task, judge, scorer, seen, .. } = &mut running;
        if judge.as_mut().is_some_and(|judge| !judge.prepare(indexes, last, &mut budget)) {
            self.searches.running.push_back(running);
            return i64::from(units) - budget.balance();
        }
        let find = |key: &[u8]| keys.get(hash_of(key), key).filter(|found| !is_over(found.expires_at, now));
        let is_filtered = judge.is_some();
        let mut accept = |key: &[u8]| match (find(key), &mut *judge) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(found), Some(judge)) => judge.accepts(key, found.value, found.version.index(), indexes),
        };
        let is_scored = match task {
            // Without a filter only what has expired is refused, and that is seldom among the hits.
            Task::Text(search) if !is_filtered => search.step_trusting(&mut budget, &mut accept),
            Task::Text(search) => search.step(&mut budget, &mut accept),
            Task::Embedding(search) => search.step(&mut budget, &mut accept),
            Task::Hybrid(search) => search.step(&mut budget, &mut accept),
            Task::Vector { path, search } => match (search, indexes.vectors(path)) {
                (Some(search), Some(index)) => search.step(index, &mut budget, &mut accept),
                _ => true,
            },
            Task::Settle(_) => true,
            Task::Fetch(fetch) => fetch.step(find, judge, scorer.as_deref(), *seen, &mut budget),
        };
        if is_scored {
            settle(task, scorer, indexes);
        }
        let is_done = match task {
            Task::Settle(settling) => settling.step(&mut budget, judge, |key| match find(key) {
                None => Err(()),
                Some(found) if found.version.index() <= *seen => Ok(None),
                Some(found) => Ok(Some(Changed { value: found.value })),
            }),
            _ => is_scored,
        };
        let spent = i64::from(units) - budget.balance();
        if is_done {
            answer(running, effects);
        } else {
            self.searches.running.push_back(running);
        }
        spent.max(1)
    }
}

/// Takes the hits of a search that has scored all it sees.
fn settle(task: &mut Task, scorer: &Option<Rc<Scorer>>, indexes: &IndexSet) {
    // A fetch of nothing stands in for the task that is taken apart.
    let nothing = Task::Settle(Settling { hits: Hits::Text(Vec::new()), next: 0, scorer: None });
    let hits = match std::mem::replace(task, nothing) {
        Task::Text(search) => Hits::Text(search.into_hits()),
        Task::Embedding(search) => Hits::Text(search.into_hits()),
        Task::Hybrid(search) => Hits::Hybrid(search.into_candidates()),
        Task::Vector { path, search } => match (search, indexes.vectors(&path)) {
            (Some(search), Some(index)) => Hits::Vector(search.into_hits(index)),
            (_, _) => {
                *task = Task::Vector { path, search: None };
                return;
            }
        },
        other @ (Task::Settle(_) | Task::Fetch(_)) => {
            *task = other;
            return;
        }
    };
    *task = Task::Settle(Settling { hits, next: 0, scorer: scorer.clone() });
}

impl Running {
    /// Ends a search over a vector index that is dropped: its slots mean nothing any more.
    pub(super) fn index_is_gone(&mut self, gone: &str) {
        if let Task::Vector { path, search } = &mut self.task
            && path == gone
        {
            *search = None;
        }
    }
}

impl Fetch {
    /// Goes on until the budget is spent; whether it has ended.
    fn step<'a>(
        &mut self,
        find: impl Fn(&[u8]) -> Option<StoredRecord<'a>>,
        judge: &mut Option<Judge>,
        scorer: Option<&Scorer>,
        seen: u64,
        units: &mut Units,
    ) -> bool {
        let Self { keys, done, with_values, highlighter, out } = self;
        let mut walker = Walker::default();
        while units.left() && out.len() <= RESULT_BYTES_MAX {
            let mut rest = items::iter(&keys[*done..]);
            let Some(Ok((key, _))) = rest.next() else { return true };
            let mut found = find(key);
            let mut fate = Fate::Same;
            if let (Some(changed), Some(scorer)) =
                (found.filter(|found| found.version.index() > seen), scorer)
            {
                let passes =
                    judge.as_ref().is_none_or(|judge| judge.filter.matches(changed.value, &mut walker));
                let score = if passes { scorer.score_one(key, changed.value, units) } else { None };
                (fate, found) = score.map_or((Fate::Gone, None), |score| (Fate::Rescored(score), found));
            } else if found.is_none() {
                fate = Fate::Gone;
            }
            let snippet = match (found, &mut *highlighter) {
                (Some(found), Some(highlighter)) => {
                    units.spend(found.value.len() as u64);
                    highlighter.snippet(found.value).map(|snippet| snippet.marked(MARKS.0, MARKS.1))
                }
                _ => None,
            };
            let value = found.filter(|_| *with_values).map(|found| found.value);
            units.spend(16 + value.map_or(0, |value| value.len() as u64 / 32));
            ask::write_fetched(out, fate, value, snippet.as_deref());
            *done = keys.len() - rest.bytes_left();
        }
        out.len() > RESULT_BYTES_MAX
    }
}

fn answer(running: Running, effects: &mut Effects) {
    let Running { task, waiter, stale_at, .. } = running;
    let replies = effects.replies_to(waiter.router);
    match task {
        Task::Settle(Settling { hits, .. }) => push_part(replies, waiter.token, stale_at, |out| match hits {
            Hits::Text(hits) => hits.iter().for_each(|hit| ask::write_hit(out, hit)),
            Hits::Hybrid(candidates) => encode_candidates(&candidates, out),
            Hits::Vector(hits) => hits.iter().for_each(|found| ask::write_vector_hit(out, found)),
        }),
        Task::Fetch(fetch) if fetch.out.len() > RESULT_BYTES_MAX => {
            replies.push(waiter.token, ReplyKind::Error, write_too_large);
        }
        Task::Fetch(fetch) => {
            push_part(replies, waiter.token, stale_at, |out| out.extend_from_slice(&fetch.out));
        }
        Task::Vector { path, .. } => {
            reply_failure(effects, waiter.router, waiter.token, no_vectors(&path));
        }
        Task::Text(_) | Task::Embedding(_) | Task::Hybrid(_) => {
            unreachable!("the hits of a search are taken before it is answered")
        }
    }
}

/// The refusal of a search over vectors that are not indexed.
pub(super) fn no_vectors(path: &str) -> Failure {
    let text = format!("there is no vector index on {path:?}; CREATE_INDEX with kind vector makes one");
    Failure::NoSuchIndex(text)
}
