//! How a cluster begins: real nodes on loopback that wait for one another, agree or say what differs, and start again
//! without being told of the others.

mod support;

use serde_json::json;
use std::time::Duration;
use support::cluster::Trio;
use support::system::Signal;
use support::{eventually, timed};

#[test]
fn three_nodes_found_a_cluster_and_start_again_without_peers() {
    let _timed = timed("founding");
    let trio = Trio::new("founding", &["--shards", "2"]);
    let first = trio.spawn(0);
    eventually("the first waits for the others by name", Duration::from_secs(10), || {
        first.stderr().contains("waiting for")
    });
    let nodes = [first, trio.spawn(1), trio.spawn(2)];
    for node in &nodes {
        node.until_it_answers();
    }
    let founders = nodes.iter().filter(|node| node.stderr().contains("founding the cluster")).count();
    assert_eq!(founders, 1, "the one with the lowest id");
    assert!(nodes[0].stderr().contains("founding the cluster"));
    let set = nodes[0].ask_until_success(&json!({"command": "SET", "key": "k", "value": 1}));
    assert_eq!(set["result"], "OK");
    for node in nodes {
        node.stop();
    }
    let again = [0, 1, 2].map(|at| trio.spawn_without_peers(at));
    for node in &again {
        node.until_it_answers();
    }
    let get = again[2].ask_until_success(&json!({"command": "GET", "key": "k"}));
    assert_eq!(get["result"], 1);
}

#[test]
fn a_crash_while_founding_is_made_good_by_another_start() {
    let _timed = timed("a crash while founding");
    let trio = Trio::new("founding-crash", &["--shards", "1"]);
    for round in 0..4_u64 {
        let nodes = [0, 1, 2].map(|at| trio.spawn(at));
        std::thread::sleep(Duration::from_millis(150 + 250 * round));
        for node in nodes {
            node.kill();
        }
    }
    let nodes = [0, 1, 2].map(|at| trio.spawn(at));
    for node in &nodes {
        node.until_it_answers();
    }
    assert_eq!(nodes[1].ask_until_success(&json!({"command": "INCR", "key": "n"}))["result"], 1);
}

#[test]
fn what_differs_is_told_by_name() {
    let _timed = timed("nodes that differ");
    let trio = Trio::new("founding-differs", &[]);
    let nodes = [
        trio.spawn_with(0, &["--shards", "2"]),
        trio.spawn_with(1, &["--shards", "2"]),
        trio.spawn_with(2, &["--shards", "3"]),
    ];
    for node in nodes {
        let ended = node.wait();
        assert_eq!(ended.code(), Some(78), "{ended:#?}");
        assert!(ended.stderr.contains("numbers of shards differ"), "{}", ended.stderr);
    }
}

#[test]
fn a_blank_disk_under_an_old_name_is_refused() {
    let _timed = timed("a blank disk");
    let trio = Trio::new("founding-blank", &["--shards", "1"]);
    let mut nodes = [0, 1, 2].map(|at| Some(trio.spawn(at)));
    for node in nodes.iter().flatten() {
        node.until_it_answers();
    }
    nodes[2].take().expect("it runs").kill();
    trio.blank(2);
    let ended = trio.spawn(2).wait();
    assert_eq!(ended.code(), Some(78), "{ended:#?}");
    assert!(ended.stderr.contains("blank disk under an old name"), "{}", ended.stderr);
}

/// Two processes of one node could vote twice, and would fight for its connections.
#[test]
fn a_copy_of_a_data_directory_is_refused_beside_its_original() {
    let _timed = timed("a copy of a data directory");
    let trio = Trio::new("founding-copy", &["--shards", "2"]);
    let nodes = [0, 1, 2].map(|at| trio.spawn(at));
    for node in &nodes {
        node.until_it_answers();
        node.ask_until_success(&json!({"command": "INCR", "key": "n"}));
    }
    // A node that has not heard the original yet takes the first that calls: OPERATIONS.md says what may be lost then.
    for node in [&nodes[0], &nodes[2]] {
        eventually("the original is heard", Duration::from_secs(20), || {
            node.ask(&json!({"command": "CLUSTER"}))["result"]["nodes"][1]["heard_ms_ago"].is_u64()
        });
    }
    let refusals = || {
        let figure = |node: &support::cluster::Node| {
            node.ask(&json!({"command": "INFO"}))["result"]["peers"]["refused_stranger"].as_u64()
        };
        [0, 2].map(|at| figure(&nodes[at]).unwrap_or(0))
    };
    let before = refusals();
    let copy = trio.spawn_copy(1, 3);
    eventually("both others refuse it", Duration::from_secs(20), || {
        refusals().iter().zip(before).all(|(now, before)| *now > before)
    });
    let said = nodes[0].stderr();
    assert!(said.contains("node n2 runs already at 127.0.0.1:"), "{said}");
    let told = |from: &str| from.matches("runs already").count();
    std::thread::sleep(Duration::from_secs(2));
    assert!(told(&nodes[0].stderr()) <= 2, "a caller that keeps calling does not fill the log");
    // The original is where it was, and nobody is disturbed.
    let known = nodes[2].ask(&json!({"command": "CLUSTER"}))["result"]["nodes"][1].clone();
    assert_eq!(known["address"], format!("127.0.0.1:{}", trio.port(1)), "{known}");
    assert_eq!(nodes[1].ask_until_success(&json!({"command": "INCR", "key": "n"}))["result"], 4);
    // It cannot know that it is the copy. It is told so for a while by those who know another one, and ends.
    let ended = copy.wait_from_now();
    assert_eq!(ended.code(), Some(78), "{ended:#?}");
    assert!(ended.stderr.contains("refuses this process, since node n2 runs already"), "{}", ended.stderr);
    // A node that starts again is another life of it and is let in.
    let [first, second, third] = nodes;
    second.kill();
    let again = trio.spawn_without_peers(1);
    again.until_it_answers();
    assert_eq!(again.ask_until_success(&json!({"command": "INCR", "key": "n"}))["result"], 5);
    drop([first, third]);
}

/// Nobody is there to tell a copy from its original: neither of them does anything alone, and the first of the others that comes
/// takes one of them and refuses the other, which ends.
#[test]
fn of_two_copies_that_start_before_the_others_one_ends() {
    let _timed = timed("two copies of a data directory");
    let trio = Trio::new("founding-copies", &["--shards", "2"]);
    let nodes = [0, 1, 2].map(|at| trio.spawn(at));
    for node in &nodes {
        node.until_it_answers();
        node.ask_until_success(&json!({"command": "INCR", "key": "n"}));
    }
    for node in nodes {
        node.kill();
    }
    let mut copies = vec![trio.spawn_copy(1, 3), trio.spawn_without_peers(1)];
    for copy in &copies {
        copy.until_it_answers();
        let refused = copy.ask(&json!({"command": "INCR", "key": "n", "timeout_ms": 1500}));
        assert_eq!(refused["code"], "NO_QUORUM", "{refused}");
    }
    let first = trio.spawn_without_peers(0);
    let mut over = None;
    eventually("one of the two ends", Duration::from_secs(30), || {
        over = copies.iter_mut().position(support::cluster::Node::has_ended);
        over.is_some()
    });
    let ended = copies.swap_remove(over.expect("it ended")).wait_from_now();
    assert_eq!(ended.code(), Some(78), "{ended:#?}");
    assert!(ended.stderr.contains("Keep one of the two data directories"), "{}", ended.stderr);
    // What is left is the cluster that it was.
    assert_eq!(first.ask_until_success(&json!({"command": "INCR", "key": "n"}))["result"], 4);
    let third = trio.spawn_without_peers(2);
    third.until_it_answers();
    assert_eq!(third.ask_until_success(&json!({"command": "INCR", "key": "n"}))["result"], 5);
    assert!(!copies[0].has_ended(), "{}", copies[0].stderr());
}

#[test]
fn a_node_with_another_id_or_a_weaker_floor_does_not_start() {
    let _timed = timed("another id");
    let trio = Trio::new("founding-id", &["--shards", "1"]);
    let nodes = [0, 1, 2].map(|at| trio.spawn(at));
    for node in &nodes {
        node.until_it_answers();
    }
    for node in nodes {
        node.signal(Signal::Kill);
        drop(node);
    }
    let ended = trio.spawn_as(0, "other").wait();
    assert_eq!(ended.code(), Some(78), "{ended:#?}");
    let ended = trio.spawn_with(0, &["--wal-sync", "interval:100"]).wait();
    assert_eq!(ended.code(), Some(78), "{ended:#?}");
    assert!(ended.stderr.contains("wal.sync"), "{}", ended.stderr);
}

#[test]
fn a_node_with_a_cluster_port_is_a_cluster_of_one() {
    let _timed = timed("a cluster of one");
    let trio = Trio::new("founding-one", &["--shards", "2"]);
    let node = trio.spawn_alone(0);
    node.until_it_answers();
    assert_eq!(node.ask_until_success(&json!({"command": "SET", "key": "k", "value": 1}))["result"], "OK");
    assert!(node.stderr().contains("cluster of one"), "{}", node.stderr());
    node.stop();
    let node = trio.spawn_without_peers(0);
    assert_eq!(node.ask_until_success(&json!({"command": "GET", "key": "k"}))["result"], 1);
}
