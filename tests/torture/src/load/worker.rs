//! One client: what it asks, what it records.

use super::{BATCH_KEYS, BATCHES, REGISTERS, SWAPS, Shared, name};
use crate::check::{Action, Event, Kind, Operation};
use crate::client::{Client, Outcome};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use strand_sim::rng::Rng;

pub(super) struct Worker {
    client: Client,
    shared: Arc<Shared>,
    rng: Rng,
    pause: Duration,
    own_count: i64,
    consistency: &'static str,
}

/// What a compare-and-set did, by the value written, the value expected and whether it took effect.
type Explain = fn(u64, Option<u64>, bool) -> Action;

/// A request under way.
struct Asked {
    kind: Kind,
    object: String,
    called: u64,
}

impl Worker {
    pub(super) fn new(
        client: Client,
        shared: Arc<Shared>,
        seed: u64,
        pause: Duration,
        consistency: &'static str,
    ) -> Self {
        Self { client, shared, rng: Rng::new(seed), pause, own_count: 0, consistency }
    }

    pub(super) fn run(mut self) {
        while !self.shared.stop.load(Ordering::SeqCst) {
            if self.shared.rest.load(Ordering::SeqCst) {
                self.shared.resting.fetch_add(1, Ordering::SeqCst);
                while self.shared.rest.load(Ordering::SeqCst) && !self.shared.stop.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(2));
                }
                self.shared.resting.fetch_sub(1, Ordering::SeqCst);
                continue;
            }
            let begun = Instant::now();
            if let Err(text) = self.step() {
                return self.shared.violate(format!("{}: {text}", self.client.name));
            }
            let took_us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            self.shared.longest_us.fetch_max(took_us, Ordering::AcqRel);
            self.shared.requests.fetch_add(1, Ordering::Relaxed);
            let retries = std::mem::take(&mut self.client.retries);
            self.shared.retries.fetch_add(retries, Ordering::Relaxed);
            std::thread::sleep(self.pause);
        }
    }

    fn step(&mut self) -> Result<(), String> {
        let epoch = self.shared.epoch.load(Ordering::SeqCst);
        match self.rng.below(20) {
            0..3 => self.set(epoch),
            3..6 => self.get(epoch),
            6..12 => self.swap(epoch),
            12..14 => self.bulk_set(epoch),
            14..16 => self.bulk_get(epoch),
            16 => self.get_of_batch(epoch),
            17 => self.count_own(),
            _ => self.count_shared(epoch),
        }
    }

    fn begin(&self, kind: Kind, object: String) -> Asked {
        Asked { kind, object, called: self.shared.tick() }
    }

    fn end(&self, asked: Asked, action: Action, is_known: bool) {
        let returned = is_known.then(|| self.shared.tick());
        let operation = Operation { called: asked.called, returned, action };
        let event = Event { kind: asked.kind, object: asked.object, operation };
        self.shared.events.lock().expect("no client panics with the lock").push(event);
    }

    /// A number that nobody else draws: the position of the request.
    fn value(&self) -> u64 {
        self.shared.tick()
    }

    /// A refusal for good is no answer to these requests, unless its retry came too late: then nobody knows.
    fn unexpected(&self, reply: &Value) -> Result<(), String> {
        if reply["code"] == "SEQ_EXPIRED" {
            self.shared.seq_expired.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        Err(format!("refused for good: {reply}"))
    }

    fn set(&mut self, epoch: u64) -> Result<(), String> {
        let key = name::register(epoch, self.rng.below(REGISTERS));
        let value = self.value();
        let request = json!({"command": "SET", "key": key, "value": value});
        let asked = self.begin(Kind::Register, key);
        // A third of them may be said once only.
        let outcome = if self.rng.chance(333) {
            self.client.risk(request)
        } else {
            let request = self.client.with_session(request);
            self.client.insist(request)?
        };
        match outcome {
            Outcome::Done(_) => self.end(asked, Action::Write(Some(value)), true),
            Outcome::Unknown => self.end(asked, Action::Write(Some(value)), false),
            // Without a session any refusal is an answer: nothing was done.
            Outcome::Refused(reply) if reply["retry"] == "safe" => {}
            Outcome::Refused(reply) => {
                self.unexpected(&reply)?;
                self.end(asked, Action::Write(Some(value)), false);
            }
        }
        Ok(())
    }

    fn get(&mut self, epoch: u64) -> Result<(), String> {
        let key = name::register(epoch, self.rng.below(REGISTERS));
        self.read(Kind::Register, key.clone(), &key)
    }

    fn read(&mut self, kind: Kind, object: String, key: &str) -> Result<(), String> {
        let asked = self.begin(kind, object);
        let request = json!({"command": "GET", "key": key, "consistency": self.consistency});
        match self.client.insist(request)? {
            Outcome::Done(reply) => self.end(asked, Action::Read(reply["result"].as_u64()), true),
            Outcome::Refused(reply) => return self.unexpected(&reply),
            Outcome::Unknown => {}
        }
        Ok(())
    }

    fn swap(&mut self, epoch: u64) -> Result<(), String> {
        let key = name::swap(epoch, self.rng.below(SWAPS));
        let seen = self.rng.chance(700).then(|| self.look(&key)).transpose()?;
        let value = self.value();
        let (request, action): (Value, Explain) = match (self.rng.below(10), seen) {
            (0, _) => {
                let asked = self.begin(Kind::Swap, key.clone());
                let request = self.client.with_session(json!({"command": "DELETE", "key": key}));
                let outcome = self.client.insist(request)?;
                return self.deleted(asked, &outcome);
            }
            (1, _) => (json!({"command": "SET", "key": key, "value": value}), |value, _, _| {
                Action::Write(Some(value))
            }),
            (_, Some(Some(from))) => (
                json!({"command": "SET", "key": key, "value": value, "if": {"value": from}}),
                |value, from, took| Action::Swap(from, Some(value), took),
            ),
            _ => (
                json!({"command": "SET", "key": key, "value": value, "if": {"absent": true}}),
                |value, _, took| Action::Swap(None, Some(value), took),
            ),
        };
        let from = seen.flatten();
        let asked = self.begin(Kind::Swap, key);
        let request = self.client.with_session(request);
        match self.client.insist(request)? {
            Outcome::Done(_) => self.end(asked, action(value, from, true), true),
            Outcome::Refused(reply) if reply["code"] == "CONFLICT" => {
                self.end(asked, action(value, from, false), true);
            }
            Outcome::Refused(reply) => {
                self.unexpected(&reply)?;
                self.end(asked, action(value, from, true), false);
            }
            Outcome::Unknown => self.end(asked, action(value, from, true), false),
        }
        Ok(())
    }

    /// Reads a key that is compared and set; the read is judged too.
    fn look(&mut self, key: &str) -> Result<Option<u64>, String> {
        let asked = self.begin(Kind::Swap, key.to_owned());
        match self.client.insist(json!({"command": "GET", "key": key}))? {
            Outcome::Done(reply) => {
                let value = reply["result"].as_u64();
                self.end(asked, Action::Read(value), true);
                Ok(value)
            }
            other => Err(format!("a read was refused: {other:?}")),
        }
    }

    fn deleted(&self, asked: Asked, outcome: &Outcome) -> Result<(), String> {
        match outcome {
            Outcome::Done(reply) => {
                self.end(asked, Action::Delete(reply["result"] == true), true);
                Ok(())
            }
            Outcome::Refused(reply) => {
                self.unexpected(reply)?;
                self.end(asked, Action::Delete(true), false);
                Ok(())
            }
            Outcome::Unknown => {
                self.end(asked, Action::Delete(true), false);
                Ok(())
            }
        }
    }

    fn bulk_set(&mut self, epoch: u64) -> Result<(), String> {
        let number = self.rng.below(BATCHES);
        let value = self.value();
        let items: Map<String, Value> =
            (0..BATCH_KEYS).map(|key| (name::batch_key(epoch, number, key), json!(value))).collect();
        let asked = self.begin(Kind::Batch, name::batch(epoch, number));
        let request = self.client.with_session(json!({"command": "BULK_SET", "items": items}));
        match self.client.insist(request)? {
            Outcome::Done(_) => self.end(asked, Action::Write(Some(value)), true),
            Outcome::Refused(reply) => {
                self.unexpected(&reply)?;
                self.end(asked, Action::Write(Some(value)), false);
            }
            Outcome::Unknown => self.end(asked, Action::Write(Some(value)), false),
        }
        Ok(())
    }

    fn bulk_get(&mut self, epoch: u64) -> Result<(), String> {
        let number = self.rng.below(BATCHES);
        let keys: Vec<String> = (0..BATCH_KEYS).map(|key| name::batch_key(epoch, number, key)).collect();
        let asked = self.begin(Kind::Batch, name::batch(epoch, number));
        match self.client.insist(json!({"command": "BULK_GET", "keys": keys}))? {
            Outcome::Done(reply) => {
                let found = &reply["result"];
                if keys.iter().any(|key| found[key] != found[&keys[0]]) {
                    return Err(format!("half a batch: {found}"));
                }
                self.end(asked, Action::Read(found[&keys[0]].as_u64()), true);
            }
            Outcome::Refused(reply) => return self.unexpected(&reply),
            Outcome::Unknown => {}
        }
        Ok(())
    }

    /// One key of a batch shows the batch: no GET sees half of it either.
    fn get_of_batch(&mut self, epoch: u64) -> Result<(), String> {
        let number = self.rng.below(BATCHES);
        let key = name::batch_key(epoch, number, self.rng.below(BATCH_KEYS));
        self.read(Kind::Batch, name::batch(epoch, number), &key)
    }

    fn count_own(&mut self) -> Result<(), String> {
        let key = name::own_counter(&self.client.name);
        let request = self.client.with_session(json!({"command": "INCR", "key": key}));
        match self.client.insist(request)? {
            Outcome::Done(reply) if reply["result"] == self.own_count + 1 => {
                self.own_count += 1;
                Ok(())
            }
            other => Err(format!("{key} after {} increments: {other:?}", self.own_count)),
        }
    }

    fn count_shared(&mut self, epoch: u64) -> Result<(), String> {
        let key = name::counter(epoch);
        let request = self.client.with_session(json!({"command": "INCR", "key": key}));
        match self.client.insist(request)? {
            Outcome::Done(reply) => {
                let count = reply["result"].as_i64().ok_or_else(|| format!("{key}: {reply}"))?;
                self.shared.counted.lock().expect("no client panics with the lock").push(count);
                Ok(())
            }
            other => Err(format!("{key}: {other:?}")),
        }
    }
}
