//! Drives the transactions of one coordinator group: what its leader does with each answer.
//!
//! Pure decisions: answers and applied entries go in, [`Action`]s come out. Nothing here survives a change of leader; the
//! new leader starts from the records ([`Coordinator::take_over`]), aborts what is pending and finishes what is decided.
//!
//! A first try prepares everywhere at once and is refused on a lock. Later tries prepare one group after the other in
//! ascending order and wait for locks, so that no cycle of waiting can form.

use super::message::{Decide, LAST_TRY, Message};
use super::state::{Record, Status};
use super::{Kind, TxnId};
use crate::ids::{GroupId, Millis, Version};
use crate::mutants::{Mutant, is_on};
use std::collections::{BTreeMap, BTreeSet};

/// What the leader shall do.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a message to a participant.
    Send(GroupId, Message),
    /// Propose the decision.
    Decide(Decide),
    /// Propose to forget a transaction.
    Forget(TxnId),
    /// The values that a read has gathered, as items, for those who wait for it.
    Values(TxnId, Vec<u8>),
}

/// What a transaction is to do, as its client asked.
#[derive(Debug)]
pub struct Plan {
    /// What is done.
    pub kind: Kind,
    /// The debug fault mode was asked for.
    pub debug: bool,
    /// Items of each participant, ascending.
    pub parts: Vec<(GroupId, Vec<u8>)>,
    /// When the client stops waiting.
    pub deadline: Millis,
}

#[derive(Debug)]
enum Stage {
    /// Waits for the answers to a PREPARE.
    Preparing,
    /// Waits until the participants have dropped the intents of a refused try.
    BackingOut(BTreeSet<GroupId>),
    /// A DECIDE is proposed.
    Deciding,
    /// Waits until every participant has finished.
    Finishing { waiting: BTreeSet<GroupId>, commit: BTreeMap<GroupId, Version> },
}

#[derive(Debug)]
struct Drive {
    plan: Plan,
    attempt: u32,
    prepared: BTreeMap<GroupId, Prepared>,
    refused: BTreeSet<GroupId>,
    stage: Stage,
    /// When messages were last sent, to send them again.
    sent_at: Millis,
}

#[derive(Debug)]
struct Prepared {
    place: Version,
    count: i64,
    values: Vec<u8>,
}

/// How long an unanswered message waits before it is sent again, in ms. Links between nodes may lose any of them; what is said
/// to a replica that leads no more is said again when the next leader is known.
const RESEND_AFTER_MS: u64 = 500;

/// The transactions that this leader drives.
#[derive(Debug)]
pub struct Coordinator {
    group: GroupId,
    drives: BTreeMap<Version, Drive>,
    /// Bytes of the items in the plans.
    bytes: usize,
}

impl Plan {
    /// Bytes of its items.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(|(_, items)| items.len()).sum()
    }
}

impl Coordinator {
    /// Drives nothing yet.
    pub fn new(group: GroupId) -> Self {
        Self { group, drives: BTreeMap::new(), bytes: 0 }
    }

    /// Number of transactions under way.
    pub fn len(&self) -> usize {
        self.drives.len()
    }

    /// Whether nothing is under way.
    pub fn is_empty(&self) -> bool {
        self.drives.is_empty()
    }

    /// Drives nothing any more: this replica leads no longer.
    pub fn clear(&mut self) {
        self.drives.clear();
        self.bytes = 0;
    }

    /// Bytes of the items that undecided transactions hold.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The stage of each transaction and who has answered, for the complaints of tests.
    pub fn describe(&self) -> String {
        let drive = |(opened, drive): (&Version, &Drive)| {
            let (groups, prepared): (Vec<_>, Vec<_>) =
                (drive.plan.parts.iter().map(|(group, _)| group).collect(), drive.prepared.keys().collect());
            let (attempt, refused, stage) = (drive.attempt, &drive.refused, &drive.stage);
            format!(
                "{opened:?} of {groups:?} try {attempt} prepared {prepared:?} refused {refused:?} {stage:?}"
            )
        };
        self.drives.iter().map(drive).collect::<Vec<_>>().join(", ")
    }

    /// Begins where an earlier leader left: aborts what is pending, finishes what is decided.
    pub fn take_over<'a>(
        &mut self,
        records: impl Iterator<Item = (Version, &'a Record)>,
        now: Millis,
        actions: &mut Vec<Action>,
    ) {
        for (opened, record) in records {
            if record.status == Status::Pending && is_on(Mutant::PendingNotAborted) {
                continue;
            }
            let parts = record.participants.iter().map(|group| (*group, Vec::new())).collect();
            let plan = Plan { kind: record.kind, debug: false, parts, deadline: now };
            let drive = Drive::new(plan, now);
            self.drives.insert(opened, drive);
            match &record.status {
                Status::Pending => self.abort(opened, actions),
                Status::Aborted => self.decided(opened, false, now, actions),
                Status::Committed(prepares) => {
                    let drive = self.drives.get_mut(&opened).expect("just inserted");
                    for (group, place) in prepares {
                        let prepared = Prepared { place: *place, count: 0, values: Vec::new() };
                        drive.prepared.insert(*group, prepared);
                    }
                    self.decided(opened, true, now, actions);
                }
            }
        }
    }

    /// The OPEN is applied: prepares everywhere.
    pub fn opened(&mut self, opened: Version, plan: Plan, now: Millis, actions: &mut Vec<Action>) {
        let txn = TxnId { group: self.group, opened };
        let drive = Drive::new(plan, now);
        for number in 0..drive.plan.parts.len() {
            actions.push(drive.prepare(txn, number));
        }
        self.bytes += drive.plan.bytes();
        assert!(self.drives.insert(opened, drive).is_none(), "a version opens one transaction");
    }

    /// A participant answers.
    pub fn answer(&mut self, from: GroupId, message: Message, now: Millis, actions: &mut Vec<Action>) {
        match message {
            Message::Prepared { txn, attempt, place, count, values } => {
                let prepared = Prepared { place, count, values };
                self.prepared(txn, from, attempt, prepared, now, actions);
            }
            Message::Refused { txn, attempt } => self.refused(txn, from, attempt, actions),
            Message::Finished { txn, attempt } => self.finished(txn, from, attempt, now, actions),
            Message::Prepare { .. }
            | Message::Finish { .. }
            | Message::Ask { .. }
            | Message::Report(_)
            | Message::Member(_)
            | Message::Lost(_)
            | Message::Moved(_) => {
                unreachable!("the shard gives a coordinator only what participants say to it")
            }
        }
    }

    /// The DECIDE is applied, or a record is found decided.
    pub fn decided(&mut self, opened: Version, commit: bool, now: Millis, actions: &mut Vec<Action>) {
        let Some(drive) = self.drives.get_mut(&opened) else { return };
        let txn = TxnId { group: self.group, opened };
        let places = |(group, prepared): (&GroupId, &Prepared)| (*group, prepared.place);
        let commit = if commit { drive.prepared.iter().map(places).collect() } else { BTreeMap::new() };
        let waiting: BTreeSet<GroupId> = drive.plan.parts.iter().map(|(group, _)| *group).collect();
        drive.stage = Stage::Finishing { waiting, commit };
        drive.send_finishes(txn, actions);
        // The values are in the participants' intents now.
        self.bytes -= drive.plan.bytes();
        for (_, items) in &mut drive.plan.parts {
            *items = Vec::new();
        }
        drive.sent_at = now;
    }

    /// A participant asks what became of a transaction that is no longer recorded or not driven.
    pub fn asked(&mut self, from: GroupId, txn: TxnId, record: Option<&Record>, actions: &mut Vec<Action>) {
        match record {
            // Forgotten only after every participant finished, so an intent that is left belongs to an aborted one.
            None if is_on(Mutant::UnknownNotAnswered) => {}
            None => {
                actions.push(Action::Send(from, Message::Finish { txn, commit: None, attempt: LAST_TRY }));
            }
            Some(record) => match &record.status {
                Status::Pending if self.drives.contains_key(&txn.opened) => {
                    // What is left of an earlier try must not stand in the way of those that wait in order: two such
                    // transactions could wait for one another until their deadlines.
                    let over = self.drives[&txn.opened].attempt - 1;
                    if over > 0 {
                        let finish = Message::Finish { txn, commit: None, attempt: over };
                        actions.push(Action::Send(from, finish));
                    }
                }
                Status::Pending if is_on(Mutant::PendingNotAborted) => {}
                Status::Pending => self.abort(txn.opened, actions),
                Status::Aborted => {
                    actions
                        .push(Action::Send(from, Message::Finish { txn, commit: None, attempt: LAST_TRY }));
                }
                Status::Committed(prepares) => {
                    let commit = prepares.iter().find(|(group, _)| *group == from).map(|(_, place)| *place);
                    actions.push(Action::Send(from, Message::Finish { txn, commit, attempt: LAST_TRY }));
                }
            },
        }
    }

    /// Gives up what is past its deadline and says again what found no answer.
    pub fn tick(&mut self, now: Millis, actions: &mut Vec<Action>) {
        let mut late = Vec::new();
        for (opened, drive) in &mut self.drives {
            let txn = TxnId { group: self.group, opened: *opened };
            let undecided = matches!(drive.stage, Stage::Preparing | Stage::BackingOut(_));
            if undecided && drive.plan.deadline <= now {
                late.push(*opened);
            } else if now.0.saturating_sub(drive.sent_at.0) >= RESEND_AFTER_MS {
                drive.sent_at = now;
                drive.send_again(txn, |_| true, actions);
            }
        }
        for opened in late {
            self.abort(opened, actions);
        }
    }

    /// Another replica leads a group now: what was said to the one before may be lost, so it is said again at once.
    pub fn leader_changed(&mut self, group: GroupId, now: Millis, actions: &mut Vec<Action>) {
        for (opened, drive) in &mut self.drives {
            let before = actions.len();
            let txn = TxnId { group: self.group, opened: *opened };
            drive.send_again(txn, |one| one == group, actions);
            if actions.len() > before {
                // The new leader may not be ready to listen yet.
                drive.sent_at = now;
            }
        }
    }

    fn prepared(
        &mut self,
        txn: TxnId,
        from: GroupId,
        attempt: u32,
        prepared: Prepared,
        now: Millis,
        actions: &mut Vec<Action>,
    ) {
        let Some(drive) = self.drives.get_mut(&txn.opened) else { return };
        if attempt < drive.attempt {
            // The PREPARE of an earlier try, come twice, was heard again behind its FINISH.
            return actions.push(Action::Send(from, Message::Finish { txn, commit: None, attempt }));
        }
        if attempt != drive.attempt || !matches!(drive.stage, Stage::Preparing) {
            return;
        }
        let again = drive.prepared.insert(from, prepared).is_some();
        let done = drive.prepared.len();
        if done + drive.refused.len() == drive.plan.parts.len() && !drive.refused.is_empty() {
            drive.back_out(txn, actions);
        } else if done == drive.plan.parts.len() || (is_on(Mutant::DecidedTooEarly) && drive.attempt == 1) {
            drive.decide(txn, actions);
        } else if drive.attempt > 1 && !again {
            drive.sent_at = now;
            actions.push(drive.prepare(txn, done));
        }
    }

    fn refused(&mut self, txn: TxnId, from: GroupId, attempt: u32, actions: &mut Vec<Action>) {
        let Some(drive) = self.drives.get_mut(&txn.opened) else { return };
        if attempt != drive.attempt || !matches!(drive.stage, Stage::Preparing) {
            return;
        }
        drive.refused.insert(from);
        // A waiting try is refused only when its deadline has passed: the tick aborts it.
        if drive.attempt == 1 && drive.prepared.len() + drive.refused.len() == drive.plan.parts.len() {
            drive.back_out(txn, actions);
        }
    }

    fn finished(&mut self, txn: TxnId, from: GroupId, attempt: u32, now: Millis, actions: &mut Vec<Action>) {
        let Some(drive) = self.drives.get_mut(&txn.opened) else { return };
        match &mut drive.stage {
            // What comes late from an earlier try says nothing of this one.
            Stage::BackingOut(waiting) if attempt == drive.attempt => {
                waiting.remove(&from);
                if waiting.is_empty() {
                    drive.stage = Stage::Preparing;
                    drive.attempt += 1;
                    drive.prepared.clear();
                    drive.refused.clear();
                    drive.sent_at = now;
                    actions.push(drive.prepare(txn, 0));
                }
            }
            Stage::Finishing { waiting, .. } if attempt == LAST_TRY => {
                waiting.remove(&from);
                if waiting.is_empty() {
                    self.drives.remove(&txn.opened);
                    actions.push(Action::Forget(txn));
                }
            }
            Stage::BackingOut(_) | Stage::Finishing { .. } | Stage::Preparing | Stage::Deciding => {}
        }
    }

    fn abort(&mut self, opened: Version, actions: &mut Vec<Action>) {
        let txn = TxnId { group: self.group, opened };
        if let Some(drive) = self.drives.get_mut(&opened) {
            drive.stage = Stage::Deciding;
        }
        actions.push(Action::Decide(Decide { txn, commit: false, result: 0, prepares: Vec::new() }));
    }
}

impl Drive {
    fn new(plan: Plan, now: Millis) -> Self {
        let (prepared, refused) = (BTreeMap::new(), BTreeSet::new());
        Self { plan, attempt: 1, prepared, refused, stage: Stage::Preparing, sent_at: now }
    }

    fn prepare(&self, txn: TxnId, number: usize) -> Action {
        let (group, items) = &self.plan.parts[number];
        let message = Message::Prepare {
            txn,
            attempt: self.attempt,
            wait: self.attempt > 1,
            kind: self.plan.kind,
            debug: self.plan.debug,
            items: items.clone(),
            deadline: self.plan.deadline,
        };
        Action::Send(*group, message)
    }

    fn back_out(&mut self, txn: TxnId, actions: &mut Vec<Action>) {
        self.stage = Stage::BackingOut(self.plan.parts.iter().map(|(group, _)| *group).collect());
        self.send_finishes(txn, actions);
    }

    /// Tells each participant that has not answered to apply what is decided for it, or to drop what it has.
    fn send_finishes(&self, txn: TxnId, actions: &mut Vec<Action>) {
        let nothing = BTreeMap::new();
        let (waiting, commit, attempt) = match &self.stage {
            Stage::Finishing { waiting, commit } => (waiting, commit, LAST_TRY),
            Stage::BackingOut(waiting) => (waiting, &nothing, self.attempt),
            Stage::Preparing | Stage::Deciding => return,
        };
        for group in waiting {
            let message = Message::Finish { txn, commit: commit.get(group).copied(), attempt };
            actions.push(Action::Send(*group, message));
        }
    }

    fn decide(&mut self, txn: TxnId, actions: &mut Vec<Action>) {
        self.stage = Stage::Deciding;
        if self.plan.kind == Kind::Read {
            let mut values = Vec::new();
            for prepared in self.prepared.values_mut() {
                values.append(&mut prepared.values);
            }
            actions.push(Action::Values(txn, values));
        }
        let result = self.prepared.values().map(|prepared| prepared.count).sum();
        let prepares = self.prepared.iter().map(|(group, prepared)| (*group, prepared.place)).collect();
        // A read has nothing to apply: its locks are dropped like those of an aborted transaction.
        let commit = self.plan.kind != Kind::Read;
        actions.push(Action::Decide(Decide { txn, commit, result, prepares }));
    }

    /// Says again what found no answer, to those groups.
    fn send_again(&self, txn: TxnId, is_meant: impl Fn(GroupId) -> bool, actions: &mut Vec<Action>) {
        match &self.stage {
            Stage::Preparing => {
                // A later try asks one after the other; a repeated PREPARE that waits already is recognised there.
                let next = if self.attempt == 1 { 0..self.plan.parts.len() } else { self.next_part() };
                for number in next {
                    let group = self.plan.parts[number].0;
                    let is_open = !self.prepared.contains_key(&group) && !self.refused.contains(&group);
                    if is_meant(group) && (is_open || self.attempt > 1) {
                        actions.push(self.prepare(txn, number));
                    }
                }
            }
            Stage::BackingOut(_) | Stage::Finishing { .. } => {
                let mut finishes = Vec::new();
                self.send_finishes(txn, &mut finishes);
                let goes = |action: &Action| matches!(action, Action::Send(group, _) if is_meant(*group));
                actions.extend(finishes.into_iter().filter(goes));
            }
            Stage::Deciding => {}
        }
    }

    /// The part whose participant a later try asks now.
    fn next_part(&self) -> std::ops::Range<usize> {
        self.prepared.len()..self.prepared.len() + 1
    }
}

#[cfg(test)]
mod tests;
