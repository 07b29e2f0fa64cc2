//! Takes requests in: each is answered at once, gathers into the next entry, or waits for something named.
//!
//! What waits is bounded by what routers admit. A request that waits for a lock stands in that key's queue behind
//! whatever came before it, so one connection's commands for one key keep their order.

use super::budget::Charge;
use super::outbox::{Ticket, Waiter, reply_failure};
use super::{BATCH_OVERHEAD_BYTES, Floor, Shard};
use crate::batch::{RequestBatch, RequestHead};
use crate::command::answer::Failure;
use crate::command::items;
use crate::command::record::{Op, Record, fingerprint, flag};
use crate::effect::Effects;
use crate::ids::{KeyHash, Millis, hash_of};
use crate::mutants::{Mutant, is_on};
use crate::txn::coordinator::Plan;
use crate::txn::message::{GroupMessage, Message, Open, Start};
use smallvec::SmallVec;

/// A request that waits, with its bytes.
#[derive(Debug)]
pub(super) struct Parked {
    pub(super) router: u8,
    pub(super) head: RequestHead,
    pub(super) record: Box<[u8]>,
    /// Gives its bytes back to the shard's budget.
    _charge: Charge,
}

/// A request as it came, with its record read.
#[derive(Clone, Copy)]
struct Asked<'r> {
    router: u8,
    head: &'r RequestHead,
    bytes: &'r [u8],
    record: Record<'r>,
}

/// What waits for a lock.
#[derive(Debug)]
pub(super) enum LockWaiter {
    /// A client's request.
    Request(Parked),
    /// A PREPARE of another transaction.
    Prepare(GroupMessage),
}

/// Requests whose records are read ahead together.
const READ_AHEAD: usize = 32;
/// Memory that empty batches keep when they go back to their router.
const KEEP_BYTES: usize = 256 << 10;

/// The longest record of a command that a log takes whose batches hold so many bytes.
pub const fn command_bytes_max(log_payload_bytes_max: usize) -> usize {
    log_payload_bytes_max - 2 * BATCH_OVERHEAD_BYTES
}

impl Shard {
    /// Admits every request of a batch, in order, and gives the batch back.
    pub(super) fn admit_batch(&mut self, router: u8, mut batch: Box<RequestBatch>, effects: &mut Effects) {
        self.counters.requests += batch.heads.len() as u64;
        if !self.admits(router, &batch) {
            self.refuse_batch(router, &batch, effects);
            batch.clear(KEEP_BYTES);
            return effects.returned.push((router, batch));
        }
        for number in 0..batch.heads.len() {
            if number % READ_AHEAD == 0 && batch.heads.len() > 1 {
                self.read_ahead(&batch, number);
            }
            let head = &batch.heads[number];
            self.admit(router, head, batch.record(head), effects);
        }
        batch.clear(KEEP_BYTES);
        effects.returned.push((router, batch));
    }

    /// Reads the records of the next reads ahead, so that their cache misses overlap. Writes are read ahead when they are
    /// applied.
    fn read_ahead(&self, batch: &RequestBatch, from: usize) {
        let mut hashes: SmallVec<[KeyHash; READ_AHEAD]> = SmallVec::new();
        for head in batch.heads[from..].iter().take(READ_AHEAD) {
            let is_read = batch.record(head).first().is_some_and(|op| *op == Op::Get as u8);
            if is_read {
                hashes.push(head.hash);
            }
        }
        if hashes.len() > 1 {
            self.state.keys.touch_many(&hashes);
        }
    }

    /// Admits one request.
    pub(super) fn admit(&mut self, router: u8, head: &RequestHead, bytes: &[u8], effects: &mut Effects) {
        let record = match Record::decode(bytes) {
            Ok(record) => record,
            Err(malformed) => {
                let text = format!("the router sent a record that cannot be read: {}", malformed.0);
                return self.refuse(router, head, Failure::Internal(text), effects);
            }
        };
        let asked = &Asked { router, head, bytes, record };
        match asked.record.op {
            Op::Set | Op::Incr | Op::Delete | Op::Expire | Op::Persist => {
                self.admit_write(asked, effects);
            }
            Op::BulkSet | Op::BulkDelete => self.admit_bulk(asked, effects),
            Op::Remember => self.admit_unlocked(asked, effects),
            Op::TxnStart => self.admit_transaction(asked, effects),
            Op::DeletePrefix => self.admit_scan(router, head, bytes, effects),
            Op::Get | Op::Exists | Op::Ttl => self.admit_read(asked, effects),
            Op::ReadMany => self.admit_read_many(asked, effects),
            Op::Scan | Op::SearchStats | Op::QueryIndex if self.reads_locally(&asked.record) => {
                if self.slices.is_half_done() {
                    let parked = self.parked(router, head, bytes);
                    return self.slices.hold(parked);
                }
                self.answer_scan(router, head, bytes, effects);
            }
            Op::Scan | Op::Recall => self.admit_scan(router, head, bytes, effects),
            Op::Info => self.answer_info(router, head, effects),
            Op::Snapshot => self.admit_snapshot(router, head, effects),
            Op::Indexes => self.answer_indexes(router, head, effects),
            Op::SearchStats | Op::QueryIndex => self.admit_scan(router, head, bytes, effects),
            Op::SearchHits => self.score(router, head, &asked.record, effects),
            Op::CatalogChange => self.admit_catalog(router, head, &asked.record),
            Op::MetaChange => self.admit_meta(router, head, &asked.record, effects),
            Op::Members => self.answer_members(router, head, effects),
            Op::Expired
            | Op::TxnOpen
            | Op::TxnPrepare
            | Op::TxnDecide
            | Op::TxnFinish
            | Op::TxnForget
            | Op::Catalog
            | Op::Meta => {
                let text = "a router never sends what only shards propose";
                self.refuse(router, head, Failure::Internal(text.to_owned()), effects);
            }
        }
    }

    /// A request that will wait.
    pub(super) fn parked(&self, router: u8, head: &RequestHead, record: &[u8]) -> Parked {
        let charge = self.budget.charge(size_of::<Parked>() + record.len());
        Parked { router, head: *head, record: record.into(), _charge: charge }
    }

    /// Admits again what waited, in its order.
    pub(super) fn admit_parked(&mut self, parked: &Parked, effects: &mut Effects) {
        if parked.head.deadline <= self.now {
            return reply_failure(
                effects,
                parked.router,
                parked.head.token,
                Failure::Timeout { unknown: false },
            );
        }
        if !self.group.is_leader() && !self.is_for_any(&parked.record) {
            return self.give_back_parked(parked, effects);
        }
        self.admit(parked.router, &parked.head, &parked.record, effects);
    }

    /// Whether an answer waits for the sync: asked for under a weaker floor.
    fn waits_for_sync(&self, record: &Record<'_>) -> bool {
        self.config.floor == Floor::Interval && record.has(flag::FSYNC)
    }

    /// A write that its key's lock lets through goes into the next entry.
    fn admit_write(&mut self, asked: &Asked<'_>, effects: &mut Effects) {
        let key = asked.record.key;
        let held = self.locks.is_held(key).then_some(key);
        let hash = hash_checked(asked.head, &asked.record);
        self.gather_unless_held(asked, held, Some(hash), effects);
    }

    /// The same for a write of several keys.
    fn admit_bulk(&mut self, asked: &Asked<'_>, effects: &mut Effects) {
        let items = asked.record.value;
        let held = self.locks.first_held(items, None);
        if self.gather_unless_held(asked, held, None, effects) {
            self.mark_items(items);
        }
    }

    /// A write that no lock stands against.
    fn admit_unlocked(&mut self, asked: &Asked<'_>, effects: &mut Effects) {
        self.gather_unless_held(asked, None, None, effects);
    }

    /// Puts a write into the next entry, lets it wait for a key that is held, or refuses it; whether it was gathered.
    fn gather_unless_held(
        &mut self,
        asked: &Asked<'_>,
        held: Option<&[u8]>,
        hash: Option<KeyHash>,
        effects: &mut Effects,
    ) -> bool {
        let Asked { router, head, bytes, record } = *asked;
        if record.has(flag::FSYNC) && self.config.floor == Floor::Off {
            let text = "without a log (wal.sync = \"off\") nothing can be synced; leave out \"durability\"";
            self.refuse(router, head, Failure::UnsupportedInMode(text), effects);
            return false;
        }
        if let Some(failure) = self.refusal_of_write(record.op, bytes.len()) {
            self.refuse(router, head, failure, effects);
            return false;
        }
        if let Some(key) = held {
            self.locks.wait(key, LockWaiter::Request(self.parked(router, head, bytes)));
            return false;
        }
        let waiter = Waiter::client(router, head, self.waits_for_sync(&record));
        self.gather(bytes, waiter, hash);
        true
    }

    /// Marks every key of some items as written soon.
    pub(super) fn mark_items(&mut self, bytes: &[u8]) {
        if self.pending.add_large(bytes) {
            return;
        }
        for (key, _) in items::iter(bytes).map_while(Result::ok) {
            self.pending.add(hash_of(key));
        }
    }

    /// Turns a request over several groups into an OPEN in this group's log.
    fn admit_transaction(&mut self, asked: &Asked<'_>, effects: &mut Effects) {
        let Asked { router, head, bytes, record } = *asked;
        let start = match Start::decode(record.value) {
            Ok(start) => start,
            Err(malformed) => {
                let text = format!("the router sent a transaction that cannot be read: {}", malformed.0);
                return self.refuse(router, head, Failure::Internal(text), effects);
            }
        };
        if let Some(failure) = self.refusal_of_write(record.op, bytes.len()) {
            return self.refuse(router, head, failure, effects);
        }
        let fingerprint = record.session.map_or(0, |session| fingerprint(bytes, &session));
        let participants = start.parts.iter().map(|(group, _)| *group).collect();
        let mut value = Vec::new();
        Open { kind: start.kind, fingerprint, participants }.encode(&mut value);
        let parts = start.parts.iter().map(|(group, items)| (*group, items.to_vec())).collect();
        let debug = record.has(flag::DEBUG);
        let plan = Plan { kind: start.kind, debug, parts, deadline: head.deadline };
        self.budget.take_plan(plan.bytes());
        let mut waiter = Waiter::client(router, head, true);
        waiter.ticket = self.ticket(Ticket::Open(plan));
        let mut open = Record::plain(Op::TxnOpen, &[], &value);
        open.session = record.session;
        let mut encoded = Vec::new();
        open.encode(&mut encoded);
        self.counters.transactions += 1;
        self.gather(&encoded, waiter, None);
    }

    fn admit_read(&mut self, asked: &Asked<'_>, effects: &mut Effects) {
        let Asked { router, head, bytes, ref record } = *asked;
        let hash = hash_checked(head, record);
        if self.reads_locally(record) {
            if self.slices.is_half_done() {
                let parked = self.parked(router, head, bytes);
                return self.slices.hold(parked);
            }
            return self.answer_read(router, head, bytes, record, effects);
        }
        if self.locks.is_held(record.key) && !is_on(Mutant::ReadThroughLock) {
            let waiter = LockWaiter::Request(self.parked(router, head, bytes));
            return self.locks.wait(record.key, waiter);
        }
        if !self.is_ready || self.pending.may_have(hash) {
            return self.park_read(router, head, bytes);
        }
        if !self.answer_unless_overdue(router, head, bytes, record, effects) {
            self.propose_expiry(&[record.key]);
            self.park_read(router, head, bytes);
        }
    }

    fn admit_read_many(&mut self, asked: &Asked<'_>, effects: &mut Effects) {
        let Asked { router, head, bytes, record } = *asked;
        if self.reads_locally(&record) {
            if self.slices.is_half_done() {
                let parked = self.parked(router, head, bytes);
                return self.slices.hold(parked);
            }
        } else {
            if let Some(key) =
                self.locks.first_held(record.value, None).filter(|_| !is_on(Mutant::BulkReadThroughLock))
            {
                let waiter = LockWaiter::Request(self.parked(router, head, bytes));
                return self.locks.wait(key, waiter);
            }
            let keys = || items::iter(record.value).map_while(Result::ok).map(|(key, _)| key);
            let must_wait = !self.is_ready || keys().any(|key| self.pending.may_have(hash_of(key)));
            let overdue: Vec<&[u8]> = keys().filter(|key| self.is_overdue(hash_of(key), key)).collect();
            if !overdue.is_empty() {
                self.propose_expiry(&overdue);
            }
            if must_wait || !overdue.is_empty() {
                return self.park_read(router, head, bytes);
            }
        }
        self.answer_read_many(router, head, bytes, &record, effects);
    }

    /// A command that looks at many keys: it waits for everything admitted and for the locks held when it came.
    fn admit_scan(&mut self, router: u8, head: &RequestHead, bytes: &[u8], effects: &mut Effects) {
        let (index, locks) = (self.horizon(), self.locks.horizon());
        if self.is_ready && index <= self.applied && self.locks.are_gone_before(locks) {
            return self.answer_scan(router, head, bytes, effects);
        }
        self.scans.push_back((index, locks, self.parked(router, head, bytes)));
    }

    /// Lets a read wait until exactly what was admitted before it is applied: the commands up to a place in an entry.
    /// What comes later may stand in the same entry, and must not be seen by it.
    fn park_read(&mut self, router: u8, head: &RequestHead, bytes: &[u8]) {
        let index = self.horizon();
        let position = self.next_position();
        self.reads.push_back((index, position, self.parked(router, head, bytes)));
    }

    /// Answers the reads that came before the command at `position` of the entry that is being applied.
    pub(super) fn release_reads_before(&mut self, position: u16, effects: &mut Effects) {
        let point = (self.applying, position);
        while self.reads.front().is_some_and(|(index, position, _)| (*index, *position) <= point) {
            let Some((_, _, parked)) = self.reads.pop_front() else { break };
            self.answer_parked_read(&parked, effects);
        }
    }

    /// Answers the reads that waited for the entries up to the applied one.
    pub(super) fn release_reads(&mut self, effects: &mut Effects) {
        if !self.is_ready {
            return;
        }
        self.release_reads_before(u16::MAX, effects);
        self.release_scans(effects);
    }

    /// Answers a read from the state as it is: writes of its keys that are still pending came after it. An intent on one of
    /// them came before: a new leader parks reads before it has applied what earlier leaders left, and the outcome of a
    /// PREPARE among that may be known to clients already.
    fn answer_parked_read(&mut self, parked: &Parked, effects: &mut Effects) {
        let Ok(record) = Record::decode(&parked.record) else {
            return self.admit_parked(parked, effects);
        };
        let (router, head) = (parked.router, &parked.head);
        if head.deadline <= self.now {
            return reply_failure(effects, router, head.token, Failure::Timeout { unknown: false });
        }
        if record.op == Op::ReadMany {
            let keys = || items::iter(record.value).map_while(Result::ok).map(|(key, _)| key);
            if keys().any(|key| self.is_overdue(hash_of(key), key) || self.txns.lock_of(key).is_some()) {
                return self.admit_parked(parked, effects);
            }
            return self.answer_read_many(router, head, &parked.record, &record, effects);
        }
        if self.is_overdue(head.hash, record.key) || self.txns.lock_of(record.key).is_some() {
            return self.admit_parked(parked, effects);
        }
        self.answer_read(router, head, &parked.record, &record, effects);
    }

    /// This leader has applied what earlier ones left: scans that came before that wait for the intents in it too.
    pub(super) fn renew_scan_locks(&mut self) {
        let horizon = self.locks.horizon();
        for (_, locks, _) in &mut self.scans {
            *locks = horizon;
        }
    }

    pub(super) fn release_scans(&mut self, effects: &mut Effects) {
        for _ in 0..self.scans.len() {
            let Some((index, locks, parked)) = self.scans.pop_front() else { break };
            if index <= self.applied && self.locks.are_gone_before(locks) {
                self.answer_scan(parked.router, &parked.head, &parked.record, effects);
            } else {
                self.scans.push_back((index, locks, parked));
            }
        }
    }

    /// Admits again what waited for a lock.
    pub(super) fn admit_freed(&mut self, waiter: LockWaiter, effects: &mut Effects) {
        match waiter {
            LockWaiter::Request(parked) => self.admit_parked(&parked, effects),
            LockWaiter::Prepare(message) => {
                if let Message::Prepare { txn, attempt, .. } = &message.body {
                    self.waiting_prepares.remove(&(*txn, *attempt));
                }
                self.hear(message, effects);
            }
        }
    }

    /// Answers the waiting requests whose clients have stopped waiting; none of them was proposed.
    pub(super) fn give_up_parked(&mut self, effects: &mut Effects) {
        let now = self.now;
        let is_over = |deadline: Millis| deadline <= now;
        let mut late: Vec<(u8, crate::ids::Token)> = Vec::new();
        self.reads.retain(|(_, _, parked)| keep_or_note(parked, now, &mut late));
        self.scans.retain(|(_, _, parked)| keep_or_note(parked, now, &mut late));
        // With others in the group, what these waited for is a majority.
        let missed = if self.held.is_on() { Failure::NoQuorum } else { Failure::Timeout { unknown: false } };
        for (router, token) in late.drain(..) {
            reply_failure(effects, router, token, missed.clone());
        }
        self.slices.held().retain(|parked| keep_or_note(parked, now, &mut late));
        let taken = self.locks.take_waiting(|waiter| match waiter {
            LockWaiter::Request(parked) => is_over(parked.head.deadline),
            LockWaiter::Prepare(message) => {
                matches!(&message.body, Message::Prepare { deadline, .. } if is_over(*deadline))
            }
        });
        for waiter in taken {
            match waiter {
                LockWaiter::Request(parked) => late.push((parked.router, parked.head.token)),
                LockWaiter::Prepare(message) => self.refuse_prepare(&message, effects),
            }
        }
        for (router, token) in late {
            reply_failure(effects, router, token, Failure::Timeout { unknown: false });
        }
    }

    fn refusal_of_write(&self, op: Op, bytes: usize) -> Option<Failure> {
        if !self.has_log_room {
            return Some(Failure::DiskFull);
        }
        let logged_bytes_max = command_bytes_max(self.config.log_payload_bytes_max);
        if bytes > logged_bytes_max {
            return Some(Failure::TooLarge(logged_bytes_max as u64));
        }
        let outstanding = self.outstanding_bytes();
        if outstanding + bytes > self.config.outstanding_bytes_max && outstanding > 0 {
            let text = "this shard holds as many bytes of writes as it may that are not applied yet; send more slowly";
            return Some(Failure::Overloaded(text));
        }
        let stores = matches!(op, Op::Set | Op::Incr | Op::BulkSet | Op::TxnStart);
        let bound = self.config.memory_bytes_max;
        if stores && bound > 0 && self.memory_bytes() + bytes as u64 > bound {
            return Some(Failure::OutOfMemory);
        }
        None
    }

    /// Bytes of commands that are admitted and not yet applied, transactions under way included.
    pub(super) fn outstanding_bytes(&self) -> usize {
        self.budget.bytes() + self.coordinator.bytes() + self.txns.intent_bytes()
    }

    /// What `memory.max_mib` bounds: records, remembered replies, indexes, what is on its way, and what a snapshot holds.
    /// The indexes are measured every tick.
    pub(super) fn memory_bytes(&self) -> u64 {
        let state = &self.state;
        let held = state.keys.bytes() + state.sessions.bytes() + state.keys.cut_pending_bytes();
        held as u64 + self.searches.bytes + self.outstanding_bytes() as u64
    }

    /// Whether more requests should be brought: a driver that stops when there is no room slows the clients down before
    /// writes must be refused. A replica that does not lead sends them on at once, whatever it holds; and the intents of one
    /// that was taken out end only when somebody tells it.
    pub fn has_room(&self) -> bool {
        !self.group.is_leader() || self.outstanding_bytes() < self.config.outstanding_bytes_max / 2
    }
}

/// Keeps a request that is in time; notes whom to answer of one that is not.
pub(super) fn keep_or_note(parked: &Parked, now: Millis, late: &mut Vec<(u8, crate::ids::Token)>) -> bool {
    let in_time = parked.head.deadline > now;
    if !in_time {
        late.push((parked.router, parked.head.token));
    }
    in_time
}

/// The hash that the router sent, which must be that of the key: a wrong one would hide a record for ever.
#[inline]
fn hash_checked(head: &RequestHead, record: &Record<'_>) -> KeyHash {
    debug_assert_eq!(head.hash, hash_of(record.key), "the router hashes the whole key");
    head.hash
}
