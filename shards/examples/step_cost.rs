//! The longest single step of a shard while it takes the largest commands that the limits allow.
//!
//! `cargo run --release -p shards --example step_cost`. Shards stand on disks without delay and hear one another at once;
//! every call of `step` and `work` and every encoding of a log batch is timed by itself. That work comes in slices is
//! held by tests that count units; this tells what the units cost.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "a measurement reads the clock")]
#![allow(clippy::print_stdout, reason = "figures go to the terminal")]
#![allow(clippy::unwrap_used, reason = "a measuring tool fails loudly")]

use shards::batch::{RequestBatch, RequestHead};
use shards::command::items;
use shards::command::record::{Op, Record};
use shards::effect::Effects;
use shards::event::Event;
use shards::ids::{GroupId, Millis, Sequence, Token, hash_of};
use shards::log::payload::PayloadBuffer;
use shards::shard::image::{ImageBuilder, encode_append};
use shards::shard::{Floor, Shard, ShardConfig};
use shards::state::SessionLimits;
use shards::txn::Kind;
use shards::txn::message::Start;
use std::time::{Duration, Instant};

const NOW: Millis = Millis(1_000_000);
const ITEMS: u64 = 100_000;
const VALUE: &[u8] = b"\"01234567890123456789012345678901234567890123456789012345678901\"";
/// Units of one call of background work, as the driver gives them.
const WORK_UNITS: usize = 256;

/// Some shards with their mail.
struct World {
    shards: Vec<Shard>,
    events: Vec<Vec<Event>>,
    payload: PayloadBuffer,
    costs: Costs,
}

#[derive(Default)]
struct Costs {
    longest_step: Duration,
    longest_work: Duration,
    longest_encode: Duration,
    calls: Vec<Duration>,
}

impl World {
    fn new(count: u32) -> Self {
        let shards = (0..count).map(|number| {
            let group = GroupId(number);
            let image = ImageBuilder::new(group, None, SessionLimits::default()).finish(Sequence(0)).unwrap();
            let config = ShardConfig { floor: Floor::Always, ..ShardConfig::new(group) };
            Shard::restore(config, image, NOW).unwrap()
        });
        let shards: Vec<Shard> = shards.collect();
        let events = shards.iter().map(|_| Vec::new()).collect();
        let mut world = Self { shards, events, payload: PayloadBuffer::new(), costs: Costs::default() };
        for number in 0..world.shards.len() {
            let mut effects = Effects::default();
            world.shards[number].start(NOW, &mut effects).unwrap();
            world.take(number, effects);
        }
        world.settle();
        world
    }

    /// One command to the first shard, until nothing moves; prints what its calls cost.
    fn run(&mut self, name: &str, record: &Record<'_>) {
        let mut batch = Box::<RequestBatch>::default();
        record.encode(&mut batch.bytes);
        let length = batch.bytes.len() as u32;
        let (token, hash, deadline) = (Token(1), hash_of(record.key), Millis(NOW.0 + 60_000));
        batch.heads.push(RequestHead { token, hash, deadline, start: 0, length });
        self.costs = Costs::default();
        self.events[0].push(Event::Requests { router: 0, batch });
        let answers = self.settle();
        assert_eq!(answers, 1, "the command is answered");
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let costs = &self.costs;
        let mut calls = costs.calls.clone();
        calls.sort_unstable();
        let over = calls.iter().filter(|call| **call > Duration::from_millis(1)).count();
        println!(
            "{name:44} longest step {:7.3} ms, work {:7.3}, encode {:7.3}; {:5} calls, p99 {:7.3} ms, {over} over 1 ms",
            ms(costs.longest_step),
            ms(costs.longest_work),
            ms(costs.longest_encode),
            calls.len(),
            ms(calls[calls.len() * 99 / 100])
        );
    }

    fn settle(&mut self) -> usize {
        let mut answers = 0;
        loop {
            let mut moved = false;
            for number in 0..self.shards.len() {
                if !self.events[number].is_empty() {
                    let mut events = std::mem::take(&mut self.events[number]);
                    let mut effects = Effects::default();
                    let begun = Instant::now();
                    self.shards[number].step(NOW, &mut events, &mut effects).unwrap();
                    self.costs.longest_step = self.costs.longest_step.max(self.costs.count(begun));
                    answers += self.take(number, effects);
                    moved = true;
                }
                if self.shards[number].has_work() {
                    let mut effects = Effects::default();
                    let begun = Instant::now();
                    self.shards[number].work(NOW, WORK_UNITS, &mut effects).unwrap();
                    self.costs.longest_work = self.costs.longest_work.max(self.costs.count(begun));
                    answers += self.take(number, effects);
                    moved = true;
                }
            }
            if !moved {
                return answers;
            }
        }
    }

    fn take(&mut self, number: usize, effects: Effects) -> usize {
        for append in &effects.appends {
            let begun = Instant::now();
            encode_append(append, &mut self.payload);
            self.costs.longest_encode = self.costs.longest_encode.max(self.costs.count(begun));
        }
        if let Some(last) = effects.appends.last() {
            self.events[number].push(Event::Durable(last.sequence));
        }
        for message in effects.messages {
            self.events[message.to.0 as usize].push(Event::Message(message));
        }
        effects.replies.iter().map(|batch| batch.heads.len()).sum()
    }
}

impl Costs {
    fn count(&mut self, begun: Instant) -> Duration {
        let taken = begun.elapsed();
        self.calls.push(taken);
        taken
    }
}

fn pairs(from: u64, to: u64, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for number in from..to {
        items::push(&mut bytes, format!("key:{number:012}").as_bytes(), value);
    }
    bytes
}

fn transaction(kind: Kind, first: &[u8], second: &[u8]) -> Vec<u8> {
    let mut value = Vec::new();
    Start { kind, parts: vec![(GroupId(0), first), (GroupId(1), second)] }.encode(&mut value);
    value
}

fn main() {
    let mut one = World::new(1);
    let items = pairs(0, ITEMS, VALUE);
    let names = pairs(0, ITEMS, b"");
    one.run("BULK_SET of 100,000 new keys", &Record::plain(Op::BulkSet, b"", &items));
    one.run("BULK_SET of 100,000 known keys", &Record::plain(Op::BulkSet, b"", &items));
    one.run("BULK_DELETE of 100,000 keys", &Record::plain(Op::BulkDelete, b"", &names));

    let mut two = World::new(2);
    let halves = [pairs(0, ITEMS / 2, VALUE), pairs(ITEMS / 2, ITEMS, VALUE)];
    let value = transaction(Kind::Set, &halves[0], &halves[1]);
    two.run("BULK_SET of 100,000 keys over two shards", &Record::plain(Op::TxnStart, b"", &value));
    two.run("the same again", &Record::plain(Op::TxnStart, b"", &value));
    let halves = [pairs(0, ITEMS / 2, b""), pairs(ITEMS / 2, ITEMS, b"")];
    let value = transaction(Kind::Delete, &halves[0], &halves[1]);
    two.run("BULK_DELETE of them", &Record::plain(Op::TxnStart, b"", &value));

    let large = vec![b'7'; 8 << 20];
    one.run("SET of 8 MiB", &Record::plain(Op::Set, b"large", &large));
    one.run("SET of 8 MiB over it", &Record::plain(Op::Set, b"large", &large));
    one.run("GET of it", &Record::plain(Op::Get, b"large", b""));
    one.run("DELETE of it", &Record::plain(Op::Delete, b"large", b""));
    pieces(&large);
}

/// What one pass over 8 MiB costs, by what it does.
fn pieces(large: &[u8]) {
    let told = |name: &str, begun: Instant| {
        println!("8 MiB, {name:24} {:7.3} ms", begun.elapsed().as_secs_f64() * 1e3);
    };
    for _ in 0..2 {
        let begun = Instant::now();
        std::hint::black_box(xxhash_rust::xxh3::xxh3_64(large));
        told("xxh3", begun);
        let begun = Instant::now();
        std::hint::black_box(crc32c::crc32c(large));
        told("crc32c", begun);
        let begun = Instant::now();
        let copy: std::sync::Arc<[u8]> = std::hint::black_box(large.into());
        told("copied to new memory", begun);
        let mut room = copy.to_vec();
        let begun = Instant::now();
        room.copy_from_slice(large);
        std::hint::black_box(&room);
        told("copied to warm memory", begun);
        let begun = Instant::now();
        drop((copy, room));
        told("freed", begun);
    }
}
