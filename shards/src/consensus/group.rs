//! One Raft group: a gate around raft-rs that keeps the order FACTS and raft-rs's own documents demand.
//!
//! - Entries stand in [`EntryStore`] and are on their way to the log before raft-rs is told so.
//! - An entry counts as persisted only when the log says so ([`Group::durable`]), unless the floor is below `always`.
//! - Committed entries come out once, in order.
//!
//! The group never reads a clock and never draws a random number: raft-rs's own random election timeout is overridden.

use super::storage::EntryStore;
use crate::ids::Sequence;
use raft::prelude::{ConfState, Entry, HardState};
use raft::{Config, RawNode, StateRole};
use std::collections::VecDeque;

/// What must be written to the log in one batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Append {
    /// Number of the batch.
    pub sequence: Sequence,
    /// Term, vote and commit index.
    pub hard_state: HardState,
    /// Entries in index order; may be empty when only term or vote moved.
    pub entries: Vec<Entry>,
}

/// Where a group starts: what recovery found.
#[derive(Clone, Debug, Default)]
pub struct Restored {
    /// This replica's id in the group.
    pub replica: u64,
    /// Term, vote and commit index of the log's last batch, or the default for a new group.
    pub hard_state: HardState,
    /// Voters and learners.
    pub conf_state: ConfState,
    /// Index and term that the snapshot holds; zero without one.
    pub snapshot_index: u64,
    /// See `snapshot_index`.
    pub snapshot_term: u64,
    /// Entries after the snapshot, in order.
    pub entries: Vec<Entry>,
    /// Sequence of the last batch in the log.
    pub sequence: Sequence,
}

/// raft-rs refused what it was given: a defect of this program or of the log's contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsensusError(pub String);

impl From<raft::Error> for ConsensusError {
    fn from(error: raft::Error) -> Self {
        Self(error.to_string())
    }
}

/// One replica of one group.
pub struct Group {
    node: RawNode<EntryStore>,
    /// Batches that the log has not made durable yet, with raft-rs's number for each.
    unpersisted: VecDeque<(Sequence, u64)>,
    next_sequence: Sequence,
    /// Whether a batch counts as persisted only when durable.
    wait_for_sync: bool,
    election_ticks: usize,
}

impl Group {
    /// Restores a group. With `wait_for_sync` entries commit when durable, without when handed to the log.
    pub fn restore(restored: Restored, wait_for_sync: bool) -> Result<Self, ConsensusError> {
        let election_ticks = 10;
        let Restored {
            replica,
            mut hard_state,
            conf_state,
            snapshot_index,
            snapshot_term,
            entries,
            sequence,
        } = restored;
        assert!(conf_state.voters.contains(&replica), "the replica is a voter of its group");
        hard_state.commit = hard_state.commit.max(snapshot_index);
        let mut store = EntryStore::new(hard_state, conf_state, snapshot_index, snapshot_term);
        store.append(&entries);
        assert!(store.hard_state().commit <= store.last(), "the log holds what it says is committed");
        let config = Config {
            id: replica,
            election_tick: election_ticks,
            heartbeat_tick: 2,
            applied: snapshot_index,
            max_size_per_msg: 1 << 20,
            max_inflight_msgs: 64,
            check_quorum: true,
            pre_vote: true,
            ..Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let node = RawNode::new(&config, store, &logger)?;
        let next_sequence = Sequence(sequence.0 + 1);
        let mut group =
            Self { node, unpersisted: VecDeque::new(), next_sequence, wait_for_sync, election_ticks };
        group.steady_election_timeout();
        Ok(group)
    }

    /// Starts an election; the only voter of a group wins it at once.
    pub fn campaign(&mut self) -> Result<(), ConsensusError> {
        self.node.campaign()?;
        self.steady_election_timeout();
        Ok(())
    }

    /// Whether this replica leads.
    pub fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    /// Whether this replica is the only voter, so that what it has applied is all there is.
    pub fn is_alone(&self) -> bool {
        self.node.store().conf_state().voters.len() == 1
            && self.node.store().conf_state().voters_outgoing.is_empty()
    }

    /// The current term.
    pub fn term(&self) -> u64 {
        self.node.raft.term
    }

    /// Highest committed index known here.
    pub fn commit_index(&self) -> u64 {
        self.node.raft.raft_log.committed
    }

    /// Highest index in the log.
    pub fn last_index(&self) -> u64 {
        self.node.raft.raft_log.last_index()
    }

    /// Term, vote and commit index as last handed to the log.
    pub fn hard_state(&self) -> &HardState {
        self.node.store().hard_state()
    }

    /// Voters and learners.
    pub fn conf_state(&self) -> &ConfState {
        self.node.store().conf_state()
    }

    /// Number of batches handed to the log and not yet durable.
    pub fn in_flight(&self) -> usize {
        self.unpersisted.len()
    }

    /// Sequence of the last batch handed to the log.
    pub fn last_sequence(&self) -> Sequence {
        Sequence(self.next_sequence.0 - 1)
    }

    /// Proposes an entry; returns its index.
    pub fn propose(&mut self, data: Vec<u8>) -> Result<u64, ConsensusError> {
        assert!(self.is_leader(), "only a leader proposes");
        self.node.propose(Vec::new(), data)?;
        Ok(self.last_index())
    }

    /// The log has made every batch up to `sequence` durable.
    pub fn durable(&mut self, sequence: Sequence) {
        let mut number = None;
        while let Some(&(oldest, oldest_number)) = self.unpersisted.front() {
            if oldest > sequence {
                break;
            }
            number = Some(oldest_number);
            self.unpersisted.pop_front();
        }
        if let (Some(number), true) = (number, self.wait_for_sync) {
            self.node.on_persist_ready(number);
        }
    }

    /// Collects what raft-rs wants done: batches to append, entries to apply. Call after anything that may move it.
    pub fn collect(&mut self, appends: &mut Vec<Append>, committed: &mut Vec<Entry>) {
        while self.node.has_ready() {
            let mut ready = self.node.ready();
            assert!(ready.snapshot().is_empty(), "a group with one voter receives no snapshot");
            committed.extend(ready.take_committed_entries());
            if let Some(hard_state) = ready.hs() {
                let hard_state = hard_state.clone();
                self.node.mut_store().set_hard_state(hard_state);
            }
            let entries = ready.take_entries();
            self.node.mut_store().append(&entries);
            let number = ready.number();
            let must_write = ready.must_sync();
            self.node.advance_append_async(ready);
            if must_write {
                let sequence = self.next_sequence;
                self.next_sequence.0 += 1;
                let hard_state = self.node.store().hard_state().clone();
                appends.push(Append { sequence, hard_state, entries });
                self.unpersisted.push_back((sequence, number));
            } else if let Some(last) = self.unpersisted.back_mut() {
                // A commit index that moves writes nothing, but raft-rs wants its numbers confirmed in order.
                last.1 = number;
            }
            if !self.wait_for_sync || self.unpersisted.is_empty() {
                self.node.on_persist_ready(number);
            }
        }
    }

    /// Entries up to `index` are applied; they leave memory.
    pub fn applied(&mut self, index: u64) {
        self.node.advance_apply_to(index);
        self.node.mut_store().truncate_to(index);
    }

    /// One tick of raft's logical clock.
    pub fn tick(&mut self) {
        self.node.tick();
        self.steady_election_timeout();
    }

    /// raft-rs draws its election timeout from a random source of its own; the engine must not.
    fn steady_election_timeout(&mut self) {
        let replica = self.node.raft.id as usize;
        let timeout = self.election_ticks + replica % self.election_ticks;
        self.node.raft.set_randomized_election_timeout(timeout);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alone() -> Restored {
        let conf_state = ConfState { voters: vec![1], ..ConfState::default() };
        Restored { replica: 1, conf_state, ..Restored::default() }
    }

    fn collect(group: &mut Group) -> (Vec<Append>, Vec<Entry>) {
        let (mut appends, mut committed) = (Vec::new(), Vec::new());
        group.collect(&mut appends, &mut committed);
        (appends, committed)
    }

    #[test]
    fn an_entry_commits_only_when_durable() {
        let mut group = Group::restore(alone(), true).unwrap();
        group.campaign().unwrap();
        let (appends, committed) = collect(&mut group);
        assert!(group.is_leader() && committed.is_empty());
        assert!(!appends.is_empty(), "the new term is written");
        group.durable(appends.last().unwrap().sequence);
        let (_, committed) = collect(&mut group);
        assert_eq!(committed.len(), 1, "the leader's empty entry");
        group.applied(committed[0].index);

        let first = group.propose(b"a".to_vec()).unwrap();
        let (one, committed) = collect(&mut group);
        assert!(committed.is_empty());
        let second = group.propose(b"b".to_vec()).unwrap();
        let (two, committed) = collect(&mut group);
        assert!(committed.is_empty());
        assert_eq!(second, first + 1);
        assert_eq!(group.in_flight(), 2);
        group.durable(one[0].sequence);
        let (_, committed) = collect(&mut group);
        assert_eq!(committed.iter().map(|e| e.index).collect::<Vec<_>>(), [first]);
        group.durable(two[0].sequence);
        let (appends, committed) = collect(&mut group);
        assert_eq!(committed.iter().map(|e| e.index).collect::<Vec<_>>(), [second]);
        assert!(appends.is_empty(), "a commit index that moves writes nothing");
    }

    #[test]
    fn without_waiting_it_commits_at_once() {
        let mut group = Group::restore(alone(), false).unwrap();
        group.campaign().unwrap();
        collect(&mut group);
        group.propose(b"a".to_vec()).unwrap();
        let (appends, committed) = collect(&mut group);
        assert_eq!((appends.len(), committed.len()), (1, 1));
    }

    #[test]
    fn a_restored_group_commits_its_whole_log() {
        let mut restored = alone();
        restored.hard_state = HardState { term: 3, vote: 1, commit: 5, ..HardState::default() };
        restored.snapshot_index = 5;
        restored.snapshot_term = 2;
        restored.entries = vec![Entry { index: 6, term: 3, data: b"x".to_vec().into(), ..Entry::default() }];
        restored.sequence = Sequence(40);
        let mut group = Group::restore(restored, true).unwrap();
        group.campaign().unwrap();
        let (appends, _) = collect(&mut group);
        assert_eq!(appends[0].sequence, Sequence(41));
        group.durable(appends.last().unwrap().sequence);
        let (_, committed) = collect(&mut group);
        assert_eq!(committed.iter().map(|e| (e.index, e.term)).collect::<Vec<_>>(), [(6, 3), (7, 4)]);
    }
}
