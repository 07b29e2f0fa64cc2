//! What routers and shards say to one another about a search: what is asked, what is counted, which hits were found.
//!
//! The layouts stand in the head of [`super::search`]. A protocol between threads of one process, read with bounds checked;
//! it decides nothing.

use super::text_of;
use crate::command::record::{Malformed, take, take_u8, take_u16, take_u32, take_u64};
use crate::index::analyze::AnalyzerKind;
use crate::index::hybrid::Fusion;
use crate::index::query::{CompiledQuery, QueryField, parse};
use crate::index::set::{IndexDefinition, IndexKind};
use crate::index::text::WHOLE;
use crate::index::text::search::{SearchHit, Stats};
use crate::index::vector::VectorHit;

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
pub(super) const NONE_LENGTH: u32 = u32::MAX;

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
    /// Whether embeddings are compared.
    pub fn has_embedding(&self) -> bool {
        matches!(self, Self::Embedding | Self::Hybrid { has_embedding: true, .. })
    }

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
pub(super) fn push_all_stats(out: &mut Vec<u8>, stats: &[Stats]) {
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
pub(super) fn read_missing(bytes: &[u8]) -> Result<Option<Vec<OnDemand>>, Malformed> {
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

/// What became of a hit between scoring and fetching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Its record is as it was.
    Same,
    /// Its record has changed, and has this score now.
    Rescored(i64),
    /// Its record is gone or does not match any more.
    Gone,
}

/// Appends what was fetched of one key; `None` for what was not asked for or is no more.
pub fn write_fetched(out: &mut Vec<u8>, fate: Fate, value: Option<&[u8]>, snippet: Option<&str>) {
    let (byte, score) = match fate {
        Fate::Same => (0, 0),
        Fate::Rescored(score) => (1, score),
        Fate::Gone => (2, 0),
    };
    out.push(byte);
    out.extend_from_slice(&score.to_le_bytes());
    for bytes in [value, snippet.map(str::as_bytes)] {
        match bytes {
            Some(bytes) => push_long(out, bytes),
            None => out.extend_from_slice(&NONE_LENGTH.to_le_bytes()),
        }
    }
}

/// What one shard counted.
pub(super) struct Counted<'a> {
    pub(super) view: u64,
    pub(super) known: Vec<QueryField>,
    /// The bytes that name the fields, to be compared among shards.
    pub(super) known_bytes: &'a [u8],
    pub(super) stats: Vec<Stats>,
}

pub(super) fn read_stats(mut bytes: &[u8]) -> Result<Counted<'_>, Malformed> {
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

pub(super) fn take_fate(rest: &mut &[u8]) -> Result<Fate, Malformed> {
    let (byte, score) = (take_u8(rest)?, take_u64(rest)? as i64);
    match byte {
        0 => Ok(Fate::Same),
        1 => Ok(Fate::Rescored(score)),
        2 => Ok(Fate::Gone),
        _ => Err(Malformed("an unknown fate of a hit")),
    }
}

pub(super) fn take_optional<'a>(rest: &mut &'a [u8]) -> Result<Option<&'a [u8]>, Malformed> {
    match take_u32(rest)? {
        NONE_LENGTH => Ok(None),
        length => take(rest, length as usize).map(Some),
    }
}
