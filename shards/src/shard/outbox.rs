//! Who waits for a command, and how answers leave: at once, or behind the sync that they wait for.

use super::Shard;
use crate::batch::{ReplyKind, RequestHead};
use crate::command::answer::{self, Failure, Outcome};
use crate::effect::Effects;
use crate::ids::{Millis, Sequence, Token};
use crate::mutants::{Mutant, is_on};
use crate::txn::coordinator::Plan;
use crate::txn::message::GroupMessage;

/// Who waits for a command that is on its way through the log.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiter {
    /// The request at its router.
    pub(super) token: Token,
    /// When its client stops waiting.
    pub(super) deadline: Millis,
    /// The router.
    pub(super) router: u8,
    /// Whether the answer waits for the sync although the floor does not.
    pub(super) fsync: bool,
    /// Nobody waits, or an answer was given already.
    pub(super) is_silent: bool,
    /// What the leader goes on with when the command is applied; [`NO_TICKET`] for a plain answer.
    pub(super) ticket: u32,
}

/// [`Waiter::ticket`] of a command that is simply answered.
pub(super) const NO_TICKET: u32 = u32::MAX;

/// What a leader goes on with when a command is applied.
#[derive(Debug)]
pub(super) enum Ticket {
    /// An OPEN: drive this plan.
    Open(Plan),
    /// A slice of DELETE_PREFIX: tell where it goes on.
    Slice {
        /// Where it goes on.
        cursor: Vec<u8>,
        /// The request.
        record: Box<[u8]>,
    },
}

/// What may leave once a batch is durable.
#[derive(Debug)]
pub(super) enum Gated {
    /// A reply to a client.
    Reply {
        /// Who waits.
        waiter: Waiter,
        /// The reply's kind.
        kind: ReplyKind,
        /// The reply's body.
        body: Vec<u8>,
    },
    /// A message to another group.
    Message(GroupMessage),
}

impl Waiter {
    /// Waits for a plain answer.
    pub(super) fn client(router: u8, head: &RequestHead, fsync: bool) -> Self {
        let RequestHead { token, deadline, .. } = *head;
        Self { token, deadline, router, fsync, is_silent: false, ticket: NO_TICKET }
    }

    /// Nobody waits.
    pub(super) fn nobody() -> Self {
        let (token, deadline) = (Token(0), Millis(u64::MAX));
        Self { token, deadline, router: 0, fsync: false, is_silent: true, ticket: NO_TICKET }
    }
}

/// Answers with an outcome at once.
pub(super) fn reply(effects: &mut Effects, router: u8, token: Token, outcome: &Outcome) {
    let batch = effects.replies_to(router);
    if let Outcome::Ok = outcome {
        return batch.push(token, ReplyKind::Ok, |_| {});
    }
    // The kind is known only after the body is written, so it is set behind.
    let mut kind = ReplyKind::Ok;
    batch.push(token, kind, |out| kind = answer::write(outcome, out));
    if let Some(head) = batch.heads.last_mut() {
        head.kind = kind;
    }
}

/// Answers with a failure at once.
pub(super) fn reply_failure(effects: &mut Effects, router: u8, token: Token, failure: Failure) {
    reply(effects, router, token, &Outcome::Failed(failure));
}

impl Shard {
    /// Answers a waiter, behind `needed` when its answer waits for a sync.
    pub(super) fn answer(
        &mut self,
        waiter: &Waiter,
        needed: Sequence,
        outcome: &Outcome,
        effects: &mut Effects,
    ) {
        if waiter.is_silent {
            return;
        }
        if !waiter.fsync || needed <= self.durable {
            return reply(effects, waiter.router, waiter.token, outcome);
        }
        let mut body = Vec::new();
        let kind = answer::write(outcome, &mut body);
        effects.sync_now = true;
        self.gated.push_back((needed, Gated::Reply { waiter: *waiter, kind, body }));
    }

    /// Sends a message once everything applied so far is durable: no step of a transaction runs ahead of its sync.
    pub(super) fn send_behind_sync(&mut self, message: GroupMessage, effects: &mut Effects) {
        let needed = self.sequence_of(self.applying);
        if needed <= self.durable || is_on(Mutant::MessageBeforeSync) {
            effects.messages.push(message);
        } else {
            effects.sync_now = true;
            self.gated.push_back((needed, Gated::Message(message)));
        }
    }

    /// Lets out what waited for the batches that are durable now. Needs are not quite in order (a reply may need an older
    /// batch than the message before it), and nothing overtakes: order between two groups is part of the protocol.
    pub(super) fn open_gate(&mut self, effects: &mut Effects) {
        while self.gated.front().is_some_and(|(needed, _)| *needed <= self.durable) {
            let Some((_, gated)) = self.gated.pop_front() else { return };
            match gated {
                Gated::Reply { waiter, kind, body } => {
                    if !waiter.is_silent {
                        effects
                            .replies_to(waiter.router)
                            .push(waiter.token, kind, |out| out.extend_from_slice(&body));
                    }
                }
                Gated::Message(message) => effects.messages.push(message),
            }
        }
    }

    /// The batch that makes an entry durable; one that is durable already for an old entry.
    pub(super) fn sequence_of(&self, index: u64) -> Sequence {
        let position = self.batches.partition_point(|(last, _)| *last < index);
        self.batches.get(position).map_or(self.durable, |(_, sequence)| *sequence)
    }

    /// Takes a ticket for what a leader goes on with.
    pub(super) fn ticket(&mut self, ticket: Ticket) -> u32 {
        let number = self.next_ticket;
        // Tickets are few and short-lived, so a number is free again long before it comes round.
        self.next_ticket = (self.next_ticket + 1) % NO_TICKET;
        assert!(self.tickets.insert(number, ticket).is_none(), "a ticket number is used once at a time");
        number
    }

    /// Answers everyone whose client has stopped waiting.
    pub(super) fn give_up_late(&mut self, effects: &mut Effects) {
        let now = self.now;
        let give_up = |waiters: &mut Vec<Waiter>, unknown: bool, effects: &mut Effects| {
            for waiter in waiters.iter_mut().filter(|waiter| !waiter.is_silent && waiter.deadline <= now) {
                reply_failure(effects, waiter.router, waiter.token, Failure::Timeout { unknown });
                waiter.is_silent = true;
            }
        };
        for proposed in &mut self.proposed {
            give_up(&mut proposed.waiters, true, effects);
        }
        // What has gathered will be proposed as soon as the log moves, so its outcome is just as unknown.
        for gathered in self.sealed.iter_mut().chain([&mut self.gathered]) {
            give_up(&mut gathered.waiters, true, effects);
        }
        for (_, gated) in &mut self.gated {
            if let Gated::Reply { waiter, .. } = gated
                && !waiter.is_silent
                && waiter.deadline <= now
            {
                reply_failure(effects, waiter.router, waiter.token, Failure::Timeout { unknown: true });
                waiter.is_silent = true;
            }
        }
        for waiter in self.snapshots.all_waiters() {
            if !waiter.is_silent && waiter.deadline <= now {
                reply_failure(effects, waiter.router, waiter.token, Failure::Timeout { unknown: false });
                waiter.is_silent = true;
            }
        }
        self.give_up_parked(effects);
    }
}
