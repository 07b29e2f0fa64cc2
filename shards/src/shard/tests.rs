//! Shards in a world of their own: a log that becomes durable when the test says so, messages that arrive when it pumps.

use super::image::{ImageBuilder, ImageIdentity, SnapshotIntake, encode_append};
use super::*;
use crate::batch::{ReplyKind, RequestBatch, RequestHead};
use crate::command::items;
use crate::command::record::{Condition, Op, Record, Session, flag};
use crate::effect::SnapshotEffect;
use crate::ids::{Token, hash_of};
use crate::log::SegmentId;
use crate::log::header::BatchKind;
use crate::log::payload::PayloadBuffer;
use crate::log::replay::ReplayedBatch;
use crate::snapshot::SnapshotReader;
use crate::state::SessionLimits;
use crate::txn::Kind;
use crate::txn::message::{GroupMessage, Start};
use std::collections::BTreeMap;

mod floors;
mod members;
mod repeats;
mod slices;

/// One shard with its disk.
struct Strand {
    shard: Shard,
    config: ShardConfig,
    /// Everything handed to the log; a crash keeps what is durable.
    log: Vec<crate::consensus::group::Append>,
    durable: usize,
    replies: BTreeMap<u64, (ReplyKind, String)>,
    file: (u64, Vec<u8>),
    snapshot: Option<Vec<u8>>,
    found: Vec<Event>,
}

struct World {
    strands: Vec<Strand>,
    messages: Vec<GroupMessage>,
    now: Millis,
    next_token: u64,
}

const IDENTITY: ImageIdentity = ImageIdentity { cluster: 7, shard: 0, group: GroupId(0) };

/// What recovery would find: the kept snapshot and the durable batches, through the formats of the files.
fn image(group: GroupId, snapshot: Option<&[u8]>, log: &[crate::consensus::group::Append]) -> ShardImage {
    let identity = ImageIdentity { shard: group.0, group, ..IDENTITY };
    let snapshot = snapshot.map(|bytes| {
        let mut intake = SnapshotIntake::new(identity, SessionLimits::default());
        for piece in bytes.chunks(1000) {
            intake.feed(piece).unwrap();
        }
        intake.finish().unwrap()
    });
    let mut builder = ImageBuilder::new(group, snapshot, SessionLimits::default());
    let mut payload = PayloadBuffer::new();
    let mut last = Sequence(0);
    for append in log {
        encode_append(append, &mut payload);
        let (kind, sequence) = (BatchKind::Entries, append.sequence);
        let batch =
            ReplayedBatch { kind, group, sequence, payload: &payload, segment: SegmentId(1), offset: 0 };
        builder.batch(&batch);
        last = sequence;
    }
    builder.finish(last).unwrap()
}

impl Strand {
    fn write_snapshot(&mut self, effect: SnapshotEffect) {
        match effect {
            SnapshotEffect::Begin { index } => self.file = (index, Vec::new()),
            SnapshotEffect::Write(chunk) => {
                self.file.1.extend_from_slice(chunk.as_slice());
                self.found.push(Event::SnapshotWritten { bytes: chunk.as_slice().len() as u64 });
            }
            SnapshotEffect::Finish(expected) => {
                let mut reader = SnapshotReader::new();
                let mut bytes = &self.file.1[..];
                let sound = loop {
                    match reader.feed(&mut bytes) {
                        Ok(Some(_)) => {}
                        Ok(None) => break true,
                        Err(_) => break false,
                    }
                };
                let footer = if sound { reader.finish().ok().map(|(_, footer)| footer) } else { None };
                let equal = footer == Some(expected);
                if equal {
                    self.snapshot = Some(std::mem::take(&mut self.file.1));
                }
                let result = if equal { Ok(()) } else { Err("not what was written".to_owned()) };
                self.found.push(Event::SnapshotFinished(result));
            }
            SnapshotEffect::Drop => self.file.1.clear(),
        }
    }
}

impl World {
    fn work(&mut self, number: usize) {
        let mut effects = Effects::default();
        self.strands[number].shard.work(self.now, 1000, &mut effects).unwrap();
        self.take(number, effects);
        let mut events = std::mem::take(&mut self.strands[number].found);
        let mut effects = Effects::default();
        self.strands[number].shard.step(self.now, &mut events, &mut effects).unwrap();
        self.take(number, effects);
    }

    fn new(count: u32, floor: Floor) -> Self {
        let now = Millis(1_000_000);
        let strands = (0..count)
            .map(|number| {
                let group = GroupId(number);
                let config = ShardConfig { floor, cluster: 7, ..ShardConfig::new(group) };
                let shard = Shard::restore(config.clone(), image(group, None, &[]), now).unwrap();
                Strand {
                    shard,
                    config,
                    log: Vec::new(),
                    durable: 0,
                    replies: BTreeMap::new(),
                    file: (0, Vec::new()),
                    snapshot: None,
                    found: Vec::new(),
                }
            })
            .collect();
        let mut world = Self { strands, messages: Vec::new(), now, next_token: 1 };
        for number in 0..count as usize {
            world.start(number);
        }
        world.settle();
        world
    }

    fn start(&mut self, number: usize) {
        let mut effects = Effects::default();
        self.strands[number].shard.start(self.now, &mut effects).unwrap();
        self.take(number, effects);
    }

    fn step(&mut self, number: usize, event: Option<Event>) {
        let mut effects = Effects::default();
        let mut events: Vec<Event> = event.into_iter().collect();
        self.strands[number].shard.step(self.now, &mut events, &mut effects).unwrap();
        self.take(number, effects);
    }

    fn take(&mut self, number: usize, effects: Effects) {
        let strand = &mut self.strands[number];
        strand.log.extend(effects.appends);
        self.messages.extend(effects.messages);
        for effect in effects.snapshot {
            strand.write_snapshot(effect);
        }
        if let Some(upto) = effects.cut {
            let before = strand.log.len();
            strand.log.retain(|append| append.sequence > upto);
            strand.durable -= before - strand.log.len();
        }
        for batch in effects.replies {
            for head in &batch.heads {
                let mut body = batch.body(head).to_vec();
                if let Some(shared) = batch.shared.get(head.shared as usize) {
                    body.extend_from_slice(shared);
                }
                let text = match head.kind {
                    ReplyKind::Part => format!("{body:?}"),
                    _ => String::from_utf8(body).unwrap(),
                };
                let before = strand.replies.insert(head.token.0, (head.kind, text));
                assert!(before.is_none(), "one reply a request");
            }
        }
    }

    fn send(&mut self, number: usize, record: &Record<'_>) -> u64 {
        let token = self.next_token;
        self.next_token += 1;
        let mut batch = Box::<RequestBatch>::default();
        record.encode(&mut batch.bytes);
        let length = batch.bytes.len() as u32;
        let deadline = Millis(self.now.0 + 5000);
        batch.heads.push(RequestHead {
            token: Token(token),
            hash: hash_of(record.key),
            deadline,
            start: 0,
            length,
        });
        self.step(number, Some(Event::Requests { router: 0, batch }));
        token
    }

    fn sync(&mut self, number: usize) {
        let strand = &mut self.strands[number];
        strand.durable = strand.log.len();
        if let Some(last) = strand.log.last() {
            let sequence = last.sequence;
            self.step(number, Some(Event::Durable(sequence)));
        }
    }

    /// Syncs and delivers until nothing moves.
    fn settle(&mut self) {
        for _ in 0..1000 {
            let messages = std::mem::take(&mut self.messages);
            let mut moved = !messages.is_empty();
            for message in messages {
                self.step(message.to.0 as usize, Some(Event::Message(message)));
            }
            for number in 0..self.strands.len() {
                if self.strands[number].durable < self.strands[number].log.len() {
                    self.sync(number);
                    moved = true;
                }
            }
            if !moved {
                return;
            }
        }
        panic!("the world does not come to rest");
    }

    fn crash(&mut self, number: usize) {
        let strand = &mut self.strands[number];
        strand.log.truncate(strand.durable);
        let image = image(strand.config.group, strand.snapshot.as_deref(), &strand.log);
        strand.shard = Shard::restore(strand.config.clone(), image, self.now).unwrap();
        strand.found.clear();
        strand.replies.clear();
        self.messages.retain(|message| message.to.0 as usize != number && message.from.0 as usize != number);
        self.start(number);
    }

    fn reply(&self, number: usize, token: u64) -> Option<&str> {
        self.strands[number].replies.get(&token).map(|(_, text)| text.as_str())
    }

    fn ask(&mut self, number: usize, record: &Record<'_>) -> String {
        let token = self.send(number, record);
        self.settle();
        self.reply(number, token).expect("an answer").to_owned()
    }

    fn get(&mut self, number: usize, key: &str) -> String {
        self.ask(number, &Record::plain(Op::Get, key.as_bytes(), b""))
    }
}

fn set<'a>(key: &'a str, value: &'a str) -> Record<'a> {
    Record::plain(Op::Set, key.as_bytes(), value.as_bytes())
}

fn items_of(pairs: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, value) in pairs {
        items::push(&mut bytes, key.as_bytes(), value.as_bytes());
    }
    bytes
}

fn start_txn(kind: Kind, parts: &[(u32, &[u8])]) -> Vec<u8> {
    let mut value = Vec::new();
    let parts = parts.iter().map(|(group, items)| (GroupId(*group), *items)).collect();
    Start { kind, parts }.encode(&mut value);
    value
}

const ABSENT: &str = "\"result\":null,\"found\":false";

#[test]
fn a_write_is_answered_when_durable_and_not_before() {
    let mut world = World::new(1, Floor::Always);
    let token = world.send(0, &set("a", "1"));
    assert_eq!(world.reply(0, token), None);
    let read = world.send(0, &Record::plain(Op::Get, b"a", b""));
    let other = world.send(0, &Record::plain(Op::Get, b"b", b""));
    assert_eq!(world.reply(0, read), None, "a read waits for the write of its key");
    assert_eq!(world.reply(0, other), Some(ABSENT), "and for no other");
    world.sync(0);
    assert_eq!(world.strands[0].replies[&token], (ReplyKind::Ok, String::new()));
    assert_eq!(world.reply(0, read), Some("\"result\":1"));
}

#[test]
fn commands_gather_while_a_batch_is_on_its_way() {
    let mut world = World::new(1, Floor::Always);
    let before = world.strands[0].log.len();
    for number in 0..20 {
        world.send(0, &set("a", &number.to_string()));
    }
    assert_eq!(world.strands[0].log.len(), before + 1);
    world.settle();
    assert_eq!(world.strands[0].log.len(), before + 2);
    assert_eq!(world.get(0, "a"), "\"result\":19");
}

#[test]
fn one_connection_reads_its_writes_in_order() {
    let mut world = World::new(1, Floor::Always);
    let mut reads = Vec::new();
    for number in 0..5 {
        world.send(0, &set("a", &number.to_string()));
        reads.push(world.send(0, &Record::plain(Op::Get, b"a", b"")));
        if number == 2 {
            world.sync(0);
        }
    }
    world.settle();
    for (number, read) in reads.iter().enumerate() {
        let text = world.reply(0, *read).unwrap();
        let seen: usize = text.trim_start_matches("\"result\":").parse().unwrap();
        assert_eq!(seen, number, "a read sees the writes before it and none after");
    }
}

#[test]
fn integers_conditions_and_times() {
    let mut world = World::new(1, Floor::Always);
    let incr = |amount: i64| Record { argument: Some(amount as u64), ..Record::plain(Op::Incr, b"n", b"") };
    assert_eq!(world.ask(0, &incr(5)), "\"result\":5");
    assert_eq!(world.ask(0, &incr(-7)), "\"result\":-2");
    assert!(world.ask(0, &incr(i64::MIN)).contains("OVERFLOW"));
    world.ask(0, &set("s", "\"x\""));
    let bad = Record { argument: Some(1), ..Record::plain(Op::Incr, b"s", b"") };
    assert!(world.ask(0, &bad).contains("WRONG_TYPE"));

    let absent = Record { condition: Some(Condition::Absent), ..set("s", "2") };
    let answer = world.ask(0, &absent);
    assert!(answer.contains("CONFLICT") && answer.contains("\"version\":\""), "{answer}");
    let value = Record { condition: Some(Condition::Value(b"\"x\"")), ..set("s", "3") };
    world.ask(0, &value);
    let versioned = Record { flags: flag::WITH_VERSION, ..Record::plain(Op::Get, b"s", b"") };
    let answer = world.ask(0, &versioned);
    assert!(answer.ends_with("\"result\":3"), "{answer}");
    let version = crate::ids::Version::parse(answer.split('"').nth(3).unwrap()).unwrap();
    let right = Record { condition: Some(Condition::Version(version)), ..set("s", "4") };
    assert_eq!(world.ask(0, &right), "");
    assert!(world.ask(0, &right).contains("CONFLICT"), "the version moved");

    let mortal = Record { argument: Some(100), ..set("t", "1") };
    world.ask(0, &mortal);
    assert_eq!(world.ask(0, &Record::plain(Op::Ttl, b"t", b"")), "\"result\":100");
    assert_eq!(world.ask(0, &Record::plain(Op::Persist, b"t", b"")), "\"result\":true");
    assert_eq!(world.ask(0, &Record::plain(Op::Ttl, b"t", b"")), "\"result\":-1");
    let expire = Record { argument: Some(100), ..Record::plain(Op::Expire, b"t", b"") };
    assert_eq!(world.ask(0, &expire), "\"result\":true");
    world.now.0 += 100;
    assert_eq!(world.get(0, "t"), ABSENT);
    assert_eq!(world.strands[0].shard.state().keys.len(), 2, "the read had it removed");
    assert_eq!(world.ask(0, &Record::plain(Op::Ttl, b"t", b"")), "\"result\":-2");
}

#[test]
fn overdue_records_go_without_being_read() {
    let mut world = World::new(1, Floor::Always);
    for number in 0..50 {
        let key = format!("k{number}");
        world.ask(0, &Record { argument: Some(10), ..set(&key, "1") });
    }
    world.now.0 += 1000;
    let mut effects = Effects::default();
    let now = world.now;
    world.strands[0].shard.work(now, 1000, &mut effects).unwrap();
    world.take(0, effects);
    world.settle();
    assert_eq!(world.strands[0].shard.state().keys.len(), 0);
}

#[test]
fn a_retry_applies_once_through_a_restart() {
    let mut world = World::new(1, Floor::Always);
    let session = Some(Session { client: b"c", seq: 1, acked: 0 });
    let incr = Record { argument: Some(1), session, ..Record::plain(Op::Incr, b"n", b"") };
    assert_eq!(world.ask(0, &incr), "\"result\":1");
    assert_eq!(world.ask(0, &incr), "\"result\":1");
    world.crash(0);
    world.settle();
    assert_eq!(world.ask(0, &incr), "\"result\":1");
    let other = Record { argument: Some(2), ..incr };
    assert!(world.ask(0, &other).contains("CONFLICT"));
    let next = Record { session: Some(Session { client: b"c", seq: 2, acked: 2 }), ..incr };
    assert_eq!(world.ask(0, &next), "\"result\":2");
    assert!(world.ask(0, &incr).contains("SEQ_EXPIRED"));
}

#[test]
fn a_crash_keeps_what_is_durable() {
    let mut world = World::new(1, Floor::Always);
    world.ask(0, &set("a", "1"));
    world.send(0, &set("a", "2"));
    world.crash(0);
    world.settle();
    assert_eq!(world.get(0, "a"), "\"result\":1");
}

#[test]
fn transactions_are_whole() {
    for floor in [Floor::Always, Floor::Interval, Floor::Off] {
        let mut world = World::new(3, floor);
        let (a, b) = (items_of(&[("a", "1"), ("a2", "1")]), items_of(&[("b", "1")]));
        let value = start_txn(Kind::Set, &[(0, &a), (2, &b)]);
        let record = Record::plain(Op::TxnStart, b"", &value);
        assert_eq!(world.ask(0, &record), "\"result\":3");
        assert_eq!(world.get(0, "a2"), "\"result\":1");
        assert_eq!(world.get(2, "b"), "\"result\":1");
        let value =
            start_txn(Kind::Delete, &[(0, &items_of(&[("a", "")])), (2, &items_of(&[("b", ""), ("x", "")]))]);
        assert_eq!(world.ask(0, &Record::plain(Op::TxnStart, b"", &value)), "\"result\":2");
        assert_eq!(world.get(2, "b"), ABSENT);
        for strand in &world.strands {
            assert!(strand.shard.is_quiet() && strand.shard.txns.is_idle() && strand.shard.locks.is_empty());
        }
    }
}

#[test]
fn concurrent_transactions_and_writes_of_one_key_all_end() {
    let mut world = World::new(3, Floor::Always);
    let mut tokens = Vec::new();
    for round in 0..6 {
        let value_text = round.to_string();
        let mine = items_of(&[("a", &value_text)]);
        let other = items_of(&[("b", &value_text)]);
        let value = start_txn(Kind::Set, &[(0, &mine), (1, &other)]);
        tokens.push((0, world.send(0, &Record::plain(Op::TxnStart, b"", &value))));
        tokens.push((0, world.send(0, &set("a", &format!("10{round}")))));
        tokens.push((1, world.send(1, &set("b", &format!("20{round}")))));
        let messages = std::mem::take(&mut world.messages);
        for message in messages {
            world.step(message.to.0 as usize, Some(Event::Message(message)));
        }
        world.sync(round % 3);
    }
    world.settle();
    for (number, token) in tokens {
        assert!(world.reply(number, token).is_some(), "request {token} is answered");
    }
    assert!(world.strands.iter().all(|strand| strand.shard.is_quiet() && strand.shard.txns.is_idle()));
}

#[test]
fn reads_and_scans_wait_for_the_outcome() {
    let mut world = World::new(2, Floor::Always);
    world.ask(1, &set("b", "0"));
    let value = start_txn(Kind::Set, &[(0, &items_of(&[("a", "1")])), (1, &items_of(&[("b", "1")]))]);
    let txn = world.send(0, &Record::plain(Op::TxnStart, b"", &value));
    world.sync(0);
    let messages = std::mem::take(&mut world.messages);
    for message in messages {
        world.step(message.to.0 as usize, Some(Event::Message(message)));
    }
    world.sync(1);
    let read = world.send(1, &Record::plain(Op::Get, b"b", b""));
    let scan = world.send(1, &Record { argument: Some(10), ..Record::plain(Op::Scan, b"", b"") });
    let local = world.send(1, &Record { flags: flag::LOCAL, ..Record::plain(Op::Get, b"b", b"") });
    let write = world.send(1, &set("b", "2"));
    let behind = world.send(1, &Record::plain(Op::Get, b"b", b""));
    assert_eq!(world.reply(1, local), Some("\"result\":0"));
    assert_eq!((world.reply(1, read), world.reply(1, scan)), (None, None));
    world.settle();
    assert_eq!(world.reply(0, txn), Some("\"result\":2"));
    assert_eq!(world.reply(1, read), Some("\"result\":1"));
    assert!(world.reply(1, scan).is_some());
    assert!(world.reply(1, write).is_some());
    assert_eq!(world.reply(1, behind), Some("\"result\":2"));
}

/// Crashes coordinator or participant after every number of steps: the batch is whole or absent, and all locks go.
#[test]
fn a_crash_at_any_step_leaves_a_whole_batch() {
    for victim in 0..2 {
        for steps in 0..14 {
            let mut world = World::new(2, Floor::Always);
            let value = start_txn(Kind::Set, &[(0, &items_of(&[("a", "1")])), (1, &items_of(&[("b", "1")]))]);
            let session = Some(Session { client: b"c", seq: 1, acked: 0 });
            let record = Record { session, ..Record::plain(Op::TxnStart, b"", &value) };
            let token = world.send(0, &record);
            for step in 0..steps {
                if step % 2 == 0 {
                    world.sync(step / 2 % 2);
                } else if !world.messages.is_empty() {
                    let message = world.messages.remove(0);
                    world.step(message.to.0 as usize, Some(Event::Message(message)));
                }
            }
            let acknowledged = world.reply(0, token).is_some_and(|text| text.contains("result"));
            world.crash(victim);
            for _ in 0..60 {
                world.settle();
                world.now.0 += 100;
                world.step(0, None);
                world.step(1, None);
            }
            let (a, b) = (world.get(0, "a"), world.get(1, "b"));
            assert_eq!(a == ABSENT, b == ABSENT, "victim {victim} after {steps}: {a} and {b}");
            assert!(
                !acknowledged || a != ABSENT,
                "victim {victim} after {steps}: an acknowledged batch is there"
            );
            for strand in &world.strands {
                assert!(strand.shard.txns.is_idle(), "victim {victim} after {steps}");
                assert!(strand.shard.locks.is_empty() && strand.shard.is_quiet());
            }
            let again = world.ask(0, &record);
            assert_eq!(again, "\"result\":2", "victim {victim} after {steps}");
            assert_eq!(world.get(1, "b"), "\"result\":1");
        }
    }
}

#[test]
fn nobody_waits_for_ever() {
    let mut world = World::new(1, Floor::Always);
    let write = world.send(0, &set("a", "1"));
    let read = world.send(0, &Record::plain(Op::Get, b"a", b""));
    world.now.0 += 6000;
    world.step(0, None);
    let answer = world.reply(0, write).unwrap();
    assert!(answer.contains("TIMEOUT") && answer.contains("\"outcome\":\"unknown\""), "{answer}");
    assert!(world.reply(0, read).unwrap().contains("TIMEOUT"));
    world.settle();
    assert_eq!(world.get(0, "a"), "\"result\":1", "it applied all the same");
}

#[test]
fn snapshots_cut_the_log_and_restore() {
    let mut world = World::new(2, Floor::Always);
    for number in 0..500 {
        world.ask(0, &set(&format!("k{number}"), &number.to_string()));
    }
    let session = Some(Session { client: b"c", seq: 1, acked: 0 });
    let incr = Record { argument: Some(1), session, ..Record::plain(Op::Incr, b"n", b"") };
    world.ask(0, &incr);
    // An intent is open while the snapshot is taken.
    let value = start_txn(Kind::Set, &[(0, &items_of(&[("a", "1")])), (1, &items_of(&[("b", "1")]))]);
    world.send(0, &Record::plain(Op::TxnStart, b"", &value));
    world.sync(0);
    let messages = std::mem::take(&mut world.messages);
    for message in messages {
        world.step(message.to.0 as usize, Some(Event::Message(message)));
    }
    world.sync(0);
    let at_begin = world.strands[0].log.len();
    let asked = world.send(0, &Record::plain(Op::Snapshot, b"", b""));
    world.work(0);
    for number in 0..5 {
        world.send(0, &set(&format!("k{number}"), "\"late\""));
        world.sync(0);
        world.work(0);
    }
    for _ in 0..20 {
        world.work(0);
    }
    assert_eq!(world.reply(0, asked), Some(""), "the snapshot is kept");
    assert!(world.strands[0].log.len() < at_begin / 2, "the log is cut");
    assert_eq!(world.strands[0].shard.snapshot_counters().kept, 1);
    world.crash(0);
    for _ in 0..30 {
        world.settle();
        world.now.0 += 100;
        world.step(0, None);
        world.step(1, None);
    }
    assert_eq!(world.get(0, "k4"), "\"result\":\"late\"");
    assert_eq!(world.get(0, "k400"), "\"result\":400");
    assert_eq!(world.ask(0, &incr), "\"result\":1", "sessions are in it");
    assert_eq!(world.get(0, "a") == ABSENT, world.get(1, "b") == ABSENT, "the open batch ended whole");
    assert!(world.strands.iter().all(|strand| strand.shard.txns.is_idle()));
}

#[test]
fn a_snapshot_that_lost_a_record_is_written_again() {
    let mut world = World::new(1, Floor::Always);
    for number in 0..1000 {
        let key = format!("k{number}");
        world.send(0, &Record { flags: flag::DEBUG, ..set(&key, "1") });
    }
    world.settle();
    let asked = world.send(0, &Record::plain(Op::Snapshot, b"", b""));
    for _ in 0..30 {
        world.work(0);
    }
    let counters = *world.strands[0].shard.snapshot_counters();
    assert_eq!((counters.refused, counters.kept), (1, 1), "one in a hundred was lost and found out");
    assert!(world.reply(0, asked).is_some());
    world.crash(0);
    world.settle();
    assert_eq!(world.strands[0].shard.state().keys.len(), 1000);
}
