//! The end of a cluster's nodes in good order: also when all of them go at once, so that what is under way finds no quorum.

mod support;

use serde_json::json;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::client::Connection;
use support::cluster::{Node, Trio};
use support::system::Signal;
use support::timed;

/// Writes to a node until it goes.
fn load(port: u16, enough: &AtomicBool) {
    let Ok(mut connection) = Connection::open(port) else { return };
    for n in 0.. {
        let write = json!({"command": "SET", "key": format!("k{}", n % 100), "value": n, "timeout_ms": 500});
        if enough.load(Ordering::Relaxed) || connection.try_ask(&write).is_err() {
            return;
        }
    }
}

#[test]
fn nodes_that_are_all_stopped_at_once_end_in_good_order() {
    let _timed = timed("stopping a whole cluster");
    let trio = Trio::new("cluster-stop", &["--shards", "3"]);
    let mut nodes: Vec<Node> = (0..3).map(|at| trio.spawn(at)).collect();
    for round in 0..3 {
        nodes.iter().for_each(Node::until_it_answers);
        let enough = AtomicBool::new(false);
        let ended = std::thread::scope(|scope| {
            for writer in 0..6 {
                let (port, enough) = (trio.port(writer % 3), &enough);
                scope.spawn(move || load(port, enough));
            }
            std::thread::sleep(Duration::from_millis(300));
            nodes.iter().for_each(|node| node.signal(Signal::Terminate));
            let ended: Vec<_> = nodes.drain(..).map(Node::wait).collect();
            enough.store(true, Ordering::Relaxed);
            ended
        });
        for node in &ended {
            assert_eq!(node.code(), Some(0), "round {round}: {node:#?}");
            assert!(node.stderr.contains("stopped in good order"), "{node:#?}");
        }
        nodes = (0..3).map(|at| trio.spawn_without_peers(at)).collect();
    }
}
