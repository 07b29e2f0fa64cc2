//! A shard without a replica of its group: it has no log and no data, refuses every request as not leading, hands messages
//! on to other shards of its node, and waits for the meta state to give it a replica.

use super::{Clients, DriverSettings, PeerSide};
use crate::clock::Clock;
use crate::doorbell::Doorbell;
use crate::fatal::Fatal;
use crate::links::{RouterLink, ShardMesh};
use crate::service::Host;
use shards::batch::{NotLeader, ReplyBatch, RequestBatch};
use shards::event::Event;
use shards::ids::{GroupId, Millis, ReplicaId};
use shards::txn::message::GroupMessage;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

/// What a shard's thread has whether or not it holds a replica.
pub struct Seat {
    /// Which shard of this node.
    pub number: u32,
    /// Its group.
    pub group: GroupId,
    /// Links to the routers.
    pub routers: Vec<RouterLink>,
    /// Rings to the other shards.
    pub mesh: ShardMesh<GroupMessage>,
    /// Wakes the thread.
    pub bell: Arc<Doorbell>,
    /// The thread's time.
    pub clock: Clock,
    /// Times and bounds.
    pub settings: DriverSettings,
    /// Links to other nodes; none for a node that is alone for good.
    pub peers: Option<PeerSide>,
    /// A replica whose log is lost: the node waits for another one in its place. 0 for none.
    pub lost: ReplicaId,
    /// The clients that the thread serves itself, if it does.
    pub clients: Option<Box<Clients>>,
}

/// Time between two words about a lost replica, in milliseconds.
const LOST_TOLD_EVERY_MS: u64 = 1000;

/// How a vacant shard's time ended.
pub(super) enum Vacated {
    /// The process stops.
    Stopped,
    /// The meta state gives the node a replica of the group.
    Appointed(Box<Seat>),
}

/// Refuses and hands on until there is a replica, or the process stops.
///
/// # Errors
/// When the thread cannot sleep.
pub(super) fn wait_for_replica(mut seat: Box<Seat>, stop: &impl Fn() -> bool) -> Result<Vacated, Fatal> {
    let mut events = Vec::new();
    tracing::info!(shard = seat.number, "this node has no replica of the group: requests are sent elsewhere");
    let mut next_word = Millis(0);
    loop {
        let (busy, serves) = seat.turn_thread(&mut events)?;
        let appointed =
            seat.peers.as_ref().and_then(PeerSide::appointment).map(|appointment| appointment.replica);
        if appointed.is_some_and(|replica| replica != seat.lost) {
            return Ok(Vacated::Appointed(seat));
        }
        let now = seat.clock.now();
        if appointed.is_some() && now >= next_word {
            next_word = Millis(now.0 + LOST_TOLD_EVERY_MS);
            let Seat { peers, mesh, lost, .. } = &mut *seat;
            peers.as_mut().expect("somebody appointed it").tell_lost(*lost, mesh);
        }
        if stop() {
            return Ok(Vacated::Stopped);
        }
        if busy || serves {
            continue;
        }
        seat.bell.prepare_park();
        if !seat.has_work() && !stop() {
            seat.wait(Duration::from_millis(seat.settings.tick_ms))?;
        }
        seat.bell.cancel_park();
    }
}

/// A vacant seat as the host of its thread's clients.
struct Hosting<'a> {
    seat: &'a mut Seat,
    events: &'a mut Vec<Event>,
    busy: bool,
}

impl Host for Hosting<'_> {
    fn turn(&mut self) {
        self.busy |= self.seat.turn(self.events);
    }

    fn has_work(&mut self) -> bool {
        self.seat.has_work()
    }
}

impl Seat {
    /// What besides the bell must end the thread's sleep.
    pub(super) fn beside(&self) -> Option<RawFd> {
        self.peers.as_ref().map(|peers| peers.fd().as_raw_fd())
    }

    /// One turn of the thread, as the driver's: whether anything was done, and whether clients were served.
    fn turn_thread(&mut self, events: &mut Vec<Event>) -> Result<(bool, bool), Fatal> {
        let Some(mut clients) = self.clients.take() else { return Ok((self.turn(events), false)) };
        let (beside, sleep_ms_max) = (self.beside(), self.settings.tick_ms);
        let mut hosting = Hosting { seat: self, events, busy: false };
        let served = clients.turn(&mut hosting, beside, sleep_ms_max);
        let busy = hosting.busy;
        self.clients = Some(clients);
        Ok((busy, served?))
    }

    /// Sleeps until something happens or the time is over.
    pub(super) fn wait(&self, at_most: Duration) -> Result<(), Fatal> {
        let waited = match &self.peers {
            Some(peers) => peers.wait(&self.bell, at_most),
            None => self.bell.wait(at_most),
        };
        waited.map(drop).map_err(|error| Fatal::ThreadLost {
            thread: format!("shard {}", self.number),
            detail: format!("its doorbell cannot be waited for: {error}"),
        })
    }

    fn turn(&mut self, events: &mut Vec<Event>) -> bool {
        let mut busy = false;
        for link in &mut self.routers {
            while let Some(batch) = link.receive() {
                refuse(&batch, link.batch());
                link.recycle(batch);
                link.flush();
                busy = true;
            }
        }
        // A message for this group is for its leader, which is elsewhere; who sent it says it again.
        while self.mesh.receive().is_some() {}
        if let Some(peers) = &mut self.peers {
            peers.gather(events, &mut self.mesh);
        }
        busy |= !events.is_empty();
        // Without an engine there is nobody to hear them; what the meta state says is looked up.
        events.clear();
        busy
    }

    fn has_work(&self) -> bool {
        self.routers.iter().any(RouterLink::has_requests)
            || self.mesh.has_messages()
            || self.peers.as_ref().is_some_and(PeerSide::has_work)
            || self.clients.as_ref().is_some_and(|clients| clients.want_to_open())
    }
}

/// Answers every request of a batch as not leading, with what is needed to send it elsewhere.
fn refuse(batch: &RequestBatch, replies: &mut ReplyBatch) {
    for head in &batch.heads {
        let (hash, deadline, record) = (head.hash, head.deadline, batch.record(head));
        let refused = NotLeader { leader: ReplicaId(0), term: 0, hash, deadline, record };
        replies.push_not_leader(head.token, &refused);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shards::batch::{ReplyKind, RequestHead};
    use shards::ids::{KeyHash, Millis, Token};

    #[test]
    fn a_refused_request_comes_back_whole() {
        let head =
            RequestHead { token: Token(7), hash: KeyHash(9), deadline: Millis(11), start: 2, length: 3 };
        let batch = RequestBatch { bytes: b"xxabcyy".to_vec(), heads: vec![head], ..RequestBatch::default() };
        let mut replies = ReplyBatch::default();
        refuse(&batch, &mut replies);
        let reply = replies.heads[0];
        assert_eq!((reply.token, reply.kind), (Token(7), ReplyKind::NotLeader));
        let refused = NotLeader::decode(replies.body(&reply)).unwrap();
        assert_eq!((refused.hash, refused.deadline, refused.record), (KeyHash(9), Millis(11), &b"abc"[..]));
    }
}
