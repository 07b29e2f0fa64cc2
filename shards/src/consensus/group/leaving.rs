//! How a replica that was taken out of its group comes to know that it may go.
//!
//! A change of members holds on a replica from when it has applied it, and until then the configuration before it, which counts
//! those that the change takes out. If one of them were gone with its files when the leader's disk is lost, those that had not
//! applied the change would have no majority, for good; nor would those that had applied it and restarted, if their logs did
//! not say that it is committed. So:
//!
//! - Who has applied a change writes its commit index down, in a batch without entries if there is no other, and says in
//!   answers to heartbeats up to where its log says so (`log_term`, which raft-rs does not use there).
//! - A leader calls a change news until all voters that answer, and a majority, have said so. While it does it says it in
//!   heartbeats (0 as `log_term`), and otherwise what it has applied: up to there nothing is news.
//! - A replica that had a vote stays, with its files, until one that knows that the change is no news tells it to go. It is told
//!   when it asks for votes, because it missed its removal, or because it has applied it and asks whether it may go.
//!
//! Must not: decide who is a member; that is the log's.

use super::Group;
use crate::consensus::progress::Applied;
use crate::consensus::storage::is_member;
use raft::prelude::{Message, MessageType};

/// Ticks between two questions of a replica that has left whether it may go.
const ASK_TICKS: u64 = 3;
/// Marks the refusal of a vote as a word of removal; raft-rs gives refusals no context.
const REMOVED: &[u8] = b"removed";

impl Group {
    /// Whether a voter that answers, or a majority, would not know after a restart that the newest change of members is
    /// committed. They would still count the votes of replicas that the change took out, so those must not be given up, and no
    /// further change begins.
    pub fn is_change_news(&self) -> bool {
        if !self.is_leader() {
            return false;
        }
        let voters = &self.conf_state().voters;
        let (mut knowing, mut is_waited_for) = (0, false);
        for id in self.node.raft.prs().iter().map(|(id, _)| *id).filter(|id| voters.contains(id)) {
            let is_own = id == self.node.raft.id;
            let kept = if is_own {
                self.kept_commit()
            } else {
                self.heard.applied(id).map_or(0, |applied| applied.kept)
            };
            if kept >= self.changed_at {
                knowing += 1;
            } else {
                is_waited_for |= is_own || self.heard.is_active(id, self.ticks);
            }
        }
        is_waited_for || knowing <= voters.len() / 2
    }

    /// Whether the group has let this replica go: it was told of its removal by one that has applied it, or it had no vote and
    /// has applied its removal itself. One that had a vote waits to be told, see [`Group::ask_whether_to_go`].
    pub fn is_dismissed(&self) -> bool {
        self.is_told_removed || !(self.is_member() || self.has_left_with_a_vote())
    }

    /// Whether this replica had a vote and has applied its own removal. The others may still count on it.
    pub fn has_left_with_a_vote(&self) -> bool {
        self.left_at.is_some()
    }

    /// What a replica is told that asks for a vote and is in no part of the configuration that this one has applied: up to
    /// which index that is so. The last entry of a change often never reaches those that it takes out, who then would ask for
    /// ever.
    ///
    /// That the change is no news any more is known to the leader, and to followers from its heartbeats: a voter that does not know
    /// of the change, or forgets it, still counts the asker's vote.
    pub(super) fn word_of_removal(&self, message: &Message) -> Option<Message> {
        let (kind, term) = match message.get_msg_type() {
            MessageType::MsgRequestPreVote => {
                (MessageType::MsgRequestPreVoteResponse, message.term.saturating_sub(1))
            }
            MessageType::MsgRequestVote => (MessageType::MsgRequestVoteResponse, message.term),
            _ => return None,
        };
        let is_news =
            if self.is_leader() { self.is_change_news() } else { self.settled_at < self.changed_at };
        if self.leader().0 == 0 || is_news || is_member(self.conf_state(), message.from) {
            return None;
        }
        let (to, from, context) = (message.from, self.node.raft.id, REMOVED.into());
        let commit = self.node.raft.raft_log.applied;
        let mut word = Message { to, from, term, reject: true, commit, context, ..Message::default() };
        word.set_msg_type(kind);
        Some(word)
    }

    /// Asks the others whether they have heard that this replica is out, once it has applied that itself: by a question for
    /// votes, as those ask that do not know, so [`Group::word_of_removal`] answers both.
    ///
    /// It may have heard it before all others but the leader. They go by the configuration before until they have applied the
    /// change, and that one counts this replica: should the leader be lost at that moment, it may be the vote and the log
    /// without which they have no majority (seed 7083 of the simulator).
    pub(super) fn ask_whether_to_go(&mut self) {
        let is_asking = self.has_left_with_a_vote() && !self.is_told_removed;
        if !is_asking || !self.ticks.is_multiple_of(ASK_TICKS) {
            return;
        }
        let raft = &self.node.raft;
        let (from, index, log_term) = (raft.id, raft.raft_log.last_index(), raft.raft_log.last_term());
        for to in self.node.store().conf_state().voters.clone() {
            let term = raft.term + 1;
            let mut question = Message { to, from, term, index, log_term, ..Message::default() };
            question.set_msg_type(MessageType::MsgRequestPreVote);
            self.released.push(question);
        }
    }

    /// Takes a word of removal; false when the message is none.
    ///
    /// The sender has applied every entry up to the index in it, and is then in a configuration without this replica. If that
    /// is more than this one has applied, as a member, it was taken out in between, and for good, since a replica's id
    /// is never used again. If it is not more, the sender is behind and does not know yet that this replica was taken in. To one
    /// that has applied its removal itself it says that the others know, if it is of that entry or later.
    pub(super) fn hears_of_removal(&mut self, message: &Message) -> bool {
        let is_word = message.reject && &message.context[..] == REMOVED;
        let is_behind = match self.left_at {
            Some(left_at) => message.commit < left_at,
            None => message.commit <= self.node.raft.raft_log.applied,
        };
        self.is_told_removed |= is_word && !is_behind;
        is_word
    }

    /// Says in answers to heartbeats what this replica has applied, where raft-rs leaves the index empty, and what it would know to
    /// be committed after a restart.
    pub(super) fn tell_applied(&self, messages: &mut [Message]) {
        let (applied, kept) = (self.node.raft.raft_log.applied, self.kept_commit());
        let is_answer = |message: &&mut Message| message.get_msg_type() == MessageType::MsgHeartbeatResponse;
        for message in messages.iter_mut().filter(is_answer) {
            (message.index, message.log_term) = (applied, kept);
        }
    }

    /// Says in heartbeats up to where no change of members is news.
    pub(super) fn tell_settled(&self, messages: &mut [Message]) {
        let is_heartbeat = |message: &Message| message.get_msg_type() == MessageType::MsgHeartbeat;
        if messages.iter().any(is_heartbeat) {
            let settled = if self.is_change_news() { 0 } else { self.node.raft.raft_log.applied };
            messages.iter_mut().filter(|one| is_heartbeat(one)).for_each(|one| one.log_term = settled);
        }
    }

    /// Notes what other replicas say of what they have applied, keep, and know to be settled.
    pub(super) fn note_settled(&mut self, message: &Message) {
        match message.get_msg_type() {
            MessageType::MsgHeartbeatResponse => {
                let Message { index, commit, log_term: kept, .. } = *message;
                self.heard.note_applied(message.from, Applied { index, commit, kept });
            }
            MessageType::MsgHeartbeat if message.term >= self.node.raft.term => {
                self.settled_at = self.settled_at.max(message.log_term);
                self.is_asked_to_keep = message.log_term == 0;
            }
            _ => {}
        }
    }

    /// Whether a batch must tell the log what is committed, although nothing else is to be written: a change of members was
    /// applied, or a leader waits until the newest is no news.
    pub(super) fn owes_commit(&self) -> bool {
        let committed = self.node.store().hard_state().commit;
        self.handed_commit < self.changed_at || (self.is_asked_to_keep && self.handed_commit < committed)
    }

    /// What this replica would know to be committed after a restart; without waiting for syncs, what it has handed to the log.
    fn kept_commit(&self) -> u64 {
        if self.config.wait_for_sync { self.durable_commit } else { self.handed_commit }
    }

    pub(super) fn own_applied(&self) -> Applied {
        let log = &self.node.raft.raft_log;
        Applied { index: log.applied, commit: log.committed, kept: self.kept_commit() }
    }
}
