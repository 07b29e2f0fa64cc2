//! Searches and indexes of a shard: what waits for indexing, what is pinned, what runs in slices.
//!
//! A search first waits until everything that was admitted before it is applied and indexed; counting then pins what it
//! sees, and the second call scores that view with the figures of all shards. Index definitions come from the catalogue
//! of group 0. Bounded: views, by number and by their search's deadline; each slice, by work units.

mod running;
mod settle;

use super::outbox::{Waiter, reply_failure};
use super::reads::push_part;
use super::role::as_it_came;
use super::{Parked, Shard, ShardFault};
use crate::batch::{ReplyKind, RequestHead};
use crate::catalog::{Catalog, Changed};
use crate::command::answer::{Failure, Outcome};
use crate::command::context::is_over;
use crate::command::record::{Malformed, Op, Record, flag};
use crate::effect::Effects;
use crate::gather::catalog::Change;
use crate::gather::list_indexes::Line;
use crate::gather::query_index;
use crate::gather::search::{self as ask, Ask, OnDemand, Scoring};
use crate::ids::{Millis, ReplicaId, Token, hash_of};
use crate::index::Units;
use crate::index::filter::Filter;
use crate::index::set::{BuildState, DocumentSource, IndexKind, IndexSet, IndexSettings};
use crate::index::text::WHOLE;
use crate::index::vector::VectorSearch;
use crate::state::{KeySpace, Position};
use running::{Pinned, Running, no_vectors};
use std::collections::{BTreeMap, VecDeque};
use xxhash_rust::xxh3::xxh3_64;

/// Views that may be pinned at once.
const VIEWS_MAX: usize = 1024;
/// Searches and index queries that may wait or run at once.
const TASKS_MAX: usize = 16_384;
/// Units of one slice of indexing, small enough to stay well below a millisecond.
pub(super) const INDEX_UNITS: u32 = 2048;
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
    /// Searches that wait until everything up to a position is indexed, in the order of both.
    waiting: VecDeque<(Seen, Parked)>,
    /// Searches whose changes are indexed, but that need an index which is not there or not built yet.
    stalled: VecDeque<(Seen, Parked)>,
    /// The generation of the indexes at which the stalled searches were last looked at.
    stalled_at: u64,
    views: BTreeMap<u64, Pinned>,
    next_view: u64,
    running: VecDeque<Running>,
    /// Changes of the catalogue that are on their way through the log.
    pub(super) edits_in_flight: usize,
    /// Changes of the catalogue that wait for the end of a snapshot.
    held_edits: VecDeque<Parked>,
    /// Memory of the indexes at the last tick.
    pub(super) bytes: u64,
}

impl Searches {
    /// As a snapshot has them. Views get numbers that no other replica and no earlier run of this one has given, since a
    /// search that began there may ask here.
    pub(super) fn restored(
        catalog: Catalog,
        mut indexes: IndexSet,
        settings: IndexSettings,
        now: Millis,
        replica: ReplicaId,
    ) -> Self {
        indexes.configure(settings);
        let mut seed = [0; 16];
        seed[..8].copy_from_slice(&now.0.to_le_bytes());
        seed[8..].copy_from_slice(&replica.0.to_le_bytes());
        // Far from the end, so that counting on never wraps.
        let next_view = xxh3_64(&seed) >> 1;
        Self { catalog, indexes, next_view, ..Self::default() }
    }

    /// Whether a view is pinned under this number.
    pub(super) fn has_view(&self, number: u64) -> bool {
        self.views.contains_key(&number)
    }

    /// Routers and tokens of everything that waits or runs.
    pub(super) fn into_waiting(self) -> Vec<(u8, Token)> {
        let waiting = self.waiting.into_iter().chain(self.stalled).map(|(_, parked)| parked);
        let parked = waiting.chain(self.held_edits);
        let parked = parked.map(|parked| (parked.router, parked.head.token));
        parked.chain(self.running.into_iter().map(|one| (one.waiter.router, one.waiter.token))).collect()
    }
}

/// What a search must see: all that was applied when it came.
#[derive(Clone, Copy)]
struct Seen {
    /// As the indexes count.
    position: u64,
    /// As the log counts.
    entry: u64,
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
    pub(super) fn begin_search(&mut self, parked: Parked, effects: &mut Effects) {
        if self.searches_waiting() >= TASKS_MAX {
            let failure = Failure::Overloaded("too many searches wait in this shard; try again later");
            return reply_failure(effects, parked.router, parked.head.token, failure);
        }
        let seen = Seen { position: self.searches.indexes.position(), entry: self.applied };
        self.try_search(seen, parked, effects);
    }

    /// Goes on with searches and indexing; whether more can be done now.
    pub(super) fn search_some(&mut self, effects: &mut Effects) -> bool {
        if self.slices.is_half_done() {
            // What a search reads belongs to one point of the log.
            return self.has_search_work();
        }
        self.run_searches(effects);
        if self.searches.indexes.has_work() {
            let mut units = Units::new(self.config.index_units);
            self.searches.indexes.work(&mut units, &Documents(&self.state.keys));
        }
        self.answer_waiting_searches(effects);
        self.has_search_work()
    }

    /// Whether searches or indexing want a slice.
    pub(super) fn has_search_work(&self) -> bool {
        !self.searches.running.is_empty() || self.searches.indexes.has_work() || self.stalled_may_go_on()
    }

    /// Whether writes must wait for indexing: the backlog is full, or a snapshot drains it.
    pub(super) fn indexing_is_behind(&self) -> bool {
        let backlog = self.searches.indexes.backlog_len();
        backlog >= BACKLOG_MAX
            || self.searches.indexes.graphs_are_behind()
            || (backlog > 0 && self.snapshot_drains_backlog())
    }

    /// Whether the backlog is short enough for a snapshot to drain it.
    pub(super) fn backlog_is_short(&self) -> bool {
        self.searches.indexes.backlog_len() <= BACKLOG_AT_SNAPSHOT_MAX
    }

    /// Measures the memory of the indexes.
    pub(super) fn measure_indexes(&mut self) {
        self.searches.bytes = self.searches.indexes.list().iter().map(|info| info.bytes).sum();
    }

    /// Keys that wait to be indexed.
    pub(super) fn index_backlog(&self) -> usize {
        self.searches.indexes.backlog_len()
    }

    /// Searches that wait for indexing or run.
    pub(super) fn searches_waiting(&self) -> usize {
        self.searches.waiting.len() + self.searches.stalled.len() + self.searches.running.len()
    }

    /// Gives up what is past its deadline.
    pub(super) fn give_up_searches(&mut self, effects: &mut Effects) {
        let now = self.now;
        let mut late = Vec::new();
        let searches = &mut self.searches;
        let mut keep = |parked: &Parked| super::admit::keep_or_note(parked, now, &mut late);
        searches.waiting.retain(|(_, parked)| keep(parked));
        searches.stalled.retain(|(_, parked)| keep(parked));
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
            let parked = self.parked(router, head, &bytes);
            return self.searches.held_edits.push_back(parked);
        }
        self.gather_catalog(router, head, &bytes);
    }

    fn gather_catalog(&mut self, router: u8, head: &RequestHead, bytes: &[u8]) {
        self.searches.edits_in_flight += 1;
        self.gather(bytes, Waiter::client(router, head, false), None);
    }

    /// Changes of the catalogue that a snapshot held back go back, and those on their way count no more: another replica
    /// leads now.
    pub(super) fn give_back_edits(&mut self, effects: &mut Effects) {
        self.searches.edits_in_flight = 0;
        for parked in std::mem::take(&mut self.searches.held_edits) {
            let (_, record) = as_it_came(&parked.record, None);
            self.give_back(parked.router, &parked.head, &record, effects);
        }
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
                let (dimensions, metric) = match definition.kind {
                    IndexKind::Vector { dimensions, metric } => (dimensions, metric.name().to_owned()),
                    _ => (0, String::new()),
                };
                let dimensions = u32::try_from(dimensions).expect("dimensions are bounded");
                let (entries, bytes) = info.map_or((0, 0), |info| (info.entries, info.bytes));
                let (kind, path) = (definition.kind.name().to_owned(), definition.path.clone());
                let line = Line {
                    kind,
                    analyzer,
                    path,
                    dimensions,
                    metric,
                    is_ready,
                    scanned,
                    records,
                    entries,
                    bytes,
                };
                line.encode(out);
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
            if kind == "vector" {
                searches.running.iter_mut().for_each(|running| running.index_is_gone(&path));
            }
        }
        for definition in &searches.catalog.definitions {
            searches.indexes.define(definition.clone());
        }
    }

    /// Answers the searches that waited for what is indexed now. Costs what is ready, not what waits.
    pub(super) fn answer_waiting_searches(&mut self, effects: &mut Effects) {
        if self.slices.is_half_done() {
            return;
        }
        let indexed_before = self.searches.indexes.indexed_before();
        while self.searches.waiting.front().is_some_and(|(seen, _)| seen.position < indexed_before) {
            let Some((seen, parked)) = self.searches.waiting.pop_front() else { return };
            self.try_search(seen, parked, effects);
        }
        if !self.stalled_may_go_on() {
            return;
        }
        self.searches.stalled_at = self.searches.indexes.generation();
        for (seen, parked) in std::mem::take(&mut self.searches.stalled) {
            self.try_search(seen, parked, effects);
        }
    }

    /// Whether an index has come, gone or become ready since the stalled searches were last looked at.
    fn stalled_may_go_on(&self) -> bool {
        let searches = &self.searches;
        !searches.stalled.is_empty() && searches.stalled_at != searches.indexes.generation()
    }

    /// Answers a search, or puts it where it waits for what it lacks: its changes to be indexed, or else an index.
    fn try_search(&mut self, seen: Seen, parked: Parked, effects: &mut Effects) {
        // In the middle of a large command a search would see half of it.
        let is_half_done = self.slices.is_half_done();
        if !is_half_done && self.answer_waiting(seen, &parked, effects) {
            return;
        }
        let searches = &mut self.searches;
        if is_half_done || seen.position >= searches.indexes.indexed_before() {
            let rises = searches.waiting.back().is_none_or(|(last, _)| last.position <= seen.position);
            assert!(rises, "positions never go back");
            searches.waiting.push_back((seen, parked));
        } else {
            if searches.stalled.is_empty() {
                searches.stalled_at = searches.indexes.generation();
            }
            searches.stalled.push_back((seen, parked));
        }
    }

    /// Counts or lists for a request if the indexes it needs are there; false if it must wait on.
    fn answer_waiting(&mut self, seen: Seen, parked: &Parked, effects: &mut Effects) -> bool {
        let (router, head) = (parked.router, &parked.head);
        let record = match Record::decode(&parked.record) {
            Ok(record) => record,
            Err(malformed) => {
                internal(router, head, malformed, effects);
                return true;
            }
        };
        if record.op == Op::QueryIndex {
            return self.answer_query_index(seen.position, parked, &record, effects);
        }
        match Ask::decode(record.value) {
            Ok(ask) => self.count(seen, parked, ask, record.has(flag::LOCAL), effects),
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
        let (keys, now) = (&self.state.keys, self.read_time());
        let live = |key: &[u8]| keys.get(hash_of(key), key).filter(|found| !is_over(found.expires_at, now));
        // The last entry stays as the place where the next page begins.
        let last = page.entries.len().saturating_sub(1);
        let mut number = 0;
        page.entries.retain(|(_, key)| {
            number += 1;
            live(key).is_some() || (number > last && !page.is_last)
        });
        let stale_at = self.stale_at().filter(|_| record.has(flag::LOCAL));
        push_part(effects.replies_to(router), head.token, stale_at, |out| {
            query_index::write_page(out, &page, page.is_last, |key| {
                live(key).filter(|_| query.with_values).map(|found| found.value)
            });
        });
        true
    }

    /// Counts for a search whose indexes are ready, or says which are missing; false if it must wait on.
    fn count(
        &mut self,
        seen: Seen,
        parked: &Parked,
        ask: Ask,
        is_local: bool,
        effects: &mut Effects,
    ) -> bool {
        let (router, head) = (parked.router, &parked.head);
        let stale_at = self.stale_at().filter(|_| is_local);
        if let Scoring::Vector { .. } = ask.scoring {
            return self.find_vectors(seen.position, parked, &ask, stale_at, effects);
        }
        let indexes = &self.searches.indexes;
        let needed = needed(&ask);
        let is_defined = |index: &&OnDemand| {
            let wanted = index.definition();
            indexes
                .definitions()
                .any(|known| known.path == wanted.path && known.kind.name() == wanted.kind.name())
        };
        let missing: Vec<OnDemand> = needed.iter().filter(|index| !is_defined(index)).cloned().collect();
        if !missing.is_empty() {
            let batch = effects.replies_to(router);
            push_part(batch, head.token, stale_at, |out| ask::write_missing(out, &missing));
            return true;
        }
        let is_indexed = |index: &OnDemand| {
            let wanted = index.definition();
            indexes.is_indexed(seen.position, &wanted.path, wanted.kind.name())
        };
        if !needed.iter().all(is_indexed) {
            return false;
        }
        if self.searches.views.len() >= VIEWS_MAX {
            let failure = Failure::Overloaded("too many searches are open in this shard; try again later");
            reply_failure(effects, router, head.token, failure);
            return true;
        }
        let Some(filter) = read_filter(&ask, parked, effects) else { return true };
        let Some(text) = indexes.text() else { return false };
        let known = text.query_fields();
        let Some(queries) = ask.compile(&known) else { return false };
        let (views, stats): (Vec<_>, Vec<_>) = queries.iter().map(|query| text.pin(query)).unzip();
        let number = self.searches.next_view;
        self.searches.next_view += 1;
        let batch = effects.replies_to(router);
        push_part(batch, head.token, stale_at, |out| ask::write_stats(out, number, &known, &stats));
        let pinned = Pinned {
            views,
            queries: queries.into(),
            fields: known,
            seen: seen.entry,
            ask,
            filter,
            deadline: head.deadline,
            highlighter: None,
            scorer: None,
        };
        self.searches.views.insert(number, pinned);
        true
    }

    /// Begins a search over vectors; false if it must wait for its index.
    fn find_vectors(
        &mut self,
        position: u64,
        parked: &Parked,
        ask: &Ask,
        stale_at: Option<u64>,
        effects: &mut Effects,
    ) -> bool {
        let (router, head) = (parked.router, &parked.head);
        let Scoring::Vector { path, vector } = &ask.scoring else { return true };
        let Some(index) = self.searches.indexes.vectors(path) else {
            reply_failure(effects, router, head.token, no_vectors(path));
            return true;
        };
        let search = match VectorSearch::new(index, vector, ask.limit as usize) {
            Ok(search) => search,
            Err(text) => {
                reply_failure(effects, router, head.token, Failure::BadRequest(text));
                return true;
            }
        };
        if !self.searches.indexes.is_indexed(position, path, "vector") {
            return false;
        }
        if let Some(filter) = read_filter(ask, parked, effects) {
            let waiter = Waiter::client(router, head, false);
            self.begin_vectors(path.clone(), search, filter, (waiter, stale_at), effects);
        }
        true
    }
}

/// The indexes that a search over text needs.
fn needed(ask: &Ask) -> Vec<OnDemand> {
    let mut needed: Vec<OnDemand> = match ask.fields.is_empty() {
        true => vec![OnDemand::Text(WHOLE.to_owned())],
        false => ask.fields.iter().cloned().map(OnDemand::Text).collect(),
    };
    if matches!(ask.scoring, Scoring::Embedding | Scoring::Hybrid { has_embedding: true, .. }) {
        needed.push(OnDemand::Embedding);
    }
    needed
}

/// The filter, if there is one; `None` if it is none, and the reply was given.
fn read_filter(ask: &Ask, parked: &Parked, effects: &mut Effects) -> Option<Option<Filter>> {
    if ask.filter.is_empty() {
        return Some(None);
    }
    let json = std::str::from_utf8(&ask.filter).map_err(|error| format!("filter: {error}"));
    match json.and_then(Filter::parse) {
        Ok(filter) => Some(Some(filter)),
        Err(text) => {
            reply_failure(effects, parked.router, parked.head.token, Failure::BadRequest(text));
            None
        }
    }
}

fn internal(router: u8, head: &RequestHead, malformed: Malformed, effects: &mut Effects) {
    let failure = Failure::Internal(format!("a search's call cannot be read: {}", malformed.0));
    reply_failure(effects, router, head.token, failure);
}
