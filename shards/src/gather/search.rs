//! SEARCH, SEMANTIC_SEARCH and HYBRID_SEARCH: two phases over all shards, so that the scores are those of one shard.
//!
//! Phase 1 has every shard pin a view and count the query's terms; the counts are added up. Phase 2 has every shard score
//! its view by the sums; the hits are merged by score, ties by key. Where values or snippets are wanted, phase 3 fetches
//! them from the pinned views, of the merged hits only. A shard lets go of its view after phase 2, or after phase 3 where
//! [`Ask::fetches`] says that it comes, and in any case at the deadline.
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
//! | `SearchHits` | view | 2, items: keys | per key: value u32 length, snippet u32 length |

use super::catalog::{CatalogChange, Change};
use super::topology::Topology;
use super::{Call, Gather, NO_PART, Step, text_of};
use crate::batch::ReplyKind;
use crate::command::items;
use crate::command::record::{Malformed, Op, Record, flag, take, take_u8, take_u16, take_u32, take_u64};
use crate::ids::GroupId;
use crate::index::analyze::AnalyzerKind;
use crate::index::hybrid::{Fusion, HybridHit, decode_candidates, fuse};
use crate::index::query::{CompiledQuery, QueryField, parse};
use crate::index::set::{IndexDefinition, IndexKind};
use crate::index::text::WHOLE;
use crate::index::text::score::to_float;
use crate::index::text::search::{SearchHit, Stats};
use crate::index::vector::{VectorHit, merge_vector_hits};
use strand_wire::code::Code;
use strand_wire::json::push_string;
use strand_wire::reply::push_float;

/// How documents are scored.
#[derive(Clone, Debug, PartialEq)]
pub enum Scoring {
    /// BM25 of the parsed query.
    Bm25,
    /// TF-IDF cosine with the query's words.
    Cosine,
    /// Cosine of the built-in embeddings.
    Embedding,
    /// The vectors of the clients.
    Vector {
        /// The vector index's path.
        path: String,
        /// What they are compared with: finite numbers.
        vector: Vec<f32>,
    },
    /// BM25 and a similarity.
    Hybrid {
        /// The similarity: embeddings, or else TF-IDF cosine.
        has_embedding: bool,
        /// How the two become one.
        fusion: Fusion,
    },
}

/// What a shard is asked to search for.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// How documents are scored.
    pub scoring: Scoring,
    /// Best hits that each shard gives.
    pub limit: u32,
    /// Values are fetched in the end.
    pub with_values: bool,
    /// Snippets are fetched in the end.
    pub highlight: bool,
    /// The query's text.
    pub query: String,
    /// The paths to search; empty for the whole value.
    pub fields: Vec<String>,
    /// The filter's JSON token; empty for none.
    pub filter: Vec<u8>,
}

/// First byte of a `SearchHits` value: score the view by the statistics that follow.
pub const SCORE: u8 = 1;
/// First byte of a `SearchHits` value: give values and snippets of the keys that follow.
pub const FETCH: u8 = 2;
/// Length of a value that is not given.
const NONE_LENGTH: u32 = u32::MAX;

impl Ask {
    /// Whether a fetch follows the second phase.
    pub fn fetches(&self) -> bool {
        self.with_values || self.highlight
    }

    /// Appends the bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.scoring.encode(out);
        out.push(u8::from(self.with_values) | u8::from(self.highlight) << 1);
        out.extend_from_slice(&self.limit.to_le_bytes());
        push_long(out, self.query.as_bytes());
        out.extend_from_slice(&u16::try_from(self.fields.len()).expect("few paths").to_le_bytes());
        for field in &self.fields {
            push_short(out, field.as_bytes());
        }
        out.extend_from_slice(&self.filter);
    }

    /// Reads what [`Ask::encode`] wrote.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, Malformed> {
        let rest = &mut bytes;
        let scoring = Scoring::take(rest)?;
        let wants = take_u8(rest)?;
        let limit = take_u32(rest)?;
        let query = text_of(take_long(rest)?)?.to_owned();
        let count = take_u16(rest)?;
        let fields = (0..count).map(|_| Ok(text_of(take_short(rest)?)?.to_owned()));
        let fields = fields.collect::<Result<_, Malformed>>()?;
        let (with_values, highlight) = (wants & 1 != 0, wants & 2 != 0);
        Ok(Self { scoring, limit, with_values, highlight, query, fields, filter: rest.to_vec() })
    }

    /// The queries to count over the text fields that a shard has; `None` when a field that they need is missing.
    pub fn compile(&self, known: &[QueryField]) -> Option<Vec<CompiledQuery>> {
        let find = |path: &str| known.iter().find(|field| field.path == path).cloned();
        let words = |text: &str| Some(CompiledQuery::words(text, &find(WHOLE)?));
        let parsed = || {
            let targets = if self.fields.is_empty() {
                vec![find(WHOLE)?]
            } else {
                self.fields.iter().map(|path| find(path)).collect::<Option<Vec<_>>>()?
            };
            let ast = parse(&self.query, &|name| known.iter().any(|field| field.path == name));
            Some(CompiledQuery::new(&ast, &targets, known))
        };
        Some(match &self.scoring {
            Scoring::Bm25 | Scoring::Hybrid { has_embedding: true, .. } => vec![parsed()?],
            Scoring::Cosine => vec![words(&self.query)?],
            // No word is counted, but the view is pinned.
            Scoring::Embedding => vec![words("")?],
            Scoring::Hybrid { has_embedding: false, .. } => vec![parsed()?, words(&self.query)?],
            Scoring::Vector { .. } => Vec::new(),
        })
    }
}

impl Scoring {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Bm25 => out.push(1),
            Self::Cosine => out.push(2),
            Self::Embedding => out.push(3),
            Self::Vector { path, vector } => {
                out.push(4);
                push_short(out, path.as_bytes());
                let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
                push_long(out, &bytes);
            }
            Self::Hybrid { has_embedding, fusion } => {
                out.extend_from_slice(&[5, u8::from(*has_embedding)]);
                match fusion {
                    Fusion::Convex { alpha } => {
                        out.push(1);
                        out.extend_from_slice(&alpha.to_bits().to_le_bytes());
                    }
                    Fusion::Rrf => out.push(2),
                }
            }
        }
    }

    fn take(rest: &mut &[u8]) -> Result<Self, Malformed> {
        Ok(match take_u8(rest)? {
            1 => Self::Bm25,
            2 => Self::Cosine,
            3 => Self::Embedding,
            4 => {
                let path = text_of(take_short(rest)?)?.to_owned();
                let (fours, left) = take_long(rest)?.as_chunks::<4>();
                if !left.is_empty() {
                    return Err(Malformed("a vector of broken numbers"));
                }
                Self::Vector { path, vector: fours.iter().map(|four| f32::from_le_bytes(*four)).collect() }
            }
            5 => {
                let has_embedding = take_u8(rest)? == 1;
                let fusion = match take_u8(rest)? {
                    1 => Fusion::Convex { alpha: f64::from_bits(take_u64(rest)?) },
                    2 => Fusion::Rrf,
                    _ => return Err(Malformed("an unknown fusion")),
                };
                Self::Hybrid { has_embedding, fusion }
            }
            _ => return Err(Malformed("an unknown way of scoring")),
        })
    }
}

/// Appends the answer to the first phase.
pub fn write_stats(out: &mut Vec<u8>, view: u64, known: &[QueryField], stats: &[Stats]) {
    out.extend_from_slice(&view.to_le_bytes());
    out.extend_from_slice(&u16::try_from(known.len()).expect("few text fields").to_le_bytes());
    for field in known {
        push_short(out, field.path.as_bytes());
        push_short(out, field.analyzer.name().as_bytes());
    }
    push_all_stats(out, stats);
}

/// Appends the figures of each query.
fn push_all_stats(out: &mut Vec<u8>, stats: &[Stats]) {
    let mut bytes = Vec::new();
    for stats in stats {
        bytes.clear();
        stats.encode(&mut bytes);
        push_long(out, &bytes);
    }
}

/// Reads the figures of each query, up to the end.
pub fn read_all_stats(mut rest: &[u8]) -> Result<Vec<Stats>, Malformed> {
    let mut all = Vec::new();
    while !rest.is_empty() {
        all.push(Stats::decode(take_long(&mut rest)?).map_err(|corrupt| Malformed(corrupt.0))?);
    }
    Ok(all)
}

/// The view's number in the answer of a shard that lacks indexes which the search needs.
const MISSING: u64 = u64::MAX;

/// An index that a search makes when it is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OnDemand {
    /// The text at a path.
    Text(String),
    /// The embeddings of the whole value.
    Embedding,
}

impl OnDemand {
    /// What to define.
    pub fn definition(&self) -> IndexDefinition {
        match self {
            Self::Text(path) => {
                let kind = IndexKind::Text { analyzer: AnalyzerKind::default() };
                IndexDefinition { path: path.clone(), kind }
            }
            Self::Embedding => IndexDefinition { path: WHOLE.to_owned(), kind: IndexKind::Embedding },
        }
    }
}

/// Appends the answer to the first phase of a shard without these indexes.
pub fn write_missing(out: &mut Vec<u8>, missing: &[OnDemand]) {
    out.extend_from_slice(&MISSING.to_le_bytes());
    for index in missing {
        let (kind, path) = match index {
            OnDemand::Text(path) => (1, path.as_str()),
            OnDemand::Embedding => (2, WHOLE),
        };
        out.push(kind);
        push_short(out, path.as_bytes());
    }
}

/// The indexes of such an answer; `None` for any other.
fn read_missing(bytes: &[u8]) -> Result<Option<Vec<OnDemand>>, Malformed> {
    let mut rest = bytes;
    if take_u64(&mut rest)? != MISSING {
        return Ok(None);
    }
    let mut missing = Vec::new();
    while !rest.is_empty() {
        let kind = take_u8(&mut rest)?;
        let path = text_of(take_short(&mut rest)?)?.to_owned();
        missing.push(match kind {
            1 => OnDemand::Text(path),
            2 => OnDemand::Embedding,
            _ => return Err(Malformed("an index that is not made on demand")),
        });
    }
    Ok(Some(missing))
}

/// Appends a hit of a search over vectors.
pub fn write_vector_hit(out: &mut Vec<u8>, found: &VectorHit) {
    out.extend_from_slice(&found.scanned.to_le_bytes());
    write_hit(out, &found.hit);
}

/// Appends a hit of the second phase.
pub fn write_hit(out: &mut Vec<u8>, hit: &SearchHit) {
    out.extend_from_slice(&hit.score.to_le_bytes());
    push_short(out, &hit.key);
}

/// Appends what was fetched of one key; `None` for what was not asked for or is no more.
pub fn write_fetched(out: &mut Vec<u8>, value: Option<&[u8]>, snippet: Option<&str>) {
    for bytes in [value, snippet.map(str::as_bytes)] {
        match bytes {
            Some(bytes) => push_long(out, bytes),
            None => out.extend_from_slice(&NONE_LENGTH.to_le_bytes()),
        }
    }
}

/// What one shard counted.
struct Counted<'a> {
    view: u64,
    known: Vec<QueryField>,
    /// The bytes that name the fields, to be compared among shards.
    known_bytes: &'a [u8],
    stats: Vec<Stats>,
}

fn read_stats(mut bytes: &[u8]) -> Result<Counted<'_>, Malformed> {
    let rest = &mut bytes;
    let view = take_u64(rest)?;
    let whole = *rest;
    let count = take_u16(rest)?;
    let mut known = Vec::new();
    for _ in 0..count {
        let path = text_of(take_short(rest)?)?.to_owned();
        let analyzer = AnalyzerKind::from_name(text_of(take_short(rest)?)?);
        known.push(QueryField { path, analyzer: analyzer.ok_or(Malformed("an unknown analyzer"))? });
    }
    let known_bytes = &whole[..whole.len() - rest.len()];
    let stats = read_all_stats(rest)?;
    Ok(Counted { view, known, known_bytes, stats })
}

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
    /// This phase's answers, by group.
    answers: Vec<Option<Vec<u8>>>,
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
            ask,
            offset: usize::try_from(offset).unwrap_or(usize::MAX),
            top_k: usize::try_from(top_k).unwrap_or(usize::MAX),
            phase: Phase::Count,
            answers: vec![None; topology.groups()],
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
        let calls = (0u16..).zip(self.topology.each());
        Step::Calls(calls.map(|(number, group)| Call::new(number, group, &record)).collect())
    }

    /// Defines the next missing index; counts again when all are there.
    fn define_next(&mut self) -> Step {
        let Some(index) = self.missing.pop() else {
            self.phase = Phase::Count;
            self.answers = vec![None; self.topology.groups()];
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
        match kind {
            ReplyKind::Part => {}
            ReplyKind::Error => return Ok(Step::passed_on(kind, body)),
            _ => return Err(NO_PART),
        }
        let answer =
            self.answers.get_mut(usize::from(number)).ok_or(Malformed("its number was never given"))?;
        if answer.replace(body.to_vec()).is_some() {
            return Err(Malformed("it came twice"));
        }
        if self.held_bytes() > super::RESULT_BYTES_MAX {
            return Ok(Step::too_large());
        }
        if self.answers.iter().any(Option::is_none) {
            return Ok(Step::Wait);
        }
        let answers: Vec<Vec<u8>> = self.answers.iter_mut().filter_map(Option::take).collect();
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
        let answers: usize = self.answers.iter().flatten().map(Vec::len).sum();
        let hits: usize = self.hits.iter().map(|(hit, _)| hit.key.len() + 32).sum();
        answers + hits + self.ask.query.len() + self.ask.filter.len()
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
        let record =
            Record { argument: Some(self.views[group]), ..Record::plain(Op::SearchHits, &[], value) };
        Call::new(number, GroupId(u32::from(number)), &record)
    }

    fn finish(&self, fetched: Option<&[Vec<u8>]>) -> Result<Step, Malformed> {
        let mut fetched: Option<Vec<&[u8]>> = fetched.map(|list| list.iter().map(Vec::as_slice).collect());
        let score_name: &[u8] = match self.ask.scoring {
            Scoring::Bm25 => b",\"score\":",
            _ => b",\"similarity\":",
        };
        let mut out = b"\"result\":[".to_vec();
        for (number, (hit, group)) in self.hits.iter().enumerate() {
            if number > 0 {
                out.push(b',');
            }
            out.extend_from_slice(b"{\"key\":");
            push_string(&mut out, text_of(&hit.key)?);
            out.extend_from_slice(score_name);
            push_float(&mut out, to_float(hit.score));
            if let Some(fetched) = &mut fetched {
                let rest = &mut fetched[usize::from(*group)];
                let (value, snippet) = (take_optional(rest)?, take_optional(rest)?);
                if self.ask.with_values {
                    out.extend_from_slice(b",\"value\":");
                    out.extend_from_slice(value.unwrap_or(b"null"));
                }
                if self.ask.highlight {
                    out.extend_from_slice(b",\"highlight\":");
                    push_string(&mut out, text_of(snippet.unwrap_or_default())?);
                }
            }
            out.push(b'}');
        }
        out.push(b']');
        Ok(Step::success(out))
    }
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

pub(super) fn push_short(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&u16::try_from(bytes.len()).expect("a key or path is short").to_le_bytes());
    out.extend_from_slice(bytes);
}

pub(super) fn push_long(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&u32::try_from(bytes.len()).expect("a value is below 4 GiB").to_le_bytes());
    out.extend_from_slice(bytes);
}

pub(super) fn take_short<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let length = usize::from(take_u16(rest)?);
    take(rest, length)
}

pub(super) fn take_long<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let length = take_u32(rest)? as usize;
    take(rest, length)
}

fn take_optional<'a>(rest: &mut &'a [u8]) -> Result<Option<&'a [u8]>, Malformed> {
    match take_u32(rest)? {
        NONE_LENGTH => Ok(None),
        length => take(rest, length as usize).map(Some),
    }
}
