//! Leading and not leading: what a replica that does not lead refuses, and what becomes of waiting requests when it stops.
//!
//! A request that was not proposed goes back with its own record, so that its router can send it elsewhere. What was
//! proposed waits for the fate of its entry. A stream of requests that met one refusal is refused until its sender has
//! taken note, so nothing overtakes what was refused.

use super::admit::LockWaiter;
use super::outbox::{Ticket, Waiter, reply_failure};
use super::propose::Gathered;
use super::slices::Current;
use super::{Parked, Shard};
use crate::batch::{NotLeader, RequestBatch, RequestHead};
use crate::command::answer::Failure;
use crate::command::entry::{Entry as EntryData, HEAD_BYTES};
use crate::command::record::{Op, Record, flag};
use crate::effect::{Effects, Role};
use crate::ids::{KeyHash, Millis, hash_of};
use crate::txn::message::{Open, Start};
use raft::prelude::Entry;
use std::collections::BTreeMap;

/// Streams remembered. There is one for each router of each node; of more the oldest numbers are forgotten.
const STREAMS_MAX: usize = 65_536;

/// What was last told to those who look.
#[derive(Debug, Default)]
pub(super) struct Standing {
    told: Role,
    /// The term that this replica leads or led last, while what it admitted then is not given back.
    leading: Option<u64>,
    streams: BTreeMap<(u8, u16), Stream>,
    /// Since when the process wants to stop, and until when leadership is offered to others.
    pub(super) resigns_until: Option<Millis>,
}

/// One stream of requests, as [`RequestBatch::origin`] says.
#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    /// The newest view seen.
    seen: u32,
    /// The newest view in which something was refused.
    refused: Option<u32>,
}

impl Standing {
    /// Whether a batch may be admitted by a leader: its sender knows of every refusal.
    fn admits(&mut self, router: u8, batch: &RequestBatch) -> bool {
        if self.streams.len() >= STREAMS_MAX {
            self.streams.pop_first();
        }
        let stream = self.streams.entry((router, batch.origin)).or_default();
        stream.seen = stream.seen.max(batch.view);
        stream.refused.is_none_or(|refused| batch.view > refused)
    }

    /// Something of this stream is refused.
    fn refuse(&mut self, router: u8, origin: u16) {
        if let Some(stream) = self.streams.get_mut(&(router, origin)) {
            stream.refused = Some(stream.seen);
        }
    }

    /// Something of any stream may be refused.
    fn refuse_all(&mut self) {
        for stream in self.streams.values_mut() {
            stream.refused = Some(stream.seen);
        }
    }
}

impl Shard {
    /// Whether requests of this batch may be admitted. A batch that may not is refused whole, but for what any replica
    /// answers.
    pub(super) fn admits(&mut self, router: u8, batch: &RequestBatch) -> bool {
        self.standing.admits(router, batch) && self.group.is_leader()
    }

    /// Refuses what only a leader does and answers the rest.
    pub(super) fn refuse_batch(&mut self, router: u8, batch: &RequestBatch, effects: &mut Effects) {
        for head in &batch.heads {
            let record = batch.record(head);
            if self.is_for_any(record) {
                self.admit(router, head, record, effects);
                continue;
            }
            self.standing.refuse(router, batch.origin);
            self.give_back(router, head, record, effects);
        }
    }

    /// Whether any replica answers this: reads that may be stale, and what is asked of this very replica.
    pub(super) fn is_for_any(&self, record: &[u8]) -> bool {
        // Damage is told by whoever admits it.
        let Ok(record) = Record::decode(record) else { return true };
        match record.op {
            Op::Info | Op::Snapshot | Op::Indexes => true,
            Op::Get | Op::Exists | Op::Ttl | Op::ReadMany | Op::Scan => record.has(flag::LOCAL),
            Op::SearchStats | Op::QueryIndex => record.has(flag::LOCAL),
            // What was pinned here stays true, whoever leads now.
            Op::SearchHits => self.searches.has_view(record.argument.unwrap_or(u64::MAX)),
            _ => false,
        }
    }

    /// Whether a read is answered from the state as it is. A lone node has nobody to ask instead, so before it has read
    /// its own log nothing is answered.
    pub(super) fn reads_locally(&self, record: &Record<'_>) -> bool {
        record.has(flag::LOCAL) && (self.is_ready || !self.group.is_alone())
    }

    /// The applied index to be told with a local read that may be stale. A replica that leads may have been deposed without
    /// knowing it yet, and a local read does not ask the others; so only a lone voter is sure.
    pub(super) fn stale_at(&self) -> Option<u64> {
        (!self.is_ready || !self.group.is_alone()).then_some(self.applied)
    }

    /// Gives a request back that was not proposed.
    pub(super) fn give_back(&self, router: u8, head: &RequestHead, record: &[u8], effects: &mut Effects) {
        let (leader, term) = (self.group.leader(), self.group.term());
        let refused = NotLeader { leader, term, hash: head.hash, deadline: head.deadline, record };
        effects.replies_to(router).push_not_leader(head.token, &refused);
    }

    /// Takes note when this replica begins or ceases to lead.
    pub(super) fn follow_role(&mut self, effects: &mut Effects) {
        let leading = self.group.is_leader().then(|| self.group.term());
        if leading == self.standing.leading {
            return;
        }
        if self.standing.leading.is_some() {
            self.step_down(effects);
        }
        self.standing.leading = leading;
        self.follow_quorum(effects);
    }

    /// The term in which this replica leads now.
    pub(super) fn leading_term(&self) -> Option<u64> {
        self.standing.leading
    }

    /// Tells who leads if that has changed.
    pub(super) fn tell_role(&mut self, effects: &mut Effects) {
        let role = Role { term: self.group.term(), leader: self.group.leader(), is_serving: self.is_ready };
        if role != self.standing.told {
            self.standing.told = role;
            effects.role = Some(role);
        }
    }

    /// This replica leads no more: whatever was not proposed goes back.
    fn step_down(&mut self, effects: &mut Effects) {
        self.is_ready = false;
        self.standing.refuse_all();
        self.slices.step_down();
        let gathered = std::mem::take(&mut self.gathered);
        let unproposed: Vec<Gathered> = self.sealed.drain(..).chain([gathered]).collect();
        for gathered in unproposed.into_iter().filter(|gathered| !gathered.is_empty()) {
            let (data, waiters) = gathered.take_apart();
            self.give_back_entry(&data, waiters, effects);
        }
        for waiter in self.locks.take_waiting(|_| true) {
            // A PREPARE that waited is said again, to whoever leads then.
            if let LockWaiter::Request(parked) = waiter {
                self.give_back_parked(&parked, effects);
            }
        }
        let reads = std::mem::take(&mut self.reads).into_iter();
        let scans = std::mem::take(&mut self.scans).into_iter();
        for (_, _, parked) in reads {
            self.give_back_parked(&parked, effects);
        }
        for (_, _, parked) in scans {
            self.give_back_parked(&parked, effects);
        }
        self.give_back_edits(effects);
        self.pending.clear();
        self.cluster.leadership_lost();
        self.forget_transactions(effects);
        self.rebuild_locks();
    }

    /// Stops driving transactions. Their outcome is up to the next leader.
    pub(super) fn forget_transactions(&mut self, effects: &mut Effects) {
        self.waiting_prepares.clear();
        self.preparing.clear();
        self.finishing.clear();
        self.coordinator.clear();
        for waiter in std::mem::take(&mut self.txn_waiters).into_values().flatten() {
            if !waiter.is_silent {
                let unknown = Failure::Timeout { unknown: true };
                reply_failure(effects, waiter.router, waiter.token, unknown);
            }
        }
    }

    /// Exactly the keys of applied intents are held: what a leader had reserved beyond that is void.
    pub(super) fn rebuild_locks(&mut self) {
        assert_eq!(self.locks.waiting(), 0, "whoever waits is answered first");
        self.locks.clear();
        for (txn, intent) in self.txns.intents() {
            self.locks.hold(txn, &intent.items);
        }
        if let Some((txn, items)) = self.slices.locking() {
            self.locks.hold(txn, items);
        }
    }

    pub(super) fn give_back_parked(&self, parked: &Parked, effects: &mut Effects) {
        self.give_back(parked.router, &parked.head, &parked.record, effects);
    }

    /// Entries of this replica that were replaced: surely none of them is ever applied.
    pub(super) fn entries_replaced(&mut self, replaced: Vec<Entry>, effects: &mut Effects) {
        for entry in replaced {
            let found = self.proposed.iter().position(|proposed| proposed.index == entry.index);
            let Some(proposed) = found.and_then(|at| self.proposed.remove(at)) else { continue };
            assert_eq!(proposed.term, entry.term, "an index has one proposal at a time");
            self.give_back_entry(&entry.data, proposed.waiters, effects);
        }
    }

    /// Nothing is known any more of what was proposed: a snapshot took the place of its entries.
    pub(super) fn forget_proposed(&mut self, effects: &mut Effects) {
        let mut waiters = Vec::new();
        if let Some(Current { entry, waiters: Some(under_way), .. }) = self.slices.clear() {
            self.budget.release(entry.data.len() - HEAD_BYTES);
            waiters = under_way;
        }
        waiters.extend(self.take_proposed_behind(0));
        self.answer_unknown(waiters, effects);
    }

    /// A replica that the group has let go hears no more what becomes of entries that it proposed and does not know to be
    /// committed: it must not wait for them, or its seat is never free.
    pub(super) fn forget_if_dismissed(&mut self, effects: &mut Effects) {
        if !self.proposed.is_empty() && !self.group.is_leader() && self.group.is_dismissed() {
            let waiters = self.take_proposed_behind(self.group.commit_index());
            self.answer_unknown(waiters, effects);
        }
    }

    /// Takes away what was proposed behind an index, and returns who waits for it.
    fn take_proposed_behind(&mut self, index: u64) -> Vec<Waiter> {
        let first = self.proposed.partition_point(|proposed| proposed.index <= index);
        let mut waiters = Vec::new();
        for proposed in self.proposed.drain(first..) {
            self.budget.release(proposed.bytes);
            waiters.extend(proposed.waiters);
        }
        waiters
    }

    fn answer_unknown(&mut self, waiters: Vec<Waiter>, effects: &mut Effects) {
        for waiter in waiters {
            if !waiter.is_silent {
                let unknown = Failure::Timeout { unknown: true };
                reply_failure(effects, waiter.router, waiter.token, unknown);
            }
            let ticket = self.tickets.remove(&waiter.ticket);
            self.release_plan_of(ticket.as_ref());
        }
    }

    fn release_plan_of(&mut self, ticket: Option<&Ticket>) {
        if let Some(Ticket::Open(plan)) = ticket {
            self.budget.release_plan(plan.bytes());
        }
    }

    /// Gives back every request of an entry that is never applied.
    fn give_back_entry(&mut self, data: &[u8], waiters: Vec<Waiter>, effects: &mut Effects) {
        self.budget.release(data.len() - HEAD_BYTES);
        let mut commands = EntryData::decode(data).expect("this replica made the entry");
        for waiter in waiters {
            let bytes = commands.next_record().expect("this replica made the entry");
            let bytes = bytes.expect("an entry has a command for each waiter");
            let ticket = self.tickets.remove(&waiter.ticket);
            self.release_plan_of(ticket.as_ref());
            if waiter.is_silent {
                continue;
            }
            let (hash, record) = as_it_came(bytes, ticket);
            let (token, deadline) = (waiter.token, waiter.deadline);
            let head = RequestHead { token, hash, deadline, start: 0, length: record.len() as u32 };
            self.give_back(waiter.router, &head, &record, effects);
        }
    }
}

/// The record that a router sent, from the command that it became; with the hash of its key.
pub(super) fn as_it_came(bytes: &[u8], ticket: Option<Ticket>) -> (KeyHash, Vec<u8>) {
    let record = Record::decode(bytes).expect("this replica encoded the command");
    let mut out = Vec::new();
    match (record.op, ticket) {
        (_, Some(Ticket::Slice { record, .. })) => return (KeyHash(0), record.into_vec()),
        (Op::TxnOpen, Some(Ticket::Open(plan))) => {
            let open = Open::decode(record.value).expect("this replica encoded the command");
            let parts = plan.parts.iter().map(|(group, items)| (*group, items.as_slice())).collect();
            let mut value = Vec::new();
            Start { kind: open.kind, parts }.encode(&mut value);
            let flags = if plan.debug { flag::DEBUG } else { 0 };
            let plain = Record::plain(Op::TxnStart, &[], &value);
            Record { flags, session: record.session, ..plain }.encode(&mut out);
        }
        (Op::Catalog, _) => Record::plain(Op::CatalogChange, &[], record.value).encode(&mut out),
        (Op::Meta, _) => Record::plain(Op::MetaChange, &[], record.value).encode(&mut out),
        _ => out.extend_from_slice(bytes),
    }
    let hash = if record.key.is_empty() { KeyHash(0) } else { hash_of(record.key) };
    (hash, out)
}
