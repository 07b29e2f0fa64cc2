//! Gathers commands into entries and proposes them: group commit without a timer.
//!
//! While batches are on their way to the disk the next entry gathers; it is proposed when the log has room for another
//! batch. So an idle shard commits at once, and a busy one pays for consensus and sync once for many commands.

use super::outbox::Waiter;
use super::{Floor, Shard, ShardFault};
use crate::command::entry::{EntryBuilder, HEAD_BYTES, LENGTH_BYTES};
use crate::ids::{KeyHash, Millis};

/// Commands that will be one entry, with who waits for each.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    entry: EntryBuilder,
    pub(super) waiters: Vec<Waiter>,
}

/// An entry on its way.
#[derive(Debug)]
pub(super) struct Proposed {
    /// Its index.
    pub(super) index: u64,
    /// The term in which it was proposed.
    pub(super) term: u64,
    /// Bytes of its commands, as the budget counts them.
    pub(super) bytes: usize,
    /// Who waits, by position in the entry.
    pub(super) waiters: Vec<Waiter>,
}

/// Memory that the next entry takes at once, at most; what is rarely as large grows as it comes.
const ROOM_BYTES_MAX: usize = 256 << 10;

impl Gathered {
    /// The data of an entry that is never proposed, and who waits for its commands.
    pub(super) fn take_apart(self) -> (Vec<u8>, Vec<Waiter>) {
        (self.entry.finish(0, Millis(0)), self.waiters)
    }

    /// Hands over what has gathered and begins anew with room for as much again, so that a busy shard takes the memory of
    /// an entry once and not in ever larger pieces.
    fn take(&mut self) -> Self {
        let entry = EntryBuilder::new(self.entry.length().min(ROOM_BYTES_MAX));
        let next = Self { entry, waiters: Vec::with_capacity(self.waiters.len()) };
        std::mem::replace(self, next)
    }

    /// Whether nothing has gathered.
    pub(super) fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }
}

impl Shard {
    /// Adds an encoded record to the next entry. `hash` of the key marks a write of it as pending.
    pub(super) fn gather(&mut self, record: &[u8], waiter: Waiter, hash: Option<KeyHash>) {
        let entry = &self.gathered.entry;
        let is_full = entry.count() >= self.config.entry_commands_max
            || entry.length() + record.len() > self.config.entry_bytes_max;
        if is_full && !self.gathered.is_empty() {
            self.sealed.push_back(self.gathered.take());
        }
        self.gathered.entry.push(record);
        self.budget.take(record.len() + LENGTH_BYTES);
        self.gathered.waiters.push(waiter);
        if let Some(hash) = hash {
            self.pending.add(hash);
        }
    }

    /// The index that everything admitted so far will have been applied at.
    pub(super) fn horizon(&self) -> u64 {
        let unproposed = self.sealed.len() as u64 + u64::from(!self.gathered.is_empty());
        self.group.last_index() + unproposed
    }

    /// The position that the next command will have in the entry at the horizon; beyond all of them when that entry is
    /// closed.
    pub(super) fn next_position(&self) -> u16 {
        match self.gathered.is_empty() {
            true => u16::MAX,
            false => self.gathered.entry.count() as u16,
        }
    }

    /// Proposes what may be proposed now.
    pub(super) fn propose_some(&mut self) -> Result<(), ShardFault> {
        while self.may_propose() {
            let gathered = self.sealed.pop_front().unwrap_or_else(|| self.gathered.take());
            self.stamp = self.stamp.max(self.now);
            let Gathered { entry, waiters } = gathered;
            let data = entry.finish(self.epoch, self.stamp);
            let bytes = data.len() - HEAD_BYTES;
            let index = self.group.propose(data)?;
            self.proposed.push_back(Proposed { index, term: self.group.term(), bytes, waiters });
            self.counters.entries += 1;
        }
        Ok(())
    }

    fn may_propose(&self) -> bool {
        if !self.is_ready || (self.sealed.is_empty() && self.gathered.is_empty()) {
            return false;
        }
        if !self.group.may_propose() {
            // Leadership is being handed over: what gathers is proposed if that fails, and goes back if it does not.
            return false;
        }
        if self.snapshot_is_behind() || self.indexing_is_behind() || self.slices.is_behind() {
            return false;
        }
        if self.config.floor != Floor::Always {
            // Nothing waits for the disk, so there is no reason to gather beyond one step.
            return self.group.in_flight() < UNSYNCED_BATCHES_MAX;
        }
        let in_flight = self.group.in_flight();
        let is_worth_it =
            !self.sealed.is_empty() || self.gathered.waiters.len() >= self.config.gather_commands_min;
        in_flight == 0 || (in_flight < self.config.commits_in_flight_max && is_worth_it)
    }
}

/// Most batches handed to a log that is synced behind, so that a disk that stands still stops the writes at last.
const UNSYNCED_BATCHES_MAX: usize = 65_536;
