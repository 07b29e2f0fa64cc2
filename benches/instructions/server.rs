//! A whole server but for its disk, in one thread: front, router, links, shards and the encoding of the log.
//!
//! A batch of the log is durable as soon as it is encoded. Parts that are told apart in the count stand in functions that
//! are never inlined, since the counting tool sees functions only.

use crate::doorbell::Doorbell;
use crate::front::{Front, FrontSettings, Listeners, Wait};
use crate::links::{RouterLink, link};
use crate::router::{Router, RouterBoard, RouterSettings, ServerFacts, StopHandle};
use shards::consensus::group::{Append, Restored};
use shards::effect::Effects;
use shards::event::Event;
use shards::gather::topology::Topology;
use shards::ids::{GroupId, Millis, Sequence};
use shards::log::payload::PayloadBuffer;
use shards::shard::image::encode_append;
use shards::shard::{Shard, ShardConfig, ShardImage};
use shards::txn::message::GroupMessage;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

/// The clock stands still, so that nothing expires, ticks or waits.
const NOW: Millis = Millis(1_000_000);
/// Batches between a router and a shard.
const OUTSTANDING_MAX: usize = 1024;
/// Units of one call of background work, as the driver gives them.
const WORK_UNITS: usize = 256;
/// Turns without a reply after which something is wrong.
const TURNS_MAX: u64 = 1_000_000;

struct Strand {
    shard: Shard,
    link: RouterLink,
    events: Vec<Event>,
}

/// See the module's head.
pub(crate) struct Server {
    front: Front,
    router: Router,
    strands: Vec<Strand>,
    effects: Effects,
    payload: PayloadBuffer,
    messages: Vec<GroupMessage>,
    client: TcpStream,
    turns_measured: u64,
}

impl Server {
    /// A server whose shards lead, with one client.
    pub(crate) fn new(shards: u16) -> Self {
        let bell = Doorbell::new().unwrap();
        let (mut links, mut strands) = (Vec::new(), Vec::new());
        for number in 0..shards {
            let (at_router, at_shard) = link(OUTSTANDING_MAX, Arc::clone(&bell), Doorbell::new().unwrap());
            links.push(at_router);
            let mut group = Restored { replica: 1, ..Restored::default() };
            group.conf_state.voters = vec![1];
            let image = ShardImage { group, ..ShardImage::default() };
            let shard = Shard::restore(ShardConfig::new(GroupId(number.into())), image, NOW).unwrap();
            strands.push(Strand { shard, link: at_shard, events: Vec::new() });
        }
        let facts = ServerFacts {
            node_id: "node1".to_owned(),
            address: "127.0.0.1:8000".to_owned(),
            started: NOW,
            extra: Mutex::new("\"profile\":\"count\"".to_owned()),
            shard_ports: Vec::new(),
            routers: RouterBoard::new(1),
            stop: StopHandle::new(vec![Arc::clone(&bell)]),
        };
        let topology = Topology::even(shards);
        let router = Router::new(links, topology, RouterSettings::default(), Arc::new(facts), || NOW);
        let listeners = Listeners::bind(&["127.0.0.1:0".parse().unwrap()], 64).unwrap();
        let client = TcpStream::connect(listeners.addresses().unwrap()[0]).unwrap();
        client.set_nodelay(true).unwrap();
        client.set_nonblocking(true).unwrap();
        let mut server = Self {
            front: Front::open(FrontSettings::default(), listeners, bell, || NOW).unwrap(),
            router,
            strands,
            effects: Effects::default(),
            payload: PayloadBuffer::new(),
            messages: Vec::new(),
            client,
            turns_measured: 0,
        };
        for number in 0..server.strands.len() {
            server.strands[number].shard.start(NOW, &mut server.effects).unwrap();
            server.perform(number);
        }
        server.rest();
        assert!(server.strands.iter().all(|strand| strand.shard.is_ready()), "single voters lead at once");
        server
    }

    /// Turns until nothing moves: indexes are built, merges are done.
    pub(crate) fn rest(&mut self) {
        let mut idle = 0;
        while idle < 20 {
            self.turn();
            let moves =
                self.strands.iter().any(|strand| strand.shard.has_work() || !strand.events.is_empty());
            idle = if moves { 0 } else { idle + 1 };
        }
    }

    /// Turns that were counted.
    pub(crate) fn turns_measured(&self) -> u64 {
        self.turns_measured
    }

    /// Sends lines with one write and turns until each has a success.
    pub(crate) fn round(&mut self, lines: &str, count: u64, is_measured: bool) {
        self.client.write_all(lines.as_bytes()).unwrap();
        let mut replies = Vec::new();
        let mut turns = 0;
        while (memchr::memchr_iter(b'\n', &replies).count() as u64) < count {
            if is_measured {
                self.measured_turn();
            } else {
                self.turn();
            }
            let mut buffer = [0; 65_536];
            match self.client.read(&mut buffer) {
                Ok(length) => replies.extend_from_slice(&buffer[..length]),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            turns += 1;
            assert!(turns < TURNS_MAX, "no reply to {}", &lines[..lines.len().min(200)]);
        }
        for reply in replies.split_inclusive(|byte| *byte == b'\n') {
            let is_success = reply.starts_with(b"{\"status\":\"success\"") && reply.ends_with(b"}\n");
            assert!(is_success, "{}", String::from_utf8_lossy(reply));
        }
    }

    /// The function in which instructions are counted, and no other.
    #[inline(never)]
    fn measured_turn(&mut self) {
        self.turn();
        self.turns_measured += 1;
    }

    fn turn(&mut self) {
        self.front_and_router();
        for message in std::mem::take(&mut self.messages) {
            self.strands[message.to.0 as usize].events.push(Event::Message(message));
        }
        for number in 0..self.strands.len() {
            let strand = &mut self.strands[number];
            while let Some(batch) = strand.link.receive() {
                strand.events.push(Event::Requests { router: 0, batch });
            }
            if !strand.events.is_empty() {
                self.engine_step(number);
                self.perform(number);
            }
            if self.strands[number].shard.has_work() {
                self.engine_work(number);
                self.perform(number);
            }
        }
    }

    /// Socket to batch, and reply to socket.
    #[inline(never)]
    fn front_and_router(&mut self) {
        self.front.turn(&mut self.router, Wait::No).unwrap();
    }

    /// What the engine decides.
    #[inline(never)]
    fn engine_step(&mut self, number: usize) {
        let strand = &mut self.strands[number];
        strand.shard.step(NOW, &mut strand.events, &mut self.effects).unwrap();
    }

    /// What the engine goes on with.
    #[inline(never)]
    fn engine_work(&mut self, number: usize) {
        self.strands[number].shard.work(NOW, WORK_UNITS, &mut self.effects).unwrap();
    }

    /// The bytes of a batch of the log, with their checksum.
    #[inline(never)]
    fn log_encode(&mut self, append: &Append) -> u32 {
        encode_append(append, &mut self.payload);
        crc32c::crc32c(self.payload.as_slice())
    }

    fn perform(&mut self, number: usize) {
        let mut last = None;
        let mut appends = std::mem::take(&mut self.effects.appends);
        for append in appends.drain(..) {
            std::hint::black_box(self.log_encode(&append));
            last = Some(append.sequence);
        }
        self.effects.appends = appends;
        self.effects.sync_now = false;
        self.messages.append(&mut self.effects.messages);
        let strand = &mut self.strands[number];
        strand.events.extend(last.map(|sequence: Sequence| Event::Durable(sequence)));
        for (_, batch) in self.effects.returned.drain(..) {
            strand.link.recycle(batch);
        }
        for batch in self.effects.replies.iter_mut().filter(|batch| !batch.heads.is_empty()) {
            std::mem::swap(strand.link.batch(), batch);
            strand.link.flush();
        }
    }
}
