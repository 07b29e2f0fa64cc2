//! Damage to one node's files, with real processes: the group's other replicas fill a new one, the damaged files are kept, and
//! nothing acknowledged is lost. Where the others are no majority the node refuses as a lone one does.

mod support;

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::client::Connection;
use support::cluster::{Node, Trio};
use support::random::Random;
use support::{eventually, timed};

/// Longest wait for a replica to be filled and to vote.
const PATIENCE: Duration = Duration::from_secs(60);
/// Keys written before the damage.
const KEYS: u64 = 600;

fn key(number: u64) -> String {
    format!("key-{number}")
}

/// Writes the same keys again with this round in their values; every write is acknowledged.
fn write(node: &Node, round: u64) {
    let mut connection = Connection::open(node.port()).expect("the node listens");
    for from in (0..KEYS).step_by(50) {
        let request = |number: u64| {
            json!({
                "command": "SET", "key": key(number), "value": format!("{round}-{number}-{}", "v".repeat(200)),
                "client": format!("repair-{round}"), "seq": number + 1,
            })
        };
        let requests: Vec<Value> = (from..from + 50).map(request).collect();
        for reply in connection.pipeline(&requests) {
            assert_eq!(reply["result"], "OK", "{reply}");
        }
    }
}

/// Every key as one node itself has it, whoever leads.
fn local(node: &Node) -> BTreeMap<String, Value> {
    let mut connection = Connection::open(node.port()).expect("the node listens");
    let get = |number: u64| json!({"command": "GET", "key": key(number), "consistency": "local", "with_version": true});
    let requests: Vec<Value> = (0..KEYS).map(get).collect();
    let mut found = BTreeMap::new();
    for (number, reply) in connection.pipeline(&requests).into_iter().enumerate() {
        found.insert(key(number as u64), json!([reply["result"], reply["version"]]));
    }
    found
}

fn cluster(node: &Node) -> Value {
    node.ask(&json!({"command": "CLUSTER"}))["result"].clone()
}

/// Whether every group has three voters that have everything.
fn is_whole(cluster: &Value) -> bool {
    let groups = cluster["groups"].as_array().expect("groups");
    groups.iter().all(|group| {
        let replicas = group["replicas"].as_array().map_or(&[][..], Vec::as_slice);
        replicas.len() == 3
            && replicas.iter().all(|one| one["role"] == "voter" && one["lag"] == 0 && one["active"] == true)
    })
}

/// Files of a shard whose names begin so.
fn files(shard: &Path, prefix: &str) -> Vec<PathBuf> {
    let listed = fs::read_dir(shard).expect("the shard has a directory");
    let mut paths: Vec<PathBuf> = listed.map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        name.starts_with(prefix) && !name.ends_with(".tmp")
    });
    paths.sort();
    paths
}

/// Flips bits in the middle of what is written in a file.
fn damage(path: &Path, random: &mut Random) {
    let mut bytes = fs::read(path).expect("the file can be read");
    let used = bytes.iter().rposition(|byte| *byte != 0).expect("something is written there") + 1;
    for _ in 0..8 {
        let at = used / 4 + random.below(used as u64 / 4) as usize;
        bytes[at] ^= 1 << random.below(8);
    }
    fs::write(path, bytes).expect("the file can be written");
}

fn found(trio: &Trio, copies: usize) -> Vec<Option<Node>> {
    let nodes: Vec<Option<Node>> = (0..copies).map(|at| Some(trio.spawn(at))).collect();
    for node in nodes.iter().flatten() {
        node.until_it_answers();
        node.ask_until_success(&json!({"command": "GET", "key": "any"}));
    }
    nodes
}

fn repair(name: &str, spoil: impl Fn(&Path, &mut Random)) {
    let trio = Trio::new(name, &["--shards", "2", "--set", "snapshot.every_s=1"]);
    let mut nodes = found(&trio, 3);
    let mut random = Random::new(7);
    write(nodes[0].as_ref().expect("it runs"), 0);
    eventually("every node has a snapshot", PATIENCE, || {
        (0..3).all(|at| !files(&trio.data(at).join("shard-0001"), "snap-").is_empty())
    });
    write(nodes[0].as_ref().expect("it runs"), 1);
    eventually("all replicas have everything", PATIENCE, || {
        is_whole(&cluster(nodes[0].as_ref().expect("it runs")))
    });
    for round in 0..2 {
        let victim = 2 - round;
        nodes[victim].take().expect("it runs").kill();
        spoil(&trio.data(victim).join("shard-0001"), &mut random);
        // Acknowledged by the two others while the damage is not known.
        let other = (victim + 1) % 3;
        write(nodes[other].as_ref().expect("it runs"), 2 + round as u64);
        let back = trio.spawn_without_peers(victim);
        back.until_it_answers();
        nodes[victim] = Some(back);
        let back = nodes[victim].as_ref().expect("it runs");
        assert!(back.stderr().contains("kept under another name"), "{}", back.stderr());
        eventually("the new replica votes and has everything", PATIENCE, || is_whole(&cluster(back)));
        write(nodes[other].as_ref().expect("it runs"), 10 + round as u64);
        eventually("all have everything", PATIENCE, || is_whole(&cluster(back)));
        let expected = local(nodes[other].as_ref().expect("it runs"));
        let newest = format!("{}-7-", 10 + round);
        assert!(
            expected[&key(7)][0].as_str().is_some_and(|value| value.starts_with(&newest)),
            "{expected:?}"
        );
        for node in nodes.iter().flatten() {
            eventually("every node has the same", PATIENCE, || local(node) == expected);
        }
        let info = back.ask(&json!({"command": "INFO"}))["result"].clone();
        assert_eq!(info["set_aside"], json!(["shard-0001.damaged-1"]), "{info}");
        assert!(trio.data(victim).join("shard-0001.damaged-1/manifest").exists(), "what was damaged is kept");
    }
    // The repaired one counts: with the other node gone it makes the majority.
    nodes[0].take().expect("it runs").kill();
    nodes[2]
        .as_ref()
        .expect("it runs")
        .ask_until_success(&json!({"command": "SET", "key": "after", "value": 1}));
    // A restart of the repaired node finds its new replica sound.
    nodes[1].take().expect("it runs").kill();
    let again = trio.spawn_without_peers(1);
    again.until_it_answers();
    let reply = again.ask_until_success(&json!({"command": "GET", "key": "after"}));
    assert_eq!(reply["result"], 1);
}

#[test]
fn a_damaged_log_is_replaced_from_the_other_nodes() {
    let _timed = timed("repair of a log");
    repair("repair-log", |shard, random| {
        let segments = files(shard, "wal-");
        let written = segments.iter().filter(|path| {
            fs::read(path).expect("the file can be read").iter().take(1 << 16).any(|byte| *byte != 0)
        });
        written.for_each(|path| damage(path, random));
    });
}

#[test]
fn a_damaged_snapshot_is_replaced_from_the_other_nodes() {
    let _timed = timed("repair of a snapshot");
    repair("repair-snapshot", |shard, random| {
        let snapshots = files(shard, "snap-");
        let newest = snapshots.last().expect("there is a snapshot");
        damage(newest, random);
    });
}

#[test]
fn a_directory_that_is_gone_is_replaced_from_the_other_nodes() {
    let _timed = timed("repair of a directory that is gone");
    let trio = Trio::new("repair-gone", &["--shards", "2"]);
    let mut nodes = found(&trio, 3);
    write(nodes[0].as_ref().expect("it runs"), 0);
    for _ in 0..2 {
        nodes[1].take().expect("it runs").kill();
        fs::remove_dir_all(trio.data(1).join("shard-0000")).expect("the shard has a directory");
        let back = trio.spawn_without_peers(1);
        back.until_it_answers();
        eventually("the new replica votes", PATIENCE, || is_whole(&cluster(&back)));
        nodes[1] = Some(back);
    }
    write(nodes[2].as_ref().expect("it runs"), 1);
    eventually("all have everything", PATIENCE, || is_whole(&cluster(nodes[2].as_ref().expect("it runs"))));
    let expected = local(nodes[0].as_ref().expect("it runs"));
    eventually("every node has the same", PATIENCE, || {
        local(nodes[1].as_ref().expect("it runs")) == expected
    });
}

/// Of two copies one is no majority: nobody could take the lost replica's place, so the node says that its data is damaged.
#[test]
fn with_two_copies_damage_still_stops_the_node() {
    let _timed = timed("damage with two copies");
    let trio = Trio::new("repair-two", &["--shards", "1", "--set", "cluster.replicas=2"]);
    let mut nodes = found(&trio, 3);
    write(nodes[0].as_ref().expect("it runs"), 0);
    let groups = cluster(nodes[0].as_ref().expect("it runs"))["groups"].clone();
    let holder = groups[0]["replicas"][0]["node"].as_str().expect("a node holds it").to_owned();
    let victim = usize::from(holder.as_bytes()[1] - b'1');
    nodes[victim].take().expect("it runs").kill();
    let manifest = trio.data(victim).join("shard-0000/manifest");
    let before = fs::read(&manifest).expect("there is a manifest");
    fs::write(&manifest, vec![0xff; before.len()]).expect("it can be written");
    let ended = trio.spawn_without_peers(victim).wait();
    assert_eq!(ended.code(), Some(70), "{ended:#?}");
    fs::write(&manifest, before).expect("it can be written");
    let back = trio.spawn_without_peers(victim);
    back.until_it_answers();
    back.ask_until_success(&json!({"command": "GET", "key": key(1)}));
}
