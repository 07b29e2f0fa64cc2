//! SEARCH, and SEMANTIC_SEARCH by TF-IDF: two phases over all shards, so that the scores are those of one shard.
//!
//! Phase 1 has every shard pin a view and count the query's terms; the counts are added up. Phase 2 has every shard score
//! its view by the sums; the hits are merged by score, ties by key. Where values or snippets are wanted, phase 3 fetches
//! them from the pinned views, of the merged hits only. A shard lets go of its view after phase 2, or after phase 3 where
//! [`Ask::fetches`] says that it comes, and in any case at the deadline.
//!
//! Shard and router compile the query by [`Ask::compile`] from the fields that the shards name. Shards that name
//! different ones (an index is just being defined) end the search with OVERLOADED, which is safe to repeat.
//!
//! | call | argument | value | answer |
//! |---|---|---|---|
//! | `SearchStats` | | [`Ask`] | view u64, fields u16 count x {path, analyzer}, [`Stats`] |
//! | `SearchHits` | view | 1, [`Stats`] | per hit, best first: score i64, key u16 length |
//! | `SearchHits` | view | 2, items: keys | per key: value u32 length, snippet u32 length |

use super::catalog::{CatalogChange, Change};
use super::topology::Topology;
use super::{Call, Gather, NO_PART, Step, text_of};
use crate::batch::ReplyKind;
use crate::command::items;
use crate::command::record::{Malformed, Op, Record, flag, take, take_u8, take_u16, take_u32, take_u64};
use crate::ids::GroupId;
use crate::index::analyze::AnalyzerKind;
use crate::index::query::{CompiledQuery, QueryField, parse};
use crate::index::text::WHOLE;
use crate::index::text::score::to_float;
use crate::index::text::search::{Model, SearchHit, Stats};
use strand_wire::code::Code;
use strand_wire::json::push_string;
use strand_wire::reply::push_float;
use strand_wire::request::IndexKind;

/// What a shard is asked to search for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// How documents are scored.
    pub model: Model,
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
        out.push(match self.model {
            Model::Bm25 => 1,
            Model::Cosine => 2,
        });
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
        let model = match take_u8(rest)? {
            1 => Model::Bm25,
            2 => Model::Cosine,
            _ => return Err(Malformed("an unknown way of scoring")),
        };
        let wants = take_u8(rest)?;
        let limit = take_u32(rest)?;
        let query = text_of(take_long(rest)?)?.to_owned();
        let count = take_u16(rest)?;
        let fields = (0..count).map(|_| Ok(text_of(take_short(rest)?)?.to_owned()));
        let fields = fields.collect::<Result<_, Malformed>>()?;
        let (with_values, highlight) = (wants & 1 != 0, wants & 2 != 0);
        Ok(Self { model, limit, with_values, highlight, query, fields, filter: rest.to_vec() })
    }

    /// The query over the text fields that a shard has; `None` when one that it needs is missing.
    pub fn compile(&self, known: &[QueryField]) -> Option<CompiledQuery> {
        let find = |path: &str| known.iter().find(|field| field.path == path).cloned();
        if self.model == Model::Cosine {
            return Some(CompiledQuery::words(&self.query, &find(WHOLE)?));
        }
        let targets = if self.fields.is_empty() {
            vec![find(WHOLE)?]
        } else {
            self.fields.iter().map(|path| find(path)).collect::<Option<Vec<_>>>()?
        };
        let ast = parse(&self.query, &|name| known.iter().any(|field| field.path == name));
        Some(CompiledQuery::new(&ast, &targets, known))
    }
}

/// Appends the answer to the first phase.
pub fn write_stats(out: &mut Vec<u8>, view: u64, known: &[QueryField], stats: &Stats) {
    out.extend_from_slice(&view.to_le_bytes());
    out.extend_from_slice(&u16::try_from(known.len()).expect("few text fields").to_le_bytes());
    for field in known {
        push_short(out, field.path.as_bytes());
        push_short(out, field.analyzer.name().as_bytes());
    }
    stats.encode(out);
}

/// The view's number in the answer of a shard that lacks text indexes which the search needs.
const MISSING: u64 = u64::MAX;

/// Appends the answer to the first phase of a shard without these text indexes.
pub fn write_missing(out: &mut Vec<u8>, paths: &[&str]) {
    out.extend_from_slice(&MISSING.to_le_bytes());
    for path in paths {
        push_short(out, path.as_bytes());
    }
}

/// The paths of such an answer; `None` for any other.
fn read_missing(bytes: &[u8]) -> Result<Option<Vec<String>>, Malformed> {
    let mut rest = bytes;
    if take_u64(&mut rest)? != MISSING {
        return Ok(None);
    }
    let mut paths = Vec::new();
    while !rest.is_empty() {
        paths.push(text_of(take_short(&mut rest)?)?.to_owned());
    }
    Ok(Some(paths))
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
    stats: Stats,
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
    let stats = Stats::decode(rest).map_err(|corrupt| Malformed(corrupt.0))?;
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
    /// Text indexes to define, the last one first, and the definition under way.
    missing: Vec<String>,
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
        let Some(path) = self.missing.pop() else {
            self.phase = Phase::Count;
            self.answers = vec![None; self.topology.groups()];
            return self.count();
        };
        self.phase = Phase::Define;
        let analyzer = AnalyzerKind::default().name().to_owned();
        let change = Change::Define { path, kind: IndexKind::Text, analyzer };
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
            Phase::Count => self.counted(&answers),
            Phase::Define => Err(NO_PART),
            Phase::Score => self.scored(&answers),
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
        let query = self.ask.compile(&first.known).ok_or(Malformed("it lacks the text field"))?;
        let mut sums = first.stats.clone();
        for other in others {
            sums.merge(&other.stats, &query).map_err(|corrupt| Malformed(corrupt.0))?;
        }
        self.views = counted.iter().map(|counted| counted.view).collect();
        self.phase = Phase::Score;
        let mut value = vec![SCORE];
        sums.encode(&mut value);
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

    fn call(&self, group: usize, value: &[u8]) -> Call {
        let number = u16::try_from(group).expect("at most 4,096 groups");
        let record =
            Record { argument: Some(self.views[group]), ..Record::plain(Op::SearchHits, &[], value) };
        Call::new(number, GroupId(u32::from(number)), &record)
    }

    fn finish(&self, fetched: Option<&[Vec<u8>]>) -> Result<Step, Malformed> {
        let mut fetched: Option<Vec<&[u8]>> = fetched.map(|list| list.iter().map(Vec::as_slice).collect());
        let score_name: &[u8] = match self.ask.model {
            Model::Bm25 => b",\"score\":",
            Model::Cosine => b",\"similarity\":",
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
