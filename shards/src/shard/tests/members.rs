//! A replica among others that the test plays: what becomes of its requests when the group goes on without it.

use super::*;
use crate::ids::{NodeNumber, ReplicaId};
use crate::shard::image::Founding;
use raft::prelude::{Message as RaftMessage, MessageType};

/// The first of three voters, which leads, and whose log is always synced.
fn leader_of_three() -> (Shard, Millis) {
    let voters: Vec<ReplicaId> = (1..=3).map(|node| ReplicaId::new(0, NodeNumber(node))).collect();
    let founding = Founding::Voter { replica: voters[0], voters };
    let builder = ImageBuilder::replica(GroupId(0), &founding, None, SessionLimits::default());
    let image = builder.finish(Sequence(0)).unwrap();
    let mut now = Millis(1_000_000);
    let config = ShardConfig { cluster: 7, ..ShardConfig::new(GroupId(0)) };
    let mut shard = Shard::restore(config, image, now).unwrap();
    shard.start(now, &mut Effects::default()).unwrap();
    for _ in 0..1000 {
        now.0 += 10;
        for question in turn(&mut shard, now, Vec::new()).raft {
            hear(&mut shard, now, consent(&question));
        }
        if shard.is_ready() {
            return (shard, now);
        }
    }
    panic!("it has every vote and does not lead");
}

/// A step, with everything synced that comes of it.
fn turn(shard: &mut Shard, now: Millis, mut events: Vec<Event>) -> Effects {
    let mut effects = Effects::default();
    loop {
        let before = effects.appends.len();
        shard.step(now, &mut events, &mut effects).unwrap();
        match effects.appends.last() {
            Some(last) if effects.appends.len() > before => events.push(Event::Durable(last.sequence)),
            _ => return effects,
        }
    }
}

/// Gives a message to the replica, and the other's consent to whatever it answers, until it says no more.
fn hear(shard: &mut Shard, now: Millis, message: Option<RaftMessage>) {
    let mut waiting: Vec<RaftMessage> = message.into_iter().collect();
    while let Some(message) = waiting.pop() {
        let said = turn(shard, now, vec![Event::Raft(Box::new(message))]).raft;
        waiting.extend(said.iter().filter_map(consent));
    }
}

/// What another voter says that agrees with everything.
fn consent(question: &RaftMessage) -> Option<RaftMessage> {
    let kind = match question.get_msg_type() {
        MessageType::MsgRequestPreVote => MessageType::MsgRequestPreVoteResponse,
        MessageType::MsgRequestVote => MessageType::MsgRequestVoteResponse,
        MessageType::MsgAppend => MessageType::MsgAppendResponse,
        _ => return None,
    };
    let (to, from, term) = (question.from, question.to, question.term);
    let index = question.index + question.entries.len() as u64;
    let mut answer = RaftMessage { to, from, term, index, ..RaftMessage::default() };
    answer.set_msg_type(kind);
    Some(answer)
}

/// Seed 2591 of the simulator: a leader was taken out while an entry of its own was on its way. What became of that entry it
/// never heard, so it waited for ever, its seat was never free, and no other replica of the group could come to its node.
#[test]
fn a_replica_that_was_let_go_waits_for_nothing() {
    let (mut shard, mut now) = leader_of_three();
    let mut batch = Box::<RequestBatch>::default();
    set("a", "1").encode(&mut batch.bytes);
    let length = batch.bytes.len() as u32;
    let deadline = Millis(now.0 + 600_000);
    batch.heads.push(RequestHead { token: Token(5), hash: hash_of(b"a"), deadline, start: 0, length });
    turn(&mut shard, now, vec![Event::Requests { router: 0, batch }]);
    assert!(!shard.is_quiet(), "nobody has acknowledged the entry");

    // The others are silent, until one of them answers its question for votes: it is in the group no more.
    let mut asked = None;
    while asked.is_none() {
        now.0 += 10;
        let effects = turn(&mut shard, now, Vec::new());
        assert!(effects.replies.iter().all(|batch| batch.heads.is_empty()), "the entry may yet be committed");
        let is_question =
            |said: &RaftMessage| said.get_msg_type() == MessageType::MsgRequestPreVote && said.to == 2;
        asked = effects.raft.into_iter().find(is_question);
    }
    assert!(!shard.is_quiet() && !shard.is_dismissed());
    let asked = asked.expect("just seen");
    let mut word =
        RaftMessage { to: 1, from: 2, term: asked.term - 1, reject: true, ..RaftMessage::default() };
    word.set_msg_type(MessageType::MsgRequestPreVoteResponse);
    (word.commit, word.context) = (asked.index + 9, b"removed".to_vec().into());
    turn(&mut shard, now, vec![Event::Raft(Box::new(word))]);
    assert!(shard.is_dismissed());
    now.0 += 1000;
    let effects = turn(&mut shard, now, Vec::new());
    let answer = &effects.replies[0];
    assert_eq!((answer.heads.len(), answer.heads[0].token), (1, Token(5)));
    let text = String::from_utf8_lossy(answer.body(&answer.heads[0])).into_owned();
    assert!(text.contains("TIMEOUT") && text.contains("\"outcome\":\"unknown\""), "{text}");
    assert!(shard.is_quiet(), "nothing holds its seat");
}

/// Seed 7670 of the simulator: each REMOVE_NODE for a node that was leaving already was an entry of the log.
#[test]
fn a_node_that_leaves_already_is_not_logged_again() {
    let (mut shard, mut now) = leader_of_three();
    let node = |number, state| crate::meta::Node {
        number: NodeNumber(number),
        id: format!("node{number}"),
        state,
        ..crate::meta::Node::default()
    };
    let meta = |last| {
        let mut nodes: Vec<_> = (1..=3).map(|number| node(number, crate::meta::NodeState::Member)).collect();
        nodes.push(node(4, last));
        crate::meta::Meta { version: 1, nodes, ..crate::meta::Meta::default() }
    };
    shard.cluster.take_over(meta(crate::meta::NodeState::Member));
    let mut remove = |shard: &mut Shard| {
        let mut value = Vec::new();
        crate::meta::MetaChange::RemoveNode(NodeNumber(4)).encode(&mut value);
        let mut batch = Box::<RequestBatch>::default();
        Record::plain(Op::MetaChange, &[], &value).encode(&mut batch.bytes);
        let length = batch.bytes.len() as u32;
        let deadline = Millis(now.0 + 600_000);
        batch.heads.push(RequestHead { token: Token(5), hash: hash_of(b""), deadline, start: 0, length });
        now.0 += 1;
        turn(shard, now, vec![Event::Requests { router: 0, batch }])
    };
    let first = remove(&mut shard);
    let said = |effects: &Effects| {
        let batch = effects.replies.first()?;
        Some(String::from_utf8_lossy(batch.body(batch.heads.first()?)).into_owned())
    };
    assert_eq!((first.appends.len(), said(&first)), (1, None), "it is proposed");
    shard.cluster.take_over(meta(crate::meta::NodeState::Leaving));
    let again = remove(&mut shard);
    assert!(again.appends.is_empty());
    assert_eq!(again.replies[0].heads.len(), 1);
}
