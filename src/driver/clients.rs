//! The clients that a shard's thread serves itself (`router.mode = "inline"`): a service that is turned together with the
//! shard, in one loop that sleeps in one place.
//!
//! A shard recovers and elects before it serves: the gate opens when every shard of the server is ready. The service ends
//! before the shard does, since other threads' clients may still need it; who waits for all services learns of each end by
//! its sender being dropped. A seat that is vacant serves its clients like any other, from other nodes.

use crate::fatal::Fatal;
use crate::service::{Host, Service};
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;

/// Opens a service on the shard's own thread.
pub type Open = Box<dyn FnOnce() -> io::Result<Service>>;

/// See the module's head.
pub struct Clients {
    shard: u32,
    gate: Arc<AtomicBool>,
    stage: Stage,
    /// Dropped when the service has ended.
    end: Option<Sender<()>>,
}

enum Stage {
    /// The gate is shut.
    Waiting(Open),
    Serving(Box<Service>),
    Ended,
}

impl Clients {
    /// Clients that are served once `gate` is true and the thread's bell was rung.
    pub fn new(shard: u32, gate: Arc<AtomicBool>, open: Open, end: Sender<()>) -> Self {
        Self { shard, gate, stage: Stage::Waiting(open), end: Some(end) }
    }

    /// One turn of the thread: of the service with its host inside, or of the host alone while no clients are served, which
    /// then does not sleep; whether they were. `beside` is a descriptor that must end a sleep too.
    ///
    /// # Errors
    /// When the service cannot be opened, or its ring fails.
    pub(super) fn turn(
        &mut self,
        host: &mut impl Host,
        beside: Option<RawFd>,
        sleep_ms_max: u64,
    ) -> Result<bool, Fatal> {
        self.open_when_due(beside)?;
        let Stage::Serving(service) = &mut self.stage else {
            host.turn();
            return Ok(false);
        };
        let goes_on = service.turn(host, sleep_ms_max).map_err(|source| self.failed(&source))?;
        if !goes_on {
            // The ring lets go of its doorbell here: from now on the thread waits for it elsewhere.
            self.stage = Stage::Ended;
            self.end = None;
        }
        Ok(true)
    }

    /// Whether the gate has opened and nobody has looked yet: asked again after the park was announced.
    pub(super) fn want_to_open(&self) -> bool {
        matches!(self.stage, Stage::Waiting(_)) && self.gate.load(Ordering::Acquire)
    }

    fn open_when_due(&mut self, beside: Option<RawFd>) -> Result<(), Fatal> {
        if !self.want_to_open() {
            return Ok(());
        }
        let Stage::Waiting(open) = std::mem::replace(&mut self.stage, Stage::Ended) else {
            unreachable!("it was waiting a moment ago");
        };
        let mut service = open().map_err(|source| self.failed(&source))?;
        if let Some(fd) = beside {
            service.wait_beside(fd);
        }
        self.stage = Stage::Serving(Box::new(service));
        Ok(())
    }

    fn failed(&self, source: &io::Error) -> Fatal {
        Fatal::ThreadLost {
            thread: format!("shard {}", self.shard),
            detail: format!("its io_uring for clients failed: {source}"),
        }
    }
}
