//! Counts the bytes of commands that a shard has admitted and not yet applied, so that they have a bound.
//!
//! Three holders: entries that gather or are on their way through the log, requests that wait for something (each carries a
//! [`Charge`] that gives its bytes back wherever it is dropped), and plans of transactions that are about to open. What
//! transactions under way hold is counted by their own rooms. Nothing here refuses anything: admission asks.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Budget {
    in_entries: usize,
    in_plans: usize,
    /// Shared with the charges only, which stay in the shard's thread.
    parked: Arc<AtomicUsize>,
}

/// The bytes of a request that waits.
#[derive(Debug)]
pub(super) struct Charge {
    parked: Arc<AtomicUsize>,
    bytes: usize,
}

impl Budget {
    /// Bytes that are held now.
    pub(super) fn bytes(&self) -> usize {
        self.in_entries + self.in_plans + self.parked.load(Ordering::Relaxed)
    }

    /// A command has gone into an entry.
    pub(super) fn take(&mut self, bytes: usize) {
        self.in_entries += bytes;
    }

    /// An entry that this leader proposed is applied.
    pub(super) fn release(&mut self, bytes: usize) {
        self.in_entries = self.in_entries.checked_sub(bytes).expect("what is applied was admitted before");
    }

    /// A transaction's plan waits for its OPEN.
    pub(super) fn take_plan(&mut self, bytes: usize) {
        self.in_plans += bytes;
    }

    /// The OPEN is applied.
    pub(super) fn release_plan(&mut self, bytes: usize) {
        self.in_plans = self.in_plans.checked_sub(bytes).expect("a plan that opens was admitted before");
    }

    /// A request waits until the charge is dropped.
    pub(super) fn charge(&self, bytes: usize) -> Charge {
        self.parked.fetch_add(bytes, Ordering::Relaxed);
        Charge { parked: Arc::clone(&self.parked), bytes }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.parked.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
