//! What operators do to a cluster, with real processes: addresses that change, leaders that spread again, refusals that keep a
//! majority, and the last resort for a lost one.

mod support;

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use support::client::Connection;
use support::cluster::{Node, Trio};
use support::server::free_port;
use support::{eventually, say, timed};

const PATIENCE: Duration = Duration::from_secs(60);
/// Leaders must be even again so long after a node is back.
const EVEN_WITHIN: Duration = Duration::from_secs(30);

fn begin(trio: &Trio, nodes: usize) -> Vec<Option<Node>> {
    let nodes: Vec<Option<Node>> = (0..nodes).map(|at| Some(trio.spawn(at))).collect();
    for node in nodes.iter().flatten() {
        node.until_it_answers();
        node.ask_until_success(&json!({"command": "GET", "key": "any"}));
    }
    nodes
}

fn run(node: &Option<Node>) -> &Node {
    node.as_ref().expect("it runs")
}

fn cluster(node: &Node) -> Value {
    node.ask(&json!({"command": "CLUSTER"}))["result"].clone()
}

/// Groups led by each node; `None` while one has no leader.
fn led(cluster: &Value) -> Option<BTreeMap<String, usize>> {
    let mut led = BTreeMap::new();
    for group in cluster["groups"].as_array()? {
        *led.entry(group["leader"].as_str()?.to_owned()).or_default() += 1;
    }
    Some(led)
}

fn is_even(node: &Node, nodes: usize) -> bool {
    led(&cluster(node)).is_some_and(|led| {
        led.len() == nodes
            && led.values().max().zip(led.values().min()).is_some_and(|(most, least)| most - least <= 1)
    })
}

/// `strand cluster ...`.
fn operate(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_strand"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("STRAND_")) {
        command.env_remove(name);
    }
    command.arg("cluster").args(arguments).output().expect("the binary was built for this test")
}

fn told(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn leaders_are_even_again_soon_after_a_node_is_back_and_by_command() {
    let _timed = timed("leaders are even again");
    let trio = Trio::new("operate-even", &["--shards", "8"]);
    let mut nodes = begin(&trio, 3);
    eventually("leaders are even", EVEN_WITHIN, || is_even(run(&nodes[0]), 3));
    for victim in [2, 0] {
        nodes[victim].take().expect("it runs").kill();
        let other = (victim + 1) % 3;
        eventually("the others lead", PATIENCE, || {
            led(&cluster(run(&nodes[other]))).is_some_and(|led| led.len() == 2)
        });
        let back = trio.spawn_without_peers(victim);
        back.until_it_answers();
        let begun = Instant::now();
        nodes[victim] = Some(back);
        eventually("leaders are even", EVEN_WITHIN, || is_even(run(&nodes[other]), 3));
        say(&format!("leaders even {:?} after node {} answered", begun.elapsed(), victim + 1));
    }
    let address = format!("127.0.0.1:{}", trio.port(1));
    let moved = operate(&["transfer", "n2", "-a", &address]);
    assert!(moved.status.success(), "{}", told(&moved));
    eventually("one node leads everything", EVEN_WITHIN, || {
        led(&cluster(run(&nodes[0]))).is_some_and(|led| led.get("n2") == Some(&8))
    });
    let spread = operate(&["balance", "-a", &address, "--wait-s", "60"]);
    assert!(spread.status.success(), "{}", told(&spread));
    assert!(is_even(run(&nodes[0]), 3), "{}", told(&spread));
    assert!(told(&spread).contains("leaders n1"), "progress is told: {}", told(&spread));
    let status = operate(&["status", "-a", &address, "--json"]);
    let parsed: Value = serde_json::from_slice(&status.stdout).expect("one JSON object");
    assert_eq!(parsed["groups"].as_array().map(Vec::len), Some(8));
}

#[test]
fn what_would_lose_a_majority_is_refused() {
    let _timed = timed("refusals that keep a majority");
    let trio = Trio::new("operate-refuse", &["--shards", "2"]);
    let mut nodes = begin(&trio, 3);
    nodes[2].take().expect("it runs").kill();
    let address = format!("127.0.0.1:{}", trio.port(0));
    // Until the leaders have missed it for a while, removing another one harms nobody that they know of.
    eventually("its silence is noticed", PATIENCE, || {
        told(&operate(&["transfer", "n3", "-a", &address])).contains("does not answer")
    });
    std::thread::sleep(Duration::from_secs(3));
    let mut last = String::new();
    eventually("the refusal says why", PATIENCE, || {
        let refused = operate(&["remove", "n2", "-a", &address, "--wait-s", "1"]);
        last = told(&refused);
        refused.status.code() == Some(1) && last.contains("would answer, and more than half must")
    });
    assert!(last.contains("start n3 again"), "{last}");
    let refused = operate(&["transfer", "n3", "-a", &address]);
    assert!(told(&refused).contains("does not answer"), "{}", told(&refused));
    assert_eq!(cluster(run(&nodes[0]))["nodes"][1]["role"], "member", "nothing was changed");
    // Taking the dead one out is what helps.
    eventually("the dead one is taken out", PATIENCE, || {
        let removed = operate(&["remove", "n3", "-a", &address, "--wait-s", "60"]);
        // A group that has lost its leader a moment ago has to have one first.
        assert!(
            removed.status.success() || told(&removed).contains("has no leader now"),
            "{}",
            told(&removed)
        );
        removed.status.success()
    });
}

#[test]
fn a_new_address_reaches_all_nodes_and_clients() {
    let _timed = timed("a new address");
    let trio = Trio::new("operate-address", &["--shards", "4"]);
    let mut nodes = begin(&trio, 3);
    nodes[1].take().expect("it runs").kill();
    let (port, cluster_port) = (free_port(), free_port());
    let moved = trio.spawn_at(1, port, cluster_port, &[]);
    moved.until_it_answers();
    nodes[1] = Some(moved);
    let expected = format!("127.0.0.1:{port}");
    for node in nodes.iter().flatten() {
        eventually("the address is known", PATIENCE, || {
            let nodes = cluster(node)["nodes"].clone();
            let known = nodes.as_array().into_iter().flatten().find(|known| known["id"] == "n2");
            known.is_some_and(|known| known["address"] == expected && known["cluster_port"] == cluster_port)
        });
    }
    // HELLO's map and redirects name it too, once it leads something again.
    eventually("leaders are even", EVEN_WITHIN, || is_even(run(&nodes[0]), 3));
    let mut connection = Connection::open(trio.port(0)).expect("the node listens");
    let hello = connection.ask(&json!({"command": "HELLO", "redirect": true}))["result"].clone();
    let leaders = hello["leaders"].as_array().expect("a map of leaders").clone();
    assert!(leaders.iter().any(|leader| leader["address"] == expected), "{hello}");
    let mut redirects = 0;
    for number in 0..64 {
        let reply = connection.ask(&json!({"command": "SET", "key": format!("k{number}"), "value": 1}));
        if reply["code"] == "NOT_LEADER" {
            let address = reply["leader"].as_str().expect("the leader's address").to_owned();
            let port: u16 = address.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
            let mut there = Connection::open(port).expect("the address is right");
            there.ask(&json!({"command": "HELLO", "redirect": true}));
            let reply = there.ask(&json!({"command": "SET", "key": format!("k{number}"), "value": 1}));
            assert_eq!(reply["result"], "OK", "{reply}");
            redirects += usize::from(address == expected);
        }
    }
    assert!(redirects > 0, "some key is led there");
    // A host that the operator gives is told as it is.
    nodes[1].take().expect("it runs").kill();
    let named = trio.spawn_at(1, port, cluster_port, &["--advertise", "localhost"]);
    named.until_it_answers();
    let expected = format!("localhost:{port}");
    eventually("the name is known", PATIENCE, || {
        let known = cluster(run(&nodes[2]))["nodes"].clone();
        known.as_array().into_iter().flatten().any(|known| known["address"] == expected)
    });
}

#[test]
fn figures_for_operators_are_complete() {
    let _timed = timed("figures for operators");
    let trio = Trio::new("operate-figures", &["--shards", "3"]);
    let nodes = begin(&trio, 3);
    eventually("leaders are even", EVEN_WITHIN, || is_even(run(&nodes[0]), 3));
    for number in 0..30 {
        run(&nodes[0]).ask_until_success(&json!({"command": "SET", "key": format!("k{number}"), "value": 1}));
    }
    let is_number = |value: &Value| value.as_u64().is_some();
    let mut roles = BTreeMap::new();
    for node in nodes.iter().flatten() {
        let info = node.ask(&json!({"command": "INFO"}))["result"].clone();
        let shards = info["shards"].as_array().expect("figures of each shard").clone();
        assert_eq!(shards.len(), 3);
        for shard in shards {
            for name in ["term", "commit_index", "applied_index", "last_index", "leader"] {
                assert!(is_number(&shard[name]), "{name}: {shard}");
            }
            let role = shard["role"].as_str().expect("a role").to_owned();
            let followers = shard["followers"].as_array().expect("followers").clone();
            assert_eq!(followers.len(), if role == "leader" { 2 } else { 0 }, "{shard}");
            for follower in &followers {
                assert!(is_number(&follower["node"]) && is_number(&follower["match_index"]), "{shard}");
                assert!(is_number(&follower["lag"]) && follower["state"].is_string(), "{shard}");
                assert_eq!(
                    (&follower["voter"], &follower["active"]),
                    (&json!(true), &json!(true)),
                    "{shard}"
                );
            }
            *roles.entry(role).or_insert(0) += 1;
        }
        let known = cluster(node);
        for group in known["groups"].as_array().expect("groups") {
            for name in ["term", "commit_index", "applied_index", "lag"] {
                assert!(is_number(&group[name]), "{name}: {group}");
            }
            assert_eq!(group["replicas"].as_array().map(Vec::len), Some(3), "{group}");
        }
    }
    assert_eq!(roles, BTreeMap::from([("leader".to_owned(), 3), ("follower".to_owned(), 6)]));
}

#[test]
fn the_last_node_goes_on_alone_and_grows_again() {
    let _timed = timed("recovery of a lost majority");
    let trio = Trio::new("operate-recover", &["--shards", "3"]);
    let mut nodes = begin(&trio, 3);
    let first = run(&nodes[0]);
    first.ask_until_success(&json!({"command": "CREATE_INDEX", "field": "n"}));
    let mut connection = Connection::open(trio.port(0)).expect("the node listens");
    let set = |number: u64| json!({"command": "SET", "key": format!("k{number}"), "value": {"n": number}});
    for reply in connection.pipeline(&(0..300).map(set).collect::<Vec<_>>()) {
        assert_eq!(reply["result"], "OK", "{reply}");
    }
    run(&nodes[2]).ask_until_success(&json!({"command": "SNAPSHOT"}));
    for reply in connection.pipeline(&(300..600).map(set).collect::<Vec<_>>()) {
        assert_eq!(reply["result"], "OK", "{reply}");
    }
    // Every replica has everything, so nothing may be lost.
    eventually("nobody lags", PATIENCE, || {
        let groups = cluster(run(&nodes[0]))["groups"].clone();
        groups.as_array().into_iter().flatten().all(|group| group["lag"] == 0)
    });
    let data = trio.data(2).display().to_string();
    let running = operate(&["recover", "--unsafe", "--yes", "--data-dir", &data]);
    assert_eq!(running.status.code(), Some(75), "a running node: {}", told(&running));
    nodes[2].take().expect("it runs").kill();
    let living = operate(&["recover", "--unsafe", "--yes", "--data-dir", &data]);
    assert!(told(&living).contains("no majority is lost"), "{}", told(&living));
    for at in [0, 1] {
        nodes[at].take().expect("it runs").kill();
    }
    assert_eq!(operate(&["recover", "--data-dir", &data]).status.code(), Some(2), "--unsafe must be said");
    let unasked = operate(&["recover", "--unsafe", "--data-dir", &data]);
    assert!(told(&unasked).contains("--yes"), "nobody can be asked: {}", told(&unasked));
    let lone = trio.spawn_without_peers(2);
    lone.until_it_answers();
    let refused = lone.ask(&json!({"command": "GET", "key": "k1", "timeout_ms": 500}));
    assert_eq!(refused["code"], "NO_QUORUM", "{refused}");
    lone.kill();
    let done = operate(&["recover", "--unsafe", "--yes", "--data-dir", &data]);
    assert!(done.status.success(), "{}", told(&done));
    assert!(told(&done).contains("what may be lost"), "{}", told(&done));
    let node = trio.spawn_without_peers(2);
    node.until_it_answers();
    node.ask_until_success(&json!({"command": "GET", "key": "k1"}));
    let check = |port: u16| {
        let mut connection = Connection::open(port).expect("the node listens");
        let get = |number: u64| json!({"command": "GET", "key": format!("k{number}")});
        for (number, reply) in connection.pipeline(&(0..600).map(get).collect::<Vec<_>>()).iter().enumerate()
        {
            assert_eq!(reply["result"], json!({"n": number}), "k{number}");
        }
        let query = json!({"command": "QUERY_INDEX", "field": "n", "gte": 590});
        assert_eq!(connection.ask(&query)["result"].as_array().map(Vec::len), Some(10));
    };
    check(trio.port(2));
    node.ask_until_success(&json!({"command": "SET", "key": "new", "value": 1}));
    // A node of the old cluster is not let in, and does not disturb.
    let old = trio.spawn_without_peers(0);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(node.ask(&json!({"command": "GET", "key": "new"}))["result"], 1);
    old.kill();
    // Empty nodes make it a cluster of three again.
    let mut joined = Vec::new();
    for at in [3, 4] {
        let more = trio.spawn_joining(at, 2);
        let id = format!("n{}", at + 1);
        eventually("it is added", PATIENCE, || {
            node.ask(&json!({"command": "ADD_NODE", "node": id}))["status"] == "success"
        });
        more.until_it_answers();
        joined.push(more);
    }
    eventually("three voters each", PATIENCE, || {
        let groups = cluster(&node)["groups"].clone();
        groups.as_array().into_iter().flatten().all(|group| {
            let replicas = group["replicas"].as_array().map_or(&[][..], Vec::as_slice);
            replicas.len() == 3 && replicas.iter().all(|one| one["role"] == "voter")
        })
    });
    node.kill();
    joined[0].ask_until_success(&json!({"command": "GET", "key": "k1"}));
    check(trio.port(4));
}
