//! Forwarding: the thread that carries requests to the nodes that lead, and their requests to this node's shards.
//!
//! It exists in a cluster only. To this node's routers it is the far end of one more link for each group; to this node's
//! shards it is the last router. It runs one turn after another, parks in its doorbell between them, and waits for nothing
//! else: connections are dialled by helper threads and accepted by the listener's. Forwarded requests are never forwarded
//! again, since what a shard refuses goes back where it came from.
//!
//! | file | duty |
//! |---|---|
//! | `outgoing` | batches of this node's routers, and what becomes of them when a connection breaks |
//! | `incoming` | batches of other nodes' routers, and their origins and views |
//! | `codec` | both as bytes |
//! | `stream` | one connection |

mod codec;
mod incoming;
mod outgoing;
mod stream;
#[cfg(test)]
mod tests;

use crate::clock::Clock;
use crate::doorbell::Doorbell;
use crate::links::{RouterLink, ShardLink};
use incoming::Incoming;
pub use incoming::IncomingCounters;
pub use outgoing::OutgoingCounters;
use outgoing::{Channel, Routers};
use rustix::event::epoll;
use shards::ids::{Millis, NodeNumber};
use shards::peer::frame::{FrameReader, FrameWriter};
use std::collections::BTreeMap;
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;
use stream::Stream;

/// Values from this size on stay apart from the reply that tells them.
const SHARED_BYTES_MIN: usize = 16 << 10;
/// Replies of so many bytes are sent at once instead of at the end of the turn.
const REPLIES_BYTES_MAX: usize = 1 << 20;
/// Batches taken from one link in one turn.
const BATCHES_PER_TURN: usize = 64;
/// Events taken from the kernel at once.
const EVENTS_MAX: usize = 64;
/// Longest sleep.
const SLEEP_MS_MAX: u64 = 50;

/// The doorbell's number among the watched descriptors.
const BELL: u64 = 0;
/// Connections to nodes count from here, by the node's number; below stand those from nodes, by their place plus 1.
const OUTGOING: u64 = 1 << 32;

/// A connection between nodes whose handshake is done, for [`shards::peer::hello::Purpose::Forward`].
#[derive(Debug)]
pub struct PeerStream {
    /// The node at the other end.
    pub node: NodeNumber,
    /// The socket.
    pub socket: TcpStream,
    /// What comes; it may hold bytes that came behind the handshake.
    pub reader: FrameReader,
    /// What goes.
    pub writer: FrameWriter,
}

/// Makes connections. Called on helper threads, so it may take its time, which it bounds by a second or so.
pub trait Dial: Send + Sync {
    /// Connects to a node and does the handshake.
    ///
    /// # Errors
    /// Why there is no connection now.
    fn dial(&self, node: NodeNumber) -> io::Result<PeerStream>;
}

/// What the thread is made of.
pub struct ForwardParts {
    /// The far ends of the routers' links for remote groups, by router and group.
    pub routers: Vec<Vec<RouterLink>>,
    /// The links to this node's shards, as their last router, by group.
    pub shards: Vec<ShardLink>,
    /// The thread's bell, which all of those ring, and who sends to `accepted`.
    pub bell: Arc<Doorbell>,
    /// Makes connections.
    pub dial: Arc<dyn Dial>,
    /// Connections that other nodes made.
    pub accepted: Receiver<PeerStream>,
}

/// See the module's head.
pub struct Forward {
    routers: Routers,
    incoming: Incoming,
    channels: BTreeMap<NodeNumber, Channel>,
    bell: Arc<Doorbell>,
    dial: Arc<dyn Dial>,
    accepted: Receiver<PeerStream>,
    dialled: (Sender<Dialled>, Receiver<Dialled>),
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    clock: Clock,
    counters: OutgoingCounters,
}

type Dialled = (NodeNumber, io::Result<PeerStream>);

impl std::fmt::Debug for Forward {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forward").field("channels", &self.channels.len()).finish_non_exhaustive()
    }
}

impl Forward {
    /// Puts the thread's parts together; on the thread itself.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub fn new(parts: ForwardParts) -> io::Result<Self> {
        let ForwardParts { routers, shards, bell, dial, accepted } = parts;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        // The bell lives as long as this does.
        epoll::add(&epoll, bell.as_fd(), epoll::EventData::new_u64(BELL), epoll::EventFlags::IN)?;
        Ok(Self {
            routers,
            incoming: Incoming::new(shards),
            channels: BTreeMap::new(),
            bell,
            dial,
            accepted,
            dialled: channel(),
            epoll,
            events: Vec::with_capacity(EVENTS_MAX),
            clock: Clock::start(),
            counters: OutgoingCounters::default(),
        })
    }

    /// Turns until `stop` says so.
    ///
    /// # Errors
    /// When the kernel refuses to wait; connections that break are no error.
    pub fn run(&mut self, stop: impl Fn() -> bool) -> io::Result<()> {
        while !stop() {
            if !self.turn()? {
                self.park()?;
            }
        }
        Ok(())
    }

    /// Counts of what left and of what came.
    pub fn counters(&self) -> (OutgoingCounters, IncomingCounters) {
        (self.counters, self.incoming.counters)
    }

    /// Whether no request is under way in either direction.
    pub fn is_quiet(&self) -> bool {
        self.incoming.is_quiet() && self.routers.iter().flatten().all(|link| link.unanswered() == 0)
    }

    /// One turn of everything; whether anything happened.
    ///
    /// # Errors
    /// As [`Forward::run`].
    pub fn turn(&mut self) -> io::Result<bool> {
        let now = self.clock.now();
        let mut busy = self.look(Duration::ZERO)?;
        busy |= self.take_connections(now);
        busy |= self.take_batches();
        for (node, channel) in &mut self.channels {
            if channel.wants_dial(now) {
                dial(&self.dial, *node, &self.dialled.0, &self.bell);
            }
            busy |= channel.turn(&mut self.routers, &mut self.counters, now);
        }
        for link in self.routers.iter_mut().flatten() {
            link.flush();
        }
        busy |= self.incoming.turn(now);
        Ok(busy)
    }

    fn take_connections(&mut self, now: Millis) -> bool {
        let mut any = false;
        while let Ok((node, peer)) = self.dialled.1.try_recv() {
            any = true;
            let Some(channel) = self.channels.get_mut(&node) else { continue };
            channel.dialled(peer, now);
            if let Some(stream) = channel.stream()
                && let Err(error) = watch(&self.epoll, stream.as_fd(), OUTGOING + u64::from(node.0))
            {
                channel.dialled(Err(error), now);
            }
        }
        while let Ok(peer) = self.accepted.try_recv() {
            any = true;
            let taken = Stream::new(peer).map(|stream| self.incoming.accept(stream));
            if let Ok(Some(at)) = taken
                && let Some(stream) = self.incoming.stream(at)
                && let Err(error) = watch(&self.epoll, stream.as_fd(), 1 + at as u64)
            {
                // Unwatched it is read once a turn at least, which is slow but not wrong.
                tracing::warn!("a connection of another node is not watched: {error}");
            }
        }
        any
    }

    fn take_batches(&mut self) -> bool {
        let mut any = false;
        for (number, links) in self.routers.iter_mut().enumerate() {
            for link in links {
                for _ in 0..BATCHES_PER_TURN {
                    let Some(batch) = link.receive() else { break };
                    any = true;
                    let node = batch.node;
                    self.channels.entry(node).or_insert_with(|| Channel::new(node)).take(number, batch);
                }
            }
        }
        any
    }

    /// Takes what the kernel says of the sockets.
    fn look(&mut self, at_most: Duration) -> io::Result<bool> {
        let timeout = rustix::event::Timespec::try_from(at_most).map_err(io::Error::other)?;
        self.events.clear();
        let waited =
            epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), Some(&timeout));
        match waited {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        for event in &self.events {
            let number = event.data.u64();
            let broken = epoll::EventFlags::HUP | epoll::EventFlags::ERR | epoll::EventFlags::RDHUP;
            let flags = event.flags;
            let is_readable = flags.intersects(epoll::EventFlags::IN | broken);
            let is_writable = flags.intersects(epoll::EventFlags::OUT | broken);
            let stream = match number {
                BELL => {
                    // It is readable, so this takes the ring and returns at once.
                    self.bell.wait(Duration::ZERO)?;
                    None
                }
                OUTGOING.. => {
                    let node = NodeNumber((number - OUTGOING) as u16);
                    self.channels.get_mut(&node).and_then(Channel::stream)
                }
                place => self.incoming.stream(place as usize - 1),
            };
            if let Some(stream) = stream {
                stream.mark(is_readable, is_writable);
            }
        }
        Ok(!self.events.is_empty())
    }

    fn has_work(&self) -> bool {
        self.routers.iter().flatten().any(RouterLink::has_requests)
            || self.incoming.has_work()
            || self.channels.values().any(Channel::has_work)
    }

    /// Waits for a socket, the bell or the next deadline.
    fn park(&mut self) -> io::Result<()> {
        self.bell.prepare_park();
        let now = self.clock.now();
        if !self.take_connections(now) && !self.has_work() {
            let next = self.channels.values().filter_map(Channel::next_deadline).min();
            let longest_ms =
                next.map_or(SLEEP_MS_MAX, |next| next.0.saturating_sub(now.0).clamp(1, SLEEP_MS_MAX));
            self.look(Duration::from_millis(longest_ms))?;
        }
        self.bell.cancel_park();
        Ok(())
    }
}

/// Watches a socket; each change is told once, since streams remember it.
fn watch(epoll: &OwnedFd, socket: BorrowedFd<'_>, number: u64) -> io::Result<()> {
    let flags =
        epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
    Ok(epoll::add(epoll, socket, epoll::EventData::new_u64(number), flags)?)
}

/// Dials on a thread of its own: at most one for each node.
fn dial(dial: &Arc<dyn Dial>, node: NodeNumber, told: &Sender<Dialled>, bell: &Arc<Doorbell>) {
    let (helper, answer, ring) = (Arc::clone(dial), told.clone(), Arc::clone(bell));
    let run = move || {
        // The receiver is gone only when the thread that forwards has ended.
        drop(answer.send((node, helper.dial(node))));
        ring.ring();
    };
    let spawned = std::thread::Builder::new().name(format!("dial-{node}")).spawn(run);
    if let Err(error) = spawned {
        drop(told.send((node, Err(error))));
    }
}
