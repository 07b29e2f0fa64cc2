//! Replicas that are far behind: a follower that was away while much was written, and an empty node that takes a place in a
//! database with indexes. Both catch up while traffic goes on, and have then what the others have, indexes included.
//!
//! At length: `STRAND_BEHIND=1000000 cargo test --release --test cluster_catch_up -- --nocapture`.

mod support;

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use support::client::Connection;
use support::cluster::{Node, Trio};
use support::traffic::{Ends, Traffic};
use support::{eventually, from_environment, say, timed};

/// Longest wait for a replica to have everything.
const PATIENCE: Duration = Duration::from_secs(240);
/// Longest that a request of the traffic may take meanwhile, on a machine that runs other tests too.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Requests in flight of who loads.
const DEPTH: u64 = 500;
/// Two directions for vectors, told apart by parity.
const DIRECTIONS: [[u8; 2]; 2] = [[1, 0], [0, 1]];

fn set(number: u64, round: u64) -> Value {
    let value = json!({
        "n": number, "round": round, "text": format!("word{} common", number % 97), "way": DIRECTIONS[number as usize % 2],
    });
    json!({"command": "SET", "key": format!("k{number}"), "value": value, "timeout_ms": 20000})
}

fn load(port: u16, keys: u64, round: u64) {
    let mut connection = Connection::open(port).expect("the node listens");
    for from in (0..keys).step_by(DEPTH as usize) {
        let requests: Vec<Value> = (from..keys.min(from + DEPTH)).map(|number| set(number, round)).collect();
        for reply in connection.pipeline(&requests) {
            assert_eq!(reply["result"], "OK", "{reply}");
        }
    }
}

fn answers(node: &Node) {
    node.until_it_answers();
    node.ask_until_success(&json!({"command": "GET", "key": "any", "timeout_ms": 20000}));
}

fn info(node: &Node) -> Vec<Value> {
    node.ask(&json!({"command": "INFO"}))["result"]["shards"].as_array().cloned().unwrap_or_default()
}

/// The highest committed index that each group's leader has told, by group.
fn committed(nodes: &[&Node]) -> BTreeMap<usize, u64> {
    let mut known = BTreeMap::new();
    for node in nodes {
        for (group, shard) in info(node).iter().enumerate() {
            let commit = shard["commit_index"].as_u64().unwrap_or(0);
            let highest = known.entry(group).or_insert(commit);
            *highest = commit.max(*highest);
        }
    }
    known
}

/// Waits until a node has applied what was committed when this was called, in every group that it has a replica of.
fn has_applied(node: &Node, others: &[&Node]) -> Duration {
    let (begun, goal) = (Instant::now(), committed(others));
    eventually("it has applied what was committed", PATIENCE, || {
        let shards = info(node);
        shards.len() == goal.len()
            && shards.iter().enumerate().all(|(group, shard)| {
                shard.is_null()
                    || shard["applied_index"].as_u64().is_some_and(|applied| applied >= goal[&group])
            })
    });
    begun.elapsed()
}

/// Compares what a node itself has with what the leaders have.
fn has_the_same(node: &Node, other: &Node, keys: u64, round: u64) {
    let mut connection = Connection::open(node.port()).expect("the node listens");
    let sample: Vec<u64> = (0..keys).step_by((keys / 500).max(1) as usize).collect();
    let get = |number: &u64| json!({"command": "GET", "key": format!("k{number}"), "consistency": "local"});
    for (number, reply) in sample.iter().zip(connection.pipeline(&sample.iter().map(get).collect::<Vec<_>>()))
    {
        assert_eq!(reply["stale"], true, "{reply}");
        assert_eq!(
            (&reply["result"]["n"], &reply["result"]["round"]),
            (&json!(number), &json!(round)),
            "{reply}"
        );
    }
    for query in [
        json!({"command": "QUERY_INDEX", "field": "n", "gte": keys - 700, "limit": 1000}),
        json!({"command": "SEARCH", "query": "word5", "top_k": 50}),
        json!({"command": "SEARCH", "query": "text:word7", "top_k": 50}),
        json!({"command": "SEMANTIC_SEARCH", "vector": [1, 0], "model": "way", "top_k": 10}),
    ] {
        let mut local = query.clone();
        local["consistency"] = json!("local");
        let (expected, found) = (other.ask(&query), connection.ask(&local));
        assert_eq!(found["stale"], true, "{found}");
        assert!(expected["result"].as_array().is_some_and(|hits| !hits.is_empty()), "{query}: {expected}");
        assert_eq!(found["result"], expected["result"], "{query}");
    }
    let definitions = |node: &Node| {
        let listed = node.ask(&json!({"command": "LIST_INDEXES"}))["result"].clone();
        let name =
            |index: &Value| (index["field"].to_string(), index["kind"].to_string(), index["dim"].to_string());
        listed.as_array().expect("indexes").iter().map(name).collect::<Vec<_>>()
    };
    assert_eq!(definitions(node), definitions(other));
}

#[test]
fn who_is_far_behind_catches_up_under_traffic() {
    let _timed = timed("followers that are far behind");
    let keys = from_environment("STRAND_BEHIND", 20_000);
    let trio = Trio::new("catch-up", &["--shards", "2", "--set", "wal.segment_mib=8"]);
    let mut nodes: Vec<Option<Node>> = (0..3).map(|at| Some(trio.spawn(at))).collect();
    nodes.iter().flatten().for_each(answers);
    let first = nodes[0].take().expect("it runs");
    for (field, kind) in [("n", "value"), ("text", "text")] {
        first.ask_until_success(&json!({"command": "CREATE_INDEX", "field": field, "kind": kind}));
    }
    first.ask_until_success(&json!({"command": "CREATE_INDEX", "field": "way", "kind": "vector", "dim": 2}));
    first.ask_until_success(&json!({"command": "SEARCH", "query": "common"}));
    load(first.port(), keys, 1);

    nodes[2].take().expect("it runs").kill();
    let begun = Instant::now();
    load(first.port(), keys, 2);
    let loading = begun.elapsed();
    let second = nodes[1].take().expect("it runs");
    let traffic = Traffic::default();
    let take_longest = || traffic.take_longest();
    std::thread::scope(|scope| {
        let (port, traffic, _ends) = (first.port(), &traffic, Ends(&traffic));
        let counters = ["c1", "c2", "c3"].map(|name| scope.spawn(move || traffic.count_on(port, name)));
        std::thread::sleep(Duration::from_millis(500));
        let calm = take_longest();

        let begun = Instant::now();
        let third = trio.spawn_without_peers(2);
        answers(&third);
        has_applied(&third, &[&first, &second]);
        let follower = (begun.elapsed(), take_longest());
        has_the_same(&third, &first, keys, 2);

        take_longest();
        let begun = Instant::now();
        let fourth = trio.spawn_joining(3, 0);
        let request = |command: &str, node: &str| json!({"command": command, "node": node});
        eventually("a member hears of it", PATIENCE, || {
            first.ask(&request("ADD_NODE", "n4"))["status"] == "success"
        });
        eventually("the third may go", PATIENCE, || {
            first.ask(&request("REMOVE_NODE", "n3"))["status"] == "success"
        });
        eventually("the new one has the third's place", PATIENCE, || {
            let cluster = first.ask(&json!({"command": "CLUSTER"}))["result"].clone();
            cluster["groups"].as_array().expect("groups").iter().all(|group| {
                let replicas = group["replicas"].as_array().map_or(&[][..], Vec::as_slice);
                let votes = |id: &str| replicas.iter().any(|one| one["node"] == id && one["role"] == "voter");
                replicas.len() == 3 && ["n1", "n2", "n4"].into_iter().all(votes)
            })
        });
        answers(&fourth);
        has_applied(&fourth, &[&first, &second]);
        let empty = (begun.elapsed(), take_longest());
        has_the_same(&fourth, &first, keys, 2);
        traffic.end();
        let counted: Vec<u64> =
            counters.into_iter().map(|counter| counter.join().expect("a counter")).collect();
        for (name, count) in ["c1", "c2", "c3"].iter().zip(&counted) {
            let read = fourth.ask_until_success(&json!({"command": "GET", "key": name, "timeout_ms": 20000}));
            assert_eq!(read["result"], *count);
        }
        say(&format!(
            "{keys} writes in {loading:?}, then a follower had them {:?} after its start, an empty node {:?} after its own; \
             longest request of {} meanwhile {:?} and {:?}, before {calm:?}",
            follower.0,
            empty.0,
            counted.iter().sum::<u64>(),
            follower.1,
            empty.1
        ));
        for pause in [follower.1, empty.1] {
            assert!(pause < PAUSE_MAX, "{pause:?}");
        }
    });
}
