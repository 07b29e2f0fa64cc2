//! What a SET of a hundred words costs in one shard's engine, with and without an active text index, and how long the engine
//! is away at most while an index is built.
//!
//! The shard has a perfect disk: what a step hands to the log is durable with the next event. Commands come in batches of
//! 64. A SET's own cost is that of the steps, up to its reply; indexing comes after it, in slices of work.

use crate::Outcome;
use crate::corpus::Document;
use crate::queries::median;
use shards::batch::{RequestBatch, RequestHead};
use shards::command::record::{Op, Record};
use shards::effect::Effects;
use shards::event::Event;
use shards::gather::catalog::Change;
use shards::ids::{GroupId, Millis, Sequence, Token, hash_of};
use shards::index::set::{IndexSet, whole_text};
use shards::shard::image::ImageBuilder;
use shards::shard::{Floor, Left, Shard, ShardConfig};
use shards::state::SessionLimits;
use std::hint::black_box;
use std::time::{Duration, Instant};

const KEYS: u64 = 20_000;
const BATCH: u64 = 64;
const WORDS: u64 = 100;
const NOW: Millis = Millis(1_000_000);

/// One row.
pub struct SetCost {
    /// Which database.
    pub name: &'static str,
    /// Nanoseconds of a SET up to its reply.
    pub set_ns: f64,
    /// The same and its share of indexing and merging.
    pub indexed_ns: Option<f64>,
}

struct Rig {
    shard: Shard,
    events: Vec<Event>,
    effects: Effects,
    batch: Box<RequestBatch>,
    values: Vec<Vec<u8>>,
    next: u64,
}

impl Rig {
    fn new() -> Outcome<Self> {
        let group = GroupId(0);
        let image = ImageBuilder::new(group, None, SessionLimits::default())
            .finish(Sequence(0))
            .map_err(|fault| format!("{fault:?}"))?;
        let config = ShardConfig { floor: Floor::Always, ..ShardConfig::new(group) };
        let shard = Shard::restore(config, image, NOW).map_err(|fault| fault.to_string())?;
        let values = (0..4096).map(value).collect();
        let (events, effects) = (Vec::new(), Effects::default());
        let mut rig = Self { shard, events, effects, batch: Box::default(), values, next: 0 };
        rig.shard.start(NOW, &mut rig.effects).map_err(|fault| fault.to_string())?;
        rig.settle()?;
        Ok(rig)
    }

    fn push(&mut self, op: Op, key: &[u8], value: &[u8]) {
        let start = self.batch.bytes.len() as u32;
        Record::plain(op, key, value).encode(&mut self.batch.bytes);
        let length = self.batch.bytes.len() as u32 - start;
        let head = RequestHead {
            token: Token(self.next),
            hash: hash_of(key),
            deadline: Millis(NOW.0 + 5000),
            start,
            length,
        };
        self.batch.heads.push(head);
    }

    /// Sends what was pushed and steps until all of it is answered.
    fn settle(&mut self) -> Outcome<()> {
        if !self.batch.heads.is_empty() {
            self.events.push(Event::Requests { router: 0, batch: std::mem::take(&mut self.batch) });
        }
        loop {
            let stepped = self.shard.step(NOW, &mut self.events, &mut self.effects);
            stepped.map_err(|fault| fault.to_string())?;
            let durable = self.effects.appends.drain(..).last().map(|append| append.sequence);
            self.effects.sync_now = false;
            self.effects.replies.iter_mut().for_each(|replies| replies.clear(1 << 20));
            if let Some((_, mut batch)) = self.effects.returned.pop() {
                batch.clear(1 << 20);
                self.batch = batch;
            }
            match durable {
                Some(sequence) => self.events.push(Event::Durable(sequence)),
                None => return Ok(()),
            }
        }
    }

    /// One SET of every key; returns the time of the steps and that of the work after each.
    fn round(&mut self) -> Outcome<(Duration, Duration)> {
        let (mut setting, mut working) = (Duration::ZERO, Duration::ZERO);
        for _ in 0..KEYS / BATCH {
            for _ in 0..BATCH {
                self.next += 7_919;
                let key = format!("key:{:012}", self.next % KEYS).into_bytes();
                let number = (self.next % self.values.len() as u64) as usize;
                let value = std::mem::take(&mut self.values[number]);
                self.push(Op::Set, &key, &value);
                self.values[number] = value;
            }
            let start = Instant::now();
            self.settle()?;
            setting += start.elapsed();
            let start = Instant::now();
            self.work()?;
            working += start.elapsed();
        }
        Ok((setting, working))
    }

    fn work(&mut self) -> Outcome<()> {
        while self.shard.has_work() {
            let left = self.shard.work(NOW, 1000, &mut self.effects).map_err(|fault| fault.to_string())?;
            if left == Left::Nothing {
                break;
            }
        }
        Ok(())
    }

    fn define_text(&mut self) -> Outcome<()> {
        let mut change = Vec::new();
        Change::Define(whole_text()).encode(&mut change);
        self.push(Op::CatalogChange, b"", &change);
        self.settle()?;
        self.work()
    }
}

/// A JSON string of a hundred words; low numbers are frequent, as in a language.
fn value(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut text = String::from("\"");
    for n in 0..WORDS {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let range = 1 << (state % 15);
        let word = (state >> 20) % range + range;
        text.push_str(if n == 0 { "word" } else { " word" });
        text.push_str(&word.to_string());
    }
    text.push('"');
    text.into_bytes()
}

/// Measures the three databases in turns.
pub fn measure(rounds: usize) -> Outcome<Vec<SetCost>> {
    let (mut plain, mut indexed) = (Rig::new()?, Rig::new()?);
    plain.round()?;
    indexed.round()?;
    indexed.define_text()?;
    let per_set = |time: Duration| time.as_secs_f64() * 1e9 / (KEYS / BATCH * BATCH) as f64;
    let mut times: [Vec<f64>; 3] = Default::default();
    for _ in 0..rounds {
        times[0].push(per_set(plain.round()?.0));
        let (setting, working) = indexed.round()?;
        times[1].push(per_set(setting));
        times[2].push(per_set(setting + working));
    }
    let [plain_ns, indexed_set_ns, indexed_all_ns] = times.map(median);
    let (mut set, token) = (IndexSet::default(), value(1));
    let start = Instant::now();
    for n in 0..1_000_000u32 {
        set.apply(black_box(&n.to_le_bytes()), None, Some(black_box(&token)));
    }
    let observer_ns = start.elapsed().as_secs_f64() * 1e9 / 1e6;
    Ok(vec![
        SetCost { name: "never searched", set_ns: plain_ns, indexed_ns: None },
        SetCost { name: "text index active", set_ns: indexed_set_ns, indexed_ns: Some(indexed_all_ns) },
        SetCost {
            name: "of these, telling the indexes, never searched",
            set_ns: observer_ns,
            indexed_ns: None,
        },
    ])
}

/// Documents of the index whose building is watched.
const BUILT: usize = 200_000;
/// Units of a step of work, as the driver gives them.
const STEP_UNITS: usize = 1000;

/// Times that the same index is built. The engine does the same in the same step of each, so the shortest of them is what the
/// step costs: the others were interrupted, or found their memory cold.
const BUILDS: usize = 3;

/// Microseconds of the steps of work while an index is built: the middle, of a hundred and of a thousand the longest, the
/// longest; and how many there were.
pub struct Building {
    /// Documents.
    pub documents: usize,
    /// Steps.
    pub steps: usize,
    /// p50, p99, p99.9, longest.
    pub step_us: [f64; 4],
    /// The same of one build alone, by the clock.
    pub once_us: [f64; 4],
}

/// Builds the text index of a shard that holds documents, step by step.
pub fn build(documents: &[Document]) -> Outcome<Building> {
    let documents = &documents[..documents.len().min(BUILT)];
    let once = build_once(documents)?;
    let mut least = once.clone();
    for _ in 1..BUILDS {
        let again = build_once(documents)?;
        assert!(again.len() == once.len(), "the engine does the same again");
        least.iter_mut().zip(again).for_each(|(least, again)| *least = least.min(again));
    }
    let steps = once.len();
    Ok(Building { documents: documents.len(), steps, step_us: quantiles(least), once_us: quantiles(once) })
}

fn quantiles(mut times: Vec<f64>) -> [f64; 4] {
    times.sort_by(f64::total_cmp);
    [0.5, 0.99, 0.999, 1.0].map(|share| times[((times.len() - 1) as f64 * share) as usize])
}

/// Microseconds of each step.
fn build_once(documents: &[Document]) -> Outcome<Vec<f64>> {
    let mut rig = Rig::new()?;
    for some in documents.chunks(BATCH as usize) {
        for document in some {
            rig.push(Op::Set, document.key.as_bytes(), document.value.as_bytes());
        }
        rig.settle()?;
    }
    let mut change = Vec::new();
    Change::Define(whole_text()).encode(&mut change);
    rig.push(Op::CatalogChange, b"", &change);
    rig.settle()?;
    let mut times = Vec::new();
    while rig.shard.has_work() {
        let start = Instant::now();
        let left = rig.shard.work(NOW, STEP_UNITS, &mut rig.effects).map_err(|fault| fault.to_string())?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
        if left == Left::Nothing {
            break;
        }
    }
    Ok(times)
}
