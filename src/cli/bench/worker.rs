//! One thread of load: epoll over its connections, closed or open loop.
//!
//! A turn takes what is readable, checks each reply, and answers every connection's replies with as many new requests in
//! one write, so that a batch shares its system calls. In an open loop requests are due at fixed times whatever the server
//! does; one that finds all connections full waits, and its latency counts from when it was due (no coordinated omission:
//! Tene, "How NOT to measure latency", 2013).

use super::dialect::{Dialect, Kind, Material, Question, Verdict};
use super::link::{Flushed, Link, UnderWay};
use super::plan::{Phase, Request, Source};
use super::shards::{Shards, Ways};
use super::tally::{Group, Tally};
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What a worker shows while it works.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    /// Replies so far.
    pub(super) replies: AtomicU64,
}

/// One value in so many is compared.
const COMPARE_EVERY: u64 = 1024;

/// Bytes read at once.
const RECEIVE_BYTES: usize = 256 << 10;

/// Events taken at once.
const EVENTS_MAX: usize = 1024;

/// A server that answers nothing for so long is given up.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// At the end, replies under way may take so long.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// A wait shorter than the kernel's timer slack is spent polling, or requests of an open loop would leave late.
const SPIN_MAX_NS: u64 = 100_000;

/// The longest wait: how late a worker notices that another failed.
const WAIT_MAX_NS: u64 = 100_000_000;

/// A thread of load.
pub(super) struct Worker<'p, D> {
    dialect: D,
    phase: &'p Phase,
    material: &'p Material,
    source: Source<'p>,
    links: Vec<Link>,
    /// Links with output that was put there since the last flush.
    touched: Vec<usize>,
    /// With --shard-aware: which link a request takes.
    ways: Option<Ways<'p>>,
    poller: OwnedFd,
    pulse: &'p Pulse,
    /// Set by a thread that failed: the others end too.
    failed: &'p AtomicBool,
    tally: Tally,
    began: Instant,
    /// The source has nothing more.
    is_dry: bool,
    /// Requests under way over all links.
    under_way: usize,
    pace: Option<Pace>,
    /// Replies to values since the start, for sampling.
    values: u64,
}

/// When the requests of an open loop are due.
#[derive(Debug)]
struct Pace {
    interval_ns: f64,
    /// How many were sent.
    sent: u64,
    /// Of the first, so that threads interleave.
    offset_ns: f64,
    /// The link to be asked next.
    turn: usize,
}

impl Pace {
    fn next_due_ns(&self) -> u64 {
        (self.offset_ns + self.sent as f64 * self.interval_ns) as u64
    }
}

/// Where a worker stands: which of how many threads it is, and which servers it loads; connections take turns among them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'p> {
    pub(super) thread: usize,
    pub(super) threads: usize,
    pub(super) addresses: &'p [SocketAddr],
    /// With --shard-aware: the shards' own ports.
    pub(super) shards: Option<&'p Shards>,
}

impl<'p, D: Dialect> Worker<'p, D> {
    /// Connects. `began` is set when the load starts.
    ///
    /// # Errors
    /// A sentence for the user.
    pub(super) fn connect(
        dialect: D,
        place: Place<'p>,
        phase: &'p Phase,
        material: &'p Material,
        source: Source<'p>,
        pulse: &'p Pulse,
        failed: &'p AtomicBool,
    ) -> Result<Self, String> {
        let kernel = |error: rustix::io::Errno| format!("epoll failed: {error}.");
        let poller = epoll::create(CreateFlags::CLOEXEC).map_err(kernel)?;
        let mine = (place.thread..phase.connections).step_by(place.threads);
        let mut links = Vec::new();
        for number in mine {
            let of_shard =
                |shards: &Shards| shards.addresses[Ways::shard_of_link(shards, place.thread, links.len())];
            let address = place.shards.map_or(place.addresses[number % place.addresses.len()], of_shard);
            let link = TcpStream::connect(address).and_then(|stream| Link::new(stream, dialect.greeting()));
            let link = link.map_err(|error| cannot_connect(address, links.len(), &error))?;
            let data = EventData::new_u64(links.len() as u64);
            epoll::add(&poller, &link.stream, data, EventFlags::IN).map_err(kernel)?;
            links.push(link);
        }
        let pace = phase.rate.map(|rate| {
            let interval_ns = 1e9 * place.threads as f64 / rate;
            let offset_ns = interval_ns * place.thread as f64 / place.threads as f64;
            Pace { interval_ns, sent: 0, offset_ns, turn: 0 }
        });
        let ways = place.shards.map(|shards| Ways::new(shards, place.thread, links.len()));
        Ok(Self {
            dialect,
            phase,
            material,
            source,
            links,
            touched: Vec::new(),
            ways,
            poller,
            pulse,
            failed,
            tally: Tally::new(phase),
            began: Instant::now(),
            is_dry: false,
            under_way: 0,
            pace,
            values: 0,
        })
    }

    /// Loads until the phase is over.
    ///
    /// # Errors
    /// A sentence for the user: the server went away, fell silent or does not speak the protocol.
    pub(super) fn run(mut self, began: Instant) -> Result<Tally, String> {
        self.began = began;
        let outcome = self.load();
        if outcome.is_err() {
            self.failed.store(true, Ordering::Relaxed);
        }
        self.tally.unanswered += self.under_way as u64;
        outcome.map(|()| self.tally)
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn load(&mut self) -> Result<(), String> {
        let mut buffer = vec![0; RECEIVE_BYTES];
        let mut events = Vec::with_capacity(EVENTS_MAX);
        let end_ns = self.tally.end_ns();
        if self.pace.is_none() {
            for at in 0..self.links.len() {
                let now_ns = self.now_ns();
                (0..self.phase.depth).for_each(|_| self.issue(at, now_ns));
                self.flush_touched()?;
            }
        }
        let mut drain_since = None;
        let mut progress_ns = self.now_ns();
        loop {
            let now_ns = self.now_ns();
            // What was due before the end is still sent after it, or the last stall would cost nothing.
            let all_sent = self.pace.as_ref().is_none_or(|pace| pace.next_due_ns() >= end_ns);
            self.is_dry |= now_ns >= end_ns && all_sent;
            if self.is_dry || now_ns >= end_ns {
                let since = *drain_since.get_or_insert(now_ns);
                let patience_over = now_ns.saturating_sub(since) > super::tally::nanos(DRAIN_MAX);
                if self.is_dry && self.under_way == 0 || patience_over && end_ns != u64::MAX {
                    self.tally.unsent +=
                        self.pace.as_ref().map_or(0, |pace| overdue(pace, now_ns.min(end_ns)));
                    return Ok(());
                }
            }
            if !self.is_dry {
                self.issue_due(now_ns.min(end_ns - 1))?;
            }
            if self.under_way == 0 {
                progress_ns = now_ns;
            } else if now_ns.saturating_sub(progress_ns) > super::tally::nanos(SILENCE_MAX) {
                return Err(format!(
                    "The server has answered nothing for {} seconds while {} requests wait. Its log may say why.",
                    SILENCE_MAX.as_secs(),
                    self.under_way
                ));
            }
            if self.failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            self.wait(&mut events, now_ns, end_ns)?;
            for event in events.drain(..) {
                let (flags, at) = (event.flags, { event.data }.u64() as usize);
                if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                    progress_ns = self.receive(at, &mut buffer)?;
                } else if flags.contains(EventFlags::OUT) {
                    self.flush(at)?;
                }
            }
        }
    }

    fn wait(&self, events: &mut Vec<epoll::Event>, now_ns: u64, end_ns: u64) -> Result<(), String> {
        let is_over = self.is_dry || now_ns >= end_ns;
        let mut until_ns = if is_over { now_ns + WAIT_MAX_NS } else { end_ns.min(now_ns + WAIT_MAX_NS) };
        if let Some(pace) = &self.pace
            && !self.is_dry
        {
            // What is overdue now waits for a reply, not for time.
            let due_ns = pace.next_due_ns();
            if due_ns > now_ns {
                until_ns = until_ns.min(due_ns);
            }
        }
        let mut wait_ns = until_ns.saturating_sub(now_ns);
        if self.pace.is_some() && wait_ns <= SPIN_MAX_NS {
            wait_ns = 0;
        }
        let timeout = Timespec { tv_sec: 0, tv_nsec: i64::try_from(wait_ns).expect("waits are short") };
        match epoll::wait(&self.poller, spare_capacity(events), Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(format!("epoll failed: {error}.")),
        }
    }

    /// Puts the next request of the source on a link; it is due at this time.
    fn issue(&mut self, at: usize, due_ns: u64) {
        if self.is_dry {
            return;
        }
        match self.source.next() {
            Some(request) => {
                let at = match &mut self.ways {
                    Some(ways) => ways.choose(self.material, request.kind, request.key, at),
                    None => at,
                };
                self.put(at, request, due_ns);
            }
            None => self.is_dry = true,
        }
    }

    fn put(&mut self, at: usize, Request { kind, key, salt }: Request, due_ns: u64) {
        let link = &mut self.links[at];
        if link.out.is_empty() || link.asked == 0 {
            self.touched.push(at);
        }
        let question = Question { kind, key, salt, place: link.asked };
        self.dialect.push(self.material, question, &mut link.out);
        link.asked += 1;
        link.under_way.push_back(UnderWay { due_ns, key, kind });
        self.under_way += 1;
    }

    /// Sends every request of the open loop that is due and finds a link with room.
    fn issue_due(&mut self, now_ns: u64) -> Result<(), String> {
        let Some(mut pace) = self.pace.take() else { return Ok(()) };
        let links = self.links.len();
        let mut full = 0;
        while pace.next_due_ns() <= now_ns && full < links && !self.is_dry {
            let at = pace.turn;
            pace.turn = (pace.turn + 1) % links;
            if self.links[at].under_way.len() >= self.phase.depth {
                full += 1;
                continue;
            }
            full = 0;
            self.issue(at, pace.next_due_ns());
            pace.sent += 1;
        }
        self.pace = Some(pace);
        self.flush_touched()
    }

    /// Sends what was put on links; those whose sockets are full already are told of by the poller.
    fn flush_touched(&mut self) -> Result<(), String> {
        while let Some(at) = self.touched.pop() {
            self.flush(at)?;
        }
        Ok(())
    }

    fn flush(&mut self, at: usize) -> Result<(), String> {
        let link = &mut self.links[at];
        let (flushed, count) = link.flush().map_err(|error| lost(&error))?;
        self.tally.sent_bytes += count as u64;
        let waits = flushed == Flushed::SocketFull;
        if waits != link.waits_to_write {
            link.waits_to_write = waits;
            let flags = if waits { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
            let changed = epoll::modify(&self.poller, &link.stream, EventData::new_u64(at as u64), flags);
            changed.map_err(|error| format!("epoll failed: {error}."))?;
        }
        Ok(())
    }

    /// Takes what a link has to say, and asks again as often as it answered. Returns the time.
    fn receive(&mut self, at: usize, buffer: &mut [u8]) -> Result<u64, String> {
        let count = self.links[at].receive(buffer).map_err(|error| lost(&error))?;
        let now_ns = self.now_ns();
        if count == 0 {
            return Ok(now_ns);
        }
        self.tally.received_bytes += count as u64;
        if let Some(ways) = &mut self.ways {
            ways.turn_over();
        }
        let Checked { replies, modify } = self.check(at, &buffer[..count], now_ns)?;
        self.under_way -= replies;
        // The write of a read-modify-write takes its read's place, and its latency is that of both.
        let writes = modify.len();
        for read in modify {
            let request = Request { kind: Kind::ModifyRead, key: read.key, salt: self.values };
            self.put(at, request, read.due_ns);
        }
        if self.pace.is_none() {
            (0..replies - writes).for_each(|_| self.issue(at, now_ns));
        }
        self.pulse.replies.fetch_add(replies as u64, Ordering::Relaxed);
        self.flush_touched()?;
        if !self.links[at].out.is_empty() {
            self.flush(at)?;
        }
        Ok(now_ns)
    }

    /// Counts and checks the replies in these bytes.
    fn check(&mut self, at: usize, bytes: &[u8], now_ns: u64) -> Result<Checked, String> {
        let Self { dialect, material, tally, links, values, .. } = self;
        let mut checked = Checked { replies: 0, modify: Vec::new() };
        let mut runs: [Option<Run>; Group::ALL.len()] = Default::default();
        let take = |request: UnderWay, verdict: Verdict, reply: &[u8]| {
            checked.replies += 1;
            match verdict {
                Verdict::Success => {
                    *values += 1;
                    if request.kind == Kind::Get && (*values).is_multiple_of(COMPARE_EVERY) {
                        compare(*dialect, material, tally, request.key, reply);
                    }
                }
                Verdict::Absent => tally.absent += 1,
                Verdict::Error => {
                    tally.errors += 1;
                    tally.problem(|| format!("A request was refused: {}", dialect.explain(reply)));
                }
            }
            if request.kind == Kind::ReadToModify && verdict != Verdict::Error {
                checked.modify.push(request);
            }
            let items = if request.kind == Kind::BulkSet { material.batch as u64 } else { 1 };
            let group = Group::of(request.kind);
            // Requests that were sent together and answered together are counted together.
            match &mut runs[group as usize] {
                Some(run) if run.due_ns == request.due_ns => {
                    run.count += 1;
                    run.items += items;
                }
                slot => {
                    let next = Run { due_ns: request.due_ns, count: 1, items };
                    if let Some(run) = slot.replace(next) {
                        tally.replied(group, run.due_ns, now_ns, run.count, run.items);
                    }
                }
            }
        };
        links[at].replies(*dialect, bytes, take)?;
        for (group, run) in Group::ALL.into_iter().zip(runs) {
            if let Some(run) = run {
                tally.replied(group, run.due_ns, now_ns, run.count, run.items);
            }
        }
        Ok(checked)
    }
}

/// What came of some bytes.
struct Checked {
    replies: usize,
    /// Reads whose value is to be written back.
    modify: Vec<UnderWay>,
}

/// Replies of one group that were due at one time.
#[derive(Debug)]
struct Run {
    due_ns: u64,
    count: u64,
    items: u64,
}

/// Whether a read's value is one that belongs to its key.
fn compare(dialect: impl Dialect, material: &Material, tally: &mut Tally, key: u64, reply: &[u8]) {
    if material.objects {
        return;
    }
    tally.compared += 1;
    let value = dialect.value(reply).map(|range| &reply[range]);
    if !value.is_some_and(|value| material.is_value_of(key, value)) {
        tally.wrong += 1;
        let (key, reply) = (key.to_owned(), dialect.explain(reply));
        tally.problem(|| {
            format!(
                "Key number {key} does not hold what this generator writes, so this is somebody else's data or a defect: \
                 {reply}. (Runs with another --value-bytes need a load first.)"
            )
        });
    }
}

/// Requests that were due before the end and never sent.
fn overdue(pace: &Pace, end_ns: u64) -> u64 {
    let due = ((end_ns as f64 - pace.offset_ns) / pace.interval_ns).max(0.0) as u64;
    due.saturating_sub(pace.sent)
}

fn lost(error: &std::io::Error) -> String {
    format!("A connection was lost: {error}. The server's log says why it closed, if it still runs.")
}

fn cannot_connect(address: SocketAddr, made: usize, error: &std::io::Error) -> String {
    let advice = match error.raw_os_error() {
        Some(libc::EMFILE) => "Raise the limit of open files (`ulimit -n`), or ask for fewer --connections",
        _ if made > 0 => "The server takes no more, or its accept queue is full; ask for fewer --connections",
        _ => "Is a server running there? `strand serve` starts one; --address names another",
    };
    format!("Cannot connect to {address}: {error}. {advice}.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_loop_is_due_at_fixed_times() {
        let mut pace = Pace { interval_ns: 1000.0, sent: 0, offset_ns: 500.0, turn: 0 };
        assert_eq!(pace.next_due_ns(), 500);
        pace.sent = 7;
        assert_eq!(pace.next_due_ns(), 7500);
        assert_eq!(overdue(&pace, 10_500), 3);
        assert_eq!(overdue(&pace, 0), 0);
    }
}
