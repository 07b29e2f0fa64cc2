//! Where clients come in: the shards' own ports of `router.mode = "inline"`, several threads on the common port, and who is
//! refused there.

mod support;

use serde_json::{Value, json};
use std::process::Command;
use std::time::Duration;
use support::client::Connection;
use support::server::{Server, Setup};
use support::{eventually, timed};

/// Runs a test against a server whose shards serve clients themselves, which must then stop in good order.
fn with_inline(name: &'static str, shards: &str, test: impl FnOnce(&Server)) {
    let _timed = timed(name);
    let setup = Setup::small("ports").with(&["--shards", shards]).set(&["router.mode=inline"]);
    let server = setup.start();
    test(&server);
    server.stop();
}

/// The ports of the shards by their slots, as HELLO tells them.
fn ports(server: &Server) -> Vec<u16> {
    let hello = server.get(&json!({"command": "HELLO"}));
    let slots = hello["slots"].as_array().expect("a list of ranges");
    let port = |range: &Value| u16::try_from(range["port"].as_u64().expect("a port")).expect("a port");
    slots.iter().map(port).collect()
}

fn set(key: &str, value: usize) -> Value {
    json!({"command": "SET", "key": key, "value": value})
}

#[test]
fn every_port_takes_every_command() {
    for shards in ["1", "3"] {
        with_inline("every port", shards, |server| {
            let own = ports(server);
            assert_eq!(own.len(), shards.parse::<usize>().expect("a number"));
            assert!(own.iter().all(|port| *port != server.port()), "a port of its own each");
            for (number, port) in own.iter().chain(&[server.port()]).enumerate() {
                let mut c = Connection::open(*port).expect("the shard listens");
                // One pipeline over keys of all shards, with commands that gather between them.
                let mut requests: Vec<Value> = (0..200).map(|n| set(&format!("p{number}k{n}"), n)).collect();
                let keys: Vec<String> = (0..200).map(|n| format!("p{number}k{n}")).collect();
                requests.push(json!({"command": "BULK_GET", "keys": keys}));
                requests
                    .push(json!({"command": "BULK_SET", "items": {&keys[0]: "fox", &keys[1]: "fox den"}}));
                requests.push(json!({"command": "SEARCH", "query": "fox", "top_k": 100}));
                requests.extend(keys.iter().map(|key| json!({"command": "GET", "key": key})));
                let replies = c.pipeline(&requests);
                let bulk = replies[200]["result"].as_object().expect("an object");
                assert!(keys.iter().enumerate().all(|(n, key)| bulk[key] == n));
                assert_eq!(replies[201]["result"], 2);
                let hits = replies[202]["result"].as_array().expect("hits").len();
                assert_eq!(hits, 2 * (number + 1), "the documents of all shards: {}", replies[202]);
                for (n, reply) in replies[203..].iter().enumerate().skip(2) {
                    assert_eq!(reply["result"], n, "{reply}");
                }
            }
            let info = server.get(&json!({"command": "INFO"}));
            assert_eq!(info["keys"], 200 * (own.len() + 1));
        });
    }
}

#[test]
fn the_ports_may_be_fixed() {
    let _timed = timed("fixed ports");
    let first = support::server::free_port() + 700;
    let setup = Setup::small("ports").with(&["--shards", "3"]);
    let setup = setup.set(&["router.mode=inline", &format!("router.shard_port={first}")]);
    let server = setup.start();
    assert_eq!(ports(&server), [first, first + 1, first + 2]);
    server.stop();
    let beyond = setup.set(&["router.shard_port=65534"]);
    let ended = beyond.try_start().expect_err("shard 2 has no port");
    assert_eq!(ended.code(), Some(78), "{ended:#?}");
    assert!(ended.stderr.contains("router.shard_port"), "{}", ended.stderr);
}

/// Several threads serve the common port; INFO, whoever answers it, tells of all of them.
fn check_many_threads(setup: &Setup, threads: usize) {
    let server = setup.start();
    let mut connections: Vec<Connection> = (0..48).map(|_| server.connect()).collect();
    for (number, c) in connections.iter_mut().enumerate() {
        for n in 0..20 {
            c.queue(&set(&format!("c{number}k{n}"), n));
        }
        c.flush().expect("the server reads");
    }
    for c in &mut connections {
        for _ in 0..20 {
            assert_eq!(c.receive().expect("a reply")["result"], "OK");
        }
    }
    let router = || server.get(&json!({"command": "INFO"}))["router"].clone();
    assert_eq!(router()["routers"], threads);
    for _ in 0..10 {
        eventually("figures of all threads together", Duration::from_secs(5), || router()["sent"] == 960);
    }
    let other = Setup::small("ports-other").set(&["router.mode=inline"]);
    let refused = other.run_to_its_end(&other.data(), server.port());
    assert_eq!(refused.code(), Some(75), "a second server on the port: {refused:#?}");
    let other = Setup::small("ports-other").set(&["router.threads=2"]);
    let refused = other.run_to_its_end(&other.data(), server.port());
    assert_eq!(refused.code(), Some(75), "a second server on the port: {refused:#?}");
    server.stop();
}

#[test]
fn several_routers_share_the_port() {
    let _timed = timed("several routers");
    check_many_threads(&Setup::small("ports").set(&["router.threads=3"]), 3);
}

#[test]
fn several_shards_share_the_port() {
    let _timed = timed("several shards on the port");
    let setup = Setup::small("ports").with(&["--shards", "3"]).set(&["router.mode=inline"]);
    check_many_threads(&setup, 3);
}

#[test]
fn the_bound_on_connections_is_one_for_all_threads() {
    let _timed = timed("connections over all threads");
    let setup = Setup::small("ports").with(&["--shards", "3"]);
    let setup = setup.set(&["router.mode=inline", "limits.connections_max=20"]);
    let server = setup.start();
    let own = ports(&server);
    // The connection that asked may take a moment to be gone.
    eventually("all twenty are let in", Duration::from_secs(5), || {
        let mut held: Vec<Connection> =
            (0..20).map(|n| Connection::open(own[n % 3]).expect("it listens")).collect();
        let ping = json!({"command": "PING"});
        let is_in = |c: &mut Connection| c.try_ask(&ping).is_ok_and(|reply| reply["result"] == "PONG");
        if !held.iter_mut().all(is_in) {
            return false;
        }
        for port in own.iter().chain(&[server.port()]) {
            let mut more = Connection::open(*port).expect("it listens");
            assert_eq!(more.receive().expect("it is told why")["code"], "OVERLOADED");
        }
        true
    });
    server.stop();
}

#[test]
fn the_generator_goes_to_each_shards_own_port() {
    with_inline("strand bench --shard-aware", "3", |server| {
        let bench = |flags: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_strand"));
            command.args([
                "bench",
                "mixed",
                "--json",
                "--keys",
                "500",
                "--duration",
                "0.3",
                "--warm-up",
                "0",
            ]);
            command.args(["--connections", "7", "--depth", "8", "--threads", "2"]);
            command.args(["--address", &format!("127.0.0.1:{}", server.port())]).args(flags);
            command.output().expect("the binary was built for this test")
        };
        let output = bench(&["--shard-aware"]);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{told}");
        let report: Value = serde_json::from_slice(&output.stdout).expect("a report");
        let phase = &report["phases"][1];
        assert!(phase["requests"].as_u64().is_some_and(|requests| requests > 100), "{report}");
        assert_eq!((&phase["errors"], &phase["wrong"], &phase["absent"]), (&json!(0), &json!(0), &json!(0)));
    });
    let setup = Setup::small("ports");
    let server = setup.start();
    let mut command = Command::new(env!("CARGO_BIN_EXE_strand"));
    command.args(["bench", "mixed", "--shard-aware", "--duration", "0.1", "--warm-up", "0"]);
    let address = format!("127.0.0.1:{}", server.port());
    let output = command.args(["--address", &address]).output().expect("the binary was built for this test");
    assert!(!output.status.success());
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("router.mode=inline"), "{told}");
    server.stop();
}

#[test]
fn a_client_that_knows_the_shards_reads_what_others_write() {
    with_inline("a shard-aware client", "3", |server| {
        let options = strand_client::ClientOptions { shard_aware: true, ..Default::default() };
        let address = format!("127.0.0.1:{}", server.port());
        let mut aware = strand_client::Client::connect_with(&[&address], options).expect("it listens");
        let mut other = strand_client::Client::connect(&address).expect("it listens");
        for n in 0..100 {
            let key = format!("k{n}");
            aware.set(&key, &n).expect("a write");
            assert_eq!(other.get_as::<i32>(&key).expect("a read"), Some(n));
        }
        let before = server.get(&json!({"command": "INFO"}))["router"]["sent"].clone();
        let mut pipeline = aware.pipeline();
        for n in 0..100 {
            pipeline.incr(&format!("k{n}"), 1);
        }
        pipeline.command(strand_client::Command::bulk_set([("k0", 7)]).expect("it can be written"));
        pipeline.get("k0");
        let replies = pipeline.send();
        for (n, reply) in replies[..100].iter().enumerate() {
            let counted = reply.as_ref().expect("a write").result::<usize>().expect("a number");
            assert_eq!(counted, n + 1);
        }
        let last = replies[101].as_ref().expect("a read").result::<usize>().expect("a number");
        assert_eq!(last, 7, "behind the write of several keys");
        assert!(before.as_u64().is_some_and(|sent| sent > 0), "{before}");
    });
}
