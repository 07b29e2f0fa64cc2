//! Reads of a leader that has peers: answered from its state at their place, and held until a majority has said, after they
//! came, that it still leads.
//!
//! Evaluated on a leader that has applied an entry of its term, a read sees everything acknowledged before it; the round
//! excludes that a newer leader had acknowledged more. Rounds are for everything that gathered in the meantime and not for
//! single requests: one is under way, the next gathers. What was read by a leader that turned out to be deposed comes back
//! as not leading. A group with one voter holds nothing. Bounded by what routers admit.

use super::outbox::reply_failure;
use super::{Parked, Shard};
use crate::batch::{NotLeader, ReplyBatch, RequestHead};
use crate::command::answer::Failure;
use crate::effect::Effects;
use crate::ids::{Millis, ReplicaId};
use crate::mutants::{Mutant, is_on};
use crate::txn::message::GroupMessage;

/// Time after which a round without an answer is asked again, in ms: raft-rs may drop a question without a word.
const ASK_AGAIN_MS: u64 = 200;
/// Memory that an empty round keeps for each router.
const KEEP_BYTES: usize = 256 << 10;

/// The reads that wait for a majority.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Whether this replica leads others, so that its reads must wait.
    is_on: bool,
    /// The round to come.
    gathering: Round,
    /// The round under way.
    asked: Option<Asked>,
    /// An empty round, kept for its memory.
    spare: Round,
    last_question: u64,
}

#[derive(Debug)]
struct Asked {
    /// The first question of this round: an answer to it or a later one ends the round.
    question: u64,
    asked_at: Millis,
    round: Round,
}

/// What one round decides about.
#[derive(Debug, Default)]
struct Round {
    replies: Vec<HeldReplies>,
    /// Searches that begin when the round has ended.
    searches: Vec<Parked>,
    /// What is said to other groups from the state as a leader knows it.
    messages: Vec<GroupMessage>,
}

/// Replies to one router with the requests that they answer, one for one.
#[derive(Debug, Default)]
struct HeldReplies {
    replies: ReplyBatch,
    heads: Vec<RequestHead>,
    records: Vec<u8>,
}

impl Held {
    /// The batch that takes the one reply to this read.
    #[inline]
    pub(super) fn replies<'a>(
        &'a mut self,
        effects: &'a mut Effects,
        router: u8,
        head: &RequestHead,
        record: &[u8],
    ) -> &'a mut ReplyBatch {
        if !self.is_on || is_on(Mutant::StaleRead) {
            return effects.replies_to(router);
        }
        self.held_replies(router, head, record)
    }

    #[inline(never)]
    fn held_replies(&mut self, router: u8, head: &RequestHead, record: &[u8]) -> &mut ReplyBatch {
        let number = usize::from(router);
        if self.gathering.replies.len() <= number {
            self.gathering.replies.resize_with(number + 1, HeldReplies::default);
        }
        let held = &mut self.gathering.replies[number];
        assert_eq!(held.heads.len(), held.replies.heads.len(), "each read gets one reply");
        let start = u32::try_from(held.records.len()).expect("rounds are short");
        held.heads.push(RequestHead { start, length: record.len() as u32, ..*head });
        held.records.extend_from_slice(record);
        &mut held.replies
    }

    /// Whether reads wait for a majority.
    pub(super) fn is_on(&self) -> bool {
        self.is_on
    }

    /// Whether nothing is held.
    pub(super) fn is_empty(&self) -> bool {
        self.gathering.is_empty() && self.asked.is_none()
    }
}

impl Round {
    fn is_empty(&self) -> bool {
        self.searches.is_empty()
            && self.messages.is_empty()
            && self.replies.iter().all(|held| held.heads.is_empty())
    }

    /// Answers with NO_QUORUM what is past its deadline.
    fn give_up_late(&mut self, now: Millis, effects: &mut Effects) {
        for (router, held) in self.replies.iter_mut().enumerate() {
            if held.heads.iter().all(|head| head.deadline > now) {
                continue;
            }
            let late: Vec<bool> = held.heads.iter().map(|head| head.deadline <= now).collect();
            let mut at = late.iter();
            held.replies.heads.retain(|_| !at.next().expect("a reply for each read"));
            for head in held.heads.extract_if(.., |head| head.deadline <= now) {
                reply_failure(effects, router as u8, head.token, Failure::NoQuorum);
            }
        }
        for parked in self.searches.extract_if(.., |parked| parked.head.deadline <= now) {
            reply_failure(effects, parked.router, parked.head.token, Failure::NoQuorum);
        }
    }

    /// Gives every request back.
    fn refuse(&mut self, leader: ReplicaId, term: u64, effects: &mut Effects) {
        for (router, held) in self.replies.iter_mut().enumerate() {
            for head in held.heads.drain(..) {
                let record = &held.records[head.start as usize..][..head.length as usize];
                let refused = NotLeader { leader, term, hash: head.hash, deadline: head.deadline, record };
                effects.replies_to(router as u8).push_not_leader(head.token, &refused);
            }
            held.clear();
        }
        for parked in self.searches.drain(..) {
            let (hash, deadline) = (parked.head.hash, parked.head.deadline);
            let refused = NotLeader { leader, term, hash, deadline, record: &parked.record };
            effects.replies_to(parked.router).push_not_leader(parked.head.token, &refused);
        }
        self.messages.clear();
    }
}

impl HeldReplies {
    fn clear(&mut self) {
        self.replies.clear(KEEP_BYTES);
        self.heads.clear();
        self.records.clear();
        self.records.shrink_to(KEEP_BYTES);
    }
}

impl Shard {
    /// Follows whether this replica leads others; what is held when it does not lead any more comes back.
    pub(super) fn follow_quorum(&mut self, effects: &mut Effects) {
        let (leads, alone) = (self.group.is_leader(), self.group.is_alone());
        self.held.is_on = leads && !alone;
        if self.held.is_on || self.held.is_empty() {
            return;
        }
        if leads {
            // The only voter needs nobody's word.
            self.end_rounds(u64::MAX, effects);
            let round = std::mem::take(&mut self.held.gathering);
            self.let_go(round, effects);
            return;
        }
        let (leader, term) = (self.group.leader(), self.group.term());
        if let Some(mut asked) = self.held.asked.take() {
            asked.round.refuse(leader, term, effects);
        }
        self.held.gathering.refuse(leader, term, effects);
    }

    /// A search begins once a majority has said that this replica leads; whether it must wait for that.
    pub(super) fn hold_search(&mut self, parked: Parked) -> Option<Parked> {
        if !self.held.is_on {
            return Some(parked);
        }
        self.held.gathering.searches.push(parked);
        None
    }

    /// Sends a message that tells of the state as only a leader knows it, behind a round.
    pub(super) fn send_confirmed(&mut self, message: GroupMessage, effects: &mut Effects) {
        if self.held.is_on {
            self.held.gathering.messages.push(message);
        } else {
            self.send_behind_sync(message, effects);
        }
    }

    /// Begins the next round if there is something to ask for and none is under way; whether it did.
    pub(super) fn ask_for_reads(&mut self) -> bool {
        if self.held.asked.is_some() || !self.held.is_on || self.held.gathering.is_empty() {
            return false;
        }
        let round = std::mem::replace(&mut self.held.gathering, std::mem::take(&mut self.held.spare));
        self.held.last_question += 1;
        let question = self.held.last_question;
        self.held.asked = Some(Asked { question, asked_at: self.now, round });
        self.group.ask_leadership(question);
        true
    }

    /// Asks again when there is no answer for long, and gives up what is late.
    pub(super) fn tick_reads(&mut self, effects: &mut Effects) {
        let now = self.now;
        self.held.gathering.give_up_late(now, effects);
        let Some(asked) = &mut self.held.asked else { return };
        asked.round.give_up_late(now, effects);
        if asked.round.is_empty() {
            self.held.asked = None;
        } else if now.0.saturating_sub(asked.asked_at.0) >= ASK_AGAIN_MS {
            asked.asked_at = now;
            self.held.last_question += 1;
            self.group.ask_leadership(self.held.last_question);
        }
    }

    /// A majority has answered this question, and so all before it.
    pub(super) fn end_rounds(&mut self, answered: u64, effects: &mut Effects) {
        let Some(asked) = self.held.asked.take_if(|asked| asked.question <= answered) else { return };
        self.let_go(asked.round, effects);
    }

    fn let_go(&mut self, mut round: Round, effects: &mut Effects) {
        for (router, held) in round.replies.iter_mut().enumerate().filter(|(_, held)| !held.heads.is_empty())
        {
            assert_eq!(held.heads.len(), held.replies.heads.len(), "each read gets one reply");
            effects.replies_to(router as u8).append(&mut held.replies);
            held.clear();
        }
        for message in round.messages.drain(..) {
            self.send_behind_sync(message, effects);
        }
        let searches = std::mem::take(&mut round.searches);
        self.held.spare = round;
        for parked in searches {
            self.begin_search(parked, effects);
        }
    }
}
