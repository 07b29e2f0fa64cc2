//! A whole server but for its disk, in one thread: front, router, links and shards, turned until a reply comes.
//!
//! The log is durable as soon as it is written, unless the test holds the disk back.

use crate::doorbell::Doorbell;
use crate::front::{Front, FrontSettings, Listeners, Wait};
use crate::links::{RouterLink, link};
use crate::router::{Router, RouterBoard, RouterSettings, ServerFacts, StopHandle};
use shards::consensus::group::Restored;
use shards::effect::Effects;
use shards::event::Event;
use shards::gather::topology::Topology;
use shards::ids::{GroupId, Millis, Sequence};
use shards::shard::{Shard, ShardConfig, ShardImage};
use shards::txn::message::GroupMessage;
use std::cell::Cell;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

struct Strand {
    shard: Shard,
    link: RouterLink,
    /// Last batch written and not yet made durable.
    written: Option<Sequence>,
    last_step: Millis,
}

/// See the module's head.
pub(super) struct World {
    pub(super) front: Front,
    pub(super) router: Router,
    pub(super) stop: Arc<StopHandle>,
    pub(super) disk_is_held: bool,
    /// Shards take nothing while this is set.
    pub(super) shards_are_held: bool,
    clock: Rc<Cell<u64>>,
    strands: Vec<Strand>,
    messages: Vec<GroupMessage>,
    address: SocketAddr,
}

/// One client connection.
pub(super) struct Client {
    socket: TcpStream,
    received: Vec<u8>,
}

/// How long a reply may take.
const PATIENCE: Duration = Duration::from_secs(20);

impl World {
    pub(super) fn new(groups: u16) -> Self {
        Self::with(groups, 64, RouterSettings::default())
    }

    pub(super) fn with(groups: u16, outstanding_max: usize, settings: RouterSettings) -> Self {
        let clock = Rc::new(Cell::new(1_000_000));
        let bell = Doorbell::new().unwrap();
        let (mut links, mut strands) = (Vec::new(), Vec::new());
        for number in 0..groups {
            let (at_router, at_shard) = link(outstanding_max, Arc::clone(&bell), Doorbell::new().unwrap());
            links.push(at_router);
            let mut group = Restored { replica: 1, ..Restored::default() };
            group.conf_state.voters = vec![1];
            let image = ShardImage { group, ..ShardImage::default() };
            let config = ShardConfig::new(GroupId(u32::from(number)));
            let shard = Shard::restore(config, image, Millis(clock.get())).unwrap();
            strands.push(Strand { shard, link: at_shard, written: None, last_step: Millis(0) });
        }
        let stop = StopHandle::new(vec![Arc::clone(&bell)]);
        let facts = ServerFacts {
            node_id: "node1".to_owned(),
            address: "127.0.0.1:8000".to_owned(),
            started: Millis(clock.get()),
            extra: Mutex::new("\"profile\":\"test\"".to_owned()),
            shard_ports: Vec::new(),
            routers: RouterBoard::new(1),
            stop: Arc::clone(&stop),
        };
        let time = Rc::clone(&clock);
        let router =
            Router::new(links, Topology::even(groups), settings, Arc::new(facts), move || Millis(time.get()));
        let listeners = Listeners::bind(&["127.0.0.1:0".parse().unwrap()], 64).unwrap();
        let address = listeners.addresses().unwrap()[0];
        let time = Rc::clone(&clock);
        let front =
            Front::open(FrontSettings::default(), listeners, bell, move || Millis(time.get())).unwrap();
        let mut world = Self {
            front,
            router,
            stop,
            disk_is_held: false,
            shards_are_held: false,
            clock,
            strands,
            messages: Vec::new(),
            address,
        };
        for number in 0..world.strands.len() {
            let mut effects = Effects::default();
            world.strands[number].shard.start(Millis(world.clock.get()), &mut effects).unwrap();
            world.take(number, effects);
        }
        for _ in 0..50 {
            world.turn();
        }
        assert!(world.strands.iter().all(|strand| strand.shard.is_ready()));
        world
    }

    pub(super) fn connect(&mut self) -> Client {
        Client::new(TcpStream::connect(self.address).unwrap())
    }

    pub(super) fn pass_ms(&mut self, ms: u64) {
        self.clock.set(self.clock.get() + ms);
    }

    /// One turn of everything.
    pub(super) fn turn(&mut self) {
        self.front.turn(&mut self.router, Wait::No).unwrap();
        let messages = std::mem::take(&mut self.messages);
        for message in messages {
            self.step(message.to.0 as usize, vec![Event::Message(message)]);
        }
        for number in 0..self.strands.len() {
            let mut events = Vec::new();
            let strand = &mut self.strands[number];
            while !self.shards_are_held
                && let Some(batch) = strand.link.receive()
            {
                events.push(Event::Requests { router: 0, batch });
            }
            if !self.disk_is_held
                && let Some(sequence) = strand.written.take()
            {
                events.push(Event::Durable(sequence));
            }
            if !events.is_empty() || strand.last_step.0 + 50 <= self.clock.get() {
                self.step(number, events);
            }
            self.work(number);
        }
    }

    /// A large command is applied in slices: the next one.
    fn work(&mut self, number: usize) {
        if self.strands[number].shard.is_applying() {
            let mut effects = Effects::default();
            let now = Millis(self.clock.get());
            self.strands[number].shard.work(now, 256, &mut effects).unwrap();
            self.take(number, effects);
        }
    }

    /// Turns until nothing more can be expected to happen by itself.
    pub(super) fn settle(&mut self) {
        for _ in 0..300 {
            self.turn();
            std::thread::sleep(Duration::from_micros(20));
        }
    }

    fn step(&mut self, number: usize, mut events: Vec<Event>) {
        let mut effects = Effects::default();
        let now = Millis(self.clock.get());
        let strand = &mut self.strands[number];
        strand.last_step = now;
        strand.shard.step(now, &mut events, &mut effects).unwrap();
        self.take(number, effects);
    }

    fn take(&mut self, number: usize, effects: Effects) {
        let strand = &mut self.strands[number];
        if let Some(last) = effects.appends.last() {
            strand.written = Some(last.sequence);
        }
        self.messages.extend(effects.messages);
        for (_, batch) in effects.returned {
            strand.link.recycle(batch);
        }
        for batch in effects.replies {
            assert!(strand.link.batch().heads.is_empty());
            *strand.link.batch() = batch;
            strand.link.flush();
        }
    }

    /// Sends a line and waits for its reply.
    pub(super) fn ask(&mut self, client: &mut Client, line: &str) -> String {
        client.send(line);
        self.reply(client)
    }

    /// The next reply line, without its end; it is checked to be JSON.
    pub(super) fn reply(&mut self, client: &mut Client) -> String {
        let begun = Instant::now();
        loop {
            if let Some(line) = client.line() {
                serde_json::from_str::<serde_json::Value>(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
                return line;
            }
            assert!(begun.elapsed() < PATIENCE, "no reply in time");
            self.turn();
        }
    }

    /// Asks on a connection of its own and gives the value of `result`.
    pub(super) fn result(&mut self, line: &str) -> serde_json::Value {
        let mut client = self.connect();
        let reply = self.ask(&mut client, line);
        let mut value: serde_json::Value = serde_json::from_str(&reply).unwrap();
        assert_eq!(value["status"], "success", "{line}: {reply}");
        value["result"].take()
    }

    /// Asks on a connection of its own and gives the error's code.
    pub(super) fn code(&mut self, line: &str) -> String {
        let mut client = self.connect();
        let reply = self.ask(&mut client, line);
        let value: serde_json::Value = serde_json::from_str(&reply).unwrap();
        assert_eq!(value["status"], "error", "{line}: {reply}");
        value["code"].as_str().unwrap().to_owned()
    }
}

impl Client {
    pub(super) fn new(socket: TcpStream) -> Self {
        socket.set_nonblocking(true).unwrap();
        Self { socket, received: Vec::new() }
    }

    pub(super) fn send(&mut self, line: &str) {
        let mut bytes = line.as_bytes().to_vec();
        bytes.push(b'\n');
        self.socket.write_all(&bytes).unwrap();
    }

    /// Sends bytes as they are.
    pub(super) fn send_bytes(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    /// Takes what has come and forgets it; the ends of lines in it.
    pub(super) fn lines_passed(&mut self) -> usize {
        let mut buffer = [0; 65536];
        match self.socket.read(&mut buffer) {
            Ok(count) => memchr::memchr_iter(b'\n', &buffer[..count]).count(),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WouldBlock);
                0
            }
        }
    }

    /// A whole line that has come.
    pub(super) fn line(&mut self) -> Option<String> {
        let mut buffer = [0; 65536];
        match self.socket.read(&mut buffer) {
            Ok(count) => self.received.extend_from_slice(&buffer[..count]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        let end = self.received.iter().position(|byte| *byte == b'\n')?;
        let line = self.received.drain(..=end).collect::<Vec<u8>>();
        Some(String::from_utf8(line[..end].to_vec()).unwrap())
    }
}
