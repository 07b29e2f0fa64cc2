//! What this server is and how it is asked to stop: made at boot, shared by every router, read by commands that describe
//! the server. Nothing here is touched by requests on keys but one flag.

use super::figures::RouterBoard;
use crate::doorbell::Doorbell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// The version that INFO and HELLO tell.
pub const SERVER_VERSION: &str = env!("CARGO_PKG_VERSION");

/// Facts about this process.
#[derive(Debug)]
pub struct ServerFacts {
    /// This node's id.
    pub node_id: String,
    /// `HOST:PORT` at which clients reach it.
    pub address: String,
    /// Milliseconds of the router's clock at the start, for the uptime.
    pub started: shards::ids::Millis,
    /// JSON members that INFO appends as they are, such as `"wal":{...},"profile":"throughput"`; empty for none.
    pub extra: Mutex<String>,
    /// The port of each shard's own thread, by group; empty unless shards' threads serve clients themselves.
    pub shard_ports: Vec<u16>,
    /// What each router has to tell in INFO.
    pub routers: RouterBoard,
    /// Asks for the end.
    pub stop: Arc<StopHandle>,
}

/// Asks the server to stop in good order, as SIGTERM does.
#[derive(Debug, Default)]
pub struct StopHandle {
    requested: AtomicBool,
    bells: Vec<Arc<Doorbell>>,
    /// Done before the stop takes effect: in a cluster, leadership is handed over.
    before: OnceLock<Before>,
    is_under_way: AtomicBool,
}

/// What is done before a stop takes effect; it may take a moment.
struct Before(Box<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for Before {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Before")
    }
}

impl StopHandle {
    /// A handle that rings these bells when the stop is requested.
    pub fn new(bells: Vec<Arc<Doorbell>>) -> Arc<Self> {
        Arc::new(Self { bells, ..Self::default() })
    }

    /// Has this done before a stop takes effect. To be called once, before anybody can ask for the stop.
    pub fn precede(&self, before: impl Fn() + Send + Sync + 'static) {
        // A second one would be a defect of the start, and the first goes on to hold.
        let _ = self.before.set(Before(Box::new(before)));
    }

    /// Asks for the stop and returns at once; asking again changes nothing. Once it takes effect, routers answer new requests
    /// SHUTTING_DOWN.
    pub fn request(self: &Arc<Self>) {
        if self.is_under_way.swap(true, Ordering::AcqRel) {
            return;
        }
        let this = Arc::clone(self);
        let run = move || {
            if let Some(before) = this.before.get() {
                (before.0)();
            }
            this.take_effect();
        };
        // Without a thread to wait in, the stop takes effect without what should precede it.
        if self.before.get().is_none()
            || std::thread::Builder::new().name("stop".to_owned()).spawn(run).is_err()
        {
            self.take_effect();
        }
    }

    fn take_effect(&self) {
        self.requested.store(true, Ordering::Release);
        for bell in &self.bells {
            bell.ring();
        }
    }

    /// Whether the stop was requested.
    #[inline]
    pub fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }
}

/// Bytes of this process in memory; `None` when the system does not say.
pub(super) fn resident_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_wakes_who_waits() {
        let bell = Doorbell::new().unwrap();
        let stop = StopHandle::new(vec![Arc::clone(&bell)]);
        assert!(!stop.is_requested());
        bell.prepare_park();
        stop.request();
        assert!(stop.is_requested());
        assert!(!bell.ring(), "the stop took the flag");
    }

    #[test]
    fn what_precedes_a_stop_is_done_before_it_takes_effect() {
        let stop = StopHandle::new(Vec::new());
        let (done, was_done) = std::sync::mpsc::channel();
        let seen = Arc::clone(&stop);
        stop.precede(move || done.send(seen.is_requested()).unwrap());
        stop.request();
        assert!(!was_done.recv().unwrap(), "not yet in effect");
        while !stop.is_requested() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_process_has_a_size() {
        assert!(resident_bytes().unwrap() > 1 << 20);
    }
}
