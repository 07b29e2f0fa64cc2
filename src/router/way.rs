//! The way to one group: which node its requests go to, and what happens to them when that changes.
//!
//! Invariants. All requests of a view go to one place over one ring, in order. What was refused comes back before anything
//! goes elsewhere: a way that changes its mind, or whose requests are refused, closes; it opens again with the next view
//! once everything under way is back, and then sends what was refused in its order of arrival, and behind it what waited
//! meanwhile. So two writes of one connection never change places, whatever leaders do. Reads that may be stale have no
//! such order: they go to this node's replica at any time, marked in their tokens.
//!
//! A node that is alone has the same ways, always open. Bounded: what waits, in number and bytes.

use super::calls;
use super::plan::CALL_GRACE_MS;
use crate::front::arrival_order;
use crate::links::ShardLink;
use shards::batch::{NotLeader, ReplyBatch, RequestHead};
use shards::ids::{GroupId, KeyHash, Millis, NodeNumber, Token};
use std::collections::VecDeque;

/// A batch of so many bytes is sent at once instead of at the end of the turn.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// Requests that may wait while nobody is known to lead; further ones stay with the front.
const WAITING_MAX: usize = 16 * 1024;
/// Bytes of their records.
const WAITING_BYTES_MAX: usize = 16 << 20;
/// The first pause before the same leader is asked again, doubled with each refusal.
const BACKOFF_MS_MIN: u64 = 1;
/// The longest such pause.
const BACKOFF_MS_MAX: u64 = 64;

/// Where a group's requests go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// To this node's shard.
    Here,
    /// To another node.
    There(NodeNumber),
    /// Nowhere while no leader is known.
    Nobody,
}

/// Which of a way's two rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// To this node's shard.
    Local,
    /// To the thread that forwards.
    Remote,
}

/// A request that waits to be sent.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) token: Token,
    pub(super) hash: KeyHash,
    pub(super) deadline: Millis,
    pub(super) record: Vec<u8>,
}

impl Waiting {
    /// When there is no sense in waiting any longer. A gather's call is judged with its gather.
    fn gives_up_at(&self) -> Millis {
        let grace_ms = if calls::is_call(self.token) { CALL_GRACE_MS } else { 0 };
        Millis(self.deadline.0.saturating_sub(grace_ms))
    }
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Way {
    group: GroupId,
    local: ShardLink,
    /// Only in a cluster.
    remote: Option<ShardLink>,
    target: Target,
    is_open: bool,
    view: u32,
    /// Came back in this view.
    refused: Vec<Waiting>,
    /// Goes out when there is room, or when the way opens.
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    /// No deadline of what waits is before this.
    next_late: Millis,
    /// Marked reads under way to this node's shard.
    local_reads: usize,
    /// This node's shard has no replica, as far as was seen in this view.
    is_vacant: bool,
    /// Refusals in a row by the same leader.
    attempts: u32,
    retry_at: Millis,
}

impl Way {
    /// A way to a group of this node.
    pub(super) fn new(group: GroupId, local: ShardLink) -> Self {
        Self {
            group,
            local,
            remote: None,
            target: Target::Here,
            is_open: true,
            view: 0,
            refused: Vec::new(),
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            next_late: Millis(u64::MAX),
            local_reads: 0,
            is_vacant: false,
            attempts: 0,
            retry_at: Millis(0),
        }
    }

    /// Makes it a way of a cluster: closed until a leader is known.
    pub(super) fn join(&mut self, remote: ShardLink) {
        self.remote = Some(remote);
        self.target = Target::Nobody;
        self.is_open = false;
    }

    /// Whether requests go out now.
    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Where requests go, or went before the way closed.
    pub(super) fn target(&self) -> Target {
        self.target
    }

    /// Requests sent over either ring and not yet answered.
    pub(super) fn outstanding(&self) -> usize {
        self.local.outstanding() + self.remote.as_ref().map_or(0, ShardLink::outstanding)
    }

    /// Requests that wait here.
    pub(super) fn held(&self) -> usize {
        self.waiting.len() + self.refused.len()
    }

    /// Sends a request, or keeps it while the way is closed; false when it must stay where it is.
    #[inline]
    pub(super) fn offer(
        &mut self,
        token: Token,
        hash: KeyHash,
        deadline: Millis,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> bool {
        if !self.waiting.is_empty() || !self.is_open {
            return self.offer_closed(token, hash, deadline, write);
        }
        if self.link().room() == 0 {
            return false;
        }
        self.push(token, hash, deadline, write);
        true
    }

    #[cold]
    fn offer_closed(
        &mut self,
        token: Token,
        hash: KeyHash,
        deadline: Millis,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> bool {
        // While an open way waits for room, those who wait there go first.
        let is_full = self.waiting.len() >= WAITING_MAX || self.waiting_bytes >= WAITING_BYTES_MAX;
        if self.is_open || is_full {
            return false;
        }
        let mut record = Vec::new();
        write(&mut record);
        self.wait(Waiting { token, hash, deadline, record });
        true
    }

    /// Sends a read that may be stale to this node's replica; `None` when there is none, as far as is known, unless
    /// `whatever` it answers is wanted, and `Some(false)` when there is no room.
    pub(super) fn offer_local(
        &mut self,
        token: Token,
        hash: KeyHash,
        deadline: Millis,
        whatever: bool,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Option<bool> {
        if self.remote.is_none() || (self.is_vacant && !whatever) {
            return None;
        }
        if self.local.room() == 0 {
            return Some(false);
        }
        self.local_reads += 1;
        add(&mut self.local, calls::mark_local(token), hash, deadline, write);
        Some(true)
    }

    /// Has a request wait behind the others, whatever the bounds: for calls of gathers, which are bounded themselves.
    pub(super) fn wait(&mut self, request: Waiting) {
        self.next_late = self.next_late.min(request.gives_up_at());
        self.waiting_bytes += request.record.len();
        self.waiting.push_back(request);
    }

    /// Sends what waits as far as there is room; `is_wanted` drops what nobody waits for any more.
    pub(super) fn send_waiting(&mut self, is_wanted: impl Fn(Token) -> bool) {
        while self.is_open && self.link().room() > 0 {
            let Some(request) = self.waiting.pop_front() else { break };
            self.waiting_bytes -= request.record.len();
            if is_wanted(request.token) {
                self.push(request.token, request.hash, request.deadline, |out| {
                    out.extend_from_slice(&request.record);
                });
            }
        }
    }

    /// Sends the gathered batches.
    pub(super) fn flush(&mut self) {
        send(&mut self.local, self.group, NodeNumber(0), self.view);
        if let Some(remote) = &mut self.remote {
            let node = match self.target {
                Target::There(node) => node,
                Target::Here | Target::Nobody => NodeNumber(0),
            };
            send(remote, self.group, node, self.view);
        }
    }

    /// The next replies from one side.
    #[inline]
    pub(super) fn receive(&mut self, side: Side) -> Option<Box<ReplyBatch>> {
        self.side(side)?.receive()
    }

    /// Gives a box of replies back.
    pub(super) fn recycle(&mut self, side: Side, batch: Box<ReplyBatch>) {
        if let Some(link) = self.side(side) {
            link.recycle(batch);
        }
    }

    /// Whether replies have come.
    pub(super) fn has_replies(&self) -> bool {
        self.local.has_replies() || self.remote.as_ref().is_some_and(ShardLink::has_replies)
    }

    /// The reply to a marked read has come.
    pub(super) fn forget_local_read(&mut self) {
        assert!(self.local_reads > 0, "each marked read is counted");
        self.local_reads -= 1;
    }

    /// The leader has answered: refusals in a row end here.
    pub(super) fn was_served(&mut self) {
        self.attempts = 0;
    }

    /// Takes a refused request back: it goes out again in the next view.
    pub(super) fn take_back(&mut self, token: Token, refused: &NotLeader<'_>) {
        let NotLeader { hash, deadline, record, .. } = *refused;
        let request = Waiting { token, hash, deadline, record: record.to_vec() };
        self.next_late = self.next_late.min(request.gives_up_at());
        self.refused.push(request);
        self.is_open = false;
    }

    /// Takes a marked read back that this node's shard refused for want of a replica: it goes where other requests go.
    pub(super) fn take_back_local(&mut self, token: Token, refused: &NotLeader<'_>) {
        self.is_vacant = true;
        let NotLeader { hash, deadline, record, .. } = *refused;
        self.wait(Waiting { token, hash, deadline, record: record.to_vec() });
    }

    /// Compares the way with who should lead, and goes through a change as far as it can; true when it opened.
    pub(super) fn tend(&mut self, wanted: Target, now: Millis) -> bool {
        if self.is_open {
            if wanted == self.target {
                return false;
            }
            self.is_open = false;
        }
        if self.under_way() > 0 {
            self.flush();
            return false;
        }
        if !self.refused.is_empty() {
            self.queue_refused();
            self.retry_at = Millis(now.0 + (BACKOFF_MS_MIN << self.attempts.min(6)).min(BACKOFF_MS_MAX));
            self.attempts += 1;
        }
        if wanted != self.target {
            self.attempts = 0;
            self.target = wanted;
            self.retry_at = now;
        }
        if wanted == Target::Nobody || now < self.retry_at {
            return false;
        }
        self.view = self.view.wrapping_add(1);
        self.is_vacant = false;
        self.is_open = true;
        true
    }

    /// Takes out what waits in vain: while nobody leads, the requests whose clients stop waiting now.
    pub(super) fn take_late(&mut self, now: Millis) -> Vec<Waiting> {
        if self.is_open || now < self.next_late {
            return Vec::new();
        }
        let is_late = |request: &mut Waiting| request.gives_up_at() <= now;
        let mut late: Vec<Waiting> = self.refused.extract_if(.., is_late).collect();
        let (gone, kept): (VecDeque<_>, VecDeque<_>) =
            self.waiting.drain(..).partition(|request| request.gives_up_at() <= now);
        self.waiting_bytes -= gone.iter().map(|request| request.record.len()).sum::<usize>();
        self.waiting = kept;
        late.extend(gone);
        let deadlines = self.waiting.iter().chain(&self.refused).map(Waiting::gives_up_at);
        self.next_late = deadlines.min().unwrap_or(Millis(u64::MAX));
        late
    }

    /// Requests of this view that are not back.
    fn under_way(&self) -> usize {
        let unsent = self.local.unsent() + self.remote.as_ref().map_or(0, ShardLink::unsent);
        self.outstanding() + unsent - self.local_reads
    }

    /// Puts the refused before what waits, in the order in which their connections sent them.
    fn queue_refused(&mut self) {
        let mut refused = std::mem::take(&mut self.refused);
        refused.sort_by(|a, b| arrival_order(a.token, b.token));
        for request in refused.into_iter().rev() {
            self.waiting_bytes += request.record.len();
            self.waiting.push_front(request);
        }
    }

    fn side(&mut self, side: Side) -> Option<&mut ShardLink> {
        match side {
            Side::Local => Some(&mut self.local),
            Side::Remote => self.remote.as_mut(),
        }
    }

    /// The ring of the target.
    #[inline]
    fn link(&mut self) -> &mut ShardLink {
        match (&mut self.remote, self.target) {
            (Some(remote), Target::There(_)) => remote,
            _ => &mut self.local,
        }
    }

    #[inline]
    fn push(&mut self, token: Token, hash: KeyHash, deadline: Millis, write: impl FnOnce(&mut Vec<u8>)) {
        if add(self.link(), token, hash, deadline, write) >= BATCH_BYTES_MAX {
            self.flush();
        }
    }
}

/// Adds a request to the batch of a ring, which has room; the batch's bytes so far.
#[inline]
fn add(
    link: &mut ShardLink,
    token: Token,
    hash: KeyHash,
    deadline: Millis,
    write: impl FnOnce(&mut Vec<u8>),
) -> usize {
    let batch = link.batch();
    let start = batch.bytes.len();
    write(&mut batch.bytes);
    let end = batch.bytes.len();
    let length = u32::try_from(end - start).expect("a record is below 4 GiB");
    let start = u32::try_from(start).expect("a batch is sent long before 4 GiB");
    batch.heads.push(RequestHead { token, hash, deadline, start, length });
    end
}

fn send(link: &mut ShardLink, group: GroupId, node: NodeNumber, view: u32) {
    if link.unsent() > 0 {
        let batch = link.batch();
        (batch.group, batch.node, batch.view, batch.origin) = (group, node, view, 0);
        link.flush();
    }
}
