//! The loop of one shard: events in, step, effects out. Performs what the engine decides, on the shard's own thread.
//!
//! One turn drains the inbox rings, reaps the log, steps, and flushes every effect once: log batches first, then replies
//! and messages. Between turns the engine gets a slice of background work. With nothing to do the thread parks on its
//! doorbell, which routers, other shards, the file worker and the log's ring all ring. A thread that serves clients itself
//! (`clients`) has its turns inside theirs. Never decides about data, and never lets a failure pass: whatever makes durability
//! unknown ends the process by name.

mod clients;
mod commit_times;
mod figures;
mod peers;
mod snapshot;
mod vacant;
mod windows;

use crate::disk::replica_dir;
use crate::disk::wal::Wal;
use crate::doorbell::Doorbell;
use crate::fatal::Fatal;
use crate::links::RouterLink;
use crate::service::Host;
pub use clients::{Clients, Open};
use commit_times::CommitTimes;
pub use peers::{IntakeSettings, PeerSide};
use shards::consensus::group::Append;
use shards::effect::Effects;
use shards::event::Event;
use shards::ids::{Millis, ReplicaId};
use shards::log::payload::PayloadBuffer;
use shards::shard::image::{encode_append, encode_start};
use shards::shard::{Left, Shard, ShardFault};
use shards::storage::wal::{Append as LogAppend, Full, Reaped, WalFailure};
pub use snapshot::SnapshotFiles;
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;
pub use vacant::Seat;
use windows::Windows;

/// Times and bounds of the loop.
#[derive(Clone, Copy, Debug)]
pub struct DriverSettings {
    /// Longest slice of background work between two looks at the inbox, in microseconds.
    pub work_slice_us: u64,
    /// How long an idle shard looks at its inbox again and again before it sleeps, in microseconds.
    pub spin_us: u64,
    /// Batches taken from one router in one turn.
    pub inbox_batches_max: usize,
    /// Longest sleep, in milliseconds: deadlines and expiry are looked at that often.
    pub tick_ms: u64,
}

/// Records that one call of background work looks at; small, so that a slice ends near its time.
const WORK_UNITS: usize = 256;

/// A shard that holds a replica, and everything that its thread owns.
pub struct Driver {
    seat: Box<Seat>,
    shard: Shard,
    wal: Option<Wal>,
    /// Batches that the log had no room for, in order.
    waiting: VecDeque<Append>,
    log_has_room: bool,
    files: SnapshotFiles,
    events: Vec<Event>,
    effects: Effects,
    payload: PayloadBuffer,
    commit_times: CommitTimes,
    turn_times: Windows,
    next_tick: Millis,
    /// The engine was told of a newer term than it leads in.
    is_outdated: bool,
    has_more_work: bool,
    /// Since when the meta state names no replica of the group here and no leader was heard of.
    unwanted_since: Option<Millis>,
}

/// A replica that the meta state does not name goes when it has heard of no leader for so long.
const DISMISSED_AFTER_MS: u64 = 30_000;

/// How long a replica that was asked to stop goes on with what is under way. Clients are gone by then.
const STOP_PATIENCE_US: u64 = 2_000_000;

/// What a shard's thread does.
pub enum Stage {
    /// It drives a replica.
    Serving(Box<Driver>),
    /// It waits for one.
    Vacant(Box<Seat>),
}

/// What a turn came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Something was done or is left to do.
    Busy,
    /// Nothing to do until something happens.
    Idle,
}

impl Driver {
    /// A driver for a restored shard. `wal` is absent for a cache without a log.
    pub fn new(seat: Box<Seat>, shard: Shard, wal: Option<Wal>, files: SnapshotFiles) -> Self {
        Self {
            seat,
            shard,
            wal,
            waiting: VecDeque::new(),
            log_has_room: true,
            files,
            events: Vec::new(),
            effects: Effects::default(),
            payload: PayloadBuffer::new(),
            commit_times: CommitTimes::new(),
            turn_times: Windows::new(),
            next_tick: Millis(0),
            is_outdated: false,
            has_more_work: true,
            unwanted_since: None,
        }
    }

    /// Starts the shard. One that is alone elects itself, and this goes on until it serves; a group of several finds its
    /// leader later, and its requests wait at their routers until then. Blocks; before the loop only.
    pub fn start(&mut self) -> Result<(), Fatal> {
        // What the meta state said while the seat was vacant, nobody has heard.
        if let Some(peers) = &self.seat.peers {
            self.events.push(Event::Meta(peers.meta()));
        }
        let now = self.seat.clock.now();
        let started = self.shard.start(now, &mut self.effects);
        self.checked(started)?;
        self.perform()?;
        while self.shard.group().is_alone() && !self.shard.is_ready() {
            if self.shard.is_applying() {
                self.work()?;
                continue;
            }
            if let Some(wal) = &mut self.wal {
                let waited = wal.wait();
                self.reaped(waited)?;
            }
            self.step()?;
            self.perform()?;
        }
        Ok(())
    }

    /// One turn: whatever has happened, stepped and performed, and a slice of background work.
    pub fn turn(&mut self) -> Result<Turn, Fatal> {
        let begun_us = self.seat.clock.elapsed_us();
        self.gather_events()?;
        let now = self.seat.clock.now();
        let is_tick = now >= self.next_tick;
        let mut busy = !self.events.is_empty();
        if busy || is_tick {
            if is_tick {
                self.next_tick = Millis(now.0 + self.seat.settings.tick_ms);
                self.report_figures();
                self.report_term();
            }
            self.step()?;
            self.perform()?;
        }
        self.has_more_work |= self.shard.has_work();
        if self.has_more_work || is_tick {
            self.work()?;
            busy |= self.has_more_work;
        }
        let ended_us = self.seat.clock.elapsed_us();
        if let Some(wal) = &mut self.wal {
            let flushed = wal.flush(ended_us * 1000);
            flushed.map_err(|failure| log_failed(self.seat.number, failure))?;
        }
        if !busy {
            return Ok(Turn::Idle);
        }
        self.turn_times.count(ended_us - begun_us, ended_us);
        Ok(Turn::Busy)
    }

    /// Whether a turn would find something now: asked again after the park was announced.
    pub fn has_work(&mut self) -> bool {
        self.has_more_work
            || (self.shard.has_room() && self.seat.routers.iter().any(RouterLink::has_requests))
            || self.seat.mesh.has_messages()
            || self.seat.mesh.can_advance()
            || self.files.has_news()
            || self.wal.as_mut().is_some_and(Wal::has_completions)
            || self.seat.peers.as_ref().is_some_and(PeerSide::has_work)
            || self.seat.clients.as_ref().is_some_and(|clients| clients.want_to_open())
    }

    /// The bell that wakes this shard.
    pub fn bell(&self) -> &Arc<Doorbell> {
        &self.seat.bell
    }

    /// Times and bounds.
    pub fn settings(&self) -> &DriverSettings {
        &self.seat.settings
    }

    /// How long the loop may sleep.
    pub fn longest_sleep(&self) -> Duration {
        Duration::from_millis(self.seat.settings.tick_ms)
    }

    /// Whether nothing is under way: every request answered, every transaction finished, every batch durable.
    pub fn is_quiet(&self) -> bool {
        self.shard.is_quiet()
            && self.waiting.is_empty()
            && self.seat.routers.iter().all(|link| link.unanswered() == 0)
    }

    /// Whether a replica that was asked to stop may close its log: nothing is under way, or it has had its time. Nobody waits
    /// for an answer any more then; what is left is a search that waits for its index, a snapshot, or a write whose quorum
    /// is stopping too, and all that is in the log is settled after the next start.
    fn may_end(&self, asked_at_us: Option<u64>) -> bool {
        let is_late = |asked_us| self.seat.clock.elapsed_us() - asked_us >= STOP_PATIENCE_US;
        asked_at_us.is_some_and(|asked_us| self.is_quiet() || (self.waiting.is_empty() && is_late(asked_us)))
    }

    /// Syncs what was written without waiting for the interval: at the end nobody writes what would share the sync.
    fn sync_soon(&mut self) {
        if let Some(wal) = &mut self.wal {
            wal.sync_now();
        }
    }

    /// Tells a leader of a newer term that others speak of.
    fn report_term(&mut self) {
        let Some(peers) = &self.seat.peers else { return };
        let (known, group) = (peers.known_term(), self.shard.group());
        if group.is_leader() && (known > group.term() || self.is_outdated) {
            self.is_outdated = known > group.term();
            self.events.push(Event::Term(known));
        }
    }

    /// Whether the replica is no more wanted, the group goes on without it, and nothing here waits for it.
    ///
    /// The meta state alone does not say that: until the group's configuration has changed the replica votes. It has
    /// changed, and the others know it, if the node was given another replica of the group (the planner does that to settled
    /// groups only), if the replica was told so, or, of one without a vote, if it has applied its removal or heard of no
    /// leader for long.
    fn may_go(&mut self) -> bool {
        let Some(peers) = &self.seat.peers else { return false };
        let is_replaced = match peers.appointment() {
            Some(appointment) if appointment.replica == self.shard.group().replica() => {
                self.unwanted_since = None;
                return false;
            }
            Some(_) => true,
            None => false,
        };
        let now = self.seat.clock.now();
        if self.shard.hears_a_leader() {
            self.unwanted_since = None;
        }
        let since = *self.unwanted_since.get_or_insert(now);
        let is_forgotten = self.shard.may_be_forgotten() && now.0 >= since.0 + DISMISSED_AFTER_MS;
        (is_replaced || self.shard.is_dismissed() || is_forgotten)
            && self.shard.is_quiet()
            && self.waiting.is_empty()
            && self.files.is_idle()
            && self.seat.routers.iter().all(|link| link.unanswered() == 0)
            && self.wal.as_ref().is_none_or(|wal| !wal.awaits_segments())
    }

    /// Gives up the replica: its log is closed, its files go, its seat is free.
    fn leave(mut self) -> Result<(Box<Seat>, SnapshotFiles), Fatal> {
        let (number, group) = (self.seat.number, self.seat.group);
        if let Some(wal) = self.wal.take() {
            wal.close().map_err(|failure| log_failed(number, failure))?;
        }
        let mut seat = self.seat;
        if let Some(peers) = &mut seat.peers {
            peers.serve_replica(ReplicaId(0));
            let path = peers.shard_path();
            replica_dir::empty(&path).map_err(|source| Fatal::Directory { path, source })?;
        }
        tracing::info!(
            shard = number,
            group = group.0,
            "the group goes on without this node's replica: its files are gone"
        );
        Ok((seat, self.files))
    }

    /// Seals and closes the log. The last thing that a shard does.
    pub fn close(self) -> Result<(), Fatal> {
        match self.wal {
            Some(wal) => wal.close().map_err(|failure| log_failed(self.seat.number, failure)),
            None => Ok(()),
        }
    }

    fn gather_events(&mut self) -> Result<(), Fatal> {
        for (number, link) in self.seat.routers.iter_mut().enumerate() {
            for _ in 0..self.seat.settings.inbox_batches_max {
                // What is left in the rings holds the router's credits, and that slows its clients down.
                if !self.shard.has_room() {
                    break;
                }
                let Some(batch) = link.receive() else { break };
                self.events.push(Event::Requests { router: number as u8, batch });
            }
        }
        while let Some((_, message)) = self.seat.mesh.receive() {
            self.events.push(Event::Message(*message));
        }
        if let Some(peers) = &mut self.seat.peers {
            peers.gather(&mut self.events, &mut self.seat.mesh);
        }
        self.files.collect(&mut self.events);
        if let Some(wal) = &mut self.wal {
            let reaped = wal.reap();
            self.reaped(reaped)?;
        }
        Ok(())
    }

    fn reaped(&mut self, reaped: Result<Reaped, WalFailure>) -> Result<(), Fatal> {
        let reaped = reaped.map_err(|failure| log_failed(self.seat.number, failure))?;
        if let Some(upto) = reaped.durable_upto {
            self.commit_times.durable(upto, self.seat.clock.elapsed_us());
            self.events.push(Event::Durable(upto));
        }
        if reaped.room && !self.waiting.is_empty() {
            self.write_waiting()?;
        }
        let has_room = !reaped.disk_full;
        if has_room != self.log_has_room {
            self.log_has_room = has_room;
            self.events.push(Event::LogRoom(has_room));
            if has_room {
                tracing::info!(shard = self.seat.number, "the log has room again");
            } else {
                tracing::error!(
                    shard = self.seat.number,
                    "the log has no room: writes answer DISK_FULL until there is space"
                );
            }
        }
        Ok(())
    }

    fn step(&mut self) -> Result<(), Fatal> {
        let now = self.seat.clock.now();
        let stepped = self.shard.step(now, &mut self.events, &mut self.effects);
        self.checked(stepped)
    }

    fn work(&mut self) -> Result<(), Fatal> {
        let begun_us = self.seat.clock.elapsed_us();
        loop {
            let now = self.seat.clock.now();
            let worked = self.shard.work(now, WORK_UNITS, &mut self.effects);
            let is_more = self.checked(worked)? == Left::More;
            self.has_more_work = is_more && (self.files.has_room() || self.shard.has_work());
            self.perform()?;
            if !self.has_more_work
                || self.seat.clock.elapsed_us() - begun_us >= self.seat.settings.work_slice_us
            {
                return Ok(());
            }
        }
    }

    /// Performs every effect: the log first, so that the disk works while replies are handed over.
    fn perform(&mut self) -> Result<(), Fatal> {
        if !self.effects.appends.is_empty() {
            self.waiting.extend(self.effects.appends.drain(..));
            self.write_waiting()?;
        }
        if let Some(wal) = &mut self.wal {
            if std::mem::take(&mut self.effects.sync_now) {
                wal.sync_now();
            }
            if let Some(upto) = self.effects.cut.take() {
                wal.cut(upto);
            }
            let flushed = wal.flush(self.seat.clock.elapsed_us() * 1000);
            flushed.map_err(|failure| log_failed(self.seat.number, failure))?;
        }
        if let Some(peers) = &mut self.seat.peers {
            // Before the replies: a follower's disk works while they are handed over.
            peers.perform(&mut self.effects, &mut self.seat.mesh);
        }
        for (number, replies) in self.effects.replies.iter_mut().enumerate() {
            if !replies.heads.is_empty() {
                let link = &mut self.seat.routers[number];
                std::mem::swap(link.batch(), replies);
                link.flush();
            }
        }
        for (router, batch) in self.effects.returned.drain(..) {
            self.seat.routers[usize::from(router)].recycle(batch);
        }
        for message in self.effects.messages.drain(..) {
            self.seat.mesh.send(message.to.0 as usize, Box::new(message));
        }
        self.seat.mesh.flush();
        self.files.perform(&mut self.effects.snapshot);
        Ok(())
    }

    /// Hands waiting batches to the log until it has no room.
    fn write_waiting(&mut self) -> Result<(), Fatal> {
        let Some(wal) = &mut self.wal else {
            assert!(self.waiting.is_empty(), "a cache hands nothing to a log");
            return Ok(());
        };
        while let Some(batch) = self.waiting.front() {
            encode_append(batch, &mut self.payload);
            // Votes and terms may use the reserve: without them the shard could not even answer reads.
            let reserved = batch.entries.is_empty();
            let append = LogAppend {
                sequence: batch.sequence,
                group: self.seat.group,
                payload: &self.payload,
                reserved,
            };
            let shard = &self.shard;
            match wal.append(&append, |out| encode_start(shard, out)) {
                Ok(()) => {
                    self.commit_times.begun(batch.sequence, self.seat.clock.elapsed_us());
                    self.waiting.pop_front();
                }
                Err(Full::Buffers | Full::Preparing) => return Ok(()),
                Err(Full::DiskFull) => {
                    if self.log_has_room {
                        self.log_has_room = false;
                        self.events.push(Event::LogRoom(false));
                        tracing::error!(
                            shard = self.seat.number,
                            "the log has no room: writes answer DISK_FULL"
                        );
                    }
                    return Ok(());
                }
                Err(Full::TooLarge) => unreachable!("limits keep an entry below half a segment"),
                // The failure is told by the next reap or flush.
                Err(Full::Failed) => return Ok(()),
            }
        }
        Ok(())
    }

    fn checked<T>(&self, result: Result<T, ShardFault>) -> Result<T, Fatal> {
        result.map_err(|fault| Fatal::Corruption { shard: self.seat.number, detail: fault.to_string() })
    }
}

fn log_failed(shard: u32, failure: WalFailure) -> Fatal {
    let (action, errno) = match failure {
        WalFailure::Write(_, errno) => ("write", errno),
        WalFailure::Sync(_, errno) => ("sync", errno),
        WalFailure::Device(errno) => ("use its io_uring", errno),
    };
    tracing::error!(shard, "{failure}");
    Fatal::LogFailed { shard, action, source: std::io::Error::from_raw_os_error(errno) }
}

/// Runs a shard on its executor until `stop` says so and nothing is under way. `appoint` makes a driver for a new replica, or
/// gives the seat back when its files are damaged.
///
/// The thread sleeps in its doorbell and not in the executor: glommio 0.9 goes to sleep with tasks ready to run when its
/// preempt timer fires between the poll of its rings and the first look at its queues, and nothing would wake it then. So
/// this future never suspends, and whatever else is spawned on this executor would not run.
///
/// # Errors
/// The reason for which the process must end.
pub async fn run(
    mut stage: Stage,
    stop: impl Fn() -> bool,
    mut appoint: impl FnMut(Box<Seat>, Option<SnapshotFiles>) -> Result<Stage, Fatal>,
) -> Result<(), Fatal> {
    // The way to the file worker, given back by a replica that was dismissed.
    let mut spare_files = None;
    loop {
        match stage {
            Stage::Serving(driver) => match drive(*driver, &stop)? {
                None => return Ok(()),
                Some((seat, files)) => {
                    spare_files = Some(files);
                    stage = Stage::Vacant(seat);
                    // What the replica held is free, in pieces: without this the node would stay as large as it was.
                    crate::sys::trim_heap();
                }
            },
            Stage::Vacant(seat) => match vacant::wait_for_replica(seat, &stop)? {
                vacant::Vacated::Stopped => return Ok(()),
                vacant::Vacated::Appointed(seat) => {
                    stage = appoint(seat, spare_files.take())?;
                }
            },
        }
    }
}

/// A shard as the host of its thread's clients.
struct Hosting<'a> {
    driver: &'a mut Driver,
    /// What its turns came to.
    outcome: Result<Turn, Fatal>,
}

impl Host for Hosting<'_> {
    fn turn(&mut self) {
        if self.outcome.is_err() {
            return;
        }
        match self.driver.turn() {
            Ok(Turn::Idle) => {}
            turned => self.outcome = turned,
        }
    }

    fn has_work(&mut self) -> bool {
        self.outcome.is_err() || self.driver.has_work()
    }
}

impl Driver {
    /// One turn of the thread: of the shard, and of the clients around it if it serves any, which then has slept where
    /// there was nothing to do. What the shard's turns came to, and whether clients were served.
    fn turn_thread(&mut self) -> Result<(Turn, bool), Fatal> {
        let Some(mut clients) = self.seat.clients.take() else { return Ok((self.turn()?, false)) };
        let (beside, sleep_ms_max) = (self.seat.beside(), self.seat.settings.tick_ms);
        let mut hosting = Hosting { driver: self, outcome: Ok(Turn::Idle) };
        let served = clients.turn(&mut hosting, beside, sleep_ms_max);
        let outcome = hosting.outcome;
        self.seat.clients = Some(clients);
        Ok((outcome?, served?))
    }
}

/// Drives a replica to the end of the process (`None`), or until it is dismissed: then its files are gone and its seat is
/// free.
fn drive(mut driver: Driver, stop: &impl Fn() -> bool) -> Result<Option<(Box<Seat>, SnapshotFiles)>, Fatal> {
    let bell = Arc::clone(driver.bell());
    let sleep = driver.longest_sleep();
    let mut asked_at_us = None;
    loop {
        if stop() {
            asked_at_us.get_or_insert_with(|| driver.seat.clock.elapsed_us());
            driver.sync_soon();
        }
        let (turn, serves) = driver.turn_thread()?;
        // Before the next turn of a thread that is busy: the building of an index is not waited for.
        if driver.may_end(asked_at_us) {
            break;
        }
        if turn == Turn::Busy {
            continue;
        }
        if !stop() && driver.may_go() {
            return driver.leave().map(Some);
        }
        if serves || spin(&mut driver) {
            continue;
        }
        bell.prepare_park();
        if !driver.may_end(asked_at_us) && !driver.has_work() {
            driver.seat.wait(sleep)?;
        }
        bell.cancel_park();
    }
    driver.close().map(|()| None)
}

/// Looks at the inbox for a while before the thread sleeps; whether something came.
fn spin(driver: &mut Driver) -> bool {
    let spin_us = driver.seat.settings.spin_us;
    if spin_us == 0 {
        return false;
    }
    let begun_us = driver.seat.clock.elapsed_us();
    while driver.seat.clock.elapsed_us() - begun_us < spin_us {
        if driver.has_work() {
            return true;
        }
        std::hint::spin_loop();
    }
    false
}

/// The lock of the data directory, lent to a log's ring.
pub fn lock_of(directory: &crate::disk::data_dir::DataDir) -> BorrowedFd<'_> {
    std::os::fd::AsFd::as_fd(directory.lock())
}
