//! What comes back: replies to clients, answers to gathers, room for calls that wait, and gathers past their deadline.

use super::calls::{self, Heard};
use super::{Router, Side, Target};
use crate::front::ReplySink;
use crate::peer::view::Leader;
use shards::batch::{NOT_SHARED, NotLeader, ReplyBatch, ReplyHead, ReplyKind};
use shards::command::answer::{self, Failure, Outcome};
use shards::command::record::Op;
use shards::gather::Step;
use shards::ids::{GroupId, Millis, NodeNumber, Token};
use strand_wire::code::{Code, Retry};
use strand_wire::reply;

/// Why a request is given up that found no leader.
const NO_QUORUM: &str = "no leader of the key's group was found in time, since too few of its nodes answer; nothing was \
    applied, so try again once more nodes are up";

/// Both rings of a way.
const SIDES: [Side; 2] = [Side::Local, Side::Remote];

/// Whether a reply is all in its batch and goes to a client as it is.
#[inline]
fn is_usual(head: &ReplyHead) -> bool {
    let is_whole = matches!(head.kind, ReplyKind::Ok | ReplyKind::Success | ReplyKind::Error);
    is_whole && head.shared == NOT_SHARED && calls::is_plain(head.token)
}

impl Router {
    /// Takes all that shards have answered; true when there was anything, or when gathers ended.
    pub(super) fn bring_replies(&mut self, sink: &mut ReplySink<'_>) -> bool {
        let mut any = false;
        for number in 0..self.ways.len() {
            for side in SIDES {
                while let Some(batch) = self.ways[number].receive(side) {
                    any = true;
                    for head in &batch.heads {
                        if is_usual(head) {
                            self.ways[number].was_served();
                            sink.complete(head.token, head.kind, batch.body(head), None);
                        } else {
                            self.bring_reply(number, &batch, head, sink);
                        }
                    }
                    self.ways[number].recycle(side, batch);
                }
            }
        }
        // Read before the ways are tended: a gather whose call waits for a leader in vain is to hear that, and not that time
        // went by between two looks at the clock.
        let now = (self.gathers.count() > 0).then(|| (self.clock)());
        any |= self.tend_ways(sink);
        if let Some(now) = now {
            any |= self.end_late_gathers(now, sink);
        }
        if any {
            for way in &mut self.ways {
                let gathers = &self.gathers;
                way.send_waiting(|token| {
                    !calls::is_call(token) || gathers.get(calls::gather_of(token)).is_some()
                });
                way.flush();
            }
        }
        any
    }

    #[inline(never)]
    fn bring_reply(&mut self, number: usize, batch: &ReplyBatch, head: &ReplyHead, sink: &mut ReplySink<'_>) {
        let body = batch.body(head);
        let (mut token, mut is_local) = (head.token, false);
        if let Some(unmarked) = calls::unmark_local(token) {
            self.ways[number].forget_local_read();
            (token, is_local) = (unmarked, true);
        }
        if head.kind == ReplyKind::NotLeader {
            return self.bring_back(number, token, is_local, body, sink);
        }
        self.ways[number].was_served();
        if calls::is_call(token) {
            return match (head.kind, body.split_first_chunk::<8>()) {
                (ReplyKind::StalePart, Some((index, part))) => {
                    self.gathers.note_stale(token, GroupId(number as u32), u64::from_le_bytes(*index));
                    self.bring_answer(token, ReplyKind::Part, part, sink);
                }
                _ => self.bring_answer(token, head.kind, body, sink),
            };
        }
        if matches!(head.kind, ReplyKind::Part | ReplyKind::StalePart) {
            let text = "a shard answered a client's request with a part; report this";
            return self.fail_taken(token, Code::Internal, text, sink);
        }
        let shared = match head.shared {
            NOT_SHARED => None,
            position => batch.shared.get(position as usize).cloned(),
        };
        sink.complete(token, head.kind, body, shared);
    }

    /// A request that was refused by a replica that does not lead: it goes out again once the leader is known.
    #[cold]
    fn bring_back(
        &mut self,
        number: usize,
        token: Token,
        is_local: bool,
        body: &[u8],
        sink: &mut ReplySink<'_>,
    ) {
        self.counters.came_back += 1;
        let Ok(refused) = NotLeader::decode(body) else {
            return self.fail_taken(
                token,
                Code::Internal,
                "a shard's refusal cannot be read; report this",
                sink,
            );
        };
        if let Some(cluster) = &self.cluster {
            let leader = Leader { term: refused.term, node: refused.leader.node() };
            cluster.view.learn(GroupId(number as u32), leader);
        }
        if is_local && refused.record.first() == Some(&(Op::Info as u8)) {
            // This node's figures are asked for, and nobody else's will do.
            return self.fail_taken(token, Code::NotLeader, "this node has no replica of the group", sink);
        }
        if is_local {
            self.ways[number].take_back_local(token, &refused);
        } else {
            self.ways[number].take_back(token, &refused);
        }
    }

    /// Answers a request that was taken, or a gather's call, with an error.
    fn fail_taken(&mut self, token: Token, code: Code, text: &str, sink: &mut ReplySink<'_>) {
        let mut members = Vec::new();
        answer::error(&mut members, code, text);
        if calls::is_call(token) {
            self.bring_answer(token, ReplyKind::Error, &members, sink);
        } else {
            sink.complete(token, ReplyKind::Error, &members, None);
        }
    }

    /// Has every way follow its group's leader; true when one opened, or when requests gave up waiting for one.
    fn tend_ways(&mut self, sink: &mut ReplySink<'_>) -> bool {
        let mut any = false;
        for number in 0..self.ways.len() {
            let wanted = match &self.cluster {
                None => Target::Here,
                Some(cluster) => match cluster.view.leader(GroupId(number as u32)).node {
                    NodeNumber(0) => Target::Nobody,
                    node if node == cluster.view.me() => Target::Here,
                    node => Target::There(node),
                },
            };
            if self.ways[number].is_open() && self.ways[number].target() == wanted {
                continue;
            }
            let now = (self.clock)();
            if self.ways[number].tend(wanted, now) {
                self.counters.leader_changes += 1;
                any = true;
            }
            for late in self.ways[number].take_late(now) {
                self.counters.no_quorum += 1;
                any = true;
                self.fail_taken(late.token, Code::NoQuorum, NO_QUORUM, sink);
            }
        }
        any
    }

    fn bring_answer(&mut self, token: Token, kind: ReplyKind, body: &[u8], sink: &mut ReplySink<'_>) {
        match self.gathers.hear(token, kind, body, |client| sink.awaits(client)) {
            Heard::Late => {}
            Heard::Ended(client, kind, members) => {
                sink.complete(client, kind, &members, None);
            }
            Heard::GoesOn(id, Step::Calls(calls)) => {
                let deadline = self.gathers.get(id).expect("it goes on").deadline;
                self.send_calls(id, deadline, calls);
            }
            Heard::GoesOn(_, _) => {}
        }
    }

    fn end_late_gathers(&mut self, now: Millis, sink: &mut ReplySink<'_>) -> bool {
        let late = self.gathers.take_late(now);
        self.counters.gather_timeouts += late.len() as u64;
        for running in &late {
            let mut members = Vec::new();
            if running.gather.is_read() {
                let text = "no answer in time; ask again, or give a larger timeout_ms";
                reply::push_error(&mut members, Code::Timeout, text, Retry::Safe);
            } else {
                answer::write(&Outcome::Failed(Failure::Timeout { unknown: true }), &mut members);
            }
            sink.complete(running.client, ReplyKind::Error, &members, None);
        }
        !late.is_empty()
    }
}
