//! Answers reads from applied state. Whoever calls has seen to it that nothing admitted before is missing.

use super::Shard;
use super::outbox::{NO_TICKET, Ticket, Waiter, reply_failure};
use crate::batch::{ReplyBatch, ReplyKind, RequestHead};
use crate::command::answer::{self, Failure, Outcome};
use crate::command::context::is_over;
use crate::command::items;
use crate::command::record::{Op, Record, flag};
use crate::effect::Effects;
use crate::gather::{RESULT_BYTES_MAX, write_too_large};
use crate::ids::{KeyHash, Millis, ReplicaId, Token, hash_of};
use crate::mutants::{Mutant, is_on};
use crate::state::{Check, Position, Record as StoredRecord};
use crate::txn::message::push_version;
use std::io::Write as _;

/// Values from this size on are shared into replies instead of copied.
const SHARED_VALUE_BYTES: usize = 16 << 10;

impl Shard {
    /// GET, EXISTS and TTL.
    pub(super) fn answer_read(
        &mut self,
        router: u8,
        head: &RequestHead,
        bytes: &[u8],
        record: &Record<'_>,
        effects: &mut Effects,
    ) {
        let (is_local, stale_at, now) = (self.reads_locally(record), self.stale_at(), self.read_time());
        let found = self.state.keys.get(head.hash, record.key);
        let batch = match is_local {
            true => effects.replies_to(router),
            false => self.held.replies(effects, router, head, bytes),
        };
        let stale_at = stale_at.filter(|_| is_local);
        write_read(batch, head.token, record, found, stale_at, now);
    }

    /// The same for a read of a leader that serves, unless the record's time is over while its removal is not on its way:
    /// then false, and nothing is answered.
    #[inline]
    pub(super) fn answer_unless_overdue(
        &mut self,
        router: u8,
        head: &RequestHead,
        bytes: &[u8],
        record: &Record<'_>,
        effects: &mut Effects,
    ) -> bool {
        let now = self.read_time();
        let found = self.state.keys.get(head.hash, record.key);
        if found.is_some_and(|found| is_over(found.expires_at, now)) && !is_on(Mutant::OverdueIsRead) {
            return false;
        }
        let batch = self.held.replies(effects, router, head, bytes);
        write_read(batch, head.token, record, found, None, now);
        true
    }

    /// Several keys with their versions, for a router that puts them together: per key {found u8, version 12, length u32,
    /// value}, in the order of the request. An absent key tells the version of its table's last delete.
    pub(super) fn answer_read_many(
        &mut self,
        router: u8,
        head: &RequestHead,
        bytes: &[u8],
        record: &Record<'_>,
        effects: &mut Effects,
    ) {
        let now = self.read_time();
        let (is_local, stale_at) = (self.reads_locally(record), self.stale_at());
        let keys = &self.state.keys;
        let value_of = |key| keys.get(hash_of(key), key).map_or(0, |found| found.value.len());
        let read = || items::iter(record.value).map_while(Result::ok);
        if read().map(|(key, _)| value_of(key)).sum::<usize>() > RESULT_BYTES_MAX {
            // Refused before it is copied: a batch of replies must stay far below 4 GiB.
            return effects.replies_to(router).push(head.token, ReplyKind::Error, write_too_large);
        }
        let batch = match is_local {
            true => effects.replies_to(router),
            false => self.held.replies(effects, router, head, bytes),
        };
        push_part(batch, head.token, stale_at.filter(|_| is_local), |out| {
            for (key, _) in items::iter(record.value).map_while(Result::ok) {
                let hash = hash_of(key);
                let found = keys.get(hash, key).filter(|found| !is_over(found.expires_at, now));
                out.push(u8::from(found.is_some()));
                push_version(out, found.as_ref().map_or(keys.last_delete(hash), |found| found.version));
                let value = found.map_or(&[][..], |found| found.value);
                out.extend_from_slice(&(value.len() as u32).to_le_bytes());
                out.extend_from_slice(value);
            }
        });
    }

    /// SCAN, DELETE_PREFIX and RECALL, which see everything admitted before them.
    pub(super) fn answer_scan(
        &mut self,
        router: u8,
        head: &RequestHead,
        bytes: &[u8],
        effects: &mut Effects,
    ) {
        let Ok(record) = Record::decode(bytes) else {
            let failure = Failure::Internal("a request changed while it waited".to_owned());
            return reply_failure(effects, router, head.token, failure);
        };
        match record.op {
            Op::Scan => self.scan_page(router, head, bytes, &record, effects),
            Op::DeletePrefix => self.delete_prefix_slice(router, head, bytes, &record, effects),
            Op::SearchStats | Op::QueryIndex => {
                let parked = self.parked(router, head, bytes);
                let parked =
                    if self.reads_locally(&record) { Some(parked) } else { self.hold_search(parked) };
                if let Some(parked) = parked {
                    self.begin_search(parked, effects);
                }
            }
            _ => self.recall(router, head, bytes, &record, effects),
        }
    }

    /// One page: {cursor, items}, where the cursor is a flag byte and, unless it is the end, hash u64, key length u16 and
    /// key. The request's value holds such a cursor or nothing.
    fn scan_page(
        &mut self,
        router: u8,
        head: &RequestHead,
        bytes: &[u8],
        record: &Record<'_>,
        effects: &mut Effects,
    ) {
        let (is_local, stale_at) = (self.reads_locally(record), self.stale_at());
        let Some(from) = read_cursor(record.value) else {
            let failure =
                Failure::BadRequest("the cursor is not one that SCAN gave out; begin without one".to_owned());
            return reply_failure(effects, router, head.token, failure);
        };
        let asked = usize::try_from(record.argument.unwrap_or(100)).unwrap_or(usize::MAX);
        let limit = asked.clamp(1, self.config.page_keys_max);
        let (with_values, now) = (record.has(flag::WITH_VALUES), self.read_time());
        let mut found = Vec::new();
        let page_bytes_max = self.config.page_bytes_max;
        // A page of large values is cut by their bytes: the walk stops where the page is full and goes on from there.
        let mut full_at: Option<Position> = None;
        let page = self.state.keys.scan(&from, record.key, limit, self.config.page_examined_max, |hit| {
            if is_over(hit.expires_at, now) || full_at.is_some() {
                return;
            }
            let value = if with_values { hit.value } else { &[] };
            items::push(&mut found, hit.key, value);
            if found.len() >= page_bytes_max {
                full_at = Some(Position { hash: hash_of(hit.key), key: hit.key.to_vec() });
            }
        });
        let next = full_at.or(page.next);
        let batch = match is_local {
            true => effects.replies_to(router),
            false => self.held.replies(effects, router, head, bytes),
        };
        push_part(batch, head.token, stale_at.filter(|_| is_local), |out| {
            write_cursor(out, next.as_ref());
            out.extend_from_slice(&found);
        });
    }

    /// Removes the keys with a prefix that one page finds; answers {count u64, cursor} once that is applied.
    fn delete_prefix_slice(
        &mut self,
        router: u8,
        head: &RequestHead,
        bytes: &[u8],
        record: &Record<'_>,
        effects: &mut Effects,
    ) {
        let Some(from) = read_cursor(record.value) else {
            let failure = Failure::Internal("the router lost its place in a DELETE_PREFIX".to_owned());
            return reply_failure(effects, router, head.token, failure);
        };
        if !self.has_log_room {
            return reply_failure(effects, router, head.token, Failure::DiskFull);
        }
        let mut found = Vec::new();
        let (limit, budget) = (self.config.page_keys_max, self.config.page_examined_max);
        let page = self
            .state
            .keys
            .scan(&from, record.key, limit, budget, |hit| items::push(&mut found, hit.key, &[]));
        let mut cursor = Vec::new();
        write_cursor(&mut cursor, page.next.as_ref());
        if found.is_empty() {
            return self.held.replies(effects, router, head, bytes).push(
                head.token,
                ReplyKind::Part,
                |out| write_slice(out, &cursor, 0),
            );
        }
        if let Some(key) = self.locks.first_held(&found, None) {
            let parked = self.parked(router, head, bytes);
            return self.locks.wait(key, super::admit::LockWaiter::Request(parked));
        }
        let mut command = Vec::new();
        Record::plain(Op::BulkDelete, &[], &found).encode(&mut command);
        let mut waiter = Waiter::client(router, head, false);
        waiter.ticket = self.ticket(Ticket::Slice { cursor, record: bytes.into() });
        assert_ne!(waiter.ticket, NO_TICKET);
        self.gather(&command, waiter, None);
        self.mark_items(&found);
    }

    /// What is remembered of a multi-step command whose fingerprint is the argument: the reply, or an empty part.
    fn recall(
        &mut self,
        router: u8,
        head: &RequestHead,
        bytes: &[u8],
        record: &Record<'_>,
        effects: &mut Effects,
    ) {
        let Some(session) = record.session else {
            let failure = Failure::Internal("the router asked for a reply without naming it".to_owned());
            return reply_failure(effects, router, head.token, failure);
        };
        let fingerprint = record.argument.unwrap_or(0);
        let failure = match self.state.sessions.check(session.client, session.seq, fingerprint) {
            Check::Fresh => None,
            Check::Replay(remembered) => {
                let (kind, body) = (remembered.kind, remembered.body.clone());
                let batch = self.held.replies(effects, router, head, bytes);
                return batch.push(head.token, kind, |out| out.extend_from_slice(&body));
            }
            Check::Mismatch => Some(Failure::SeqReused),
            Check::Expired => Some(Failure::SeqExpired),
            Check::Refused(_) => Some(Failure::SessionsFull),
        };
        match failure {
            Some(failure) => reply_failure(effects, router, head.token, failure),
            None => {
                let batch = self.held.replies(effects, router, head, bytes);
                batch.push(head.token, ReplyKind::Part, |_| {});
            }
        }
    }

    /// The figures of this shard as a JSON object, for a router that puts them together.
    pub(super) fn answer_info(&mut self, router: u8, head: &RequestHead, effects: &mut Effects) {
        let (keys, counters) = (&self.state.keys, &self.counters);
        let (disk, turns, snapshots) = (&self.disk, &self.turns, &self.snapshots.counters);
        let leader = match self.group.leader() {
            ReplicaId(0) => "null".to_owned(),
            leader => leader.node().to_string(),
        };
        let text = format!(
            concat!(
                "{{\"shard\":{},\"keys\":{},\"memory_bytes\":{},\"role\":\"{}\",\"leader\":{},\"term\":{},\"commit_index\":{},",
                "\"applied_index\":{},\"last_index\":{},\"followers\":[{}],",
                "\"requests\":{},\"entries\":{},\"commands\":{},\"expired\":{},\"transactions\":{},\"log_bytes\":{},",
                "\"outstanding_bytes\":{},\"index_bytes\":{},\"log_memory_bytes\":{},\"sessions\":{},",
                "\"queues\":{{\"gathered\":{},\"in_flight\":{},\"unapplied\":{},\"waiting_reads\":{},",
                "\"waiting_for_locks\":{},\"locked_keys\":{},\"index_backlog\":{},\"searches\":{}}},",
                "\"wal\":{{\"batches\":{},\"writes\":{},\"syncs\":{},\"bytes\":{},\"segments\":{},\"live_bytes\":{},",
                "\"commit_p50_us\":{},\"commit_p99_us\":{},\"commits_measured\":{}}},\"snapshots\":{{\"kept\":{},\"refused\":{},\"failed\":{},\"last_bytes\":{},",
                "\"last_index\":{},\"last_digest\":\"{:016x}{:016x}\",\"restored\":{},\"running\":{}}},",
                "\"turns\":{{\"p50_us\":{},\"p99_us\":{},\"p999_us\":{},\"longest_us\":{},\"measured\":{}}}}}"
            ),
            self.config.group,
            keys.len(),
            self.memory_bytes(),
            self.group.role_name(),
            leader,
            self.group.term(),
            self.group.commit_index(),
            self.applied,
            self.group.last_index(),
            self.followers_json(),
            counters.requests,
            counters.entries,
            counters.commands,
            counters.expired,
            counters.transactions,
            counters.log_bytes,
            self.outstanding_bytes(),
            self.searches.bytes,
            self.group.entry_bytes(),
            self.state.sessions.clients(),
            self.gathered.waiters.len()
                + self.sealed.iter().map(|gathered| gathered.waiters.len()).sum::<usize>(),
            self.group.in_flight(),
            self.slices.len(),
            self.reads.len() + self.scans.len(),
            self.locks.waiting(),
            self.locks.len(),
            self.index_backlog(),
            self.searches_waiting(),
            disk.batches,
            disk.writes,
            disk.syncs,
            disk.bytes,
            disk.segments,
            disk.live_bytes,
            disk.commit_p50_us,
            disk.commit_p99_us,
            disk.commits_measured,
            snapshots.kept,
            snapshots.refused,
            snapshots.failed,
            snapshots.last_bytes,
            snapshots.last_index,
            snapshots.last_digest[0],
            snapshots.last_digest[1],
            counters.restores,
            self.snapshots.is_running(),
            turns.p50_us,
            turns.p99_us,
            turns.p999_us,
            turns.longest_us,
            turns.measured,
        );
        effects.replies_to(router).push(head.token, ReplyKind::Part, |out| {
            out.write_all(text.as_bytes()).expect("a vector takes every byte");
        });
    }
}

/// Adds the answer to GET, EXISTS or TTL: what was found, and as of which index if it may be stale.
#[inline]
fn write_read(
    batch: &mut ReplyBatch,
    token: Token,
    record: &Record<'_>,
    found: Option<StoredRecord<'_>>,
    stale_at: Option<u64>,
    now: Millis,
) {
    let mark = |out: &mut Vec<u8>| {
        if let Some(applied) = stale_at {
            answer::write_stale(out, applied);
            out.push(b',');
        }
    };
    // A local read may meet a record whose removal is still on its way: to its client it is gone.
    let found = found.filter(|found| !is_over(found.expires_at, now));
    match record.op {
        Op::Exists => batch.push(token, ReplyKind::Success, |out| {
            mark(out);
            answer::write(&Outcome::Bool(found.is_some()), out);
        }),
        Op::Ttl => batch.push(token, ReplyKind::Success, |out| {
            mark(out);
            let left = found.map_or(-2, |found| answer::ttl_result(found.expires_at, now));
            answer::write(&Outcome::Integer(left), out);
        }),
        _ => {
            let Some(found) = found else {
                return batch.push(token, ReplyKind::Success, |out| {
                    mark(out);
                    answer::write_absent(out);
                });
            };
            let with_version = record.has(flag::WITH_VERSION);
            let prefix = |out: &mut Vec<u8>| {
                mark(out);
                if with_version {
                    answer::write_version(out, found.version);
                    out.push(b',');
                }
            };
            if found.value.len() >= SHARED_VALUE_BYTES
                && let Some(value) = found.value_shared()
            {
                return batch.push_shared(token, value, |out| {
                    prefix(out);
                    answer::write_token(out, &[]);
                });
            }
            batch.push(token, ReplyKind::Success, |out| {
                prefix(out);
                answer::write_token(out, found.value);
            });
        }
    }
}

/// Adds an answer to a gathering router, marked with the applied index if it may be stale.
pub(super) fn push_part(
    batch: &mut ReplyBatch,
    token: Token,
    stale_at: Option<u64>,
    write: impl FnOnce(&mut Vec<u8>),
) {
    let Some(applied) = stale_at else { return batch.push(token, ReplyKind::Part, write) };
    batch.push(token, ReplyKind::StalePart, |out| {
        out.extend_from_slice(&applied.to_le_bytes());
        write(out);
    });
}

/// Appends the answer to a slice of DELETE_PREFIX.
pub(super) fn write_slice(out: &mut Vec<u8>, cursor: &[u8], count: u64) {
    out.extend_from_slice(&count.to_le_bytes());
    out.extend_from_slice(cursor);
}

/// Appends a place in a scan, or the end.
fn write_cursor(out: &mut Vec<u8>, position: Option<&Position>) {
    match position {
        None => out.push(0),
        Some(position) => {
            out.push(1);
            out.extend_from_slice(&position.hash.0.to_le_bytes());
            let length = u16::try_from(position.key.len()).expect("a key fits 16 bits of length");
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(&position.key);
        }
    }
}

/// Reads a place in a scan off all of `bytes`; nothing means the beginning.
fn read_cursor(bytes: &[u8]) -> Option<Position> {
    if bytes.is_empty() {
        return Some(Position::default());
    }
    let (flag, rest) = bytes.split_first()?;
    let (hash, rest) = rest.split_first_chunk::<8>()?;
    let (length, key) = rest.split_first_chunk::<2>()?;
    let fits = *flag == 1 && key.len() == usize::from(u16::from_le_bytes(*length));
    fits.then(|| Position { hash: KeyHash(u64::from_le_bytes(*hash)), key: key.to_vec() })
}
