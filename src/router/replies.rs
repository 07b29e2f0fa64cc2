//! What comes back: replies to clients, answers to gathers, room for calls that wait, and gathers past their deadline.

use super::calls::{self, Heard};
use super::{Router, push};
use crate::front::ReplySink;
use shards::batch::{NOT_SHARED, ReplyBatch, ReplyHead, ReplyKind};
use shards::command::answer::{self, Failure, Outcome};
use shards::gather::Step;
use shards::ids::{KeyHash, Token};
use strand_wire::code::{Code, Retry};
use strand_wire::reply;

impl Router {
    /// Takes all that shards have answered; true when there was anything, or when gathers ended.
    pub(super) fn bring_replies(&mut self, sink: &mut ReplySink<'_>) -> bool {
        let mut any = false;
        for number in 0..self.links.len() {
            while let Some(batch) = self.links[number].receive() {
                any = true;
                for head in &batch.heads {
                    self.bring_reply(&batch, head, sink);
                }
                self.links[number].recycle(batch);
            }
        }
        if self.gathers.count() > 0 {
            any |= self.end_late_gathers(sink);
        }
        if any {
            self.send_waiting();
            for link in &mut self.links {
                link.flush();
            }
        }
        any
    }

    #[inline]
    fn bring_reply(&mut self, batch: &ReplyBatch, head: &ReplyHead, sink: &mut ReplySink<'_>) {
        let body = batch.body(head);
        if calls::is_call(head.token) {
            return self.bring_answer(head.token, head.kind, body, sink);
        }
        if head.kind == ReplyKind::Part {
            let text = "a shard answered a client's request with a part; report this";
            sink.complete_with(
                head.token,
                ReplyKind::Error,
                |out| answer::error(out, Code::Internal, text),
                None,
            );
            return;
        }
        let shared = match head.shared {
            NOT_SHARED => None,
            position => batch.shared.get(position as usize).cloned(),
        };
        sink.complete(head.token, head.kind, body, shared);
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

    /// Sends the calls that waited for room, in their order; those of ended gathers are dropped.
    fn send_waiting(&mut self) {
        for (link, waiting) in self.links.iter_mut().zip(&mut self.waiting) {
            while link.room() > 0 {
                let Some(call) = waiting.pop_front() else { break };
                if self.gathers.get(calls::gather_of(call.token)).is_some() {
                    push(link, call.token, KeyHash(0), call.deadline, |out| {
                        out.extend_from_slice(&call.record);
                    });
                }
            }
        }
    }

    fn end_late_gathers(&mut self, sink: &mut ReplySink<'_>) -> bool {
        let late = self.gathers.take_late((self.clock)());
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
