//! The connections of one shard to the same shard of other nodes: raft messages, and messages between groups.
//!
//! Owned by the shard's thread, which never waits for them. One connection for each node and direction: this side dials
//! those it sends on (helper threads do that), and reads those that others made. What goes to a node gathers in a buffer
//! and leaves with one write a turn; what a full or broken link cannot take is dropped and told as unreachable, since raft
//! says again what matters. An epoll instance says which connections have something; the shard's sleep watches it.
//!
//! Invariants. A message is handed on only when it is for this replica and from a replica of the node at the other end. A
//! link holds at most [`PENDING_BYTES_MAX`] and one message. Nothing here decides who leads or when to try again in raft.

use super::counters::count;
use super::hub::{Hub, News};
use super::socket::Socket;
use crate::clock::{self, Clock};
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event as Readiness, EventData, EventFlags};
use shards::event::Event;
use shards::ids::{GroupId, NodeNumber, ReplicaId};
use shards::log::payload::PayloadBuffer;
use shards::peer::frame::{FrameReader, FrameWriter, Kind};
use shards::peer::group_message::{decode_group, encode_group};
use shards::peer::raft_message::{RaftMessage, decode_raft, encode_raft};
use shards::txn::message::GroupMessage;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Receiver;

/// Bytes that may wait on one link before further messages are dropped: what a follower takes in a few round trips.
const PENDING_BYTES_MAX: usize = 32 << 20;
/// Messages that wait while a link is being made.
const EARLY_MAX: usize = 256;
/// Bytes read from one link in one turn, so that one follower's flood does not starve the shard.
const READ_BYTES_PER_TURN: usize = 4 << 20;
/// Room asked for at once.
const READ_BYTES: usize = 256 << 10;
/// Memory that a quiet link keeps.
const KEEP_BYTES: usize = 1 << 20;
/// Connections that are told of at once.
const READY_MAX: usize = 64;
/// Pause before a link is made anew: first and longest, in milliseconds.
const RETRY_MS: (u64, u64) = (20, 500);

/// See the module's head.
pub struct RaftLinks {
    hub: Arc<Hub>,
    group: GroupId,
    /// This node's replica of the group; 0 while there is none.
    replica: ReplicaId,
    inbox: Receiver<News>,
    epoll: OwnedFd,
    out: Vec<OutLink>,
    incoming: Vec<InLink>,
    ready: Vec<Readiness>,
    next_key: u64,
    clock: Clock,
    /// What came of a pull, until it is taken.
    pulled: Option<(u64, Result<(), String>)>,
    /// What happened to links since the last look.
    events: Vec<Event>,
    scratch: PayloadBuffer,
}

/// What waits for a link that is not there yet.
enum Early {
    Raft(RaftMessage),
    Group(GroupMessage),
}

enum State {
    /// Not before this time of the links' clock.
    Down {
        retry_ms: u64,
    },
    /// Asked for.
    Dialling,
    Up(UpLink),
}

struct UpLink {
    stream: TcpStream,
    writer: FrameWriter,
    key: u64,
    /// The socket took less than there was: epoll says when it has room.
    is_full: bool,
}

struct OutLink {
    node: NodeNumber,
    state: State,
    failures: u32,
    pending: Vec<u8>,
    sent: usize,
    early: VecDeque<Early>,
    /// The replica that was last sent something, for whom a loss is told.
    replica: ReplicaId,
    is_lossy: bool,
}

struct InLink {
    node: NodeNumber,
    /// A frame of this session has come. Only who has heard the welcome can make one, so until then it may be somebody who
    /// plays an old conversation again.
    is_proven: bool,
    stream: TcpStream,
    reader: FrameReader,
    key: u64,
}

impl RaftLinks {
    /// The links of a group's shard; `inbox` is the other end of its door.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub fn new(hub: Arc<Hub>, group: GroupId, inbox: Receiver<News>) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        Ok(Self {
            hub,
            group,
            replica: ReplicaId(0),
            inbox,
            epoll,
            out: Vec::new(),
            incoming: Vec::new(),
            ready: Vec::with_capacity(READY_MAX),
            next_key: 0,
            clock: Clock::start(),
            pulled: None,
            events: Vec::new(),
            scratch: PayloadBuffer::new(),
        })
    }

    /// What is readable when a link has something, to be slept on beside the doorbell.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// What the threads of this room share.
    pub fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// From now on messages for this replica are taken; 0 for none.
    pub fn serve_replica(&mut self, replica: ReplicaId) {
        self.replica = replica;
    }

    /// Whether [`RaftLinks::receive`] has something that no file descriptor tells of.
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// What came of a pull that this shard asked for: the index of the snapshot, or why there is none.
    pub fn take_pulled(&mut self) -> Option<(u64, Result<(), String>)> {
        self.pulled.take()
    }

    /// Queues a raft message for the node of its receiver.
    pub fn send_raft(&mut self, message: RaftMessage) {
        let to = ReplicaId(message.to);
        let now_ms = self.now_ms();
        let at = self.position_of(to.node());
        let (link, scratch) = (&mut self.out[at], &mut self.scratch);
        link.replica = to;
        if !link.can_take(now_ms) {
            return self.drop_for(to.node());
        }
        match &mut link.state {
            State::Up(up) => {
                if encode_raft(&message, scratch) {
                    up.writer.push(&mut link.pending, Kind::Raft, scratch);
                }
            }
            State::Dialling | State::Down { .. } => self.wait_early(to.node(), Early::Raft(message)),
        }
    }

    /// Queues a message between groups for the shard of this number on a node, which hands it on there.
    pub fn send_group(&mut self, node: NodeNumber, message: GroupMessage) {
        let now_ms = self.now_ms();
        let link = self.link_to(node);
        if !link.can_take(now_ms) {
            return self.drop_for(node);
        }
        match &mut link.state {
            State::Up(up) => {
                let writer = &mut up.writer;
                writer.push_with(&mut link.pending, Kind::Group, |out| encode_group(&message, out));
            }
            State::Dialling | State::Down { .. } => self.wait_early(node, Early::Group(message)),
        }
    }

    /// Says something to the leader of the group that it is for; lost when nobody is known to lead it.
    pub fn say(&mut self, message: GroupMessage, events: &mut Vec<Event>, relayed: &mut Vec<GroupMessage>) {
        match self.hub.view.leader(message.to).node {
            NodeNumber(0) => {}
            node if node != self.hub.me => self.send_group(node, message),
            _ if message.to == self.group => events.push(Event::Message(message)),
            _ => relayed.push(message),
        }
    }

    /// Writes what was queued: at most one write a link.
    pub fn flush(&mut self) {
        for at in 0..self.out.len() {
            if self.out[at].has_pending() && !self.out[at].is_full() {
                self.write(at);
            }
        }
    }

    /// Takes what came: events for the engine, messages for other groups of this node, news of helpers. One look at
    /// epoll, and reads where it says so.
    pub fn receive(&mut self, events: &mut Vec<Event>, relayed: &mut Vec<GroupMessage>) {
        while let Ok(news) = self.inbox.try_recv() {
            match news {
                News::Arrived(socket) => self.arrived(socket),
                News::Dialled(node, result) => self.dialled(node, result),
                News::Leader(group) => events.push(Event::Leader(group)),
                News::Meta(meta) => events.push(Event::Meta(meta)),
                News::Resign(by) => events.push(Event::Resign(by)),
                News::Pulled(index, result) => self.pulled = Some((index, result)),
                News::Say(message) => self.say(message, events, relayed),
            }
        }
        if !self.incoming.is_empty() || self.out.iter().any(OutLink::is_up) {
            self.look(events, relayed);
        }
        events.append(&mut self.events);
    }

    fn look(&mut self, events: &mut Vec<Event>, relayed: &mut Vec<GroupMessage>) {
        self.ready.clear();
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Interrupted or not, the next turn looks again.
        if epoll::wait(&self.epoll, spare_capacity(&mut self.ready), Some(&at_once)).is_err() {
            return;
        }
        for at in 0..self.ready.len() {
            let key = self.ready[at].data.u64();
            if let Some(link) = self.incoming.iter().position(|link| link.key == key) {
                if self.read(link, events, relayed) {
                    self.settle(link);
                } else {
                    self.incoming.swap_remove(link);
                }
            } else if let Some(link) = self.out.iter().position(|link| link.key() == Some(key)) {
                let flags = self.ready[at].flags;
                if flags.intersects(EventFlags::ERR | EventFlags::HUP | EventFlags::RDHUP) {
                    self.broke(link, "closed by the other side");
                } else {
                    self.has_room(link);
                }
            }
        }
    }

    /// Reads one link; false when it is to be closed.
    fn read(&mut self, at: usize, events: &mut Vec<Event>, relayed: &mut Vec<GroupMessage>) -> bool {
        let mut taken = 0;
        while taken < READ_BYTES_PER_TURN {
            let link = &mut self.incoming[at];
            let space = link.reader.space(READ_BYTES);
            let room = space.len();
            let bytes = match link.stream.read(space) {
                Ok(0) => return false,
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return false,
            };
            link.reader.filled(bytes);
            taken += bytes;
            if !self.take_frames(at, events, relayed) {
                return false;
            }
            if bytes < room {
                break;
            }
        }
        self.incoming[at].reader.shrink(KEEP_BYTES);
        true
    }

    /// Takes the frames that have come whole; false when the other side does what it must not.
    fn take_frames(&mut self, at: usize, events: &mut Vec<Event>, relayed: &mut Vec<GroupMessage>) -> bool {
        let InLink { node, reader, is_proven, .. } = &mut self.incoming[at];
        loop {
            let next = reader.next();
            *is_proven |= matches!(next, Ok(Some(_)));
            let refused = match next {
                Ok(None) => return true,
                Ok(Some(frame)) if frame.kind == Kind::Raft => {
                    match decode_raft(frame.payload, &mut self.scratch) {
                        Ok(message) => {
                            let is_mine = ReplicaId(message.to) == self.replica
                                && ReplicaId(message.from).node() == *node;
                            if is_mine {
                                events.push(Event::Raft(Box::new(message)));
                            } else {
                                count(&self.hub.counters.misdirected);
                            }
                            continue;
                        }
                        Err(error) => error.to_string(),
                    }
                }
                Ok(Some(frame)) if frame.kind == Kind::Group => {
                    match decode_group(frame.payload, self.hub.groups()) {
                        Ok(message) if message.to == self.group => {
                            events.push(Event::Message(message));
                            continue;
                        }
                        Ok(message) => {
                            relayed.push(message);
                            continue;
                        }
                        Err(error) => error.to_string(),
                    }
                }
                Ok(Some(frame)) => format!("a frame of kind {:?} on a raft link", frame.kind),
                Err(error) => {
                    self.hub.counters.frame_error(&error);
                    if *is_proven {
                        tracing::warn!(
                            shard = self.group.0,
                            node = node.0,
                            "a raft link was closed: {error}"
                        );
                    } else {
                        // Who plays old conversations again must not fill the log; the figures tell.
                        tracing::debug!(
                            shard = self.group.0,
                            node = node.0,
                            "a raft link was closed: {error}"
                        );
                    }
                    return false;
                }
            };
            count(&self.hub.counters.bad_payloads);
            tracing::warn!(shard = self.group.0, node = node.0, "a raft link was closed: {refused}");
            return false;
        }
    }

    /// A node that dials again has given its old connection up, which goes once the new one is known to be the node's.
    fn settle(&mut self, at: usize) {
        let InLink { node, key, is_proven, .. } = self.incoming[at];
        if is_proven {
            self.incoming.retain(|link| link.node != node || link.key >= key);
        }
    }

    fn arrived(&mut self, socket: Socket) {
        let Socket { stream, reader, node, .. } = socket;
        // Two of a node at most: one that speaks, and one that has not yet.
        self.incoming.retain(|link| link.node != node || link.is_proven);
        let key = self.new_key();
        if let Err(error) = self.watch(&stream, key, EventFlags::IN) {
            return tracing::warn!(shard = self.group.0, node = node.0, "a raft link was not taken: {error}");
        }
        self.incoming.push(InLink { node, is_proven: false, stream, reader, key });
        // Frames may have come with the hello, and epoll tells only of what is still in the socket.
        let (mut events, mut relayed) = (Vec::new(), Vec::new());
        let at = self.incoming.len() - 1;
        if self.take_frames(at, &mut events, &mut relayed) {
            self.settle(at);
        } else {
            self.incoming.swap_remove(at);
        }
        // Messages between groups that came with a hello are few, and their senders say them again.
        self.events.append(&mut events);
    }

    fn dialled(&mut self, node: NodeNumber, result: Result<Socket, String>) {
        let at = self.position_of(node);
        let socket = match result {
            Ok(socket) => socket,
            Err(text) => return self.broke(at, &text),
        };
        let key = self.new_key();
        let watched = self.watch(&socket.stream, key, EventFlags::RDHUP);
        if let Err(error) = watched {
            return self.broke(at, &error.to_string());
        }
        let link = &mut self.out[at];
        tracing::debug!(shard = self.group.0, node = node.0, "a raft link is up");
        link.state = State::Up(UpLink { stream: socket.stream, writer: socket.writer, key, is_full: false });
        link.failures = 0;
        for early in std::mem::take(&mut link.early) {
            match early {
                Early::Raft(message) => self.send_raft(message),
                Early::Group(message) => self.send_group(node, message),
            }
        }
        self.flush();
    }

    fn write(&mut self, at: usize) {
        let link = &mut self.out[at];
        let State::Up(up) = &mut link.state else { return };
        match up.stream.write(&link.pending[link.sent..]) {
            Ok(bytes) => link.sent += bytes,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return self.broke(at, &error.to_string()),
        }
        if link.sent < link.pending.len() {
            if link.sent >= KEEP_BYTES {
                link.pending.drain(..link.sent);
                link.sent = 0;
            }
            up.is_full = true;
            let flags = EventFlags::RDHUP | EventFlags::OUT;
            if let Err(error) = epoll::modify(&self.epoll, &up.stream, EventData::new_u64(up.key), flags) {
                self.broke(at, &error.to_string());
            }
            return;
        }
        link.pending.clear();
        link.sent = 0;
        link.pending.shrink_to(KEEP_BYTES);
    }

    /// A link that was full can take something again.
    fn has_room(&mut self, at: usize) {
        let State::Up(up) = &mut self.out[at].state else { return };
        up.is_full = false;
        if let Err(error) =
            epoll::modify(&self.epoll, &up.stream, EventData::new_u64(up.key), EventFlags::RDHUP)
        {
            return self.broke(at, &error.to_string());
        }
        self.write(at);
    }

    /// A link is no more: what was on its way may be lost.
    fn broke(&mut self, at: usize, text: &str) {
        let now_ms = self.now_ms();
        let link = &mut self.out[at];
        if link.failures == 0 {
            tracing::info!(shard = self.group.0, node = link.node.0, "a raft link is down: {text}");
        }
        let pause_ms = (RETRY_MS.0 << link.failures.min(8)).min(RETRY_MS.1);
        // Half of it by chance, so that the shards of a node do not all call at once.
        link.state =
            State::Down { retry_ms: now_ms + pause_ms / 2 + clock::random_u64() % (pause_ms / 2 + 1) };
        link.failures = link.failures.saturating_add(1);
        link.pending = Vec::new();
        link.sent = 0;
        link.early.clear();
        link.is_lossy = false;
        if link.replica.0 != 0 {
            self.events.push(Event::Unreachable(link.replica));
        }
    }

    fn wait_early(&mut self, node: NodeNumber, message: Early) {
        let group = self.group;
        let link = self.link_to(node);
        if matches!(link.state, State::Down { .. }) {
            link.state = State::Dialling;
            self.hub.dial_raft(node, group);
        }
        let link = self.link_to(node);
        if link.early.len() < EARLY_MAX {
            link.early.push_back(message);
        } else {
            self.drop_for(node);
        }
    }

    /// A message for a node is lost; told once until the link can take something again.
    fn drop_for(&mut self, node: NodeNumber) {
        self.hub.dropped();
        let link = self.link_to(node);
        let replica = link.replica;
        if !std::mem::replace(&mut link.is_lossy, true) && replica.0 != 0 {
            self.events.push(Event::Unreachable(replica));
        }
    }

    fn watch(&self, stream: &TcpStream, key: u64, flags: EventFlags) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        epoll::add(&self.epoll, stream, EventData::new_u64(key), flags)?;
        Ok(())
    }

    fn new_key(&mut self) -> u64 {
        self.next_key += 1;
        self.next_key
    }

    fn now_ms(&self) -> u64 {
        self.clock.elapsed_us() / 1000
    }

    fn position_of(&mut self, node: NodeNumber) -> usize {
        if let Some(at) = self.out.iter().position(|link| link.node == node) {
            return at;
        }
        self.out.push(OutLink {
            node,
            state: State::Down { retry_ms: 0 },
            failures: 0,
            pending: Vec::new(),
            sent: 0,
            early: VecDeque::new(),
            replica: ReplicaId(0),
            is_lossy: false,
        });
        self.out.len() - 1
    }

    fn link_to(&mut self, node: NodeNumber) -> &mut OutLink {
        let at = self.position_of(node);
        &mut self.out[at]
    }
}

impl OutLink {
    fn is_up(&self) -> bool {
        matches!(self.state, State::Up(_))
    }

    fn is_full(&self) -> bool {
        matches!(&self.state, State::Up(up) if up.is_full)
    }

    fn key(&self) -> Option<u64> {
        match &self.state {
            State::Up(up) => Some(up.key),
            State::Down { .. } | State::Dialling => None,
        }
    }

    fn has_pending(&self) -> bool {
        self.sent < self.pending.len()
    }

    /// Whether a message may be queued now. One is always taken by an empty link, however large.
    fn can_take(&mut self, now_ms: u64) -> bool {
        let can = match &self.state {
            State::Up(_) => self.pending.len() - self.sent <= PENDING_BYTES_MAX,
            State::Dialling => true,
            State::Down { retry_ms } => now_ms >= *retry_ms,
        };
        self.is_lossy &= !can;
        can
    }
}
