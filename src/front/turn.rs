//! One turn of the front, and the front's life from listening to the last close.

use super::connection::{Connections, Life, Wants};
use super::counters::FrontCounters;
use super::dispatch::{Desk, texts};
use super::handler::{LineHandler, ReplySink};
use super::listen::Listeners;
use super::ring::{Event, FrontRing, Operation, SendJob};
use super::settings::{FrontSettings, Receive};
use crate::doorbell::Doorbell;
use shards::ids::Millis;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Whether a turn may wait when there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Returns at once.
    No,
    /// Waits for a client, the doorbell, or this time by the front's clock.
    Until(Millis),
}

/// What a turn did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn {
    /// Completions that the kernel brought.
    pub events: usize,
    /// Lines that the handler answered or took.
    pub lines: u64,
    /// Replies to taken requests.
    pub replies: u64,
    /// Whether the turn waited.
    pub parked: bool,
}

impl Turn {
    /// Whether the turn found nothing to do.
    pub fn is_idle(&self) -> bool {
        self.events == 0 && self.lines == 0 && self.replies == 0
    }
}

/// How often the clocks of watched connections are looked at.
pub(super) const SWEEP_MS: u64 = 50;

/// Connections over the limit that may be under way to their refusal; more are closed without a word.
const REFUSALS_MAX: usize = 64;

/// Send jobs kept for reuse.
pub(super) const SPARE_JOBS: usize = 256;

/// Completions that a turn usually has at most.
const EVENTS_RESERVED: usize = 1024;

/// The client front; see the module's head.
pub struct Front {
    pub(super) ring: FrontRing,
    pub(super) desk: Desk,
    #[allow(
        clippy::vec_box,
        reason = "the ring lends a job's own address to the kernel, so jobs are boxed throughout"
    )]
    pub(super) spare_jobs: Vec<Box<SendJob>>,
    bell: Arc<Doorbell>,
    clock: Box<dyn Fn() -> Millis>,
    listeners: Option<Listeners>,
    /// Whether the ring accepts from each listener now.
    accepting: Vec<bool>,
    /// A time at which accepting is tried again after an error.
    accept_again: Option<Millis>,
    pub(super) next_sweep: Millis,
    events: Vec<Event>,
    ready: Vec<u32>,
    pub(super) swept: Vec<u32>,
    /// Clients that count towards `connections_max`, of all fronts that share the count.
    pub(super) clients: Arc<AtomicUsize>,
    /// Whether the ring reads the doorbell.
    bell_armed: bool,
    /// A descriptor that ends a wait when it is readable.
    beside: Option<RawFd>,
    /// Whether the ring polls it.
    beside_armed: bool,
    /// Where the search for resting connections goes on.
    pub(super) idle_cursor: usize,
}

impl std::fmt::Debug for Front {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Front")
            .field("clients", &self.clients)
            .field("ring", &self.ring)
            .finish_non_exhaustive()
    }
}

impl Front {
    /// Opens the front on the calling thread, which must be the one that turns it. `clock` gives the time in milliseconds
    /// and is asked once a turn and once more after a wait; it must not go backwards. `bell` wakes a waiting turn.
    ///
    /// # Errors
    /// `InvalidInput` for settings out of their range, or what io_uring refuses.
    pub fn open(
        settings: FrontSettings,
        listeners: Listeners,
        bell: Arc<Doorbell>,
        clock: impl Fn() -> Millis + 'static,
    ) -> io::Result<Self> {
        settings.check()?;
        let ring = FrontRing::open(&settings)?;
        listeners.open()?;
        let now = clock();
        let connections = Connections::new(settings.connections_max + REFUSALS_MAX);
        Ok(Self {
            ring,
            desk: Desk { connections, counters: FrontCounters::default(), settings, now, turn: 0 },
            spare_jobs: Vec::new(),
            bell,
            clock: Box::new(clock),
            accepting: vec![false; listeners.count()],
            listeners: Some(listeners),
            accept_again: Some(now),
            next_sweep: now,
            events: Vec::with_capacity(EVENTS_RESERVED),
            ready: Vec::new(),
            swept: Vec::new(),
            clients: Arc::default(),
            bell_armed: false,
            beside: None,
            beside_armed: false,
            idle_cursor: 0,
        })
    }

    /// One turn: completions, lines, batches, replies, sends. Waits only as `wait` allows and only when there is nothing
    /// to do.
    ///
    /// # Errors
    /// When the ring itself fails; the front is then of no more use. What happens to single connections is no error.
    ///
    /// # Panics
    /// When the handler breaks its contract (takes what is not admitted, holds what is).
    pub fn turn<H: LineHandler>(&mut self, handler: &mut H, wait: Wait) -> io::Result<Turn> {
        let (lines, replies) = (self.desk.counters.lines, self.desk.counters.replies);
        self.begin_turn();
        let events = self.handle_events(handler);
        self.resume_ready(handler);
        self.desk.keep_input_budget();
        handler.flush();
        let Desk { connections, counters, settings, .. } = &mut self.desk;
        let mut sink = ReplySink { connections, counters, in_flight_max: settings.in_flight_max };
        if handler.poll(&mut sink) {
            self.desk.connections.room_was_made();
        }
        if self.desk.now >= self.next_sweep {
            self.sweep();
        }
        self.accept();
        self.settle();
        let parked = self.finish_turn(handler, wait)?;
        let counters = &self.desk.counters;
        Ok(Turn { events, lines: counters.lines - lines, replies: counters.replies - replies, parked })
    }

    /// Counts clients together with other fronts of the server, so that the bound holds for all of them. Before the first
    /// turn.
    pub fn count_with(&mut self, clients: Arc<AtomicUsize>) {
        self.clients = clients;
    }

    /// Has a wait end when `fd` is readable too, as long as the front lives. Nothing is read from it.
    pub fn wait_beside(&mut self, fd: RawFd) {
        self.beside = Some(fd);
    }

    /// Stops accepting and closes the listening sockets; connections live on.
    pub fn stop_accepting(&mut self) {
        for (listener, accepting) in self.accepting.iter().enumerate() {
            if *accepting {
                self.ring.cancel(Operation::Accept, listener);
            }
        }
        self.accept_again = None;
        // The kernel keeps a listening socket until the cancelled accept lets go of it, within the next turn.
        self.listeners = None;
    }

    /// Whether every request taken was answered and every reply handed to the kernel.
    pub fn is_drained(&self) -> bool {
        let open = self.desk.connections.list.iter().filter(|c| !matches!(c.life, Life::Free | Life::Dead));
        open.into_iter().all(|connection| connection.is_settled())
    }

    /// Has every connection closed once the replies under way have left; lines not yet dispatched are dropped.
    pub fn close_all(&mut self) {
        for at in 0..self.desk.connections.list.len() {
            if self.desk.connections.list[at].life == Life::Open {
                self.desk.close_after_replies(at);
            }
        }
    }

    /// Connections open now, those that are being closed included.
    pub fn connections(&self) -> usize {
        self.desk.counters.open as usize
    }

    /// The counters so far.
    pub fn counters(&self) -> FrontCounters {
        FrontCounters { enters: self.ring.enters, ..self.desk.counters }
    }

    /// The way of receiving in use.
    pub fn receive_mode(&self) -> Receive {
        self.ring.receive_mode()
    }

    fn begin_turn(&mut self) {
        self.desk.now = (self.clock)();
        self.desk.turn += 1;
        self.desk.counters.turns += 1;
    }

    fn handle_events<H: LineHandler>(&mut self, handler: &mut H) -> usize {
        let mut events = std::mem::take(&mut self.events);
        self.ring.reap(&mut events);
        for event in &events {
            match event.operation {
                Operation::Receive => self.on_receive(event, handler),
                Operation::Send => self.on_sent(event),
                Operation::Poll => self.on_readable(event, handler),
                Operation::Accept => self.on_accept(event),
                Operation::Bell => self.bell_armed = false,
                Operation::Beside => self.beside_armed = false,
                Operation::Cancel => {}
            }
        }
        self.ring.publish_buffers();
        let count = events.len();
        events.clear();
        self.events = events;
        if !std::mem::replace(&mut self.bell_armed, true) {
            self.ring.arm_bell(self.bell.fd());
        }
        if let Some(fd) = self.beside
            && !std::mem::replace(&mut self.beside_armed, true)
        {
            self.ring.arm_beside(fd);
        }
        count
    }

    fn resume_ready<H: LineHandler>(&mut self, handler: &mut H) {
        if !self.desk.connections.has_ready() {
            return;
        }
        let mut ready = std::mem::take(&mut self.ready);
        self.desk.connections.swap_ready(&mut ready);
        for at in ready.drain(..) {
            if self.desk.connections.pick_ready(at as usize) {
                self.desk.resume(at as usize, handler);
            }
        }
        self.ready = ready;
    }

    /// Submits, and waits when that is wanted and nothing is left to do. The doorbell's order: announce, look again, wait.
    fn finish_turn<H: LineHandler>(&mut self, handler: &mut H, wait: Wait) -> io::Result<bool> {
        let Wait::Until(deadline) = wait else {
            return self.ring.submit().map(|()| false);
        };
        let busy = self.desk.connections.has_ready() || self.ring.has_completions() || handler.has_work();
        if busy || deadline <= self.desk.now {
            return self.ring.submit().map(|()| false);
        }
        let mut until = handler.next_deadline(self.desk.now).map_or(deadline, |soon| soon.min(deadline));
        if !self.desk.connections.watched.is_empty() || self.desk.settings.idle_ms_max > 0 {
            until = until.min(self.next_sweep);
        }
        if let Some(again) = self.accept_again {
            until = until.min(again);
        }
        self.bell.prepare_park();
        if handler.has_work() {
            self.bell.cancel_park();
            return self.ring.submit().map(|()| false);
        }
        self.desk.counters.parks += 1;
        let wait_ms = until.0.saturating_sub(self.desk.now.0).max(1);
        let waited = self.ring.submit_and_wait(Duration::from_millis(wait_ms));
        self.bell.cancel_park();
        waited.map(|()| true)
    }

    /// Has the ring accept from every listener that it does not accept from.
    fn accept(&mut self) {
        let Some(listeners) = &self.listeners else {
            return;
        };
        if self.accept_again.is_none_or(|again| again > self.desk.now) {
            return;
        }
        self.accept_again = None;
        for (listener, accepting) in self.accepting.iter_mut().enumerate() {
            if !std::mem::replace(accepting, true) {
                self.ring.accept(listener, listeners.fd(listener));
            }
        }
    }

    fn on_accept(&mut self, event: &Event) {
        if !event.more {
            self.accepting[event.at] = false;
            if self.listeners.is_some() {
                self.accept_again = Some(self.desk.now);
            }
        }
        if event.result >= 0 {
            let socket = self.ring.accepted(event);
            return self.on_connection(socket);
        }
        if event.result == -libc::EINVAL && self.ring.accept_refused() {
            return;
        }
        if event.result == -libc::ECANCELED || event.result == -libc::ECONNABORTED {
            return;
        }
        // Out of descriptors or memory: trying again at once would spin.
        self.desk.counters.accept_errors += 1;
        if self.accept_again.is_some() {
            self.accept_again = Some(Millis(self.desk.now.0 + SWEEP_MS));
        }
    }

    fn on_connection(&mut self, socket: std::net::TcpStream) {
        let desk = &mut self.desk;
        // A socket that refuses this was closed by its client already, which the first receive will tell.
        let _ = socket.set_nodelay(true);
        let full = self.clients.fetch_add(1, Ordering::Relaxed) >= desk.settings.connections_max;
        if full {
            self.clients.fetch_sub(1, Ordering::Relaxed);
        }
        let Some(at) = desk.connections.claim(socket, desk.now) else {
            desk.counters.refused += 1;
            if !full {
                self.clients.fetch_sub(1, Ordering::Relaxed);
            }
            return;
        };
        desk.counters.open += 1;
        desk.connections.touch(at);
        if full {
            desk.counters.refused += 1;
            desk.connections.list[at].refused = true;
            desk.refuse(at, texts::TOO_MANY_CONNECTIONS);
        } else {
            desk.counters.accepted += 1;
        }
    }

    fn on_receive<H: LineHandler>(&mut self, event: &Event, handler: &mut H) {
        use super::connection::Receiving;
        if !event.more {
            self.desk.connections.list[event.at].receiving = Receiving::Idle;
            self.desk.connections.touch(event.at);
        }
        if let Some(data) = self.ring.received(event)
            && !data.is_empty()
        {
            self.desk.received(event.at, data, handler);
        }
        self.ring.give_back(event);
        match event.result {
            0 => self.desk.ended(event.at),
            1.. => {}
            error => self.on_receive_error(event.at, -error),
        }
    }

    fn on_receive_error(&mut self, at: usize, error: i32) {
        match error {
            // The next turn receives again, after this one has given its buffers back.
            libc::ENOBUFS => self.desk.counters.buffer_shortages += 1,
            libc::ECANCELED | libc::EAGAIN | libc::EINTR => {}
            libc::EINVAL if self.ring.receive_mode() != Receive::Readiness => self.ring.receive_refused(),
            _ => self.kill(at),
        }
    }

    fn on_readable<H: LineHandler>(&mut self, event: &Event, handler: &mut H) {
        use super::connection::Receiving;
        let connection = &mut self.desk.connections.list[event.at];
        connection.receiving = Receiving::Idle;
        self.desk.connections.touch(event.at);
        if event.result < 0 {
            return self.on_receive_error(event.at, -event.result);
        }
        let Some(fd) = self.desk.connections.list[event.at].socket.as_ref().map(AsRawFd::as_raw_fd) else {
            return;
        };
        match self.ring.read_ready(fd) {
            Ok([]) => self.desk.ended(event.at),
            Ok(data) => self.desk.received(event.at, data, handler),
            Err(error) => self.on_receive_error(event.at, error.raw_os_error().unwrap_or(libc::EIO)),
        }
    }

    fn on_sent(&mut self, event: &Event) {
        let mut job = self.ring.take_job(event);
        let at = event.at;
        self.desk.connections.touch(at);
        let connection = &mut self.desk.connections.list[at];
        connection.sending = false;
        connection.sending_bytes = 0;
        if connection.life == Life::Dead {
            return self.spare(job);
        }
        match event.result {
            sent @ 1.. => {
                job.sent += sent as usize;
                connection.write_since = self.desk.now;
                self.desk.counters.bytes_out += sent as u64;
            }
            retry if retry == -libc::EAGAIN || retry == -libc::EINTR => {}
            _ => {
                self.spare(job);
                return self.kill(at);
            }
        }
        if job.left() > 0 {
            return self.send(at, job);
        }
        self.spare(job);
        let connection = &self.desk.connections.list[at];
        if connection.wants == Wants::Unsent && connection.unsent() < self.desk.settings.unsent_bytes_max {
            self.desk.connections.make_ready(at);
        }
    }

    /// Answers a slow line and closes; see `settle`.
    pub(super) fn refuse_slow_line(&mut self, at: usize) {
        self.desk.counters.slow_line_closes += 1;
        self.desk.refuse(at, texts::SLOW_LINE);
    }
}
