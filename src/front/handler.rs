//! What the front asks of the router: to classify and take lines, to push batches, and to bring replies back.
//!
//! A handler never touches a socket and never waits. The front calls, within each turn and in this order, `line` for every
//! complete line that may be dispatched, `flush` once, `poll` once; and `has_work` before it parks.

use super::connection::{Connections, Wants};
use super::counters::FrontCounters;
use super::order::{Class, Slots};
use super::output::Output;
use shards::batch::ReplyKind;
use shards::ids::{Millis, Token};
use std::sync::Arc;

/// The router behind a front.
pub trait LineHandler {
    /// One complete line of a client, without its line end (`\n` or `\r\n`); it may be empty. The handler answers it
    /// through `at`, takes it, or has it held. It must not keep a count of its own for a line that it has held: the same
    /// line is offered again.
    fn line<'l>(&mut self, at: &mut LineAt<'_>, line: &'l [u8]) -> Handled<'l>;

    /// Called once a turn when all lines were offered: push the gathered batches to the shards. What this thread does beside
    /// the front may happen here too, so that its replies leave in the same turn.
    fn flush(&mut self);

    /// Called once a turn: hand over the replies that have come. True when there were any, or when room was made at a
    /// shard; lines held by [`Handled::HoldForRoom`] are then offered again.
    fn poll(&mut self, sink: &mut ReplySink<'_>) -> bool;

    /// Whether `poll` would find something. Asked again after the doorbell's park was announced.
    fn has_work(&mut self) -> bool;

    /// When `poll` wants to be called although nothing happens; asked before the front parks.
    fn next_deadline(&self, now: Millis) -> Option<Millis> {
        let _ = now;
        None
    }
}

/// What a handler did with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handled<'l> {
    /// Answered through [`LineAt::answer`] (or deliberately ignored, as an empty line).
    Answered,
    /// Taken under [`LineAt::token`]; exactly one reply follows through [`ReplySink`].
    Taken {
        /// What kind of request it is; must be admitted by [`LineAt::admits`].
        class: Class,
        /// The raw JSON token of its `id`, at most 256 bytes; empty without one.
        id: &'l [u8],
    },
    /// Not admitted: offered again once [`LineAt::admits`] would allow this class.
    Hold(Class),
    /// No room at a shard: offered again after a `poll` that returned true.
    HoldForRoom,
    /// Closes the connection once the replies to what came before have left.
    Close,
}

/// Longest raw `id` token that a request may have, in bytes.
pub const ID_BYTES_MAX: usize = 256;

/// The connection that a line came from, as far as its handler may see it.
#[derive(Debug)]
pub struct LineAt<'a> {
    pub(super) token_base: u64,
    pub(super) now: Millis,
    pub(super) slots: &'a mut Slots,
    pub(super) out: &'a mut Output,
    pub(super) flags: &'a mut u32,
}

impl LineAt<'_> {
    /// The token that the line has if it is taken.
    #[inline]
    pub fn token(&self) -> Token {
        Token(self.token_base | u64::from(self.slots.next()))
    }

    /// The time of this turn.
    #[inline]
    pub fn now(&self) -> Millis {
        self.now
    }

    /// Whether a request of this class may be taken now.
    #[inline]
    pub fn admits(&self, class: Class) -> bool {
        self.slots.admits(class)
    }

    /// Whether replies leave in request order (the default).
    #[inline]
    pub fn is_ordered(&self) -> bool {
        self.slots.is_ordered()
    }

    /// Switches between replies in request order and replies as they complete.
    ///
    /// # Panics
    /// While anything is outstanding; so only after [`LineAt::admits`] allowed a [`Class::Barrier`] and before the answer.
    pub fn set_ordered(&mut self, ordered: bool) {
        self.slots.set_ordered(ordered);
    }

    /// Flags of the connection whose meaning is the handler's own (authenticated, wants redirects); 0 at first.
    pub fn flags(&self) -> u32 {
        *self.flags
    }

    /// Replaces the flags.
    pub fn set_flags(&mut self, flags: u32) {
        *self.flags = flags;
    }

    /// Answers the line at once; in ordered mode the answer still leaves in its turn. `members` are JSON members as in
    /// [`shards::batch::ReplyKind`], `id` is the request's raw token or empty.
    pub fn answer(&mut self, kind: ReplyKind, id: &[u8], members: &[u8]) {
        self.answer_with(kind, id, |out| out.extend_from_slice(members));
    }

    /// As [`LineAt::answer`], with members that `members` appends.
    pub fn answer_with(&mut self, kind: ReplyKind, id: &[u8], members: impl FnOnce(&mut Vec<u8>)) {
        self.slots.answer(self.out, kind, id, members, None);
    }
}

/// Where replies go. Finds the connection and the request by their token and drops what nobody waits for any more.
#[derive(Debug)]
pub struct ReplySink<'a> {
    pub(super) connections: &'a mut Connections,
    pub(super) counters: &'a mut FrontCounters,
    pub(super) in_flight_max: usize,
}

impl ReplySink<'_> {
    /// Whether somebody still waits for this reply.
    pub fn awaits(&self, token: Token) -> bool {
        self.connections
            .find(token)
            .is_some_and(|(at, number)| self.connections.list[at].slots.awaits(number))
    }

    /// Writes the reply of one request: `members` and then, when given, the shared value, which is sent from where it is.
    /// False when nobody waits for it.
    #[inline]
    pub fn complete(
        &mut self,
        token: Token,
        kind: ReplyKind,
        members: &[u8],
        shared: Option<Arc<[u8]>>,
    ) -> bool {
        self.complete_with(token, kind, |out| out.extend_from_slice(members), shared)
    }

    /// As [`ReplySink::complete`], with members that `members` appends.
    #[inline]
    pub fn complete_with(
        &mut self,
        token: Token,
        kind: ReplyKind,
        members: impl FnOnce(&mut Vec<u8>),
        shared: Option<Arc<[u8]>>,
    ) -> bool {
        let Some((at, number)) = self.connections.find(token) else {
            self.counters.late_replies += 1;
            return false;
        };
        let connection = &mut self.connections.list[at];
        if !connection.slots.complete(&mut connection.out, number, kind, members, shared) {
            self.counters.late_replies += 1;
            return false;
        }
        self.counters.replies += 1;
        let may_go_on = match connection.wants {
            Wants::Class(class) => connection.slots.admits(class),
            Wants::InFlight => connection.slots.used() < self.in_flight_max,
            Wants::Nothing | Wants::Turn | Wants::Room | Wants::Unsent => false,
        };
        if may_go_on {
            self.connections.make_ready(at);
        }
        self.connections.touch(at);
        true
    }
}
