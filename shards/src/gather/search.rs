//! SEARCH, SEMANTIC_SEARCH and HYBRID_SEARCH: two phases over all shards, so that the scores are those of one shard.
//!
//! Phase 1 has every shard pin a view and count the query's terms; the counts are added up. Phase 2 has every shard score
//! its view by the sums; the hits are merged by score, ties by key. Where values or snippets are wanted, phase 3 fetches
//! them from the pinned views, of the merged hits only. A shard lets go of its view after phase 2, or after phase 3 where
//! [`Ask::fetches`] says that it comes, and in any case at the deadline.
//!
//! A shard whose leader changed since phase 1 has no such view, and answers TIMEOUT at once: the search begins anew, once.
//!
//! A search over the clients' vectors has nothing to count: the first call's answer is its hits. Where a shard lacks an index
//! that is made on demand (text, embeddings), its first answer names it; the index is defined and the counting begins anew.
//!
//! Shard and router compile the query by [`Ask::compile`] from the fields that the shards name. Shards that name
//! different ones (an index is just being defined) end the search with OVERLOADED, which is safe to repeat.
//!
//! | call | argument | value | answer |
//! |---|---|---|---|
//! | `SearchStats` | | [`Ask`] | view u64, fields u16 count x {path, analyzer}, per query [`Stats`] u32 length |
//! | the same, lacking indexes | | | u64 of ones, per index: kind u8, path u16 length |
//! | the same, over vectors | | | per hit: scanned i64, score i64, key u16 length |
//! | `SearchHits` | view | 1, per query [`Stats`] u32 length | per hit, best first: score i64, key u16 length |
//! | the same, hybrid | | | candidates of [`hybrid`](crate::index::hybrid) |
//! | `SearchHits` | view | 2, items: keys | per key: fate u8 (0 same, 1 scored again, 2 gone), score i64, value u32 length, snippet u32 length |

use super::answers::{Answers, Collected};
use super::catalog::{CatalogChange, Change};
use super::topology::Topology;
use super::{Call, Gather, NO_PART, Step, text_of};
use crate::batch::ReplyKind;
use crate::command::items;
use crate::command::record::{Malformed, Op, Record, flag, take_u64};
use crate::ids::GroupId;
use crate::index::hybrid::{Fusion, HybridHit, decode_candidates, fuse};
use crate::index::text::score::to_float;
use crate::index::text::search::SearchHit;
use crate::index::vector::{VectorHit, merge_vector_hits, similarity_of};
use strand_wire::code::Code;
use strand_wire::json::push_string;
use strand_wire::reply::push_float;

pub use super::search_parts::*;

/// How a shard's answer begins that has no view of the number asked for.
const VIEW_IS_LOST: &[u8] = br#""code":"TIMEOUT""#;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Count,
    /// The first search over a text defines its index, then counts again.
    Define,
    Score,
    Fetch,
}

/// See the module's head.
#[derive(Debug)]
pub struct Search {
    ask: Ask,
    offset: usize,
    top_k: usize,
    phase: Phase,
    topology: Topology,
    flags: u16,
    /// Indexes to define, the last one first, and the definition under way.
    missing: Vec<OnDemand>,
    defining: Option<Box<Gather>>,
    /// Whether missing indexes were defined already.
    has_defined: bool,
    /// Number of the first group's call; later ones follow. It moves when the search begins anew, so that answers which
    /// are still under way find nothing.
    first_call: u16,
    /// This phase's answers, by group.
    answers: Answers,
    views: Vec<u64>,
    /// The merged hits, each with its group.
    hits: Vec<(SearchHit, u16)>,
}

impl Search {
    /// Begins; the best `top_k` hits behind `offset` are given. `flags` tell the consistency.
    pub fn start(topology: &Topology, ask: Ask, offset: u64, top_k: u64, flags: u16) -> (Gather, Step) {
        let gather = Self {
            topology: topology.clone(),
            flags,
            missing: Vec::new(),
            defining: None,
            has_defined: false,
            first_call: 0,
            ask,
            offset: usize::try_from(offset).unwrap_or(usize::MAX),
            top_k: usize::try_from(top_k).unwrap_or(usize::MAX),
            phase: Phase::Count,
            answers: Answers::new(topology.groups()),
            views: Vec::new(),
            hits: Vec::new(),
        };
        let step = gather.count();
        (Gather::Search(Box::new(gather)), step)
    }

    fn count(&self) -> Step {
        let mut value = Vec::new();
        self.ask.encode(&mut value);
        let flags = self.flags & flag::LOCAL;
        let record = Record { flags, ..Record::plain(Op::SearchStats, &[], &value) };
        let calls = (self.first_call..).zip(self.topology.each());
        Step::Calls(calls.map(|(number, group)| Call::new(number, group, &record)).collect())
    }

    /// Begins anew, once: a shard does not know its view any more, since another replica leads it now.
    fn restart(&mut self) -> Option<Step> {
        if self.first_call > 0 || !matches!(self.phase, Phase::Score | Phase::Fetch) {
            return None;
        }
        self.first_call = u16::try_from(self.topology.groups()).expect("at most 4,096 groups");
        // Calls of a definition would have the numbers of the answers still under way.
        self.has_defined = true;
        self.phase = Phase::Count;
        self.answers = Answers::new(self.topology.groups());
        self.views.clear();
        self.hits.clear();
        Some(self.count())
    }

    /// Defines the next missing index; counts again when all are there.
    fn define_next(&mut self) -> Step {
        let Some(index) = self.missing.pop() else {
            self.phase = Phase::Count;
            self.answers = Answers::new(self.topology.groups());
            return self.count();
        };
        self.phase = Phase::Define;
        let change = Change::Define(index.definition());
        let (gather, step) = CatalogChange::start(&self.topology, &change);
        self.defining = Some(Box::new(gather));
        step
    }

    pub(super) fn part(&mut self, number: u16, kind: ReplyKind, body: &[u8]) -> Result<Step, Malformed> {
        if let Some(defining) = &mut self.defining {
            return Ok(match defining.part(number, kind, body) {
                Step::Done { kind: ReplyKind::Ok | ReplyKind::Success, .. } => {
                    self.defining = None;
                    self.define_next()
                }
                step => step,
            });
        }
        let Some(place) = number.checked_sub(self.first_call) else { return Ok(Step::Wait) };
        if kind == ReplyKind::Error
            && body.starts_with(VIEW_IS_LOST)
            && let Some(restarted) = self.restart()
        {
            return Ok(restarted);
        }
        let answers = match self.answers.take(place, kind, body, self.beside_bytes())? {
            Collected::Step(step) => return Ok(step),
            Collected::All(answers) => answers,
        };
        match self.phase {
            Phase::Count if matches!(self.ask.scoring, Scoring::Vector { .. }) => self.nearest(&answers),
            Phase::Count => self.counted(&answers),
            Phase::Define => Err(NO_PART),
            Phase::Score => match self.ask.scoring {
                Scoring::Hybrid { fusion, .. } => self.fused(&answers, fusion),
                _ => self.scored(&answers),
            },
            Phase::Fetch => self.finish(Some(&answers)),
        }
    }

    pub(super) fn held_bytes(&self) -> usize {
        self.answers.bytes() + self.beside_bytes()
    }

    /// Bytes held beside the answers of this phase.
    fn beside_bytes(&self) -> usize {
        let hits: usize = self.hits.iter().map(|(hit, _)| hit.key.len() + 32).sum();
        hits + self.ask.query.len() + self.ask.filter.len()
    }

    fn counted(&mut self, answers: &[Vec<u8>]) -> Result<Step, Malformed> {
        for answer in answers {
            if let Some(paths) = read_missing(answer)? {
                if self.has_defined {
                    let text = "the text index was dropped while it was searched; search again";
                    return Ok(Step::failed(Code::Overloaded, text));
                }
                // Views of shards that had the index already go at their deadline.
                self.has_defined = true;
                self.missing = paths;
                return Ok(self.define_next());
            }
        }
        let counted = answers.iter().map(|answer| read_stats(answer)).collect::<Result<Vec<_>, _>>()?;
        let (first, others) = counted.split_first().ok_or(Malformed("there is no shard"))?;
        if others.iter().any(|other| other.known_bytes != first.known_bytes) {
            if self.has_defined {
                let text = "the text indexes are just being changed; search again";
                return Ok(Step::failed(Code::Overloaded, text));
            }
            // A change of the catalogue that was interrupted half way is completed: a change that finds nothing to do
            // has every group take the owner's catalogue over.
            self.has_defined = true;
            self.phase = Phase::Define;
            let nothing = Change::Drop { path: String::new(), kind: None };
            let (gather, step) = CatalogChange::start(&self.topology, &nothing);
            self.defining = Some(Box::new(gather));
            return Ok(step);
        }
        let queries = self.ask.compile(&first.known).ok_or(Malformed("it lacks the text field"))?;
        let mut sums = first.stats.clone();
        if counted.iter().any(|counted| counted.stats.len() != queries.len()) {
            return Err(Malformed("figures of another number of queries"));
        }
        for other in others {
            for ((sum, more), query) in sums.iter_mut().zip(&other.stats).zip(&queries) {
                sum.merge(more, query).map_err(|corrupt| Malformed(corrupt.0))?;
            }
        }
        self.views = counted.iter().map(|counted| counted.view).collect();
        self.phase = Phase::Score;
        let mut value = vec![SCORE];
        push_all_stats(&mut value, &sums);
        Ok(Step::Calls((0..self.views.len()).map(|group| self.call(group, &value)).collect()))
    }

    fn scored(&mut self, answers: &[Vec<u8>]) -> Result<Step, Malformed> {
        let mut hits = Vec::new();
        for (group, answer) in (0u16..).zip(answers) {
            let mut rest = answer.as_slice();
            while !rest.is_empty() {
                let score = take_u64(&mut rest)? as i64;
                let key = take_short(&mut rest)?;
                hits.push((SearchHit::new(score, key), group));
            }
        }
        // A key lives in one group, so the order of hits alone decides.
        hits.sort_unstable();
        self.hits = hits.into_iter().skip(self.offset).take(self.top_k).collect();
        if !self.ask.fetches() {
            return self.finish(None);
        }
        self.phase = Phase::Fetch;
        let mut values = vec![vec![FETCH]; self.views.len()];
        for (hit, group) in &self.hits {
            items::push(&mut values[usize::from(*group)], &hit.key, &[]);
        }
        // Shards without a hit are told too: they let go of their views.
        Ok(Step::Calls(values.iter().enumerate().map(|(group, value)| self.call(group, value)).collect()))
    }

    /// The hits of a search over vectors.
    fn nearest(&mut self, answers: &[Vec<u8>]) -> Result<Step, Malformed> {
        let mut lists = Vec::new();
        for answer in answers {
            let mut rest = answer.as_slice();
            let mut list = Vec::new();
            while !rest.is_empty() {
                let scanned = take_u64(&mut rest)? as i64;
                let score = take_u64(&mut rest)? as i64;
                list.push(VectorHit { scanned, hit: SearchHit::new(score, take_short(&mut rest)?) });
            }
            lists.push(list);
        }
        let limit = self.offset.saturating_add(self.top_k);
        let hits = merge_vector_hits(lists, limit).into_iter().skip(self.offset);
        self.hits = hits.map(|hit| (hit, 0)).collect();
        self.finish(None)
    }

    /// The hits of a hybrid search.
    fn fused(&self, answers: &[Vec<u8>], fusion: Fusion) -> Result<Step, Malformed> {
        let lists = answers.iter().map(|answer| decode_candidates(answer)).collect::<Result<Vec<_>, _>>();
        let lists = lists.map_err(|corrupt| Malformed(corrupt.0))?;
        let mut out = b"\"result\":[".to_vec();
        for (number, hit) in fuse(lists, fusion, self.offset, self.top_k).iter().enumerate() {
            if number > 0 {
                out.push(b',');
            }
            write_hybrid(&mut out, hit)?;
        }
        out.push(b']');
        Ok(Step::success(out))
    }

    fn call(&self, group: usize, value: &[u8]) -> Call {
        let number = u16::try_from(group).expect("at most 4,096 groups");
        // The replica that counted has the view.
        let flags = self.flags & flag::LOCAL;
        let argument = Some(self.views[group]);
        let record = Record { flags, argument, ..Record::plain(Op::SearchHits, &[], value) };
        Call::new(self.first_call + number, GroupId(u32::from(number)), &record)
    }

    fn finish(&self, fetched: Option<&[Vec<u8>]>) -> Result<Step, Malformed> {
        let mut fetched: Option<Vec<&[u8]>> = fetched.map(|list| list.iter().map(Vec::as_slice).collect());
        let mut rows = Vec::with_capacity(self.hits.len());
        for (hit, group) in &self.hits {
            let (mut row, mut fate) =
                (Row { score: hit.score, key: &hit.key, found: (None, None) }, Fate::Same);
            if let Some(fetched) = &mut fetched {
                let rest = &mut fetched[usize::from(*group)];
                fate = take_fate(rest)?;
                row.found = (take_optional(rest)?, take_optional(rest)?);
            }
            match fate {
                Fate::Same => {}
                Fate::Rescored(score) => row.score = score,
                Fate::Gone => continue,
            }
            rows.push(row);
        }
        if fetched.is_some() {
            // A record that changed since it was scored may stand elsewhere by its new score.
            rows.sort_by(|a, b| b.score.cmp(&a.score).then_with(|| a.key.cmp(b.key)));
        }
        let mut out = b"\"result\":[".to_vec();
        for (number, row) in rows.iter().enumerate() {
            if number > 0 {
                out.push(b',');
            }
            self.write_row(&mut out, row, fetched.is_some())?;
        }
        out.push(b']');
        Ok(Step::success(out))
    }

    fn write_row(&self, out: &mut Vec<u8>, row: &Row<'_>, has_more: bool) -> Result<(), Malformed> {
        out.extend_from_slice(b"{\"key\":");
        push_string(out, text_of(row.key)?);
        let (name, score): (&[u8], f64) = match self.ask.scoring {
            Scoring::Bm25 => (b",\"score\":", to_float(row.score)),
            Scoring::Vector { .. } => (b",\"similarity\":", similarity_of(row.score)),
            _ => (b",\"similarity\":", to_float(row.score)),
        };
        out.extend_from_slice(name);
        push_float(out, score);
        if has_more && self.ask.with_values {
            out.extend_from_slice(b",\"value\":");
            out.extend_from_slice(row.found.0.unwrap_or(b"null"));
        }
        if has_more && self.ask.highlight {
            out.extend_from_slice(b",\"highlight\":");
            push_string(out, text_of(row.found.1.unwrap_or_default())?);
        }
        out.push(b'}');
        Ok(())
    }
}

/// A hit with its value and its snippet, where they were asked for.
struct Row<'a> {
    score: i64,
    key: &'a [u8],
    found: (Option<&'a [u8]>, Option<&'a [u8]>),
}

fn write_hybrid(out: &mut Vec<u8>, hit: &HybridHit) -> Result<(), Malformed> {
    out.extend_from_slice(b"{\"key\":");
    push_string(out, text_of(&hit.key)?);
    let scores =
        [(&b",\"score\":"[..], hit.score), (b",\"bm25\":", hit.bm25), (b",\"similarity\":", hit.similarity)];
    for (name, score) in scores {
        out.extend_from_slice(name);
        push_float(out, score);
    }
    out.push(b'}');
    Ok(())
}
