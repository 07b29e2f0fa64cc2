//! What arrives from other replicas: taken, answered here, or refused before raft-rs sees it.
//!
//! raft-rs trusts what it is told and panics at what cannot be. A peer that lost its log, or a defect, can say such things, so
//! they are turned away with a reason. Must not: change the log or the members; that is for raft-rs and the group.

use super::{ConsensusError, Group};
use raft::prelude::{Message, MessageType};

impl Group {
    /// Takes a message of another replica. What only a defect or a peer without its log can say is an error.
    pub fn step(&mut self, message: Message) -> Result<(), ConsensusError> {
        if !travels(message.get_msg_type()) || message.to != self.node.raft.id {
            return Ok(());
        }
        if message.get_msg_type() == MessageType::MsgTimeoutNow && self.must_not_stand() {
            return Ok(());
        }
        if self.hears_of_removal(&message) {
            return Ok(());
        }
        self.released.extend(self.word_of_removal(&message));
        self.refuse_impossible(&message)?;
        self.note_word(&message);
        match self.node.step(message) {
            Ok(())
            | Err(raft::Error::StepPeerNotFound | raft::Error::StepLocalMsg | raft::Error::ProposalDropped) =>
                {}
            Err(error) => return Err(error.into()),
        }
        self.steady_election_timeout();
        Ok(())
    }

    fn refuse_impossible(&self, message: &Message) -> Result<(), ConsensusError> {
        let raft = &self.node.raft;
        let is_current = message.term >= raft.term;
        let replaces_committed = || {
            let committed = raft.raft_log.committed;
            let known = raft.raft_log.first_index();
            message
                .entries
                .iter()
                .take_while(|entry| entry.index <= committed)
                .any(|entry| entry.index >= known && !raft.raft_log.match_term(entry.index, entry.term))
        };
        match message.get_msg_type() {
            MessageType::MsgHeartbeat if is_current && message.commit > self.last_index() => {
                let (commit, last) = (message.commit, self.last_index());
                let text =
                    format!("entry {commit} was acknowledged by this replica, whose log ends at {last}");
                Err(ConsensusError(text))
            }
            MessageType::MsgAppend
                if is_current && message.index >= raft.raft_log.committed && replaces_committed() =>
            {
                Err(ConsensusError("the leader would replace committed entries".to_owned()))
            }
            _ => Ok(()),
        }
    }
}

/// What replicas say to one another. Proposals and questions are never forwarded by raft, and the rest is local.
fn travels(kind: MessageType) -> bool {
    matches!(
        kind,
        MessageType::MsgAppend
            | MessageType::MsgAppendResponse
            | MessageType::MsgRequestVote
            | MessageType::MsgRequestVoteResponse
            | MessageType::MsgRequestPreVote
            | MessageType::MsgRequestPreVoteResponse
            | MessageType::MsgSnapshot
            | MessageType::MsgHeartbeat
            | MessageType::MsgHeartbeatResponse
            | MessageType::MsgTimeoutNow
    )
}
