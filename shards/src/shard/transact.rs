//! Transactions as seen by a shard: its part as a participant, and the ways between its coordinator and its log.

use super::admit::LockWaiter;
use super::apply::{known, remember};
use super::outbox::{NO_TICKET, Ticket, Waiter, reply};
use super::reserve::{LARGE_BYTES, Reservation};
use super::slices::{Frame, Inside};
use super::{Shard, ShardFault};
use crate::batch::ReplyKind;
use crate::command::answer::{Failure, Outcome};
use crate::command::context::is_over;
use crate::command::items;
use crate::command::record::{Malformed, Op, Record, Session, flag};
use crate::effect::Effects;
use crate::ids::{GroupId, Millis, Version, hash_of};
use crate::txn::coordinator::Action;
use crate::txn::message::{Decide, Finish, GroupMessage, Message, Open, Prepare};
use crate::txn::state::{Intent, Origin};
use crate::txn::{Kind, TxnId};
use std::collections::BTreeMap;
use std::ops::Range;

/// An intent that has waited so long makes its participant ask, in ms.
const ASK_AFTER_MS: u64 = 1000;
/// Time between two such questions, in ms.
const ASK_AGAIN_MS: u64 = 500;

impl Shard {
    /// Another group, or this one in its other role, says something.
    pub(super) fn hear(&mut self, message: GroupMessage, effects: &mut Effects) {
        assert_eq!(message.to, self.config.group, "messages come to the group that they are for");
        if !self.is_ready {
            // The sender says it again.
            return;
        }
        match &message.body {
            Message::Prepare { .. } => self.hear_prepare(message, effects),
            Message::Report(_) | Message::Member(_) | Message::Lost(_) | Message::Moved(_) => {
                self.hear_of_members(message);
            }
            Message::Finish { txn, commit, attempt } => {
                self.hear_finish(message.from, *txn, *commit, *attempt, effects);
            }
            Message::Ask { txn } => {
                let mut actions = Vec::new();
                let record = self.txns.record(txn.opened);
                let is_unknown = record.is_none();
                self.coordinator.asked(message.from, *txn, record, &mut actions);
                match actions.pop() {
                    // A leader deposed without knowing it would not know what a newer one has opened.
                    Some(Action::Send(to, body)) if is_unknown => self.tell_confirmed(to, body, effects),
                    Some(action) => self.perform(vec![action], effects),
                    None => {}
                }
            }
            Message::Prepared { .. } | Message::Refused { .. } | Message::Finished { .. } => {
                let mut actions = Vec::new();
                self.coordinator.answer(message.from, message.body, self.now, &mut actions);
                self.perform(actions, effects);
            }
        }
    }

    /// Another replica leads a group: what this coordinator waits for from there is said again.
    pub(super) fn hear_of_leader(&mut self, group: GroupId, effects: &mut Effects) {
        if self.is_ready {
            let mut actions = Vec::new();
            self.coordinator.leader_changed(group, self.now, &mut actions);
            self.perform(actions, effects);
        }
    }

    /// Does what the coordinator decided.
    pub(super) fn perform(&mut self, actions: Vec<Action>, effects: &mut Effects) {
        for action in actions {
            match action {
                Action::Send(to, body) => self.tell(to, body, effects),
                Action::Decide(decide) => {
                    let mut value = Vec::new();
                    decide.encode(&mut value);
                    self.gather_internal(Op::TxnDecide, &value);
                }
                Action::Forget(txn) => {
                    let mut value = Vec::new();
                    txn.encode(&mut value);
                    self.gather_internal(Op::TxnForget, &value);
                }
                Action::Values(txn, values) => {
                    let outcome = Outcome::Members(ReplyKind::Part, values);
                    for waiter in self.txn_waiters.remove(&txn.opened).unwrap_or_default() {
                        if !waiter.is_silent {
                            reply(effects, waiter.router, waiter.token, &outcome);
                        }
                    }
                }
            }
        }
    }

    /// Asks the coordinators of intents that nobody has finished for long.
    pub(super) fn ask_about_old_intents(&mut self, effects: &mut Effects) {
        let now = self.now.0;
        if now.saturating_sub(self.asked_at.0) < ASK_AGAIN_MS {
            return;
        }
        self.asked_at = self.now;
        // Their age by this leader's own clock since it met them: the stamp in an intent is another clock's, and one that was
        // ahead would keep an intent young for as long as it was ahead.
        let met: BTreeMap<TxnId, Millis> = self
            .txns
            .intents()
            .map(|(txn, _)| (txn, self.intents_met.get(&txn).copied().unwrap_or(self.now)))
            .collect();
        for (txn, since) in &met {
            if now.saturating_sub(since.0) >= ASK_AFTER_MS {
                self.tell(txn.group, Message::Ask { txn: *txn }, effects);
            }
        }
        self.intents_met = met;
    }

    /// Refuses a PREPARE that waited too long for its locks.
    pub(super) fn refuse_prepare(&mut self, message: &GroupMessage, effects: &mut Effects) {
        if let Message::Prepare { txn, attempt, .. } = &message.body {
            self.waiting_prepares.remove(&(*txn, *attempt));
            self.tell(message.from, Message::Refused { txn: *txn, attempt: *attempt }, effects);
        }
    }

    pub(super) fn tell(&mut self, to: GroupId, body: Message, effects: &mut Effects) {
        let message = GroupMessage { from: self.config.group, to, body };
        self.send_behind_sync(message, effects);
    }

    /// Says what only a leader can know, once a majority has confirmed that this replica leads.
    fn tell_confirmed(&mut self, to: GroupId, body: Message, effects: &mut Effects) {
        let message = GroupMessage { from: self.config.group, to, body };
        self.send_confirmed(message, effects);
    }

    /// What it knows of transactions that are not over, for the complaints of tests.
    pub fn describe_transactions(&self) -> String {
        let intents: Vec<_> = self.txns.intents().map(|(txn, intent)| (txn, intent.attempt)).collect();
        let (waiting, preparing, finishing) = (&self.waiting_prepares, &self.preparing, &self.finishing);
        let drives = self.coordinator.describe();
        format!(
            "intents {intents:?} waiting {waiting:?} preparing {preparing:?} finishing {finishing:?} drives {drives}"
        )
    }

    fn gather_internal(&mut self, op: Op, value: &[u8]) {
        let mut bytes = Vec::new();
        Record::plain(op, &[], value).encode(&mut bytes);
        self.gather(&bytes, Waiter::nobody(), None);
    }

    fn hear_prepare(&mut self, message: GroupMessage, effects: &mut Effects) {
        let Message::Prepare { txn, attempt, wait, items, deadline, .. } = &message.body else {
            return;
        };
        let (txn, attempt) = (*txn, *attempt);
        if let Some(intent) = self.txns.intent(txn)
            && intent.attempt == attempt
        {
            let answer = self.prepared(txn, attempt, &intent.clone());
            return self.tell(message.from, answer, effects);
        }
        let is_known = |known: &u32| *known >= attempt;
        let is_late = self.txns.intent(txn).is_some_and(|intent| is_known(&intent.attempt));
        let is_reserving = self.slices.reservations.iter().any(|reservation| reservation.is_of(txn));
        // A FINISH on its way through the log, or applied in slices, lets go of what this transaction holds at its end. A PREPARE
        // that was let in before that would have its locks taken away, and meet another holder when it is applied.
        let is_ending = self.finishing.contains_key(&txn);
        if is_late
            || is_ending
            || is_reserving
            || self.preparing.get(&txn).is_some_and(is_known)
            || self.waiting_prepares.contains(&(txn, attempt))
        {
            // Said again while the first is on its way, or late, behind a later try.
            return;
        }
        if items.len() >= LARGE_BYTES {
            return self.slices.reservations.push_back(Reservation::new(message));
        }
        if let Some(key) = self.locks.first_held(items, Some(txn)) {
            if *wait && *deadline > self.now {
                self.waiting_prepares.insert((txn, attempt));
                let key = key.to_vec();
                return self.locks.wait(&key, LockWaiter::Prepare(message));
            }
            return self.refuse_prepare(&message, effects);
        }
        self.locks.hold(txn, items);
        self.propose_prepare(&message);
    }

    /// Puts a PREPARE whose keys are reserved into the next entry.
    pub(super) fn propose_prepare(&mut self, message: &GroupMessage) {
        let Message::Prepare { txn, attempt, kind, debug, items, .. } = &message.body else { return };
        self.preparing.insert(*txn, *attempt);
        let mut value = Vec::with_capacity(items.len() + 64);
        Prepare { txn: *txn, attempt: *attempt, kind: *kind, items }.encode(&mut value);
        let mut record = Record::plain(Op::TxnPrepare, &[], &value);
        if *debug {
            record.flags |= flag::DEBUG;
        }
        let mut bytes = Vec::with_capacity(value.len() + 64);
        record.encode(&mut bytes);
        self.gather(&bytes, Waiter::nobody(), None);
    }

    fn hear_finish(
        &mut self,
        from: GroupId,
        txn: TxnId,
        commit: Option<Version>,
        attempt: u32,
        effects: &mut Effects,
    ) {
        let is_later = |known: &u32| *known > attempt;
        let intent_is_later = self.txns.intent(txn).is_some_and(|intent| is_later(&intent.attempt));
        if intent_is_later || self.preparing.get(&txn).is_some_and(is_later) {
            // Late: the try that it ends was followed by another.
            return;
        }
        let ended = |waiter: &LockWaiter| match waiter {
            LockWaiter::Prepare(message) => message.body.is_prepare_of(txn, attempt),
            _ => false,
        };
        self.locks.take_waiting(ended);
        self.waiting_prepares.retain(|(waiting, known)| *waiting != txn || *known > attempt);
        if let Some(found) = self.slices.reservations.iter_mut().find(|found| found.is_of(txn)) {
            // One of a later try: this word comes late.
            if found.is_ended_by(txn, attempt) {
                found.cancel(attempt);
            }
            return;
        }
        if self.locks.holds(txn) {
            let mut value = Vec::new();
            Finish { txn, commit }.encode(&mut value);
            self.gather_internal(Op::TxnFinish, &value);
            let told = self.finishing.entry(txn).or_default();
            *told = attempt.max(*told);
        } else {
            self.tell_confirmed(from, Message::Finished { txn, attempt }, effects);
        }
    }

    /// What a participant says of its intent.
    fn prepared(&self, txn: TxnId, attempt: u32, intent: &Intent) -> Message {
        let mut count = 0;
        let mut values = Vec::new();
        for (key, _) in items::iter(&intent.items).map_while(Result::ok) {
            // Locked keys change for nobody, so what is counted here still holds when the intent is applied; an expiry
            // waits for the lock too, but its record counts as gone from its time on.
            let found =
                self.state.keys.get(hash_of(key), key).filter(|found| !is_over(found.expires_at, self.stamp));
            count += i64::from(intent.kind == Kind::Set || found.is_some());
            if intent.kind == Kind::Read {
                items::push(&mut values, key, found.map_or(&[][..], |found| found.value));
            }
        }
        Message::Prepared { txn, attempt, place: intent.place, count, values }
    }

    pub(super) fn apply_open(
        &mut self,
        record: &Record<'_>,
        version: Version,
        waiter: Waiter,
        effects: &mut Effects,
    ) -> Result<(), ShardFault> {
        let open = Open::decode(record.value)?;
        let plan = match waiter.ticket {
            NO_TICKET => None,
            number => self.tickets.remove(&number),
        };
        if let Some(Ticket::Open(plan)) = &plan {
            self.budget.release_plan(plan.bytes());
        }
        let needed = self.sequence_of(self.applying);
        let drives = self.is_ready;
        let unknown = Outcome::Failed(Failure::Timeout { unknown: true });
        if let Some(session) = record.session {
            if let Some(outcome) = known(&self.state, session.client, session.seq, open.fingerprint) {
                self.answer(&waiter, needed, &outcome, effects);
                return Ok(());
            }
            if let Some((opened, running)) = self.txns.open_for(session.client, session.seq) {
                if running.fingerprint == open.fingerprint && !drives {
                    self.answer(&waiter, needed, &unknown, effects);
                } else if running.fingerprint == open.fingerprint {
                    self.txn_waiters.entry(opened).or_default().push(waiter);
                } else {
                    self.answer(&waiter, needed, &Outcome::Failed(Failure::SeqReused), effects);
                }
                return Ok(());
            }
        }
        let origin = record.session.map(|session| Origin {
            client: session.client.to_vec(),
            seq: session.seq,
            acked: session.acked,
        });
        self.txns.open(version, open, origin);
        if let (Some(Ticket::Open(_)), false) = (&plan, drives) {
            // Opened by this replica and led by another one now, which will abort it.
            self.answer(&waiter, needed, &unknown, effects);
        } else if let Some(Ticket::Open(plan)) = plan {
            self.txn_waiters.insert(version, vec![waiter]);
            let mut actions = Vec::new();
            self.coordinator.opened(version, plan, self.now, &mut actions);
            self.perform(actions, effects);
        }
        Ok(())
    }

    pub(super) fn apply_decide(
        &mut self,
        record: &Record<'_>,
        stamp: Millis,
        effects: &mut Effects,
    ) -> Result<(), ShardFault> {
        let decide = Decide::decode(record.value)?;
        let opened = decide.txn.opened;
        let Some(decided) = self.txns.decide(&decide) else { return Ok(()) };
        let (origin, fingerprint) = (decided.origin.clone(), decided.fingerprint);
        let outcome = if decide.commit {
            Outcome::Integer(decide.result)
        } else {
            Outcome::Failed(Failure::Timeout { unknown: false })
        };
        if let (Some(origin), true) = (origin, decide.commit) {
            let session = Session { client: &origin.client, seq: origin.seq, acked: origin.acked };
            remember(&mut self.state, &session, fingerprint, stamp, &outcome);
        }
        let needed = self.sequence_of(self.applying);
        for waiter in self.txn_waiters.remove(&opened).unwrap_or_default() {
            self.answer(&waiter, needed, &outcome, effects);
        }
        let mut actions = Vec::new();
        self.coordinator.decided(opened, decide.commit, self.now, &mut actions);
        self.perform(actions, effects);
        Ok(())
    }

    /// Begins a FINISH: takes the intent out. Without one (the FINISH was said twice) there is nothing to do but to say so;
    /// a PREPARE of a later try may be on its way, so no lock is touched.
    pub(super) fn begin_finish(
        &mut self,
        record: &Record<'_>,
        frame: &Frame,
        at: Range<usize>,
        effects: &mut Effects,
    ) -> Result<Option<Inside>, ShardFault> {
        let finish = Finish::decode(record.value)?;
        let Some((intent, is_applied)) = self.txns.finish(&finish) else {
            self.tell_finished(finish.txn, effects);
            return Ok(None);
        };
        Ok(Some(Inside::finish(*frame, at, finish.txn, intent, is_applied)))
    }

    /// A FINISH is applied and all of its keys are free.
    pub(super) fn end_finish(&mut self, txn: TxnId, effects: &mut Effects) {
        self.locks.end(txn);
        self.release_scans(effects);
        self.tell_finished(txn, effects);
    }

    fn tell_finished(&mut self, txn: TxnId, effects: &mut Effects) {
        if let Some(attempt) = self.finishing.remove(&txn) {
            self.tell(txn.group, Message::Finished { txn, attempt }, effects);
        }
    }

    pub(super) fn apply_forget(&mut self, record: &Record<'_>) -> Result<(), ShardFault> {
        let mut rest = record.value;
        let txn = TxnId::decode(&mut rest)?;
        if !rest.is_empty() {
            return Err(Malformed("bytes after a transaction's id").into());
        }
        self.txns.forget(txn.opened);
        Ok(())
    }
}
