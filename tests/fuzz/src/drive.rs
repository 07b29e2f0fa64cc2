//! Two shards in memory that live a little: where the seeds of stored and sent bytes come from, so that they are what
//! the engine that ships really writes.

use shards::effect::{Effects, SnapshotEffect};
use shards::event::Event;
use shards::ids::{GroupId, Millis, Sequence};
use shards::log::payload::PayloadBuffer;
use shards::shard::image::{ImageBuilder, encode_append, encode_start};
use shards::shard::{Shard, ShardConfig};
use shards::state::SessionLimits;
use shards::txn::message::GroupMessage;
use strand_sim::router::Router;

const BEGINNING: Millis = Millis(1_770_000_000_000);
const SHARDS: u32 = 2;
const TICK_MS: u64 = 20;
const PATIENCE_MS: u64 = 60_000;
/// The cluster of what is written here.
pub const CLUSTER: u128 = 0xf022;

/// What the shards wrote and said.
#[derive(Default)]
pub struct Driven {
    /// Finished snapshot files with their group.
    pub snapshots: Vec<(GroupId, Vec<u8>)>,
    /// Log payloads of entries, of group 0 in order.
    pub entries: Vec<Vec<u8>>,
    /// Log payload of a segment's start, of group 0.
    pub start: Vec<u8>,
    /// What groups said to one another.
    pub messages: Vec<GroupMessage>,
}

const LINES: &[&str] = &[
    r#"{"command":"CREATE_INDEX","field":"n"}"#,
    r#"{"command":"CREATE_INDEX","field":"title","kind":"text"}"#,
    r#"{"command":"CREATE_INDEX","field":"v","kind":"vector","dim":3,"metric":"l2"}"#,
    r#"{"command":"SET","key":"a","value":{"title":"river boat","n":7,"v":[1,2,3]}}"#,
    r#"{"command":"SET","key":"b","value":{"title":"the river","n":[1,2.5,"x"],"v":[0,-1,0.5]},"ttl_ms":60000}"#,
    r#"{"command":"SET","key":"c","value":"plain words of text","debug":true}"#,
    r#"{"command":"SEARCH","query":"river"}"#,
    r#"{"command":"INCR","key":"count","amount":5,"client":"me","seq":1}"#,
    r#"{"command":"INCR","key":"count","client":"me","seq":2,"acked":1}"#,
    r#"{"command":"BULK_SET","items":{"a":1,"d":{"n":3,"v":[1,1,1]},"e":[],"f":null,"g":"x"},"client":"me","seq":3}"#,
    r#"{"command":"BULK_GET","keys":["a","d","e","zz"]}"#,
    r#"{"command":"BULK_DELETE","keys":["f","g","nothing"]}"#,
    r#"{"command":"SET","key":"c","value":2,"if":{"present":true}}"#,
    r#"{"command":"EXPIRE","key":"c","ttl_ms":1000}"#,
    r#"{"command":"DELETE","key":"e"}"#,
    r#"{"command":"DELETE_PREFIX","prefix":"count"}"#,
    r#"{"command":"QUERY_INDEX","field":"n","gte":0}"#,
    r#"{"command":"SNAPSHOT"}"#,
    r#"{"command":"SET","key":"after","value":"the snapshot"}"#,
];

struct World {
    shards: Vec<Shard>,
    events: Vec<Vec<Event>>,
    files: Vec<Vec<u8>>,
    router: Router,
    driven: Driven,
    now: Millis,
}

/// Lives the little life.
pub fn drive() -> Driven {
    let shards: Vec<Shard> = (0..SHARDS).map(GroupId).map(shard).collect();
    let events = shards.iter().map(|_| Vec::new()).collect();
    let files = shards.iter().map(|_| Vec::new()).collect();
    let (router, driven) = (Router::new(SHARDS, 0, 1), Driven::default());
    let mut world = World { shards, events, files, router, driven, now: BEGINNING };
    for number in 0..world.shards.len() {
        let mut effects = Effects::default();
        world.shards[number].start(world.now, &mut effects).expect("an empty shard starts");
        world.take(number, effects);
    }
    for (ask, line) in (1..).zip(LINES) {
        world.settle();
        world.router.line(world.now, ask, line);
        world.settle();
        assert_eq!(world.router.outstanding(), 0, "{line} is answered");
    }
    let mut start = PayloadBuffer::new();
    encode_start(&world.shards[0], &mut start);
    world.driven.start = start.to_vec();
    assert!(world.driven.snapshots.len() == 2 && world.driven.entries.len() > 10);
    world.driven
}

fn shard(group: GroupId) -> Shard {
    let image = ImageBuilder::new(group, None, SessionLimits::default()).finish(Sequence(0));
    let image = image.expect("nothing is sound");
    let slots = shards::ids::even_slots(group, SHARDS);
    let config = ShardConfig { cluster: CLUSTER, slots, shard: group.0, ..ShardConfig::new(group) };
    Shard::restore(config, image, BEGINNING).expect("nothing is sound")
}

impl World {
    fn settle(&mut self) {
        loop {
            let mut moved = false;
            for (group, batch) in self.router.take_batches(|_| 0) {
                self.events[group.0 as usize].push(Event::Requests { router: 0, batch });
                moved = true;
            }
            for number in 0..self.shards.len() {
                let is_tick = self.now >= self.shards[number].next_tick();
                if !self.events[number].is_empty() || is_tick {
                    let mut events = std::mem::take(&mut self.events[number]);
                    let mut effects = Effects::default();
                    self.shards[number].step(self.now, &mut events, &mut effects).expect("a sound shard");
                    moved |= !is_tick || !effects.is_empty();
                    self.take(number, effects);
                }
                if self.shards[number].has_work() || is_tick {
                    let mut effects = Effects::default();
                    self.shards[number].work(self.now, 1000, &mut effects).expect("a sound shard");
                    moved |= !effects.is_empty() || self.shards[number].has_work();
                    self.take(number, effects);
                }
            }
            if !moved && self.router.outstanding() == 0 {
                return;
            }
            if !moved {
                self.now.0 += TICK_MS;
                assert!(self.now.0 < BEGINNING.0 + PATIENCE_MS, "an answer comes");
            }
        }
    }

    fn take(&mut self, number: usize, effects: Effects) {
        for append in &effects.appends {
            if number == 0 {
                let mut payload = PayloadBuffer::new();
                encode_append(append, &mut payload);
                self.driven.entries.push(payload.to_vec());
            }
            self.events[number].push(Event::Durable(append.sequence));
        }
        for message in effects.messages {
            self.driven.messages.push(message.clone());
            self.events[message.to.0 as usize].push(Event::Message(message));
        }
        for effect in effects.snapshot {
            match effect {
                SnapshotEffect::Begin { .. } | SnapshotEffect::Drop => self.files[number].clear(),
                SnapshotEffect::Write(chunk) => {
                    let bytes = chunk.as_slice();
                    self.files[number].extend_from_slice(bytes);
                    self.events[number].push(Event::SnapshotWritten { bytes: bytes.len() as u64 });
                }
                SnapshotEffect::Finish(_) => {
                    let file = std::mem::take(&mut self.files[number]);
                    self.driven.snapshots.push((GroupId(number as u32), file));
                    self.events[number].push(Event::SnapshotFinished(Ok(())));
                }
            }
        }
        for batch in &effects.replies {
            self.router.replies(batch);
        }
    }
}
