//! A group alone, and the order of what leaves a follower.

use super::*;
use crate::consensus::membership::{MemberChange, conf_change};
use crate::consensus::progress::{Applied, MemberRefusal};
use crate::ids::NodeNumber;

fn config(wait_for_sync: bool) -> GroupConfig {
    GroupConfig { group: GroupId(0), wait_for_sync, retained_bytes_max: 1 << 20, batch_bytes_max: 1 << 20 }
}

fn alone() -> Restored {
    let conf_state = ConfState { voters: vec![1], ..ConfState::default() };
    Restored { replica: 1, conf_state, ..Restored::default() }
}

fn collect(group: &mut Group) -> Collected {
    let mut collected = Collected::default();
    group.collect(&mut collected);
    collected
}

fn sync(group: &mut Group, appends: &[Append]) {
    group.durable(appends.last().unwrap().sequence);
}

#[test]
fn an_entry_commits_only_when_durable() {
    let mut group = Group::restore(alone(), config(true)).unwrap();
    group.campaign().unwrap();
    let out = collect(&mut group);
    assert!(group.is_leader() && out.committed.is_empty());
    assert!(!out.appends.is_empty(), "the new term is written");
    sync(&mut group, &out.appends);
    let out = collect(&mut group);
    assert_eq!(out.committed.len(), 1, "the leader's empty entry");
    group.applied(out.committed[0].index);

    let first = group.propose(b"a".to_vec()).unwrap();
    let one = collect(&mut group);
    assert!(one.committed.is_empty());
    let second = group.propose(b"b".to_vec()).unwrap();
    let two = collect(&mut group);
    assert!(two.committed.is_empty());
    assert_eq!((second, group.in_flight()), (first + 1, 2));
    sync(&mut group, &one.appends);
    let indexes = |out: &Collected| out.committed.iter().map(|entry| entry.index).collect::<Vec<_>>();
    assert_eq!(indexes(&collect(&mut group)), [first]);
    sync(&mut group, &two.appends);
    let out = collect(&mut group);
    assert_eq!(indexes(&out), [second]);
    assert!(out.appends.is_empty(), "a commit index that moves writes nothing");
    group.applied(second);
    assert_eq!(group.entry_bytes(), 0, "nobody needs what is applied");
}

#[test]
fn without_waiting_it_commits_at_once() {
    let mut group = Group::restore(alone(), config(false)).unwrap();
    group.campaign().unwrap();
    collect(&mut group);
    group.propose(b"a".to_vec()).unwrap();
    let out = collect(&mut group);
    assert_eq!((out.appends.len(), out.committed.len()), (1, 1));
}

#[test]
fn a_restored_group_commits_its_whole_log() {
    let mut restored = alone();
    restored.hard_state = HardState { term: 3, vote: 1, commit: 5, ..HardState::default() };
    restored.snapshot_index = 5;
    restored.snapshot_term = 2;
    restored.entries = vec![Entry { index: 6, term: 3, data: b"x".to_vec().into(), ..Entry::default() }];
    restored.sequence = Sequence(40);
    let mut group = Group::restore(restored, config(true)).unwrap();
    group.campaign().unwrap();
    let out = collect(&mut group);
    assert_eq!(out.appends[0].sequence, Sequence(41));
    sync(&mut group, &out.appends);
    let out = collect(&mut group);
    assert_eq!(out.committed.iter().map(|e| (e.index, e.term)).collect::<Vec<_>>(), [(6, 3), (7, 4)]);
}

fn follower() -> Group {
    let conf_state = ConfState { voters: vec![1, 2, 3], ..ConfState::default() };
    Group::restore(Restored { replica: 2, conf_state, ..Restored::default() }, config(true)).unwrap()
}

fn said(kind: MessageType, term: u64) -> Message {
    let mut message = Message { from: 1, to: 2, term, ..Message::default() };
    message.set_msg_type(kind);
    message
}

#[test]
fn a_follower_acknowledges_and_votes_when_durable() {
    let mut group = follower();
    group.step(said(MessageType::MsgRequestVote, 1)).unwrap();
    let vote = collect(&mut group);
    assert!(vote.messages.is_empty() && vote.appends[0].hard_state.vote == 1);
    sync(&mut group, &vote.appends);
    assert_eq!(collect(&mut group).messages[0].get_msg_type(), MessageType::MsgRequestVoteResponse);

    let mut append = said(MessageType::MsgAppend, 1);
    append.set_entries(vec![Entry { index: 1, term: 1, ..Entry::default() }].into());
    group.step(append).unwrap();
    let appended = collect(&mut group);
    assert!(appended.messages.is_empty() && appended.appends[0].entries.len() == 1);

    // An answer to a heartbeat of the durable term promises nothing about the entry on its way.
    group.step(said(MessageType::MsgHeartbeat, 1)).unwrap();
    let out = collect(&mut group);
    assert_eq!(out.messages[0].get_msg_type(), MessageType::MsgHeartbeatResponse);
    // In a term that is not durable it waits.
    group.step(said(MessageType::MsgHeartbeat, 2)).unwrap();
    let newer = collect(&mut group);
    assert!(newer.messages.is_empty());

    sync(&mut group, &appended.appends);
    let out = collect(&mut group);
    assert_eq!(out.messages[0].get_msg_type(), MessageType::MsgAppendResponse);
    sync(&mut group, &newer.appends);
    assert_eq!(collect(&mut group).messages[0].get_msg_type(), MessageType::MsgHeartbeatResponse);
}

#[test]
fn what_cannot_be_is_an_error_and_no_panic() {
    let mut group = follower();
    let heartbeat = Message { commit: 7, ..said(MessageType::MsgHeartbeat, 1) };
    assert!(group.step(heartbeat).is_err(), "this log never had entry 7");
    let proposal = said(MessageType::MsgPropose, 0);
    assert!(group.step(proposal).is_ok(), "proposals do not travel, and are dropped");
    let stranger = Message { from: 9, ..said(MessageType::MsgAppendResponse, 0) };
    assert!(group.step(stranger).is_ok());
}

#[test]
fn members_change_by_entries_that_this_room_reads_itself() {
    let mut group = Group::restore(alone(), config(true)).unwrap();
    group.campaign().unwrap();
    let out = collect(&mut group);
    sync(&mut group, &out.appends);
    for entry in collect(&mut group).committed {
        group.applied(entry.index);
    }
    let learner = ReplicaId::new(1 << 40, NodeNumber(7));
    let index = group.change_members(&[MemberChange::AddLearner(learner)]).unwrap();
    assert_eq!(group.change_members(&[MemberChange::Remove(learner)]), Err(MemberRefusal::Busy));
    let out = collect(&mut group);
    sync(&mut group, &out.appends);
    let committed = collect(&mut group).committed;
    assert_eq!(committed[0].index, index);
    assert_eq!(decode_change(&committed[0].data), Ok(conf_change(&[MemberChange::AddLearner(learner)])));
    group.apply_change(&committed[0]).unwrap();
    group.applied(index);
    assert_eq!(group.conf_state().learners, [learner.0]);
    assert!(group.is_alone(), "a learner has no vote");
    assert_eq!(
        group.change_members(&[MemberChange::Promote(learner)]),
        Err(MemberRefusal::Silent(learner)),
        "it was never heard"
    );
}

#[test]
fn entries_beyond_one_batch_become_several_and_count_with_the_last() {
    let config = GroupConfig { batch_bytes_max: 200, ..config(true) };
    let mut group = Group::restore(alone(), config).unwrap();
    group.campaign().unwrap();
    let out = collect(&mut group);
    sync(&mut group, &out.appends);
    let out = collect(&mut group);
    group.applied(out.committed[0].index);

    // Two fit a batch, the large one takes one of its own.
    let sizes = [30, 40, 50, 1000, 10];
    let first = group.propose(vec![0; sizes[0]]).unwrap();
    for size in &sizes[1..] {
        group.propose(vec![0; *size]).unwrap();
    }
    let out = collect(&mut group);
    let held: Vec<Vec<usize>> = out
        .appends
        .iter()
        .map(|append| append.entries.iter().map(|entry| entry.data.len()).collect())
        .collect();
    assert_eq!(held, [vec![30, 40], vec![50], vec![1000], vec![10]]);
    for append in &out.appends {
        assert!(
            append.hard_state.commit <= append.entries.last().unwrap().index,
            "a log that ends here is whole"
        );
    }
    let sequences: Vec<u64> = out.appends.iter().map(|append| append.sequence.0).collect();
    assert!(sequences.windows(2).all(|pair| pair[1] == pair[0] + 1));
    for append in &out.appends[..3] {
        group.durable(append.sequence);
        assert!(collect(&mut group).committed.is_empty());
    }
    sync(&mut group, &out.appends);
    let committed = collect(&mut group).committed;
    assert_eq!(
        committed.iter().map(|entry| entry.index).collect::<Vec<_>>(),
        (first..first + 5).collect::<Vec<_>>()
    );
}

/// Three replicas of one group, whose messages arrive at once, but for those of and for who is cut off.
struct Three {
    groups: Vec<Group>,
    cut_off: Option<u64>,
}

impl Three {
    fn new() -> Self {
        let conf_state = ConfState { voters: vec![1, 2, 3], ..ConfState::default() };
        let make = |replica| {
            let restored = Restored { replica, conf_state: conf_state.clone(), ..Restored::default() };
            Group::restore(restored, config(true)).unwrap()
        };
        Self { groups: (1..=3).map(make).collect(), cut_off: None }
    }

    /// Has everything synced, applied and delivered until nothing is left to do.
    fn settle(&mut self) {
        loop {
            let mut messages = Vec::new();
            for group in &mut self.groups {
                let out = collect(group);
                if let Some(last) = out.appends.last() {
                    group.durable(last.sequence);
                    messages.append(&mut collect(group).messages);
                }
                for entry in &out.committed {
                    if entry.get_entry_type() == raft::prelude::EntryType::EntryConfChangeV2 {
                        group.apply_change(entry).unwrap();
                    }
                    group.applied(entry.index);
                }
                messages.extend(out.messages);
            }
            if messages.is_empty() && self.groups.iter().all(|group| !group.node.has_ready()) {
                return;
            }
            for message in messages {
                let is_lost = [message.from, message.to].iter().any(|end| Some(*end) == self.cut_off);
                if !is_lost {
                    self.groups[message.to as usize - 1].step(message).unwrap();
                }
            }
        }
    }

    fn tick(&mut self, times: usize) {
        for _ in 0..times {
            self.groups.iter_mut().for_each(Group::tick);
            self.settle();
        }
    }

    /// Replica 1 leads, and everybody knows.
    fn lead(&mut self) {
        self.groups[0].campaign().unwrap();
        self.settle();
        self.tick(3);
    }

    fn remove(&mut self, replica: u64) {
        self.groups[0].change_members(&[MemberChange::Remove(ReplicaId(replica))]).unwrap();
        self.settle();
    }
}

/// It applies its removal while what it proposed after that is on its way to its log.
#[test]
fn a_leader_that_applies_its_own_removal_leads_no_more() {
    let mut three = Three::new();
    three.lead();
    // Nobody asks a leader for its own removal; one that was asked of the leader before can wait in its log.
    let change = conf_change(&[MemberChange::Remove(ReplicaId(1))]);
    three.groups[0].node.propose_conf_change(Vec::new(), change).unwrap();
    let removal = collect(&mut three.groups[0]);
    sync(&mut three.groups[0], &removal.appends);
    three.groups[0].propose(vec![0; 3]).unwrap();
    let late = collect(&mut three.groups[0]);
    assert!(!late.appends.is_empty());
    let mut answers = Vec::new();
    for message in removal.messages {
        let group = &mut three.groups[message.to as usize - 1];
        group.step(message).unwrap();
        let out = collect(group);
        sync(group, &out.appends);
        answers.extend(collect(group).messages);
    }
    answers.into_iter().for_each(|answer| three.groups[0].step(answer).unwrap());
    let committed = collect(&mut three.groups[0]).committed;
    assert_eq!(committed.len(), 1, "the removal, and not what came after it");
    three.groups[0].apply_change(&committed[0]).unwrap();
    three.groups[0].applied(committed[0].index);
    assert!(!three.groups[0].is_leader() && !three.groups[0].is_voter());
    sync(&mut three.groups[0], &late.appends);
    three.settle();
    three.tick(200);
    assert!(three.groups[1].is_leader() || three.groups[2].is_leader(), "the others go on");
}

#[test]
fn a_removed_replica_that_missed_its_removal_is_told_when_it_asks_for_votes() {
    let mut three = Three::new();
    three.lead();
    three.cut_off = Some(3);
    three.remove(3);
    three.tick(200);
    assert_eq!(three.groups[0].conf_state().voters, [1, 2], "the group goes on");
    assert!(three.groups[2].is_voter() && !three.groups[2].is_dismissed(), "it has a vote by all it knows");
    assert!(!three.groups[2].hears_a_leader());
    three.cut_off = None;
    three.tick(100);
    assert!(three.groups[2].is_dismissed(), "it was told");
    assert!(three.groups[0].is_leader() && three.groups[0].term() == 1, "and nobody was disturbed");
}

#[test]
fn a_replica_is_not_told_while_a_voter_that_answers_would_count_its_vote() {
    let mut three = Three::new();
    three.lead();
    three.cut_off = Some(3);
    three.remove(3);
    // Replica 2 has the entry and did not hear that it is committed; it was heard a moment ago.
    let question = Message { from: 3, to: 1, term: 2, ..Message::default() };
    let ask = |group: &mut Group, kind| {
        let mut question = Message { to: group.replica().0, ..question.clone() };
        question.set_msg_type(kind);
        group.step(question).unwrap();
        let mut told = collect(group).messages;
        told.retain(|message| message.to == 3 && !message.context.is_empty());
        told
    };
    three.tick(4);
    let known = three.groups[0].heard.applied(2).unwrap();
    three.groups[0].heard.note_applied(2, Applied { kept: 0, ..known });
    assert!(three.groups[0].is_change_news());
    assert!(ask(&mut three.groups[0], MessageType::MsgRequestPreVote).is_empty());
    three.groups[0].heard.note_applied(2, known);
    let words = ask(&mut three.groups[0], MessageType::MsgRequestPreVote);
    assert_eq!(words.len(), 1);
    assert_eq!((words[0].term, words[0].reject), (1, true), "raft-rs takes it for a refusal of this term");
    assert_eq!(ask(&mut three.groups[1], MessageType::MsgRequestVote)[0].term, 2, "a follower tells it too");

    // Who has applied as much as the one who tells knows better: that one is behind.
    let word = words[0].clone();
    assert!(three.groups[2].node.raft.raft_log.applied < word.commit);
    let mut told = Message { to: 2, commit: three.groups[1].commit_index(), ..word.clone() };
    three.groups[1].step(told.clone()).unwrap();
    assert!(!three.groups[1].is_dismissed(), "it has applied that index as a member");
    told.reject = false;
    told.commit += 1;
    three.groups[1].step(told).unwrap();
    assert!(!three.groups[1].is_dismissed(), "only a refusal is a word of removal");
    three.groups[2].step(word).unwrap();
    assert!(three.groups[2].is_dismissed());
}

#[test]
fn a_voter_that_only_waits_to_leave_a_joint_configuration_is_not_told() {
    let conf_state =
        ConfState { voters: vec![1, 2, 4], voters_outgoing: vec![1, 2, 3], ..ConfState::default() };
    let restored = Restored { replica: 2, conf_state, ..Restored::default() };
    let mut group = Group::restore(restored, config(true)).unwrap();
    group.step(said(MessageType::MsgHeartbeat, 1)).unwrap();
    let out = collect(&mut group);
    sync(&mut group, &out.appends);
    collect(&mut group);
    for (from, is_told) in [(3, false), (4, false), (5, true)] {
        let question = Message { from, index: 9, log_term: 1, ..said(MessageType::MsgRequestPreVote, 2) };
        group.step(question).unwrap();
        let told = collect(&mut group).messages.iter().any(|message| !message.context.is_empty());
        assert_eq!(told, is_told, "replica {from}");
    }
}

/// Seed 7083 of the simulator: the replica that was taken out emptied its directory as soon as it had applied that, the leader
/// lost its disk before the others had, and by what they knew they had no majority, for good.
#[test]
fn a_voter_that_applies_its_removal_stays_until_the_others_know() {
    let mut three = Three::new();
    three.lead();
    three.remove(3);
    assert!(!three.groups[2].is_voter() && three.groups[2].has_left_with_a_vote());
    assert!(!three.groups[2].is_dismissed(), "the others may not know it yet");
    three.cut_off = Some(2);
    three.tick(8);
    assert!(three.groups[0].is_leader() && three.groups[0].is_change_news());
    assert!(!three.groups[2].is_dismissed(), "a leader alone is not enough");
    three.cut_off = None;
    three.tick(8);
    assert!(three.groups[2].is_dismissed(), "it asked, and was told");
    assert!(three.groups[0].is_leader() && three.groups[0].term() == 1, "and nobody was disturbed");
}

/// Seed 4249 of the simulator: the others had heard that the change was committed, and restarted. Their logs did not say so.
#[test]
fn a_change_of_members_is_no_news_only_when_the_logs_say_that_it_is_committed() {
    let mut three = Three::new();
    three.lead();
    three.remove(3);
    let change = three.groups[1].changed_at;
    assert!(
        change > 0 && three.groups[1].durable_commit >= change,
        "it was written down without being asked"
    );
    // As after a restart from a snapshot: the leader does not know when the members changed, and waits for its whole state.
    let mut three = Three::new();
    three.lead();
    let last = three.groups[0].last_index();
    assert!(three.groups[1].durable_commit < last, "what moves only the commit index is not written");
    three.groups[0].changed_at = last;
    three.groups[0].durable_commit = last;
    assert!(three.groups[0].is_change_news());
    three.tick(6);
    assert!(
        three.groups[1].durable_commit >= last && !three.groups[0].is_change_news(),
        "they were asked to"
    );
    let written = three.groups[1].last_sequence();
    three.tick(40);
    assert_eq!(three.groups[1].last_sequence(), written, "and write nothing when there is nothing to say");
}

#[test]
fn a_learner_that_applies_its_removal_goes_at_once() {
    let conf_state = ConfState { voters: vec![1, 2], learners: vec![3], ..ConfState::default() };
    let restored = Restored { replica: 3, conf_state: conf_state.clone(), ..Restored::default() };
    let mut learner = Group::restore(restored, config(true)).unwrap();
    let mut entry =
        Entry { index: 1, term: 1, data: vec![0x12, 4, 0x08, 1, 0x10, 3].into(), ..Entry::default() };
    entry.set_entry_type(raft::prelude::EntryType::EntryConfChangeV2);
    learner.apply_change(&entry).unwrap();
    assert!(learner.is_dismissed() && !learner.has_left_with_a_vote());
    // One that begins with a snapshot of after its removal cannot tell whether it had a vote.
    let conf_state = ConfState { voters: vec![1, 2], ..ConfState::default() };
    let restored =
        Restored { replica: 3, conf_state, snapshot_index: 9, snapshot_term: 1, ..Restored::default() };
    assert!(!Group::restore(restored, config(true)).unwrap().is_dismissed());
    // One that waits to be filled has nothing to lose.
    let restored = Restored { replica: 3, ..Restored::default() };
    assert!(Group::restore(restored, config(true)).unwrap().is_dismissed());
}
