//! Strand's side: the text index of one shard, worked as a shard works it.

use crate::Outcome;
use crate::corpus::Document;
use shards::index::Units;
use shards::index::analyze::AnalyzerKind;
use shards::index::query::{CompiledQuery, parse};
use shards::index::text::search::{Model, Search, SearchHit};
use shards::index::text::{TextIndex, WHOLE};

/// Units of a step of background work or of a search, as in a shard.
const STEP_UNITS: u32 = 20_000;
/// Units of indexing after which as many go to merging, as in a shard.
const MAINTENANCE_UNITS: u32 = 2048;

/// Indexes all documents, each visible to a search as soon as it is in; merging keeps pace, unit for unit.
pub fn fill(documents: &[Document]) -> TextIndex {
    let mut index = TextIndex::new();
    assert!(index.add_field(WHOLE, AnalyzerKind::English), "an empty index takes a field");
    let mut debt = 0;
    for document in documents {
        let mut units = Units::new(0);
        index.put(document.key.as_bytes(), document.value.as_bytes(), &mut units);
        debt -= units.balance();
        while debt >= i64::from(MAINTENANCE_UNITS) {
            if !index.has_work() {
                debt = 0;
                break;
            }
            let mut budget = Units::new(MAINTENANCE_UNITS);
            index.work(&mut budget);
            debt -= i64::from(MAINTENANCE_UNITS) - budget.balance();
        }
    }
    index
}

/// Does all merging that is left.
pub fn settle(index: &mut TextIndex) {
    while index.has_work() {
        index.work(&mut Units::new(STEP_UNITS));
    }
}

/// The best `limit` documents for a query, from its text on, in both phases.
pub fn search(index: &TextIndex, text: &str, limit: usize) -> Outcome<Vec<SearchHit>> {
    let fields = index.query_fields();
    let query = CompiledQuery::new(&parse(text, &|_| false), &fields, &fields);
    let (view, stats) = index.pin(&query);
    let mut search = Search::new(view, &query, &stats, Model::Bm25, limit)?;
    while !search.step_trusting(&mut Units::new(STEP_UNITS), &mut |_| true) {}
    Ok(search.into_hits())
}
