//! Searches and indexes of a shard: what waits for indexing, what is pinned, what runs in slices.
//!
//! A search first waits until everything that was admitted before it is applied and indexed; counting then pins what it
//! sees, and the second call scores that view with the figures of all shards. Index definitions come from the catalogue
//! of group 0. Bounded: views, by number and by their search's deadline; each slice, by work units.

use super::outbox::{Waiter, reply, reply_failure};
use super::{Parked, Shard, ShardFault};
use crate::batch::{ReplyKind, RequestHead};
use crate::catalog::{Catalog, Edit};
use crate::command::answer::{Failure, Outcome};
use crate::command::context::is_over;
use crate::command::record::{Malformed, Op, Record};
use crate::effect::Effects;
use crate::gather::search_parts::{Counted, HitPart, HitsRequest, IndexQuery, SearchQuery, push_bytes};
use crate::ids::{Millis, hash_of};
use crate::index::Units;
use crate::index::extract::Walker;
use crate::index::filter::Filter;
use crate::index::query::{CompiledQuery, QueryField, parse};
use crate::index::set::{BuildState, DocumentSource, IndexSet};
use crate::index::text::WHOLE;
use crate::index::text::search::{Model, Search, Stats, View};
use crate::state::{KeySpace, Position};
use std::collections::{BTreeMap, VecDeque};

/// Views that may be pinned at once.
const VIEWS_MAX: usize = 1024;
/// Searches and index queries that may wait or run at once.
const TASKS_MAX: usize = 16_384;
/// Units of one slice of a search.
const SEARCH_UNITS: u32 = 4096;
/// Units of one slice of indexing, small enough to stay well below a millisecond.
const INDEX_UNITS: u32 = 2048;
/// Keys that wait to be indexed before writes slow down to the speed of indexing.
const BACKLOG_MAX: usize = 100_000;
/// A snapshot begins when no more than so many keys wait: draining them takes a moment.
const BACKLOG_AT_SNAPSHOT_MAX: usize = 256;
/// Units of one page of a value index.
const QUERY_UNITS: u32 = 100_000;
/// Bytes of values that one shard sends with the hits of one search.
const HIT_VALUES_BYTES_MAX: usize = 32 << 20;

/// Indexes and searches of a shard.
#[derive(Default)]
pub(super) struct Searches {
    pub(super) indexes: IndexSet,
    pub(super) catalog: Catalog,
    /// Searches that wait until everything up to a position is indexed.
    waiting: VecDeque<(u64, Parked)>,
    views: BTreeMap<u64, Pinned>,
    next_view: u64,
    running: VecDeque<Running>,
    /// Changes of the catalogue that are on their way through the log.
    pub(super) edits_in_flight: usize,
    /// Changes of the catalogue that wait for the end of a snapshot.
    held_edits: VecDeque<Parked>,
}

struct Pinned {
    view: View,
    query: CompiledQuery,
    model: Model,
    filter: Option<Filter>,
    deadline: Millis,
}

struct Running {
    search: Search,
    filter: Option<Filter>,
    waiter: Waiter,
    with_values: bool,
}

/// The records as the index room wants to read them.
struct Documents<'a>(&'a KeySpace);

impl DocumentSource for Documents<'_> {
    fn value(&self, key: &[u8]) -> Option<&[u8]> {
        self.0.get(hash_of(key), key).map(|record| record.value)
    }

    fn scan(&self, cursor: &[u8], limit: usize, each: &mut dyn FnMut(&[u8], &[u8])) -> Option<Vec<u8>> {
        let from = match cursor.split_first_chunk::<8>() {
            Some((hash, key)) => {
                Position { hash: crate::ids::KeyHash(u64::from_le_bytes(*hash)), key: key.to_vec() }
            }
            None => Position::default(),
        };
        let budget = limit.max(1) * 8;
        let page = self.0.scan(&from, &[], limit.max(1), budget, |record| each(record.key, record.value));
        page.next.map(|next| [&next.hash.0.to_le_bytes()[..], &next.key].concat())
    }
}

impl Shard {
    /// SEARCH's first call: waits for what was applied when it came to be indexed.
    pub(super) fn begin_search(
        &mut self,
        router: u8,
        head: &RequestHead,
        bytes: &[u8],
        effects: &mut Effects,
    ) {
        if self.searches.waiting.len() + self.searches.running.len() >= TASKS_MAX {
            let failure = Failure::Overloaded("too many searches wait in this shard; try again later");
            return reply_failure(effects, router, head.token, failure);
        }
        let position = self.searches.indexes.position();
        self.searches.waiting.push_back((position, Parked { router, head: *head, record: bytes.into() }));
        self.answer_waiting_searches(effects);
    }

    /// SEARCH's second call: scores the pinned view.
    pub(super) fn score(
        &mut self,
        router: u8,
        head: &RequestHead,
        record: &Record<'_>,
        effects: &mut Effects,
    ) {
        let request = match HitsRequest::decode(record.value) {
            Ok(request) => request,
            Err(malformed) => return internal(router, head, malformed, effects),
        };
        let Some(pinned) = self.searches.views.remove(&request.view) else {
            let failure = Failure::Timeout { unknown: false };
            return reply_failure(effects, router, head.token, failure);
        };
        let Pinned { view, query, model, filter, .. } = pinned;
        let search = Stats::decode(request.stats)
            .and_then(|stats| Search::new(view, &query, &stats, model, request.limit as usize));
        let search = match search {
            Ok(search) => search,
            Err(corrupt) => return internal(router, head, Malformed(corrupt.0), effects),
        };
        let waiter = Waiter::client(router, head, false);
        self.searches.running.push_back(Running { search, filter, waiter, with_values: request.with_values });
        // Most searches end within their first slice, and then at once.
        self.run_searches(SEARCH_UNITS, effects);
    }

    /// Goes on with searches and indexing; whether more can be done now.
    pub(super) fn search_some(&mut self, effects: &mut Effects) -> bool {
        self.run_searches(SEARCH_UNITS, effects);
        if self.searches.indexes.has_work() {
            let mut units = Units::new(INDEX_UNITS);
            self.searches.indexes.work(&mut units, &Documents(&self.state.keys));
            self.answer_waiting_searches(effects);
        }
        self.has_search_work()
    }

    /// Whether searches or indexing want a slice.
    pub(super) fn has_search_work(&self) -> bool {
        !self.searches.running.is_empty() || self.searches.indexes.has_work()
    }

    /// Whether writes must wait for indexing: the backlog is full, or a snapshot drains it.
    pub(super) fn indexing_is_behind(&self) -> bool {
        let backlog = self.searches.indexes.backlog_len();
        backlog >= BACKLOG_MAX || (backlog > 0 && self.snapshot_drains_backlog())
    }

    /// Whether the backlog is short enough for a snapshot to drain it.
    pub(super) fn backlog_is_short(&self) -> bool {
        self.searches.indexes.backlog_len() <= BACKLOG_AT_SNAPSHOT_MAX
    }

    /// Gives up what is past its deadline.
    pub(super) fn give_up_searches(&mut self, effects: &mut Effects) {
        let now = self.now;
        let mut late = Vec::new();
        let searches = &mut self.searches;
        let mut keep = |parked: &Parked| super::admit::keep_or_note(parked, now, &mut late);
        searches.waiting.retain(|(_, parked)| keep(parked));
        searches.held_edits.retain(|parked| keep(parked));
        searches.views.retain(|_, pinned| pinned.deadline > now);
        searches.running.retain(|running| {
            let in_time = running.waiter.deadline > now;
            if !in_time {
                late.push((running.waiter.router, running.waiter.token));
            }
            in_time
        });
        for (router, token) in late {
            reply_failure(effects, router, token, Failure::Timeout { unknown: false });
        }
    }

    /// CREATE_INDEX and DROP_INDEX at group 0, and the catalogue at the others.
    pub(super) fn admit_catalog(&mut self, router: u8, head: &RequestHead, bytes: &[u8]) {
        if self.snapshot_runs() {
            let parked = Parked { router, head: *head, record: bytes.into() };
            return self.searches.held_edits.push_back(parked);
        }
        self.searches.edits_in_flight += 1;
        self.gather(bytes, Waiter::client(router, head, false), None);
    }

    /// Admits the changes of the catalogue that a snapshot held back.
    pub(super) fn release_edits(&mut self) {
        while let Some(parked) = self.searches.held_edits.pop_front() {
            self.admit_catalog(parked.router, &parked.head, &parked.record);
        }
    }

    /// Applies an edit at group 0; answers {outcome u8, catalogue}.
    pub(super) fn apply_catalog_edit(&mut self, record: &Record<'_>) -> Result<Outcome, ShardFault> {
        let edit = Edit::decode(record.value)?;
        let edited = self.searches.catalog.edit(&edit);
        let mut body = vec![edited as u8];
        self.searches.catalog.encode(&mut body);
        self.follow_catalog();
        Ok(Outcome::Members(ReplyKind::Part, body))
    }

    /// Takes over a later catalogue.
    pub(super) fn apply_catalog(&mut self, record: &Record<'_>) -> Result<Outcome, ShardFault> {
        let catalog = Catalog::decode(record.value)?;
        if catalog.version > self.searches.catalog.version {
            self.searches.catalog = catalog;
            self.follow_catalog();
        }
        Ok(Outcome::Ok)
    }

    /// LIST_INDEXES: the catalogue, then per index {entries u64, bytes u64, scanned u64 or all ones when ready}.
    pub(super) fn answer_indexes(&self, router: u8, head: &RequestHead, effects: &mut Effects) {
        let searches = &self.searches;
        let records = self.state.keys.len() as u64;
        effects.replies_to(router).push(head.token, ReplyKind::Part, |out| {
            let mut catalog = Vec::new();
            searches.catalog.encode(&mut catalog);
            push_bytes(out, &catalog);
            out.extend_from_slice(&records.to_le_bytes());
            out.extend_from_slice(&(searches.indexes.backlog_len() as u64).to_le_bytes());
            let list = searches.indexes.list();
            for definition in &searches.catalog.definitions {
                let info = list.iter().find(|info| info.definition == *definition);
                let scanned = match info.map(|info| info.state) {
                    Some(BuildState::Ready) => u64::MAX,
                    Some(BuildState::Building { scanned }) => scanned,
                    None => 0,
                };
                let (entries, bytes) = info.map_or((0, 0), |info| (info.entries, info.bytes));
                for number in [entries, bytes, scanned] {
                    out.extend_from_slice(&number.to_le_bytes());
                }
            }
        });
    }

    /// Brings the indexes in line with the catalogue.
    fn follow_catalog(&mut self) {
        let searches = &mut self.searches;
        let gone: Vec<(String, &'static str)> = searches
            .indexes
            .definitions()
            .filter(|known| !searches.catalog.definitions.contains(known))
            .map(|known| (known.path.clone(), known.kind.name()))
            .collect();
        for (path, kind) in gone {
            searches.indexes.drop_index(&path, kind);
        }
        for definition in &searches.catalog.definitions {
            searches.indexes.define(definition.clone());
        }
    }

    fn answer_waiting_searches(&mut self, effects: &mut Effects) {
        for _ in 0..self.searches.waiting.len() {
            let Some((position, parked)) = self.searches.waiting.pop_front() else { return };
            if !self.answer_waiting(position, &parked, effects) {
                self.searches.waiting.push_back((position, parked));
            }
        }
    }

    /// Counts or lists for a request if the indexes it needs are there; false if it must wait on.
    fn answer_waiting(&mut self, position: u64, parked: &Parked, effects: &mut Effects) -> bool {
        let (router, head) = (parked.router, &parked.head);
        let record = match Record::decode(&parked.record) {
            Ok(record) => record,
            Err(malformed) => {
                internal(router, head, malformed, effects);
                return true;
            }
        };
        if record.op == Op::QueryIndex {
            return self.answer_query_index(position, parked, &record, effects);
        }
        match SearchQuery::decode(record.value) {
            Ok(query) => self.count(position, parked, &query, effects),
            Err(malformed) => {
                internal(router, head, malformed, effects);
                true
            }
        }
    }

    /// QUERY_INDEX: {is last u8}, then per entry the encoded value, the key and, if asked for, the JSON value.
    fn answer_query_index(
        &mut self,
        position: u64,
        parked: &Parked,
        record: &Record<'_>,
        effects: &mut Effects,
    ) -> bool {
        let (router, head) = (parked.router, &parked.head);
        let query = match IndexQuery::decode(record.value) {
            Ok(query) => query,
            Err(malformed) => {
                internal(router, head, malformed, effects);
                return true;
            }
        };
        let (path, request) = match query.plan() {
            Ok(plan) => plan,
            Err(text) => {
                reply_failure(effects, router, head.token, Failure::BadRequest(text));
                return true;
            }
        };
        let Some(values) = self.searches.indexes.values(&path) else {
            let text = format!("there is no value index on {path:?}; CREATE_INDEX makes one");
            reply_failure(effects, router, head.token, Failure::NoSuchIndex(text));
            return true;
        };
        if !self.searches.indexes.is_indexed(position, &path, "value") {
            return false;
        }
        let page = values.page(&request, &mut Units::new(QUERY_UNITS));
        let (keys, now) = (&self.state.keys, self.now);
        effects.replies_to(router).push(head.token, ReplyKind::Part, |out| {
            out.push(u8::from(page.is_last));
            for (value, key) in &page.entries {
                let found = keys.get(hash_of(key), key).filter(|found| !is_over(found.expires_at, now));
                push_bytes(out, value);
                push_bytes(out, key);
                // A record whose time is over stands in the page for its place only: it comes without a value.
                out.push(u8::from(found.is_some()));
                push_bytes(out, found.filter(|_| query.with_values).map_or(&[][..], |found| found.value));
            }
        });
        true
    }

    fn count(&mut self, position: u64, parked: &Parked, query: &SearchQuery, effects: &mut Effects) -> bool {
        let (router, head) = (parked.router, &parked.head);
        let paths: Vec<&str> = match query.fields.is_empty() {
            true => vec![WHOLE],
            false => query.fields.iter().map(String::as_str).collect(),
        };
        let defined = |path: &&str| {
            self.searches
                .indexes
                .definitions()
                .any(|known| known.path == **path && known.kind.name() == "text")
        };
        let missing: Vec<String> =
            paths.iter().filter(|path| !defined(path)).map(|path| (*path).to_owned()).collect();
        if !missing.is_empty() {
            let counted = Counted::Missing(missing);
            effects.replies_to(router).push(head.token, ReplyKind::Part, |out| counted.encode(out));
            return true;
        }
        if !paths.iter().all(|path| self.searches.indexes.is_indexed(position, path, "text")) {
            return false;
        }
        if self.searches.views.len() >= VIEWS_MAX {
            let failure = Failure::Overloaded("too many searches are open in this shard; try again later");
            reply_failure(effects, router, head.token, failure);
            return true;
        }
        let filter = match query.filter.is_empty() {
            true => None,
            false => match Filter::parse(&query.filter) {
                Ok(filter) => Some(filter),
                Err(text) => {
                    reply_failure(effects, router, head.token, Failure::BadRequest(text));
                    return true;
                }
            },
        };
        let Some(text) = self.searches.indexes.text() else { return false };
        let known = text.query_fields();
        let compiled = compile(query, &known);
        let (view, stats) = text.pin(&compiled);
        let mut encoded = Vec::new();
        stats.encode(&mut encoded);
        let number = self.searches.next_view;
        self.searches.next_view += 1;
        let pinned = Pinned { view, query: compiled, model: query.model, filter, deadline: head.deadline };
        self.searches.views.insert(number, pinned);
        let counted = Counted::Pinned { view: number, known, stats: encoded };
        effects.replies_to(router).push(head.token, ReplyKind::Part, |out| counted.encode(out));
        true
    }

    fn run_searches(&mut self, units: u32, effects: &mut Effects) {
        let now = self.now;
        for _ in 0..self.searches.running.len() {
            let Some(mut running) = self.searches.running.pop_front() else { return };
            let keys = &self.state.keys;
            let filter = &running.filter;
            let mut walker = Walker::default();
            let mut accept = |key: &[u8]| {
                let found = keys.get(hash_of(key), key).filter(|found| !is_over(found.expires_at, now));
                match (found, filter) {
                    (None, _) => false,
                    (Some(_), None) => true,
                    (Some(found), Some(filter)) => filter.matches(found.value, &mut walker),
                }
            };
            let mut budget = Units::new(units);
            if !running.search.step(&mut budget, &mut accept) {
                self.searches.running.push_back(running);
                continue;
            }
            self.answer_hits(running, effects);
        }
    }

    fn answer_hits(&mut self, running: Running, effects: &mut Effects) {
        let Running { search, waiter, with_values, .. } = running;
        let mut body = Vec::new();
        for hit in search.into_hits() {
            let found = self.state.keys.get(hash_of(&hit.key), &hit.key);
            let value = found.filter(|_| with_values).map_or(&[][..], |found| found.value);
            HitPart { score: hit.score, key: &hit.key, value, snippet: &[] }.encode(&mut body);
            if body.len() > HIT_VALUES_BYTES_MAX {
                let text =
                    "the values of the hits are too large for one reply; ask for fewer, or without values";
                let failure = Failure::BadRequest(text.to_owned());
                return reply_failure(effects, waiter.router, waiter.token, failure);
            }
        }
        reply(effects, waiter.router, waiter.token, &Outcome::Members(ReplyKind::Part, body));
    }
}

/// Compiles a query by the fields that a shard knows; routers do the same to merge statistics.
pub fn compile(query: &SearchQuery, known: &[QueryField]) -> CompiledQuery {
    let whole = known.iter().find(|field| field.path == WHOLE);
    if query.model == Model::Cosine
        && let Some(whole) = whole
    {
        return CompiledQuery::words(&query.text, whole);
    }
    let targets: Vec<QueryField> = match query.fields.is_empty() {
        true => whole.cloned().into_iter().collect(),
        false => known.iter().filter(|field| query.fields.contains(&field.path)).cloned().collect(),
    };
    let is_field = |name: &str| known.iter().any(|field| field.path == name);
    CompiledQuery::new(&parse(&query.text, &is_field), &targets, known)
}

fn internal(router: u8, head: &RequestHead, malformed: Malformed, effects: &mut Effects) {
    let failure = Failure::Internal(format!("a search's call cannot be read: {}", malformed.0));
    reply_failure(effects, router, head.token, failure);
}
