//! Counts the bytes of commands that a shard has admitted and not yet applied, so that they have a bound.
//!
//! Three holders: entries that gather or are on their way through the log, requests that wait for something (each carries a
//! [`Charge`] that gives its bytes back wherever it is dropped), and plans of transactions that are about to open. What
//! transactions under way hold is counted by their own rooms. Nothing here refuses anything: admission asks. [`Burden`] tells
//! all that a shard holds for others, for those who check that it has bounds.

use super::Shard;
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

/// What a shard holds at one moment for requests, transactions and other replicas: each has a bound, and without requests
/// all of it goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Burden {
    /// Bytes of commands that are admitted and not yet applied, transactions under way included.
    pub outstanding_bytes: usize,
    /// Bytes of log entries in memory, about.
    pub entry_bytes: usize,
    /// Entries that are committed and not applied.
    pub unapplied: usize,
    /// Batches of the log that are not durable, or entries that are not committed.
    pub in_flight: usize,
    /// Requests that wait for anything but their entry.
    pub waiting: usize,
    /// Replies and messages that wait for a sync.
    pub gated: usize,
    /// Transactions that this replica drives, and notes about those that it takes part in.
    pub transactions: usize,
    /// Intents in its state.
    pub intents: usize,
    /// Keys that are to be indexed.
    pub backlog: usize,
}

impl Burden {
    /// Whether nothing is left of requests and transactions. Entries in memory are for replicas that may yet ask for them.
    pub fn is_none(&self) -> bool {
        *self == Self { entry_bytes: self.entry_bytes, ..Self::default() }
    }

    /// The larger of each.
    #[must_use]
    pub fn max(&self, other: &Self) -> Self {
        Self {
            outstanding_bytes: self.outstanding_bytes.max(other.outstanding_bytes),
            entry_bytes: self.entry_bytes.max(other.entry_bytes),
            unapplied: self.unapplied.max(other.unapplied),
            in_flight: self.in_flight.max(other.in_flight),
            waiting: self.waiting.max(other.waiting),
            gated: self.gated.max(other.gated),
            transactions: self.transactions.max(other.transactions),
            intents: self.intents.max(other.intents),
            backlog: self.backlog.max(other.backlog),
        }
    }
}

impl Shard {
    /// What the shard holds now.
    pub fn burden(&self) -> Burden {
        let notes = self.waiting_prepares.len() + self.preparing.len() + self.finishing.len();
        Burden {
            outstanding_bytes: self.outstanding_bytes(),
            entry_bytes: self.group.entry_bytes(),
            unapplied: self.slices.len(),
            in_flight: self.group.in_flight(),
            waiting: self.reads.len() + self.scans.len() + self.locks.waiting() + self.searches_waiting(),
            gated: self.gated.len(),
            transactions: self.coordinator.len() + self.txn_waiters.len() + self.tickets.len() + notes,
            intents: self.txns.intents().count(),
            backlog: self.index_backlog(),
        }
    }
}
