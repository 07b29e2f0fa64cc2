//! What the commands of the index engine ask of shards. Knows the commands, not the indexes.

use shards::command::encode::consistency_bits;
use shards::gather::catalog::Change;
use shards::gather::search::{Ask, Scoring};
use shards::index::analyze::AnalyzerKind;
use shards::index::hybrid::{Fusion, candidates};
use shards::index::set::{IndexDefinition, IndexKind};
use shards::index::vector::Metric;
use strand_wire::code::Code;
use strand_wire::request::{self, Command, CreateIndex, Model, QueryIndex, SemanticQuery, SemanticSearch};

/// One of the ways of such a command.
pub(super) enum Plan<'c, 'l> {
    /// A ranked search.
    Search { ask: Ask, offset: u64, top_k: u64, flags: u16 },
    /// A page of a value index.
    Query(&'c QueryIndex<'l>),
    /// Every index.
    List,
    /// A change of the catalogue.
    Change(Change),
}

/// Why a command cannot be run.
type Refused = (Code, String);

/// The way of a command of the index engine.
pub(super) fn plan<'c, 'l>(command: &'c Command<'l>) -> Result<Plan<'c, 'l>, Refused> {
    match command {
        Command::Search(search) => {
            let ask = Ask {
                scoring: Scoring::Bm25,
                limit: window(search.offset, search.top_k),
                with_values: search.with_values,
                highlight: search.highlight,
                query: search.query.to_string(),
                fields: search.fields.iter().map(ToString::to_string).collect(),
                filter: search.filter_token.unwrap_or_default().to_vec(),
            };
            let flags = consistency_bits(search.consistency);
            Ok(Plan::Search { ask, offset: search.offset, top_k: search.top_k, flags })
        }
        Command::SemanticSearch(search) => {
            let (query, scoring) = similar_to(search)?;
            let ask = Ask {
                scoring,
                limit: window(0, search.top_k),
                with_values: false,
                highlight: false,
                query,
                fields: Vec::new(),
                filter: search.filter_token.unwrap_or_default().to_vec(),
            };
            let flags = consistency_bits(search.consistency);
            Ok(Plan::Search { ask, offset: 0, top_k: search.top_k, flags })
        }
        Command::HybridSearch(search) => {
            let has_embedding = match &search.model {
                Model::Embedding => true,
                Model::Tfidf => false,
                Model::Field(_) => {
                    return Err(bad("HYBRID_SEARCH takes model embedding or tfidf in \"model\""));
                }
            };
            let fusion = match search.fusion {
                request::Fusion::Convex => Fusion::Convex { alpha: search.alpha },
                request::Fusion::Rrf => Fusion::Rrf,
            };
            let ask = Ask {
                scoring: Scoring::Hybrid { has_embedding, fusion },
                limit: u32::try_from(candidates(size(search.offset), size(search.top_k))).unwrap_or(u32::MAX),
                with_values: false,
                highlight: false,
                query: search.query.to_string(),
                fields: Vec::new(),
                filter: search.filter_token.unwrap_or_default().to_vec(),
            };
            let flags = consistency_bits(search.consistency);
            Ok(Plan::Search { ask, offset: search.offset, top_k: search.top_k, flags })
        }
        Command::QueryIndex(query) => Ok(Plan::Query(query)),
        Command::ListIndexes => Ok(Plan::List),
        Command::CreateIndex(create) => define(create).map(Plan::Change),
        Command::DropIndex(drop) => {
            Ok(Plan::Change(Change::Drop { path: drop.field.to_string(), kind: drop.kind }))
        }
        _ => unreachable!("only the commands of the index engine are planned here"),
    }
}

/// What a SEMANTIC_SEARCH compares with, and how.
fn similar_to(search: &SemanticSearch<'_>) -> Result<(String, Scoring), Refused> {
    match (&search.query, &search.model) {
        (SemanticQuery::Text(query), Model::Tfidf) => Ok((query.to_string(), Scoring::Cosine)),
        (SemanticQuery::Text(query), Model::Embedding) => Ok((query.to_string(), Scoring::Embedding)),
        (SemanticQuery::Text(_), Model::Field(field)) => Err(bad(&format!(
            "\"query\" goes with model tfidf or embedding, and {field:?} is neither; vectors in a field are compared with a \"vector\""
        ))),
        (SemanticQuery::Vector(vector), Model::Field(path)) => {
            let (path, vector) = (path.to_string(), vector.clone());
            Ok((String::new(), Scoring::Vector { path, vector }))
        }
        (SemanticQuery::Vector(_), Model::Tfidf | Model::Embedding) => {
            Err(bad("with \"vector\" give the field of a vector index in \"model\""))
        }
    }
}

fn define(create: &CreateIndex<'_>) -> Result<Change, Refused> {
    let kind = match create.kind {
        request::IndexKind::Value => IndexKind::Value,
        request::IndexKind::Text => {
            let analyzer = match &create.analyzer {
                None => Some(AnalyzerKind::default()),
                Some(name) => AnalyzerKind::from_name(name),
            };
            let Some(analyzer) = analyzer else {
                return Err(bad("field \"analyzer\" names no analyzer; give english, standard or keyword"));
            };
            IndexKind::Text { analyzer }
        }
        request::IndexKind::Vector => IndexKind::Vector {
            dimensions: size(u64::from(create.dim.unwrap_or(0))),
            metric: match create.metric.unwrap_or_default() {
                request::Metric::Cosine => Metric::Cosine,
                request::Metric::Dot => Metric::Dot,
                request::Metric::L2 => Metric::L2,
            },
        },
    };
    Ok(Change::Define(IndexDefinition { path: create.field.to_string(), kind }))
}

fn bad(text: &str) -> Refused {
    (Code::BadRequest, text.to_owned())
}

fn size(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Hits that each shard must give so that none of the merged window is missing.
fn window(offset: u64, top_k: u64) -> u32 {
    u32::try_from(offset.saturating_add(top_k)).unwrap_or(u32::MAX)
}
