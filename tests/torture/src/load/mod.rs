//! The load: clients on threads of their own that write, read and record, can be told to rest, and say what they did.
//!
//! Clients work on the objects of the present epoch, so that histories stay short enough to be judged; the harness begins a new
//! epoch after each round. Values are unique over the whole run.

mod worker;

use crate::check::Event;
use crate::client::Client;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Keys of each batch, spread over the shards.
pub const BATCH_KEYS: u64 = 6;
/// Registers, compare-and-set keys and batches of one epoch.
pub const REGISTERS: u64 = 4;
/// Compare-and-set keys of one epoch.
pub const SWAPS: u64 = 3;
/// Batches of one epoch.
pub const BATCHES: u64 = 2;

/// Names of the objects.
pub mod name {
    /// A register.
    pub fn register(epoch: u64, number: u64) -> String {
        format!("e{epoch}:register{number}")
    }

    /// A key that is compared and set.
    pub fn swap(epoch: u64, number: u64) -> String {
        format!("e{epoch}:swap{number}")
    }

    /// A batch.
    pub fn batch(epoch: u64, number: u64) -> String {
        format!("e{epoch}:batch{number}")
    }

    /// One key of a batch.
    pub fn batch_key(epoch: u64, number: u64, key: u64) -> String {
        format!("e{epoch}:batch{number}:{key}")
    }

    /// A counter that everybody raises.
    pub fn counter(epoch: u64) -> String {
        format!("e{epoch}:counter")
    }

    /// A counter of one client.
    pub fn own_counter(client: &str) -> String {
        format!("{client}:counter")
    }
}

/// What all clients share.
struct Shared {
    stop: AtomicBool,
    rest: AtomicBool,
    resting: AtomicUsize,
    epoch: AtomicU64,
    /// Positions in one global order, and unique values.
    clock: AtomicU64,
    events: Mutex<Vec<Event>>,
    counted: Mutex<Vec<i64>>,
    violations: Mutex<Vec<String>>,
    longest_us: AtomicU64,
    requests: AtomicU64,
    retries: AtomicU64,
    seq_expired: AtomicU64,
}

impl Shared {
    fn tick(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn violate(&self, text: String) {
        self.violations.lock().expect("no client panics with the lock").push(text);
    }
}

/// Clients at work.
pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

/// What the clients recorded since it was last taken.
#[derive(Debug, Default)]
pub struct Recorded {
    /// Operations on registers, compare-and-set keys and batches.
    pub events: Vec<Event>,
    /// Answers of the shared counter.
    pub counted: Vec<i64>,
    /// What clients saw that must not be.
    pub violations: Vec<String>,
}

/// Figures of the load.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Requests that were answered for good.
    pub requests: u64,
    /// Tries beyond the first.
    pub retries: u64,
    /// Retries that came too late to be remembered.
    pub seq_expired: u64,
}

impl Load {
    /// Starts so many clients, each beginning at another node.
    pub fn begin(
        nodes: &[SocketAddr],
        clients: usize,
        patience: Duration,
        pause: Duration,
        seed: u64,
    ) -> Self {
        Self::begin_with(nodes, clients, patience, pause, seed, "linearizable")
    }

    /// As [`Self::begin`], with reads of this consistency.
    pub fn begin_with(
        nodes: &[SocketAddr],
        clients: usize,
        patience: Duration,
        pause: Duration,
        seed: u64,
        consistency: &'static str,
    ) -> Self {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            rest: AtomicBool::new(false),
            resting: AtomicUsize::new(0),
            epoch: AtomicU64::new(0),
            clock: AtomicU64::new(1),
            events: Mutex::default(),
            counted: Mutex::default(),
            violations: Mutex::default(),
            longest_us: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            seq_expired: AtomicU64::new(0),
        });
        let start = |number: usize| {
            let client = Client::new(format!("c{seed}-{number}"), nodes.to_vec(), number, patience);
            let worker =
                worker::Worker::new(client, Arc::clone(&shared), seed + number as u64, pause, consistency);
            std::thread::spawn(move || worker.run())
        };
        let clients = (0..clients).map(start).collect();
        Self { shared, clients }
    }

    /// A position in the clients' global order, for operations of the harness itself.
    pub fn tick(&self) -> u64 {
        self.shared.tick()
    }

    /// The present epoch.
    pub fn epoch(&self) -> u64 {
        self.shared.epoch.load(Ordering::SeqCst)
    }

    /// The longest that a request took since this was last asked.
    pub fn take_longest(&self) -> Duration {
        Duration::from_micros(self.shared.longest_us.swap(0, Ordering::AcqRel))
    }

    /// Whether a client saw what must not be.
    pub fn has_violations(&self) -> bool {
        !self.shared.violations.lock().expect("no client panics with the lock").is_empty()
    }

    /// Tells every client to rest once its request is answered, and waits until all do.
    ///
    /// # Errors
    /// When one does not in time.
    pub fn rest(&self, within: Duration) -> Result<(), String> {
        self.shared.rest.store(true, Ordering::SeqCst);
        let begun = Instant::now();
        while self.shared.resting.load(Ordering::SeqCst) < self.clients.len() {
            if self.clients.iter().any(JoinHandle::is_finished) {
                return Err("a client ended: see its violation".to_owned());
            }
            if begun.elapsed() > within {
                return Err(format!("a request is not answered {within:?} after all was healed"));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Begins a new epoch and lets the clients go on.
    pub fn resume(&self) {
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        self.shared.rest.store(false, Ordering::SeqCst);
    }

    /// Takes what was recorded. Complete only while the clients rest.
    pub fn take_recorded(&self) -> Recorded {
        let take = "no client panics with the lock";
        Recorded {
            events: std::mem::take(&mut *self.shared.events.lock().expect(take)),
            counted: std::mem::take(&mut *self.shared.counted.lock().expect(take)),
            violations: std::mem::take(&mut *self.shared.violations.lock().expect(take)),
        }
    }

    /// Figures so far.
    pub fn figures(&self) -> Figures {
        Figures {
            requests: self.shared.requests.load(Ordering::Relaxed),
            retries: self.shared.retries.load(Ordering::Relaxed),
            seq_expired: self.shared.seq_expired.load(Ordering::Relaxed),
        }
    }

    /// Lets the clients be: after a finding they may wait for answers that never come.
    pub fn abandon(self) {
        self.shared.stop.store(true, Ordering::SeqCst);
    }

    /// Ends all clients.
    pub fn stop(self) -> Figures {
        self.shared.stop.store(true, Ordering::SeqCst);
        let figures = Self::figures(&self);
        for client in self.clients {
            if client.join().is_err() {
                self.shared.violate("a client panicked".to_owned());
            }
        }
        figures
    }
}
