//! Rounds of two faults at once under load; after each the cluster is healed, must make progress, and is judged.
//!
//! Judged are: every object's history with a last read at every node, the counters, the replicas (equal digests at equal
//! applied index), how soon every group is led again and every request answered, and what a minority answers meanwhile.

use crate::check::{self, Action, Event, Kind, Operation};
use crate::client::{self, Client, Connection, Outcome};
use crate::cluster::{Cluster, Replica};
use crate::disk::mount::Disk;
use crate::fault::{self, ALL, Class, Fault};
use crate::load::{self, Load, name};
use crate::report::{self, Report};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use strand_sim::rng::Rng;

/// Longest until every group is led and every request answered after all was healed.
const PROGRESS_WITHIN: Duration = Duration::from_secs(30);
/// Longest until the replicas of a resting cluster are equal and have written it down.
const EQUAL_WITHIN: Duration = Duration::from_secs(45);
/// A node is cut off this long before it must know.
const CUT_OFF: Duration = Duration::from_secs(5);
/// Deadline of a request at a node that is cut off, in ms, and how much later its refusal may come.
const REFUSED_MS: u64 = 1500;
const REFUSED_SLACK: Duration = Duration::from_millis(1000);

/// A storm.
#[derive(Clone, Copy, Debug)]
pub struct Storm {
    /// How long.
    pub within: Duration,
    /// The choices.
    pub seed: u64,
    /// Clients.
    pub clients: usize,
    /// What reads ask for. Anything but linearizable reads must be found out.
    pub consistency: &'static str,
    /// Only this class, again and again; else random pairs.
    pub only: Option<Class>,
}

/// What a storm did.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// Rounds.
    pub rounds: u64,
    /// Faults by class.
    pub faults: BTreeMap<Class, u64>,
    /// Operations judged, and those of unknown outcome.
    pub operations: u64,
    /// Of unknown outcome.
    pub unknown: u64,
    /// Histories whose judgement was given up.
    pub too_hard: u64,
    /// Requests answered.
    pub requests: u64,
    /// Tries beyond the first.
    pub retries: u64,
    /// Retries that came too late to be remembered: only a wrong clock may do that.
    pub seq_expired: u64,
    /// From healing until every group was led.
    pub recoveries: Vec<Duration>,
    /// Refusals of minorities.
    pub refusals: Vec<Duration>,
    /// Comparisons of all replicas.
    pub comparisons: u64,
    /// Requests that disks answered with EIO: without any, broken disks did nothing.
    pub disk_failed: u64,
    /// Requests that disks answered with ENOSPC: without any, full disks did nothing.
    pub disk_full: u64,
}

impl Done {
    /// Two lines for the ledger.
    pub fn text(&self) -> String {
        let faults: Vec<String> =
            self.faults.iter().map(|(class, count)| format!("{class:?} {count}")).collect();
        format!(
            "{} rounds, {} operations judged ({} of unknown outcome, {} objects given up), {} requests, {} retries, \
             {} too late\n    led again after healing: {}; refusals of a minority: {}; replicas compared {} times; disks answered EIO {} times, ENOSPC {} times\n    faults: {}",
            self.rounds,
            self.operations,
            self.unknown,
            self.too_hard,
            self.requests,
            self.retries,
            self.seq_expired,
            report::summary(&self.recoveries),
            report::summary(&self.refusals),
            self.comparisons,
            self.disk_failed,
            self.disk_full,
            faults.join(", ")
        )
    }
}

/// Runs a storm on a cluster that is prepared and not started.
///
/// # Errors
/// With the finding, the seed and the round.
pub fn run(cluster: &mut Cluster, storm: &Storm, report: &Report) -> Result<Done, String> {
    let mut rng = Rng::new(storm.seed);
    let mut done = Done::default();
    cluster.start_all()?;
    let addresses = cluster.addresses();
    let patience = Duration::from_secs(150);
    let pause = Duration::from_millis(4);
    let load = Load::begin_with(&addresses, storm.clients, patience, pause, storm.seed, storm.consistency);
    let begun = Instant::now();
    while begun.elapsed() < storm.within {
        let faults = draw(cluster, storm.only, &mut rng);
        let texts: Vec<String> = faults.iter().map(Fault::text).collect();
        report.say(&format!("round {}: {}", done.rounds, texts.join(", ")));
        let result = round(cluster, &load, &faults, &mut rng, &mut done);
        if let Err(text) = result {
            let seed = storm.seed;
            let (round, tails) = (done.rounds, cluster.tails());
            load.abandon();
            return Err(format!("round {round} of seed {seed} ({}): {text}\n{tails}", texts.join(", ")));
        }
        for fault in &faults {
            *done.faults.entry(fault.class).or_default() += 1;
        }
        done.rounds += 1;
    }
    let figures = load.stop();
    done.requests = figures.requests;
    done.retries = figures.retries;
    done.seq_expired = figures.seq_expired;
    for count in cluster.disks.iter().map(Disk::counts) {
        done.disk_failed += count.failed.load(Ordering::Relaxed);
        done.disk_full += count.full.load(Ordering::Relaxed);
    }
    let may_expire = done.faults.contains_key(&Class::Clock);
    if done.seq_expired > 0 && !may_expire {
        return Err(format!("{} retries came too late though no clock was wrong", done.seq_expired));
    }
    if done.rounds == 0 || done.operations < done.rounds * 100 {
        return Err(format!("{} operations in {} rounds prove nothing", done.operations, done.rounds));
    }
    Ok(done)
}

/// Two faults of different classes.
fn draw(cluster: &Cluster, only: Option<Class>, rng: &mut Rng) -> Vec<Fault> {
    if let Some(class) = only {
        return vec![Fault::draw(class, cluster.len(), rng)];
    }
    let possible: Vec<Class> = ALL.into_iter().filter(|class| class.is_possible(cluster)).collect();
    let first = rng.place(possible.len());
    let second = (first + 1 + rng.place(possible.len() - 1)) % possible.len();
    [first, second].map(|place| Fault::draw(possible[place], cluster.len(), rng)).to_vec()
}

fn round(
    cluster: &mut Cluster,
    load: &Load,
    faults: &[Fault],
    rng: &mut Rng,
    done: &mut Done,
) -> Result<(), String> {
    std::thread::sleep(Duration::from_millis(rng.between(300, 1500)));
    let lasts = faults.iter().map(|fault| fault.lasts(rng)).max().unwrap_or_default();
    for fault in faults {
        fault.inject(cluster)?;
        std::thread::sleep(Duration::from_millis(rng.below(1500)));
    }
    let begun = Instant::now();
    if let Some(node) = cut_off(faults) {
        std::thread::sleep(CUT_OFF);
        done.refusals.extend(refused(cluster.addresses()[node])?);
    }
    while begun.elapsed() < lasts && !load.has_violations() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let healed = Instant::now();
    fault::heal_all(cluster, faults)?;
    cluster.until_led(PROGRESS_WITHIN).map_err(|text| format!("no progress after healing: {text}"))?;
    done.recoveries.push(healed.elapsed());
    let rested = load.rest(PROGRESS_WITHIN);
    let judged = judge(cluster, load, done);
    rested.and(judged)?;
    load.resume();
    Ok(())
}

/// The node that is alone and unharmed otherwise, if there is one.
fn cut_off(faults: &[Fault]) -> Option<usize> {
    let isolated = faults.iter().find(|fault| fault.class == Class::Isolate)?;
    let disturbs = |fault: &Fault| match fault.class {
        Class::Kill
        | Class::Pause
        | Class::BrokenDisk
        | Class::SlowDisk
        | Class::FullDisk
        | Class::PowerCut => fault.node == isolated.node,
        // Other nodes' networks are added to the isolation; a clock decides nothing.
        _ => false,
    };
    (!faults.iter().any(disturbs)).then_some(isolated.node)
}

/// Asks a node that is cut off to write and to read in every shard: each must be refused with NO_QUORUM within its deadline.
fn refused(node: SocketAddr) -> Result<Vec<Duration>, String> {
    let asked = |number: u64| {
        let key = format!("minority{}", number / 2);
        if number.is_multiple_of(2) {
            json!({"command": "SET", "key": key, "value": 1, "timeout_ms": REFUSED_MS})
        } else {
            json!({"command": "GET", "key": key, "timeout_ms": REFUSED_MS})
        }
    };
    let one = |number: u64| {
        let request = asked(number);
        let begun = Instant::now();
        let mut connection = Connection::open(node).map_err(|error| format!("{request}: {error}"))?;
        let reply =
            connection.ask(&request).map_err(|error| format!("a minority hangs at {request}: {error}"))?;
        let took = begun.elapsed();
        if reply["code"] != "NO_QUORUM" {
            return Err(format!("a node cut off for {CUT_OFF:?} answered {request} with {reply}"));
        }
        if took > Duration::from_millis(REFUSED_MS) + REFUSED_SLACK {
            return Err(format!("a minority refused {request} after {took:?} only"));
        }
        Ok(took)
    };
    std::thread::scope(|scope| {
        let one = &one;
        let all: Vec<_> = (0..16).map(|number| scope.spawn(move || one(number))).collect();
        all.into_iter()
            .map(|asked| asked.join().unwrap_or_else(|_| Err("a prober panicked".to_owned())))
            .collect()
    })
}

/// Judges what the clients did since the last round, with the last state of every object read at every node.
///
/// # Errors
/// With everything that must not be.
pub fn judge(cluster: &Cluster, load: &Load, done: &mut Done) -> Result<(), String> {
    let mut recorded = load.take_recorded();
    let mut violations = std::mem::take(&mut recorded.violations);
    let epoch = load.epoch();
    for (number, address) in cluster.addresses().into_iter().enumerate() {
        let mut reader = Client::new(format!("reader{number}"), vec![address], 0, PROGRESS_WITHIN);
        read_all(&mut reader, load, epoch, &mut recorded.events)?;
        let count = ask(&mut reader, json!({"command": "GET", "key": name::counter(epoch)}))?;
        let count = count["result"].as_i64().unwrap_or(0);
        violations.extend(check::judge_counter(&name::counter(epoch), &recorded.counted, count));
    }
    let judgement = check::judge_all(&recorded.events);
    done.operations += judgement.operations;
    done.unknown += judgement.unknown;
    done.too_hard += judgement.too_hard;
    violations.extend(judgement.violations);
    if let Err(text) = until_equal(cluster) {
        violations.push(text);
    }
    done.comparisons += 1;
    if violations.is_empty() { Ok(()) } else { Err(violations.join("\n")) }
}

fn ask(reader: &mut Client, request: Value) -> Result<Value, String> {
    match reader.insist(request)? {
        Outcome::Done(reply) => Ok(reply),
        other => Err(format!("{}: a last read was refused: {other:?}", reader.name)),
    }
}

/// Reads every object of an epoch at one node.
fn read_all(reader: &mut Client, load: &Load, epoch: u64, events: &mut Vec<Event>) -> Result<(), String> {
    let registers = (0..load::REGISTERS).map(|number| (Kind::Register, name::register(epoch, number)));
    let swaps = (0..load::SWAPS).map(|number| (Kind::Swap, name::swap(epoch, number)));
    let mut note = |kind, object, called, value: Option<u64>| {
        let operation = Operation { called, returned: Some(load.tick()), action: Action::Read(value) };
        events.push(Event { kind, object, operation });
    };
    for (kind, key) in registers.chain(swaps) {
        let called = load.tick();
        let reply = ask(reader, json!({"command": "GET", "key": key}))?;
        note(kind, key, called, reply["result"].as_u64());
    }
    for number in 0..load::BATCHES {
        for key in 0..load::BATCH_KEYS {
            let called = load.tick();
            let reply = ask(reader, json!({"command": "GET", "key": name::batch_key(epoch, number, key)}))?;
            note(Kind::Batch, name::batch(epoch, number), called, reply["result"].as_u64());
        }
    }
    Ok(())
}

/// Waits until all replicas of each shard stand at one index and their snapshots of it have one digest. The cluster rests.
///
/// # Errors
/// When digests differ at one index, or the indexes do not meet.
pub fn until_equal(cluster: &Cluster) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        let mut shards: BTreeMap<u64, Vec<(usize, Replica)>> = BTreeMap::new();
        for node in 0..cluster.len() {
            for (shard, replica) in cluster.replicas(node) {
                shards.entry(shard).or_default().push((node, replica));
            }
        }
        for (shard, replicas) in &shards {
            differs(*shard, replicas)?;
        }
        let stands = |replicas: &Vec<(usize, Replica)>| {
            let applied = replicas[0].1.applied;
            replicas.iter().all(|(_, replica)| replica.applied == applied && replica.snapshot == applied)
        };
        if !shards.is_empty() && shards.values().all(stands) {
            return Ok(());
        }
        if begun.elapsed() > EQUAL_WITHIN {
            return Err(format!("the replicas of a resting cluster do not meet: {shards:?}"));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Two snapshots of one index with different content.
fn differs(shard: u64, replicas: &[(usize, Replica)]) -> Result<(), String> {
    for (node, replica) in replicas {
        for (other_node, other) in replicas {
            if replica.snapshot == other.snapshot && replica.digest != other.digest {
                let (node, other_node) = (node + 1, other_node + 1);
                return Err(format!(
                    "n{node} and n{other_node} differ in shard {shard}: {replica:?} {other:?}"
                ));
            }
        }
    }
    Ok(())
}

/// Asks every node once, to see whether it answers; for tests of the harness.
pub fn all_answer(cluster: &Cluster) -> bool {
    let ping = json!({"command": "PING"});
    cluster.addresses().iter().all(|address| client::ask_once(*address, &ping).is_ok())
}
