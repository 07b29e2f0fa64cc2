//! What the engine costs without threads, sockets and disk: steps of a shard, parsing, records, applying.
//!
//! The shard's disk is perfect: what a step hands to the log is durable with the next event. A step therefore shows
//! admission, proposal, consensus, apply and reply of its commands. Throughput is in commands.
#![allow(clippy::unwrap_used, reason = "a measuring tool fails loudly")]
#![allow(missing_docs, reason = "the macros of criterion make public items")]
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "criterion reads the clock")]

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use shards::batch::{RequestBatch, RequestHead};
use shards::command::encode::one_key;
use shards::command::record::{Op, Record};
use shards::effect::Effects;
use shards::event::Event;
use shards::ids::{GroupId, Millis, Sequence, Token, Version, hash_of};
use shards::shard::image::ImageBuilder;
use shards::shard::{Floor, Shard, ShardConfig};
use shards::state::record::Content;
use shards::state::{RecordFlags, SessionLimits, State};
use std::hint::black_box;
use strand_wire::limits::Limits;
use strand_wire::request::parse;

const KEYS: u64 = 100_000;
const NOW: Millis = Millis(1_000_000);
const VALUE: &[u8] = b"\"0123456789012345678901234567890123456789012345678901234567890123\"";

/// A shard that leads, on a disk without delay.
struct Rig {
    shard: Shard,
    events: Vec<Event>,
    effects: Effects,
    batch: Box<RequestBatch>,
    next: u64,
}

impl Rig {
    fn new(floor: Floor) -> Self {
        let group = GroupId(0);
        let image = ImageBuilder::new(group, None, SessionLimits::default()).finish(Sequence(0)).unwrap();
        let config = ShardConfig { floor, ..ShardConfig::new(group) };
        let mut shard = Shard::restore(config, image, NOW).unwrap();
        let mut effects = Effects::default();
        shard.start(NOW, &mut effects).unwrap();
        let mut rig = Self { shard, events: Vec::new(), effects, batch: Box::default(), next: 0 };
        rig.settle();
        assert!(rig.shard.is_ready(), "a single voter leads once its vote is durable");
        for _ in 0..KEYS.div_ceil(256) {
            rig.run(Op::Set, 256);
        }
        rig
    }

    /// So many commands in one batch, until all are answered; returns the answers.
    fn run(&mut self, op: Op, count: u64) -> usize {
        self.batch.clear(1 << 20);
        for _ in 0..count {
            // A stride coprime to the count visits keys in no order that a cache foresees.
            self.next = (self.next + 7_919) % KEYS;
            let key = key(self.next);
            let start = self.batch.bytes.len() as u32;
            let value = if op == Op::Set { VALUE } else { b"" };
            Record::plain(op, &key, value).encode(&mut self.batch.bytes);
            let length = self.batch.bytes.len() as u32 - start;
            let (token, hash, deadline) = (Token(self.next), hash_of(&key), Millis(NOW.0 + 5000));
            self.batch.heads.push(RequestHead { token, hash, deadline, start, length });
        }
        self.events.push(Event::Requests { router: 0, batch: std::mem::take(&mut self.batch) });
        let answers = self.settle();
        assert_eq!(answers, count as usize, "every request is answered");
        answers
    }

    /// Steps until nothing is left to do; returns the answers.
    fn settle(&mut self) -> usize {
        let mut answers = 0;
        loop {
            self.shard.step(NOW, &mut self.events, &mut self.effects).unwrap();
            let durable = self.effects.appends.drain(..).last().map(|append| append.sequence);
            self.effects.sync_now = false;
            for replies in &mut self.effects.replies {
                answers += replies.heads.len();
                replies.clear(1 << 20);
            }
            if let Some((_, batch)) = self.effects.returned.pop() {
                self.batch = batch;
            }
            match durable {
                Some(sequence) => self.events.push(Event::Durable(sequence)),
                None => return answers,
            }
        }
    }
}

fn key(number: u64) -> Vec<u8> {
    format!("key:{number:012}").into_bytes()
}

fn steps(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("step");
    let rigs = [("always", Floor::Always), ("off", Floor::Off)].map(|(name, floor)| (name, Rig::new(floor)));
    for (floor, mut rig) in rigs {
        for (name, op) in [("set", Op::Set), ("get", Op::Get)] {
            for count in [1, 16, 256] {
                group.throughput(Throughput::Elements(count));
                let id = BenchmarkId::new(format!("{floor}/{name}"), count);
                group.bench_function(id, |bencher| bencher.iter(|| rig.run(op, count)));
            }
        }
    }
    group.finish();
}

fn lines(criterion: &mut Criterion) {
    let value = String::from_utf8(VALUE.to_vec()).unwrap();
    let set = format!("{{\"command\":\"SET\",\"key\":\"key:000000000007\",\"value\":{value}}}");
    let get = "{\"command\":\"GET\",\"key\":\"key:000000000007\"}".to_owned();
    let limits = Limits::default();
    let mut group = criterion.benchmark_group("line");
    group.throughput(Throughput::Elements(1));
    for (name, line) in [("set", set), ("get", get)] {
        group.bench_function(BenchmarkId::new("parse", name), |bencher| {
            bencher.iter(|| parse(black_box(line.as_bytes()), &limits).is_ok());
        });
        let mut out = Vec::new();
        group.bench_function(BenchmarkId::new("parse and encode", name), |bencher| {
            bencher.iter(|| {
                let request = parse(black_box(line.as_bytes()), &limits).unwrap();
                out.clear();
                one_key(&request.command).unwrap().encode(&mut out);
                out.len()
            });
        });
    }
    group.finish();
}

fn records(criterion: &mut Criterion) {
    let key = key(7);
    let record = Record::plain(Op::Set, &key, VALUE);
    let mut bytes = Vec::new();
    record.encode(&mut bytes);
    let mut group = criterion.benchmark_group("record");
    group.throughput(Throughput::Elements(1));
    let mut out = Vec::new();
    group.bench_function("encode", |bencher| {
        bencher.iter(|| {
            out.clear();
            black_box(&record).encode(&mut out);
            out.len()
        });
    });
    group.bench_function("decode", |bencher| bencher.iter(|| Record::decode(black_box(&bytes)).is_ok()));
    group.finish();
}

fn apply(criterion: &mut Criterion) {
    const WRITES: usize = 256;
    let keys: Vec<Vec<u8>> = (0..KEYS).map(key).collect();
    let mut state = State::default();
    let content = |place| Content {
        version: Version::new(0, place, 0),
        value: VALUE,
        expires_at: None,
        flags: RecordFlags::NONE,
    };
    for key in &keys {
        state.keys.set(hash_of(key), key, content(1));
    }
    let mut group = criterion.benchmark_group("state");
    group.throughput(Throughput::Elements(WRITES as u64));
    let mut next = 0;
    group.bench_function("set", |bencher| {
        bencher.iter_batched(
            || {
                next += WRITES * 7_919;
                (0..WRITES).map(|number| (next + number * 7_919) % keys.len()).collect::<Vec<_>>()
            },
            |chosen| {
                for number in chosen {
                    let key = &keys[number];
                    state.keys.set(hash_of(key), key, content(2));
                }
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(engine, steps, lines, records, apply);
criterion_main!(engine);
