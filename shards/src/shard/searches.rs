//! Searches and indexes of a shard: what waits for indexing, what is pinned, what runs in slices.
//!
//! A search first waits until everything that was admitted before it is applied and indexed; counting then pins what it
//! sees, and the second call scores that view with the figures of all shards. Index definitions come from the catalogue
//! of group 0. Bounded: views, by number and by their search's deadline; each slice, by work units.

use super::outbox::{Waiter, reply_failure};
use super::{Parked, Shard, ShardFault};
use crate::batch::{ReplyKind, RequestHead};
use crate::catalog::{Catalog, Changed};
use crate::command::answer::{Failure, Outcome};
use crate::command::context::is_over;
use crate::command::items;
use crate::command::record::{Malformed, Op, Record};
use crate::effect::Effects;
use crate::gather::catalog::Change;
use crate::gather::list_indexes::Line;
use crate::gather::query_index;
use crate::gather::search::{self as ask, Ask};
use crate::ids::{Millis, hash_of};
use crate::index::Units;
use crate::index::extract::Walker;
use crate::index::filter::Filter;
use crate::index::query::CompiledQuery;
use crate::index::set::{BuildState, DocumentSource, IndexKind, IndexSet};
use crate::index::text::WHOLE;
use crate::index::text::search::{Search, Stats, View};
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
    ask: Ask,
    filter: Option<Filter>,
    deadline: Millis,
}

struct Running {
    search: Search,
    filter: Option<Filter>,
    waiter: Waiter,
}

impl Searches {
    /// As a snapshot has them.
    pub(super) fn restored(catalog: Catalog, indexes: IndexSet) -> Self {
        Self { catalog, indexes, ..Self::default() }
    }
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

    /// SEARCH's second call scores the pinned view, the third fetches from it.
    pub(super) fn score(
        &mut self,
        router: u8,
        head: &RequestHead,
        record: &Record<'_>,
        effects: &mut Effects,
    ) {
        let view = record.argument.unwrap_or(u64::MAX);
        let Some(pinned) = self.searches.views.get(&view) else {
            return reply_failure(effects, router, head.token, Failure::Timeout { unknown: false });
        };
        match record.value.split_first() {
            Some((&ask::SCORE, stats)) => {
                let limit = pinned.ask.limit as usize;
                let search = Stats::decode(stats).and_then(|stats| {
                    Search::new(pinned.view.clone(), &pinned.query, &stats, pinned.ask.model, limit)
                });
                match search {
                    Err(corrupt) => internal(router, head, Malformed(corrupt.0), effects),
                    Ok(search) => {
                        let waiter = Waiter::client(router, head, false);
                        let filter = pinned.filter.clone();
                        if !pinned.ask.fetches() {
                            self.searches.views.remove(&view);
                        }
                        self.searches.running.push_back(Running { search, filter, waiter });
                        // Most searches end within their first slice, and then at once.
                        self.run_searches(SEARCH_UNITS, effects);
                    }
                }
            }
            Some((&ask::FETCH, keys)) => {
                let wants_values = pinned.ask.with_values;
                self.searches.views.remove(&view);
                let records = &self.state.keys;
                effects.replies_to(router).push(head.token, ReplyKind::Part, |out| {
                    for (key, _) in items::iter(keys).map_while(Result::ok) {
                        let found = records.get(hash_of(key), key).filter(|_| wants_values);
                        ask::write_fetched(out, found.map(|found| found.value), None);
                    }
                });
            }
            _ => internal(router, head, Malformed("an unknown call of a search"), effects),
        }
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

    /// A change of the catalogue goes through the log, unless a snapshot must end first.
    pub(super) fn admit_catalog(&mut self, router: u8, head: &RequestHead, record: &Record<'_>) {
        let mut bytes = Vec::new();
        Record::plain(Op::Catalog, &[], record.value).encode(&mut bytes);
        if self.snapshot_runs() {
            let parked = Parked { router, head: *head, record: bytes.into() };
            return self.searches.held_edits.push_back(parked);
        }
        self.gather_catalog(router, head, &bytes);
    }

    fn gather_catalog(&mut self, router: u8, head: &RequestHead, bytes: &[u8]) {
        self.searches.edits_in_flight += 1;
        self.gather(bytes, Waiter::client(router, head, false), None);
    }

    /// Admits the changes of the catalogue that a snapshot held back.
    pub(super) fn release_edits(&mut self) {
        while let Some(parked) = self.searches.held_edits.pop_front() {
            self.gather_catalog(parked.router, &parked.head, &parked.record);
        }
    }

    /// Applies a change of the catalogue. The owner answers {changed u8, catalogue}, the others "OK".
    pub(super) fn apply_catalog(&mut self, record: &Record<'_>) -> Result<Outcome, ShardFault> {
        let change = Change::decode(record.value)?;
        let changed = self.searches.catalog.change(&change);
        if changed == Changed::Yes {
            self.follow_catalog();
        }
        let is_changed = match changed {
            Changed::Conflict(text) => return Ok(Outcome::Failed(Failure::IndexExists(text))),
            Changed::Refused(text) => return Ok(Outcome::Failed(Failure::BadRequest(text))),
            Changed::Yes => true,
            Changed::No => false,
        };
        if matches!(change, Change::Install(_)) {
            return Ok(Outcome::Ok);
        }
        let mut body = vec![u8::from(is_changed)];
        self.searches.catalog.encode(&mut body);
        Ok(Outcome::Members(ReplyKind::Part, body))
    }

    /// LIST_INDEXES: a line for each definition of the catalogue.
    pub(super) fn answer_indexes(&self, router: u8, head: &RequestHead, effects: &mut Effects) {
        let searches = &self.searches;
        let records = self.state.keys.len() as u64;
        let list = searches.indexes.list();
        effects.replies_to(router).push(head.token, ReplyKind::Part, |out| {
            for definition in &searches.catalog.definitions {
                let info = list.iter().find(|info| info.definition == *definition);
                let (is_ready, scanned) = match info.map(|info| info.state) {
                    Some(BuildState::Ready) => (true, records),
                    Some(BuildState::Building { scanned }) => (false, scanned),
                    None => (false, 0),
                };
                let analyzer = match definition.kind {
                    IndexKind::Text { analyzer } => analyzer.name().to_owned(),
                    IndexKind::Value | IndexKind::Embedding | IndexKind::Vector { .. } => String::new(),
                };
                let (entries, bytes) = info.map_or((0, 0), |info| (info.entries, info.bytes));
                let (kind, path) = (definition.kind.name().to_owned(), definition.path.clone());
                Line { kind, analyzer, path, is_ready, scanned, records, entries, bytes }.encode(out);
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
        match Ask::decode(record.value) {
            Ok(ask) => self.count(position, parked, ask, effects),
            Err(malformed) => {
                internal(router, head, malformed, effects);
                true
            }
        }
    }

    fn answer_query_index(
        &mut self,
        position: u64,
        parked: &Parked,
        record: &Record<'_>,
        effects: &mut Effects,
    ) -> bool {
        let (router, head) = (parked.router, &parked.head);
        let query = match query_index::Ask::decode(record.value) {
            Ok(query) => query,
            Err(malformed) => {
                internal(router, head, malformed, effects);
                return true;
            }
        };
        let request = match query.page_request() {
            Ok(request) => request,
            Err(text) => {
                reply_failure(effects, router, head.token, Failure::BadRequest(text));
                return true;
            }
        };
        let Some(values) = self.searches.indexes.values(&query.path) else {
            let text = format!("there is no value index on {:?}; CREATE_INDEX makes one", query.path);
            reply_failure(effects, router, head.token, Failure::NoSuchIndex(text));
            return true;
        };
        if !self.searches.indexes.is_indexed(position, &query.path, "value") {
            return false;
        }
        let mut page = values.page(&request, &mut Units::new(QUERY_UNITS));
        let (keys, now) = (&self.state.keys, self.now);
        let live = |key: &[u8]| keys.get(hash_of(key), key).filter(|found| !is_over(found.expires_at, now));
        // The last entry stays as the place where the next page begins.
        let last = page.entries.len().saturating_sub(1);
        let mut number = 0;
        page.entries.retain(|(_, key)| {
            number += 1;
            live(key).is_some() || (number > last && !page.is_last)
        });
        effects.replies_to(router).push(head.token, ReplyKind::Part, |out| {
            query_index::write_page(out, &page, page.is_last, |key| {
                live(key).filter(|_| query.with_values).map(|found| found.value)
            });
        });
        true
    }

    fn count(&mut self, position: u64, parked: &Parked, ask: Ask, effects: &mut Effects) -> bool {
        let (router, head) = (parked.router, &parked.head);
        let whole = [WHOLE.to_owned()];
        let paths = if ask.fields.is_empty() { &whole[..] } else { &ask.fields };
        let defined = |path: &&String| {
            self.searches
                .indexes
                .definitions()
                .any(|known| known.path == **path && known.kind.name() == "text")
        };
        let missing: Vec<&str> = paths.iter().filter(|path| !defined(path)).map(String::as_str).collect();
        if !missing.is_empty() {
            effects
                .replies_to(router)
                .push(head.token, ReplyKind::Part, |out| ask::write_missing(out, &missing));
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
        let filter = match std::str::from_utf8(&ask.filter).map_or(Err(String::new()), |json| {
            if json.is_empty() { Ok(None) } else { Filter::parse(json).map(Some) }
        }) {
            Ok(filter) => filter,
            Err(text) => {
                reply_failure(effects, router, head.token, Failure::BadRequest(text));
                return true;
            }
        };
        let Some(text) = self.searches.indexes.text() else { return false };
        let known = text.query_fields();
        let Some(query) = ask.compile(&known) else { return false };
        let (view, stats) = text.pin(&query);
        let number = self.searches.next_view;
        self.searches.next_view += 1;
        effects
            .replies_to(router)
            .push(head.token, ReplyKind::Part, |out| ask::write_stats(out, number, &known, &stats));
        let pinned = Pinned { view, query, ask, filter, deadline: head.deadline };
        self.searches.views.insert(number, pinned);
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
        let Running { search, waiter, .. } = running;
        effects.replies_to(waiter.router).push(waiter.token, ReplyKind::Part, |out| {
            for hit in search.into_hits() {
                ask::write_hit(out, &hit);
            }
        });
    }
}

fn internal(router: u8, head: &RequestHead, malformed: Malformed, effects: &mut Effects) {
    let failure = Failure::Internal(format!("a search's call cannot be read: {}", malformed.0));
    reply_failure(effects, router, head.token, failure);
}
