//! Searches and indexes: what is asked, checked for sense but not for meaning (queries and paths are parsed by the
//! engine, which also knows the indexes).
//!
//! `top_k` 0 is legal and asks for no hits. `offset + top_k` is at most `window_max`.

use super::data::{Consistency, consistency, page_limit};
use super::fields::{Fields, ill_typed};
use super::filter::{Filter, Test, TestFields, filter, path_of, read_test};
use super::refusal::Problem;
use crate::json::{Elements, kind_of};
use std::borrow::Cow;

/// Full-text search.
#[derive(Clone, Debug, PartialEq)]
pub struct Search<'a> {
    /// The query's text.
    pub query: Cow<'a, str>,
    /// Hits in the answer.
    pub top_k: u64,
    /// Hits to pass over first.
    pub offset: u64,
    /// Only these paths; empty for the whole value.
    pub fields: Vec<Cow<'a, str>>,
    /// What hits must satisfy.
    pub filter: Option<Filter<'a>>,
    /// The filter's JSON token, for sending on.
    pub filter_token: Option<&'a [u8]>,
    /// Whether values come with the hits.
    pub with_values: bool,
    /// Whether snippets come with the hits.
    pub highlight: bool,
    /// How fresh the answer must be.
    pub consistency: Consistency,
}

/// Search by similarity.
#[derive(Clone, Debug, PartialEq)]
pub struct SemanticSearch<'a> {
    /// What to be similar to.
    pub query: SemanticQuery<'a>,
    /// Hits in the answer.
    pub top_k: u64,
    /// What makes texts similar.
    pub model: Model<'a>,
    /// What hits must satisfy.
    pub filter: Option<Filter<'a>>,
    /// The filter's JSON token, for sending on.
    pub filter_token: Option<&'a [u8]>,
    /// How fresh the answer must be.
    pub consistency: Consistency,
}

/// What a semantic search compares with.
#[derive(Clone, Debug, PartialEq)]
pub enum SemanticQuery<'a> {
    /// A text.
    Text(Cow<'a, str>),
    /// A vector of finite numbers, at least one.
    Vector(Vec<f32>),
}

/// Full-text search and similarity together.
#[derive(Clone, Debug, PartialEq)]
pub struct HybridSearch<'a> {
    /// The query's text.
    pub query: Cow<'a, str>,
    /// Hits in the answer.
    pub top_k: u64,
    /// Hits to pass over first.
    pub offset: u64,
    /// What makes texts similar.
    pub model: Model<'a>,
    /// The weight of similarity, from 0 to 1.
    pub alpha: f64,
    /// How the two scores are joined.
    pub fusion: Fusion,
    /// What hits must satisfy.
    pub filter: Option<Filter<'a>>,
    /// The filter's JSON token, for sending on.
    pub filter_token: Option<&'a [u8]>,
    /// How fresh the answer must be.
    pub consistency: Consistency,
}

/// What makes texts similar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Model<'a> {
    /// TF-IDF cosine over the text index.
    Tfidf,
    /// The built-in word embeddings.
    Embedding,
    /// The client's own vectors in this indexed field.
    Field(Cow<'a, str>),
}

/// How a hybrid search joins its scores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fusion {
    /// A weighted sum.
    #[default]
    Convex,
    /// Reciprocal ranks.
    Rrf,
}

/// Indexes a field.
#[derive(Clone, Debug, PartialEq)]
pub struct CreateIndex<'a> {
    /// The field's path.
    pub field: Cow<'a, str>,
    /// What the index answers.
    pub kind: IndexKind,
    /// Dimensions; there exactly for vectors.
    pub dim: Option<u32>,
    /// How vectors compare; there exactly for vectors.
    pub metric: Option<Metric>,
    /// Name of the analyzer, for text only; the default one without it.
    pub analyzer: Option<Cow<'a, str>>,
}

/// What an index answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum IndexKind {
    /// Equality, ranges and prefixes.
    #[default]
    Value,
    /// Words.
    Text,
    /// Similarity to a vector.
    Vector,
}

/// How vectors compare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Metric {
    /// The cosine of their angle.
    #[default]
    Cosine,
    /// Their inner product.
    Dot,
    /// Their Euclidean distance.
    L2,
}

/// Keys by the value of an indexed field.
#[derive(Clone, Debug, PartialEq)]
pub struct QueryIndex<'a> {
    /// The field's path.
    pub field: Cow<'a, str>,
    /// What its value must be.
    pub test: Test<'a>,
    /// Keys in the page.
    pub limit: u64,
    /// Where the page before ended.
    pub cursor: Option<Cow<'a, str>>,
    /// In which order.
    pub order: Order,
    /// Whether values come with the keys.
    pub with_values: bool,
    /// How fresh the answer must be.
    pub consistency: Consistency,
}

/// The order of an index's answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Least first.
    #[default]
    Ascending,
    /// Greatest first.
    Descending,
}

/// Removes an index.
#[derive(Clone, Debug, PartialEq)]
pub struct DropIndex<'a> {
    /// The field's path.
    pub field: Cow<'a, str>,
    /// Only the index of this kind.
    pub kind: Option<IndexKind>,
}

const TOP_K_DEFAULT: u64 = 10;
const ALPHA_DEFAULT: f64 = 0.2;
const QUERY_LIMIT_DEFAULT: u64 = 10_000;

pub(super) fn search<'a>(fields: &Fields<'a, '_>) -> Result<Search<'a>, Problem> {
    let offset = fields.unsigned("offset")?.unwrap_or(0);
    Ok(Search {
        query: fields.needed_text("query")?,
        top_k: top_k(fields, offset)?,
        offset,
        fields: paths(fields)?,
        filter: filter(fields)?,
        filter_token: fields.raw("filter").0,
        with_values: fields.flag("with_values")?,
        highlight: fields.flag("highlight")?,
        consistency: consistency(fields)?,
    })
}

pub(super) fn semantic<'a>(fields: &Fields<'a, '_>) -> Result<SemanticSearch<'a>, Problem> {
    let query = match (fields.text("query")?, vector(fields)?) {
        (Some(text), None) => SemanticQuery::Text(text),
        (None, Some(vector)) => SemanticQuery::Vector(vector),
        _ => return Err(Problem::bad("SEMANTIC_SEARCH needs either \"query\" or \"vector\"".to_owned())),
    };
    let model = model(fields, Model::Tfidf)?;
    if let (SemanticQuery::Vector(_), Model::Tfidf | Model::Embedding) = (&query, &model) {
        let message = "with \"vector\" give the field of a vector index in \"model\"";
        return Err(Problem::bad(message.to_owned()));
    }
    Ok(SemanticSearch {
        query,
        top_k: top_k(fields, 0)?,
        model,
        filter: filter(fields)?,
        filter_token: fields.raw("filter").0,
        consistency: consistency(fields)?,
    })
}

pub(super) fn hybrid<'a>(fields: &Fields<'a, '_>) -> Result<HybridSearch<'a>, Problem> {
    let offset = fields.unsigned("offset")?.unwrap_or(0);
    Ok(HybridSearch {
        query: fields.needed_text("query")?,
        top_k: top_k(fields, offset)?,
        offset,
        model: model(fields, Model::Embedding)?,
        alpha: alpha(fields)?,
        fusion: fields.choice("fusion", &[Fusion::Convex, Fusion::Rrf])?.unwrap_or_default(),
        filter: filter(fields)?,
        filter_token: fields.raw("filter").0,
        consistency: consistency(fields)?,
    })
}

pub(super) fn create_index<'a>(fields: &Fields<'a, '_>) -> Result<CreateIndex<'a>, Problem> {
    let kind = index_kind(fields)?.unwrap_or_default();
    let dim = fields.unsigned_up_to("dim", fields.limits.dimensions_max as u64)?;
    let dim = dim.map(|dim| u32::try_from(dim).expect("the table's range fits 32 bits"));
    let metric = fields.choice("metric", &[Metric::Cosine, Metric::Dot, Metric::L2])?;
    let analyzer = fields.text("analyzer")?;
    let field = fields.needed_text("field")?;
    let vector = kind == IndexKind::Vector;
    let complaint = if vector && dim.is_none() {
        "a vector index needs \"dim\""
    } else if !vector && (dim.is_some() || metric.is_some()) {
        "\"dim\" and \"metric\" are for an index of kind vector only"
    } else if kind != IndexKind::Text && analyzer.is_some() {
        "\"analyzer\" is for an index of kind text only"
    } else {
        let metric = vector.then(|| metric.unwrap_or_default());
        return Ok(CreateIndex { field, kind, dim, metric, analyzer });
    };
    Err(Problem::bad(complaint.to_owned()))
}

pub(super) fn query_index<'a>(fields: &Fields<'a, '_>) -> Result<QueryIndex<'a>, Problem> {
    let raw = |name| fields.raw(name).0;
    let test = TestFields {
        value: raw("value"),
        gt: raw("gt"),
        gte: raw("gte"),
        lt: raw("lt"),
        lte: raw("lte"),
        prefix: raw("prefix"),
    };
    Ok(QueryIndex {
        field: fields.needed_text("field")?,
        test: read_test(&test, "QUERY_INDEX", fields.limits)?,
        limit: page_limit(fields, QUERY_LIMIT_DEFAULT)?,
        cursor: fields.text("cursor")?,
        order: fields.choice("order", &[Order::Ascending, Order::Descending])?.unwrap_or_default(),
        with_values: fields.flag("with_values")?,
        consistency: consistency(fields)?,
    })
}

pub(super) fn drop_index<'a>(fields: &Fields<'a, '_>) -> Result<DropIndex<'a>, Problem> {
    Ok(DropIndex { field: fields.needed_text("field")?, kind: index_kind(fields)? })
}

fn index_kind(fields: &Fields<'_, '_>) -> Result<Option<IndexKind>, Problem> {
    fields.choice("kind", &[IndexKind::Value, IndexKind::Text, IndexKind::Vector])
}

/// `top_k`, such that the window with `offset` stays in bounds.
fn top_k(fields: &Fields<'_, '_>, offset: u64) -> Result<u64, Problem> {
    let top_k = fields.unsigned("top_k")?.unwrap_or(TOP_K_DEFAULT);
    let max = fields.limits.window_max;
    if offset.saturating_add(top_k) > max {
        let message = format!("\"offset\" and \"top_k\" together may be at most {max}");
        return Err(Problem { code: crate::code::Code::TooLarge, message, limit: Some(max) });
    }
    Ok(top_k)
}

fn model<'a>(fields: &Fields<'a, '_>, default: Model<'a>) -> Result<Model<'a>, Problem> {
    Ok(match fields.text("model")? {
        None => default,
        Some(name) if name == "tfidf" => Model::Tfidf,
        Some(name) if name == "embedding" => Model::Embedding,
        Some(name) => Model::Field(name),
    })
}

fn alpha(fields: &Fields<'_, '_>) -> Result<f64, Problem> {
    let Some(token) = fields.raw("alpha").0 else { return Ok(ALPHA_DEFAULT) };
    let alpha = number(token).filter(|alpha| (0.0..=1.0).contains(alpha));
    alpha.ok_or_else(|| ill_typed("alpha", "a number from 0 to 1", token))
}

/// A number token's nearest double. Strings such as `inf`, which Rust would read, are no JSON numbers.
fn number(token: &[u8]) -> Option<f64> {
    let first = *token.first()?;
    if first != b'-' && !first.is_ascii_digit() {
        return None;
    }
    std::str::from_utf8(token).ok()?.parse().ok()
}

fn vector(fields: &Fields<'_, '_>) -> Result<Option<Vec<f32>>, Problem> {
    let Some(token) = fields.raw("vector").0 else { return Ok(None) };
    let expected = |token| ill_typed("vector", "an array of at least one number", token);
    let mut vector = Vec::new();
    for element in Elements::new(token, 1) {
        let element = element.map_err(|_| expected(token))?;
        if vector.len() == fields.limits.dimensions_max {
            return Err(Problem::too_large("field \"vector\"", fields.limits.dimensions_max, "numbers"));
        }
        let component = number(element).map(|number| number as f32).filter(|number| number.is_finite());
        vector.push(component.ok_or_else(|| {
            let at = vector.len();
            match kind_of(element) {
                "a number" | "an integer" => {
                    Problem::bad(format!("vector[{at}] is beyond what a 32-bit float holds"))
                }
                kind => Problem::bad(format!("vector[{at}] must be a number, not {kind}")),
            }
        })?);
    }
    if vector.is_empty() { Err(expected(token)) } else { Ok(Some(vector)) }
}

fn paths<'a>(fields: &Fields<'a, '_>) -> Result<Vec<Cow<'a, str>>, Problem> {
    let Some(token) = fields.raw("fields").0 else { return Ok(Vec::new()) };
    let expected = || ill_typed("fields", "an array of at least one field path", token);
    let mut paths = Vec::new();
    for element in Elements::new(token, 1) {
        let element = element.map_err(|_| expected())?;
        if paths.len() == fields.limits.paths_max {
            return Err(Problem::too_large("field \"fields\"", fields.limits.paths_max, "paths"));
        }
        let what = format!("fields[{}]", paths.len());
        paths.push(path_of(element, &what)?);
    }
    if paths.is_empty() { Err(expected()) } else { Ok(paths) }
}
