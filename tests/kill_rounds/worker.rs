//! One connection that writes with many requests in flight, and sends again what was not answered.

use super::model::{Model, Pending};
use super::shared::{self, SharedKeys, Target};
use super::support::client::Connection;
use super::support::random::Random;
use serde_json::{Map, Value, json};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const IN_FLIGHT_MAX: usize = 48;
const KEYS: u64 = 40;
const COUNTERS: u64 = 3;
/// Keys of a batch over several shards.
const SPREAD: u64 = 6;
/// Keys of a batch in one shard.
const TOGETHER: u64 = 4;

/// A connection's writes and what they must have led to.
#[derive(Debug)]
pub(crate) struct Worker {
    number: usize,
    random: Random,
    sequence: u64,
    model: Model,
    shared: Arc<SharedKeys>,
    pub(crate) answered: u64,
    pub(crate) retried: u64,
}

impl Worker {
    pub(crate) fn new(number: usize, seed: u64, shared: Arc<SharedKeys>) -> Self {
        let random = Random::new(seed);
        Self { number, random, sequence: 0, model: Model::default(), shared, answered: 0, retried: 0 }
    }

    pub(crate) fn is_answered(&self) -> bool {
        self.model.unanswered.is_empty()
    }

    /// Compares every key with what it may hold, and the batches with themselves. All are read in one snapshot.
    pub(crate) fn check(&self, connection: &mut Connection, context: &str) -> io::Result<()> {
        let found = self.read(connection)?;
        for key in self.model.keys() {
            let value = Some(&found[key]).filter(|value| !value.is_null());
            let admissible = self.model.admissible(key);
            assert!(
                admissible.contains(&value),
                "{context}: {key} holds {value:?}; it may hold {admissible:?}"
            );
        }
        for keys in [spread_keys(self.number), together_keys(self.number)] {
            let values: Vec<&Value> = keys.iter().map(|key| found.get(key).unwrap_or(&Value::Null)).collect();
            assert!(
                values.iter().all(|value| *value == values[0]),
                "{context}: half of {keys:?}: {values:?}"
            );
        }
        Ok(())
    }

    fn read(&self, connection: &mut Connection) -> io::Result<HashMap<String, Value>> {
        let keys = self.model.keys();
        let reply =
            connection.try_ask(&json!({"command": "BULK_GET", "keys": keys, "timeout_ms": 30_000}))?;
        assert_eq!(reply["status"], "success", "{reply}");
        let found = reply["result"].as_object().expect("BULK_GET answers an object").clone();
        assert_eq!(found.len(), keys.len(), "BULK_GET answers every key");
        Ok(found.into_iter().collect())
    }

    /// Sends again what was not answered, compares, and goes on until told to stop or the server is gone.
    pub(crate) fn work(&mut self, port: u16, enough: &AtomicBool, context: &str) {
        // An error here is the kill; what it leaves unanswered is for the next round.
        let _: io::Result<()> = Connection::open(port).and_then(|mut connection| {
            let found = self.read(&mut connection)?;
            self.model.settle(&|key| found.get(key).filter(|value| !value.is_null()).cloned());
            self.retry(&mut connection, context)?;
            self.check(&mut connection, context)?;
            while !enough.load(Ordering::Acquire) {
                while self.model.unanswered.len() < IN_FLIGHT_MAX {
                    let pending = self.next();
                    connection.queue_line(&pending.line);
                    self.model.send(pending);
                }
                connection.flush()?;
                while self.model.unanswered.len() > IN_FLIGHT_MAX / 2 || connection.has_reply() {
                    self.receive(&mut connection, context)?;
                }
            }
            while !self.is_answered() {
                self.receive(&mut connection, context)?;
            }
            Ok(())
        });
    }

    fn retry(&mut self, connection: &mut Connection, context: &str) -> io::Result<()> {
        let again = self.model.unanswered.len();
        self.model.unanswered.iter().for_each(|pending| connection.queue_line(&pending.line));
        connection.flush()?;
        for _ in 0..again {
            self.receive(connection, context)?;
            self.retried += 1;
        }
        Ok(())
    }

    fn receive(&mut self, connection: &mut Connection, context: &str) -> io::Result<()> {
        let reply = connection.receive()?;
        let pending = self.model.unanswered.front().expect("a reply follows a request");
        assert_eq!(reply["status"], "success", "{context}: {} -> {reply}", pending.line);
        if let Some(result) = &pending.result {
            assert_eq!(reply["result"], *result, "{context}: {}", pending.line);
        }
        if let Some(number) = pending.shared {
            self.shared.answered(number, &reply["result"], context);
        }
        self.model.answer();
        self.answered += 1;
        Ok(())
    }

    /// Makes a request of a random kind.
    fn next(&mut self) -> Pending {
        self.sequence += 1;
        let tag = format!("{}-{}", self.number, self.sequence);
        match self.random.below(100) {
            0..40 => {
                let key = format!("w{}:k{}", self.number, self.random.below(KEYS));
                let padding =
                    if self.random.chance(1, 50) { self.random.below(20_000) } else { self.random.below(60) };
                let value =
                    json!({"tag": tag, "padding": "x".repeat(usize::try_from(padding).expect("small"))});
                self.pending(
                    json!({"command": "SET", "key": key, "value": value}),
                    Some(json!("OK")),
                    vec![(key, Some(value))],
                )
            }
            40..50 => {
                let key = format!("w{}:k{}", self.number, self.random.below(KEYS));
                let existed = self.model.sent(&key).is_some();
                self.pending(
                    json!({"command": "DELETE", "key": key}),
                    Some(json!(existed)),
                    vec![(key, None)],
                )
            }
            50..65 => {
                let key = format!("w{}:c{}", self.number, self.random.below(COUNTERS));
                let count = self.model.sent(&key).and_then(Value::as_i64).unwrap_or(0) + 1;
                self.pending(
                    json!({"command": "INCR", "key": key}),
                    Some(json!(count)),
                    vec![(key, Some(json!(count)))],
                )
            }
            65..72 => self.batch(together_keys(self.number), &tag),
            72..80 => self.batch(spread_keys(self.number), &tag),
            80..83 => {
                let keys = spread_keys(self.number);
                let existed = keys.iter().filter(|key| self.model.sent(key).is_some()).count();
                let effects = keys.iter().map(|key| (key.clone(), None)).collect();
                self.pending(json!({"command": "BULK_DELETE", "keys": keys}), Some(json!(existed)), effects)
            }
            83..88 => {
                let key = format!("w{}:loose{}", self.number, self.random.below(KEYS));
                let (value, result) = (json!(tag), Some(json!("OK")));
                let line = json!({"command": "SET", "key": key, "value": value}).to_string();
                Pending { line, result, effects: vec![(key, Some(value))], retried: false, shared: None }
            }
            88..92 => self.write_shared(
                Target::Single,
                json!({"command": "SET", "key": shared::SINGLE, "value": tag}),
                &tag,
            ),
            92..95 => {
                let items: Map<String, Value> =
                    shared::BATCH.iter().map(|key| ((*key).to_owned(), json!(tag))).collect();
                self.write_shared(Target::Batch, json!({"command": "BULK_SET", "items": items}), &tag)
            }
            _ => self.write_shared(Target::Counter, json!({"command": "INCR", "key": shared::COUNTER}), &tag),
        }
    }

    fn batch(&mut self, keys: Vec<String>, tag: &str) -> Pending {
        let items: Map<String, Value> = keys.iter().map(|key| (key.clone(), json!(tag))).collect();
        let count = json!(keys.len());
        let effects = keys.into_iter().map(|key| (key, Some(json!(tag)))).collect();
        self.pending(json!({"command": "BULK_SET", "items": items}), Some(count), effects)
    }

    fn write_shared(&mut self, target: Target, request: Value, tag: &str) -> Pending {
        let number = self.shared.sending(target, json!(tag));
        let mut pending = self.pending(request, None, Vec::new());
        pending.shared = Some(number);
        pending
    }

    /// A request that will be sent until it is answered.
    fn pending(
        &mut self,
        mut request: Value,
        result: Option<Value>,
        effects: Vec<(String, Option<Value>)>,
    ) -> Pending {
        request["client"] = json!(format!("worker{}", self.number));
        request["seq"] = json!(self.sequence);
        request["timeout_ms"] = json!(30_000);
        // Some clients tell what they still wait for and some do not.
        if self.number.is_multiple_of(2) {
            request["acked"] = json!(self.oldest_unanswered());
        }
        Pending { line: request.to_string(), result, effects, retried: true, shared: None }
    }

    /// The lowest sequence without an answer, counting the request that is being made.
    fn oldest_unanswered(&self) -> u64 {
        let oldest = self.model.unanswered.iter().find(|pending| pending.retried);
        let line: Option<Value> =
            oldest.map(|pending| serde_json::from_str(&pending.line).expect("we wrote it"));
        line.and_then(|line| line["seq"].as_u64()).unwrap_or(self.sequence)
    }
}

fn spread_keys(worker: usize) -> Vec<String> {
    (0..SPREAD).map(|n| format!("w{worker}:spread{n}")).collect()
}

fn together_keys(worker: usize) -> Vec<String> {
    (0..TOGETHER).map(|n| format!("{{w{worker}:together}}{n}")).collect()
}

/// Reads batches while they are written, until told to stop or the server is gone: none is ever seen half.
pub(crate) fn read_batches(port: u16, workers: usize, enough: &AtomicBool) {
    let _: io::Result<()> = Connection::open(port).and_then(|mut connection| {
        while !enough.load(Ordering::Acquire) {
            let batches = (0..workers).flat_map(|worker| [spread_keys(worker), together_keys(worker)]);
            let shared = shared::BATCH.iter().map(|key| (*key).to_owned()).collect();
            for keys in batches.chain([shared]) {
                let reply = connection
                    .try_ask(&json!({"command": "BULK_GET", "keys": keys, "timeout_ms": 30_000}))?;
                assert_eq!(reply["status"], "success", "{reply}");
                let values = reply["result"].as_object().expect("BULK_GET answers an object");
                assert!(keys.iter().all(|key| values[key] == values[&keys[0]]), "half a batch: {reply}");
            }
        }
        Ok(())
    });
}
