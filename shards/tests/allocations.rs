//! Holds that a shard allocates for batches and never for requests: memory taken while it goes from request to reply.
#![allow(unsafe_code, reason = "a counting allocator has to be one")]
#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

use shards::batch::{RequestBatch, RequestHead};
use shards::command::record::{Op, Record};
use shards::effect::Effects;
use shards::event::Event;
use shards::ids::{GroupId, Millis, Sequence, Token, hash_of};
use shards::log::payload::PayloadBuffer;
use shards::shard::image::{ImageBuilder, encode_append};
use shards::shard::{Floor, Shard, ShardConfig};
use shards::state::SessionLimits;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

thread_local! {
    static TAKEN: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    TAKEN.with(|taken| taken.set(taken.get() + 1));
}

// SAFETY: every call goes to the system's allocator with the arguments it came with; the counter owns no memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the promises of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the pointer came from this allocator with the same layout, and the caller keeps the promises of `realloc`.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the pointer came from this allocator with the same layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const NOW: Millis = Millis(1_000_000);
const KEYS: u64 = 4096;

/// A shard on a disk without delay; batches and effects are used again, as the driver does.
struct Rig {
    shard: Shard,
    events: Vec<Event>,
    effects: Effects,
    payload: PayloadBuffer,
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
        let (events, payload) = (Vec::new(), PayloadBuffer::new());
        let mut rig = Self { shard, events, effects, payload, batch: Box::default(), next: 0 };
        rig.settle();
        for _ in 0..KEYS / 256 {
            rig.run(Op::Set, 256);
        }
        rig
    }

    /// So many commands in one batch, until all are answered.
    fn run(&mut self, op: Op, count: u64) {
        self.batch.clear(1 << 20);
        for _ in 0..count {
            self.next = (self.next + 1_237) % KEYS;
            let mut key = *b"key:000000";
            for (place, digit) in key[4..].iter_mut().rev().zip(0u32..) {
                *place = b'0' + (self.next / 10u64.pow(digit) % 10) as u8;
            }
            let key: &[u8] = if op == Op::Incr { &key[1..] } else { &key };
            let value: &[u8] = if op == Op::Set { &[b'7'; 64] } else { b"" };
            let argument = (op == Op::Incr).then_some(0);
            let start = self.batch.bytes.len() as u32;
            Record { argument, ..Record::plain(op, key, value) }.encode(&mut self.batch.bytes);
            let length = self.batch.bytes.len() as u32 - start;
            let (token, hash, deadline) = (Token(self.next), hash_of(key), Millis(NOW.0 + 5000));
            self.batch.heads.push(RequestHead { token, hash, deadline, start, length });
        }
        self.events.push(Event::Requests { router: 0, batch: std::mem::take(&mut self.batch) });
        assert_eq!(self.settle(), count as usize, "every request is answered");
    }

    fn settle(&mut self) -> usize {
        let mut answers = 0;
        loop {
            self.shard.step(NOW, &mut self.events, &mut self.effects).unwrap();
            let mut durable = None;
            for append in self.effects.appends.drain(..) {
                encode_append(&append, &mut self.payload);
                durable = Some(append.sequence);
            }
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

    /// Allocations a batch, once all memory that is kept has been taken.
    fn allocations(&mut self, op: Op, count: u64) -> u64 {
        const ROUNDS: u64 = 50;
        for _ in 0..2 * KEYS / count {
            self.run(op, count);
        }
        let before = TAKEN.with(Cell::get);
        for _ in 0..ROUNDS {
            self.run(op, count);
        }
        (TAKEN.with(Cell::get) - before).div_ceil(ROUNDS)
    }
}

#[test]
fn memory_is_taken_for_batches_and_not_for_requests() {
    for floor in [Floor::Always, Floor::Interval, Floor::Off] {
        let mut rig = Rig::new(floor);
        for (op, most) in [(Op::Get, 1), (Op::Set, 24), (Op::Incr, 24)] {
            let (few, many) = (rig.allocations(op, 64), rig.allocations(op, 512));
            println!("{floor:?} {op:?}: {few} allocations for a batch of 64, {many} for one of 512");
            assert!(many <= most, "{floor:?} {op:?}: {many} allocations for a batch of 512 requests");
            assert!(many <= few + 2, "{floor:?} {op:?}: {few} for 64 requests and {many} for 512");
        }
    }
}
