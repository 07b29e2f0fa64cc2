//! Followers that miss log entries, one command each: what the leader still holds is sent from its log, and for what it holds no
//! longer the follower gets a snapshot. What is held for a follower has a bound, in memory and on disk, and writes go on
//! whether a follower is there or not.
//!
//! At length: `STRAND_BEHIND_ENTRIES=1000000 cargo test --test cluster_behind -- --nocapture --test-threads 1`.

mod support;

use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};
use support::client::Connection;
use support::cluster::{Node, Trio};
use support::system::Signal;
use support::traffic::{Ends, Traffic};
use support::{eventually, from_environment, say, timed};

/// Longest wait for a replica to have everything.
const PATIENCE: Duration = Duration::from_secs(400);
/// Longest that a request of the traffic may take meanwhile, on a machine that runs other tests too.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Requests in flight of who loads.
const DEPTH: u64 = 500;
/// Different keys.
const KEYS: u64 = 5_000;
/// Bytes that an entry of the load takes in a leader's memory, at least and at most.
const ENTRY_BYTES: (u64, u64) = (100, 450);
/// As in the settings of every node here.
const SEGMENT_MIB: u64 = 2;

/// Three nodes with one shard, whose entries hold one command each.
fn trio(name: &str, catch_up_mib: u64, snapshot_mib: u64) -> Trio {
    let more = [format!("cluster.catch_up_mib={catch_up_mib}"), format!("snapshot.every_mib={snapshot_mib}")];
    let mut arguments = vec!["--shards", "1"];
    for setting in ["wal.entry_commands_max=1", "wal.gather_commands_min=1", "wal.commits_in_flight_max=24"] {
        arguments.extend(["--set", setting]);
    }
    for setting in &more {
        arguments.extend(["--set", setting]);
    }
    Trio::new(name, &arguments)
}

/// Writes as many entries.
fn load(port: u16, entries: u64) {
    let mut connection = Connection::open(port).expect("the node listens");
    for from in (0..entries).step_by(DEPTH as usize) {
        let set = |number: u64| json!({"command": "SET", "key": format!("k{}", number % KEYS), "value": number, "timeout_ms": 20000});
        let requests: Vec<Value> = (from..entries.min(from + DEPTH)).map(set).collect();
        for reply in connection.pipeline(&requests) {
            assert_eq!(reply["result"], "OK", "{reply}");
        }
    }
}

/// What a node says of its shard.
fn shard(node: &Node) -> Value {
    node.ask(&json!({"command": "INFO"}))["result"]["shards"][0].clone()
}

fn figure(shard: &Value, path: &str) -> u64 {
    shard.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {path} in {shard}"))
}

/// The nodes, of which the first leads and is to lead.
fn begin(trio: &Trio) -> [Node; 3] {
    let nodes = [0, 1, 2].map(|at| trio.spawn(at));
    for node in &nodes {
        node.until_it_answers();
        node.ask_until_success(&json!({"command": "GET", "key": "any"}));
    }
    nodes[0].ask_until_success(&json!({"command": "TRANSFER_LEADER", "node": "n1", "shard": 0}));
    eventually("the first leads", PATIENCE, || shard(&nodes[0])["role"] == "leader");
    nodes
}

/// What CLUSTER says of a node's replica.
fn replica(asked: &Node, at: usize) -> Value {
    let cluster = asked.ask(&json!({"command": "CLUSTER"}))["result"]["groups"][0].clone();
    let replicas = cluster["replicas"].as_array().cloned().unwrap_or_default();
    replicas.into_iter().find(|one| one["node"] == format!("n{}", at + 1)).unwrap_or_default()
}

/// Waits until a node has applied what is committed now; how long that took, and the longest lag on the way.
fn has_applied(node: &Node, leader: &Node, at: usize) -> (Duration, u64) {
    let (begun, goal) = (Instant::now(), figure(&shard(leader), "/commit_index"));
    let mut lag_max = 0;
    eventually("it has applied what was committed", PATIENCE, || {
        lag_max = lag_max.max(replica(leader, at)["lag"].as_u64().unwrap_or(0));
        let shard = shard(node);
        shard["applied_index"].as_u64().is_some_and(|applied| applied >= goal)
    });
    (begun.elapsed(), lag_max)
}

/// Compares what a node itself has with what was written last.
fn has_the_last_values(node: &Node, entries: u64) {
    let mut connection = Connection::open(node.port()).expect("the node listens");
    for key in (0..KEYS).step_by(97) {
        let last = (0..entries).rev().find(|number| number % KEYS == key).expect("every key was written");
        let get = json!({"command": "GET", "key": format!("k{key}"), "consistency": "local"});
        assert_eq!(connection.ask(&get)["result"], last, "k{key}");
    }
}

/// Bytes of all files in a directory.
fn bytes_on_disk(path: &Path) -> u64 {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    // What is removed while this looks takes no space.
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(data) if data.is_dir() => bytes_on_disk(&entry.path()),
        Ok(data) => data.len(),
        Err(_) => 0,
    };
    entries.map(size).sum()
}

#[test]
fn what_the_log_still_holds_is_sent_from_the_log() {
    let _timed = timed("a follower that misses entries gets them from the log");
    let entries = from_environment("STRAND_BEHIND_ENTRIES", 20_000);
    let trio = trio("behind-log", 1 + entries * ENTRY_BYTES.1 / (1 << 20), 64);
    let ([leader, other, victim], at) = (begin(&trio), 2);
    load(leader.port(), KEYS);
    let before = figure(&shard(&victim), "/last_index");
    victim.kill();
    let begun = Instant::now();
    load(leader.port(), entries);
    let loading = begun.elapsed();
    let traffic = Traffic::default();
    let (missed, took, lag_max, longest, counted) = std::thread::scope(|scope| {
        let (traffic, port, _ends) = (&traffic, other.port(), Ends(&traffic));
        let counters = ["c1", "c2", "c3"].map(|name| scope.spawn(move || traffic.count_on(port, name)));
        std::thread::sleep(Duration::from_millis(500));
        let missed = figure(&shard(&leader), "/commit_index") - before;
        assert!(missed >= entries, "{missed} entries for {entries} commands");
        let lag = replica(&leader, at)["lag"].as_u64().unwrap_or(0);
        assert!(lag >= entries, "CLUSTER tells how far it is behind: {lag}");
        traffic.take_longest();
        let back = trio.spawn_without_peers(at);
        back.until_it_answers();
        let (took, lag_max) = has_applied(&back, &leader, at);
        let longest = traffic.take_longest();
        assert_eq!(figure(&shard(&back), "/snapshots/restored"), 0, "no snapshot was needed");
        eventually("CLUSTER says that it has everything", PATIENCE, || {
            let told = replica(&leader, at);
            told["lag"].as_u64().is_some_and(|lag| lag < 100) && told["applied_index"].is_u64()
        });
        traffic.end();
        let counted: u64 = counters.into_iter().map(|counter| counter.join().expect("a counter")).sum();
        has_the_last_values(&back, entries);
        (missed, took, lag_max, longest, counted)
    });
    let rate = entries as f64 / loading.as_secs_f64();
    say(&format!(
        "{missed} entries missed (written at {rate:.0} a second), sent from the log in {took:?}, lag at most {lag_max}; {counted} \
         requests meanwhile, the longest {longest:?}"
    ));
    assert!(longest < PAUSE_MAX, "{longest:?}");
}

#[test]
fn a_follower_that_stands_still_holds_the_log_up_to_its_cap_only() {
    let _timed = timed("a follower that stands still");
    let entries = from_environment("STRAND_BEHIND_ENTRIES", 20_000);
    let catch_up_mib = (entries * ENTRY_BYTES.0 / (2 << 20)).max(1);
    let snapshot_mib = if entries > 100_000 { 64 } else { 8 };
    let trio = trio("behind-cap", catch_up_mib, snapshot_mib);
    let ([leader, other, victim], at) = (begin(&trio), 2);
    load(leader.port(), KEYS);
    let before = figure(&shard(&victim), "/last_index");
    victim.signal(Signal::Stop);
    let traffic = Traffic::default();
    std::thread::scope(|scope| {
        let (traffic, port, _ends) = (&traffic, other.port(), Ends(&traffic));
        let counters = ["c1", "c2", "c3"].map(|name| scope.spawn(move || traffic.count_on(port, name)));
        std::thread::sleep(Duration::from_millis(500));
        let calm = traffic.take_longest();
        let (mut in_memory, mut on_disk, mut live) = (0, 0, 0);
        let begun = Instant::now();
        let mut written = 0;
        while written < entries {
            let some = (entries / 20).max(DEPTH);
            load(leader.port(), some);
            written += some;
            let shard = shard(&leader);
            in_memory = in_memory.max(figure(&shard, "/log_memory_bytes"));
            live = live.max(figure(&shard, "/wal/live_bytes"));
            on_disk = on_disk.max(bytes_on_disk(&trio.data(0)));
        }
        let loading = begun.elapsed();
        let stopped = traffic.take_longest();
        // Held for the follower: the cap and the entry that ends it. On disk: the log until a snapshot stands for it, and the
        // snapshot's own time, spare segments, one in reserve, the one that is written, two small snapshots.
        let held_max = (catch_up_mib << 20) + (1 << 20);
        assert!(in_memory <= held_max, "{in_memory} bytes of {held_max} are held");
        assert!(in_memory > held_max / 3, "{in_memory} bytes: nothing was held, so nothing is shown");
        let disk_max = (2 * snapshot_mib + 8 * SEGMENT_MIB + 8) << 20;
        assert!(on_disk <= disk_max, "{on_disk} bytes on disk of {disk_max}");
        let missed = figure(&shard(&leader), "/commit_index") - before;
        assert!(missed >= entries, "{missed} entries for {entries} commands");
        assert_eq!(shard(&leader)["role"], "leader");

        victim.signal(Signal::Continue);
        let (took, lag_max) = has_applied(&victim, &leader, at);
        let back = traffic.take_longest();
        assert!(figure(&shard(&victim), "/snapshots/restored") >= 1, "what is cut comes by a snapshot");
        traffic.end();
        let counted: u64 = counters.into_iter().map(|counter| counter.join().expect("a counter")).sum();
        for (number, name) in ["c1", "c2", "c3"].into_iter().enumerate() {
            let get = json!({"command": "GET", "key": name});
            assert!(victim.ask_until_success(&get)["result"].is_u64(), "counter {number}");
        }
        let rate = written as f64 / loading.as_secs_f64();
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        say(&format!(
            "{missed} entries missed by one that stands still, written at {rate:.0} a second; held at most {:.1} MiB of \
             {catch_up_mib}, on disk {:.1} MiB, of it live log {:.1}; then filled from a snapshot in {took:?}, lag at most \
             {lag_max}; {counted} requests, the longest {stopped:?} while it stood still and {back:?} while it was filled, \
             before {calm:?}",
            mib(in_memory),
            mib(on_disk),
            mib(live)
        ));
        for pause in [stopped, back] {
            assert!(pause < PAUSE_MAX, "{pause:?}");
        }
    });
}
