//! Applies committed entries: the only place where state changes.
//!
//! What changes depends on the entry alone, so every replica and every replay agrees. Who is answered depends on this
//! leader's own proposals. After each entry, before the next, the reads that waited for it are answered. Entries are
//! applied in slices ([`super::slices`]); what must not be seen in between stands there.

use super::outbox::{NO_TICKET, Ticket, Waiter};
use super::role::as_it_came;
use super::slices::{Current, Frame, Inside, cost_of};
use super::{Shard, ShardFault, reads};
use crate::batch::ReplyKind;
use crate::command::answer::{self, Failure, Outcome};
use crate::command::context::{Context, Observer};
use crate::command::entry::{Entry as EntryData, HEAD_BYTES, Place};
use crate::command::record::{Malformed, Op, Record, Session, fingerprint, key_of};
use crate::command::{bulk, incr, items, write};
use crate::effect::Effects;
use crate::ids::{KeyHash, Millis, Sequence, Version, hash_of};
use crate::index::Units;
use crate::index::set::IndexSet;
use crate::mutants::{Mutant, is_on};
use crate::state::{Check, State};
use raft::prelude::{Entry, EntryType};
use smallvec::SmallVec;
use std::ops::Range;

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
    /// Applies committed entries, in order, while units are left, and answers who waited for them.
    pub(super) fn apply_some(&mut self, units: &mut Units, effects: &mut Effects) -> Result<(), ShardFault> {
        while units.left() && !self.slices.is_empty() {
            if self.slices.current.is_none() && self.must_catch_up() {
                return Ok(());
            }
            let was_half_done = self.slices.is_half_done();
            let mut current = match self.slices.current.take() {
                Some(current) => current,
                None => match self.slices.pop() {
                    Some(entry) => self.begin_entry(entry, effects)?,
                    None => return Ok(()),
                },
            };
            if self.apply_commands(&mut current, units, effects)? {
                self.end_entry(&current, effects);
            } else {
                self.slices.current = Some(current);
            }
            self.release_held(effects);
            if was_half_done && !self.slices.is_half_done() {
                self.answer_waiting_searches(effects);
            }
        }
        Ok(())
    }

    /// A leader whose indexes or snapshot are behind proposes nothing; a follower, which cannot refuse what comes, applies
    /// nothing until they have caught up.
    fn must_catch_up(&self) -> bool {
        !self.group.is_leader() && (self.snapshot_is_behind() || self.indexing_is_behind())
    }

    fn begin_entry(&mut self, entry: Entry, effects: &mut Effects) -> Result<Current, ShardFault> {
        assert_eq!(entry.index, self.applied + 1, "entries are applied in order, each once");
        self.applying = entry.index;
        let waiters = self.waiters_of(&entry);
        // What an earlier leadership of this replica proposed is answered, but it is no part of what it leads now.
        let is_led = self.leading_term() == Some(entry.term);
        let mut place = None;
        if entry.entry_type != EntryType::EntryNormal {
            self.group.apply_change(&entry)?;
            self.follow_quorum(effects);
        } else if !entry.data.is_empty() {
            let commands = EntryData::decode(&entry.data)?;
            if commands.stamp < self.stamp_applied {
                return Err(Malformed("an entry's stamp goes back").into());
            }
            self.stamp = self.stamp.max(commands.stamp);
            self.stamp_applied = self.stamp_applied.max(commands.stamp);
            self.epoch = self.epoch.max(commands.epoch);
            place = Some(commands.place());
        }
        let needed = self.sequence_of(entry.index);
        Ok(Current { entry, waiters, is_led, needed, place, position: 0, inside: None })
    }

    fn end_entry(&mut self, current: &Current, effects: &mut Effects) {
        let entry = &current.entry;
        if let Some(waiters) = &current.waiters {
            self.counters.commands += waiters.len() as u64;
            self.budget.release(entry.data.len() - HEAD_BYTES);
        }
        self.applied = entry.index;
        self.applied_term = entry.term;
        self.group.applied(entry.index);
        if !self.is_ready && entry.term == self.group.term() && self.group.is_leader() {
            self.is_ready = true;
            self.renew_scan_locks();
            let mut actions = Vec::new();
            self.coordinator.take_over(self.txns.records(), self.now, &mut actions);
            self.perform(actions, effects);
        }
        self.release_reads(effects);
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

    /// Goes on with the commands of an entry while units are left; whether all of them are applied.
    fn apply_commands(
        &mut self,
        current: &mut Current,
        units: &mut Units,
        effects: &mut Effects,
    ) -> Result<bool, ShardFault> {
        let Some(place) = current.place else { return Ok(true) };
        let data = std::mem::take(&mut current.entry.data);
        let applied = self.apply_data(current, &data, place, units, effects);
        current.entry.data = data;
        applied
    }

    /// The same, with the entry's data beside it.
    fn apply_data(
        &mut self,
        current: &mut Current,
        data: &[u8],
        place: Place,
        units: &mut Units,
        effects: &mut Effects,
    ) -> Result<bool, ShardFault> {
        if let Some(mut inside) = current.inside.take()
            && !self.go_on(&mut inside, data, units, effects)?
        {
            current.inside = Some(inside);
            return Ok(false);
        }
        let mut commands = EntryData::resume(data, place);
        let (stamp, needed) = (commands.stamp, current.needed);
        loop {
            if !units.left() {
                current.place = Some(commands.place());
                return Ok(false);
            }
            let Some(bytes) = commands.next_record()? else { break };
            let position = current.position;
            let version = Version::new(commands.epoch, current.entry.index, position);
            if usize::from(position) % READ_AHEAD == 0 {
                read_ahead(&self.state, bytes, commands.clone());
            }
            let waiter = current.waiters.as_ref().map(|waiters| waiters[usize::from(position)]);
            if waiter.is_some() {
                self.release_reads_before(position, effects);
            }
            current.position += 1;
            let is_own = waiter.is_some() && current.is_led;
            let waiter = waiter.unwrap_or_else(Waiter::nobody);
            let frame = Frame { version, stamp, needed, waiter, is_own };
            let end = data.len() - commands.bytes_left();
            let at = end - bytes.len()..end;
            let Some(mut inside) = self.apply_command(bytes, at, &frame, units, effects)? else { continue };
            if !self.go_on(&mut inside, data, units, effects)? {
                current.place = Some(commands.place());
                current.inside = Some(inside);
                return Ok(false);
            }
        }
        self.state.sessions.expire(stamp, SESSIONS_EXPIRED_PER_ENTRY);
        Ok(true)
    }

    /// Applies a command, or begins one over many keys.
    fn apply_command(
        &mut self,
        bytes: &[u8],
        at: Range<usize>,
        frame: &Frame,
        units: &mut Units,
        effects: &mut Effects,
    ) -> Result<Option<Inside>, ShardFault> {
        let record = Record::decode(bytes)?;
        let Frame { version, stamp, waiter, is_own, .. } = *frame;
        units.spend(1);
        let outcome = match record.op {
            Op::Set | Op::Delete | Op::Incr | Op::Expire | Op::Persist => {
                units.spend(cost_of(bytes.len()) - 1);
                let hash = hash_of(record.key);
                if is_own {
                    self.pending.remove(hash);
                }
                if self.txns.lock_of(record.key).is_some() {
                    // The leader lets nothing through to a held key, so only a change of leader brings this about.
                    self.requeue(bytes, waiter, effects)?;
                    return Ok(None);
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
            Op::BulkSet | Op::BulkDelete => return Ok(Some(Inside::bulk(*frame, at))),
            Op::TxnPrepare => return Ok(Some(Inside::prepare(*frame, at))),
            Op::TxnFinish => return self.begin_finish(&record, frame, at, effects),
            Op::Expired => {
                if is_own {
                    self.unmark_items(record.value);
                }
                self.apply_expired(&record, version, stamp)
            }
            Op::Remember => self.apply_remember(&record, stamp)?,
            Op::TxnOpen => {
                self.apply_open(&record, version, waiter, effects)?;
                return Ok(None);
            }
            Op::TxnDecide => {
                self.apply_decide(&record, stamp, effects)?;
                return Ok(None);
            }
            Op::TxnForget => {
                self.apply_forget(&record)?;
                return Ok(None);
            }
            Op::Meta => self.apply_meta(&record, is_own, effects)?,
            Op::Catalog => {
                if is_own {
                    self.searches.edits_in_flight -= 1;
                }
                self.interrupt_snapshot(effects);
                self.apply_catalog(&record)?
            }
            _ => return Err(Malformed("an operation that is never logged").into()),
        };
        self.answer_applied(frame, &outcome, effects);
        Ok(None)
    }

    /// Answers who waited for a command, or goes on with what it was a part of.
    pub(super) fn answer_applied(&mut self, frame: &Frame, outcome: &Outcome, effects: &mut Effects) {
        if frame.waiter.ticket != NO_TICKET {
            return self.answer_slice(&frame.waiter, outcome, frame.needed, effects);
        }
        self.answer(&frame.waiter, frame.needed, outcome, effects);
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
        remember(&mut self.state, &session, print, stamp, &outcome);
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
        remember(&mut self.state, &session, print, stamp, &outcome);
        Ok(outcome)
    }

    fn answer_slice(&mut self, waiter: &Waiter, outcome: &Outcome, needed: Sequence, effects: &mut Effects) {
        let ticket = self.tickets.remove(&waiter.ticket);
        let (Some(Ticket::Slice { cursor, .. }), Outcome::Integer(count)) = (ticket, outcome) else {
            unreachable!("only a slice of DELETE_PREFIX is answered by its ticket");
        };
        let mut body = Vec::new();
        reads::write_slice(&mut body, &cursor, *count as u64);
        self.answer(waiter, needed, &Outcome::Members(ReplyKind::Part, body), effects);
    }

    /// A key is locked by an intent: nothing changes, and whoever waits is put into the key's queue.
    pub(super) fn requeue(
        &mut self,
        bytes: &[u8],
        waiter: Waiter,
        effects: &mut Effects,
    ) -> Result<(), ShardFault> {
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
        if self.pending.remove_large(bytes) {
            return;
        }
        for (key, _) in items::iter(bytes).map_while(Result::ok) {
            self.pending.remove(hash_of(key));
        }
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
    session: &Session<'_>,
    print: u64,
    stamp: Millis,
    outcome: &Outcome,
) {
    if is_on(Mutant::DedupEntryDropped) && session.seq.is_multiple_of(4) {
        return;
    }
    let mut body = Vec::new();
    let kind = answer::write(outcome, &mut body);
    state.sessions.record(session.client, session.seq, print, kind, &body, stamp);
    if session.acked > 0 {
        state.sessions.acked(session.client, session.acked, stamp);
    }
}

/// Reads the records of the next keys ahead, so that their cache misses overlap.
fn read_ahead(state: &State, first: &[u8], mut next: EntryData<'_>) {
    if next.bytes_left() == 0 {
        return;
    }
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
