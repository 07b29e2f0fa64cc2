//! One Raft group: a gate around raft-rs that keeps the order FACTS and raft-rs's own documents demand.
//!
//! - Entries stand in [`EntryStore`] and are on their way to the log before raft-rs is told so.
//! - An entry counts as persisted only when the log says so ([`Group::durable`]), unless the floor is below `always`.
//! - A leader's messages may leave at once; what a follower or candidate says waits for the batch that its promise stands in.
//!   Only answers to heartbeats pass, once the term in them is durable: they promise nothing else.
//! - Committed entries come out once, in order.
//!
//! The group never reads a clock and never draws a random number: raft-rs's own random election timeout is overridden
//! after whatever may have drawn it.

mod arrivals;
mod handover;
mod leaving;
mod members;

use super::election::{HEARTBEAT_TICKS, LEASE_TICKS, WAIT_TICKS_END, WAIT_TICKS_MIN, wait_ticks};
use super::membership::decode_change;
use super::progress::{Heard, UNTIL_HEARD};
use super::storage::{EntryStore, SnapshotOffer, is_member};
use crate::command::record::Malformed;
use crate::ids::{GroupId, ReplicaId, Sequence};
use crate::mutants::{Mutant, is_on};
use raft::prelude::{ConfState, Entry, HardState, Message, MessageType};
use raft::{Config, ProgressState, RawNode, StateRole};
use std::collections::VecDeque;

/// What must be written to the log in one batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Append {
    /// Number of the batch.
    pub sequence: Sequence,
    /// Term, vote and commit index.
    pub hard_state: HardState,
    /// The log begins anew behind this index and term: a snapshot holds everything up to it.
    pub reset: Option<(u64, u64)>,
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
    /// Voters and learners after the last entry of the snapshot; empty for a replica that waits to be filled.
    pub conf_state: ConfState,
    /// Index and term that the snapshot holds; zero without one.
    pub snapshot_index: u64,
    /// See `snapshot_index`.
    pub snapshot_term: u64,
    /// Entries after the snapshot, in order.
    pub entries: Vec<Entry>,
    /// Sequence of the last batch in the log.
    pub sequence: Sequence,
    /// The log does not lead up to the snapshot, which came from another replica: the next batch says where it goes on.
    pub needs_reset: bool,
}

/// What a group is told when it starts.
#[derive(Clone, Copy, Debug)]
pub struct GroupConfig {
    /// Which group, for the spread of election times.
    pub group: GroupId,
    /// Whether a batch counts as persisted only when durable.
    pub wait_for_sync: bool,
    /// Bytes of applied entries that stay in memory for followers.
    pub retained_bytes_max: usize,
    /// Bytes of entries in one batch of the log; more become several batches. One entry always fits.
    pub batch_bytes_max: usize,
}

/// raft-rs refused what it was given: a defect of this program or of the log's contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsensusError(pub String);

impl From<raft::Error> for ConsensusError {
    fn from(error: raft::Error) -> Self {
        Self(error.to_string())
    }
}

/// What raft-rs wants done, in vectors that are drained and used again.
#[derive(Debug, Default)]
pub struct Collected {
    /// Batches for the log, in order.
    pub appends: Vec<Append>,
    /// Messages to be sent now, in order. A leader's leave together with its batches.
    pub messages: Vec<Message>,
    /// Entries to apply, in order.
    pub committed: Vec<Entry>,
    /// Entries that stood in the log and were replaced before they were committed.
    pub replaced: Vec<Entry>,
    /// The newest question of [`Group::ask_leadership`] that a majority has answered.
    pub confirmed: Option<u64>,
}

/// What an entry takes in a batch beside its data, at most.
const ENTRY_OVERHEAD_BYTES: usize = 64;

/// A batch on its way, and what waits for it.
#[derive(Debug)]
struct Unpersisted {
    sequence: Sequence,
    /// raft-rs's number of the last Ready that this batch makes durable.
    number: u64,
    term: u64,
    commit: u64,
    /// The index of the snapshot behind which it begins the log anew.
    restored: Option<u64>,
    messages: Vec<Message>,
}

/// One replica of one group.
pub struct Group {
    node: RawNode<EntryStore>,
    config: GroupConfig,
    unpersisted: VecDeque<Unpersisted>,
    next_sequence: Sequence,
    /// The term of the newest durable batch.
    durable_term: u64,
    /// Messages whose batch is durable.
    released: Vec<Message>,
    ticks: u64,
    heard: Heard,
    /// Times that this replica stood for election.
    attempts: u64,
    /// Followers that need a snapshot, with the tick since when and what they had then.
    stalled: Vec<(u64, u64, u64)>,
    /// This replica wants to stop and does not stand for election.
    is_resigned: bool,
    /// Others that have applied its removal have told this replica of it.
    is_told_removed: bool,
    /// Index of the newest change of members that was applied in this life, or of the snapshot that it began with.
    changed_at: u64,
    /// This replica had a vote and has applied its removal: index of the entry that took it out.
    left_at: Option<u64>,
    /// raft-rs's number of the newest Ready that needs no batch any more.
    persisted_number: u64,
    /// The commit index of the newest batch that was handed to the log.
    handed_commit: u64,
    /// The commit index of the newest durable batch.
    durable_commit: u64,
    /// Up to where no change of members is news, as leaders have said.
    settled_at: u64,
    /// The leader waits until this replica has written down what is committed.
    is_asked_to_keep: bool,
    /// The tick at which this leader was first told that there is a newer term.
    outdated_since: Option<u64>,
    /// Where the log goes on, to be told by the next batch: what stands in the log does not lead there.
    owed_reset: Option<(u64, u64)>,
}

/// A replica that does not lead keeps this part of the bytes that a leader may keep: it cannot know what others have.
const FOLLOWER_RETAINS: usize = 8;
/// While a snapshot is on its way, entries behind it may take this many times the bytes.
const SNAPSHOT_RETAINS: usize = 4;

impl Group {
    /// Restores a group. Entries that it was restored with count as durable.
    pub fn restore(restored: Restored, config: GroupConfig) -> Result<Self, ConsensusError> {
        let Restored { replica, mut hard_state, conf_state, snapshot_index, snapshot_term, .. } = restored;
        let Restored { entries, sequence, needs_reset, .. } = restored;
        hard_state.commit = hard_state.commit.max(snapshot_index);
        if hard_state.term < snapshot_term {
            // The snapshot came from another replica and this one stopped before it could log its term.
            (hard_state.term, hard_state.vote) = (snapshot_term, 0);
        }
        let (durable_term, commit) = (hard_state.term, hard_state.commit);
        let has_left = !conf_state.voters.is_empty() && !is_member(&conf_state, replica);
        let mut store = EntryStore::new(hard_state, conf_state, snapshot_index, snapshot_term);
        store.append(&entries, &mut Vec::new());
        assert!(store.hard_state().commit <= store.last(), "the log holds what it says is committed");
        let raft_config = Config {
            id: replica,
            election_tick: LEASE_TICKS,
            min_election_tick: WAIT_TICKS_MIN,
            max_election_tick: WAIT_TICKS_END,
            heartbeat_tick: HEARTBEAT_TICKS,
            applied: snapshot_index,
            max_size_per_msg: 1 << 20,
            max_inflight_msgs: 64,
            check_quorum: true,
            pre_vote: true,
            ..Config::default()
        };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let node = RawNode::new(&raft_config, store, &logger)?;
        let mut group = Self {
            node,
            config,
            unpersisted: VecDeque::new(),
            next_sequence: Sequence(sequence.0 + 1),
            durable_term,
            released: Vec::new(),
            ticks: 0,
            heard: Heard::default(),
            attempts: 0,
            stalled: Vec::new(),
            is_resigned: false,
            is_told_removed: false,
            changed_at: snapshot_index,
            left_at: has_left.then_some(snapshot_index),
            persisted_number: 0,
            handed_commit: commit,
            durable_commit: commit,
            settled_at: 0,
            is_asked_to_keep: false,
            outdated_since: None,
            owed_reset: needs_reset.then_some((snapshot_index, snapshot_term)),
        };
        group.steady_election_timeout();
        Ok(group)
    }

    /// Starts an election if this replica has a vote; the only voter of a group wins it at once.
    pub fn campaign(&mut self) -> Result<(), ConsensusError> {
        if self.is_voter() {
            self.node.campaign()?;
            self.steady_election_timeout();
        }
        Ok(())
    }

    /// This replica's id.
    pub fn replica(&self) -> ReplicaId {
        ReplicaId(self.node.raft.id)
    }

    /// Whether this replica leads.
    pub fn is_leader(&self) -> bool {
        self.node.raft.state == StateRole::Leader
    }

    /// The leader of the current term; 0 while none is known.
    pub fn leader(&self) -> ReplicaId {
        ReplicaId(self.node.raft.leader_id)
    }

    /// Whether this replica is the only voter, so that what it has applied is all there is.
    pub fn is_alone(&self) -> bool {
        let conf_state = self.conf_state();
        conf_state.voters_outgoing.is_empty() && conf_state.voters == [self.node.raft.id]
    }

    /// Whether this replica is a member of the last applied configuration.
    pub fn is_member(&self) -> bool {
        is_member(self.conf_state(), self.node.raft.id)
    }

    /// Whether this replica has a vote in the last applied configuration.
    pub fn is_voter(&self) -> bool {
        let (id, conf_state) = (self.node.raft.id, self.conf_state());
        conf_state.voters.contains(&id) || conf_state.voters_outgoing.contains(&id)
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

    /// Whether the log has an entry of this index and term.
    pub fn has_entry(&self, index: u64, term: u64) -> bool {
        self.node.raft.raft_log.match_term(index, term)
    }

    /// Term, vote and commit index as last handed to the log.
    pub fn hard_state(&self) -> &HardState {
        self.node.store().hard_state()
    }

    /// Voters and learners.
    pub fn conf_state(&self) -> &ConfState {
        self.node.store().conf_state()
    }

    /// Bytes of entries in memory, about.
    pub fn entry_bytes(&self) -> usize {
        self.node.store().bytes()
    }

    /// Number of batches handed to the log and not yet durable, or of entries not yet committed, whichever is more.
    pub fn in_flight(&self) -> usize {
        let uncommitted = if self.is_leader() { self.last_index() - self.commit_index() } else { 0 };
        self.unpersisted.len().max(uncommitted as usize)
    }

    /// Sequence of the last batch handed to the log.
    pub fn last_sequence(&self) -> Sequence {
        Sequence(self.next_sequence.0 - 1)
    }

    /// Whether an entry proposed now would go into the log: this replica leads and does not hand leadership over.
    pub fn may_propose(&self) -> bool {
        let raft = &self.node.raft;
        self.is_leader() && raft.lead_transferee.is_none() && raft.prs().get(raft.id).is_some()
    }

    /// Proposes an entry; returns its index.
    pub fn propose(&mut self, data: Vec<u8>) -> Result<u64, ConsensusError> {
        assert!(self.may_propose(), "only a leader proposes");
        self.node.propose(Vec::new(), data)?;
        Ok(self.last_index())
    }

    /// The log has made every batch up to `sequence` durable.
    pub fn durable(&mut self, sequence: Sequence) {
        let mut number = None;
        let mut restored = None;
        while self.unpersisted.front().is_some_and(|oldest| oldest.sequence <= sequence) {
            let Some(batch) = self.unpersisted.pop_front() else { break };
            number = Some(batch.number);
            self.persisted_number = batch.number;
            restored = batch.restored.or(restored);
            (self.durable_term, self.durable_commit) = (batch.term, batch.commit);
            self.released.extend(batch.messages);
        }
        if let (Some(number), true) = (number, self.config.wait_for_sync) {
            self.node.on_persist_ready(number);
            if let Some(index) = restored {
                self.node.advance_apply_to(index);
            }
        }
    }

    /// Collects what raft-rs wants done. Call after anything that may move it.
    pub fn collect(&mut self, out: &mut Collected) {
        out.messages.append(&mut self.released);
        while self.node.has_ready() {
            let mut ready = self.node.ready();
            let mut messages = ready.take_messages();
            self.tell_settled(&mut messages);
            out.messages.append(&mut messages);
            let mut held = ready.take_persisted_messages();
            self.tell_applied(&mut held);
            for state in ready.take_read_states() {
                let context = state.request_ctx.try_into().map_or(0, u64::from_le_bytes);
                out.confirmed = out.confirmed.max(Some(context));
            }
            let mut reset = None;
            if !ready.snapshot().is_empty() {
                let metadata = ready.snapshot().get_metadata();
                reset = Some((metadata.index, metadata.term));
                let members = metadata.get_conf_state().clone();
                self.changed_at = metadata.index;
                self.node.mut_store().restore(metadata.index, metadata.term, members);
            }
            out.committed.append(&mut ready.take_committed_entries());
            if let Some(hard_state) = ready.hs() {
                let hard_state = hard_state.clone();
                self.node.mut_store().set_hard_state(hard_state);
            }
            let entries = ready.take_entries();
            self.node.mut_store().append(&entries, &mut out.replaced);
            let number = ready.number();
            let must_write = ready.must_sync();
            self.node.advance_append_async(ready);
            let term = self.node.raft.term;
            if !must_write && !held.is_empty() {
                self.pass_heartbeat_answers(&mut held, &mut out.messages);
            }
            if is_on(Mutant::VoteBeforePersist) {
                let is_vote =
                    |message: &mut Message| message.get_msg_type() == MessageType::MsgRequestVoteResponse;
                out.messages.extend(held.extract_if(.., is_vote));
            }
            if is_on(Mutant::AppendAckBeforePersist) {
                let is_ack = |message: &mut Message| message.get_msg_type() == MessageType::MsgAppendResponse;
                out.messages.extend(held.extract_if(.., is_ack));
            }
            if must_write {
                let restored = reset.map(|(index, _)| index);
                let reset = reset.or(self.owed_reset.take());
                self.hand_over(entries, reset, number, &mut out.appends);
                self.push_unpersisted(number, term, restored, held);
            } else if let Some(last) = self.unpersisted.back_mut() {
                // A commit index that moves writes nothing, but raft-rs wants its numbers confirmed in order.
                last.number = number;
                last.messages.append(&mut held);
            } else {
                self.persisted_number = number;
                self.node.on_persist_ready(number);
                out.messages.append(&mut held);
            }
            if !self.config.wait_for_sync || is_on(Mutant::LeaderCountsUnsynced) {
                self.node.on_persist_ready(number);
            }
        }
        if self.owes_commit() {
            let number = self.unpersisted.back().map_or(self.persisted_number, |last| last.number);
            let (term, reset) = (self.node.raft.term, self.owed_reset.take());
            self.hand_over(Vec::new(), reset, number, &mut out.appends);
            self.push_unpersisted(number, term, None, Vec::new());
        }
        out.messages.append(&mut self.released);
    }

    fn push_unpersisted(&mut self, number: u64, term: u64, restored: Option<u64>, messages: Vec<Message>) {
        let (sequence, commit) = (self.last_sequence(), self.handed_commit);
        self.unpersisted.push_back(Unpersisted { sequence, number, term, commit, restored, messages });
    }

    /// Makes batches of a Ready: one, unless its entries are more than a batch may hold, as those of a follower that is being
    /// caught up can be. Only the last of them ends the Ready; those before it tell no commit index beyond what they hold,
    /// so that a log which ends with any of them is whole.
    fn hand_over(
        &mut self,
        mut entries: Vec<Entry>,
        mut reset: Option<(u64, u64)>,
        number: u64,
        appends: &mut Vec<Append>,
    ) {
        loop {
            let mut bytes = 0;
            let fits = |entry: &&Entry| {
                bytes += entry.data.len() + ENTRY_OVERHEAD_BYTES;
                bytes <= self.config.batch_bytes_max
            };
            let count = entries.iter().take_while(fits).count().max(1).min(entries.len());
            let rest = entries.split_off(count);
            let sequence = self.next_sequence;
            self.next_sequence.0 += 1;
            let mut hard_state = self.node.store().hard_state().clone();
            let is_last = rest.is_empty();
            if let (false, Some(last)) = (is_last, entries.last()) {
                hard_state.commit = hard_state.commit.min(last.index);
                // Durable, it ends the Readies before this one, which it stands behind.
                self.handed_commit = hard_state.commit;
                self.push_unpersisted(number - 1, hard_state.term, None, Vec::new());
            }
            self.handed_commit = hard_state.commit;
            appends.push(Append { sequence, hard_state, reset: reset.take(), entries });
            if is_last {
                return;
            }
            entries = rest;
        }
    }

    /// What was sent to a replica may be lost.
    pub fn unreachable(&mut self, replica: ReplicaId) {
        if self.is_leader() {
            self.node.report_unreachable(replica.0);
            self.heard.note_unfit(replica.0, UNTIL_HEARD);
        }
    }

    /// Asks a majority whether this replica still leads. The answer comes with [`Collected::confirmed`], or never.
    pub fn ask_leadership(&mut self, question: u64) {
        assert!(self.is_leader(), "only a leader asks");
        self.node.read_index(question.to_le_bytes().to_vec());
    }

    /// Entries up to `index` are applied; what no follower needs leaves memory.
    pub fn applied(&mut self, index: u64) {
        self.node.advance_apply_to(index);
        self.truncate();
    }

    /// Applies a committed entry that changes members. Call before [`Group::applied`] with its index.
    pub fn apply_change(&mut self, entry: &Entry) -> Result<(), Malformed> {
        let change = decode_change(&entry.data)?;
        let members = self.node.apply_conf_change(&change);
        let members = members.map_err(|_| Malformed("a change of members that the members do not allow"))?;
        let had_vote = self.is_voter();
        self.node.mut_store().set_conf_state(members);
        self.changed_at = entry.index;
        if had_vote && !self.is_member() {
            self.left_at = Some(entry.index);
        }
        self.step_down_if_removed();
        self.steady_election_timeout();
        Ok(())
    }

    /// A snapshot on this node's disk that followers may fetch from now on.
    pub fn offer_snapshot(&mut self, offer: SnapshotOffer) {
        self.node.mut_store().set_offer(offer);
    }

    /// Whether a follower has asked for a newer snapshot than there is since this was last asked.
    pub fn take_snapshot_wish(&self) -> bool {
        self.node.store().take_snapshot_wish()
    }

    /// Whether a snapshot of this index is about to take the place of the log.
    pub fn is_restoring(&self, index: u64) -> bool {
        self.node.snap().is_some_and(|snapshot| snapshot.get_metadata().index == index)
    }

    /// One tick of raft's logical clock.
    pub fn tick(&mut self) {
        self.ticks += 1;
        if !self.is_leader() && self.must_not_stand() {
            return;
        }
        let was_standing = self.is_standing();
        self.node.tick();
        if self.is_standing() && !was_standing {
            self.attempts += 1;
        }
        self.steady_election_timeout();
        if self.is_leader() {
            self.fail_stalled_snapshots();
            self.leave_joint();
            self.watch_handover();
        } else {
            self.stalled.clear();
            self.ask_whether_to_go();
        }
    }

    fn is_standing(&self) -> bool {
        matches!(self.node.raft.state, StateRole::PreCandidate | StateRole::Candidate)
    }

    /// Whether this replica must not stand for election now. raft-rs takes it for granted that a candidate's whole log is
    /// durable; with other voters the votes see to that, alone nothing does.
    fn must_not_stand(&self) -> bool {
        let is_restoring = self.unpersisted.iter().any(|batch| batch.restored.is_some());
        self.is_resigned || is_restoring || (self.is_alone() && !self.unpersisted.is_empty())
    }

    /// Lets answers to heartbeats pass while batches are on their way, if the term they speak of is durable.
    fn pass_heartbeat_answers(&self, held: &mut Vec<Message>, out: &mut Vec<Message>) {
        let may_pass = |message: &Message| {
            message.get_msg_type() == MessageType::MsgHeartbeatResponse && message.term == self.durable_term
        };
        if held.iter().all(may_pass) {
            out.append(held);
        }
    }

    fn truncate(&mut self) {
        let raft = &self.node.raft;
        let applied = raft.raft_log.applied;
        let (id, bytes_max) = (raft.id, self.config.retained_bytes_max);
        let others = || raft.prs().iter().filter(|(other, _)| **other != id).map(|(_, progress)| progress);
        let (needless, bytes_max) = if others().next().is_none() {
            (applied, bytes_max)
        } else if self.is_leader() {
            let matched = others().map(|progress| progress.matched).min().unwrap_or(applied);
            let awaits_snapshot = others().any(|progress| progress.state == ProgressState::Snapshot);
            let times = if awaits_snapshot { SNAPSHOT_RETAINS } else { 1 };
            (matched.min(applied), bytes_max.saturating_mul(times))
        } else {
            (0, bytes_max / FOLLOWER_RETAINS)
        };
        self.node.mut_store().truncate(needless, applied, bytes_max);
    }

    /// raft-rs draws its election timeout from a random source of its own; the engine must not.
    fn steady_election_timeout(&mut self) {
        let (id, term) = (self.node.raft.id, self.node.raft.term);
        let voters = &self.node.store().conf_state().voters;
        let timeout = wait_ticks(self.config.group, id, voters, term, self.attempts);
        self.node.raft.set_randomized_election_timeout(timeout);
    }
}

#[cfg(test)]
mod tests;
