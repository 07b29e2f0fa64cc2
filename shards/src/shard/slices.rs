//! Applies committed entries in slices, so that no step is long however much one command changes.
//!
//! Entries wait in a queue and are applied in order; the one at its head may stop between two commands, and inside a
//! command over many keys between two of them. What is applied, with which versions, is the same wherever it stops: slices
//! are in no log and in no hash. While a command is half applied
//! - its keys stay marked as pending, or locked, so that every linearizable read of them waits until all of it is applied;
//! - reads that wait for nothing (`local`) are held until it is whole;
//! - no snapshot begins and no search runs.
//!
//! Work is counted in units: about one record, or [`BYTES_PER_UNIT`].

use super::admit::{LockWaiter, Parked};
use super::apply::{known, remember};
use super::outbox::Waiter;
use super::reserve::Reservation;
use super::{Shard, ShardFault};
use crate::command::answer::Outcome;
use crate::command::context::{Context, Observer as _, is_over};
use crate::command::entry::Place;
use crate::command::record::{Op, Record, fingerprint, flag};
use crate::command::{bulk, items};
use crate::effect::Effects;
use crate::ids::{Millis, Sequence, Version, hash_of};
use crate::index::Units;
use crate::txn::message::{Message, Prepare};
use crate::txn::state::Intent;
use crate::txn::{Kind, TxnId};
use raft::prelude::Entry;
use std::collections::VecDeque;
use std::ops::Range;

/// Bytes that cost as much as a record.
const BYTES_PER_UNIT: usize = 2048;
/// Units of one record that the indexes follow.
const UNITS_WITH_INDEXES: u64 = 8;
/// Entries that may wait to be applied before no more are proposed.
const WAITING_ENTRIES_MAX: usize = 8;

/// What is committed and not yet applied, and the PREPAREs whose keys are being reserved.
#[derive(Default)]
pub(super) struct Slices {
    /// Large PREPAREs that were heard, in order; the first is under way.
    pub(super) reservations: VecDeque<Reservation>,
    waiting: VecDeque<Entry>,
    /// The entry that is partly applied.
    pub(super) current: Option<Current>,
    /// Local reads that came while a command was half applied.
    held: Vec<Parked>,
}

/// An entry and how far it is applied.
pub(super) struct Current {
    pub(super) entry: Entry,
    /// Who waits for its commands, when this leader proposed it.
    pub(super) waiters: Option<Vec<Waiter>>,
    /// Whether the present leadership of this replica proposed it.
    pub(super) is_led: bool,
    /// The batch that makes it durable.
    pub(super) needed: Sequence,
    /// Where the commands to come stand; `None` for the empty entry of a new leader.
    pub(super) place: Option<Place>,
    /// Position of the next command.
    pub(super) position: u16,
    /// The command that is partly applied.
    pub(super) inside: Option<Inside>,
}

/// What a command is applied with.
#[derive(Clone, Copy)]
pub(super) struct Frame {
    pub(super) version: Version,
    pub(super) stamp: Millis,
    pub(super) needed: Sequence,
    pub(super) waiter: Waiter,
    /// This leader proposed it.
    pub(super) is_own: bool,
}

/// A command over many keys that is partly applied.
pub(super) struct Inside {
    frame: Frame,
    /// Where its record stands in the entry's data.
    at: Range<usize>,
    /// Bytes of its items that the present pass has gone over.
    walked: usize,
    run: Run,
}

enum Run {
    /// BULK_SET or BULK_DELETE of this shard.
    Bulk { pass: BulkPass, count: i64, is_locked: bool, outcome: Option<Outcome> },
    /// PREPARE.
    Prepare { pass: PreparePass, count: i64, values: Vec<u8> },
    /// FINISH.
    Finish { pass: FinishPass, txn: TxnId, intent: Intent },
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum BulkPass {
    LookForLocks,
    Change,
    Unmark,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum PreparePass {
    LookForLocks,
    Lock,
    Count,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum FinishPass {
    Change,
    Unlock,
}

impl Slices {
    /// Whether no entry waits or is partly applied.
    pub(super) fn is_empty(&self) -> bool {
        self.current.is_none() && self.waiting.is_empty()
    }

    /// Whether nothing at all is to go on with.
    pub(super) fn is_idle(&self) -> bool {
        self.is_empty() && self.reservations.is_empty()
    }

    /// Whether so much waits that nothing more shall be proposed.
    pub(super) fn is_behind(&self) -> bool {
        self.waiting.len() >= WAITING_ENTRIES_MAX
    }

    /// Entries that wait or are partly applied.
    pub(super) fn len(&self) -> usize {
        self.waiting.len() + usize::from(self.current.is_some())
    }

    /// Takes committed entries, in order.
    pub(super) fn push(&mut self, committed: &mut Vec<Entry>) {
        self.waiting.extend(committed.drain(..));
    }

    pub(super) fn pop(&mut self) -> Option<Entry> {
        self.waiting.pop_front()
    }

    /// Whether the state holds a part of a command's changes.
    pub(super) fn is_half_done(&self) -> bool {
        self.current.as_ref().and_then(|current| current.inside.as_ref()).is_some_and(Inside::is_half_done)
    }

    /// This replica leads no more: what it marked and reserved is void, and what is half applied goes on without it.
    pub(super) fn step_down(&mut self) {
        self.reservations.clear();
        if let Some(current) = &mut self.current {
            current.is_led = false;
            if let Some(inside) = &mut current.inside {
                inside.frame.is_own = false;
            }
        }
    }

    /// Another state takes the place of this one: nothing goes on. Gives the entry under way.
    pub(super) fn clear(&mut self) -> Option<Current> {
        self.reservations.clear();
        self.waiting.clear();
        self.current.take()
    }

    /// The transaction whose keys are being locked or freed by an entry under way, with its items that are held.
    pub(super) fn locking(&self) -> Option<(TxnId, &[u8])> {
        let current = self.current.as_ref()?;
        let inside = current.inside.as_ref()?;
        match &inside.run {
            Run::Bulk { .. } => None,
            Run::Prepare { pass: PreparePass::LookForLocks, .. } => None,
            Run::Prepare { .. } => {
                let record = Record::decode(&current.entry.data[inside.at.clone()]).ok()?;
                let prepare = Prepare::decode(record.value).ok()?;
                Some((prepare.txn, prepare.items))
            }
            Run::Finish { pass: FinishPass::Change, txn, intent } => Some((*txn, &intent.items)),
            Run::Finish { txn, intent, .. } => Some((*txn, &intent.items[inside.walked..])),
        }
    }

    /// Holds a local read until the command that is half applied is whole.
    pub(super) fn hold(&mut self, parked: Parked) {
        self.held.push(parked);
    }

    /// The local reads that were held.
    pub(super) fn held(&mut self) -> &mut Vec<Parked> {
        &mut self.held
    }
}

/// What a record or an item of so many bytes costs.
pub(super) fn cost_of(bytes: usize) -> u64 {
    1 + (bytes / BYTES_PER_UNIT) as u64
}

impl Inside {
    /// BULK_SET or BULK_DELETE whose record stands `at` this place of its entry's data.
    pub(super) fn bulk(frame: Frame, at: Range<usize>) -> Self {
        let pass = BulkPass::LookForLocks;
        Self { frame, at, walked: 0, run: Run::Bulk { pass, count: 0, is_locked: false, outcome: None } }
    }

    /// PREPARE.
    pub(super) fn prepare(frame: Frame, at: Range<usize>) -> Self {
        let pass = PreparePass::LookForLocks;
        Self { frame, at, walked: 0, run: Run::Prepare { pass, count: 0, values: Vec::new() } }
    }

    /// FINISH, with the intent that was taken out.
    pub(super) fn finish(
        frame: Frame,
        at: Range<usize>,
        txn: TxnId,
        intent: Intent,
        is_applied: bool,
    ) -> Self {
        let pass = if is_applied { FinishPass::Change } else { FinishPass::Unlock };
        Self { frame, at, walked: 0, run: Run::Finish { pass, txn, intent } }
    }

    fn is_half_done(&self) -> bool {
        match &self.run {
            Run::Bulk { pass, .. } => *pass == BulkPass::Change && self.walked > 0,
            Run::Prepare { .. } => false,
            Run::Finish { pass, .. } => *pass == FinishPass::Change && self.walked > 0,
        }
    }
}

impl Shard {
    /// Whether entries wait to be applied, or one is partly applied, or locks are being taken: [`Shard::work`] goes on.
    pub fn is_applying(&self) -> bool {
        !self.slices.is_idle()
    }

    /// Goes on inside a command; whether it is whole.
    pub(super) fn go_on(
        &mut self,
        inside: &mut Inside,
        data: &[u8],
        units: &mut Units,
        effects: &mut Effects,
    ) -> Result<bool, ShardFault> {
        let Inside { frame, at, walked, run } = inside;
        let bytes = &data[at.clone()];
        let record = Record::decode(bytes)?;
        match run {
            Run::Bulk { pass, count, is_locked, outcome } => {
                loop {
                    let is_through = match pass {
                        BulkPass::LookForLocks => self.look_for_locks(&record, walked, is_locked, units)?,
                        BulkPass::Change => self.change(&record, frame, walked, count, units)?,
                        BulkPass::Unmark => self.unmark(&record, frame, walked, units)?,
                    };
                    if !is_through {
                        return Ok(false);
                    }
                    *walked = 0;
                    *pass = match pass {
                        BulkPass::LookForLocks if *is_locked => BulkPass::Unmark,
                        BulkPass::LookForLocks => {
                            let session = record.session.as_ref();
                            *outcome = session.and_then(|session| {
                                known(&self.state, session.client, session.seq, fingerprint(bytes, session))
                            });
                            if outcome.is_some() { BulkPass::Unmark } else { BulkPass::Change }
                        }
                        BulkPass::Change => {
                            let made = Outcome::Integer(*count);
                            if let Some(session) = &record.session {
                                let print = fingerprint(bytes, session);
                                remember(&mut self.state, session, print, frame.stamp, &made);
                            }
                            *outcome = Some(made);
                            BulkPass::Unmark
                        }
                        BulkPass::Unmark => break,
                    };
                }
                match outcome {
                    Some(outcome) => self.answer_applied(frame, outcome, effects),
                    None => self.requeue(bytes, frame.waiter, effects)?,
                }
            }
            Run::Prepare { pass, count, values } => {
                let prepare = Prepare::decode(record.value)?;
                loop {
                    match pass {
                        PreparePass::LookForLocks => {
                            let mut is_locked = false;
                            let (txns, txn) = (&self.txns, prepare.txn);
                            let is_through = items::walk(prepare.items, walked, |key, _| {
                                units.spend(1);
                                is_locked |= txns.is_locked_for(key, txn);
                                units.left() && !is_locked
                            })?;
                            if frame.is_own && self.preparing.get(&txn) == Some(&prepare.attempt) {
                                self.preparing.remove(&txn);
                            }
                            if is_locked {
                                // The leader proposes a PREPARE only when it has reserved its keys, so only a change of
                                // leader brings this about, and nobody waits here.
                                assert!(!frame.is_own, "a leader's own PREPARE meets no lock");
                                return Ok(true);
                            }
                            if !is_through {
                                return Ok(false);
                            }
                            self.txns.drop_intent(txn);
                            self.locks.begin(txn);
                            *pass = PreparePass::Lock;
                        }
                        PreparePass::Lock => {
                            let (txns, locks) = (&mut self.txns, &mut self.locks);
                            let is_through = items::walk(prepare.items, walked, |key, _| {
                                units.spend(2);
                                txns.lock(key, prepare.txn);
                                locks.hold_key(prepare.txn, key);
                                units.left()
                            })?;
                            if !is_through {
                                return Ok(false);
                            }
                            let debug = record.has(flag::DEBUG);
                            self.txns.install(frame.version, frame.stamp, &prepare, debug);
                            if !frame.is_own {
                                return Ok(true);
                            }
                            *pass = PreparePass::Count;
                        }
                        PreparePass::Count => {
                            if !self.count_found(&prepare, walked, count, values, units)? {
                                return Ok(false);
                            }
                            let (txn, attempt, place) = (prepare.txn, prepare.attempt, frame.version);
                            let (count, values) = (*count, std::mem::take(values));
                            let answer = Message::Prepared { txn, attempt, place, count, values };
                            self.tell(txn.group, answer, effects);
                            return Ok(true);
                        }
                    }
                    *walked = 0;
                }
            }
            Run::Finish { pass, txn, intent } => {
                if *pass == FinishPass::Change {
                    let mut nothing = 0;
                    let (kind, debug) = (intent.kind, intent.debug);
                    if !self.change_items(&intent.items, kind, debug, frame, walked, &mut nothing, units)? {
                        return Ok(false);
                    }
                    *walked = 0;
                    *pass = FinishPass::Unlock;
                }
                if !self.unlock(&intent.items, *txn, walked, units, effects)? {
                    return Ok(false);
                }
                self.end_finish(*txn, effects);
            }
        }
        Ok(true)
    }

    /// Answers the local reads that were held if no command is half applied any more.
    pub(super) fn release_held(&mut self, effects: &mut Effects) {
        if self.slices.held.is_empty() || self.slices.is_half_done() {
            return;
        }
        for parked in std::mem::take(&mut self.slices.held) {
            self.admit_parked(&parked, effects);
        }
    }

    fn look_for_locks(
        &self,
        record: &Record<'_>,
        walked: &mut usize,
        is_locked: &mut bool,
        units: &mut Units,
    ) -> Result<bool, ShardFault> {
        if self.txns.is_idle() {
            return Ok(true);
        }
        Ok(items::walk(record.value, walked, |key, _| {
            units.spend(1);
            *is_locked |= self.txns.lock_of(key).is_some();
            units.left()
        })?)
    }

    fn change(
        &mut self,
        record: &Record<'_>,
        frame: &Frame,
        walked: &mut usize,
        count: &mut i64,
        units: &mut Units,
    ) -> Result<bool, ShardFault> {
        let kind = if record.op == Op::BulkSet { Kind::Set } else { Kind::Delete };
        self.change_items(record.value, kind, record.has(flag::DEBUG), frame, walked, count, units)
    }

    #[allow(clippy::too_many_arguments, reason = "what is changed, how, and how far it has come")]
    fn change_items(
        &mut self,
        items: &[u8],
        kind: Kind,
        debug: bool,
        frame: &Frame,
        walked: &mut usize,
        count: &mut i64,
        units: &mut Units,
    ) -> Result<bool, ShardFault> {
        let observer = &mut self.searches.indexes;
        let weight = if observer.is_active() { UNITS_WITH_INDEXES } else { 1 };
        let keys = &mut self.state.keys;
        let mut context = Context { keys, observer, stamp: frame.stamp, version: frame.version };
        Ok(items::walk(items, walked, |key, value| {
            units.spend(weight * cost_of(key.len() + value.len()));
            *count += bulk::change_item(&mut context, kind, key, value, debug);
            units.left()
        })?)
    }

    fn unmark(
        &mut self,
        record: &Record<'_>,
        frame: &Frame,
        walked: &mut usize,
        units: &mut Units,
    ) -> Result<bool, ShardFault> {
        if !frame.is_own || (*walked == 0 && self.pending.remove_large(record.value)) {
            return Ok(true);
        }
        let pending = &mut self.pending;
        Ok(items::walk(record.value, walked, |key, _| {
            units.spend(1);
            pending.remove(hash_of(key));
            units.left()
        })?)
    }

    /// What a participant says of its intent: locked keys change for nobody, so what is counted here still holds when the
    /// intent is applied; an expiry waits for the lock too, but its record counts as gone from its time on.
    fn count_found(
        &self,
        prepare: &Prepare<'_>,
        walked: &mut usize,
        count: &mut i64,
        values: &mut Vec<u8>,
        units: &mut Units,
    ) -> Result<bool, ShardFault> {
        Ok(items::walk(prepare.items, walked, |key, _| {
            let stamp = self.stamp;
            let found = self.state.keys.get(hash_of(key), key);
            let found = found.filter(|found| !is_over(found.expires_at, stamp));
            *count += i64::from(prepare.kind == Kind::Set || found.is_some());
            let mut cost = 1;
            if prepare.kind == Kind::Read {
                let value = found.map_or(&[][..], |found| found.value);
                cost = cost_of(value.len());
                items::push(values, key, value);
            }
            units.spend(cost);
            units.left()
        })?)
    }

    /// Gives keys of a finished intent back and admits at once what waited for them, before anything that comes later.
    fn unlock(
        &mut self,
        items: &[u8],
        txn: TxnId,
        walked: &mut usize,
        units: &mut Units,
        effects: &mut Effects,
    ) -> Result<bool, ShardFault> {
        let (txns, locks) = (&mut self.txns, &mut self.locks);
        let mut freed: Vec<LockWaiter> = Vec::new();
        let is_through = items::walk(items, walked, |key, _| {
            units.spend(1);
            txns.unlock(key, txn);
            locks.release_key(txn, key, &mut freed);
            units.left()
        })?;
        for waiter in freed {
            self.admit_freed(waiter, effects);
        }
        Ok(is_through)
    }
}
