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
