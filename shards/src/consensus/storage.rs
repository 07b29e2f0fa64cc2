//! The part of the Raft log that is still in memory, as raft-rs wants to read it.
//!
//! Entries are put here when they are handed to the log, before raft hears of it, and dropped once applied. What must
//! be read from disk for a follower far behind is not the duty of this room. It never fails with an I/O error.

use raft::prelude::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};
use std::collections::VecDeque;

/// Raft's view of one group's log: a truncated prefix, known by its last index and term, and entries after it.
#[derive(Debug, Default)]
pub struct EntryStore {
    hard_state: HardState,
    conf_state: ConfState,
    truncated_index: u64,
    truncated_term: u64,
    entries: VecDeque<Entry>,
}

impl EntryStore {
    /// A log whose entries up to `truncated_index` (of term `truncated_term`) are in the state already.
    pub fn new(
        hard_state: HardState,
        conf_state: ConfState,
        truncated_index: u64,
        truncated_term: u64,
    ) -> Self {
        Self { hard_state, conf_state, truncated_index, truncated_term, entries: VecDeque::new() }
    }

    /// Index of the last entry, also when it is truncated.
    pub fn last(&self) -> u64 {
        self.truncated_index + self.entries.len() as u64
    }

    /// Appends entries, replacing those from the first one's index on.
    ///
    /// # Panics
    /// When they leave a gap or replace a truncated entry: raft never asks for either.
    pub fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first() else { return };
        assert!(first.index > self.truncated_index, "applied entries are never replaced");
        assert!(first.index <= self.last() + 1, "entries leave no gap");
        self.entries.truncate((first.index - self.truncated_index - 1) as usize);
        self.entries.extend(entries.iter().cloned());
    }

    /// Drops the entries up to `index`, which are applied and not needed by any peer.
    pub fn truncate_to(&mut self, index: u64) {
        while let Some(first) = self.entries.front() {
            if first.index > index {
                break;
            }
            self.truncated_index = first.index;
            self.truncated_term = first.term;
            self.entries.pop_front();
        }
    }

    /// Takes over a hard state that is on its way to the log.
    pub fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    /// The hard state last given.
    pub fn hard_state(&self) -> &HardState {
        &self.hard_state
    }

    /// The configuration last given.
    pub fn conf_state(&self) -> &ConfState {
        &self.conf_state
    }

    fn entry(&self, index: u64) -> Option<&Entry> {
        self.entries.get(index.checked_sub(self.truncated_index + 1)? as usize)
    }
}

impl Storage for EntryStore {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState::new(self.hard_state.clone(), self.conf_state.clone()))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.truncated_index {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        if high > self.last() + 1 {
            return Err(raft::Error::Store(StorageError::Unavailable));
        }
        let from = (low - self.truncated_index - 1) as usize;
        let to = (high - self.truncated_index - 1) as usize;
        let limit = max_size.into().unwrap_or(u64::MAX);
        let mut size = 0u64;
        let mut found = Vec::with_capacity(to - from);
        for entry in self.entries.range(from..to) {
            size += entry.data.len() as u64;
            if !found.is_empty() && size > limit {
                break;
            }
            found.push(entry.clone());
        }
        Ok(found)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index == self.truncated_index {
            return Ok(self.truncated_term);
        }
        match self.entry(index) {
            Some(entry) => Ok(entry.term),
            None if index < self.truncated_index => Err(raft::Error::Store(StorageError::Compacted)),
            None => Err(raft::Error::Store(StorageError::Unavailable)),
        }
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.truncated_index + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, _request_index: u64, _to: u64) -> raft::Result<Snapshot> {
        Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}
