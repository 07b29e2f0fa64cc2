//! A cluster's life under load: nodes that are killed and come back, nodes that join and leave. Nothing acknowledged is
//! lost, counters with retries are exact, batches are whole, and nobody reads the past.

mod support;

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use support::client::Connection;
use support::cluster::{Node, Trio};
use support::random::Random;
use support::system::Signal;
use support::{eventually, from_environment, say, timed};

/// Longest that one request is tried again and again.
const PATIENCE: Duration = Duration::from_secs(60);
/// A node is killed this long after it answered.
const CALM: Duration = Duration::from_millis(700);
/// Longest that a request may take while nodes come and go: the bound that is aimed at is two seconds, the rest is for a machine
/// that runs other tests beside this one.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A value of which there are many enough to be seen in a node's memory.
const FILLING_BYTES: usize = 1024;
/// How many.
const FILLINGS: usize = 6000;

/// Sends a request to one node after another until one of them succeeds. The request must be safe to say twice.
fn insist(ports: &[u16], at: &mut usize, connection: &mut Option<Connection>, request: &Value) -> Value {
    let begun = Instant::now();
    loop {
        if connection.is_none() {
            *connection = Connection::open(ports[*at]).ok();
        }
        let reply = connection.as_mut().and_then(|open| open.try_ask(request).ok());
        match reply {
            Some(reply) if reply["status"] == "success" => return reply,
            Some(reply) => {
                let retry = reply["retry"].as_str().unwrap_or("never");
                assert_ne!(retry, "never", "{request} was refused for good: {reply}");
            }
            None => *connection = None,
        }
        assert!(begun.elapsed() < PATIENCE, "{request} found no answer");
        *at = (*at + 1) % ports.len();
        *connection = None;
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// One client that writes its own keys and checks what it reads.
struct Writer {
    name: String,
    ports: Vec<u16>,
    stop: Arc<AtomicBool>,
    longest_us: Arc<AtomicU64>,
    longest_of_one_key_us: Arc<AtomicU64>,
}

/// What a client has done.
struct Done {
    name: String,
    counted: u64,
    registers: BTreeMap<String, u64>,
    tag: u64,
    requests: u64,
}

impl Writer {
    fn run(self) -> Done {
        let Self { name, ports, stop, longest_us, longest_of_one_key_us } = self;
        let mut random = Random::new(name.bytes().map(u64::from).sum());
        let (mut at, mut connection) = (0, None);
        let mut done =
            Done { name: name.clone(), counted: 0, registers: BTreeMap::new(), tag: 0, requests: 0 };
        while !stop.load(Ordering::Acquire) {
            let seq = done.requests + 1;
            let begun = Instant::now();
            let session = |mut request: Value| {
                request["client"] = json!(name);
                request["seq"] = json!(seq);
                request
            };
            let mut ask = |request: &Value| insist(&ports, &mut at, &mut connection, request);
            let kind = random.below(4);
            match kind {
                0 => {
                    let reply = ask(&session(
                        json!({"command": "INCR", "key": format!("{name}-n"), "timeout_ms": 2000}),
                    ));
                    done.counted += 1;
                    assert_eq!(reply["result"], done.counted, "a counter counts each request once");
                }
                1 => {
                    let key = format!("{name}-{}", random.below(8));
                    ask(&session(json!({"command": "SET", "key": key, "value": seq, "timeout_ms": 2000})));
                    done.registers.insert(key, seq);
                }
                2 => {
                    done.tag = seq;
                    let items: BTreeMap<String, u64> =
                        (0..4).map(|n| (format!("{name}-t{n}"), seq)).collect();
                    ask(&session(json!({"command": "BULK_SET", "items": items, "timeout_ms": 2000})));
                }
                _ => {
                    let key = format!("{name}-{}", random.below(8));
                    let reply = ask(&json!({"command": "GET", "key": key, "timeout_ms": 2000}));
                    let known = done.registers.get(&key).map_or(Value::Null, |seq| json!(seq));
                    assert_eq!(reply["result"], known, "{key}: a read sees the last write");
                }
            }
            done.requests = seq;
            let took_us = begun.elapsed().as_micros() as u64;
            longest_us.fetch_max(took_us, Ordering::AcqRel);
            if kind != 2 {
                longest_of_one_key_us.fetch_max(took_us, Ordering::AcqRel);
            }
        }
        done
    }
}

/// Clients under way.
struct Load {
    stop: Arc<AtomicBool>,
    longest_us: Arc<AtomicU64>,
    longest_of_one_key_us: Arc<AtomicU64>,
    writers: Vec<JoinHandle<Done>>,
}

impl Load {
    fn begin(ports: &[u16], clients: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let [longest_us, longest_of_one_key_us] = [0, 0].map(|us| Arc::new(AtomicU64::new(us)));
        let begin = |number: usize| {
            let writer = Writer {
                name: format!("w{number}"),
                ports: ports.to_vec(),
                stop: Arc::clone(&stop),
                longest_us: Arc::clone(&longest_us),
                longest_of_one_key_us: Arc::clone(&longest_of_one_key_us),
            };
            std::thread::spawn(move || writer.run())
        };
        let writers = (0..clients).map(begin).collect();
        Self { stop, longest_us, longest_of_one_key_us, writers }
    }

    /// The longest that a request took since this was last asked.
    fn take_longest(&self) -> Duration {
        Duration::from_micros(self.longest_us.swap(0, Ordering::AcqRel))
    }

    /// As [`Load::take_longest`], of requests on one key.
    fn take_longest_of_one_key(&self) -> Duration {
        Duration::from_micros(self.longest_of_one_key_us.swap(0, Ordering::AcqRel))
    }

    /// Ends the load and compares every key with what was acknowledged, as each of these nodes reads it.
    fn end(self, ports: &[u16]) -> u64 {
        self.stop.store(true, Ordering::Release);
        let all: Vec<Done> =
            self.writers.into_iter().map(|writer| writer.join().expect("a client")).collect();
        for (at, _) in ports.iter().enumerate() {
            let (mut at, mut connection) = (at, None);
            for done in &all {
                let name = &done.name;
                let mut get = |key: &str| {
                    let request = json!({"command": "GET", "key": key});
                    insist(ports, &mut at, &mut connection, &request)["result"].clone()
                };
                if done.counted > 0 {
                    assert_eq!(get(&format!("{name}-n")), done.counted);
                }
                for (key, seq) in &done.registers {
                    assert_eq!(get(key), *seq, "{key}");
                }
                for n in 0..4 {
                    let expected = if done.tag > 0 { json!(done.tag) } else { Value::Null };
                    assert_eq!(get(&format!("{name}-t{n}")), expected, "a batch is whole");
                }
            }
        }
        all.iter().map(|done| done.requests).sum()
    }
}

fn answers(node: &Node) {
    node.until_it_answers();
    node.ask_until_success(&json!({"command": "GET", "key": "any"}));
}

#[test]
fn any_node_may_be_killed_under_load() {
    let _timed = timed("kill -9 of one node of three");
    let rounds = from_environment("STRAND_CLUSTER_ROUNDS", 3);
    let trio = Trio::new("life-kill", &["--shards", "3"]);
    let mut nodes = [0, 1, 2].map(|at| Some(trio.spawn(at)));
    nodes.iter().flatten().for_each(answers);
    let ports = [0, 1, 2].map(|at| trio.port(at));
    let load = Load::begin(&ports, 4);
    let mut random = Random::new(rounds);
    let mut gaps = Vec::new();
    for _ in 0..rounds {
        std::thread::sleep(CALM);
        load.take_longest();
        let victim = random.below(3) as usize;
        nodes[victim].take().expect("it runs").kill();
        std::thread::sleep(Duration::from_millis(1500 + random.below(1500)));
        gaps.push(load.take_longest());
        let node = trio.spawn_without_peers(victim);
        answers(&node);
        nodes[victim] = Some(node);
    }
    let requests = load.end(&ports);
    gaps.sort_unstable();
    say(&format!("{requests} requests; longest of a round: {gaps:?}"));
    assert!(requests > rounds * 20, "a load that does nothing proves nothing");
}

/// A stop in good order hands leadership over first, and nobody offers it back while the process is still there: writers
/// wait for a round of messages and not for an election.
#[test]
fn a_stop_in_good_order_is_hardly_noticed() {
    let _timed = timed("stops in good order under load");
    let trio = Trio::new("life-stop", &["--shards", "6"]);
    let mut nodes = [0, 1, 2].map(|at| Some(trio.spawn(at)));
    nodes.iter().flatten().for_each(answers);
    let ports = [0, 1, 2].map(|at| trio.port(at));
    let load = Load::begin(&ports, 4);
    let (mut pauses, mut of_batches) = (Vec::new(), Vec::new());
    for round in 0..6 {
        std::thread::sleep(CALM);
        eventually("each node leads something", PATIENCE, || {
            let reply = nodes[0].as_ref().expect("it runs").ask(&json!({"command": "CLUSTER"}));
            is_even(&reply["result"], &["n1", "n2", "n3"], 3)
        });
        load.take_longest();
        load.take_longest_of_one_key();
        let victim = round % 3;
        nodes[victim].take().expect("it runs").stop();
        std::thread::sleep(Duration::from_millis(1500));
        pauses.push(load.take_longest_of_one_key());
        of_batches.push(load.take_longest());
        let node = trio.spawn_without_peers(victim);
        answers(&node);
        nodes[victim] = Some(node);
    }
    let requests = load.end(&ports);
    pauses.sort_unstable();
    // A step of a batch over several groups that a leader of one of them did not hear is said again to the next one at once.
    of_batches.sort_unstable();
    say(&format!("{requests} requests; longest of a stop: {pauses:?}, with batches {of_batches:?}"));
    assert!(pauses[pauses.len() / 2] < Duration::from_millis(300), "{pauses:?}");
    // A step that is lost with a leader is said again after half a second at the latest.
    assert!(of_batches[of_batches.len() / 2] < Duration::from_millis(800), "{of_batches:?}");
}

/// Writes values that fill the nodes.
fn fill(port: u16) {
    let mut connection = Connection::open(port).expect("the node listens");
    let value = "v".repeat(FILLING_BYTES);
    for from in (0..FILLINGS).step_by(100) {
        let items: BTreeMap<String, &str> =
            (from..from + 100).map(|number| (format!("fill-{number}"), value.as_str())).collect();
        let set = json!({"command": "BULK_SET", "items": items, "client": "fill", "seq": from, "timeout_ms": 20000});
        let begun = Instant::now();
        while connection.ask(&set)["status"] != "success" {
            assert!(begun.elapsed() < PATIENCE, "a batch is not taken");
        }
    }
}

/// Bytes that a node's replicas hold, as INFO tells.
fn held_bytes(node: &Node) -> u64 {
    let info = node.ask(&json!({"command": "INFO"}))["result"].clone();
    let shards = info["shards"].as_array().expect("figures of each shard");
    shards.iter().filter_map(|shard| shard["memory_bytes"].as_u64()).sum()
}

#[test]
fn nodes_join_and_leave_under_load() {
    let _timed = timed("nodes that join and leave");
    let trio = Trio::new("life-members", &["--shards", "16"]);
    let mut nodes: Vec<Option<Node>> = (0..3).map(|at| Some(trio.spawn(at))).collect();
    nodes.iter().flatten().for_each(answers);
    let ports: Vec<u16> = (0..5).map(|at| trio.port(at)).collect();
    fill(ports[0]);
    let held_by_three = held_bytes(nodes[1].as_ref().expect("it runs"));
    let load = Load::begin(&ports[..3], 3);
    for at in [3, 4] {
        let node = trio.spawn_joining(at, 1);
        eventually("a member hears of it", PATIENCE, || {
            let id = format!("n{}", at + 1);
            let reply = nodes[1].as_ref().expect("it runs").ask(&json!({"command": "ADD_NODE", "node": id}));
            reply["status"] == "success"
        });
        answers(&node);
        nodes.push(Some(node));
    }
    let asked = |at: usize| nodes[at].as_ref().expect("it runs").ask(&json!({"command": "CLUSTER"}));
    eventually("replicas and leaders are even", PATIENCE, || {
        is_even(&asked(4)["result"], &["n1", "n2", "n3", "n4", "n5"], 3)
    });
    let joining = load.take_longest();
    // Each of five holds three fifths of what each of three held.
    for node in nodes.iter().flatten() {
        let held = held_bytes(node);
        let share = held as f64 / held_by_three as f64;
        assert!((0.4..0.8).contains(&share), "{held} of {held_by_three} bytes");
    }
    // Every key is read from every node, whether or not it has a replica of the group.
    for node in nodes.iter().flatten() {
        let get =
            |number: usize| json!({"command": "GET", "key": format!("fill-{number}"), "timeout_ms": 10000});
        let mut connection = Connection::open(node.port()).expect("the node listens");
        for reply in connection.pipeline(&(0..FILLINGS).step_by(50).map(get).collect::<Vec<_>>()) {
            assert_eq!(reply["result"].as_str().map(str::len), Some(FILLING_BYTES), "{reply}");
        }
    }
    // One leaves alive, one is dead: both may have led.
    assert_eq!(asked(1).get("status"), Some(&json!("success")));
    let reply = nodes[1].as_ref().expect("it runs").ask(&json!({"command": "REMOVE_NODE", "node": "n1"}));
    assert_eq!(reply["status"], "success", "{reply}");
    eventually("the first holds nothing", PATIENCE, || {
        is_even(&asked(4)["result"], &["n2", "n3", "n4", "n5"], 3)
    });
    let leaving = load.take_longest();
    // Nobody tells it any more who leads: it says so and ends, and its clients go elsewhere. It is not let in again.
    for _ in 0..2 {
        let ended = nodes[0].take().expect("it runs").wait_from_now();
        assert_eq!(ended.code(), Some(0), "{ended:#?}");
        assert!(ended.stderr.contains("node n1 was removed from the cluster"), "{}", ended.stderr);
        nodes[0] = Some(trio.spawn_without_peers(0));
    }
    nodes[1].take().expect("it runs").kill();
    let reply = nodes[2]
        .as_ref()
        .expect("it runs")
        .ask_until_success(&json!({"command": "REMOVE_NODE", "node": "n2"}));
    assert_eq!(reply["result"], "OK");
    eventually("the dead one is replaced", PATIENCE, || {
        let reply = nodes[4].as_ref().expect("it runs").ask(&json!({"command": "CLUSTER"}));
        is_even(&reply["result"], &["n3", "n4", "n5"], 3)
    });
    let replacing = load.take_longest();
    let requests = load.end(&ports[2..]);
    say(&format!(
        "{requests} requests while two nodes came and two went; longest while they came {joining:?}, while one left \
         {leaving:?}, while a dead one was replaced {replacing:?}"
    ));
    for pause in [joining, leaving, replacing] {
        assert!(pause < PAUSE_MAX, "{pause:?}");
    }
    let mut connection = Connection::open(ports[4]).expect("the node listens");
    for from in (0..FILLINGS).step_by(500) {
        let keys: Vec<String> = (from..from + 500).map(|number| format!("fill-{number}")).collect();
        let found = connection.ask(&json!({"command": "BULK_GET", "keys": keys}))["result"].clone();
        let whole = |value: &Value| value.as_str().map(str::len) == Some(FILLING_BYTES);
        assert!(found.as_object().is_some_and(|found| found.len() == 500 && found.values().all(whole)));
    }
}

/// In the middle of a move the replica that is to go is placed nowhere any more, and still votes. It must come back with its
/// node: when another voter is lost at that moment, the group has no majority without it.
#[test]
fn a_replica_on_its_way_out_votes_after_a_restart() {
    let _timed = timed("a replica on its way out");
    let trio = Trio::new("life-leaving", &["--shards", "1"]);
    let mut nodes: Vec<Option<Node>> = (0..3).map(|at| Some(trio.spawn(at))).collect();
    nodes.iter().flatten().for_each(answers);
    let joining = trio.spawn_joining(3, 1);
    let add = json!({"command": "ADD_NODE", "node": "n4"});
    eventually("it is added", PATIENCE, || {
        nodes[1].as_ref().expect("it runs").ask(&add)["status"] == "success"
    });
    answers(&joining);
    // The replica that is to take the third one's place cannot be filled: the move stands still in its middle.
    joining.signal(Signal::Stop);
    let remove = json!({"command": "REMOVE_NODE", "node": "n3"});
    nodes[1].as_ref().expect("it runs").ask_until_success(&remove);
    eventually("the move is in its middle", PATIENCE, || {
        let cluster = nodes[1].as_ref().expect("it runs").ask(&json!({"command": "CLUSTER"}));
        let replicas = cluster["result"]["groups"][0]["replicas"].as_array().map_or(&[][..], Vec::as_slice);
        replicas.iter().any(|replica| replica["node"] == "n4" && replica["role"] == "learner")
    });
    // The third node hears a moment later that it has no place any more.
    std::thread::sleep(Duration::from_secs(1));
    nodes[2].take().expect("it runs").kill();
    let back = trio.spawn_without_peers(2);
    answers(&back);
    nodes[0].take().expect("it runs").kill();
    let set = json!({"command": "SET", "key": "k", "value": 1});
    nodes[1].as_ref().expect("it runs").ask_until_success(&set);
    // The move goes on when it can, and the replica goes.
    joining.signal(Signal::Continue);
    let first = trio.spawn_without_peers(0);
    answers(&first);
    eventually("the move is over", PATIENCE, || {
        is_even(&first.ask(&json!({"command": "CLUSTER"}))["result"], &["n1", "n2", "n4"], 3)
    });
    eventually("its files are gone", PATIENCE, || back.stderr().contains("its files are gone"));
}

/// Nodes by place: their ids, and their processes.
struct Crew<'t> {
    trio: &'t Trio,
    ids: BTreeMap<usize, String>,
    nodes: BTreeMap<usize, Node>,
    random: Random,
}

impl Crew<'_> {
    /// Kills some of them one after another, at moments of chance, and has them come back.
    fn crash_some(&mut self) {
        for _ in 0..1 + self.random.below(3) {
            std::thread::sleep(Duration::from_millis(self.random.below(500)));
            let places: Vec<usize> = self.nodes.keys().copied().collect();
            let victim = places[self.random.below(places.len() as u64) as usize];
            self.nodes.remove(&victim).expect("it runs").kill();
            std::thread::sleep(Duration::from_millis(self.random.below(700)));
            // With the command line that it had: it may not have heard yet that it is a member.
            let id = &self.ids[&victim];
            let other = self.ids.keys().copied().find(|at| *at != victim);
            let back = self.trio.spawn_named(victim, id, other.filter(|_| id.starts_with("new")));
            self.nodes.insert(victim, back);
        }
    }

    /// Asks members until one of them does it.
    fn have_done(&self, what: &str, request: &Value) {
        eventually(what, PATIENCE, || {
            let asked =
                |at: &usize| Connection::open(self.trio.port(*at)).and_then(|mut c| c.try_ask(request));
            self.ids.keys().any(|at| asked(at).is_ok_and(|reply| reply["status"] == "success"))
        });
    }

    fn until_even(&self) {
        let names: Vec<&str> = self.ids.values().map(String::as_str).collect();
        eventually("replicas and leaders are even", PATIENCE, || {
            let cluster = json!({"command": "CLUSTER"});
            let asked =
                |at: &usize| Connection::open(self.trio.port(*at)).and_then(|mut c| c.try_ask(&cluster));
            self.ids
                .keys()
                .find_map(|at| asked(at).ok())
                .is_some_and(|reply| is_even(&reply["result"], &names, 3))
        });
    }
}

/// At length: `STRAND_MEMBER_ROUNDS=50`.
#[test]
fn changes_of_members_survive_crashes_at_any_step() {
    let _timed = timed("crashes while members change");
    let rounds = from_environment("STRAND_MEMBER_ROUNDS", 3);
    let trio = Trio::new("life-crashes", &["--shards", "4"]);
    let nodes: BTreeMap<usize, Node> = (0..3).map(|at| (at, trio.spawn(at))).collect();
    nodes.values().for_each(answers);
    let ids = (0..3).map(|at| (at, format!("n{}", at + 1))).collect();
    let random = Random::new(from_environment("STRAND_SEED", 1));
    let mut crew = Crew { trio: &trio, ids, nodes, random };
    let ports: Vec<u16> = (0..4).map(|at| trio.port(at)).collect();
    let load = Load::begin(&ports, 3);
    for round in 0..rounds {
        // The place that is free gets a new node, under a new id.
        let free = (0..4).find(|at| !crew.ids.contains_key(at)).expect("three of four are members");
        let member = *crew.ids.keys().next().expect("there are members");
        let id = format!("new{round}");
        crew.nodes.insert(free, trio.spawn_named(free, &id, Some(member)));
        crew.have_done("it is added", &json!({"command": "ADD_NODE", "node": id, "timeout_ms": 3000}));
        crew.ids.insert(free, id);
        crew.crash_some();
        crew.until_even();

        let places: Vec<usize> = crew.ids.keys().copied().collect();
        let leaving = places[crew.random.below(places.len() as u64) as usize];
        let id = crew.ids[&leaving].clone();
        crew.have_done("it may leave", &json!({"command": "REMOVE_NODE", "node": id, "timeout_ms": 3000}));
        crew.crash_some();
        crew.ids.remove(&leaving);
        crew.until_even();
        // It ends by itself, or has just been started again.
        drop(crew.nodes.remove(&leaving));
        trio.blank(leaving);
    }
    let members: Vec<u16> = crew.ids.keys().map(|at| trio.port(*at)).collect();
    let requests = load.end(&members);
    say(&format!("{requests} requests over {rounds} nodes that came and {rounds} that went, with crashes"));
}

/// Whether every group has this many voters, all of them on these nodes, with replicas and leaders even within one.
fn is_even(cluster: &Value, nodes: &[&str], replicas: usize) -> bool {
    let mut held: BTreeMap<&str, usize> = nodes.iter().map(|node| (*node, 0)).collect();
    let mut led = held.clone();
    for group in cluster["groups"].as_array().into_iter().flatten() {
        let copies = group["replicas"].as_array().map_or(&[][..], Vec::as_slice);
        let voters = copies.iter().filter(|copy| copy["role"] == "voter");
        let Some(leader) = group["leader"].as_str().and_then(|leader| led.get_mut(leader)) else {
            return false;
        };
        *leader += 1;
        if copies.len() != replicas || voters.count() != replicas {
            return false;
        }
        for copy in copies {
            let Some(count) = copy["node"].as_str().and_then(|node| held.get_mut(node)) else { return false };
            *count += 1;
        }
    }
    let even = |counts: &BTreeMap<&str, usize>| {
        counts.values().max().zip(counts.values().min()).is_some_and(|(max, min)| max - min <= 1)
    };
    even(&held) && even(&led) && led.values().sum::<usize>() > 0
}
