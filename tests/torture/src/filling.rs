//! Keys that fill a cluster: written once, then overwritten at random by writers that remember what was acknowledged, and all
//! of them compared at the end.

use crate::client::{Client, Outcome};
use serde_json::{Map, Value, json};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use strand_sim::rng::Rng;

/// Keys of one batch while filling, and of one read while comparing.
const BATCH: u64 = 500;
/// Clients that fill, and that compare.
const CLIENTS: u64 = 4;
/// Longest that one of them tries.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes of each value.
const VALUE_BYTES: usize = 64;
/// Pause between two requests of a writer.
const EVERY: Duration = Duration::from_millis(3);

fn key(number: u64) -> String {
    format!("filling:{number:08}")
}

/// The value of a key after so many writes by its writer.
fn value(number: u64, version: u32) -> String {
    let mut text = format!("{number}/{version}/");
    text.extend(std::iter::repeat_n('v', VALUE_BYTES - text.len()));
    text
}

/// The keys and how often each was written.
pub struct Filling {
    versions: Arc<Vec<AtomicU32>>,
}

/// Asks the same of each range of keys, over several clients at once, and hands on every reply.
fn each_batch(
    nodes: &[SocketAddr],
    keys: u64,
    request: impl Fn(Range<u64>) -> Value + Sync,
    done: impl Fn(Range<u64>, &Value) -> Result<(), String> + Sync,
) -> Result<(), String> {
    let one = |number: u64| {
        let mut client = Client::new(format!("filling-{number}"), nodes.to_vec(), number as usize, PATIENCE);
        client.timeout_ms = 30_000;
        for batch in (number..keys.div_ceil(BATCH)).step_by(CLIENTS as usize) {
            let range = batch * BATCH..(batch * BATCH + BATCH).min(keys);
            let mut asked = request(range.clone());
            if asked["command"] == "BULK_SET" {
                asked = client.with_session(asked);
            }
            match client.insist(asked)? {
                Outcome::Done(reply) => done(range, &reply["result"])?,
                other => return Err(format!("keys {range:?}: {other:?}")),
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let one = &one;
        let all: Vec<_> = (0..CLIENTS).map(|number| scope.spawn(move || one(number))).collect();
        all.into_iter().try_for_each(|thread| thread.join().map_err(|_| "a client panicked".to_owned())?)
    })
}

impl Filling {
    /// Writes so many keys.
    ///
    /// # Errors
    /// When a batch is refused.
    pub fn write(nodes: &[SocketAddr], keys: u64) -> Result<Self, String> {
        let batch = |range: Range<u64>| {
            let items: Map<String, Value> = range.map(|n| (key(n), json!(value(n, 0)))).collect();
            json!({"command": "BULK_SET", "items": items})
        };
        each_batch(nodes, keys, batch, |_, _| Ok(()))?;
        let versions = (0..keys).map(|_| AtomicU32::new(0)).collect();
        Ok(Self { versions: Arc::new(versions) })
    }

    /// Starts writers that overwrite keys at random, each its own share of them.
    pub fn overwrite(&self, nodes: &[SocketAddr], writers: u64, patience: Duration, seed: u64) -> Writers {
        let shared = Arc::new(Shared {
            versions: Arc::clone(&self.versions),
            stop: AtomicBool::new(false),
            longest_us: AtomicU64::new(0),
            written: AtomicU64::new(0),
        });
        let start = |number: u64| {
            let client =
                Client::new(format!("filler{seed}-{number}"), nodes.to_vec(), number as usize, patience);
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || writer(client, &shared, number, writers, seed))
        };
        Writers { shared: Arc::clone(&shared), threads: (0..writers).map(start).collect() }
    }

    /// Compares every key with what was acknowledged, as one node reads it. No writer may be under way.
    ///
    /// # Errors
    /// With the first that differ.
    pub fn compare(&self, address: SocketAddr) -> Result<(), String> {
        let read = |range: Range<u64>| {
            let keys: Vec<String> = range.map(key).collect();
            json!({"command": "BULK_GET", "keys": keys})
        };
        each_batch(&[address], self.versions.len() as u64, read, |range, found| {
            for number in range {
                let expected = value(number, self.versions[number as usize].load(Ordering::Acquire));
                if found[key(number)] != expected.as_str() {
                    return Err(format!(
                        "{} is {}, acknowledged was {expected}",
                        key(number),
                        found[key(number)]
                    ));
                }
            }
            Ok(())
        })
    }
}

struct Shared {
    versions: Arc<Vec<AtomicU32>>,
    stop: AtomicBool,
    longest_us: AtomicU64,
    written: AtomicU64,
}

fn writer(mut client: Client, shared: &Shared, number: u64, writers: u64, seed: u64) -> Result<(), String> {
    let mut rng = Rng::new(seed + number);
    let share = (shared.versions.len() as u64 - number).div_ceil(writers);
    while !shared.stop.load(Ordering::Acquire) {
        let key_number = rng.below(share) * writers + number;
        let version = &shared.versions[key_number as usize];
        let next = version.load(Ordering::Acquire) + 1;
        let request = json!({"command": "SET", "key": key(key_number), "value": value(key_number, next)});
        let request = client.with_session(request);
        let begun = Instant::now();
        match client.insist(request)? {
            Outcome::Done(_) => version.store(next, Ordering::Release),
            other => return Err(format!("{}: {other:?}", key(key_number))),
        }
        let took_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        shared.longest_us.fetch_max(took_us, Ordering::AcqRel);
        shared.written.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(EVERY);
    }
    Ok(())
}

/// Writers under way.
pub struct Writers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<(), String>>>,
}

impl Writers {
    /// The longest that a request took since this was last asked.
    pub fn take_longest(&self) -> Duration {
        Duration::from_micros(self.shared.longest_us.swap(0, Ordering::AcqRel))
    }

    /// Ends them; how many requests were acknowledged.
    ///
    /// # Errors
    /// When one gave up.
    pub fn stop(self) -> Result<u64, String> {
        self.shared.stop.store(true, Ordering::Release);
        for thread in self.threads {
            thread.join().map_err(|_| "a writer panicked".to_owned())??;
        }
        Ok(self.shared.written.load(Ordering::Relaxed))
    }
}
