//! Applies committed entries: the only place where state changes.
//!
//! What changes depends on the entry alone, so every replica and every replay agrees. Who is answered depends on this
//! leader's own proposals. After each entry, before the next, the reads that waited for it are answered.

use super::outbox::{NO_TICKET, Ticket, Waiter};
use super::role::as_it_came;
use super::{Shard, ShardFault, reads};
use crate::batch::ReplyKind;
use crate::command::answer::{self, Failure, Outcome};
use crate::command::context::{Context, Observer};
use crate::command::entry::Entry as EntryData;
use crate::command::record::{Malformed, Op, Record, fingerprint, key_of};
use crate::command::{bulk, incr, items, write};
use crate::effect::Effects;
use crate::ids::{KeyHash, Millis, Sequence, Version, hash_of};
use crate::index::set::IndexSet;
use crate::state::{Check, State};
use raft::prelude::{Entry, EntryType};
use smallvec::SmallVec;

/// Commands whose records are read ahead together.
const READ_AHEAD: usize = 32;
/// Clients of the dedup table looked at per entry for replies that are too old.
const SESSIONS_EXPIRED_PER_ENTRY: usize = 4;

impl Observer for IndexSet {
    fn is_active(&self) -> bool {
        self.definitions().next().is_some()
    }

    fn changed(&mut self, key: &[u8], old: Option<&[u8]>, new: Option<&[u8]>) {
        self.apply(key, old, new);
    }
}

impl Shard {
    /// Applies one entry and answers who waited for it.
    pub(super) fn apply_entry(&mut self, entry: &Entry, effects: &mut Effects) -> Result<(), ShardFault> {
        assert_eq!(entry.index, self.applied + 1, "entries are applied in order, each once");
        self.applying = entry.index;
        let waiters = self.waiters_of(entry);
        // What an earlier leadership of this replica proposed is answered, but it is no part of what it leads now.
        let is_led = self.leading_term() == Some(entry.term);
        if entry.entry_type != EntryType::EntryNormal {
            self.group.apply_change(entry)?;
            self.follow_quorum(effects);
        } else if !entry.data.is_empty() {
            self.apply_commands(entry, waiters.as_deref(), is_led, effects)?;
        }
        self.counters.commands += waiters.map_or(0, |waiters| waiters.len() as u64);
        self.applied = entry.index;
        self.applied_term = entry.term;
        self.group.applied(entry.index);
        if !self.is_ready && entry.term == self.group.term() && self.group.is_leader() {
            self.is_ready = true;
            let mut actions = Vec::new();
            self.coordinator.take_over(self.txns.records(), self.now, &mut actions);
            self.perform(actions, effects);
        }
        self.release_reads(effects);
        Ok(())
    }

    /// The waiters of an entry that this leader proposed.
    fn waiters_of(&mut self, entry: &Entry) -> Option<Vec<Waiter>> {
        let first = self.proposed.front()?;
        assert!(first.index >= entry.index, "proposals are applied in order");
        if first.index != entry.index {
            return None;
        }
        let proposed = self.proposed.pop_front()?;
        assert_eq!(proposed.term, entry.term, "who waited for a replaced proposal was answered");
        Some(proposed.waiters)
    }

    fn apply_commands(
        &mut self,
        entry: &Entry,
        waiters: Option<&[Waiter]>,
        is_led: bool,
        effects: &mut Effects,
    ) -> Result<(), ShardFault> {
        let data = entry.data.clone();
        let mut commands = EntryData::decode(&data)?;
        let (epoch, stamp) = (commands.epoch, commands.stamp);
        if stamp < self.stamp_applied {
            return Err(Malformed("an entry's stamp goes back").into());
        }
        self.stamp = self.stamp.max(stamp);
        self.stamp_applied = self.stamp_applied.max(stamp);
        self.epoch = self.epoch.max(epoch);
        let needed = self.sequence_of(entry.index);
        let mut position = 0u16;
        while let Some(bytes) = commands.next_record()? {
            let version = Version::new(epoch, entry.index, position);
            if usize::from(position) % READ_AHEAD == 0 {
                read_ahead(&self.state, bytes, commands.clone());
            }
            let waiter = waiters.map(|waiters| waiters[usize::from(position)]);
            if waiter.is_some() {
                self.release_reads_before(position, effects);
            }
            self.apply_command(bytes, version, stamp, waiter, is_led, needed, effects)?;
            position += 1;
        }
        self.state.sessions.expire(stamp, SESSIONS_EXPIRED_PER_ENTRY);
        Ok(())
    }

    fn apply_command(
        &mut self,
        bytes: &[u8],
        version: Version,
        stamp: Millis,
        waiter: Option<Waiter>,
        is_led: bool,
        needed: Sequence,
        effects: &mut Effects,
    ) -> Result<(), ShardFault> {
        let record = Record::decode(bytes)?;
        let is_own = waiter.is_some() && is_led;
        let waiter = waiter.unwrap_or_else(Waiter::nobody);
        let outcome = match record.op {
            Op::Set | Op::Delete | Op::Incr | Op::Expire | Op::Persist => {
                let hash = hash_of(record.key);
                if is_own {
                    self.pending.remove(hash);
                }
                if self.txns.lock_of(record.key).is_some() {
                    // The leader lets nothing through to a held key, so only a change of leader brings this about.
                    return self.requeue(bytes, waiter, effects);
                }
                self.once(bytes, &record, version, stamp, |context| {
                    Ok(match record.op {
                        Op::Set => write::set(context, hash, &record),
                        Op::Delete => write::delete(context, hash, &record),
                        Op::Incr => incr::incr(context, hash, &record),
                        Op::Expire => write::expire(context, hash, &record),
                        _ => write::persist(context, hash, &record),
                    })
                })?
            }
            Op::BulkSet | Op::BulkDelete => {
                if is_own {
                    self.unmark_items(record.value);
                }
                if self.is_any_locked(record.value) {
                    return self.requeue(bytes, waiter, effects);
                }
                self.once(bytes, &record, version, stamp, |context| match record.op {
                    Op::BulkSet => bulk::set(context, &record),
                    _ => bulk::delete(context, &record),
                })?
            }
            Op::Expired => {
                if is_own {
                    self.unmark_items(record.value);
                }
                self.apply_expired(&record, version, stamp)
            }
            Op::Remember => self.apply_remember(&record, stamp)?,
            Op::TxnOpen => return self.apply_open(&record, version, stamp, waiter, effects),
            Op::TxnPrepare => return self.apply_prepare(&record, version, stamp, is_own, effects),
            Op::TxnDecide => return self.apply_decide(&record, stamp, effects),
            Op::TxnFinish => return self.apply_finish(&record, version, stamp, effects),
            Op::TxnForget => return self.apply_forget(&record),
            Op::Catalog => {
                if is_own {
                    self.searches.edits_in_flight -= 1;
                }
                self.interrupt_snapshot(effects);
                self.apply_catalog(&record)?
            }
            _ => return Err(Malformed("an operation that is never logged").into()),
        };
        if waiter.ticket != NO_TICKET {
            return self.answer_slice(&waiter, &outcome, needed, effects);
        }
        self.answer(&waiter, needed, &outcome, effects);
        Ok(())
    }

    /// Runs a command unless its session has seen it; remembers what it came to.
    fn once(
        &mut self,
        bytes: &[u8],
        record: &Record<'_>,
        version: Version,
        stamp: Millis,
        run: impl FnOnce(&mut Context<'_>) -> Result<Outcome, Malformed>,
    ) -> Result<Outcome, ShardFault> {
        let observer = &mut self.searches.indexes;
        let Some(session) = record.session else {
            let mut context = Context { keys: &mut self.state.keys, observer, stamp, version };
            return Ok(run(&mut context)?);
        };
        let print = fingerprint(bytes, &session);
        if let Some(known) = known(&self.state, session.client, session.seq, print) {
            return Ok(known);
        }
        let mut context = Context { keys: &mut self.state.keys, observer, stamp, version };
        let outcome = run(&mut context)?;
        remember(&mut self.state, session.client, session.seq, session.acked, print, stamp, &outcome);
        Ok(outcome)
    }

    fn apply_expired(&mut self, record: &Record<'_>, version: Version, stamp: Millis) -> Outcome {
        let txns = &self.txns;
        let keys: Vec<&[u8]> = items::iter(record.value)
            .map_while(Result::ok)
            .map(|(key, _)| key)
            .filter(|key| txns.lock_of(key).is_none())
            .collect();
        let observer = &mut self.searches.indexes;
        let mut context = Context { keys: &mut self.state.keys, observer, stamp, version };
        let outcome = bulk::expired(&mut context, &keys);
        if let Outcome::Integer(count) = outcome {
            self.counters.expired += count as u64;
        }
        outcome
    }

    /// Stores the reply of a multi-step command: the value is {kind u8, body}, the argument its fingerprint.
    fn apply_remember(&mut self, record: &Record<'_>, stamp: Millis) -> Result<Outcome, ShardFault> {
        let session = record.session.ok_or(Malformed("a reply to remember without a session"))?;
        let print = record.argument.ok_or(Malformed("a reply to remember without a fingerprint"))?;
        if let Some(known) = known(&self.state, session.client, session.seq, print) {
            return Ok(known);
        }
        let (kind, body) =
            record.value.split_first().ok_or(Malformed("a reply to remember without a kind"))?;
        let kind = if *kind == 0 { ReplyKind::Success } else { ReplyKind::Error };
        let outcome = Outcome::Members(kind, body.to_vec());
        remember(&mut self.state, session.client, session.seq, session.acked, print, stamp, &outcome);
        Ok(outcome)
    }

    fn answer_slice(
        &mut self,
        waiter: &Waiter,
        outcome: &Outcome,
        needed: Sequence,
        effects: &mut Effects,
    ) -> Result<(), ShardFault> {
        let ticket = self.tickets.remove(&waiter.ticket);
        let (Some(Ticket::Slice { cursor, .. }), Outcome::Integer(count)) = (ticket, outcome) else {
            unreachable!("only a slice of DELETE_PREFIX is answered by its ticket");
        };
        let mut body = Vec::new();
        reads::write_slice(&mut body, &cursor, *count as u64);
        self.answer(waiter, needed, &Outcome::Members(ReplyKind::Part, body), effects);
        Ok(())
    }

    /// A key is locked by an intent: nothing changes, and whoever waits is put into the key's queue.
    fn requeue(&mut self, bytes: &[u8], waiter: Waiter, effects: &mut Effects) -> Result<(), ShardFault> {
        if !waiter.is_silent {
            let (hash, record) = as_it_came(bytes, self.tickets.remove(&waiter.ticket));
            let (bytes, start, length) = (&record[..], 0, record.len() as u32);
            let head = crate::batch::RequestHead {
                token: waiter.token,
                hash,
                deadline: waiter.deadline,
                start,
                length,
            };
            match self.group.is_leader() {
                true => self.admit(waiter.router, &head, bytes, effects),
                false => self.give_back(waiter.router, &head, bytes, effects),
            }
        }
        Ok(())
    }

    fn unmark_items(&mut self, bytes: &[u8]) {
        for (key, _) in items::iter(bytes).map_while(Result::ok) {
            self.pending.remove(hash_of(key));
        }
    }

    fn is_any_locked(&self, bytes: &[u8]) -> bool {
        let keys = || items::iter(bytes).map_while(Result::ok).map(|(key, _)| key);
        !self.txns.is_idle() && keys().any(|key| self.txns.lock_of(key).is_some())
    }
}

/// What a session already knows of a request; `None` when it is fresh.
pub(super) fn known(state: &State, client: &[u8], seq: u64, print: u64) -> Option<Outcome> {
    match state.sessions.check(client, seq, print) {
        Check::Fresh => None,
        Check::Replay(reply) => Some(match reply.kind {
            ReplyKind::Ok => Outcome::Ok,
            kind => Outcome::Members(kind, reply.body.to_vec()),
        }),
        Check::Mismatch => Some(Outcome::Failed(Failure::SeqReused)),
        Check::Expired => Some(Outcome::Failed(Failure::SeqExpired)),
        Check::Refused(_) => Some(Outcome::Failed(Failure::SessionsFull)),
    }
}

/// Remembers what a request came to.
pub(super) fn remember(
    state: &mut State,
    client: &[u8],
    seq: u64,
    acked: u64,
    print: u64,
    stamp: Millis,
    outcome: &Outcome,
) {
    let mut body = Vec::new();
    let kind = answer::write(outcome, &mut body);
    state.sessions.record(client, seq, print, kind, &body, stamp);
    if acked > 0 {
        state.sessions.acked(client, acked, stamp);
    }
}

/// Reads the records of the next keys ahead, so that their cache misses overlap.
fn read_ahead(state: &State, first: &[u8], mut next: EntryData<'_>) {
    let mut hashes: SmallVec<[KeyHash; READ_AHEAD]> = SmallVec::new();
    let mut record = Some(first);
    while let Some(bytes) = record
        && hashes.len() < READ_AHEAD
    {
        if let Ok(key) = key_of(bytes)
            && !key.is_empty()
        {
            hashes.push(hash_of(key));
        }
        record = next.next_record().ok().flatten();
    }
    if hashes.len() > 1 {
        state.keys.touch_many(&hashes);
    }
}

/// Used by the transaction room: a context over the parts of the state.
pub(super) fn finish_intent(
    state: &mut State,
    observer: &mut IndexSet,
    intent: &crate::txn::state::Intent,
    version: Version,
    stamp: Millis,
) -> Result<(), Malformed> {
    let mut context = Context { keys: &mut state.keys, observer, stamp, version };
    match intent.kind {
        crate::txn::Kind::Set => bulk::set_items(&mut context, &intent.items, intent.debug).map(drop),
        crate::txn::Kind::Delete => bulk::delete_items(&mut context, &intent.items).map(drop),
        crate::txn::Kind::Read => Ok(()),
    }
}
