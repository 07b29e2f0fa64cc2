//! What serves clients on one thread: a front and its router, from the first accept to the last close.
//!
//! The thread that hosts a service turns it: a router's thread does nothing else, a shard's thread (`router.mode = "inline"`)
//! has its shard as [`Host`]. The host gets its turn inside the service's, behind the lines and before the replies, so what
//! clients ask of their own thread's shard is answered with the same system call that brings the next requests, and crosses
//! no thread; requests for other shards go over the links as a router's do.
//!
//! Neither side starves the other: after [`LINES_BETWEEN_HOST_TURNS`] lines the host gets a turn in between, and a host's turn
//! is bounded by its own settings. The service sleeps only when neither it nor its host has anything to do.

use crate::clock::Clock;
use crate::doorbell::Doorbell;
use crate::front::{Front, FrontSettings, Handled, LineAt, LineHandler, Listeners, ReplySink, Wait};
use crate::links::ShardLink;
use crate::router::{ClusterParts, Router, RouterSettings, ServerFacts, StopHandle};
use shards::gather::topology::Topology;
use shards::ids::Millis;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

/// Lines taken before the host has a turn of its own in between: about a hundred microseconds of parsing.
const LINES_BETWEEN_HOST_TURNS: usize = 1024;
/// Longest sleep while what is under way is finished.
const DRAIN_STEP_MS: u64 = 5;
/// How long closed connections may take to go at the end.
const LINGER_MS: u64 = 500;

/// What a thread does besides serving clients.
pub trait Host {
    /// One bounded turn of it.
    fn turn(&mut self);

    /// Whether a turn would find something now; asked again after the park was announced.
    fn has_work(&mut self) -> bool;
}

/// A thread that only serves clients.
#[derive(Debug)]
pub struct NoHost;

impl Host for NoHost {
    fn turn(&mut self) {}

    fn has_work(&mut self) -> bool {
        false
    }
}

/// What a service is made of.
#[derive(Debug)]
pub struct ServiceParts {
    /// Which router of the server it has.
    pub number: usize,
    /// Links to the shards, by group.
    pub links: Vec<ShardLink>,
    /// Wakes its thread.
    pub bell: Arc<Doorbell>,
    /// Where clients come from.
    pub listeners: Listeners,
    /// The clients of all services of the server.
    pub clients: Arc<AtomicUsize>,
    /// In a cluster: who leads, and the links to the thread that forwards.
    pub cluster: Option<ClusterParts>,
    /// What the server is.
    pub facts: Arc<ServerFacts>,
}

/// Bounds and times of a service.
#[derive(Clone, Debug)]
pub struct ServiceSettings {
    /// Of the front.
    pub front: FrontSettings,
    /// Of the router.
    pub router: RouterSettings,
    /// How long an idle thread polls before it sleeps, in microseconds.
    pub spin_us: u64,
    /// Time for open requests once the stop was requested, in milliseconds.
    pub drain_ms: u64,
}

/// Where a service stands between start and end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Serving,
    /// Accepts nobody and finishes what is under way.
    Draining {
        until: Millis,
    },
    /// Has its connections closed.
    Closing {
        until: Millis,
    },
    Ended,
}

/// See the module's head.
#[derive(Debug)]
pub struct Service {
    front: Front,
    router: Router,
    clock: Clock,
    stop: Arc<StopHandle>,
    stage: Stage,
    spin_us: u64,
    drain_ms: u64,
    /// Since when nothing has happened, while the thread spins.
    idle_since_us: Option<u64>,
}

impl Service {
    /// Opens a service on the calling thread, which must be the one that turns it.
    ///
    /// # Errors
    /// What io_uring refuses.
    pub fn open(parts: ServiceParts, settings: ServiceSettings) -> io::Result<Self> {
        let ServiceParts { number, links, bell, listeners, clients, cluster, facts } = parts;
        let clock = Clock::start();
        let stop = Arc::clone(&facts.stop);
        let mut front = Front::open(settings.front, listeners, bell, move || clock.now())?;
        front.count_with(clients);
        let groups = u16::try_from(links.len()).expect("at most 256 shards");
        let topology = Topology::even(groups);
        let mut router = Router::new(links, topology, settings.router, facts, move || clock.now());
        router.take_place(number);
        if let Some(cluster) = cluster {
            router.join(cluster);
        }
        let (spin_us, drain_ms) = (settings.spin_us, settings.drain_ms);
        Ok(Self { front, router, clock, stop, stage: Stage::Serving, spin_us, drain_ms, idle_since_us: None })
    }

    /// Has a sleep end when `fd` is readable too, as long as the service lives: for what else the host waits for.
    pub fn wait_beside(&mut self, fd: RawFd) {
        self.front.wait_beside(fd);
    }

    /// One turn of the service and at least one of its host. Sleeps at most `sleep_ms_max` milliseconds, and only when
    /// neither has anything to do. False once the service has ended: it is then to be dropped.
    ///
    /// # Errors
    /// When the front's ring fails: the service is then of no more use.
    pub fn turn(&mut self, host: &mut impl Host, sleep_ms_max: u64) -> io::Result<bool> {
        let now = self.clock.now();
        self.advance(now);
        let wait = match self.stage {
            Stage::Ended => return Ok(false),
            Stage::Serving if self.spins() => Wait::No,
            Stage::Serving => Wait::Until(Millis(now.0 + sleep_ms_max)),
            Stage::Draining { .. } | Stage::Closing { .. } => {
                Wait::Until(Millis(now.0 + sleep_ms_max.min(DRAIN_STEP_MS)))
            }
        };
        let mut both = Both { router: &mut self.router, host, lines: 0 };
        let turn = self.front.turn(&mut both, wait)?;
        self.router.publish(now);
        if self.spin_us > 0 {
            let since = self.idle_since_us;
            self.idle_since_us = turn.is_idle().then(|| since.unwrap_or_else(|| self.clock.elapsed_us()));
        }
        Ok(true)
    }

    fn spins(&self) -> bool {
        let spun_us = || self.idle_since_us.map_or(0, |since| self.clock.elapsed_us() - since);
        self.spin_us > 0 && spun_us() < self.spin_us
    }

    /// Goes to the next stage when it is time.
    fn advance(&mut self, now: Millis) {
        if self.stage == Stage::Serving && self.stop.is_requested() {
            self.front.stop_accepting();
            self.stage = Stage::Draining { until: Millis(now.0 + self.drain_ms) };
        }
        if let Stage::Draining { until } = self.stage
            && (now >= until || (self.front.is_drained() && self.router.is_quiet()))
        {
            self.front.close_all();
            self.stage = Stage::Closing { until: Millis(now.0 + LINGER_MS) };
        }
        if let Stage::Closing { until } = self.stage
            && (now >= until || self.front.connections() == 0)
        {
            self.stage = Stage::Ended;
        }
    }
}

/// The router's answer to the front, with the host's turns in between.
struct Both<'a, H> {
    router: &'a mut Router,
    host: &'a mut H,
    /// Lines since the host's last turn.
    lines: usize,
}

impl<H: Host> Both<'_, H> {
    fn turn_host(&mut self) {
        self.lines = 0;
        self.router.flush();
        self.host.turn();
    }
}

impl<H: Host> LineHandler for Both<'_, H> {
    #[inline]
    fn line<'l>(&mut self, at: &mut LineAt<'_>, line: &'l [u8]) -> Handled<'l> {
        if self.lines >= LINES_BETWEEN_HOST_TURNS {
            self.turn_host();
        }
        self.lines += 1;
        self.router.line(at, line)
    }

    fn flush(&mut self) {
        self.turn_host();
    }

    fn poll(&mut self, sink: &mut ReplySink<'_>) -> bool {
        self.router.poll(sink)
    }

    fn has_work(&mut self) -> bool {
        self.router.has_work() || self.host.has_work()
    }

    fn next_deadline(&self, now: Millis) -> Option<Millis> {
        self.router.next_deadline(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::links::{RouterLink, link};
    use crate::router::RouterBoard;
    use shards::batch::ReplyKind;
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpStream};
    use std::sync::Mutex;
    use std::time::Duration;

    /// A shard that says OK to everything, in the service's own thread.
    struct Yes {
        link: RouterLink,
        /// Requests of each turn that found any.
        turns: Vec<usize>,
    }

    impl Host for Yes {
        fn turn(&mut self) {
            let mut count = 0;
            while let Some(batch) = self.link.receive() {
                count += batch.heads.len();
                for head in &batch.heads {
                    self.link.batch().push(head.token, ReplyKind::Ok, |_| {});
                }
                self.link.recycle(batch);
            }
            self.link.flush();
            self.turns.extend((count > 0).then_some(count));
        }

        fn has_work(&mut self) -> bool {
            self.link.has_requests()
        }
    }

    fn open() -> (Service, Yes, SocketAddr, Arc<StopHandle>) {
        let bell = Doorbell::new().unwrap();
        let (at_service, at_shard) = link(65_536, Arc::clone(&bell), Arc::clone(&bell));
        let listeners = Listeners::bind(&["127.0.0.1:0".parse().unwrap()], 64).unwrap();
        let address = listeners.addresses().unwrap()[0];
        let stop = StopHandle::new(vec![Arc::clone(&bell)]);
        let facts = ServerFacts {
            node_id: "a".to_owned(),
            address: address.to_string(),
            started: Millis(0),
            extra: Mutex::default(),
            shard_ports: vec![address.port()],
            routers: RouterBoard::new(1),
            stop: Arc::clone(&stop),
        };
        let (clients, facts) = (Arc::default(), Arc::new(facts));
        let links = vec![at_service];
        let parts = ServiceParts { number: 0, links, bell, listeners, clients, cluster: None, facts };
        let front = FrontSettings { in_flight_max: 30_000, lines_per_turn_max: 30_000, ..Default::default() };
        let router = RouterSettings::default();
        let settings = ServiceSettings { front, router, spin_us: 0, drain_ms: 1000 };
        let host = Yes { link: at_shard, turns: Vec::new() };
        (Service::open(parts, settings).unwrap(), host, address, stop)
    }

    #[test]
    fn a_host_answers_within_the_turn_and_between_many_lines() {
        const LINES: usize = 20_000;
        let (mut service, mut host, address, stop) = open();
        let mut client = TcpStream::connect(address).unwrap();
        client.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        let sender = client.try_clone().unwrap();
        let sending = std::thread::spawn(move || {
            let line = b"{\"command\":\"SET\",\"key\":\"k\",\"value\":1}\n".repeat(LINES);
            (&sender).write_all(&line).unwrap();
            sender
        });
        let mut got = 0;
        let reply = b"{\"status\":\"success\",\"result\":\"OK\"}\n";
        let mut buffer = vec![0; 1 << 20];
        while got < LINES * reply.len() {
            assert!(service.turn(&mut host, 20).unwrap());
            // What was taken in a turn is answered in that turn: nothing is left at the host or on the way to a client.
            assert!(service.router.is_quiet() && !host.has_work());
            got += client.read(&mut buffer).unwrap_or(0);
        }
        sending.join().unwrap();
        assert_eq!(host.turns.iter().sum::<usize>(), LINES);
        assert!(host.turns.iter().all(|count| *count <= LINES_BETWEEN_HOST_TURNS), "{:?}", host.turns);
        stop.request();
        drop(client);
        let mut turns = 0;
        while service.turn(&mut host, 20).unwrap() {
            turns += 1;
            assert!(turns < 10_000, "a service without clients ends soon");
        }
    }
}
