//! The part of the Raft log that is in memory, as raft-rs wants to read it.
//!
//! Entries are put here when they are handed to the log, before raft hears of it. They stay for followers after they are
//! applied, up to a bound of bytes; a follower that needs older ones gets a snapshot, of which this room tells only index,
//! term and members. What must be read from disk is not the duty of this room. It never fails with an I/O error.

use raft::prelude::{ConfState, Entry, HardState, Snapshot};
use raft::{GetEntriesContext, RaftState, Storage, StorageError};
use std::cell::Cell;
use std::collections::VecDeque;

/// A snapshot on this node's disk that followers may fetch.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SnapshotOffer {
    /// Index of the last entry in it.
    pub index: u64,
    /// That entry's term.
    pub term: u64,
    /// Voters and learners after that entry.
    pub conf_state: ConfState,
}

/// Raft's view of one group's log: a truncated prefix, known by its last index and term, and entries after it.
#[derive(Debug, Default)]
pub struct EntryStore {
    hard_state: HardState,
    conf_state: ConfState,
    truncated_index: u64,
    truncated_term: u64,
    entries: VecDeque<Entry>,
    bytes: usize,
    offer: Option<SnapshotOffer>,
    /// A follower needs a snapshot that there is not. raft-rs asks through a shared reference.
    wants_snapshot: Cell<bool>,
}

/// What an entry costs in memory beside its data, about.
const ENTRY_BYTES: usize = size_of::<Entry>();

impl EntryStore {
    /// A log whose entries up to `truncated_index` (of term `truncated_term`) are in the state already.
    pub fn new(
        hard_state: HardState,
        conf_state: ConfState,
        truncated_index: u64,
        truncated_term: u64,
    ) -> Self {
        Self { hard_state, conf_state, truncated_index, truncated_term, ..Self::default() }
    }

    /// Index of the last entry, also when it is truncated.
    pub fn last(&self) -> u64 {
        self.truncated_index + self.entries.len() as u64
    }

    /// Index of the last entry that is not in memory any more.
    pub fn truncated(&self) -> u64 {
        self.truncated_index
    }

    /// Bytes of memory that the entries take, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends entries, replacing those from the first one's index on; what was replaced goes to `replaced`, in order.
    ///
    /// # Panics
    /// When they leave a gap or replace a truncated entry: raft never asks for either.
    pub fn append(&mut self, entries: &[Entry], replaced: &mut Vec<Entry>) {
        let Some(first) = entries.first() else { return };
        assert!(first.index > self.truncated_index, "applied entries are never replaced");
        assert!(first.index <= self.last() + 1, "entries leave no gap");
        let kept = (first.index - self.truncated_index - 1) as usize;
        for gone in self.entries.drain(kept..) {
            self.bytes -= cost(&gone);
            replaced.push(gone);
        }
        self.bytes += entries.iter().map(cost).sum::<usize>();
        self.entries.extend(entries.iter().cloned());
    }

    /// Drops the entries up to `needless`, and older ones up to `applied` while all take more than `bytes_max`.
    pub fn truncate(&mut self, needless: u64, applied: u64, bytes_max: usize) {
        while let Some(first) = self.entries.front() {
            let is_over = self.bytes > bytes_max && first.index <= applied;
            if first.index > needless && !is_over {
                break;
            }
            self.truncated_index = first.index;
            self.truncated_term = first.term;
            self.bytes -= cost(first);
            self.entries.pop_front();
        }
    }

    /// The log begins anew behind a snapshot.
    pub fn restore(&mut self, index: u64, term: u64, conf_state: ConfState) {
        assert!(index > self.truncated_index, "a snapshot takes the log forward");
        self.entries.clear();
        self.bytes = 0;
        (self.truncated_index, self.truncated_term) = (index, term);
        self.conf_state = conf_state;
    }

    /// Takes over a hard state that is on its way to the log.
    pub fn set_hard_state(&mut self, hard_state: HardState) {
        self.hard_state = hard_state;
    }

    /// The hard state last given.
    pub fn hard_state(&self) -> &HardState {
        &self.hard_state
    }

    /// Takes over the members after the last applied change.
    pub fn set_conf_state(&mut self, conf_state: ConfState) {
        self.conf_state = conf_state;
    }

    /// The configuration last given.
    pub fn conf_state(&self) -> &ConfState {
        &self.conf_state
    }

    /// Takes note of the newest snapshot that followers may fetch.
    pub fn set_offer(&mut self, offer: SnapshotOffer) {
        self.offer = Some(offer);
    }

    /// Whether a follower has asked in vain for a snapshot since this was last asked.
    pub fn take_snapshot_wish(&self) -> bool {
        self.wants_snapshot.replace(false)
    }

    fn entry(&self, index: u64) -> Option<&Entry> {
        self.entries.get(index.checked_sub(self.truncated_index + 1)? as usize)
    }
}

fn cost(entry: &Entry) -> usize {
    entry.data.len() + ENTRY_BYTES
}

/// Whether a replica is a member in any part of a configuration.
pub fn is_member(conf_state: &ConfState, replica: u64) -> bool {
    let lists = [&conf_state.voters, &conf_state.learners, &conf_state.voters_outgoing];
    lists.iter().any(|list| list.contains(&replica))
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
        let mut found = Vec::with_capacity((to - from).min(1024));
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

    /// Index, term and members of the newest snapshot on disk, if it is new enough for `to` to go on from the entries in
    /// memory and knows `to` as a member.
    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let fits = |offer: &&SnapshotOffer| {
            offer.index >= self.truncated_index.max(request_index) && is_member(&offer.conf_state, to)
        };
        let Some(offer) = self.offer.as_ref().filter(fits) else {
            self.wants_snapshot.set(true);
            return Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        };
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        metadata.index = offer.index;
        metadata.term = offer.term;
        *metadata.mut_conf_state() = offer.conf_state.clone();
        Ok(snapshot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u64, term: u64) -> Entry {
        Entry { index, term, data: vec![0; 100].into(), ..Entry::default() }
    }

    #[test]
    fn applied_entries_stay_for_followers_up_to_a_bound() {
        let mut store = EntryStore::new(HardState::default(), ConfState::default(), 4, 1);
        let entries: Vec<Entry> = (5..15).map(|index| entry(index, 1)).collect();
        store.append(&entries, &mut Vec::new());
        store.truncate(6, 12, usize::MAX);
        assert_eq!((store.truncated(), store.last()), (6, 14));
        store.truncate(0, 9, 0);
        assert_eq!(store.truncated(), 9, "what is not applied stays whatever its size");
        let mut replaced = Vec::new();
        store.append(&[entry(12, 2)], &mut replaced);
        assert_eq!((store.last(), store.term(12)), (12, Ok(2)));
        assert_eq!(replaced, [entry(12, 1), entry(13, 1), entry(14, 1)]);
        assert_eq!(store.bytes(), 3 * (100 + ENTRY_BYTES));
        assert_eq!(store.term(9), Ok(1));
        store.restore(20, 3, ConfState::default());
        assert_eq!((store.last(), store.bytes(), store.term(20)), (20, 0, Ok(3)));
    }

    #[test]
    fn a_snapshot_is_offered_only_if_it_serves() {
        let mut store = EntryStore::new(HardState::default(), ConfState::default(), 10, 1);
        assert!(store.snapshot(0, 2).is_err() && store.take_snapshot_wish() && !store.take_snapshot_wish());
        let conf_state = ConfState { voters: vec![1], learners: vec![2], ..ConfState::default() };
        store.set_offer(SnapshotOffer { index: 9, term: 1, conf_state: conf_state.clone() });
        assert!(store.snapshot(0, 2).is_err(), "entry 10 would be missing");
        store.set_offer(SnapshotOffer { index: 10, term: 1, conf_state });
        assert_eq!(store.snapshot(0, 2).unwrap().get_metadata().index, 10);
        assert!(store.take_snapshot_wish());
        assert!(store.snapshot(0, 3).is_err() && store.take_snapshot_wish(), "it knows no replica 3");
    }
}
