//! All-node power cuts: write as fast as it goes, cut the power of every node at once, boot what is left, compare every key with
//! what was acknowledged.
//!
//! Writers own their keys and send many requests at once over one connection, whose order holds for each key; so a key may hold
//! the last acknowledged value or one of those sent after it, and nothing else. Batches must be whole.

use crate::client::Connection;
use crate::cluster::Cluster;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use strand_sim::rng::Rng;

/// Requests of one writer in flight.
const IN_FLIGHT: usize = 64;
/// Keys of one writer.
const KEYS: u64 = 300;
/// Keys of a batch.
const BATCH_KEYS: u64 = 5;
/// A writer's batch takes the place of one write in so many.
const BATCH_EVERY: u64 = 25;
/// A value of unusual length takes the place of one write in so many.
const LONG_EVERY: u64 = 50;
/// Longest wait for a reply before a writer looks whether it is over.
const LOOK_EVERY: Duration = Duration::from_millis(1500);

/// A write as its writer knows it.
#[derive(Clone, Copy, Debug)]
struct Write {
    /// Its number among the writer's; also the value.
    number: u64,
    /// The disk's position when it was sent.
    sent_at: u64,
    /// The disk's position when its acknowledgement was read.
    acked_at: Option<u64>,
}

/// What one writer wrote, by object: a key, or its batch.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    writes: BTreeMap<String, Vec<Write>>,
    /// Acknowledged writes.
    pub acked: u64,
}

/// What a check found.
#[derive(Debug, Default)]
pub struct Found {
    /// Keys that were compared.
    pub keys: u64,
    /// Acknowledged writes that are gone.
    pub lost: Vec<String>,
    /// Anything else that must not be.
    pub wrong: Vec<String>,
}

impl Found {
    /// Whether all is as it must be.
    pub fn is_good(&self) -> bool {
        self.lost.is_empty() && self.wrong.is_empty()
    }

    /// What was found, in a few lines.
    pub fn text(&self) -> String {
        self.lost.iter().chain(&self.wrong).take(8).cloned().collect::<Vec<_>>().join("\n")
    }
}

/// One writer.
pub struct Writer {
    name: String,
    rng: Rng,
    next: u64,
    /// What it wrote.
    pub ledger: Ledger,
}

/// Reads the position of the disk that is written to; 0 where that does not matter.
pub type Position = Arc<dyn Fn() -> u64 + Send + Sync>;

struct Sent {
    object: String,
    place: usize,
}

impl Writer {
    /// A writer with keys of its own.
    pub fn new(number: usize, seed: u64) -> Self {
        Self { name: format!("w{number}"), rng: Rng::new(seed), next: 0, ledger: Ledger::default() }
    }

    /// The same writer again, to compare with its ledger elsewhere.
    pub fn copy(&self) -> Self {
        Self { name: self.name.clone(), rng: self.rng.clone(), next: self.next, ledger: self.ledger.clone() }
    }

    fn batch_keys(&self) -> Vec<String> {
        (0..BATCH_KEYS).map(|key| format!("{}:batch{key}", self.name)).collect()
    }

    fn value(&self, number: u64) -> Value {
        if number.is_multiple_of(LONG_EVERY) {
            let length = usize::try_from(number % 7).expect("small") * 3000;
            return json!([number, "x".repeat(length)]);
        }
        json!([number])
    }

    /// Makes the next request, and says which object it writes.
    fn next(&mut self) -> (String, Value) {
        self.next += 1;
        let number = self.next;
        let value = self.value(number);
        if self.rng.below(BATCH_EVERY) == 0 {
            let items: Map<String, Value> =
                self.batch_keys().into_iter().map(|key| (key, value.clone())).collect();
            let request = json!({"command": "BULK_SET", "items": items, "client": self.name, "seq": number});
            return (format!("{}:batch", self.name), request);
        }
        let key = format!("{}:{}", self.name, self.rng.below(KEYS));
        (key.clone(), json!({"command": "SET", "key": key, "value": value}))
    }

    /// Writes until told to stop or the server is gone. What was not answered then stays unacknowledged.
    pub fn write(&mut self, node: SocketAddr, stop: &AtomicBool, acked: &AtomicU64, position: &Position) {
        let Ok(mut connection) = Connection::open(node) else { return };
        let mut in_flight: std::collections::VecDeque<Sent> = std::collections::VecDeque::new();
        loop {
            let mut lines = String::new();
            while in_flight.len() < IN_FLIGHT && !stop.load(Ordering::Acquire) {
                let (object, mut request) = self.next();
                request["timeout_ms"] = json!(20_000);
                lines.push_str(&request.to_string());
                lines.push('\n');
                let writes = self.ledger.writes.entry(object.clone()).or_default();
                writes.push(Write { number: self.next, sent_at: position(), acked_at: None });
                in_flight.push_back(Sent { object, place: writes.len() - 1 });
            }
            if in_flight.is_empty() || connection.send(lines.as_bytes()).is_err() {
                return;
            }
            while in_flight.len() > IN_FLIGHT / 2 || (stop.load(Ordering::Acquire) && !in_flight.is_empty()) {
                let Ok(reply) = connection.receive(LOOK_EVERY * 20) else { return };
                let sent = in_flight.pop_front().expect("a reply follows a request");
                if reply["status"] != "success" {
                    // A refusal is no acknowledgement; the write may have taken effect all the same.
                    continue;
                }
                let writes = self.ledger.writes.get_mut(&sent.object).expect("it was sent");
                writes[sent.place].acked_at = Some(position());
                self.ledger.acked += 1;
                acked.fetch_add(1, Ordering::AcqRel);
            }
        }
    }

    /// Compares what a node holds with what was acknowledged up to a position of the disk (the newest: `u64::MAX`), and with
    /// what had been sent by then. With `settle`, what is found is known to be there from now on.
    ///
    /// # Errors
    /// When the node does not answer.
    pub fn check(&mut self, node: SocketAddr, upto: u64, settle: bool) -> Result<Found, String> {
        let mut found = Found::default();
        let objects: Vec<String> = self.ledger.writes.keys().cloned().collect();
        let batch = format!("{}:batch", self.name);
        for keys in objects.chunks(400) {
            let mut asked: Vec<String> = keys.iter().filter(|key| **key != batch).cloned().collect();
            if keys.contains(&batch) {
                asked.extend(self.batch_keys());
            }
            let result = read(node, &asked)?;
            if keys.contains(&batch) {
                let parts = self.batch_keys();
                if parts.iter().any(|part| result[part] != result[&parts[0]]) {
                    found.wrong.push(format!("half a batch: {:?}", parts.map_numbers(&result)));
                }
                self.compare(&batch, &result[&parts[0]], upto, settle, &mut found);
            }
            for key in asked.iter().filter(|key| !key.starts_with(&batch)) {
                self.compare(key, &result[key], upto, settle, &mut found);
            }
            found.keys += asked.len() as u64;
        }
        Ok(found)
    }

    fn compare(&mut self, object: &str, value: &Value, upto: u64, settle: bool, found: &mut Found) {
        let writes = self.ledger.writes.get_mut(object).expect("it was written");
        let number = value[0].as_u64();
        let newest_acked = writes.iter().rposition(|write| write.acked_at.is_some_and(|at| at <= upto));
        let holds = number.and_then(|number| writes.iter().position(|write| write.number == number));
        match (holds, newest_acked) {
            (None, Some(acked)) => {
                let acked = writes[acked].number;
                found.lost.push(format!("{object} is {number:?}, write {acked} was acknowledged"));
            }
            (None, None) if !value.is_null() => {
                found.wrong.push(format!("{object} is {value}: nobody wrote it"));
            }
            (None, None) => {}
            (Some(place), acked) => {
                if acked.is_some_and(|acked| place < acked) {
                    let (old, acked) = (writes[place].number, writes[acked.expect("there is one")].number);
                    found.lost.push(format!("{object} is back at write {old}, {acked} was acknowledged"));
                } else if writes[place].sent_at > upto {
                    found.wrong.push(format!("{object} is {value}, which was not yet sent"));
                }
                let full = Self::expected(writes[place].number);
                if value[1].as_str().map(str::len) != full {
                    found
                        .wrong
                        .push(format!("{object}: the value of write {:?} is not as it was sent", number));
                }
            }
        }
        if settle {
            // What survived is known now; what was sent and did not is known not to come back.
            match holds {
                Some(place) => *writes = vec![Write { sent_at: 0, acked_at: Some(0), ..writes[place] }],
                None => writes.clear(),
            }
        }
    }

    /// The length of the text of a value, if it has one.
    fn expected(number: u64) -> Option<usize> {
        let length = usize::try_from(number % 7).expect("small") * 3000;
        number.is_multiple_of(LONG_EVERY).then_some(length)
    }
}

trait MapNumbers {
    fn map_numbers(&self, result: &Value) -> Vec<Value>;
}

impl MapNumbers for Vec<String> {
    /// Only the numbers: values may be long.
    fn map_numbers(&self, result: &Value) -> Vec<Value> {
        self.iter().map(|key| result[key][0].clone()).collect()
    }
}

/// Reads keys in one snapshot, trying until it is answered.
fn read(node: SocketAddr, keys: &[String]) -> Result<Value, String> {
    let begun = Instant::now();
    loop {
        let request = json!({"command": "BULK_GET", "keys": keys, "timeout_ms": 10_000});
        let last = match crate::client::ask_once(node, &request) {
            Ok(mut reply) if reply["status"] == "success" => return Ok(reply["result"].take()),
            Ok(reply) => reply.to_string(),
            Err(error) => error.to_string(),
        };
        if begun.elapsed() > Duration::from_secs(60) {
            return Err(format!("the keys cannot be read after a power cut: {last}"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A campaign of power cuts.
#[derive(Clone, Copy, Debug)]
pub struct Campaign {
    /// Cuts of all nodes.
    pub cuts: u64,
    /// Acknowledged writes before each cut, at least.
    pub writes_per_cut: u64,
    /// Writers.
    pub writers: usize,
    /// The choices.
    pub seed: u64,
    /// Longest load before a cut.
    pub load_within: Duration,
}

/// What a campaign did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    /// Cuts.
    pub cuts: u64,
    /// Cuts beside these while nodes were starting after one.
    pub cuts_of_starts: u64,
    /// Acknowledged writes.
    pub acked: u64,
    /// Keys compared.
    pub keys: u64,
    /// The longest that all nodes took from their start until every group was led.
    pub slowest_start: Duration,
}

/// The power comes back and goes again while nodes recover: what recovery does must bear a cut too.
fn cut_while_starting(cluster: &mut Cluster, rng: &mut Rng) -> Result<(), String> {
    for node in 0..cluster.len() {
        cluster.start(node)?;
    }
    std::thread::sleep(Duration::from_millis(rng.below(600)));
    cluster.cut_all(rng)
}

/// Runs a campaign on a cluster (or a single server) that is prepared and not started.
///
/// # Errors
/// With what was lost or wrong, or with a node's words when it does not come back.
pub fn run(cluster: &mut Cluster, campaign: &Campaign, mut say: impl FnMut(&str)) -> Result<Done, String> {
    let mut rng = Rng::new(campaign.seed);
    let mut done = Done::default();
    let mut writers: Vec<Writer> =
        (0..campaign.writers).map(|number| Writer::new(number, rng.word())).collect();
    let nowhere: Position = Arc::new(|| 0);
    cluster.start_all()?;
    for cut in 0..campaign.cuts {
        let acked_before = done.acked;
        let (stop, acked) = (AtomicBool::new(false), AtomicU64::new(0));
        let addresses = cluster.addresses();
        let extra = rng.below(campaign.writes_per_cut / 4 + 1);
        std::thread::scope(|scope| {
            for (number, writer) in writers.iter_mut().enumerate() {
                let node = addresses[number % addresses.len()];
                let (stop, acked, position) = (&stop, &acked, &nowhere);
                scope.spawn(move || writer.write(node, stop, acked, position));
            }
            let begun = Instant::now();
            let wanted = campaign.writes_per_cut + extra;
            while acked.load(Ordering::Acquire) < wanted && begun.elapsed() < campaign.load_within {
                std::thread::sleep(Duration::from_millis(1));
            }
            // The power goes while requests are under way.
            let result = cluster.cut_all(&mut rng);
            stop.store(true, Ordering::Release);
            result
        })?;
        done.acked += acked.load(Ordering::Acquire);
        if done.acked == acked_before {
            return Err(format!("cut {cut}: nothing was acknowledged before it, so it proves nothing"));
        }
        if rng.chance(300) {
            done.cuts_of_starts += 1;
            cut_while_starting(cluster, &mut rng)?;
        }
        let begun = Instant::now();
        cluster.start_all().map_err(|text| format!("after cut {cut} (seed {}): {text}", campaign.seed))?;
        done.slowest_start = done.slowest_start.max(begun.elapsed());
        for (number, writer) in writers.iter_mut().enumerate() {
            let found = writer.check(addresses[(number + 1) % addresses.len()], u64::MAX, true)?;
            if !found.is_good() {
                let text = found.text();
                return Err(format!("after cut {cut} (seed {}):\n{text}", campaign.seed));
            }
            done.keys += found.keys;
        }
        done.cuts += 1;
        if (cut + 1).is_multiple_of(10) {
            say(&format!("{} cuts, {} acknowledged writes, none lost", done.cuts, done.acked));
        }
    }
    Ok(done)
}
