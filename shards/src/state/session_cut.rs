//! A snapshot of the sessions beside traffic, client by client, in the way of [`cut`](super::cut) with its tables.

use super::digest::SessionDigest;
use super::sessions::{Client, Sessions};
use crate::snapshot::payload::{Payload, SessionPayload};
use std::collections::VecDeque;

/// What the state knows about a cut of the sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SessionTotals {
    /// Numbers and digest as of the beginning of the snapshot.
    pub digest: SessionDigest,
}

/// A snapshot under way.
#[derive(Debug, Default)]
pub(super) struct SessionCut {
    /// The next client slot to visit.
    next: usize,
    /// Client slots when the snapshot began: clients that take later ones are no part of it.
    end: usize,
    open: SessionPayload,
    pending: VecDeque<Payload>,
    pending_bytes: usize,
    totals: SessionTotals,
}

/// Client slots visited for one payload at most; many may be empty or already written.
const VISITS_MAX: usize = 4096;

impl Sessions {
    /// Fixes the content to be written: all that is remembered now.
    pub fn begin_snapshot(&mut self) {
        assert!(self.cut.is_none(), "one snapshot at a time");
        self.generation += 1;
        self.cut = Some(SessionCut { end: self.clients.len(), ..SessionCut::default() });
    }

    /// Bytes serialised and not yet handed out.
    pub fn cut_pending_bytes(&self) -> usize {
        self.cut.as_ref().map_or(0, |cut| cut.pending_bytes + cut.open.bytes())
    }

    /// Whether every client was handed out.
    pub(crate) fn snapshot_written(&self) -> bool {
        let cut = self.cut.as_ref().expect("a snapshot is under way");
        cut.pending.is_empty() && cut.open.bytes() == 0 && cut.next >= cut.end
    }

    /// The next block's payload; `None` when the work of one step found none, see [`Self::snapshot_written`].
    pub(crate) fn next_payload(&mut self) -> Option<Payload> {
        let cut = self.cut.as_mut().expect("a snapshot is under way");
        for _ in 0..VISITS_MAX {
            if !cut.pending.is_empty() || cut.next >= cut.end {
                break;
            }
            if let Some(client) = &mut self.clients[cut.next]
                && client.captured != self.generation
            {
                cut.capture(client, self.generation);
            }
            cut.next += 1;
        }
        if cut.pending.is_empty() && cut.next >= cut.end {
            cut.close();
        }
        let payload = cut.pending.pop_front()?;
        cut.pending_bytes -= payload.bytes();
        Some(payload)
    }

    /// Ends a snapshot whose payloads were all handed out.
    pub(crate) fn end_snapshot(&mut self) -> SessionTotals {
        assert!(self.snapshot_written(), "every client was handed out");
        self.cut.take().map(|cut| cut.totals).expect("a snapshot is under way")
    }

    /// Gives a snapshot up.
    pub fn abort_snapshot(&mut self) {
        self.cut = None;
    }

    /// Takes a client's content for the running snapshot before it changes for the first time.
    pub(super) fn capture_before_change(&mut self, number: u32) {
        let Some(cut) = &mut self.cut else { return };
        let client = self.clients[number as usize].as_mut().expect("a client number in use");
        if client.captured != self.generation {
            cut.capture(client, self.generation);
        }
    }
}

impl SessionCut {
    fn capture(&mut self, client: &mut Client, generation: u32) {
        client.captured = generation;
        self.totals.digest.add(&client.stored(), &client.replies);
        if !self.open.push(&client.stored(), &client.replies) {
            self.close();
            let pushed = self.open.push(&client.stored(), &client.replies);
            assert!(pushed, "a client fits an empty payload: its replies are bounded");
        }
    }

    fn close(&mut self) {
        if self.open.bytes() > 0 {
            let payload = std::mem::take(&mut self.open).close();
            self.pending_bytes += payload.bytes();
            self.pending.push_back(payload);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::ReplyKind;
    use crate::ids::Millis;

    /// Between the last payload and the end of a snapshot, sections are written, and traffic goes on.
    #[test]
    fn a_client_that_comes_at_the_end_is_no_part_of_it() {
        let mut sessions = Sessions::default();
        let record = |sessions: &mut Sessions, client: &[u8], seq| {
            sessions.record(client, seq, 1, ReplyKind::Ok, b"", Millis(5));
        };
        record(&mut sessions, b"early", 1);
        sessions.begin_snapshot();
        record(&mut sessions, b"meanwhile", 1);
        while !sessions.snapshot_written() {
            sessions.next_payload();
        }
        record(&mut sessions, b"late", 1);
        record(&mut sessions, b"early", 2);
        let totals = sessions.end_snapshot();
        assert_eq!((totals.digest.clients, totals.digest.replies), (1, 1));
    }
}
