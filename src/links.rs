//! The rings between threads: router and shard, and shard and shard. Single producer, single consumer, bounded.
//!
//! Router and shard exchange whole batches. The router holds the credits: at most `outstanding_max` requests of a link
//! are unanswered, each gets exactly one reply, and no batch is empty. So no more batches than credits can be under way in
//! either direction, both rings have a slot for each of them, and neither side ever has to wait to send: two full rings
//! cannot wait for one another. Emptied boxes travel back for reuse and are dropped when the way back is full.
//!
//! Nothing here blocks or allocates in steady state. Sending rings the other side's doorbell; who parks must ask
//! `has_replies`, `has_requests` or `has_messages` after announcing it (see `doorbell`).

use crate::doorbell::Doorbell;
use rtrb::{Consumer, Producer, RingBuffer};
use shards::batch::{ReplyBatch, RequestBatch};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// Memory that an emptied batch keeps for its next use.
pub const BATCH_KEEP_BYTES: usize = 256 * 1024;

/// Emptied boxes that may wait for their return; more are dropped.
const RETURNS: usize = 64;

/// The router's end of a link to one shard.
#[derive(Debug)]
pub struct ShardLink {
    requests: Producer<Box<RequestBatch>>,
    replies: Consumer<Box<ReplyBatch>>,
    empty_requests: Consumer<Box<RequestBatch>>,
    empty_replies: Producer<Box<ReplyBatch>>,
    open: Box<RequestBatch>,
    outstanding: usize,
    outstanding_max: usize,
    shard_bell: Arc<Doorbell>,
}

/// The shard's end of a link to one router.
#[derive(Debug)]
pub struct RouterLink {
    requests: Consumer<Box<RequestBatch>>,
    replies: Producer<Box<ReplyBatch>>,
    empty_requests: Producer<Box<RequestBatch>>,
    empty_replies: Consumer<Box<ReplyBatch>>,
    open: Box<ReplyBatch>,
    unanswered: usize,
    router_bell: Arc<Doorbell>,
}

/// A link between one router and one shard on which at most `outstanding_max` requests are unanswered.
///
/// # Panics
/// When `outstanding_max` is 0.
pub fn link(
    outstanding_max: usize,
    router_bell: Arc<Doorbell>,
    shard_bell: Arc<Doorbell>,
) -> (ShardLink, RouterLink) {
    assert!(outstanding_max > 0, "a link without credits carries nothing");
    let (request_in, request_out) = RingBuffer::new(outstanding_max);
    let (reply_in, reply_out) = RingBuffer::new(outstanding_max);
    let (empty_request_in, empty_request_out) = RingBuffer::new(RETURNS);
    let (empty_reply_in, empty_reply_out) = RingBuffer::new(RETURNS);
    let at_router = ShardLink {
        requests: request_in,
        replies: reply_out,
        empty_requests: empty_request_out,
        empty_replies: empty_reply_in,
        open: Box::default(),
        outstanding: 0,
        outstanding_max,
        shard_bell,
    };
    let at_shard = RouterLink {
        requests: request_out,
        replies: reply_in,
        empty_requests: empty_request_in,
        empty_replies: empty_reply_out,
        open: Box::default(),
        unanswered: 0,
        router_bell,
    };
    (at_router, at_shard)
}

impl ShardLink {
    /// How many more requests [`ShardLink::batch`] may take now.
    pub fn room(&self) -> usize {
        self.outstanding_max - self.outstanding - self.open.heads.len()
    }

    /// Requests sent and not yet answered, without those of the open batch.
    pub fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// Requests of the open batch.
    #[inline]
    pub fn unsent(&self) -> usize {
        self.open.heads.len()
    }

    /// The batch that gathers requests until [`ShardLink::flush`]. The caller adds no more than [`ShardLink::room`].
    pub fn batch(&mut self) -> &mut RequestBatch {
        &mut self.open
    }

    /// Sends what was gathered and wakes the shard if it is parked; false when there was nothing.
    ///
    /// # Panics
    /// When more requests were gathered than there was room for.
    pub fn flush(&mut self) -> bool {
        let count = self.open.heads.len();
        if count == 0 {
            return false;
        }
        assert!(self.outstanding + count <= self.outstanding_max, "a request without a credit");
        self.outstanding += count;
        let next = self.empty_requests.pop().unwrap_or_default();
        let full = std::mem::replace(&mut self.open, next);
        self.requests.push(full).expect("a slot for each credit");
        self.shard_bell.ring();
        true
    }

    /// The next replies; their credits are free again. Give the box back with [`ShardLink::recycle`].
    ///
    /// # Panics
    /// When the shard replied more often than it was asked.
    pub fn receive(&mut self) -> Option<Box<ReplyBatch>> {
        let batch = self.replies.pop().ok()?;
        assert!(batch.heads.len() <= self.outstanding, "one reply for each request");
        self.outstanding -= batch.heads.len();
        Some(batch)
    }

    /// Returns a reply box to the shard for reuse.
    pub fn recycle(&mut self, mut batch: Box<ReplyBatch>) {
        batch.clear(BATCH_KEEP_BYTES);
        // When the way back is full the box is dropped: reuse saves allocations, it owes nothing.
        drop(self.empty_replies.push(batch));
    }

    /// Whether [`ShardLink::receive`] would return something.
    pub fn has_replies(&self) -> bool {
        !self.replies.is_empty()
    }

    /// Whether the shard's end is gone, as after a panic of its thread.
    pub fn is_abandoned(&self) -> bool {
        self.replies.is_abandoned()
    }
}

impl RouterLink {
    /// The next requests. Give the box back with [`RouterLink::recycle`].
    pub fn receive(&mut self) -> Option<Box<RequestBatch>> {
        let batch = self.requests.pop().ok()?;
        assert!(!batch.heads.is_empty(), "a batch carries at least one request");
        self.unanswered += batch.heads.len();
        Some(batch)
    }

    /// Returns a request box to the router for reuse.
    pub fn recycle(&mut self, mut batch: Box<RequestBatch>) {
        batch.clear(BATCH_KEEP_BYTES);
        // As for replies: dropped when the way back is full.
        drop(self.empty_requests.push(batch));
    }

    /// The batch that gathers replies until [`RouterLink::flush`]: exactly one for each request received.
    pub fn batch(&mut self) -> &mut ReplyBatch {
        &mut self.open
    }

    /// Sends what was gathered and wakes the router if it is parked; false when there was nothing. Never has to wait.
    ///
    /// # Panics
    /// When there are more replies than unanswered requests.
    pub fn flush(&mut self) -> bool {
        let count = self.open.heads.len();
        if count == 0 {
            return false;
        }
        assert!(count <= self.unanswered, "one reply for each request");
        self.unanswered -= count;
        let next = self.empty_replies.pop().unwrap_or_default();
        let full = std::mem::replace(&mut self.open, next);
        self.replies.push(full).expect("a slot for each credit");
        self.router_bell.ring();
        true
    }

    /// Requests received and not yet answered through [`RouterLink::flush`].
    pub fn unanswered(&self) -> usize {
        self.unanswered
    }

    /// Whether [`RouterLink::receive`] would return something.
    pub fn has_requests(&self) -> bool {
        !self.requests.is_empty()
    }

    /// Whether the router's end is gone.
    pub fn is_abandoned(&self) -> bool {
        self.requests.is_abandoned()
    }
}

/// One shard's end of the rings between all shards, for transactions that span several of them.
///
/// A ring that is full does not make its sender wait: what does not fit waits in a queue at the sender, in order, and
/// goes out with a later [`ShardMesh::flush`]. The receiver wakes a sender that has such a queue once it has made room.
#[derive(Debug)]
pub struct ShardMesh<T> {
    outboxes: Vec<Outbox<T>>,
    inboxes: Vec<Inbox<T>>,
    overflow: usize,
    overflow_max: usize,
    next_inbox: usize,
}

#[derive(Debug)]
struct Outbox<T> {
    ring: Producer<Box<T>>,
    waiting: VecDeque<Box<T>>,
    /// Set while `waiting` holds something: asks the receiver for a wake-up when it made room.
    starved: Arc<AtomicBool>,
    receiver_bell: Arc<Doorbell>,
    pushed: bool,
}

#[derive(Debug)]
struct Inbox<T> {
    ring: Consumer<Box<T>>,
    starved: Arc<AtomicBool>,
    sender_bell: Arc<Doorbell>,
    popped: bool,
}

/// The ends of a mesh between `bells.len()` shards: `ring_slots` messages on each way and at most `overflow_max` more
/// waiting at each sender, which is the number of messages that the transactions admitted there can have under way.
///
/// # Panics
/// When `ring_slots` is 0.
pub fn mesh<T: Send>(bells: &[Arc<Doorbell>], ring_slots: usize, overflow_max: usize) -> Vec<ShardMesh<T>> {
    assert!(ring_slots > 0, "a ring without slots carries nothing");
    let mut inboxes: Vec<Vec<Inbox<T>>> = bells.iter().map(|_| Vec::with_capacity(bells.len())).collect();
    let mut outboxes: Vec<Vec<Outbox<T>>> = Vec::with_capacity(bells.len());
    for sender_bell in bells {
        let ways = bells.iter().zip(inboxes.iter_mut()).map(|(receiver_bell, inbox)| {
            let (producer, consumer) = RingBuffer::new(ring_slots);
            let starved = Arc::new(AtomicBool::new(false));
            inbox.push(Inbox {
                ring: consumer,
                starved: Arc::clone(&starved),
                sender_bell: Arc::clone(sender_bell),
                popped: false,
            });
            let receiver_bell = Arc::clone(receiver_bell);
            Outbox { ring: producer, waiting: VecDeque::new(), starved, receiver_bell, pushed: false }
        });
        outboxes.push(ways.collect());
    }
    let ends = outboxes.into_iter().zip(inboxes);
    ends.map(|(outboxes, inboxes)| ShardMesh { outboxes, inboxes, overflow: 0, overflow_max, next_inbox: 0 })
        .collect()
}

impl<T: Send> ShardMesh<T> {
    /// Queues a message for shard `to` (this shard's own number is allowed), behind those queued before it. The receiver
    /// hears of it at the next [`ShardMesh::flush`].
    ///
    /// # Panics
    /// When more than `overflow_max` messages wait: then more transactions were admitted than agreed.
    pub fn send(&mut self, to: usize, message: Box<T>) {
        let outbox = &mut self.outboxes[to];
        if outbox.waiting.is_empty() {
            match outbox.ring.push(message) {
                Ok(()) => {
                    outbox.pushed = true;
                    return;
                }
                Err(rtrb::PushError::Full(message)) => outbox.waiting.push_back(message),
            }
        } else {
            outbox.waiting.push_back(message);
        }
        self.overflow += 1;
        assert!(
            self.overflow <= self.overflow_max,
            "more messages than admitted transactions can have under way"
        );
    }

    /// Moves on what waits for room and wakes the receivers of everything sent since the last flush.
    pub fn flush(&mut self) {
        for outbox in &mut self.outboxes {
            if !outbox.waiting.is_empty() {
                self.overflow -= outbox.advance();
            }
            if std::mem::take(&mut outbox.pushed) {
                outbox.receiver_bell.ring();
            }
        }
    }

    /// The next message with the number of its sender, taking turns among the senders. To be called until it returns
    /// `None`: that call wakes the senders for whom room was made.
    pub fn receive(&mut self) -> Option<(usize, Box<T>)> {
        let count = self.inboxes.len();
        for _ in 0..count {
            let from = self.next_inbox;
            self.next_inbox = (from + 1) % count;
            let inbox = &mut self.inboxes[from];
            if let Ok(message) = inbox.ring.pop() {
                inbox.popped = true;
                return Some((from, message));
            }
        }
        self.wake_starved();
        None
    }

    /// Whether [`ShardMesh::receive`] would return a message.
    pub fn has_messages(&self) -> bool {
        self.inboxes.iter().any(|inbox| !inbox.ring.is_empty())
    }

    /// Whether [`ShardMesh::flush`] would move a waiting message: to be asked before parking, like the inboxes.
    pub fn can_advance(&self) -> bool {
        self.overflow > 0 && self.outboxes.iter().any(|o| !o.waiting.is_empty() && !o.ring.is_full())
    }

    /// Messages that wait at this sender because their ring was full.
    pub fn overflow(&self) -> usize {
        self.overflow
    }

    fn wake_starved(&mut self) {
        if !self.inboxes.iter().any(|inbox| inbox.popped) {
            return;
        }
        // Pairs with the fence in `Outbox::advance`: either the sender sees the room or this side sees its flag.
        fence(Ordering::SeqCst);
        for inbox in &mut self.inboxes {
            if std::mem::take(&mut inbox.popped) && inbox.starved.load(Ordering::Relaxed) {
                inbox.sender_bell.ring();
            }
        }
    }
}

impl<T> Outbox<T> {
    /// Moves waiting messages into the ring; returns how many.
    fn advance(&mut self) -> usize {
        let mut moved = self.fill();
        let starved = !self.waiting.is_empty();
        self.starved.store(starved, Ordering::Relaxed);
        if starved {
            // Room that was made before the receiver could see the flag is found here.
            fence(Ordering::SeqCst);
            moved += self.fill();
        }
        self.pushed |= moved > 0;
        moved
    }

    fn fill(&mut self) -> usize {
        let mut moved = 0;
        while let Some(message) = self.waiting.pop_front() {
            if let Err(rtrb::PushError::Full(message)) = self.ring.push(message) {
                self.waiting.push_front(message);
                break;
            }
            moved += 1;
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shards::batch::{ReplyKind, RequestHead};
    use shards::ids::{KeyHash, Millis, Token};

    fn ask(link: &mut ShardLink, token: u64) {
        let head =
            RequestHead { token: Token(token), hash: KeyHash(0), deadline: Millis(0), start: 0, length: 0 };
        link.batch().heads.push(head);
    }

    fn pair(outstanding_max: usize) -> (ShardLink, RouterLink) {
        link(outstanding_max, Doorbell::new().unwrap(), Doorbell::new().unwrap())
    }

    #[test]
    fn credits_bound_both_directions() {
        let (mut router, mut shard) = pair(3);
        for token in 0..3 {
            ask(&mut router, token);
            assert!(router.flush());
        }
        assert_eq!((router.room(), router.outstanding()), (0, 3));
        assert!(!router.flush(), "nothing gathered");
        for _ in 0..3 {
            let batch = shard.receive().unwrap();
            let token = batch.heads[0].token;
            shard.batch().push(token, ReplyKind::Ok, |_| {});
            assert!(shard.flush(), "each reply in a batch of its own still has a slot");
            shard.recycle(batch);
        }
        assert!(shard.receive().is_none());
        assert_eq!(shard.unanswered(), 0);
        assert!(router.has_replies());
        for token in 0..3 {
            let batch = router.receive().unwrap();
            assert_eq!(batch.heads[0].token, Token(token));
            router.recycle(batch);
        }
        assert_eq!(router.room(), 3);
        assert!(!router.has_replies());
    }

    #[test]
    fn boxes_come_back_empty_and_with_their_memory() {
        let (mut router, mut shard) = pair(2);
        router.batch().bytes.reserve(5000);
        ask(&mut router, 1);
        router.flush();
        let batch = shard.receive().unwrap();
        let address = std::ptr::from_ref(&*batch);
        shard.recycle(batch);
        shard.batch().push(Token(1), ReplyKind::Ok, |_| {});
        shard.flush();
        ask(&mut router, 2);
        router.flush();
        assert_eq!(std::ptr::from_ref(&*router.open), address);
        assert!(router.batch().heads.is_empty());
        assert!(router.batch().bytes.capacity() >= 5000);
    }

    #[test]
    #[should_panic(expected = "a request without a credit")]
    fn a_request_without_a_credit_is_a_bug() {
        let (mut router, _shard) = pair(1);
        ask(&mut router, 1);
        ask(&mut router, 2);
        router.flush();
    }

    #[test]
    fn a_full_mesh_ring_overflows_in_order_and_its_sender_is_woken() {
        let bells = [Doorbell::new().unwrap(), Doorbell::new().unwrap()];
        let mut ends = mesh::<u32>(&bells, 2, 10);
        let mut right = ends.pop().unwrap();
        let mut left = ends.pop().unwrap();
        for message in 0..7 {
            left.send(1, Box::new(message));
        }
        left.send(0, Box::new(100));
        left.flush();
        assert_eq!(left.overflow(), 5);
        assert_eq!(left.receive().map(|(from, message)| (from, *message)), Some((0, 100)));
        assert!(left.receive().is_none());
        let mut seen = Vec::new();
        while seen.len() < 7 {
            bells[0].prepare_park();
            while let Some((from, message)) = right.receive() {
                assert_eq!(from, 0);
                seen.push(*message);
            }
            if seen.len() < 7 {
                assert!(!bells[0].ring(), "the receiver has woken the starved sender");
                assert!(left.can_advance());
            }
            bells[0].cancel_park();
            left.flush();
        }
        assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(left.overflow(), 0);
    }

    #[test]
    fn a_mesh_carries_everything_between_threads() {
        let bells = [Doorbell::new().unwrap(), Doorbell::new().unwrap()];
        let mut ends = mesh::<u64>(&bells, 4, 5_000);
        let mut right = ends.pop().unwrap();
        let mut left = ends.pop().unwrap();
        let sender = std::thread::spawn(move || {
            for message in 0..5_000 {
                left.send(1, Box::new(message));
                left.flush();
            }
            while left.overflow() > 0 {
                left.flush();
                std::thread::yield_now();
            }
        });
        let mut next = 0;
        while next < 5_000 {
            match right.receive() {
                Some((0, message)) => {
                    assert_eq!(*message, next);
                    next += 1;
                }
                Some(_) => panic!("only the left end sends"),
                None => std::thread::yield_now(),
            }
        }
        sender.join().unwrap();
    }
}
