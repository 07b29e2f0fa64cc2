//! What the commands of the index engine ask of shards. Knows the commands, not the indexes.

use shards::command::encode::consistency_bits;
use shards::gather::catalog::Change;
use shards::gather::search::Ask;
use shards::index::analyze::AnalyzerKind;
use shards::index::text::search::Model as Scoring;
use strand_wire::code::Code;
use strand_wire::request::{Command, CreateIndex, IndexKind, Model, QueryIndex, SemanticQuery};

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
                model: Scoring::Bm25,
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
            let (SemanticQuery::Text(query), Model::Tfidf) = (&search.query, &search.model) else {
                return Err(no_vectors());
            };
            let ask = Ask {
                model: Scoring::Cosine,
                limit: window(0, search.top_k),
                with_values: false,
                highlight: false,
                query: query.to_string(),
                fields: Vec::new(),
                filter: search.filter_token.unwrap_or_default().to_vec(),
            };
            let flags = consistency_bits(search.consistency);
            Ok(Plan::Search { ask, offset: 0, top_k: search.top_k, flags })
        }
        Command::QueryIndex(query) => Ok(Plan::Query(query)),
        Command::ListIndexes => Ok(Plan::List),
        Command::CreateIndex(create) => define(create).map(Plan::Change),
        Command::DropIndex(drop) => {
            Ok(Plan::Change(Change::Drop { path: drop.field.to_string(), kind: drop.kind }))
        }
        _ => Err(no_vectors()),
    }
}

fn define(create: &CreateIndex<'_>) -> Result<Change, Refused> {
    let analyzer = match (create.kind, &create.analyzer) {
        (IndexKind::Vector, _) => return Err(no_vectors()),
        (IndexKind::Value, _) => String::new(),
        (IndexKind::Text, None) => AnalyzerKind::default().name().to_owned(),
        (IndexKind::Text, Some(name)) => match AnalyzerKind::from_name(name) {
            Some(kind) => kind.name().to_owned(),
            None => {
                let text = "field \"analyzer\" names no analyzer; give english, standard or keyword";
                return Err((Code::BadRequest, text.to_owned()));
            }
        },
    };
    Ok(Change::Define { path: create.field.to_string(), kind: create.kind, analyzer })
}

/// Hits that each shard must give so that none of the merged window is missing.
fn window(offset: u64, top_k: u64) -> u32 {
    u32::try_from(offset.saturating_add(top_k)).unwrap_or(u32::MAX)
}

fn no_vectors() -> Refused {
    let text = "this server has no vectors; use SEARCH, or SEMANTIC_SEARCH with model tfidf";
    (Code::UnsupportedInMode, text.to_owned())
}
