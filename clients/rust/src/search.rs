//! Search and index methods: their options, their results, and the cursor of QUERY_INDEX.
//!
//! Only builds commands and reads results. Scores are what the server computed; ties are in its order.

use crate::client::Client;
use crate::command::Command;
use crate::error::Error;
use crate::options::setters;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::VecDeque;

/// Optional fields of the three searches. A field that a search does not know is refused by the server.
#[derive(Clone, Debug, Default)]
pub struct SearchOptions {
    top_k: Option<u32>,
    offset: Option<u32>,
    fields: Option<Vec<String>>,
    filter: Option<Value>,
    with_values: bool,
    highlight: bool,
    model: Option<String>,
    alpha: Option<f64>,
    fusion: Option<Fusion>,
}

/// How HYBRID_SEARCH joins its two rankings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fusion {
    /// (1 - alpha) bm25/best + alpha similarity.
    Convex,
    /// Reciprocal ranks, k = 60.
    Rrf,
}

impl SearchOptions {
    setters! {
        /// Number of hits, 10 by default; with the offset at most 10,000.
        top_k: u32 => |all, value| all.top_k = Some(value);
        /// Hits to leave out at the top.
        offset: u32 => |all, value| all.offset = Some(value);
        /// Paths such as `a.b` to search in, instead of the whole value.
        fields: Vec<String> => |all, value| all.fields = Some(value);
        /// A filter such as `{"field":"price","gte":10}`.
        filter: Value => |all, value| all.filter = Some(value);
        /// Asks for the values of the hits.
        with_values: bool => |all, value| all.with_values = value;
        /// Asks for snippets with the matches marked.
        highlight: bool => |all, value| all.highlight = value;
        /// Weight of the similarity in a convex fusion, 0 to 1; 0.2 by default.
        alpha: f64 => |all, value| all.alpha = Some(value);
        /// How a hybrid search joins its rankings.
        fusion: Fusion => |all, value| all.fusion = Some(value);
    }

    /// `tfidf`, `embedding`, or the field of a vector index.
    #[must_use]
    pub fn model(mut self, model: impl Into<String>) -> Self {
        self.model = Some(model.into());
        self
    }

    fn apply(&self, command: Command) -> Command {
        command
            .optional("top_k", self.top_k.as_ref())
            .optional("offset", self.offset.as_ref())
            .optional("fields", self.fields.as_ref())
            .optional("filter", self.filter.as_ref())
            .optional("with_values", self.with_values.then_some(&true))
            .optional("highlight", self.highlight.then_some(&true))
            .optional("model", self.model.as_ref())
            .optional("alpha", self.alpha.as_ref())
            .optional("fusion", self.fusion.as_ref())
    }
}

/// One hit of a search.
#[derive(Clone, Debug, Deserialize)]
pub struct Hit {
    /// The key.
    pub key: String,
    /// BM25 of SEARCH, the fused score of HYBRID_SEARCH; none for SEMANTIC_SEARCH.
    pub score: Option<f64>,
    /// Cosine similarity of SEMANTIC_SEARCH and HYBRID_SEARCH.
    pub similarity: Option<f64>,
    /// BM25 of HYBRID_SEARCH.
    pub bm25: Option<f64>,
    /// The value, when values were asked for.
    pub value: Option<Box<RawValue>>,
    /// What the server marked, when highlights were asked for.
    pub highlight: Option<Value>,
}

/// What CREATE_INDEX makes.
#[derive(Clone, Debug)]
pub enum IndexKind {
    /// Equality, ranges and prefixes of the values at a path.
    Value,
    /// Words, for SEARCH; with the name of an analyzer or the default one.
    Text {
        /// Name of the analyzer.
        analyzer: Option<String>,
    },
    /// Vectors that the client brings.
    Vector {
        /// Numbers in every vector.
        dim: u32,
        /// Name of the metric, or the default one.
        metric: Option<String>,
    },
}

/// What an index query asks for.
#[derive(Clone, Debug)]
pub struct IndexQuery {
    conditions: Vec<(&'static str, Value)>,
    limit: Option<u32>,
    descending: bool,
    with_values: bool,
}

impl IndexQuery {
    fn of(name: &'static str, value: Value) -> Self {
        Self { conditions: vec![(name, value)], limit: None, descending: false, with_values: false }
    }

    /// Values equal to this.
    pub fn value(value: impl Into<Value>) -> Self {
        Self::of("value", value.into())
    }

    /// Values above this.
    pub fn gt(value: impl Into<Value>) -> Self {
        Self::of("gt", value.into())
    }

    /// Values above this or equal to it.
    pub fn gte(value: impl Into<Value>) -> Self {
        Self::of("gte", value.into())
    }

    /// Values below this.
    pub fn lt(value: impl Into<Value>) -> Self {
        Self::of("lt", value.into())
    }

    /// Values below this or equal to it.
    pub fn lte(value: impl Into<Value>) -> Self {
        Self::of("lte", value.into())
    }

    /// Texts that begin with this.
    pub fn prefix(prefix: impl Into<String>) -> Self {
        Self::of("prefix", Value::String(prefix.into()))
    }

    /// And values below this, for a range.
    #[must_use]
    pub fn and_lt(mut self, value: impl Into<Value>) -> Self {
        self.conditions.push(("lt", value.into()));
        self
    }

    /// And values below this or equal to it, for a range.
    #[must_use]
    pub fn and_lte(mut self, value: impl Into<Value>) -> Self {
        self.conditions.push(("lte", value.into()));
        self
    }

    setters! {
        /// Keys a page, 10,000 by default.
        page: u32 => |all, value| all.limit = Some(value);
        /// Ranges from the greatest value down.
        descending: bool => |all, value| all.descending = value;
        /// Asks for values too.
        with_values: bool => |all, value| all.with_values = value;
    }

    fn command(&self, field: &str) -> Command {
        let mut command = Command::new("QUERY_INDEX").text("field", field);
        for (name, value) in &self.conditions {
            command = command.plain(name, value);
        }
        command
            .optional("limit", self.limit.as_ref())
            .optional("order", self.descending.then_some(&"desc"))
            .optional("with_values", self.with_values.then_some(&true))
    }
}

/// One match of an index query.
#[derive(Clone, Debug)]
pub struct Match {
    /// The key.
    pub key: String,
    /// Its value, when values were asked for.
    pub value: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct MatchWithValue {
    key: String,
    value: Box<RawValue>,
}

/// Iterator over the matches of an index query, page by page; made by [`Client::query_index`]. Ends after an error.
#[derive(Debug)]
pub struct Matches<'a> {
    client: &'a mut Client,
    field: String,
    query: IndexQuery,
    page: VecDeque<Match>,
    cursor: Option<String>,
    ended: bool,
}

impl Matches<'_> {
    fn fetch(&mut self) -> Result<(), Error> {
        let command = self.query.command(&self.field).optional("cursor", self.cursor.as_ref());
        let reply = self.client.execute(command)?;
        if self.query.with_values {
            let page: Vec<MatchWithValue> = reply.result()?;
            self.page.extend(page.into_iter().map(|one| Match { key: one.key, value: Some(one.value) }));
        } else {
            let page: Vec<String> = reply.result()?;
            self.page.extend(page.into_iter().map(|key| Match { key, value: None }));
        }
        self.cursor = reply.cursor().map(str::to_owned);
        self.ended = self.cursor.is_none();
        Ok(())
    }
}

impl Iterator for Matches<'_> {
    type Item = Result<Match, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.page.is_empty() && !self.ended {
            if let Err(error) = self.fetch() {
                self.ended = true;
                return Some(Err(error));
            }
        }
        self.page.pop_front().map(Ok)
    }
}

impl Client {
    /// Full-text search by BM25, best first.
    ///
    /// ```no_run
    /// use strand_client::SearchOptions;
    ///
    /// # let mut client = strand_client::Client::connect("127.0.0.1:8000")?;
    /// client.set("fox", "the quick brown fox")?;
    /// for hit in client.search("quick fox", &SearchOptions::default().top_k(5))? {
    ///     println!("{} {:.3}", hit.key, hit.score.unwrap_or_default());
    /// }
    /// # Ok::<(), strand_client::Error>(())
    /// ```
    pub fn search(&mut self, query: &str, options: &SearchOptions) -> Result<Vec<Hit>, Error> {
        self.execute(options.apply(Command::new("SEARCH").text("query", query)))?.result()
    }

    /// Search by similarity to a text.
    pub fn semantic_search(&mut self, query: &str, options: &SearchOptions) -> Result<Vec<Hit>, Error> {
        self.execute(options.apply(Command::new("SEMANTIC_SEARCH").text("query", query)))?.result()
    }

    /// Search by similarity to a vector of the caller's; the model is the field of a vector index.
    pub fn vector_search(&mut self, vector: &[f32], options: &SearchOptions) -> Result<Vec<Hit>, Error> {
        self.execute(options.apply(Command::new("SEMANTIC_SEARCH").plain("vector", vector)))?.result()
    }

    /// Search by words and similarity together.
    pub fn hybrid_search(&mut self, query: &str, options: &SearchOptions) -> Result<Vec<Hit>, Error> {
        self.execute(options.apply(Command::new("HYBRID_SEARCH").text("query", query)))?.result()
    }

    /// Makes an index on a field path; the same definition again is accepted.
    pub fn create_index(&mut self, field: &str, kind: &IndexKind) -> Result<(), Error> {
        let command = Command::new("CREATE_INDEX").text("field", field);
        let command = match kind {
            IndexKind::Value => command.text("kind", "value"),
            IndexKind::Text { analyzer } => {
                command.text("kind", "text").optional("analyzer", analyzer.as_ref())
            }
            IndexKind::Vector { dim, metric } => {
                command.text("kind", "vector").plain("dim", dim).optional("metric", metric.as_ref())
            }
        };
        self.execute(command).map(drop)
    }

    /// Goes through the keys whose value at a field meets a condition.
    ///
    /// ```no_run
    /// use strand_client::{IndexKind, IndexQuery};
    ///
    /// # let mut client = strand_client::Client::connect("127.0.0.1:8000")?;
    /// client.create_index("price", &IndexKind::Value)?;
    /// for found in client.query_index("price", IndexQuery::gte(10).and_lt(20)) {
    ///     println!("{}", found?.key);
    /// }
    /// # Ok::<(), strand_client::Error>(())
    /// ```
    pub fn query_index(&mut self, field: &str, query: IndexQuery) -> Matches<'_> {
        let (page, cursor, ended) = (VecDeque::new(), None, false);
        Matches { client: self, field: field.to_owned(), query, page, cursor, ended }
    }

    /// Every index: name, kind, state, progress, entries, bytes.
    pub fn list_indexes(&mut self) -> Result<Value, Error> {
        self.execute(Command::new("LIST_INDEXES"))?.result()
    }

    /// Removes an index; false when there was none. `kind` chooses among several on one field.
    pub fn drop_index(&mut self, field: &str, kind: Option<&str>) -> Result<bool, Error> {
        self.execute(Command::new("DROP_INDEX").text("field", field).optional("kind", kind.as_ref()))?
            .result()
    }
}
